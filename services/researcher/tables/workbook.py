"""An Excel workbook → a table for each sheet that is shown, as extract/sheets.py sees it.

The first row of words names the columns, when it comes early; what stands above it are remarks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from services.researcher.extract import sheets
from services.researcher.extract.parts import Bounds, Broken
from services.researcher.tables.profile import Row, Table

HEADER_ROWS = 20  # among which the header is looked for

Line: TypeAlias = tuple[int, dict[int, str]]


@dataclass(slots=True)
class _Sheet:
    name: str
    lines: list[Line] = field(default_factory=list)
    header: int = -1  # index of the line that names the columns

    def take(self, row: int, cells: dict[int, str], words: bool) -> None:
        if words and self.header < 0 and len(cells) > 1 and len(self.lines) < HEADER_ROWS:
            self.header = len(self.lines)
        self.lines.append((row, cells))

    def table(self) -> Table:
        """Returns the table; its columns begin at the first that holds anything."""
        above = self.lines[: max(self.header, 0)]
        lines = self.lines[self.header + 1 :]
        named = self.lines[self.header][1] if self.header >= 0 else {}
        used = set(named).union(*(cells for _, cells in lines))
        first, last = min(used, default=1), max(used, default=0)
        columns = [named.get(column) or f"column {sheets.letters(column)}" for column in range(first, last + 1)]
        remarks = "\n".join(" | ".join(cells[column] for column in sorted(cells)) for _, cells in above)
        rows = (_row(number, cells, first, last) for number, cells in lines)
        said = [("Remarks", remarks)] if remarks else []
        return Table(self.name, self.name, "Sheet", columns, rows, lambda: len(lines), said)


def _row(number: int, cells: dict[int, str], first: int, last: int) -> Row:
    place = f"{sheets.letters(min(cells))}{number}:{sheets.letters(max(cells))}{number}"
    return Row(number, [cells.get(column, "") for column in range(first, last + 1)], place)


def tables(data: bytes, bounds: Bounds) -> Iterator[Table]:
    """Yields the sheets in order. Raises Broken."""
    found: list[_Sheet] = []

    def begin(name: str) -> sheets.Take:
        found.append(_Sheet(name))
        return found[-1].take

    _, lost = sheets.book(data, bounds, begin)
    for sheet in found:
        if sheet.lines:
            yield sheet.table()
    if lost:
        raise Broken(lost, truncated=True)
