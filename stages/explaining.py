"""Which columns a fitted model leans on: permutation importance (Breiman 2001) on rows it has not seen.

The rows are encoded once as they are and once with every column shuffled by itself; what a shuffled column does to the
predictions is then known by putting its encoded columns, and no others, in their place. Nothing is encoded again for
each column, which is where such a measurement spends its time (80 columns: a minute and more).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from stages.judging import Vector

MAX_ROWS = 1_000  # that are measured on
LOOK_ROWS = 200  # that tell which columns are worth measuring
MAX_COLUMNS = 25  # that are measured
REPEATS = 5
BUDGET_S = 30.0  # processor time; what is not measured by then is said to be so

Said: TypeAlias = Callable[[pd.DataFrame], Vector]
Score: TypeAlias = Callable[[Vector, Vector], float]  # of what is said about rows of these numbers; greater is better


@dataclass(frozen=True, slots=True)
class Part:
    """One pipeline of a model: what encodes, what predicts from it, and how much it counts."""

    encode: Any
    predict: Callable[[Vector], Vector]
    weight: float


@dataclass(frozen=True, slots=True)
class Importance:
    """By how much the score falls when a column is shuffled; `sd` over the repeats."""

    column: str
    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The importances, the greatest first, and how they were had."""

    columns: tuple[Importance, ...]
    rows: int
    of: int  # columns the model was given
    complete: bool  # False: the budget ended first


def parts_of(model: Any) -> list[Part]:
    """Returns the pipelines a model is made of: itself, or those it averages (scikit-learn's soft voting)."""
    members = getattr(model, "estimators_", None) if hasattr(model, "named_estimators_") else None
    if members is None:
        return [_part(model, 1.0)]
    weights = model.weights if model.weights is not None else [1.0] * len(members)
    return [_part(member, weight / sum(weights)) for member, weight in zip(members, weights, strict=True)]


class _Blind:
    """The encoder of a model that looks at nothing."""

    def transform(self, frame: pd.DataFrame) -> Vector:
        return np.zeros((len(frame), 0))


def _part(pipeline: Any, weight: float) -> Part:
    last = pipeline[-1]
    encode = pipeline[:-1] if len(pipeline) > 1 else _Blind()
    return Part(encode, last.predict_proba if hasattr(last, "predict_proba") else last.predict, weight)


def matrix(encoded: Any) -> Vector:
    """Returns what an encoder gave as a dense matrix of numbers."""
    if hasattr(encoded, "toarray"):
        encoded = encoded.toarray()
    return np.asarray(encoded, dtype=float)


def shuffled(frame: pd.DataFrame, columns: Sequence[int], orders: Sequence[Vector]) -> pd.DataFrame:
    """Returns the frame with the columns of these numbers in another order of rows each, the index as it was."""
    wanted = set(columns)
    series = {
        name: frame.iloc[:, at].take(orders[at]).set_axis(frame.index) if at in wanted else frame.iloc[:, at]
        for at, name in enumerate(frame.columns)
    }
    return pd.DataFrame(series, index=frame.index)


def sources(encode: Any, frame: pd.DataFrame, rng: np.random.Generator) -> Vector | None:
    """Returns from which column of the frame each encoded column comes; -1 for one that never changes.

    Columns are numbered in binary: for each digit all columns with a 1 there are shuffled, then all with a 0, and what
    changes is looked at. Returns None when an encoded column is made of several.
    """
    width = len(frame.columns)
    orders = [rng.permutation(len(frame)) for _ in range(width)]
    usual = matrix(encode.transform(frame))
    found = np.zeros(usual.shape[1], dtype=int)
    seen = np.zeros(usual.shape[1], dtype=bool)
    for digit in range(max(1, (width - 1).bit_length())):
        ones = [at for at in range(width) if at >> digit & 1]
        zeros = [at for at in range(width) if not at >> digit & 1]
        by_one, by_zero = (_changed(encode, frame, usual, part, orders) for part in (ones, zeros))
        if (by_one & by_zero).any():
            return None
        found += by_one.astype(int) << digit
        seen |= by_one | by_zero
    return np.where(seen, found, -1)


