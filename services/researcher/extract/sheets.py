"""Excel workbooks (SpreadsheetML, ECMA-376 part 1, 18) → text, a line for each row.

A sheet's first row of words names the columns; each row below it is written `Column: value | Column: value`, so that it
can be understood, and quoted, by itself. Dates and percentages are written as a reader sees them, other numbers as they
are stored. Left out, since no reader sees it: hidden sheets, rows and columns, comments, values with the format `;;;`,
white text without a fill.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TypeAlias

from services.researcher.extract.ooxml import Package, on, walk
from services.researcher.extract.parts import Bounds, Broken, Exhausted, Items, Page, Trouble

MAX_ROWS = 200_000  # of a workbook
MAX_CELLS = 2_000_000
MAX_CELL = 4_000  # characters of one
MAX_COLUMN_NAME = 60  # characters of it repeated in each row
_DATES = frozenset((*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)))  # 18.8.30
_PERCENTS = {9: 0, 10: 2}
_QUOTED = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')
_DIGITS = "0123456789"
_MAX_COLUMN = 16_384

# Takes the number of a row, its cells by column from 1, and whether all of them are words.
Take: TypeAlias = Callable[[int, dict[int, str], bool], None]


@dataclass(slots=True)
class _Formats:
    """What a cell's style says of how its value is shown."""

    dates: set[int] = field(default_factory=set)
    percents: dict[int, int] = field(default_factory=dict)
    unseen: set[int] = field(default_factory=set)
    _codes: dict[int, str] = field(default_factory=dict)
    _white: list[bool] = field(default_factory=list)
    _inside: list[str] = field(default_factory=list)
    _count: int = 0

    def start(self, tag: str, given: dict[str, str]) -> None:
        self._inside.append(tag)
        parent = self._inside[-2] if len(self._inside) > 1 else ""
        if tag == "s:numFmt":
            self._codes[_number(given, "numFmtId")] = given.get("formatCode", "")
        elif tag == "s:font" and parent == "s:fonts":
            self._white.append(False)
        elif tag == "s:color" and parent == "s:font" and self._white:
            self._white[-1] = given.get("rgb", "").lower()[-6:] == "ffffff" or given.get("theme") == "0"
        elif tag == "s:xf" and parent == "s:cellXfs":
            self._format(given)

    def end(self, tag: str) -> None:
        self._inside.pop()

    def _format(self, given: dict[str, str]) -> None:
        identity, font = _number(given, "numFmtId"), _number(given, "fontId")
        code = _QUOTED.sub("", self._codes.get(identity, ""))
        white = font < len(self._white) and self._white[font]
        if (white and _number(given, "fillId") == 0) or code.strip() in (";;;", ";;"):
            self.unseen.add(self._count)
        elif identity in _DATES or _is_date(code.lower().partition(";")[0]):
            self.dates.add(self._count)
        elif identity in _PERCENTS or "%" in code:
            self.percents[self._count] = _PERCENTS.get(identity, len(code.partition(".")[2].partition("%")[0]))
        self._count += 1


def _is_date(code: str) -> bool:
    return bool(set(code) & set("ymdhs")) and "general" not in code


class _Book:
    """Sheets in order, and since when days are counted."""

    def __init__(self, data: bytes) -> None:
        self.sheets: list[tuple[str, str]] = []  # name, relationship
        self.epoch = datetime(1899, 12, 30, tzinfo=UTC)
        walk(data, self._start)

    def _start(self, tag: str, given: dict[str, str]) -> None:
        if tag == "s:sheet" and given.get("state", "visible") == "visible":
            self.sheets.append((given.get("name", ""), given.get("r:id", "")))
        elif tag == "s:workbookPr" and "date1904" in given and on(given, "date1904"):
            self.epoch = datetime(1904, 1, 1, tzinfo=UTC)


