"""How good a model is on rows it has not seen: every metric with a bootstrap interval, beside a model that guesses.

All metrics are written for rows that count w times, w = 0, 1, 2, …: a bootstrap resample (Efron 1979) is then one
vector of counts, and nothing is sorted or copied 1,000 times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

RESAMPLES = 1_000
LEVEL = 0.95  # of an interval
ENOUGH = 0.9  # share of the resamples that must have a value
EPS = 1e-15  # a probability is at least this in the log loss, so that one sure error does not make it infinite

Vector: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """What a model said about rows, and what was true.

    Attributes:
        truth: class numbers (into `classes`), or values with regression.
        said: probabilities, rows x classes; or values with regression.
        classes: the class labels; empty with regression.
        positive: number of the class that is asked for, with two classes; -1 else.
        threshold: with two classes, the least probability of `positive` that is called so.
    """

    truth: Vector
    said: Vector
    classes: tuple[str, ...] = ()
    positive: int = -1
    threshold: float = 0.5

    @cached_property
    def labels(self) -> Vector:
        """The class number that is called, row by row."""
        if self.positive >= 0:
            return np.where(self.said[:, self.positive] >= self.threshold, self.positive, 1 - self.positive)
        return np.asarray(self.said.argmax(axis=1))

    def ranking(self, number: int) -> "_Ranking":
        """Returns the rows ranked by their probability of one class."""
        if number not in self._rankings:
            self._rankings[number] = _Ranking.of(self.said[:, number], self.truth == number)
        return self._rankings[number]

    @cached_property
    def _rankings(self) -> dict[int, "_Ranking"]:
        return {}

    @cached_property
    def cells(self) -> Vector:
        """The cell of the confusion table that each row falls into, counted row by row."""
        return np.asarray(self.truth * len(self.classes) + self.labels)


@dataclass(frozen=True)
class Draw:
    """A case whose rows count `w` times each."""

    case: Case
    w: Vector

    @cached_property
    def total(self) -> float:
        """How many rows were drawn."""
        return float(self.w.sum())

    @cached_property
    def confusion(self) -> Vector:
        """How often the class of the row was called the class of the column."""
        k = len(self.case.classes)
        return np.bincount(self.case.cells, weights=self.w, minlength=k * k).reshape(k, k)

    @cached_property
    def steps(self) -> list[tuple[Vector, Vector]]:
        """How many right and wrong rows each step of the ranking holds; of the positive class, or of every class."""
        numbers = [self.case.positive] if self.case.positive >= 0 else range(len(self.case.classes))
        return [self.case.ranking(number).steps(self.w) for number in numbers]

    def mean(self, values: Vector) -> float:
        """Returns the mean of a value of each row."""
        return float(np.dot(self.w, values) / self.total)


@dataclass(frozen=True)
class _Ranking:
    """Rows from the highest to the lowest probability; rows of equal probability are one step."""

    order: Vector
    hits: Vector
    starts: Vector

    @classmethod
    def of(cls, chance: Vector, hit: Vector) -> "_Ranking":
        order = np.argsort(-chance, kind="stable")
        ranked = chance[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        return cls(order, hit[order].astype(float), starts)

    def steps(self, w: Vector) -> tuple[Vector, Vector]:
        """Returns how many right and how many wrong rows each step holds."""
        counts = w[self.order]
        right = counts * self.hits
        return np.add.reduceat(right, self.starts), np.add.reduceat(counts - right, self.starts)


def _area(right: Vector, wrong: Vector) -> float:
    pairs = right.sum() * wrong.sum()
    below = wrong.sum() - np.cumsum(wrong)
    return float(np.dot(right, below + wrong / 2) / pairs) if pairs else float("nan")


def _precision_area(right: Vector, wrong: Vector) -> float:
    found, called = np.cumsum(right), np.cumsum(right + wrong)
    return float(np.dot(right, _ratio(found, called)) / right.sum()) if right.sum() else float("nan")


def _mean_over_classes(one: Callable[[Vector, Vector], float]) -> "Metric":
    def metric(draw: Draw) -> float:
        known = [value for value in (one(*steps) for steps in draw.steps) if value == value]
        return sum(known) / len(known) if known else float("nan")  # a class without a row has no value

    return metric


def _log_loss(draw: Draw) -> float:
    case = draw.case
    return draw.mean(-np.log(np.clip(case.said[np.arange(len(case.truth)), case.truth], EPS, 1.0)))


def _brier(draw: Draw) -> float:
    case = draw.case
    if case.positive >= 0:
        return draw.mean((case.said[:, case.positive] - (case.truth == case.positive)) ** 2)
    return draw.mean(((case.said - np.eye(len(case.classes))[case.truth]) ** 2).sum(axis=1))


def _accuracy(draw: Draw) -> float:
    return float(draw.confusion.trace() / draw.total)


def _ratio(above: Vector, below: Vector) -> Vector:
    quotient: Vector = np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)
    return quotient


def _balanced(draw: Draw) -> float:
    rows = draw.confusion.sum(axis=1)
    return float(_ratio(draw.confusion.diagonal(), rows)[rows > 0].mean())


def _of_classes(below: Callable[[Vector, Vector], Vector], *, macro: bool = False) -> "Metric":
    """Makes a metric of right calls over `below` (of true and called rows).

    It is the positive class's value; or, with `macro` or without a positive class, the mean over the classes there.
    """

    def metric(draw: Draw) -> float:
        true, called = draw.confusion.sum(axis=1), draw.confusion.sum(axis=0)
        values = _ratio(draw.confusion.diagonal(), below(true, called))
        if draw.case.positive >= 0 and not macro:
            return float(values[draw.case.positive])
        return float(values[true + called > 0].mean())

    return metric


def _both(true: Vector, called: Vector) -> Vector:
    return np.asarray((true + called) / 2)


def _rmse(draw: Draw) -> float:
    return float(np.sqrt(draw.mean((draw.case.truth - draw.case.said) ** 2)))


def _mae(draw: Draw) -> float:
    return draw.mean(np.abs(draw.case.truth - draw.case.said))


def _r2(draw: Draw) -> float:
    truth = draw.case.truth
    spread = draw.mean((truth - draw.mean(truth)) ** 2)
    return 1 - draw.mean((truth - draw.case.said) ** 2) / spread if spread > 0 else float("nan")


Metric: TypeAlias = Callable[[Draw], float]
TWO_CLASSES: Mapping[str, Metric] = {
    "roc_auc": _mean_over_classes(_area),
    "average_precision": _mean_over_classes(_precision_area),
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced,
    "precision": _of_classes(lambda true, called: called),
    "recall": _of_classes(lambda true, called: true),
    "f1": _of_classes(_both),
    "f1_macro": _of_classes(_both, macro=True),
    "log_loss": _log_loss,
    "brier": _brier,
}
MORE_CLASSES: Mapping[str, Metric] = {
    "roc_auc_ovr": _mean_over_classes(_area),
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced,
    "f1_macro": _of_classes(_both, macro=True),
    "log_loss": _log_loss,
    "brier": _brier,
}
VALUES: Mapping[str, Metric] = {"r2": _r2, "rmse": _rmse, "mae": _mae}
LOWER_BETTER = frozenset({"log_loss", "brier", "rmse", "mae"})


def metrics_of(case: Case) -> Mapping[str, Metric]:
    """Returns the metrics that can be had for a case, by the names that stages/scoring.py gives them."""
    if not case.classes:
        return VALUES
    return TWO_CLASSES if case.positive >= 0 else MORE_CLASSES


@dataclass(frozen=True, slots=True)
class Judged:
    """A figure with the interval that holds it in LEVEL of the resamples; None where it cannot be had."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What `judge` finds: each metric, the guessing model's value of the main one, and by how much it is beaten."""

    metrics: Mapping[str, Judged]
    baseline: Judged
    lift: Judged


