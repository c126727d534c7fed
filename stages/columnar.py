"""Parquet files: read in pieces, their types kept where a table of learning has them."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract import Failed
from stages.formats import MAX_BYTES, too_large
from stages.shown import plain
from stages.typed import Column

BATCH_ROWS = 16_384
GROUP_BYTES = 1024 * 1024 * 1024  # of a row group when it is laid open: it is read as a whole
Array: TypeAlias = Any  # pyarrow publishes no types
Parquet: TypeAlias = Any


def opened(path: Path, name: str) -> Parquet:
    """Returns a Parquet file. Raises Failed with UNREADABLE_FILE, FILE_TOO_LARGE."""
    try:
        file = pq.ParquetFile(path)
        groups = [file.metadata.row_group(at).total_byte_size for at in range(file.metadata.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(name) from error
    if sum(groups) > MAX_BYTES or max(groups, default=0) > GROUP_BYTES:
        raise too_large(name, "unpacks to more than is read")
    return file


def chunks(file: Parquet, name: str) -> Iterator[Array]:
    """Yields the rows as tables. Raises Failed with UNREADABLE_FILE."""
    try:
        for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
            yield pa.Table.from_arrays(batch.columns, names=[str(at) for at in range(batch.num_columns)])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(name) from error


def first_rows(file: Parquet, name: str, count: int) -> list[list[str]]:
    """Returns the first rows as text."""
    for chunk in islice(chunks(file, name), 1):
        return preview([column_of(column, None) for column in chunk.slice(0, count).columns], count)
    return []


def column_of(values: Array, markers: Sequence[str] | None) -> Column:
    """Returns a column as one of the five types. `markers` say which texts mean missing; none do by themselves."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if pa.types.is_boolean(kind):
        return Column(values, "bool", {})
    if pa.types.is_integer(kind):
        return _integers(values)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Column(pc.cast(values, pa.float64(), safe=False), "float", {})
    if pa.types.is_duration(kind):  # as seconds
        return Column(pc.divide(pc.cast(pc.cast(values, pa.duration("us"), safe=False), pa.int64()), 1e6), "float", {})
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return Column(_iso(values), "date", {})
    return _texts(values, markers)


def _integers(values: Array) -> Column:
    try:
        return Column(pc.cast(values, pa.int64()), "int", {})
    except pa.ArrowInvalid:  # larger than 64 bits hold: as text no digit is lost
        return Column(pc.cast(values, pa.string()), "text", {})


def _iso(values: Array) -> Array:
    return pa.array([None if value is None else value.isoformat() for value in _pythonic(values)], pa.string())


def _pythonic(values: Array) -> list[Any]:
    whole = pc.cast(values, pa.timestamp("us"), safe=False) if pa.types.is_timestamp(values.type) else values
    found: list[Any] = whole.to_pylist()
    return found


def _texts(values: Array, markers: Sequence[str] | None) -> Column:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        texts = values
    else:
        plain_text = [None if value is None else _as_text(value) for value in values.to_pylist()]
        texts = pa.array(plain_text, pa.string())
    trimmed = pc.utf8_trim_whitespace(pc.cast(texts, pa.string()))
    hit = pc.is_in(trimmed, value_set=pa.array(["", *(markers or ())], pa.string()))
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(trimmed.filter(hit)).to_pylist()}
    return Column(pc.if_else(hit, pa.scalar(None, pa.string()), trimmed), "text", dict(sorted(counts.items())))


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)


def preview(columns: Sequence[Column], count: int) -> list[list[str]]:
    """Returns the first rows as text."""
    heads = [
        ["" if value is None else str(value) for value in column.values.slice(0, count).to_pylist()]
        for column in columns
    ]
    return [list(row) for row in zip(*heads, strict=True)]


def _damaged(name: str) -> Failed:
    text = f"{plain(name)} begins like a Parquet file and cannot be read: it is damaged or cut off."
    return Failed("UNREADABLE_FILE", text, value=plain(name), suggestion="Save or download it again.")
