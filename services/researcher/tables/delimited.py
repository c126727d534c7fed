"""Comma-, semicolon-, tab- and bar-separated values (RFC 4180) → a table.

The first row names the columns when it looks like names; lines above it that begin with `#` are remarks on the table.
"""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence

from services.researcher.extract.parts import Broken
from services.researcher.extract.sheets import letters
from services.researcher.tables.profile import Row, Table, type_of

SAMPLE_CHARS = 65_536  # from which the delimiter is guessed
SAMPLE_ROWS = 30
DELIMITERS = ",;\t|"
MAX_FIELD = 1_000_000  # characters; a quote that is never closed makes the rest of the file one field
MAX_ROW_LINES = 1_000  # a row with more of them begins with a quote that is never closed
MAX_REMARKS = 4_000  # characters
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode(data: bytes) -> str:
    """Returns UTF-8, UTF-16 with its byte order mark, or else Windows-1252, which spreadsheets write. Raises Broken."""
    encodings = ("utf-16",) if data.startswith(_UTF16) else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
        break
    raise Broken("It is no text: neither UTF-8, nor UTF-16 with a byte order mark, nor Windows-1252.")


def table(name: str, data: bytes) -> Table:
    """Returns the table of a file. Raises Broken."""
    text = decode(data)
    remarks, start = _remarks(text)
    body = text[start:]
    delimiter = "\t" if name.lower().endswith(".tsv") else _delimiter(body[:SAMPLE_CHARS])
    rows = _Rows(body, delimiter, text.count("\n", 0, start))
    columns = rows.header()
    said = [("Remarks", remarks)] if remarks else []
    return Table("", name, "Table", columns, rows.read(), rows.total, said)


def _remarks(text: str) -> tuple[str, int]:
    """Returns the lines at the beginning that begin with `#`, and where they end."""
    at, lines = 0, []
    while text.startswith("#", at):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end + 1
        lines.append(text[at:end].lstrip("#").strip())
        at = end
    return "\n".join(lines)[:MAX_REMARKS], at


def _delimiter(sample: str) -> str:
    """Returns what cuts the most rows into the same number of cells, more than one."""

    def fit(delimiter: str) -> tuple[int, int]:
        widths = []
        try:
            for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter):
                if row:
                    widths.append(len(row))
                if len(widths) == SAMPLE_ROWS:
                    break
        except csv.Error:
            return 0, 0
        usual = max(set(widths), key=lambda width: (widths.count(width), width), default=0)
        return (widths.count(usual), usual) if usual > 1 else (0, 0)

    return max(DELIMITERS, key=fit)


class _Rows:
    """Reads rows one after another; empty lines are none."""

    def __init__(self, body: str, delimiter: str, above: int) -> None:
        csv.field_size_limit(MAX_FIELD)
        self._reader = csv.reader(io.StringIO(body, newline=""), delimiter=delimiter)
        self._number = above  # rows of the file so far, with remarks and the header
        self._read = 0
        self._waiting: list[Row] = []

    def header(self) -> Sequence[str]:
        """Returns the names of the columns, made-up ones when the first row is no header. Raises Broken."""
        first = self._next()
        if first is None:
            return ()
        cells = [" ".join(cell.split()) for cell in first.cells]
        if all(cells) and len(set(cells)) == len(cells) and all(type_of(cell) == "text" for cell in cells):
            return cells
        self._waiting.append(first)
        return [f"column {number}" for number in range(1, len(cells) + 1)]

    def read(self) -> Iterator[Row]:
        """Yields the rows below the header. Raises Broken."""
        while (row := self._next()) is not None:
            self._read += 1
            yield row

    def total(self) -> int:
        """Returns how many rows there are, those that were not read counted now."""
        while self._next() is not None:
            self._read += 1
        return self._read

    def _next(self) -> Row | None:
        if self._waiting:
            return self._waiting.pop()
        try:
            before = self._reader.line_num
            for cells in self._reader:
                self._number += 1
                if self._reader.line_num - before > MAX_ROW_LINES:
                    raise Broken(f"Row {self._number:,} has a quote that is not closed; what follows is left out.")
                before = self._reader.line_num
                if cells:
                    return Row(self._number, cells, f"A{self._number}:{letters(len(cells))}{self._number}")
        except csv.Error as error:
            raise Broken(f"It cannot be read behind row {self._number:,}: {error}.") from None
        return None
