"""How much each column tells about the target by itself, and which tell too much to be honest."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.columns import Look
from stages.contract import Issue
from stages.preparing import dates, numbers, words
from stages.rows import Hashes
from stages.targets import Target
from stages.wording import quoted

SAMPLE = 4_000  # rows a column is judged on
FOLDS = 3
MANY_VALUES = 64  # of a column, up to which each is learned by itself
LEAST_NEIGHBOURS = 25  # rows, about, whose mean is learned together
LEAST_OF_LEVEL = 4  # rows of a value, on average, to learn it by itself in a small table
MANY_COLUMNS = 100  # from which fewer rows do
SAMPLE_OF_MANY = 1_500
CLASSES = 12  # the most frequent ones are told apart; the rest count as one
ENOUGH = 0.5  # of the rows have a value, for a line through all of them to say much
SMOOTH = 1.0  # rows of the whole added to each level's own
LEAK = {"auc": 0.985, "r2": 0.97}  # measured on 35 tables: no false alarm above
STRONG = {"auc": 0.975, "r2": 0.94}  # most leaks that are missed lie between
NAMED = {"auc": 0.80, "r2": 0.50}  # enough with a name that holds the target's
SHORTEST_NAME = 3  # characters of a target's name that may be looked for in others

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Strength:
    """How well a column predicts the target by itself, on rows it has not seen: `auc` (.5 to 1) or `r2` (0 to 1)."""

    measure: str
    score: float

    @property
    def normal(self) -> float:
        """Returns it between 0, nothing, and 1, everything."""
        scaled = 2 * self.score - 1 if self.measure == "auc" else self.score
        return round(min(1.0, max(0.0, scaled)), 4)


class Judge:
    """Judges columns on the rows of a sample that have a target."""

    def __init__(self, target: Target, rows: Codes, seed: int, copies: Hashes | None = None) -> None:
        """Divides the rows; those of one hash in `copies` (of all rows of the table) do not teach each other."""
        wanted = target.values.iloc[rows]
        self._measure = "r2" if target.task == "regression" else "auc"
        self._known = wanted.notna().to_numpy()
        self._truth = _truth(target, wanted[self._known])
        self._fold = np.random.default_rng(seed).integers(0, FOLDS, len(self._truth))
        if copies is not None:
            _, first, which = np.unique(copies[rows][self._known], return_index=True, return_inverse=True)
            self._fold = self._fold[first][which.reshape(-1)]

    def strength(self, found: Look, sampled: "pd.Series[Any]") -> Strength:
        """Returns how much a column tells, by its values on the rows of the sample."""
        given = sampled[self._known]
        graded = _graded(found)
        values = _numbers(found, given) if graded else pd.factorize(words(given, {}), use_na_sentinel=False)[0]
        guessed = np.zeros_like(self._truth)
        for fold in range(FOLDS):
            train, test = self._fold != fold, self._fold == fold
            if train.any() and test.any():
                way = _by_value if graded else _by_level
                guessed[test] = way(values[train], self._truth[train], values[test])
        if self._measure == "r2":
            straight = _straight(values, self._truth[:, 0]) if graded else 0.0
            return Strength("r2", max(straight, _r2(self._truth[:, 0], guessed[:, 0])))
        areas = [_auc(truth > 0, own) for truth, own in zip(self._truth.T, guessed.T, strict=True)]
        return Strength("auc", float(np.mean(areas)))


def _truth(target: Target, wanted: "pd.Series[Any]") -> Floats:
    """Returns the target as numbers: one column for a regression or two classes, else one for each class."""
    if target.task == "regression":
        amounts: Floats = wanted.to_numpy(np.float64)
        return amounts[:, None]
    classes = sorted(wanted.value_counts().index[:CLASSES])
    truth = np.stack([(wanted == name).to_numpy(np.float64) for name in classes], axis=1)
    return truth[:, 1:] if truth.shape[1] == 2 else truth


def _graded(found: Look) -> bool:
    return found.kind in ("int", "float", "bool") or found.role in ("NUMERIC", "DATETIME")


def _straight(values: Floats, truth: Floats) -> float:
    """Returns the squared correlation: copies in another unit are a line, however far out some of them are.

    Also without the highest tenth, and the lesser counts: few values far out look like a line by themselves.
    """
    known = ~np.isnan(values)
    if known.sum() < ENOUGH * len(values):
        return 0.0
    return min(_correlated(values[part], truth[part]) for part in (known, known & (truth <= np.quantile(truth, 0.9))))


def _correlated(left: Floats, right: Floats) -> float:
    if len(left) < LEAST_NEIGHBOURS or left.std() == 0 or right.std() == 0:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1] ** 2)


def _numbers(found: Look, given: "pd.Series[Any]") -> Floats:
    if found.role == "DATETIME":
        moments = dates(given, found.parse)
        seconds: Floats = moments.astype("int64").to_numpy(np.float64)
        return np.where(moments.isna().to_numpy(), np.nan, seconds)
    values: Floats = numbers(given, found.parse).to_numpy(np.float64)
    return values


def _by_value(values: Floats, truth: Floats, asked: Floats) -> Floats:
    """Learns a curve of short lines through the means of neighbours, or of each value when there are few."""
    known = ~np.isnan(values)
    whole = truth.mean(axis=0)
    gap = (truth[~known].sum(axis=0) + SMOOTH * whole) / ((~known).sum() + SMOOTH)
    told = np.broadcast_to(gap, (len(asked), truth.shape[1])).copy()
    x, y = values[known], truth[known]
    levels = np.unique(x)
    if len(x) < max(LEAST_OF_LEVEL * len(levels), 1) and len(x) < 2 * LEAST_NEIGHBOURS:
        return told  # neither values that come again nor neighbours enough
    at = np.searchsorted(levels, x) if len(levels) <= MANY_VALUES else _neighbours(x)
    rows = np.bincount(at)
    middle = np.bincount(at, weights=x) / rows
    there = ~np.isnan(asked)
    for k, column in enumerate(y.T):
        told[there, k] = np.interp(asked[there], middle, np.bincount(at, weights=column) / rows)
    return told


def _neighbours(x: Floats) -> Codes:
    """Returns the bin of each value: of about as many rows each, and finer at both ends, where values lie far apart."""
    ends = np.array([1, 2, 4, 8, 16])
    between = np.linspace(2 * LEAST_NEIGHBOURS, len(x) - 2 * LEAST_NEIGHBOURS, max(2, len(x) // LEAST_NEIGHBOURS))
    places = np.concatenate([ends, between.astype(np.int64), len(x) - ends[::-1]])
    cuts = np.unique(np.sort(x)[places[(places > 0) & (places < len(x))]])
    bins: Codes = np.unique(np.searchsorted(cuts, x, side="right"), return_inverse=True)[1].reshape(-1)
    return bins


def _by_level(values: Codes, truth: Floats, asked: Codes) -> Floats:
    size = int(max(values.max(), asked.max())) + 1
    rows = np.bincount(values, minlength=size).astype(np.float64)
    sums = np.stack([np.bincount(values, weights=column, minlength=size) for column in truth.T], axis=1)
    whole = truth.mean(axis=0)
    told: Floats = ((sums + SMOOTH * whole) / (rows + SMOOTH)[:, None])[asked]
    return told


def _r2(truth: Floats, guessed: Floats) -> float:
    spread = float(((truth - truth.mean()) ** 2).sum())
    return max(0.0, 1.0 - float(((truth - guessed) ** 2).sum()) / spread) if spread > 0 else 0.0


def _auc(truth: npt.NDArray[np.bool_], guessed: Floats) -> float:
    """Returns the area under the ROC curve by ranks; ties count half (Hanley and McNeil, 1982)."""
    yes = int(truth.sum())
    no = len(truth) - yes
    if not yes or not no:
        return 0.5
    _, level, count = np.unique(guessed, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[level]
    return float((ranks[truth].sum() - yes * (yes + 1) / 2) / (yes * no))


def suspects(found: Mapping[str, Strength], target: Target) -> Iterator[Issue]:
    """Yields an issue for each column that tells too much. ERROR does not occur: a person decides."""
    for name, each in found.items():
        alone = f"{quoted(name)} alone tells {quoted(target.column)} {_how_well(each)}"
        advice = "Leave it out unless it is known before the answer is."
        value = f"{each.score:.3f}"
        if each.score > LEAK[each.measure]:
            text = f"{alone}: it may be a copy of the answer, or written down after it."
            yield Issue("LEAKAGE_SUSPECT", "WARN", text, column=name, value=value, suggestion=advice)
        elif each.score > STRONG[each.measure]:
            text = f"{alone}. That is very strong; please confirm that it is known beforehand."
            yield Issue("LEAKAGE_SUSPECT", "INFO", text, column=name, value=value, suggestion=advice)
        elif each.score > NAMED[each.measure] and _named_like(name, target.column):
            text = f"{alone} and is named like it; please confirm that it is known beforehand."
            yield Issue("LEAKAGE_SUSPECT", "INFO", text, column=name, value=value, suggestion=advice)


def _how_well(each: Strength) -> str:
    if each.measure == "r2":
        exactly = "nearly exactly" if each.score > STRONG["r2"] else "rather well"
        return f"{exactly} ({100 * each.score:.1f} % of what varies)"
    often = "nearly always" if each.score > STRONG["auc"] else "very often"
    return f"{often} right (area under the ROC curve {each.score:.3f} of 1)"


def _named_like(name: str, target: str) -> bool:
    short, long = (re.sub(r"[^a-z0-9]+", " ", text.lower()).strip() for text in (target, name))
    return len(short) >= SHORTEST_NAME and re.search(rf"\b{re.escape(short)}\b", long) is not None