def judge(case: Case, guess: Case, main: str, seed: int, groups: Vector | None = None) -> Verdicts:
    """Returns every metric of `case` and how much better its main metric is than that of `guess`.

    The lift is positive when the model is better, also where less is better; its interval is of the pairs: both models
    are judged on the same resample. With `groups` (numbers from 0) whole groups are drawn, since rows of one group are
    not independent of each other.
    """
    wanted = metrics_of(case)
    ones = np.ones(len(case.truth))
    names = list(wanted)
    drawn = np.full((RESAMPLES, len(names) + 1), np.nan)
    rng = np.random.default_rng(seed)
    for number in range(RESAMPLES):
        draw = Draw(case, _counts(rng, len(ones), groups))
        drawn[number, :-1] = [wanted[name](draw) for name in names]
        drawn[number, -1] = wanted[main](Draw(guess, draw.w))
    metrics = {name: _judged(wanted[name](Draw(case, ones)), drawn[:, at]) for at, name in enumerate(names)}
    baseline = _judged(wanted[main](Draw(guess, ones)), drawn[:, -1])
    sign = -1.0 if main in LOWER_BETTER else 1.0
    ahead = sign * (drawn[:, names.index(main)] - drawn[:, -1])
    return Verdicts(metrics, baseline, _judged(sign * (metrics[main].value - baseline.value), ahead))


