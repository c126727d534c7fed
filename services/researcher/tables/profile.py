"""A table → text a person can read, search and quote: what it is, what its columns hold, its rows.

Part of the parser process: imports nothing of this project but parsers. What is written depends on the table alone,
never on time or load, for a quote is checked by writing it again.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from services.researcher.extract.parts import Broken, Exhausted, Items, Page, Part, Trouble

PROFILED_CELLS = 400_000  # of one table that its columns are described from; one to two CPU-seconds
SHOWN_CELLS = 200_000  # of one table that stand in the text as rows
SHOWN_CHARS = 4_000_000  # of its rows
MAX_COLUMNS = 1_000
MAX_CELL = 500  # characters of one
MAX_NAME = 100  # characters of a column's name
DISTINCT = 1_000  # values of a column that are told apart
NAMED_VALUES = 12  # of them that are named
MAX_VALUE = 60  # characters of a value that is named
ODD_SHARE = 0.05  # of a column's values may be of another type than the rest
BINARY = "\N{SYMBOL FOR NULL}"  # begins what stands for bytes that are no text

Cells: TypeAlias = Sequence[str]  # a cell without a value is ""

_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})", re.A)
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d{0,17})?\.\d{1,30}|(?:0|[1-9]\d{0,17})\.?)(?:[eE][+-]?\d{1,3})?", re.A)
_DATE = re.compile(r"\d{4}-[01]\d-[0-3]\d", re.A)
_TIME = re.compile(r"\d{4}-[01]\d-[0-3]\d[T ][0-2]\d:[0-5]\d(?::[0-6]\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?", re.A)
_TRUTHS = frozenset({"true", "false", "yes", "no"})
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_FIRST = frozenset("+-.0123456789")


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its number in the file from 1, its cells, and their range, as in "A2:C2", "" where cells have no names."""

    number: int
    cells: Cells
    place: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table to be read once.

    Attributes:
        member: its path in the file, "" when it is all of the file.
        name: its own name.
        what: "Table", "Sheet" or "View".
        columns: their names; a row may have more cells than that.
        rows: in the order of the file; may raise Broken, then those before it count. None when they are not to be read.
        total: how many there are; called when the rows that are read were read. None when that is not known.
        remarks: (heading, text) of what else is known.
    """

    member: str
    name: str
    what: str
    columns: Sequence[str]
    rows: Iterable[Row] | None
    total: Callable[[], int | None]
    remarks: Sequence[tuple[str, str]] = ()


def type_of(value: str) -> str:
    """Returns what a value is. Digits behind a 0 are a code and no number."""
    first = value[0]
    if first in _FIRST:
        if _WHOLE.fullmatch(value):
            return "whole number"
        if _NUMBER.fullmatch(value):
            return "number"
        if _DATE.fullmatch(value):
            return "date"
        if _TIME.fullmatch(value):
            return "date and time"
    elif first == BINARY:
        return "binary"
    elif len(value) < 6 and value.lower() in _TRUTHS:
        return "yes or no"
    return "text"


@dataclass(slots=True)
class Column:
    """What the values of one column are, value by value."""

    name: str
    empty: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # of the first DISTINCT values
    more: Counter[str] = field(default_factory=Counter)  # of all others, by type
    ends: dict[str, list[tuple[Any, str]]] = field(default_factory=dict)  # type → least and greatest, with their key

    def take(self, value: str) -> None:
        """Takes in one value that is not empty."""
        counts = self.counts
        if value in counts:
            counts[value] += 1
            return
        kind = type_of(value)
        if len(counts) < DISTINCT:
            counts[value] = 1
        else:
            self.more[kind] += 1
        if (key := _KEYS.get(kind)) is None:
            return
        place = key(value)
        ends = self.ends.get(kind)
        if ends is None:
            self.ends[kind] = [(place, value), (place, value)]
        elif place < ends[0][0]:
            ends[0] = place, value
        elif place > ends[1][0]:
            ends[1] = place, value

    def types(self) -> Counter[str]:
        """Returns how many values are of each type."""
        types = Counter(self.more)
        for value, times in self.counts.items():
            types[type_of(value)] += times
        return types

    def told(self) -> str:
        """Returns one line on what they are."""
        types = self.types()
        filled = sum(types.values())
        if not filled:
            return f"- {_spoken(self.name)}: no values"
        kind, family = _main(types, filled)
        said = [f"{kind}{self._range(family)}", *self._values(kind, family, types, filled)]
        if self.empty:
            said.append(f"{self.empty:,} empty")
        return f"- {_spoken(self.name)}: {'; '.join(said)}"

    def _range(self, family: Collection[str]) -> str:
        ends = [end for kind in family for end in self.ends.get(kind, ())]
        if not ends:
            return ""
        least, greatest = min(ends)[1], max(ends)[1]
        return f" {_cut(least)}" if least == greatest else f" from {_cut(least)} to {_cut(greatest)}"

    def _values(self, kind: str, family: Collection[str], types: Counter[str], filled: int) -> Iterator[str]:
        if kind != "text" and (odd := filled - sum(types[each] for each in family)):
            first = next((value for value in self.counts if type_of(value) not in family), "")
            yield f"{_count(odd, 'value')} of another kind{f', as in {_cut(first)}' if first else ''}"
        if self.more:
            yield f"more than {DISTINCT:,} different values"
        elif len(self.counts) == filled > 1:
            yield "all different"
        elif len(self.counts) > 1:
            yield f"{len(self.counts):,} different values"
        few = not self.more and len(self.counts) <= NAMED_VALUES
        if kind == "text" or (few and kind != "binary"):
            yield self._named(filled)

    def _named(self, filled: int) -> str:
        ranked = sorted(self.counts.items(), key=lambda each: -each[1])[:NAMED_VALUES]  # equal ones as in the table
        once = self.more or len(self.counts) == filled
        named = ", ".join(_cut(value) if once else f"{_cut(value)} ({times:,})" for value, times in ranked)
        return f"such as {named}" if self.more or len(self.counts) > len(ranked) else named


def _main(types: Counter[str], filled: int) -> tuple[str, Collection[str]]:
    """Returns the type of all values but a few, and the types that belong to it."""
    for family in _FAMILIES:
        of_it = sum(types[kind] for kind in family)
        if types[family[-1]] and of_it >= filled * (1 - ODD_SHARE):
            return family[-1], family
    kind, times = min(types.items(), key=lambda each: (-each[1], each[0]))
    return (kind, (kind,)) if times == filled else ("text", ())


def _day(value: str) -> str:
    return value.replace("T", " ")


_FAMILIES = (("whole number",), ("whole number", "number"), ("date",), ("date", "date and time"))
_KEYS: dict[str, Callable[[str], float | str]] = {
    "whole number": float,
    "number": float,
    "date": _day,
    "date and time": _day,
}


def written(table: Table, file: str, folder: str) -> Items:
    """Yields the text of a table, and a Trouble when not all of it is in there.

    Args:
        file: name of the file it is of.
        folder: path of the folder that is in, "" when it lies outermost.
    """
    reading = _Reading(table)
    broken = reading.read()
    known = table.total() if not broken else None
    total = max(reading.rows, known or 0)
    page = Page()
    page.place(sheet=table.name)
    page.heading(table.name, 1)
    of = "" if table.name == file else f" of {file}"
    place = f" in the folder {folder}" if folder else ""
    size = reading.size(total, whole=known is not None) if table.rows is not None else "told by its definition only"
    page.add(f"\n\n{table.what} {_spoken(table.name)}{of}{place}: {size}.\n")
    names = ", ".join(_spoken(column.name) for column in reading.columns)
    if names:
        page.add(f"Columns: {names}.\n")
    reading.write(page, total, whole=known is not None)
    for heading, text in table.remarks:
        page.add("\n")
        page.heading(heading, 2)
        page.add(f"\n\n{text}\n")
    title = table.name if table.name == file else f"{table.name} ({file})"
    part = page.part(title)
    yield Part(table.member, part.text, part.title, part.headings, part.places)
    if broken:
        yield Trouble(table.member, broken)
    elif table.rows is not None and (reading.shown < total or known is None or len(table.columns) > MAX_COLUMNS):
        of_all = f" of {total:,}" if known is not None else ""
        detail = f"Only the first {reading.shown:,}{of_all} rows can be searched"
        yield Trouble(table.member, f"{detail}; its columns are described from {reading.rows:,}.", truncated=True)


class _Reading:
    """One pass over a table, bounded by cells."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.columns = [Column(_folded(name)[:MAX_NAME]) for name in table.columns[:MAX_COLUMNS]]
        self.rows = 0  # that the columns are described from
        self._lines: list[tuple[Row, str]] = []
        self._chars = 0

    @property
    def shown(self) -> int:
        return len(self._lines)

    def read(self) -> str:
        """Reads rows; returns why it ended, "" when that is their end or a bound."""
        cells = 0
        try:
            for row in self._table.rows or ():
                cells += max(len(row.cells), len(self.columns), 1)
                if cells > PROFILED_CELLS and self.rows:
                    break
                self._take(row, cells)
        except Exhausted:
            raise
        except Broken as broken:
            return str(broken)
        return ""

    def _take(self, row: Row, cells: int) -> None:
        while len(self.columns) < min(len(row.cells), MAX_COLUMNS):
            self.columns.append(Column(f"column {len(self.columns) + 1}", empty=self.rows))
        values = [_folded(cell) for cell in row.cells[:MAX_COLUMNS]]
        for column, value in zip(self.columns, values, strict=False):
            if value:
                column.take(value)
            else:
                column.empty += 1
        for column in self.columns[len(values) :]:
            column.empty += 1
        self.rows += 1
        if self.shown == self.rows - 1 and cells <= SHOWN_CELLS and self._chars <= SHOWN_CHARS:
            said = [f"{column.name}: {value}" for column, value in zip(self.columns, values, strict=False) if value]
            self._lines.append((row, f"| {' | '.join(said)}\n" if said else ""))
            self._chars += len(self._lines[-1][1])

    def size(self, total: int, *, whole: bool) -> str:
        return f"{_count(total, 'row') if whole else f'at least {total:,} rows'}, {_count(len(self.columns), 'column')}"

    def write(self, page: Page, total: int, *, whole: bool) -> None:
        if self.columns and self.rows:
            page.add("\n")
            page.heading("Columns", 2)
            page.add("\n\n")
            if self.rows < total:
                share = f" of {total:,} rows, {math.floor(100 * self.rows / total)} %" if whole else " rows"
                page.add(f"Described from the first {self.rows:,}{share}.\n")
            page.add("".join(f"{column.told()}\n" for column in self.columns))
        if self._lines:
            page.add("\n")
            page.heading("Rows", 2)
            page.add("\n\n")
            for row, line in self._lines:
                page.place(sheet=self._table.name, row=row.number, cells=row.place)
                page.add(line)
            page.place(sheet=self._table.name)


def _spoken(name: str) -> str:
    """Returns a column's name, with its words when they are written together: `orderId (order id)`."""
    words = _HUMP.sub(" ", name)
    return f"{name} ({words.lower()})" if words != name else name


def _folded(cell: str) -> str:
    if len(cell) > MAX_CELL:
        cell = f"{cell[:MAX_CELL]}…"
    return " ".join(cell.split())


def _cut(value: str) -> str:
    return value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}…"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
