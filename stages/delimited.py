"""Tables as text: what separates the cells, which line holds the names, and every line that does not fit.

RFC 4180 is the measure: a quoted cell may hold the separator, line ends and doubled quotes. A line that breaks it is
named by its number and left out; the line after it is read as if nothing had been.
"""

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from stages.contract import Failed
from stages.encodings import encoding_of, is_readable
from stages.options import NO_HEADER, Options, bad
from stages.shown import plain

if TYPE_CHECKING:
    import _csv

SNIFF_CHARS = 256 * 1024
SNIFF_ROWS = 200
MAX_CELL = 1024 * 1024  # characters
MAX_LINE = 8 * MAX_CELL  # characters
MAX_BAD = 10_000  # lines that do not fit, after which reading ends
MAX_PREAMBLE = 20  # lines above the names that are skipped
SHARE = 0.7  # of the first rows that must agree on a width
_SEPARATORS = ("\t", ";", "|", ",")  # the rarer in prose, the earlier
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d+)*|[.,]\d+)([eE][+-]?\d+)?%?")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?")
_YEARS = range(1800, 2101)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How cells are separated and quoted."""

    delimiter: str = ","
    backslash: bool = False

    def reader(self, lines: Iterator[str]) -> "_csv.Reader":
        """Returns a strict reader of lines."""
        escape = "\\" if self.backslash else None
        return csv.reader(lines, delimiter=self.delimiter, escapechar=escape, strict=True)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that does not fit, counted from 1, and why."""

    line: int
    reason: str


@dataclass(slots=True)
class TextTable:
    """A table in a text file.

    Attributes:
        names: as they stand in the file, or made up ("column_1") when it has none.
        header: line (not blank) of the names, NO_HEADER for none.
        bad: lines that did not fit, as far as rows were read.
    """

    path: Path
    encoding: str
    confidence: float
    guessed: bool
    dialect: Dialect
    names: list[str]
    header: int
    named: bool
    bad: list[BadRow] = field(default_factory=list)

    def rows(self) -> Iterator[list[str]]:
        """Yields the rows below the names, each as wide as the names.

        Raises Failed with MALFORMED_ROWS when MAX_BAD lines did not fit, or a line is longer than MAX_LINE.
        """
        self.bad.clear()
        errors = "replace" if self.guessed else "strict"
        with self.path.open(encoding=self.encoding, errors=errors, newline="") as file:
            yield from _Rows(_Lines(file), self.dialect, len(self.names), self.header, self.bad)


def read_text(path: Path, options: Options) -> TextTable:
    """Finds out how a text file is to be read. Raises Failed with BAD_EDIT, EMPTY_FILE, MALFORMED_ROWS."""
    encoding = encoding_of(path)
    name, confidence, guessed = encoding.name, encoding.confidence, encoding.guessed
    if options.encoding:
        name, confidence, guessed = _chosen(path, options.encoding, name), 1.0, False
    with path.open(encoding=name, newline="", errors="replace") as file:
        sample = file.read(SNIFF_CHARS)
    if not sample.strip():
        raise Failed("EMPTY_FILE", f"{plain(path.name)} is empty.", suggestion="Choose a file with a table in it.")
    dialect, names, header, named = understand(sample, options)
    return TextTable(path, name, confidence, guessed, dialect, names, header, named)


def _chosen(path: Path, chosen: str, found: str) -> str:
    name = found if chosen in ("utf-8", "utf-16") and found.startswith(chosen) else chosen
    if not is_readable(path, name):
        raise bad("encoding", f"{plain(path.name)} is not written in {chosen}: some bytes make no sense in it.")
    return name


