"""Which rows are kept when a table is larger than its bound: the same ones each time, whatever the order of reading.

Each row has a number made from its position and the seed; the rows with the smallest are kept. So the sample is even
over the file, one reading is enough, and its length need not be known beforehand.
"""

from typing import Any, TypeAlias

import numpy as np

from stages.contract import MIB

KEEP_BYTES = 96 * MIB  # of text, at most
Marks: TypeAlias = Any  # numpy arrays of uint64 or bool


def marks_of(start: int, count: int, seed: int) -> Marks:
    """Returns the numbers of `count` rows from row `start`: splitmix64, Steele and others, OOPSLA 2014."""
    with np.errstate(over="ignore"):
        mixed = (np.arange(start, start + count, dtype=np.uint64) + np.uint64(seed % 2**63)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


class Sample:
    """Says of rows, as they come, which may be among the smallest; knows in the end which are."""

    def __init__(self, most_rows: int, seed: int, most_bytes: int = KEEP_BYTES) -> None:
        self._most_rows, self._most_bytes, self._seed = most_rows, most_bytes, seed
        self._limit = np.uint64(2**64 - 1)
        self.seen = 0
        self._bytes = 0
        self._kept: Marks = np.empty(0, dtype=np.uint64)

    def next(self, count: int, size: int) -> Marks:
        """Returns which of the next `count` rows, of `size` bytes in all, may be kept: an array of bool."""
        marks = marks_of(self.seen, count, self._seed)
        self.seen += count
        self._bytes += size
        keep = marks <= self._limit
        self._kept = np.concatenate([self._kept, marks[keep]])
        return keep

    def crowded(self) -> Marks | None:
        """Returns which of the rows kept so far may stay, when they are half as many again as allowed; else None."""
        return self.final() if len(self._kept) > 1.5 * self.most else None

    def final(self) -> Marks | None:
        """Returns which of the rows kept so far are the sample; None when all are."""
        most = self.most
        if len(self._kept) <= most:
            return None
        self._limit = np.partition(self._kept, most - 1)[most - 1]
        stay = self._kept <= self._limit
        self._kept = self._kept[stay]
        return stay

    @property
    def most(self) -> int:
        """The most rows to keep: `most_rows`, or fewer when rows are long."""
        mean = self._bytes / max(1, self.seen)
        return max(1, min(self._most_rows, int(self._most_bytes / max(1.0, mean))))
