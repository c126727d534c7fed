"""The rows that may be learned from, and how they are divided into folds.

Test rows are left where they are: batches of the table are cut down to the rows that PREPROCESS marked "train" before
anything looks at their values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages import preparing
from stages.contract import Failed, Room

Numbers: TypeAlias = "np.ndarray[Any, Any]"
BATCH = 65_536  # rows read at a time


@dataclass(frozen=True, slots=True)
class Rows:
    """What is learned from.

    Attributes:
        x: as `preparing.prepare` leaves it.
        y: the target; texts or numbers.
        row: position of each row in data.parquet.
        fold: of each row.
        ordered: whether folds follow time, so that a model may only learn from earlier ones.
    """

    x: pd.DataFrame
    y: Numbers
    row: Numbers
    fold: Numbers
    ordered: bool

    def __len__(self) -> int:
        return len(self.y)

    def parts(self, count: int) -> list[tuple[int, Numbers, Numbers]]:
        """Returns at most `count` of (fold, positions to learn from, positions to judge on); by time, the last ones."""
        numbers = sorted(int(each) for each in np.unique(self.fold))
        judged = numbers[1:][-count:] if self.ordered else numbers[:count]
        return [(fold, np.flatnonzero(self._before(fold)), np.flatnonzero(self.fold == fold)) for fold in judged]

    def _before(self, fold: int) -> Numbers:
        found: Numbers = self.fold < fold if self.ordered else self.fold != fold
        return found

    def sample(self, count: int, seed: int) -> "Rows":
        """Returns `count` of the rows, every class still there, or all when there are no more."""
        if count >= len(self):
            return self
        at = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        if self.y.dtype == object:
            firsts = np.unique(self.y, return_index=True)[1]
            at = np.union1d(at, firsts)
        return Rows(self.x.iloc[at], self.y[at], self.row[at], self.fold[at], self.ordered)


def read(room: Room, plan: preparing.Plan) -> Rows:
    """Reads the rows to learn from. Raises Failed with INPUT_MISSING, or NO_ROWS when none has a target."""
    split = pq.read_table(room.of("PREPROCESS", "split.parquet")).to_pandas()
    marked = split[split["part"] == "train"].sort_values("row")
    row = marked["row"].to_numpy("int64")
    frame = _taken(room.of("DATA_SOURCE", "data.parquet"), row, _columns(plan))
    y = preparing.target_of(frame, plan)
    there = y.notna().to_numpy()
    if not there.any():
        text = "No row to learn from has a value in the target."
        advice = "Go back to PREPROCESS, and do the stages from there again."
        raise Failed("NO_ROWS", text, column=str(plan["target"])[:200], suggestion=advice)
    regression = plan["task"] == "regression"
    values = y[there].to_numpy("float64" if regression else object)
    fold = marked["fold"].to_numpy("int64")[there]
    ordered = plan["split"]["kind"] == "TIME"
    return Rows(preparing.prepare(frame[there], plan), values, row[there], fold, ordered)


def _columns(plan: preparing.Plan) -> list[str]:
    return list(dict.fromkeys([*plan["features"], plan["target"]]))


def _taken(path: Path, wanted: Numbers, columns: list[str]) -> pd.DataFrame:
    """Reads only these rows, given sorted, and only these columns."""
    return pa.Table.from_batches(_batches(path, wanted, columns)).to_pandas()


def _batches(path: Path, wanted: Numbers, columns: list[str]) -> list[pa.RecordBatch]:
    found, start = [], 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in _read(file, columns):
            low, high = np.searchsorted(wanted, [start, start + batch.num_rows])
            found.append(batch.take(pa.array(wanted[low:high] - start)))
            start += batch.num_rows
    if not found:
        raise Failed("NO_ROWS", "The table holds no rows.")
    return found


def _read(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    yield from file.iter_batches(batch_size=BATCH, columns=columns)
