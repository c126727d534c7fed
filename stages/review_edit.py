"""REVIEW_EDIT: opens the test rows, once, and says how good the model is on them, what it leans on, and what to doubt.

By hand: `python -m stages.review_edit envelope.json` in the folder of a run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages import judged_plots
from stages.choices import Choices
from stages.contract import Action, Artifact, Envelope, Issue, Json, Progress, Result, Room, main
from stages.effects import Effect, effect, figure
from stages.explaining import Measured, importance
from stages.judging import Case, Draw, Judged, calibration, guessing, judge, metrics_of, per_class
from stages.shown import plain
from stages.thresholds import DEFAULT, LEAST, MOST, Choice, suggested, table_of
from stages.trial import LOOKS, Trial, load, look
from stages.verdict import Ruling, badly_calibrated, rule, unsaid
from stages.wording import NAMES, quoted

MAX_EFFECTS = 5
ACCEPT = "accept"
WORST = 5  # test rows with the greatest errors that are named
NOTE = "Association, not cause: the model found that these go together, not that one makes the other."


def work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    """Does the stage. Raises Failed with INPUT_MISSING, TOO_FEW_ROWS, BAD_EDIT."""
    progress.tell(0, "reading", always=True)
    trial = load(room)
    profile = room.result_of("PROFILE_DATA")
    choices = Choices(envelope.edits)
    chosen = _threshold(choices, trial)
    accepted = choices.text(ACCEPT, (ACCEPT,)) == ACCEPT
    choices.done()
    threshold = DEFAULT if chosen is None else chosen
    frame, truth = trial.prepared(trial.test), trial.truth(trial.test)
    looks = look(room, trial, chosen)
    progress.tell(10, "judging", f"{len(truth):,} test rows", always=True)
    case = trial.case(truth, trial.said(frame), threshold)
    guess = guessing(case, trial.truth(trial.train), trial.metric)
    found = judge(case, guess, trial.metric, envelope.seed, _groups(trial))
    ruling = rule(trial, found, looks, profile, chosen is not None)
    progress.tell(40, "explaining", "which columns it leans on", always=True)
    measured = _importance(trial, frame, truth, envelope)
    effects = _effects(trial, frame, measured, envelope.seed)
    progress.tell(80, "drawing", always=True)
    table = table_of(trial, room)
    silent = unsaid(trial, case, suggested(table), better=ruling.verdict != "SAME_AS_BASELINE")
    result: dict[str, Json] = {
        "test": {"metric": trial.metric, **_figure(found.metrics[trial.metric]), "n": len(truth)},
        "higher_better": trial.higher_better,
        "all_metrics": {name: _figure(each) for name, each in found.metrics.items()},
        "baseline": {"metric": trial.metric, **_figure(found.baseline), "what": _guess_words(trial)},
        "lift": _figure(found.lift),
        **_detail(trial, case, guess),
        "importance": [{"column": e.column, "mean": _tidy(e.mean), "sd": _tidy(e.sd)} for e in measured.columns],
        "importance_how": {"rows": measured.rows, "columns_of": measured.of, "complete": measured.complete},
        "effects": [_effect_json(number, each) for number, each in enumerate(effects, 1)],
        "note": NOTE,
        "threshold": _threshold_json(trial, threshold, table),
        "verdict": ruling.verdict,
        "verdict_words": ruling.words,
        "caveats": [*([silent.message] if silent else []), *ruling.caveats, *_calibration_caveat(trial, case)],
        "accepted": accepted,
        "opened": {"rows": len(truth), "rows_sha256": looks.rows_sha256, "model_sha256": trial.model_sha256}
        | {"models_judged": looks.models, "thresholds_looked_at": looks.thresholds},
    }
    artifacts = _draw(room, trial, case, measured, effects)
    summary = _summary(ruling, measured, silent)
    actions = _actions(trial, ruling, measured, table, threshold, accepted=accepted)
    issues = [*_issues(ruling, chosen, looks.thresholds), *([silent] if silent else [])]
    return Result(summary, result, actions, issues, artifacts)


def _threshold(choices: Choices, trial: Trial) -> float | None:
    """Returns the threshold a person chose. Raises Failed with BAD_EDIT."""
    return choices.number("threshold", LEAST, MOST) if trial.positive >= 0 else None


def _groups(trial: Trial) -> "np.ndarray[Any, Any] | None":
    """Returns the group of each test row when whole groups were kept apart: they are then what is drawn again."""
    split = trial.plan.get("split") or {}
    column = split.get("column")
    if split.get("kind") != "GROUP" or column not in trial.frame.columns:
        return None
    codes, _ = pd.factorize(trial.frame[column].iloc[trial.test], use_na_sentinel=False)
    return np.asarray(codes)


def _importance(trial: Trial, frame: pd.DataFrame, truth: "np.ndarray[Any, Any]", envelope: Envelope) -> Measured:
    if _guesses(trial):
        return Measured((), 0, len(frame.columns), complete=True)
    sign = 1.0 if trial.higher_better else -1.0

    def score(said: "np.ndarray[Any, Any]", rows: "np.ndarray[Any, Any]") -> float:
        case = trial.case(truth[rows], trial.widened(said), DEFAULT)
        return sign * metrics_of(case)[trial.metric](Draw(case, np.ones(len(rows))))

    return importance(trial.model, frame, score, envelope.seed, min(30.0, envelope.limits.cpu_s / 4))


def _guesses(trial: Trial) -> bool:
    return str(trial.trained.get("chosen", {}).get("id", "")).startswith("dummy")


def _effects(trial: Trial, frame: pd.DataFrame, measured: Measured, seed: int) -> list[Effect]:
    """Returns the effects of the columns that matter, the greatest first."""
    said = (lambda rows: trial.said(rows)[:, [trial.positive]]) if trial.positive >= 0 else trial.said
    names = _predicted(trial)
    found: list[Effect] = []
    for each in measured.columns:
        if each.mean > each.sd and len(found) < MAX_EFFECTS:
            one = effect(said, frame, each.column, names, seed)
            found += [one] if one else []
    return found


def _predicted(trial: Trial) -> list[str]:
    """Returns what each curve of an effect is about."""
    target = plain(trial.plan["target"], 40)
    if not trial.is_classes:
        return [f"the predicted {target}"]
    classes = [trial.classes[trial.positive]] if trial.positive >= 0 else trial.classes
    return [f"the probability of {target} = {plain(name, 40)}" for name in classes]


def _guess_words(trial: Trial) -> str:
    if trial.is_classes:
        return "always says how frequent each class was in the training rows"
    return f"always says the {'median' if trial.metric == 'mae' else 'mean'} of the training rows"


def _detail(trial: Trial, case: Case, guess: Case) -> dict[str, Json]:
    if not trial.is_classes:
        return {"residuals": _residuals(trial, case, guess)}
    held = calibration(case)
    table = Draw(case, np.ones(len(case.truth))).confusion.astype(int).tolist()
    curve = [{"said": _tidy(said), "true": _tidy(true), "rows": rows} for said, true, rows in held.curve]
    return {
        "per_class": [{name: _tidy(value) for name, value in row.items()} for row in per_class(case)],
        "confusion": {"classes": list(case.classes), "table": table},
        "calibration": {"brier": _tidy(held.brier), "ece": _tidy(held.ece), "curve": curve},
    }


def _residuals(trial: Trial, case: Case, guess: Case) -> dict[str, Json]:
    error = case.truth - case.said
    size = np.abs(error)
    worst = np.argsort(-size, kind="stable")[:WORST]
    rows = [
        {"row": int(trial.test[at]) + 1, "true": _tidy(case.truth[at]), "predicted": _tidy(case.said[at])}
        for at in worst
    ]
    within = {f"within_{share}": _tidy(np.quantile(size, share / 100)) for share in (50, 90)}
    within["guess_within_50"] = _tidy(np.quantile(np.abs(guess.truth - guess.said), 0.5))
    return {"mean": _tidy(error.mean()), "sd": _tidy(error.std()), **within, "worst": rows}


def _calibration_caveat(trial: Trial, case: Case) -> list[str]:
    text = badly_calibrated(calibration(case).ece) if trial.is_classes else ""
    return [text] if text else []


def _figure(found: Judged) -> dict[str, Json]:
    known = found.low is not None and found.high is not None
    return {"value": _tidy(found.value), "ci95": [_tidy(found.low), _tidy(found.high)] if known else None}


def _tidy(value: Any) -> Json:
    """Returns a number as JSON takes it: six digits that count, None for what is no number."""
    if isinstance(value, str | int) or value is None:
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _effect_json(number: int, found: Effect) -> dict[str, Json]:
    curve = [_tidy(value) for value in found.curves[found.chosen]]
    values = [{"value": label, "prediction": value} for label, value in zip(found.labels, curve, strict=True)]
    told = {"column": found.column, "direction": found.direction, "words": found.words}
    return {**told, "plot": f"plot-effect-{number}.png", "values": values}


def _threshold_json(trial: Trial, threshold: float, table: Sequence[Choice]) -> Json:
    if trial.positive < 0:
        return None
    rows = [{name: _tidy(getattr(row, name)) for name in row.__slots__} for row in table]
    best = suggested(table)
    told = {"value": threshold, "positive_class": trial.classes[trial.positive], "suggested": best}
    return {**told, "from_training_rows": rows}


def _draw(room: Room, trial: Trial, case: Case, measured: Measured, effects: Sequence[Effect]) -> list[Artifact]:
    for old in room.own.glob("plot-*.png"):  # of an earlier attempt, which may have had more of them
        old.unlink()
    target = plain(trial.plan["target"], 40)
    of_test = judged_plots.of_classes(room, case, calibration(case), target) if trial.is_classes else None
    made = list(of_test or judged_plots.of_values(room, case, target))
    if measured.columns:
        made.append(judged_plots.of_importance(room, measured.columns, NAMES[trial.metric]))
    predicted = _predicted(trial)
    made += [judged_plots.of_effect(room, number, each, predicted) for number, each in enumerate(effects, 1)]
    return [*made, Artifact(LOOKS, "application/json", "Which models the test rows were opened for")]


def _summary(ruling: Ruling, measured: Measured, silent: Issue | None) -> str:
    top = [quoted(each.column) for each in measured.columns[:3] if each.mean > each.sd]
    leans = f" It leans most on {', '.join(top)} (association, not cause)." if top else ""
    doubts = f" {ruling.caveats[0]}" if ruling.caveats else ""
    alarm = f" {silent.message}" if silent else ""
    return (ruling.words + alarm + leans + doubts)[:600]


def _issues(ruling: Ruling, chosen: float | None, thresholds: int) -> list[Issue]:
    issues = list(ruling.issues)
    if chosen is not None or thresholds > 1:
        text = (
            f"The test rows were looked at again, with the threshold {figure(chosen or DEFAULT)}. Every look at them "
            "makes figures that hold for a threshold a little too kind."
        )
        issues.append(Issue("TEST_SET_REOPENED", "INFO", text, count=thresholds))
    return issues


def _actions(
    trial: Trial, ruling: Ruling, measured: Measured, table: Sequence[Choice], threshold: float, *, accepted: bool
) -> list[Action]:
    offered = [Action("confirm", "Accept this model and export it", "CONFIRM")]
    if ruling.verdict == "SUSPICIOUS" and not accepted:
        label = f"Accept although it looks too good: {plain(ruling.tellers[0], 60)} is known before the answer"
        offered.append(Action("accept", label, "CHOOSE", ACCEPT, (ACCEPT,), required=True))
    if trial.positive >= 0:
        name, best = plain(trial.classes[trial.positive], 60), suggested(table)
        hint = f"; {figure(best)} balances best on training rows" if best is not None else ""
        label = f"Least probability that is called {name}{hint}"
        offered.append(Action("threshold", label, "EDIT", "threshold", default=threshold, minimum=LEAST, maximum=MOST))
    drop = ruling.tellers or [each.column for each in measured.columns[-1:]] or trial.plan["features"][:1]
    label = f"Go back to PREPROCESS, for example to drop {plain(drop[0], 60)} (edit actions.{plain(drop[0], 60)})"
    return [
        *offered,
        Action("back-preprocess", label, "BACK", "PREPROCESS"),
        Action(
            "back-model-select", "Go back to MODEL_SELECT: another metric, budget or candidates", "BACK", "MODEL_SELECT"
        ),
        Action("back-train", "Go back to TRAIN: another model or more time", "BACK", "TRAIN"),
        Action("abort", "End the run", "ABORT"),
    ]


if __name__ == "__main__":
    main(work)
