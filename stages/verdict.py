"""What a judgement means, in words: better than guessing or not, too good to be true, and what to keep in mind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stages.contract import Issue, Json
from stages.effects import figure
from stages.judging import Case, Judged, Vector, Verdicts
from stages.shown import plain
from stages.targets import MOSTLY
from stages.trial import Looks, Trial
from stages.wording import NAMES, counted, quoted, several, share

TOO_GOOD = 0.99  # ROC AUC or R2 above it is looked into
TELLS = 0.97  # strength (0 to 1, by PROFILE_DATA) of a column that all but tells the target by itself
FEW_ROWS = 100  # test rows; below it the interval is wide
FEW_OF_CLASS = 10  # test rows of a class
ENOUGH_OF_CLASS = 3  # test rows of one of many classes, from which it is worth a word that none is found
RARE = 0.1  # share of a class
UNEVEN = 0.5  # of the share a class would have if all were alike: each of 40 is rare, and none of them unbalanced
WIDE = 0.5  # an interval wider than this share of the lift is worth a word
OFF = 2.0  # standard deviations between folds and test
BADLY_CALIBRATED = 0.1  # mean gap between probability said and share come true

Verdict = Literal["BETTER", "SAME_AS_BASELINE", "SUSPICIOUS"]


@dataclass(frozen=True, slots=True)
class Ruling:
    """The verdict, in a word and in a sentence, with what a person should know."""

    verdict: Verdict
    words: str
    issues: tuple[Issue, ...]
    caveats: tuple[str, ...]
    tellers: tuple[str, ...]


def spread(found: Judged) -> str:
    """Returns a figure with its interval."""
    if found.low is None or found.high is None:
        return f"{figure(found.value)} (too few rows for an interval)"
    if found.low == found.high:
        return f"{figure(found.value)} (the same in every resample of the rows, so without an interval)"
    return f"{figure(found.value)} (95 % interval {figure(found.low)} to {figure(found.high)})"


def rule(trial: Trial, found: Verdicts, looks: Looks, profile: Mapping[str, Json], threshold: bool) -> Ruling:
    """Returns what the figures mean.

    Args:
        profile: the result of PROFILE_DATA.
        threshold: whether a person chose one.
    """
    issues: list[Issue] = []
    tellers: tuple[str, ...] = ()
    sides, least = found.lift.low, found.lift.value
    verdict: Verdict = "BETTER"
    if sides is None or sides <= 0:
        verdict = "SAME_AS_BASELINE"
        issues.append(_no_better(trial, found))
    elif _quality(found) > TOO_GOOD:
        tellers = _tellers(trial, profile)
        verdict = "SUSPICIOUS" if tellers else "BETTER"
        issues.append(_too_good(trial, _quality(found), tellers))
    caveats = _caveats(trial, found, looks, threshold) + _of_profile(trial, profile)
    return Ruling(verdict, _sentence(trial, found, verdict, least), tuple(issues), tuple(caveats), tellers)


def _quality(found: Verdicts) -> float:
    for name in ("roc_auc", "roc_auc_ovr", "r2"):
        if name in found.metrics:
            return found.metrics[name].value
    return 0.0


def _tellers(trial: Trial, profile: Mapping[str, Json]) -> tuple[str, ...]:
    used = set(trial.plan["features"])
    known = {each["name"]: each.get("strength") or 0.0 for each in profile.get("columns", [])}
    named = {each.get("column"): 1.0 for each in profile.get("issues", []) if _is_leak(each)}
    return tuple(
        name for name in trial.plan["features"] if name in used and max(known.get(name, 0), named.get(name, 0)) > TELLS
    )


def _is_leak(issue: Mapping[str, Json]) -> bool:
    return issue.get("code") == "LEAKAGE_SUSPECT" and issue.get("severity") == "WARN"


def _no_better(trial: Trial, found: Verdicts) -> Issue:
    text = (
        f"On {counted(len(trial.test), 'test row')} the model is not clearly better than guessing: "
        f"{NAMES[trial.metric]} {spread(found.metrics[trial.metric])}, guessing {figure(found.baseline.value)}."
    )
    target = quoted(trial.plan["target"])
    advice = f"The columns may say nothing about {target}: add others or more rows, or do not use the model."
    return Issue("NO_BETTER_THAN_BASELINE", "WARN", text, column=trial.plan["target"], suggestion=advice)


def _too_good(trial: Trial, quality: float, tellers: Sequence[str]) -> Issue:
    measure = "ROC AUC" if trial.is_classes else "R²"
    if tellers:
        alone = f"{several(tellers)} {'tells' if len(tellers) == 1 else 'tell'} the answer nearly without the rest"
        text = f"{measure} {figure(quality)} is suspiciously good: {alone}. It may be written down after the answer."
        advice = f"Go back to PREPROCESS and drop {several(tellers)}, unless it is known before the answer."
        return Issue("SUSPICIOUSLY_GOOD", "WARN", text, column=tellers[0], value=figure(quality), suggestion=advice)
    text = (
        f"{measure} {figure(quality)} is very good. No single column gives the answer away, and some tables are just "
        "easy, so this may well be right."
    )
    advice = "Please confirm that every column is known before the answer is."
    return Issue("SUSPICIOUSLY_GOOD", "INFO", text, value=figure(quality), suggestion=advice)


def _sentence(trial: Trial, found: Verdicts, verdict: Verdict, lift: float) -> str:
    main = found.metrics[trial.metric]
    target = quoted(trial.plan["target"])
    head = (
        f"On {counted(len(trial.test), 'row')} it had not seen, the model predicts {target} with {NAMES[trial.metric]} "
        f"{spread(main)}; guessing reaches {figure(found.baseline.value)}."
    )
    tail = {
        "BETTER": "It is better than guessing.",
        "SAME_AS_BASELINE": "That is not clearly better than guessing."
        if lift > 0
        else "That is no better than guessing.",
        "SUSPICIOUS": "That is suspiciously good: look at the columns it leans on before you trust it.",
    }[verdict]
    less = "" if trial.higher_better else " (Less is better.)"
    return f"{head}{less} {tail}"


def _caveats(trial: Trial, found: Verdicts, looks: Looks, threshold: bool) -> list[str]:
    main, rows, said = found.metrics[trial.metric], len(trial.test), _below_nothing(found)
    if rows < FEW_ROWS:
        said.append(
            f"There are only {counted(rows, 'test row')}: another choice of rows could give quite another figure."
        )
    if main.low is None or main.high is None:
        said.append("A class has so few test rows that the main figure has no interval.")
    elif main.low == main.high and found.lift.value > 0:
        said.append(
            "The interval has no width because no resample of the test rows did worse; with "
            f"{counted(rows, 'row')}, errors in up to about {figure(300 / max(3, rows))} % could still go unnoticed."
        )
    elif found.lift.value > 0 and main.high - main.low > WIDE * found.lift.value:
        said.append(f"The interval is wide, {figure(main.low)} to {figure(main.high)}: more rows would narrow it.")
    if looks.models > 1:
        said.append(
            f"Test rows of this data were looked at for {looks.models} models, this one included. "
            "The best of several looks flatters: new rows would tell the truth."
        )
    if threshold:
        said.append("The threshold was chosen by a person; figures that depend on it hold for that threshold.")
    return said + _of_classes(trial) + _of_amounts(trial) + _of_folds(trial, main)


def _below_nothing(found: Verdicts) -> list[str]:
    """Tells when guessing from the training rows is beaten, and the mean of the test rows themselves is not."""
    if "r2" not in found.metrics or found.metrics["r2"].value >= 0 or found.lift.value <= 0:
        return []
    return [
        f"R² is {figure(found.metrics['r2'].value)}, below 0: the mean of the test rows themselves would be closer "
        "than the model. They are not as those it learned from, and rows to come may differ as much."
    ]


def _of_amounts(trial: Trial) -> list[str]:
    if trial.is_classes:
        return []
    values, counts = np.unique(trial.truth(trial.test), return_counts=True)
    most = int(counts.argmax())
    if counts[most] <= MOSTLY * counts.sum():
        return []
    part = share(int(counts[most]), int(counts.sum()))
    return [
        f"{part} of the test rows have the same value, {figure(float(values[most]))}: a small mean error says little, "
        "and the few others decide about R²."
    ]


def _of_classes(trial: Trial) -> list[str]:
    if not trial.is_classes:
        return []
    counts = np.bincount(trial.truth(trial.test), minlength=len(trial.classes))
    few = [name for name, count in zip(trial.classes, counts, strict=True) if count < FEW_OF_CLASS]
    said = []
    if few:
        said.append(f"Fewer than {FEW_OF_CLASS} test rows are {several(few)}: what is said about it is uncertain.")
    rarest = int(counts.argmin())
    if counts[rarest] < min(RARE, UNEVEN / len(counts)) * counts.sum():
        part = share(int(counts[rarest]), int(counts.sum()))
        said.append(
            f"The classes are unbalanced: {part} of the rows are {quoted(trial.classes[rarest])}. Accuracy flatters; "
            "look at the figures of each class."
        )
    unknown = trial.classes[len(trial.model.classes_) :]
    if unknown:
        said.append(f"{several(unknown)} occurs in test rows only: the model cannot predict it.")
    return said


def _of_folds(trial: Trial, main: Judged) -> list[str]:
    """Tells when the test rows say something else than the folds did: then one of the two was lucky."""
    chosen = trial.trained.get("chosen") or {}
    board = [row for row in trial.trained.get("leaderboard", []) if row.get("id") == chosen.get("id")]
    mean, sd = (board[0].get("cv_mean"), board[0].get("cv_sd")) if board else (None, None)
    if mean is None or not sd:
        return []
    worse = (mean - main.value) * (1 if trial.higher_better else -1)
    half = (main.high - main.low) / 4 if main.low is not None and main.high is not None else 0.0
    if worse <= OFF * float(np.hypot(sd, half)):
        return []
    return [f"Within the training rows it was {figure(mean)}, better than on the test rows: expect the lower figure."]


def _of_profile(trial: Trial, profile: Mapping[str, Json]) -> list[str]:
    split: Mapping[str, Any] = trial.plan.get("split") or {}
    codes = {each.get("code"): each for each in profile.get("issues", [])}
    said = []
    if "TIME_ORDERED" in codes and split.get("kind") != "TIME":
        column = codes["TIME_ORDERED"].get("column")
        by = f" (column {quoted(column)})" if column else ""
        said.append(
            f"The rows are in order of time{by}, and the test rows were drawn from all of it: on days to come "
            "the model may do worse. A split by time in PREPROCESS would show."
        )
    if "GROUPED_ROWS" in codes and split.get("kind") != "GROUP":
        column = codes["GROUPED_ROWS"].get("column")
        by = f" by {quoted(column)}" if column else ""
        said.append(f"Rows belong together{by}, and such rows are in training and test alike: new groups may do worse.")
    dropped = [each for each in trial.plan.get("dropped_rows", []) if each.get("n")]
    if dropped:
        why = "; ".join(f"{counted(each['n'], 'row')}: {plain(str(each['reason']))}" for each in dropped[:3])
        said.append(f"Rows left out before the split: {why}.")
    return said


def unsaid(trial: Trial, case: Case, best: float | None, *, better: bool) -> Issue | None:
    """Returns the warning about classes of which no test row is found, None when some of each are.

    With two classes it may still rank them well: then it is the threshold that is wrong.

    Args:
        best: the threshold that balances best on training rows, None when that is not known.
        better: whether the model is better than guessing: else no threshold helps.
    """
    if not trial.is_classes:
        return None
    counts = np.bincount(case.truth, minlength=len(case.classes))
    found = np.bincount(case.truth[case.labels == case.truth], minlength=len(case.classes))
    if case.positive < 0:
        return _unfound(trial, np.flatnonzero((counts >= ENOUGH_OF_CLASS) & (found == 0)), counts)
    lost = int(np.argmin(found))
    if found[lost] or not counts[lost]:
        return None
    name, rows = quoted(case.classes[lost]), counted(int(counts[lost]), "test row")
    never = len(np.unique(case.labels)) == 1
    how = "never says so" if never else "says so of others only"
    text = f"With the threshold {figure(case.threshold)} it finds none of the {rows} that are {name}: it {how}."
    other = f", for example {figure(best)}," if best is not None and best != case.threshold else ""
    advice = f"Choose another threshold{other} or use the probabilities and not what it calls."
    advice = advice if better else "No threshold helps where the model is not clearly better than guessing."
    return Issue("IMBALANCE", "WARN", text, column=trial.plan["target"], count=int(counts[lost]), suggestion=advice)


def _unfound(trial: Trial, lost: Vector, counts: Vector) -> Issue | None:
    if not len(lost):
        return None
    names = several([trial.classes[at] for at in lost])
    text = f"It finds none of the test rows that are {names} ({counted(int(counts[lost].sum()), 'row')})."
    advice = "Do not use it to find these, or bring more rows of them."
    rows = int(counts[lost].sum())
    return Issue("IMBALANCE", "WARN", text, column=trial.plan["target"], count=rows, suggestion=advice)


def badly_calibrated(ece: float) -> str:
    """Returns the caveat about probabilities that do not hold, "" when they do."""
    if ece < BADLY_CALIBRATED:
        return ""
    return f"Its probabilities are off by {share(round(100 * ece), 100)} on average: use them to rank, not to count on."
