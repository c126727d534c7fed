"""Which models a run tried, and how good the chosen one is on the rows that nobody had seen."""

from collections.abc import Iterator, Mapping, Sequence

from conductor.v1 import project_pb2

from services.report_writer.escape import inline
from services.report_writer.run_answer import interval, metric
from services.report_writer.run_found import Found, Stage, picture
from services.report_writer.run_values import Json, figure, items, name, number, of, rows, text, texts
from services.report_writer.run_words import cell, paragraph, several, table

MAX_CLASSES = 12  # in a table of confusions
TEST_PICTURES = ("plot-confusion", "plot-roc", "plot-calibration", "plot-residuals")
OTHER_PICTURES = 6  # of a team's own stage program, under other names

_SELECT, _TRAIN, _REVIEW = Stage.STAGE_MODEL_SELECT, Stage.STAGE_TRAIN, Stage.STAGE_REVIEW_EDIT
_STATUS = {"OK": "", "SKIPPED_BUDGET": "not tried: no budget left", "BEHIND": ""}


# ---- models tried ----


def leaderboard(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on the models that were tried."""
    board = [row for row in rows(found.of(_TRAIN, "leaderboard")) if name(row.get("id"))]
    chosen = name(found.of(_TRAIN, "chosen", "id"))
    if not board:
        yield paragraph(inline(found.summary(_TRAIN)))
    yield paragraph(_judged_by(found), _tried(found), _budget(found))
    yield table(
        ("model", "family", cell(_score_name(found)), "± over folds", "folds", "fit, s", "note"),
        _lines(found, board, chosen),
    )
    if chosen and board:
        why = text(found.of(_TRAIN, "chosen", "why"))
        yield paragraph(f"Chosen: **{inline(chosen)}**{_blended(found)}.", _kind(found, chosen), inline(why))
    for file in found.pictures(_TRAIN, "plot-")[:OTHER_PICTURES]:
        yield picture(file)


def _score_name(found: Found) -> str:
    return metric(of(_metric(found), "name") or _metric(found))


def _metric(found: Found) -> Json:
    return found.of(_TRAIN, "metric") or found.of(_SELECT, "metric") or found.of(_REVIEW, "test", "metric")


def _judged_by(found: Found) -> str:
    given = _metric(found)
    if not name(of(given, "name")):
        return ""
    less = " Less is better." if of(given, "higher_better") is False else ""
    meaning = text(of(given, "meaning"))
    told = f", {inline(meaning)}" if meaning else ""
    return f"Models are judged by {inline(_score_name(found))}{told}.{less} {inline(text(of(given, 'why')))}".rstrip()


def _tried(found: Found) -> str:
    tried, total = figure(found.of(_TRAIN, "tried")), figure(found.of(_TRAIN, "total"))
    if not tried or not total:
        return ""
    rest = texts(found.of(_TRAIN, "not_planned"))
    return f"Tried {tried} of {total}" + (f"; not tried: {several(rest)}." if rest else ".")


def _budget(found: Found) -> str:
    used, given = number(found.of(_TRAIN, "budget_used_s")), number(found.of(_TRAIN, "budget_s"))
    given = number(found.of(_SELECT, "budget_s")) if given is None else given
    if used is None:
        return ""
    share = f" of {given:,.4g} s ({100 * used / given:.0f} %)" if given else " s"
    return f"Processor time used: {used:,.4g}{share}."


def _kind(found: Found, chosen: str) -> str:
    """Returns what MODEL_SELECT says of a model, "" when it says nothing."""
    known = {name(row.get("id")): text(row.get("why")) for row in rows(found.of(_SELECT, "candidates"))}
    return f"What it is: {inline(known[chosen])}" if known.get(chosen) else ""


def _blended(found: Found) -> str:
    weights = found.of(_TRAIN, "chosen", "weights")
    parts = list(weights.items()) if isinstance(weights, Mapping) else []
    if len(parts) < 2:
        return ""
    return ", made of " + several([f"{name(key)} ({figure(value)})" for key, value in parts])


def _lines(found: Found, board: Sequence[Mapping[str, Json]], chosen: str) -> list[list[str]]:
    lines = [_line(row, name(row["id"]) == chosen) for row in board]
    guess = figure(found.of(_TRAIN, "baseline_score"))
    if board and guess and not any(name(row["id"]) == "dummy" for row in board):
        lines.append(["guessing", "", guess, "", "", "", "the baseline"])
    return lines


def _line(row: Mapping[str, Json], chosen: bool) -> list[str]:
    model, status = name(row["id"]), name(row.get("status"))
    shown = f"**{cell(model)}**" if chosen else cell(model)
    notes = ["chosen"] if chosen else []
    notes += ["the baseline: always says the same"] if model == "dummy" else []
    notes += [_STATUS.get(status, cell(status)), cell(text(row.get("error"), 120))]
    scores = [figure(row.get("cv_mean")), figure(row.get("cv_sd"), 2)]
    times = [figure(row.get("folds")), figure(row.get("fit_cpu_s"), 3)]
    return [shown, cell(name(row.get("family"))), *scores, *times, "; ".join(filter(None, notes))]


# ---- test results ----


def test_results(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on the test, none when there was no test."""
    metrics = found.of(_REVIEW, "all_metrics")
    given = metrics.items() if isinstance(metrics, Mapping) else ()
    lines = [[cell(metric(key)), figure(of(each, "value")), interval(of(each, "ci95"))] for key, each in given]
    yield paragraph(*_opened(found)) if number(found.of(_REVIEW, "test", "value")) is not None else ""
    yield table(("on the test rows", "value", "95 % interval"), [line for line in lines if line[1]])
    yield paragraph(*_beside(found))
    yield _classes(rows(found.of(_REVIEW, "per_class")))
    yield _confusion(found.of(_REVIEW, "confusion"))
    yield paragraph(*_calibration(found))
    yield from _residuals(found.of(_REVIEW, "residuals"))
    yield paragraph(*_threshold(found.of(_REVIEW, "threshold")))
    for file in _pictures(found):
        yield picture(file)


def _pictures(found: Found) -> Iterator[project_pb2.RunArtifact]:
    drawn = [file for file in found.pictures(_REVIEW) if not file.name.startswith(("plot-importance", "plot-effect"))]
    known = [file for file in drawn if file.name.startswith(TEST_PICTURES)]
    yield from known
    yield from [file for file in drawn if file not in known][:OTHER_PICTURES]


def _opened(found: Found) -> Iterator[str]:
    test = number(found.of(_REVIEW, "test", "n"))
    if test is not None:
        yield f"The {test:,.0f} test rows took no part in learning or in choosing the model."
    models, thresholds = (number(found.of(_REVIEW, "opened", key)) for key in ("models_judged", "thresholds_looked_at"))
    if models is not None and models > 1:
        yield f"They have judged {models:,.0f} models by now, so the figures are a little too kind."
    if thresholds is not None and thresholds > 1:
        yield f"{thresholds:,.0f} thresholds were looked at on them."


def _beside(found: Found) -> Iterator[str]:
    guess, lift = figure(found.of(_REVIEW, "baseline", "value")), found.of(_REVIEW, "lift")
    if guess:
        what = text(found.of(_REVIEW, "baseline", "what"))
        yield f"Guessing reaches {guess}" + (f" ({inline(what)})." if what else ".")
    if figure(of(lift, "value")):
        spread = interval(of(lift, "ci95"))
        yield f"The model is better by {figure(of(lift, 'value'))}" + (f" (95 % interval {spread})." if spread else ".")


def _classes(given: Sequence[Mapping[str, Json]]) -> str:
    figures = ("precision", "recall", "f1", "rows")
    lines = [[cell(name(row.get("class"))), *(figure(row.get(key)) for key in figures)] for row in given]
    return table(("class", "precision", "recall", "F1", "test rows"), lines)


def _confusion(given: Json) -> str:
    names, lines = texts(of(given, "classes")), [items(line) for line in items(of(given, "table"))]
    if not names or len(names) != len(lines) or any(len(line) != len(names) for line in lines):
        return ""
    if len(names) > MAX_CLASSES:
        return f"The table of confusions of {len(names):,} classes is left out here.\n"
    shown = [[f"**{cell(each)}**", *map(figure, line)] for each, line in zip(names, lines, strict=True)]
    return "Rows: what it was. Columns: what the model said.\n\n" + table(("", *map(cell, names)), shown)


def _calibration(found: Found) -> Iterator[str]:
    given = found.of(_REVIEW, "calibration")
    if gap := figure(of(given, "ece"), 3):
        yield f"Calibration: the probabilities it says are off by {gap} on average"
        yield f"(Brier score {figure(of(given, 'brier'), 3)}; 0 is best)." if figure(of(given, "brier")) else "."


def _residuals(given: Json) -> Iterator[str]:
    half, most = figure(of(given, "within_50")), figure(of(given, "within_90"))
    if half and most:
        yield f"Half of the test rows are off by at most {half}, nine of ten by at most {most}.\n"
    worst = [[figure(row.get(key)) for key in ("row", "true", "predicted")] for row in rows(of(given, "worst"))]
    if worst:
        yield "The rows it misses most:\n\n" + table(("row of the data", "true", "predicted"), worst, 10)


def _threshold(given: Json) -> Iterator[str]:
    if value := figure(of(given, "value")):
        positive = name(of(given, "positive_class"))
        called = f"“{inline(positive)}”" if positive else "the positive class"
        yield f"A row is called {called} from a probability of {value} on."
        if best := figure(of(given, "suggested")):
            yield f"On the training rows {best} balances best."