def _changed(encode: Any, frame: pd.DataFrame, usual: Vector, part: list[int], orders: list[Vector]) -> Vector:
    if not part:
        return np.zeros(usual.shape[1], dtype=bool)
    other = matrix(encode.transform(shuffled(frame, part, orders)))
    return np.asarray(((other != usual) & ~(np.isnan(other) & np.isnan(usual))).any(axis=0))


class Shuffler:
    """Says what a model predicts for rows with one column shuffled."""

    def __init__(self, model: Any, frame: pd.DataFrame, seed: int) -> None:
        self._frame, self._rng = frame, np.random.default_rng(seed)
        self._parts = parts_of(model)
        self._encoded = [matrix(part.encode.transform(frame)) for part in self._parts]
        self._sources = [sources(part.encode, frame.iloc[:LOOK_ROWS], self._rng) for part in self._parts]
        self._mixed: list[Vector] = []
        self._orders: list[Vector] = []

    def again(self) -> None:
        """Shuffles anew: every column by itself."""
        self._orders = [self._rng.permutation(len(self._frame)) for _ in self._frame.columns]
        every = range(len(self._frame.columns))
        mixed = shuffled(self._frame, every, self._orders)
        self._mixed = [matrix(part.encode.transform(mixed)) for part in self._parts]

    def said(self, column: int | None, rows: int | None = None) -> Vector:
        """Returns the predictions for the first `rows` rows with a column shuffled; as they are with None."""
        total: Any = 0.0
        for number, part in enumerate(self._parts):
            total = total + part.weight * part.predict(self._seen(number, part, column)[:rows])
        return np.asarray(total)

    def _seen(self, number: int, part: Part, column: int | None) -> Vector:
        usual, source = self._encoded[number], self._sources[number]
        if column is None:
            return usual
        if source is None:
            return matrix(part.encode.transform(shuffled(self._frame, [column], self._orders)))
        return np.where(source == column, self._mixed[number], usual)


def importance(model: Any, frame: pd.DataFrame, score: Score, seed: int, budget_s: float = BUDGET_S) -> Measured:
    """Returns how much worse a model gets when it is shown a column of other rows.

    Args:
        frame: prepared rows the model has not seen.
        score: of what was said about rows, given by their numbers in `frame`.
    """
    started = time.process_time()
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(frame))[:MAX_ROWS])
    shuffler = Shuffler(model, frame.iloc[rows], seed)
    shuffler.again()
    chosen = _worth_it(shuffler, len(frame.columns))
    usual = score(shuffler.said(None), rows)
    falls = np.full((REPEATS, len(chosen)), np.nan)
    for repeat in range(REPEATS):
        if repeat:
            shuffler.again()
        for at, column in enumerate(chosen):
            if time.process_time() - started <= budget_s:
                falls[repeat, at] = usual - score(shuffler.said(column), rows)
    found = [
        Importance(str(frame.columns[column]), float(fall.mean()), float(fall.std()))
        for column, fall in ((column, _known(falls[:, at])) for at, column in enumerate(chosen))
        if len(fall)
    ]
    ordered = tuple(sorted(found, key=lambda each: (-each.mean, each.column)))
    return Measured(ordered, len(rows), len(frame.columns), not np.isnan(falls).any())


def _known(values: Vector) -> Vector:
    return values[~np.isnan(values)]


def _worth_it(shuffler: Shuffler, width: int) -> list[int]:
    """Returns the columns that move the predictions of a few rows most."""
    if width <= MAX_COLUMNS:
        return list(range(width))
    usual = shuffler.said(None, LOOK_ROWS)
    moved = [float(np.abs(shuffler.said(column, LOOK_ROWS) - usual).mean()) for column in range(width)]
    return sorted(np.argsort(-np.asarray(moved), kind="stable")[:MAX_COLUMNS].tolist())
