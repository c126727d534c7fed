"""Which candidates are tried, on how many folds and rows, so that a budget of processor time holds.

Everything here follows from forecasts, never from a clock: the same table, seed and budget give the same schedule on
every machine. `stages.budget` steps in only where the clock shows that a forecast was wrong.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from stages import costs
from stages.costs import Shape
from stages.portfolio import ALWAYS, DEFAULT, QUICK

Candidate: TypeAlias = dict[str, Any]

FILLED = 0.85  # of the budget that a schedule plans with; the rest is for forecasts that are too low
FLOOR_FILLED = 0.6  # of the budget that what is always tried may take, before folds are left out
FEW_FOLDS = (3, 2)  # tried when all are too dear
LEAST_ROWS = 1_000  # learned from, however small the budget
SAMPLES = (50_000, 20_000, 10_000, 5_000, 2_000, LEAST_ROWS)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What will be tried.

    Attributes:
        tried: ids, in order.
        folds: on which each is tried.
        rows: learned from; fewer than there are when the budget is too small for all.
        est_cpu_s: of the whole stage.
        too_small: whether the budget does not even do for what is always tried, on every row.
    """

    tried: tuple[str, ...]
    folds: int
    rows: int
    est_cpu_s: float
    too_small: bool


class Bill:
    """Adds up what a list of candidates costs: start, folds, encodings used in common, the last fit, the end."""

    def __init__(self, shape: Shape, folds: int, rows: int) -> None:
        self._shape, self._folds, self._rows = shape, folds, rows
        self._kinds: set[str] = set()
        self._tried, self._refit = costs.START_S + costs.CLOSE_S, 0.0

    def cost(self, candidate: Mapping[str, Any]) -> float:
        """Returns what trying a candidate on all folds costs, its encoding included when it is the first to need it."""
        learned = round(self._rows * (1 - 1 / max(2, self._folds)))
        a_fold = costs.fitting(candidate, self._shape, learned) * (1 + costs.PREDICT_SHARE)
        kind = candidate["kind"]
        encoded = 0.0 if kind in self._kinds or kind == "dummy" else costs.encoding(self._shape, self._rows)
        return self._folds * (a_fold + encoded)

    def refit(self, candidate: Mapping[str, Any]) -> float:
        """Returns what fitting a candidate on all rows costs."""
        encoded = 0.0 if candidate["kind"] == "dummy" else costs.encoding(self._shape, self._rows)
        return encoded + costs.fitting(candidate, self._shape, self._rows)

    def with_(self, candidate: Mapping[str, Any]) -> float:
        """Returns the whole bill if a candidate were added."""
        return self._tried + self.cost(candidate) + max(self._refit, self.refit(candidate))

    def add(self, candidate: Mapping[str, Any]) -> None:
        """Adds a candidate."""
        self._tried += self.cost(candidate)
        self._refit = max(self._refit, self.refit(candidate))
        self._kinds.add(candidate["kind"])

    @property
    def total(self) -> float:
        """The whole bill so far, in seconds."""
        return self._tried + self._refit


def schedule(
    candidates: Sequence[Candidate], shape: Shape, folds: int, budget_s: float, asked: Collection[str] = ()
) -> Schedule:
    """Decides what is tried.

    Args:
        candidates: in order.
        folds: the split's.
        asked: ids a person chose; empty: all that fit.
    """
    by_id = {candidate["id"]: candidate for candidate in candidates}
    floor, count, rows, too_small = _floor(by_id, shape, folds, budget_s)
    bill = Bill(shape, count, rows)
    for name in floor:
        bill.add(by_id[name])
    tried = list(floor)
    for candidate in candidates:
        name = candidate["id"]
        wanted = name in asked if asked else name != QUICK
        if name not in floor and wanted and not too_small and bill.with_(candidate) <= FILLED * budget_s:
            bill.add(candidate)
            tried.append(name)
    order = [name for name in by_id if name in tried]
    return Schedule(tuple(order), count, rows, bill.total, too_small)


def _floor(
    by_id: Mapping[str, Candidate], shape: Shape, folds: int, budget_s: float
) -> tuple[tuple[str, ...], int, int, bool]:
    """Returns what is always tried, on how many folds and rows: the dearest way that leaves some of the budget."""
    usual, quick = (*ALWAYS, DEFAULT), (*ALWAYS, QUICK)
    counts = [folds, *(few for few in FEW_FOLDS if few < folds)]
    for names, count in [*((usual, count) for count in counts), (quick, counts[-1])]:
        if _bill(by_id, names, shape, count, shape.rows) <= FLOOR_FILLED * budget_s:
            return names, count, shape.rows, False
    count = counts[-1]
    if _bill(by_id, quick, shape, count, shape.rows) <= FILLED * budget_s:
        return quick, count, shape.rows, False
    samples = [min(rows, shape.rows) for rows in SAMPLES]
    fitting = (rows for rows in samples if _bill(by_id, quick, shape, count, rows) <= FILLED * budget_s)
    return quick, count, next(fitting, samples[-1]), True


def _bill(by_id: Mapping[str, Candidate], names: Sequence[str], shape: Shape, folds: int, rows: int) -> float:
    bill = Bill(shape, folds, rows)
    for name in names:
        bill.add(by_id[name])
    return bill.total