class _Strings:
    """The texts that cells share; phonetic hints left out."""

    def __init__(self, data: bytes) -> None:
        self.all: list[str] = []
        self._text: list[str] = []
        self._in_text = False
        self._phonetic = False
        if data:
            walk(data, self._start, self._end, self._chars)

    def _start(self, tag: str, given: dict[str, str]) -> None:
        if tag == "s:si":
            self._text = []
        elif tag == "s:rPh":
            self._phonetic = True
        elif tag == "s:t":
            self._in_text = not self._phonetic

    def _end(self, tag: str) -> None:
        if tag == "s:si":
            self.all.append("".join(self._text))
        elif tag == "s:rPh":
            self._phonetic = False
        elif tag == "s:t":
            self._in_text = False

    def _chars(self, data: str) -> None:
        if self._in_text:
            self._text.append(data)


@dataclass(slots=True)
class _Left:
    """How many rows and cells may still be read of a workbook."""

    rows: int
    cells: int


class _Full(Exception):
    """No more rows are read."""


class _Sheet:
    """Takes in the elements of one sheet and hands on its rows."""

    def __init__(self, epoch: datetime, strings: list[str], formats: _Formats, take: Take, left: _Left) -> None:
        self._epoch, self._strings, self._formats = epoch, strings, formats
        self._take, self._left = take, left
        self._hidden: list[tuple[int, int]] = []  # columns
        self._row = self._column = 0
        self._row_hidden = False
        self._cells: dict[int, str] = {}
        self._words = True  # whether all cells of the row are text
        self._kind, self._style = "n", 0
        self._value: list[str] = []
        self._reading = self._phonetic = False

    def start(self, tag: str, given: dict[str, str]) -> None:
        if tag in ("s:v", "s:t"):
            self._reading = not self._phonetic
        elif tag == "s:c":
            self._cell(given)
        elif tag == "s:row":
            self._begin_row(given)
        elif tag == "s:col" and "hidden" in given and on(given, "hidden"):
            self._hidden.append((_number(given, "min"), _number(given, "max")))
        elif tag == "s:rPh":
            self._phonetic = True

    def end(self, tag: str) -> None:
        if tag in ("s:v", "s:t"):
            self._reading = False
        elif tag == "s:c":
            self._end_cell()
        elif tag == "s:row":
            self._end_row()
        elif tag == "s:rPh":
            self._phonetic = False

    def chars(self, data: str) -> None:
        if self._reading:
            self._value.append(data)

    def _begin_row(self, given: dict[str, str]) -> None:
        self._row = _number(given, "r", self._row + 1)
        self._row_hidden = "hidden" in given and on(given, "hidden")
        self._cells, self._words, self._column = {}, True, 0
        self._left.rows -= 1
        if self._left.rows < 0:
            raise _Full

    def _cell(self, given: dict[str, str]) -> None:
        self._column = _column(given.get("r", "").rstrip(_DIGITS)) or self._column + 1
        self._kind, self._style, self._value = given.get("t", "n"), _number(given, "s"), []
        self._left.cells -= 1
        if self._left.cells < 0:
            raise _Full

    def _end_cell(self) -> None:
        hidden = self._row_hidden or self._style in self._formats.unseen
        if hidden or any(first <= self._column <= last for first, last in self._hidden):
            return
        if value := " ".join(self._shown("".join(self._value)).split())[:MAX_CELL]:
            self._cells[self._column] = value
            self._words = self._words and self._kind in ("s", "inlineStr", "str")

    def _shown(self, value: str) -> str:
        if self._kind == "s":
            index = int(value) if value.isdecimal() else -1
            return self._strings[index] if 0 <= index < len(self._strings) else ""
        if self._kind == "b":
            return "TRUE" if value == "1" else "FALSE" if value else ""
        if self._kind == "n" and value and self._style in self._formats.dates:
            return _date(value, self._epoch)
        if self._kind == "n" and value and self._style in self._formats.percents:
            return _percent(value, self._formats.percents[self._style])
        return "" if self._kind == "e" else value

    def _end_row(self) -> None:
        if self._cells:
            self._take(self._row, self._cells, self._words)


