"""Reads a table of any supported format, in bounded memory, into typed columns; or looks at its beginning only."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from stages import columnar
from stages.contract import Failed
from stages.delimited import BadRow, TextTable, first_rows, read_text
from stages.encodings import decoded_start
from stages.formats import Format, Packing, head_of, laid_open, recognise, too_large
from stages.options import Options
from stages.records import JsonTable, first_objects, read_json
from stages.sampling import Sample
from stages.shown import plain
from stages.typed import Column, column_of, decimal_of, safe_names
from stages.workbooks import SheetTable, read_workbook

CHUNK_ROWS = 16_384
CHUNK_CHARS = 8 * 1024 * 1024
MAX_COLUMNS = 5_000
OFFSET_BYTES = 4  # that a cell takes besides its characters
PREVIEW_ROWS = 5
DECIMAL_ROWS = 1000  # looked at for the sign before the fraction
LOOK_BYTES = 64 * 1024
LOOK_ROWS = 50
PACKED_RATIO = 4  # by which compressed text usually grows


class Rows(Protocol):
    """A table whose cells are text."""

    names: list[str]
    bad: list[BadRow]

    def rows(self) -> Iterator[list[str]]:
        """Yields its rows, each as wide as its names."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is recognised and laid open."""

    name: str
    path: Path
    format: Format
    packing: Packing
    bytes: int


@dataclass(frozen=True, slots=True)
class Read:
    """A table that was read.

    Attributes:
        names, original: of its columns, made safe and as they stood.
        twice: positions of columns whose name was there before.
        rows_of: rows in the file, before sampling.
        repeated: rows that repeat the names of the columns, as files put one behind another have them; left out.
    """

    names: list[str]
    original: list[str]
    twice: list[int]
    columns: list[Column]
    rows: int
    rows_of: int
    bad: list[BadRow]
    preview: list[list[str]]
    decimal: str
    repeated: int = 0


@dataclass(slots=True)
class _Kept:
    chunks: list[Any] = field(default_factory=list)

    def prune(self, stay: Any) -> None:
        """Leaves only the rows that may stay; chunk by chunk, since a copy of all would double the memory."""
        if stay is None:
            return
        at = 0
        for number, chunk in enumerate(self.chunks):
            self.chunks[number] = chunk.filter(pa.array(stay[at : at + len(chunk)]))
            at += len(chunk)


def source_of(path: Path, scratch: Path) -> Source:
    """Recognises a file; a compressed one is laid open at `scratch`. Raises Failed as formats does."""
    _, head, packing = head_of(path, 4096)
    kind = recognise(path.name, head)
    if packing and kind == "xlsx":
        text = f"{plain(path.name)} holds another archive. Only one layer of compression is opened."
        raise Failed("UNSUPPORTED_FORMAT", text, value=plain(path.name), suggestion="Unpack it and choose the table.")
    opened = laid_open(path, packing, scratch)
    return Source(path.name, opened, kind, packing, path.stat().st_size)


def open_rows(source: Source, options: Options) -> TextTable | JsonTable | SheetTable:
    """Finds out how a table of text cells is to be read. Raises Failed as the module of its format does."""
    if source.format == "csv":
        return read_text(source.path, options)
    if source.format == "xlsx":
        return read_workbook(source.path, options)
    return read_json(source.path, source.format)


def read_rows(table: Rows, options: Options, seed: int, told: Callable[[int], None], decimal: str | None) -> Read:
    """Reads all rows of text and gives each column its type.

    Args:
        told: called with the number of rows so far.
        decimal: the sign before a fraction; None: find out.
    """
    names, twice = _checked_names(table.names)
    sample, kept = Sample(options.sample_rows, seed), _Kept()
    first: list[list[str]] = []
    seen = _Names(table.names)
    for rows, size in _chunks(seen.without(table.rows())):
        first = first or rows[:DECIMAL_ROWS]
        keep = sample.next(len(rows), size + OFFSET_BYTES * len(rows) * len(names))
        chosen = [row for row, stays in zip(rows, keep, strict=True) if stays]
        if chosen:
            arrays = [pa.array(cells, pa.string()) for cells in zip(*chosen, strict=True)]
            kept.chunks.append(pa.Table.from_arrays(arrays, names=[str(at) for at in range(len(names))]))
        kept.prune(sample.crowded())
        told(sample.seen)
    kept.prune(sample.final())
    sign = decimal or decimal_of(first)
    columns = [_typed(kept.chunks, at, sign, options) for at in range(len(names))] if kept.chunks else []
    rows_kept = sum(len(chunk) for chunk in kept.chunks)
    preview = first[:PREVIEW_ROWS]
    original = list(table.names)
    return Read(names, original, twice, columns, rows_kept, sample.seen, table.bad, preview, sign, seen.repeated)


