"""Tables in Excel files (.xlsx): one sheet of them, its values and not its formulas."""

import datetime
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from stages.contract import Action, Failed
from stages.delimited import BadRow, understand_rows
from stages.formats import too_large
from stages.options import Options, bad
from stages.shown import listed, plain

MAX_WIDTH = 10_000  # columns
EMPTY_END = 1000  # empty rows in a row after which a sheet is over: formats may reach to row 1,048,576
LOOK_ROWS = 200
TABLE_ROWS, TABLE_COLUMNS = 3, 2  # names and two rows, two columns: less is a note
# What openpyxl raises at files that are damaged or not what they say.
_DAMAGE = (
    zipfile.BadZipFile,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    OSError,
    EOFError,
    ParseError,
)


@dataclass(slots=True)
class SheetTable:
    """A table in a workbook; `header` counts rows that are not empty, NO_HEADER for none."""

    path: Path
    sheet: str
    sheets: list[str]
    names: list[str]
    header: int
    named: bool
    bad: list[BadRow] = field(default_factory=list)

    def rows(self) -> Iterator[list[str]]:
        """Yields the rows below the names, cut or filled to their number. What is cut off is noted as bad."""
        self.bad.clear()
        width = len(self.names)
        for at, (number, row) in enumerate(_rows_of(self.path, self.sheet)):
            if at < self.header:
                continue
            if any(row[width:]):
                self.bad.append(BadRow(number, f"has cells to the right of the {width:,} columns"))
            else:
                yield row[:width] + [""] * (width - len(row))


def read_workbook(path: Path, options: Options) -> SheetTable:
    """Finds the sheet and its names. Raises Failed: UNREADABLE_FILE, BAD_EDIT, NO_ROWS, FILE_TOO_LARGE."""
    sheets = _sheet_names(path)
    if options.sheet is not None and options.sheet not in sheets:
        failed = bad("sheet", f"There is no sheet {plain(options.sheet)}; there are {listed(sheets, 20)}.")
        failed.actions = (Action("sheet", "Which sheet?", "CHOOSE", "sheet", tuple(sheets)),)
        raise failed
    sheet = options.sheet or _first_table(path, sheets)
    head = [row for (_, row), _ in zip(_rows_of(path, sheet), range(LOOK_ROWS), strict=False)]
    if not head:
        raise Failed("NO_ROWS", f"The sheet {plain(sheet)} is empty.", suggestion="Choose another sheet or file.")
    width = max(len(row) for row in head)
    names, header, named = understand_rows([row + [""] * (width - len(row)) for row in head], options.header)
    return SheetTable(path, sheet, sheets, names, header, named)


def _first_table(path: Path, sheets: list[str]) -> str:
    """Returns the first sheet that is wide and long enough for a table, so not one of notes; else the first filled."""
    filled = ""
    for sheet in sheets:
        head = [row for (_, row), _ in zip(_rows_of(path, sheet), range(TABLE_ROWS), strict=False)]
        if len(head) == TABLE_ROWS and min(len(row) for row in head) >= TABLE_COLUMNS:
            return sheet
        filled = filled or (sheet if head else "")
    return filled or sheets[0]


def _sheet_names(path: Path) -> list[str]:
    book = _open(path)
    try:
        names = [sheet.title for sheet in book.worksheets]
    finally:
        book.close()
    if not names:
        raise Failed("NO_ROWS", f"{plain(path.name)} has no sheet with cells.", suggestion="Choose another file.")
    return names


def _open(path: Path) -> Any:
    import openpyxl  # here, since only Excel files need it and it costs .2 s to load

    try:
        return openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
    except _DAMAGE as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> Failed:
    text = f"{plain(path.name)} is an Excel file that is damaged or locked with a password."
    return Failed("UNREADABLE_FILE", text, value=plain(path.name), suggestion="Save it again without a password.")


def _rows_of(path: Path, sheet: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not empty with their numbers, without the empty cells at their ends."""
    book = _open(path)
    empty = 0
    try:
        for number, values in enumerate(book[sheet].iter_rows(values_only=True), 1):
            if len(values) > MAX_WIDTH:
                raise too_large(path.name, f"has more than {MAX_WIDTH:,} columns")
            row = _trimmed([_cell(value) for value in values])
            empty = 0 if row else empty + 1
            if row:
                yield number, row
            elif empty > EMPTY_END:
                return
    except _DAMAGE as error:
        raise _damaged(path) from error
    finally:
        book.close()


def _trimmed(row: list[str]) -> list[str]:
    end = len(row)
    while end and not row[end - 1]:
        end -= 1
    return row[:end]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