class _Lines:
    """Writes the rows of one sheet onto a page."""

    def __init__(self, name: str, page: Page) -> None:
        self._name, self._page = name, page
        self._names: dict[int, str] = {}
        self._begun = False

    def take(self, row: int, cells: dict[int, str], words: bool) -> None:
        if not self._begun:
            self._begun = True
            self._page.place(sheet=self._name)
            self._page.heading(self._name, 1)
            self._page.add("\n\n")
        columns = sorted(cells)
        place = f"{letters(columns[0])}{row}:{letters(columns[-1])}{row}"
        self._page.place(sheet=self._name, row=row, cells=place)
        self._page.add(" | ".join(self._named(column, cells[column]) for column in columns) + "\n")
        if not self._names and words and len(columns) > 1:
            self._names = {column: cells[column][:MAX_COLUMN_NAME] for column in columns}

    def _named(self, column: int, value: str) -> str:
        name = self._names.get(column)
        return f"{name}: {value}" if name else value

    def finish(self) -> None:
        """Ends the sheet with an empty line."""
        if self._begun:
            self._page.add("\n")


def read(data: bytes, bounds: Bounds) -> Items:
    """Yields the rows of the sheets that are shown. Raises Broken."""
    page = Page()
    sheets: list[_Lines] = []

    def begin(name: str) -> Take:
        if sheets:
            sheets[-1].finish()
        sheets.append(_Lines(name, page))
        return sheets[-1].take

    title, lost = book(data, bounds, begin)
    if sheets:
        sheets[-1].finish()
    yield page.part(title)
    if lost:
        yield Trouble("", lost, truncated=True)


def book(data: bytes, bounds: Bounds, begin: Callable[[str], Take]) -> tuple[str, str]:
    """Gives every row of the sheets that are shown to what `begin` returns for the sheet's name. Raises Broken.

    Returns the workbook's title, and a sentence on what could not be read, "" when all could.
    """
    package = Package(data, bounds)
    main = package.main()
    book, related = _Book(package.need(main)), package.related(main)
    parts = {kind: name for kind, name in related.values() if kind in ("sharedStrings", "styles")}
    strings = _Strings(package.get(parts.get("sharedStrings", ""))).all
    formats = _Formats()
    if styles := package.get(parts.get("styles", "")):
        walk(styles, formats.start, formats.end)
    left, lost = _Left(MAX_ROWS, MAX_CELLS), []
    for name, identity in book.sheets:
        sheet = _Sheet(book.epoch, strings, formats, begin(name), left)
        try:
            walk(package.need(related.get(identity, ("", ""))[1]), sheet.start, sheet.end, sheet.chars)
        except _Full:
            lost.append(f"Only {MAX_ROWS:,} rows with {MAX_CELLS:,} cells are read.")
            break
        except Exhausted:
            raise
        except Broken as broken:
            lost.append(f"Sheet {name[:80]!r}: {broken}")
    return package.title(), f"Not all of it could be read. {lost[0]}" if lost else ""


@lru_cache(_MAX_COLUMN)
def _column(letters: str) -> int:
    """Returns the number of a column, 0 when letters name none."""
    number = 0
    for letter in letters.upper()[:4]:
        if not "A" <= letter <= "Z":
            return 0
        number = number * 26 + ord(letter) - 64
    return number if number <= _MAX_COLUMN else 0


@lru_cache(_MAX_COLUMN)
def letters(column: int) -> str:
    """Returns the name of a column, counted from 1."""
    name = ""
    while column > 0:
        column, rest = divmod(column - 1, 26)
        name = chr(65 + rest) + name
    return name


def _date(value: str, epoch: datetime) -> str:
    try:
        days = float(value)
        moment = epoch + timedelta(days=days)
    except (ValueError, OverflowError):
        return value
    if days < 1:
        return moment.strftime("%H:%M:%S")
    moment = (moment + timedelta(milliseconds=500)).replace(microsecond=0)
    return moment.strftime("%Y-%m-%d" if days == int(days) else "%Y-%m-%d %H:%M:%S")


def _percent(value: str, places: int) -> str:
    try:
        return f"{float(value) * 100:.{min(places, 6)}f}%"
    except (ValueError, OverflowError):
        return value


def _number(given: dict[str, str], name: str, default: int = 0) -> int:
    value = given.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 10 else default
