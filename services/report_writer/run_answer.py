"""The answer of a run in one sentence, with its interval and what guessing reaches; doubts come first."""

from collections.abc import Iterator

from services.report_writer.escape import inline
from services.report_writer.run_drivers import leading
from services.report_writer.run_found import Found, Stage
from services.report_writer.run_values import Json, figure, items, name, number, of, text
from services.report_writer.run_words import counted, paragraph, several

METRICS = {
    "roc_auc": "ROC AUC",
    "roc_auc_ovr": "ROC AUC (mean over the classes)",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "f1_macro": "F1 (mean over the classes)",
    "log_loss": "log loss",
    "brier": "Brier score",
    "r2": "R²",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
}
NO_BETTER = "NO_BETTER_THAN_BASELINE"
TOO_GOOD = "SUSPICIOUSLY_GOOD"

_REVIEW = Stage.STAGE_REVIEW_EDIT


def metric(given: Json) -> str:
    """Returns the name of a metric for people, as plain text."""
    told = name(given)
    return METRICS.get(told, told) or "score"


def interval(given: Json) -> str:
    """Returns a 95 % interval, "" when the value is none."""
    ends = [figure(end) for end in items(given)]
    return f"{ends[0]} to {ends[1]}" if len(ends) == 2 and all(ends) else ""


def answer(found: Found) -> Iterator[str]:
    """Yields the blocks of the section."""
    sentence = _sentence(found)
    yield paragraph(_doubt(found), sentence or inline(_told(found)))
    if sentence:
        yield paragraph(_drivers(found) if found.explains else "", _meaning(found))
    for issue in found.issues(_REVIEW):
        if issue.code in (NO_BETTER, TOO_GOOD):
            yield paragraph(inline(issue.message), inline(issue.suggestion))
    if found.of(_REVIEW, "accepted") is True:
        yield "A person looked at this and accepted the model all the same.\n"


def no_better(found: Found) -> bool:
    """Returns whether the model is not clearly better than guessing: as REVIEW_EDIT says, or as its figures do."""
    said = found.of(_REVIEW, "verdict") == "SAME_AS_BASELINE"
    ends = [number(end) for end in items(found.of(_REVIEW, "lift", "ci95"))]
    shown = bool(ends) and ends[0] is not None and ends[0] <= 0
    return said or shown or any(issue.code == NO_BETTER for issue in found.issues(_REVIEW))


def _too_good(found: Found) -> bool:
    warned = any(issue.code == TOO_GOOD and issue.warns for issue in found.issues(_REVIEW))
    return warned or found.of(_REVIEW, "verdict") == "SUSPICIOUS"


def _doubt(found: Found) -> str:
    if no_better(found):
        return "**No better than guessing.**"
    return "**Suspiciously good: find out why before anything is built on it.**" if _too_good(found) else ""


def _sentence(found: Found) -> str:
    test = found.of(_REVIEW, "test")
    value, guess = figure(of(test, "value")), figure(found.of(_REVIEW, "baseline", "value"))
    if not value:
        return ""
    target = f"“{inline(found.target)}”" if found.target else "the target"
    can = "could not be predicted better than guessing" if no_better(found) else "can be predicted better than guessing"
    if not guess:
        can = "was predicted"
    seen = number(of(test, "n"))
    where = f"on {counted(int(seen), 'row')} it had never seen" if seen is not None and seen >= 0 else "on its test"
    spread = interval(of(test, "ci95"))
    spread = f" (95 % interval {spread})" if spread else " (no interval: too few rows)"
    beside = f"; guessing reaches {guess}" if guess else "; what guessing reaches is not known"
    less = ", and less is better" if found.of(_REVIEW, "higher_better") is False else ""
    reached = f"{inline(metric(of(test, 'metric')))} {value}{spread}"
    return f"{target} {can}: {where}, the model reached {reached}{beside}{less}."


def _meaning(found: Found) -> str:
    given = found.of(Stage.STAGE_TRAIN, "metric") or found.of(Stage.STAGE_MODEL_SELECT, "metric")
    meaning, measured = text(of(given, "meaning")), name(of(given, "name")) == name(found.of(_REVIEW, "test", "metric"))
    return f"{inline(metric(of(given, 'name')))} says {inline(meaning)}." if meaning and measured else ""


def _drivers(found: Found) -> str:
    if no_better(found):
        return "So no column is named as a driver: what such a model leans on says nothing."
    target = f"“{inline(found.target)}”" if found.target else "The target"
    names = leading(found, 5)
    return f"{target} goes most with {several(names)}: association, not cause." if names else ""


def _told(found: Found) -> str:
    """Returns what the stages said themselves when there are no figures of a test."""
    own = text(found.request.outcome.summary, 600)
    return text(found.of(_REVIEW, "verdict_words"), 600) or found.summary(_REVIEW) or own