def understand(sample: str, options: Options) -> tuple[Dialect, list[str], int, bool]:
    """Returns dialect, names, line of the names and whether they were found, from the first characters of a file."""
    known = (options.delimiter,) if options.delimiter else _SEPARATORS
    parsed = {separator: _quoted(sample, separator) for separator in known}
    delimiter = max(known, key=lambda separator: _agreement(parsed[separator][1]))
    if len(known) > 1 and _agreement(parsed[delimiter][1])[1] < 2:
        delimiter = ","
    dialect, rows = parsed[delimiter]
    if not rows:
        text = "No line of the file can be read as cells: a quote is opened and never closed."
        raise Failed("MALFORMED_ROWS", text, row=1, suggestion="Repair the first line, or choose another delimiter.")
    names, header, named = understand_rows(rows, options.header)
    return dialect, names, header, named


def first_rows(sample: str, options: Options) -> tuple[list[str], list[list[str]]]:
    """Returns the names and the rows that fit of the first characters of a file."""
    dialect, names, header, _ = understand(sample, options)
    lines = _Lines(io.StringIO(sample, newline=""))
    return names, list(_Rows(lines, dialect, len(names), header, []))


def _quoted(sample: str, separator: str) -> tuple[Dialect, list[list[str]]]:
    """Returns how quotes within cells are written, and the first rows.

    RFC 4180 doubles them, and there a cell may end in a backslash: it is taken to escape only where that reads further.
    """
    doubled = Dialect(separator)
    if '\\"' in sample:
        escaped = Dialect(separator, backslash=True)
        if len(_first_rows(sample, escaped, len(sample))) > len(_first_rows(sample, doubled, len(sample))):
            return escaped, _first_rows(sample, escaped)
    return doubled, _first_rows(sample, doubled)


def _first_rows(sample: str, dialect: Dialect, most: int = SNIFF_ROWS) -> list[list[str]]:
    lines = io.StringIO(sample, newline="")
    whole = len(sample) < SNIFF_CHARS
    rows: list[list[str]] = []
    reader = dialect.reader(lines)
    try:
        for row in reader:
            if row:
                rows.append(row)
            if len(rows) >= most:
                return rows
    except csv.Error:
        return rows
    return rows if whole else rows[:-1]  # the last one may be cut


def _agreement(rows: Sequence[Sequence[str]]) -> tuple[bool, int, float]:
    """Returns how well rows agree on a width of two or more; greater is better."""
    if not rows:
        return (False, 0, 0.0)
    width, share = _usual_width(rows)
    return (width > 1 and share >= SHARE, width if width > 1 else 0, share)


def _usual_width(rows: Sequence[Sequence[str]]) -> tuple[int, float]:
    widths = Counter(len(row) for row in rows)
    width, count = max(widths.items(), key=lambda pair: (pair[1], pair[0]))
    return width, count / len(rows)


def understand_rows(rows: Sequence[list[str]], chosen: int | None) -> tuple[list[str], int, bool]:
    """Returns the names of the columns, the line they stand in (blank ones not counted), whether they were found."""
    width, share = _usual_width(rows)
    if chosen == NO_HEADER:
        return _made_up(width), NO_HEADER, False
    if chosen:
        if chosen > len(rows):
            raise bad("header", f"The file has no line {chosen} that could hold the names.")
        return rows[chosen - 1], chosen, True
    start = next((at for at, row in enumerate(rows[:MAX_PREAMBLE]) if len(row) == width), 0) if share >= SHARE else 0
    if start == 1 and _lacks_one(rows, width):
        return ["", *rows[0]], 1, True
    if _spans(rows[start : start + 2], rows[start + 2 :]):
        start += 1
    if not _is_header(rows[start], rows[start + 1 :]):
        return _made_up(width), NO_HEADER, False
    return rows[start], start + 1, True


