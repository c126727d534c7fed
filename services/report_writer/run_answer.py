"""The answer of a run in one sentence, with its interval and what guessing reaches; doubts come first."""

from collections.abc import Iterator

from services.report_writer.escape import inline
from services.report_writer.run_drivers import leading
from services.report_writer.run_found import Found, Issue, Stage
from services.report_writer.run_values import Json, figure, items, name, number, of, text, texts
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
UNSAID = "IMBALANCE"
NO_BETTER = "NO_BETTER_THAN_BASELINE"
TOO_GOOD = "SUSPICIOUSLY_GOOD"
LEADS = (UNSAID, NO_BETTER, TOO_GOOD)  # codes that stand in the answer, in this order

_REVIEW = Stage.STAGE_REVIEW_EDIT


def metric(given: Json) -> str:
    """Returns the name of a metric for people, as plain text."""
    told = name(given)
    return METRICS.get(told, told) or "score"


def interval(given: Json) -> str:
    """Returns a 95 % interval, "" when the value is none or has no width."""
    ends = [figure(end) for end in items(given)]
    return f"{ends[0]} to {ends[1]}" if len(ends) == 2 and all(ends) and ends[0] != ends[1] else ""


def answer(found: Found) -> Iterator[str]:
    """Yields the blocks of the section."""
    sentence = _sentence(found)
    yield paragraph(_doubt(found), sentence or inline(_told(found)))
    leading_issues = sorted(_leads(found), key=lambda issue: LEADS.index(issue.code))
    for issue in leading_issues:
        shown = f"**{inline(issue.message)}**" if issue.code == UNSAID else inline(issue.message)
        yield paragraph(shown, inline(issue.suggestion))
    if sentence:
        yield paragraph(_plainly(found), _meaning(found), _drivers(found) if found.explains else "")
    if found.of(_REVIEW, "accepted") is True:
        yield "A person looked at this and accepted the model all the same.\n"


def _leads(found: Found) -> list[Issue]:
    return [issue for issue in found.issues(_REVIEW) if issue.code in LEADS]


def leading_texts(found: Found) -> set[str]:
    """Returns the messages that stand in the answer, as plain text: they are not told again."""
    return {issue.message for issue in _leads(found)}


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
    without = "the same in every resample of the rows, so without an interval" if items(of(test, "ci95")) else ""
    spread = f" (95 % interval {spread})" if spread else f" ({without or 'no interval: too few rows'})"
    beside = f"; guessing reaches {guess}" if guess else "; what guessing reaches is not known"
    less = ", and less is better" if found.of(_REVIEW, "higher_better") is False else ""
    reached = f"{inline(metric(of(test, 'metric')))} {value}{spread}"
    return f"{target} {can}: {where}, the model reached {reached}{beside}{less}."


def _plainly(found: Found) -> str:
    """Returns how often it is right, or how far off, in numbers that need no explanation."""
    names, table = texts(found.of(_REVIEW, "confusion", "classes")), found.of(_REVIEW, "confusion", "table")
    counts = [[number(count) or 0.0 for count in items(line)] for line in items(table)]
    rows = sum(map(sum, counts))
    if rows and len(names) == len(counts) and all(len(line) == len(names) for line in counts):
        right = sum(line[at] for at, line in enumerate(counts))
        most = max(range(len(names)), key=lambda at: sum(counts[at]))
        often = f"{right:,.0f} of {rows:,.0f} test rows were called right ({100 * right / rows:.0f} %)"
        always = sum(counts[most])
        return (
            f"{often}; always saying “{inline(names[most])}” is right for {always:,.0f} ({100 * always / rows:.0f} %)."
        )
    off = figure(found.of(_REVIEW, "residuals", "within_50"))
    guess = figure(found.of(_REVIEW, "residuals", "guess_within_50"))
    beside = f"; of guesses by at most {guess}" if guess else ""
    return f"Half of the predictions of test rows are off by at most {off}{beside}." if off else ""


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