def read_columns(source: Source, options: Options, seed: int, told: Callable[[int], None]) -> Read:
    """Reads a Parquet file, whose columns have types already. Raises Failed: UNREADABLE_FILE, FILE_TOO_LARGE."""
    file = columnar.opened(source.path, source.name)
    original = list(file.schema_arrow.names)
    names, twice = _checked_names(original)
    sample, kept = Sample(options.sample_rows, seed), _Kept()
    for chunk in columnar.chunks(file, source.name):
        kept.chunks.append(chunk.filter(pa.array(sample.next(len(chunk), chunk.nbytes))))
        kept.prune(sample.crowded())
        told(sample.seen)
    kept.prune(sample.final())
    table = pa.concat_tables(kept.chunks).combine_chunks() if kept.chunks else file.schema_arrow.empty_table()
    columns = [columnar.column_of(table.column(at), options.null_markers) for at in range(len(names))]
    preview = columnar.preview(columns, PREVIEW_ROWS)
    return Read(names, original, twice, columns, len(table), sample.seen, [], preview, ".")


class _Names:
    """Leaves out rows that repeat the names of the columns, and counts them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = [name.strip() for name in names]
        self.repeated = 0

    def without(self, rows: Iterable[list[str]]) -> Iterator[list[str]]:
        """Yields the other rows."""
        first = self._names[0] if len(self._names) > 1 else None
        for row in rows:
            if row and row[0].strip() == first and [cell.strip() for cell in row] == self._names:
                self.repeated += 1
            else:
                yield row


def _checked_names(given: Sequence[str]) -> tuple[list[str], list[int]]:
    if len(given) > MAX_COLUMNS:
        raise too_large("The table", f"has {len(given):,} columns; at most {MAX_COLUMNS:,} are read")
    return safe_names(given)


def _typed(chunks: Sequence[Any], at: int, decimal: str, options: Options) -> Column:
    values = pa.concat_arrays([chunk.column(at).combine_chunks() for chunk in chunks])
    return column_of(values, decimal, options.null_markers)


def _chunks(rows: Iterator[list[str]]) -> Iterator[tuple[list[list[str]], int]]:
    """Yields rows in pieces that are bounded in number and in characters, with their characters."""
    chunk: list[list[str]] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += sum(map(len, row))
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_CHARS:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


@dataclass(frozen=True, slots=True)
class Look:
    """The beginning of a table: names, some rows as text, and about how many rows the file has.

    `sheet` is the one of a workbook that was looked at, `sheets` how many it has; "" and 0 for other files.
    """

    names: list[str]
    rows: list[list[str]]
    rows_estimate: int
    bytes: int
    sheet: str = ""
    sheets: int = 0


def look(path: Path, most_bytes: int = LOOK_BYTES, most_rows: int = LOOK_ROWS) -> Look:
    """Reads the beginning of a table, `most_bytes` of a text. Raises Failed when it cannot be read."""
    options = Options()
    _, head, packing = head_of(path, most_bytes)
    kind, size = recognise(path.name, head), path.stat().st_size
    if kind == "parquet" and not packing:
        file = columnar.opened(path, path.name)
        names, rows = list(file.schema_arrow.names), columnar.first_rows(file, path.name, most_rows)
        return Look(safe_names(names)[0], rows, file.metadata.num_rows, size)
    if kind == "xlsx" and not packing:
        sheet = read_workbook(path, options)
        rows = [row for row, _ in zip(sheet.rows(), range(most_rows), strict=False)]
        return Look(safe_names(sheet.names)[0], rows, len(rows), size, sheet.sheet, len(sheet.sheets))
    whole = len(head) < most_bytes
    text = decoded_start(head, whole)
    names, rows = first_rows(text, options) if kind == "csv" else first_objects(text, kind)
    rows = list(_Names(names).without(rows))
    grows = PACKED_RATIO if packing else 1
    estimate = len(rows) if whole else round(len(rows) * size * grows / len(head))
    return Look(safe_names(names)[0], rows[:most_rows], estimate, size)