def _spans(two: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> bool:
    """Tells whether a first line with gaps spans the names in the second, as merged cells above a table leave it."""
    if len(two) < 2 or all(cell.strip() for cell in two[0][1:]):
        return False
    names = [cell.strip() for cell in two[1]]
    below = [{row[at].strip() for row in others if at < len(row)} for at in range(len(names))]
    whole = all(names) and len(set(names)) == len(names) and not any(map(is_value, names))
    return (
        whole
        and any(map(_mostly_values, below))
        and not any(name in seen for name, seen in zip(names, below, strict=True))
    )


def _lacks_one(rows: Sequence[Sequence[str]], width: int) -> bool:
    """Tells whether the first line names all columns but the first, as R writes tables; not so for a title above."""
    all_wider = len(rows[0]) == width - 1 and len(rows) > 2 and all(len(row) == width for row in rows[1:])
    return all_wider and not _is_header(rows[1], rows[2:])


def _made_up(width: int) -> list[str]:
    return [f"column_{number}" for number in range(1, width + 1)]


def _is_header(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Tells whether a row holds names: no numbers or dates where numbers are below, nothing that comes again below."""
    cells = [cell.strip() for cell in first]
    filled = [cell for cell in cells if cell]
    values = [cell for cell in filled if is_value(cell)]
    if not filled:
        return False
    if not values:
        below = [{row[at].strip() for row in others if at < len(row)} for at in range(len(cells))]
        again = sum(cell in below[at] for at, cell in enumerate(cells) if cell)
        typed = any(_mostly_values(column) for column in below)
        return typed or again * 2 < len(filled)
    years = [int(value) for value in values if value.isdigit()]
    if len(years) == len(values) >= 2 and all(year in _YEARS for year in years) and len(set(years)) == len(years):
        return years == sorted(years) or years == sorted(years, reverse=True)
    return len(values) * 10 < len(filled)


def _mostly_values(column: set[str]) -> bool:
    filled = [cell for cell in column if cell]
    return bool(filled) and sum(map(is_value, filled)) * 10 >= 9 * len(filled)


def is_value(cell: str) -> bool:
    """Tells whether a cell reads as a number or a date rather than as a word."""
    return bool(_NUMBER.fullmatch(cell) or _DATE.fullmatch(cell))


class _Lines:
    """The lines of a file, some of which can be put back."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self.number = 0  # of the line given last
        self.taken: list[str] = []  # since the last record

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._file.readline(MAX_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        if len(line) >= MAX_LINE:
            text = f"Line {self.number} is longer than {MAX_LINE:,} characters."
            raise Failed("MALFORMED_ROWS", text, row=self.number, suggestion="Is this file a table? Choose another.")
        return line

    def put_back_all_but_first(self) -> int:
        """Makes the lines taken since the last record come again, but for the first, whose number it returns."""
        first = self.number - len(self.taken) + 1
        self._again.extendleft(reversed(self.taken[1:]))
        self.number = first
        return first


class _Rows:
    """Iterates over the rows that fit; the others are noted."""

    def __init__(self, lines: _Lines, dialect: Dialect, width: int, header: int, bad_rows: list[BadRow]) -> None:
        self._lines, self._dialect, self._width, self._skip, self._bad = lines, dialect, width, header, bad_rows

    def __iter__(self) -> Iterator[list[str]]:
        csv.field_size_limit(MAX_CELL)
        lines, width = self._lines, self._width
        reader = self._dialect.reader(lines)
        while True:
            lines.taken.clear()
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reader = self._refuse(_reason(error))
                continue
            if not row:
                continue
            if self._skip:
                self._skip -= 1
            elif len(row) == width:
                yield row
            elif len(row) > width and not "".join(row[width:]).strip():
                yield row[:width]  # a separator too many at the end of a line holds nothing
            else:
                reader = self._refuse(f"has {len(row):,} cells where {width:,} are expected")

    def _refuse(self, reason: str) -> "_csv.Reader":
        if self._skip:  # above the names anything may stand
            self._skip -= 1
        else:
            self._bad.append(BadRow(self._lines.number - len(self._lines.taken) + 1, reason))
        self._lines.put_back_all_but_first()
        if len(self._bad) >= MAX_BAD:
            text = f"More than {MAX_BAD:,} lines do not fit; the first is line {self._bad[0].line}, which {reason}."
            advice = "Choose another delimiter, or repair the file."
            raise Failed("MALFORMED_ROWS", text, row=self._bad[0].line, count=len(self._bad), suggestion=advice)
        return self._dialect.reader(self._lines)


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text or "unexpected end" in text:
        return "opens a quote that is never closed"
    return "has a quote in the middle of a cell"
