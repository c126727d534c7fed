"""Which candidates are tried, on how many folds and rows, so that a budget of processor time holds.

Everything here follows from forecasts, never from a clock: the same table, seed and budget give the same schedule on
every machine. `stages.budget` steps in only where the clock shows that a forecast was wrong.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from stages import costs
from stages.costs import CLOSE_S, START_S, Shape
from stages.portfolio import ALWAYS, BIG, DEEP, DEFAULT, QUICK

Candidate: TypeAlias = dict[str, Any]

FILLED = 0.85  # of the budget that a schedule plans with; the rest is for forecasts that are too low
FLOOR_FILLED = 0.6  # of the budget that what is always tried may take, before folds are left out
SMALL_S = 4.0  # of work beside start and end that is done in any budget: leaving it out would save nothing
FEW_FOLDS = (3, 2)  # tried when all are too dear
MANY_ROWS, ENOUGH = 5_000, 3  # from so many rows to learn from so many folds tell models apart
LEAST_ROWS = 1_000  # learned from, however small the budget
SAMPLES = (50_000, 20_000, 10_000, 5_000, 2_000, LEAST_ROWS)
CONTENDERS = 2  # of the candidates beyond the floor that are tried on every fold
FIXED_S = START_S + CLOSE_S
BLENDED = 3  # models of a blend, at most: each is fitted on every row in the end


@dataclass(frozen=True, slots=True)
class Schedule:
    """What will be tried.

    Attributes:
        tried: ids, in order.
        folds: on which a model is judged that may be chosen.
        first: of each id, the folds on which it is tried at first; it has to be good there to be tried on all.
        rows: learned from; fewer than there are when the budget is too small for all.
        est_cpu_s: of the whole stage.
        too_small: whether the budget does not even do for what is always tried, on every row.
    """

    tried: tuple[str, ...]
    folds: int
    first: Mapping[str, int]
    rows: int
    est_cpu_s: float
    too_small: bool


class Bill:
    """Adds up what a list of candidates costs: start, folds, encodings used in common, the last fits, the end."""

    def __init__(self, shape: Shape, folds: int, rows: int, of: int) -> None:
        """Takes a table, on how many of how many folds models are judged, and how many rows there are for them."""
        self._shape, self._folds, self._rows = shape, folds, rows
        self._learned = round(rows * (1 - 1 / max(2, of)))
        self._encoded: dict[str, int] = {}  # folds, by the encoder
        self._refits: list[float] = []
        self._rests: list[float] = []  # what the other folds of candidates cost that are tried on a part at first
        self._tried = 0.0

    def cost(self, candidate: Mapping[str, Any], folds: int) -> float:
        """Returns what trying a candidate on so many folds costs, their encoding included when it is the first."""
        kind = candidate["kind"]
        new = 0 if kind == "dummy" else max(0, folds - self._encoded.get(kind, 0))
        return folds * self._fold(candidate) + new * costs.encoding(self._shape, self._rows)

    def refit(self, candidate: Mapping[str, Any]) -> float:
        """Returns what fitting a candidate on all rows costs."""
        encoded = 0.0 if candidate["kind"] == "dummy" else costs.encoding(self._shape, self._rows)
        return encoded + costs.fitting(candidate, self._shape, self._rows)

    def add(self, candidate: Mapping[str, Any], first: int | None = None) -> None:
        """Adds a candidate, tried on every fold or, at first, on so many."""
        first = self._folds if first is None else first
        self._tried += self.cost(candidate, first)
        self._rests.append((self._folds - first) * self._fold(candidate))
        self._refits.append(self.refit(candidate))
        self._encoded[candidate["kind"]] = max(first, self._encoded.get(candidate["kind"], 0))

    def with_(self, candidate: Mapping[str, Any], first: int) -> float:
        """Returns the whole bill if a candidate were added, and a blend chosen in the end."""
        longer = copy.deepcopy(self)
        longer.add(candidate, first)
        return longer.total(BLENDED)

    @property
    def spent(self) -> float:
        """What has been added, start and end included, without the last fits."""
        return FIXED_S + self._tried

    def total(self, refits: int = 1) -> float:
        """Returns the whole bill so far, in seconds, with the dearest so many candidates fitted on all rows."""
        rests = sum(sorted(self._rests)[-CONTENDERS:])
        return self.spent + rests + sum(sorted(self._refits)[-refits:])

    def _fold(self, candidate: Mapping[str, Any]) -> float:
        return costs.fitting(candidate, self._shape, self._learned) * (1 + costs.PREDICT_SHARE)


def schedule(
    candidates: Sequence[Candidate], shape: Shape, folds: int, budget_s: float, asked: Collection[str] = ()
) -> Schedule:
    """Decides what is tried.

    Args:
        candidates: in order.
        folds: the split's.
        asked: ids a person chose, tried on every fold; empty: all that fit.
    """
    by_id = {candidate["id"]: candidate for candidate in candidates}
    floor, count, rows, too_small = _floor(by_id, shape, folds, budget_s)
    bill = Bill(shape, count, rows, folds)
    for name in floor:
        bill.add(by_id[name])
    first = dict.fromkeys(floor, count)
    for candidate in candidates:
        name = candidate["id"]
        wanted = name in asked if asked else name != QUICK
        some = count if asked else max(1, count // 2)
        if name not in floor and wanted and not too_small and bill.with_(candidate, some) <= FILLED * budget_s:
            bill.add(candidate, some)
            first[name] = some
    order = tuple(name for name in by_id if name in first)
    return Schedule(order, count, first, rows, bill.total(BLENDED if len(first) > len(floor) else 1), too_small)


def marked(candidates: Sequence[Candidate], made: Schedule) -> list[Candidate]:
    """Returns the candidates with what a schedule says of each: whether it is tried, and on how many folds at first."""
    return [
        {**each, "selected": each["id"] in made.first, "folds": made.first.get(each["id"], 0)} for each in candidates
    ]


def _floor(
    by_id: Mapping[str, Candidate], shape: Shape, folds: int, budget_s: float
) -> tuple[tuple[str, ...], int, int, bool]:
    """Returns what is always tried, on how many folds and rows: the dearest way that leaves some of the budget."""
    quick = (*ALWAYS, QUICK)
    most = min(folds, ENOUGH) if shape.rows >= MANY_ROWS else folds
    counts = [most, *(few for few in FEW_FOLDS if few < most)]
    boostings = [name for name in by_id if name in (DEEP, DEFAULT)] if shape.rows >= BIG else [DEFAULT]
    for names, count in [*(((*ALWAYS, name), count) for name in boostings for count in counts), (quick, counts[-1])]:
        bill = _bill(by_id, names, shape, count, shape.rows, folds)
        if bill <= max(FLOOR_FILLED * budget_s, FIXED_S + SMALL_S):
            return names, count, shape.rows, False
    count = counts[-1]
    if _bill(by_id, quick, shape, count, shape.rows, folds) <= FILLED * budget_s:
        return quick, count, shape.rows, False
    samples = [min(rows, shape.rows) for rows in SAMPLES]
    fitting = (rows for rows in samples if _bill(by_id, quick, shape, count, rows, folds) <= FILLED * budget_s)
    return quick, count, next(fitting, samples[-1]), True


def _bill(by_id: Mapping[str, Candidate], names: Sequence[str], shape: Shape, folds: int, rows: int, of: int) -> float:
    bill = Bill(shape, folds, rows, of)
    for name in names:
        bill.add(by_id[name])
    return bill.total()
