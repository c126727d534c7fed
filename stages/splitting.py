"""Which rows train, which test, and which fold each training row is in: decided before anything is fitted."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

Kind: TypeAlias = Literal["STRATIFIED", "RANDOM", "GROUP", "TIME"]
KINDS = get_args(Kind)
TRAIN, TEST, DROPPED = "train", "test", "dropped"
NO_FOLD = -1

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parts:
    """By row of the table: its part, and its fold, NO_FOLD outside of training. With TIME, later folds are later."""

    part: npt.NDArray[np.object_]
    fold: npt.NDArray[np.int8]

    def count(self, part: str) -> int:
        """Returns how many rows are in a part."""
        return int((self.part == part).sum())

    def frame(self) -> pd.DataFrame:
        """Returns it as `split.parquet` has it."""
        rows = np.arange(len(self.part), dtype=np.int64)
        return pd.DataFrame({"row": rows, "part": self.part, "fold": self.fold})


def split(used: Codes, total: int, strata: Codes, groups: Codes | None, share: float, folds: int, seed: int) -> Parts:
    """Splits by chance.

    Args:
        used: positions of the rows that are used; all others are dropped.
        strata: of each used row, its class; each class is spread evenly over the parts. All 0: no classes.
        groups: of each used row, what it belongs to; rows of one group stay together. None: each row by itself.
        share: of the used rows that test, 0 to 1.
    """
    dice = np.random.default_rng(seed)
    members = np.arange(len(used)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    size = np.bincount(members)
    first = np.full(len(size), -1)
    first[members[::-1]] = np.arange(len(used))[::-1]  # the first row of each group: its class is the group's
    in_test = np.zeros(len(size), dtype=bool)
    fold_of = np.zeros(len(size), dtype=np.int8)
    start = 0  # where the next class goes on dealing, so that small classes do not all land in fold 0
    for stratum in np.unique(strata):
        mine = dice.permutation(np.flatnonzero(strata[first] == stratum))
        tested = _filled(size[mine], share)
        in_test[mine[tested]] = True
        start = _dealt(mine[~tested], size, folds, start, fold_of)
    return _parts(used, total, in_test[members], fold_of[members])


def _filled(sizes: Codes, share: float) -> npt.NDArray[np.bool_]:
    """Returns which groups, in this order, test: as many as come nearest to the share, and not all of several."""
    wanted = round(share * int(sizes.sum()))
    if len(sizes) > 1:
        wanted = max(wanted, int(sizes.min()))
    chosen, got = np.zeros(len(sizes), dtype=bool), 0
    for place, size in enumerate(sizes.tolist()):
        if got + size <= wanted:
            chosen[place] = True
            got += size
    return chosen


def _dealt(mine: Codes, size: Codes, folds: int, start: int, fold_of: npt.NDArray[np.int8]) -> int:
    """Deals groups to the folds: each to the one that has fewest rows of this class so far."""
    heap = [(0, (fold - start) % folds, fold) for fold in range(folds)]
    heapq.heapify(heap)
    for group in mine.tolist():
        rows, turn, fold = heapq.heappop(heap)
        fold_of[group] = fold
        heapq.heappush(heap, (rows + int(size[group]), turn, fold))
    return (start + len(mine)) % folds


def split_by_time(used: Codes, total: int, moments: "pd.Series[Any]", share: float, folds: int) -> Parts:
    """Tests on the latest rows; folds are stretches of time. Rows of the same moment are not divided between parts.

    Args:
        moments: of each used row, anything that can be put in order; missing ones count as the oldest.
    """
    order = np.argsort(moments.rank(method="min", na_option="top").to_numpy(), kind="stable")
    ranks = moments.rank(method="min", na_option="top").to_numpy()[order]
    first_test = round((1 - share) * len(used))
    sides: tuple[Literal["left", "right"], ...] = ("left", "right")
    before, behind = (int(np.searchsorted(ranks, ranks[first_test], side=side)) for side in sides)
    border = before or behind  # when most rows are of the first moment, all later ones test
    in_test, fold = np.zeros(len(used), dtype=bool), np.zeros(len(used), dtype=np.int8)
    in_test[order[border:]] = True
    fold[order[:border]] = np.arange(border) * folds // max(border, 1)
    return _parts(used, total, in_test, fold)


def _parts(used: Codes, total: int, in_test: npt.NDArray[np.bool_], fold: npt.NDArray[np.int8]) -> Parts:
    part = np.full(total, DROPPED, dtype=object)
    part[used] = np.where(in_test, TEST, TRAIN)
    folds = np.full(total, NO_FOLD, dtype=np.int8)
    folds[used] = np.where(in_test, NO_FOLD, fold)
    return Parts(part, folds)


def groups_of(columns: Sequence[npt.NDArray[Any]]) -> Codes | None:
    """Returns groups so that two rows that are alike in any of the columns are in the same one; None for no columns.

    Connected rows, by union of the columns' groups: copies of a row may belong to different patients.
    """
    if not columns:
        return None
    codes = [np.unique(column, return_inverse=True)[1].reshape(-1).astype(np.int64) for column in columns]
    joined = codes[0]
    for other in codes[1:]:
        joined = _joined(joined, other)
    return joined


def _joined(left: Codes, right: Codes) -> Codes:
    """Returns the components of rows that share a left or a right group: labels are lowered until none moves."""
    label = left.copy()
    while True:
        lowest = np.full(int(right.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(lowest, right, label)
        lowered = lowest[right]
        least = np.full(int(left.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(least, left, lowered)
        lowered = least[left]
        if np.array_equal(lowered, label):
            return label
        label = lowered
