"""How the prediction moves with one column: partial dependence (Friedman 2001), and its direction in words.

For a few rows the column is set to one value after another, all else left as it is, and the predictions are averaged.
That is what the model makes of the column: an association, not a cause.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.explaining import Said
from stages.judging import Vector
from stages.shown import plain

ROWS = 200  # that are averaged over
POINTS = 12  # of a number or a date
LEVELS = 8  # of a category, the most frequent ones
STEADY = 0.85  # rank correlation of value and prediction, for "rises" or "falls"
FLAT = 0.02  # of the spread of predictions: a movement below it is none
SPACED = 10_000  # from it on, numbers are shown with separators; years are not
MAX_LEVEL = 40  # characters of a level's name in a sentence


@dataclass(frozen=True, slots=True)
class Effect:
    """How the mean prediction moves with a column.

    Attributes:
        labels: the values of the column as texts; `at` has them as numbers when it is one.
        curves: for each class (one with two classes or a value) the mean prediction at each of the values.
        chosen: number of the curve that moves most.
        direction: RISES, FALLS, PEAK, DIP, MIXED, LEVELS or FLAT.
    """

    column: str
    labels: tuple[str, ...]
    at: tuple[float, ...] | None
    curves: Vector
    chosen: int
    direction: str
    words: str


def effect(said: Said, frame: pd.DataFrame, column: str, names: Sequence[str], seed: int) -> Effect | None:
    """Returns the effect of a column on predictions for (at most) ROWS of the frame; None when it has one value only.

    Args:
        said: the predictions for prepared rows: a vector, or a column for each of `names`.
        names: what each prediction is about: "the probability of yes", "mpg".
    """
    values = _values(frame[column])
    if len(values) < 2:
        return None
    picked = np.sort(np.random.default_rng(seed).permutation(len(frame))[:ROWS])
    rows = frame.iloc[picked]
    copies = pd.concat([rows] * len(values), ignore_index=True)
    copies[column] = pd.Series(np.repeat(values.to_numpy(), len(rows)), dtype=frame[column].dtype)
    curves = said(copies).reshape(len(values), len(rows), -1).mean(axis=1).T
    spread = float(np.ptp(said(frame.iloc[picked]).reshape(len(rows), -1), axis=0).max())
    chosen = int(np.ptp(curves, axis=1).argmax())
    labels = tuple(_label(value) for value in values)
    numeric = frame[column].dtype.kind in "biuf"
    ordered = numeric or frame[column].dtype.kind == "M"
    direction = _direction(curves[chosen], spread, ordered)
    words = _words(column, names[chosen], direction, labels, curves[chosen])
    at = tuple(float(value) for value in values) if numeric else None
    return Effect(column, labels, at, curves, chosen, direction, words)


def _values(column: "pd.Series[Any]") -> "pd.Series[Any]":
    known = column.dropna()
    if column.dtype.kind not in "biufM":
        counts = known.value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
        return pd.Series(counts.index[:LEVELS], dtype=column.dtype)
    distinct = known.drop_duplicates().sort_values()
    if len(distinct) <= POINTS:
        return distinct.reset_index(drop=True)
    at = np.linspace(0.05, 0.95, POINTS)
    return known.quantile(at, interpolation="nearest").drop_duplicates().reset_index(drop=True)


def _label(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d}"
    if not isinstance(value, float):
        return plain(str(value), MAX_LEVEL)
    return f"{value:.4g}" if abs(value) < SPACED else f"{value:,.0f}"


def _direction(curve: Vector, spread: float, ordered: bool) -> str:
    if np.ptp(curve) <= FLAT * spread:
        return "FLAT"
    if not ordered:
        return "LEVELS"
    ranks = np.argsort(np.argsort(curve, kind="stable"), kind="stable")
    together = float(np.corrcoef(ranks, np.arange(len(curve)))[0, 1])  # Spearman's rank correlation
    if abs(together) >= STEADY and (curve[-1] - curve[0]) * together > 0:
        return "RISES" if together > 0 else "FALLS"
    last = len(curve) - 1
    if 0 < curve.argmax() < last and max(curve[0], curve[-1]) - curve.min() < 0.7 * np.ptp(curve):
        return "PEAK"
    if 0 < curve.argmin() < last and curve.max() - min(curve[0], curve[-1]) < 0.7 * np.ptp(curve):
        return "DIP"
    return "MIXED"


def _words(column: str, name: str, direction: str, labels: Sequence[str], curve: Vector) -> str:
    shown = plain(column, MAX_LEVEL)
    low, high = int(curve.argmin()), int(curve.argmax())
    ends = f"from {figure(curve[0])} at {labels[0]} to {figure(curve[-1])} at {labels[-1]}"
    return {
        "FLAT": f"{shown} hardly moves {name} by itself.",
        "RISES": f"The higher {shown}, the higher {name}: {ends}.",
        "FALLS": f"The higher {shown}, the lower {name}: {ends}.",
        "PEAK": f"{name[:1].upper()}{name[1:]} is highest around {shown} {labels[high]} and lower on both sides.",
        "DIP": f"{name[:1].upper()}{name[1:]} is lowest around {shown} {labels[low]} and higher on both sides.",
        "MIXED": f"{name[:1].upper()}{name[1:]} goes up and down with {shown}: lowest at {labels[low]} "
        f"({figure(curve[low])}), highest at {labels[high]} ({figure(curve[high])}).",
        "LEVELS": f"{name[:1].upper()}{name[1:]} is highest for {shown} = {labels[high]} ({figure(curve[high])}) and "
        f"lowest for {labels[low]} ({figure(curve[low])}).",
    }[direction]


def figure(value: float) -> str:
    """Returns a number as people write it: three digits that count, no exponent unless it is huge or tiny."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4:
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0.995 <= size < 1:  # three digits would make it 1, which it is not
        return f"{value:.5g}" if size < 0.999995 else f"{value:.8g}"
    return f"{value:.3g}"
