"""Comma- and tab-separated values (RFC 4180): the text is the file; its first row is the heading of all others.

A row by itself says little; with the heading above it, which goes with every passage, its columns have names.
"""

import csv
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from services.researcher.documents import Heading, Outline, Place, Text
from services.researcher.watch import Watch

MAX_HEADING = 200  # characters
MAX_HEADER = 2_000  # characters of a row that may be a header
SAMPLE = 4_096  # characters from which the delimiter is guessed
DELIMITERS = ",;\t|"
CHECK_EVERY = 10_000  # quotes


class Rows(Sequence[Place]):
    """The places of rows, made when asked for: a table may have a million."""

    def __init__(self, starts: "array[int]") -> None:
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Place | Rows":
        if isinstance(index, slice):
            raise TypeError("rows are not sliced: a slice would not know which rows they are")
        number = range(len(self._starts))[index]
        return Place(self._starts[number], row=number + 1)


def read(name: str, text: str, watch: Watch) -> Text:
    """Returns the text with a place for each row, and the header as its heading."""
    delimiter = "\t" if name.lower().endswith(".tsv") else _delimiter(text)
    starts = array("Q", _starts(text, watch))
    headings = []
    header = text[: starts[1]].rstrip("\r\n") if len(starts) > 1 else ""
    if columns := _columns(header, delimiter):
        headings.append(Heading(0, len(header), 1, columns[:MAX_HEADING]))
    return Text(text, name, Outline(headings), ((0, len(text)),) if text else (), Rows(starts))


def _delimiter(text: str) -> str:
    first = text[:SAMPLE].partition("\n")[0]
    return max(DELIMITERS, key=first.count)


def _columns(header: str, delimiter: str) -> str:
    """Returns the names of the columns, "" when the row is no header: a number or nothing among them."""
    if not header or len(header) > MAX_HEADER:
        return ""
    names = [" ".join(cell.split()) for cell in next(csv.reader([header], delimiter=delimiter), [])]
    named = len(names) > 1 and all(names) and not any(name[:1].isdigit() or name[:1] in "+-" for name in names)
    return " | ".join(names) if named else ""


def _starts(text: str, watch: Watch) -> Iterator[int]:
    """Yields where rows begin: at lines, but for those inside quotes."""
    if text:
        yield 0
    position = 0
    for number, piece in enumerate(text.split('"')):
        if number % CHECK_EVERY == 0:
            watch.check()
        if number % 2 == 0:
            line = piece.find("\n")
            while line >= 0 and position + line + 1 < len(text):
                yield position + line + 1
                line = piece.find("\n", line + 1)
        position += len(piece) + 1