def _counts(rng: np.random.Generator, rows: int, groups: Vector | None) -> Vector:
    if groups is None:
        return np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(float)
    number = int(groups.max()) + 1
    return np.bincount(rng.integers(0, number, number), minlength=number).astype(float)[groups]


def _judged(value: float, drawn: Vector) -> Judged:
    known = drawn[np.isfinite(drawn)]
    if len(known) < ENOUGH * RESAMPLES:  # the others miss a class: an interval without them would flatter
        return Judged(value, None, None)
    edge = (1 - LEVEL) / 2
    low, high = np.quantile(known, [edge, 1 - edge])
    return Judged(value, float(low), float(high))


def guessing(case: Case, seen: Vector, main: str) -> Case:
    """Returns what a model says that knows only how often each class, or which values, the training rows had.

    Args:
        seen: the truth of the training rows, as in `Case.truth`.
    """
    if case.classes:
        share = np.bincount(seen, minlength=len(case.classes)) / max(1, len(seen))
        said = np.tile(share, (len(case.truth), 1))
        return Case(case.truth, said, case.classes, case.positive)
    middle = np.median(seen) if main == "mae" else np.mean(seen)
    return Case(case.truth, np.full(len(case.truth), float(middle)))


def per_class(case: Case) -> list[dict[str, Any]]:
    """Returns precision, recall, F1 and number of rows of each class."""
    table = Draw(case, np.ones(len(case.truth))).confusion
    right, true, called = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    rows = zip(_ratio(right, called), _ratio(right, true), _ratio(2 * right, true + called), true, strict=True)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for name, (p, r, f, n) in zip(case.classes, rows, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether 70 % means 70 %. `curve`: per bin of equal row count, mean probability said, share that came true, rows.

    `ece` is the mean gap between the two, bins weighted by rows (Naeini et al. 2015). With more than two classes it is
    about the class that was called.
    """

    brier: float
    ece: float
    curve: tuple[tuple[float, float, int], ...]


BINS = 10
LEAST_IN_BIN = 10  # rows


def calibration(case: Case) -> Calibration:
    """Returns how well the probabilities of a case hold."""
    if case.positive >= 0:
        said, true = case.said[:, case.positive], case.truth == case.positive
    else:
        said, true = case.said.max(axis=1), case.labels == case.truth
    bins = max(1, min(BINS, len(said) // LEAST_IN_BIN))
    order = np.argsort(said, kind="stable")
    parts = np.array_split(order, bins)
    curve = tuple((float(said[part].mean()), float(true[part].mean()), len(part)) for part in parts)
    ece = sum(rows * abs(mean - share) for mean, share, rows in curve) / len(said)
    return Calibration(_brier(Draw(case, np.ones(len(said)))), ece, curve)


def roc(case: Case, number: int) -> tuple[Vector, Vector]:
    """Returns the points (false alarms, found) of the ROC curve of one class, from (0, 0) to (1, 1)."""
    right, wrong = case.ranking(number).steps(np.ones(len(case.truth)))
    return np.r_[0, np.cumsum(wrong)] / max(1, wrong.sum()), np.r_[0, np.cumsum(right)] / max(1, right.sum())
