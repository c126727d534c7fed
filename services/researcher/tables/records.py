"""JSON (RFC 8259) and JSON lines → tables: an array of objects is one, a line with an object is a row.

Objects within a row become columns of their own, `address.city`; arrays are written as they stand in JSON.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from services.researcher.extract.parts import Broken
from services.researcher.tables.delimited import decode
from services.researcher.tables.profile import MAX_COLUMNS, PROFILED_CELLS, Row, Table

MAX_DEPTH = 4  # of objects within a row that become columns
NAMING_ROWS = 1_000  # from which the columns are named; those that come later are named when they come

Record: TypeAlias = dict[str, Any]


def lines(name: str, data: bytes) -> Table:
    """Returns the table of a file with one object on each line. Raises Broken."""
    text = decode(data)
    return _table("", name, _Lines(text))


def tables(name: str, data: bytes) -> Iterator[Table]:
    """Yields the arrays of objects of a JSON file: itself, or the values of its outermost object. Raises Broken."""
    try:
        whole = json.loads(decode(data), parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise Broken(f"It is no valid JSON, or is nested too deeply: {error}.") from None
    if _is_table(whole):
        yield _table("", name, _Array(whole))
        return
    inner = [(key, value) for key, value in whole.items() if _is_table(value)] if isinstance(whole, dict) else []
    if not inner:
        raise Broken("It holds no table: an array of objects, or an object of such arrays, is read as one.")
    for key, value in inner:
        yield _table(key, key, _Array(value))


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


class _Array:
    """The records of an array."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        return enumerate(self._records, 1)

    def total(self) -> int:
        return len(self._records)


class _Lines:
    """The records of lines; empty lines are none."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        for number, line in enumerate(self._lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line, parse_constant=str)
            except (ValueError, RecursionError):
                raise Broken(f"Line {number:,} is no valid JSON; what stands behind it is left out.") from None
            yield number, record if isinstance(record, dict) else {"value": record}

    def total(self) -> int:
        return sum(1 for line in self._lines if line.strip())


def _table(member: str, name: str, records: "_Array | _Lines") -> Table:
    columns: dict[str, int] = {}
    try:
        for count, (_, record) in enumerate(records):
            if count == NAMING_ROWS or count * len(columns) > PROFILED_CELLS:
                break
            for key, _ in _flat(record):
                columns.setdefault(key, len(columns))
    except Broken:
        pass  # it comes again when the rows are read
    kept = dict(list(columns.items())[:MAX_COLUMNS])
    return Table(member, name, "Table", tuple(kept), _rows(records, kept), records.total)


def _rows(records: "_Array | _Lines", columns: dict[str, int]) -> Iterator[Row]:
    for number, record in records:
        cells = [""] * len(columns)
        later = []
        for key, value in _flat(record):
            if key in columns:
                cells[columns[key]] = value
            else:
                later.append(f"{key}: {value}")
        yield Row(number, cells if not later else [*cells, "; ".join(later)])


def _flat(record: Record, above: str = "", depth: int = 1) -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value and depth < MAX_DEPTH:
            yield from _flat(value, f"{name}.", depth + 1)
        elif value is None or value == "":
            yield name, ""
        elif isinstance(value, str):
            yield name, value
        elif isinstance(value, bool):
            yield name, "true" if value else "false"
        else:
            yield name, json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
