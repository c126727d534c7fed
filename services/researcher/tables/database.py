"""An SQLite database → its tables.

Whoever made the file also made its schema, so nothing of that is run: views, virtual tables and triggers are told by
their definition only. The bytes are opened in memory, without a file, without the functions a schema must not call
(https://sqlite.org/security.html), read only, and with a bound on the steps of its virtual machine.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from services.researcher.extract.parts import Broken, Exhausted
from services.researcher.tables.profile import BINARY, MAX_CELL, MAX_COLUMNS, Row, Table

LEAST_LENGTH = 1_000_000  # bytes a value or row may have in any file
MAX_TABLES = 2_000
MAX_DEFINITION = 4_000  # characters
STEPS = 1_000  # of the virtual machine between two looks at the bound
MAX_STEPS = 100_000_000  # for each question put to it; some CPU-seconds
_MAGIC = b"SQLite format 3\0"
_WAL, _ROLLBACK = b"\x02\x02", b"\x01\x01"  # bytes 18 and 19 of the header: how it is written and read
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}

_VIRTUAL = re.compile(r"\s*create\s+virtual\b", re.I)

Found: TypeAlias = tuple[str, str, str, int]  # type, name, definition, first page


def tables(data: bytes) -> Iterator[Table]:
    """Yields the tables and views by name. Raises Broken."""
    if not data.startswith(_MAGIC):
        raise Broken("It is no SQLite database, or it is encrypted.")
    database = _opened(data)
    try:
        try:
            found = _found(database)
        except sqlite3.Error as error:
            raise _broken(error) from None
        for kind, name, definition, page in found[:MAX_TABLES]:
            yield _table(database, kind, name, definition, page)
        if len(found) > MAX_TABLES:
            raise Broken(f"Only the first {MAX_TABLES:,} of its tables are read.", truncated=True)
    finally:
        database.close()


def _opened(data: bytes) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
    if data[18:20] == _WAL:  # one in memory has no write-ahead log; what was not yet moved out of that is not here
        data = data[:18] + _ROLLBACK + data[20:]
    try:
        database.deserialize(data)
        for pragma in ("trusted_schema=off", "cell_size_check=on", "query_only=on", "temp_store=memory", "mmap_size=0"):
            database.execute(f"pragma {pragma}")
    except sqlite3.Error as error:
        database.close()
        raise _broken(error) from None
    database.text_factory = lambda value: value.decode("utf-8", "replace")
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(len(data), LEAST_LENGTH))  # a value longer than that is made up
    database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)
    return database


def _found(database: sqlite3.Connection) -> Sequence[Found]:
    _bound(database)
    return database.execute(
        "select type, name, coalesce(sql, ''), coalesce(rootpage, 0) from sqlite_schema "
        "where type in ('table', 'view') and name not like 'sqlite\\_%' escape '\\' order by name"
    ).fetchall()


def _table(database: sqlite3.Connection, kind: str, name: str, definition: str, page: int) -> Table:
    remarks = [("Definition", definition[:MAX_DEFINITION])] if definition else []
    if kind == "view" or page == 0 or _VIRTUAL.match(definition):
        what = "View" if kind == "view" else "Virtual table"
        return Table(name, name, what, (), None, lambda: None, remarks)
    rows = _Rows(database, name)
    return Table(name, name, "Table", rows.columns(), rows.read(), rows.total, remarks)


class _Rows:
    """Reads one table."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self._database = database
        self._from = 'from main."' + name.replace('"', '""') + '"'

    def columns(self) -> Sequence[str]:
        """Returns the names of the columns, none when the table cannot be read."""
        _bound(self._database)
        try:
            described = self._database.execute(f"select * {self._from} limit 0").description
        except sqlite3.Error:
            return ()
        return [each[0] for each in described or ()]

    def read(self) -> Iterator[Row]:
        """Yields the rows as the table keeps them. Raises Broken."""
        _bound(self._database)
        try:
            for number, row in enumerate(self._database.execute(f"select * {self._from}"), 1):
                yield Row(number, [_cell(value) for value in row[:MAX_COLUMNS]])
        except sqlite3.Error as error:
            raise _broken(error) from None

    def total(self) -> int | None:
        """Returns how many rows there are, None when that cannot be counted.

        Not by count(*), which is one step however many pages a hostile tree of pages leads through.
        """
        _bound(self._database)
        try:
            return int(self._database.execute(f"select coalesce(sum(1), 0) {self._from}").fetchone()[0])
        except sqlite3.Error:
            return None


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"{BINARY}{len(value):,} bytes"
    return value[: MAX_CELL + 1] if isinstance(value, str) else str(value)


def _bound(database: sqlite3.Connection) -> None:
    """Lets what comes next take so many steps; time would make what is read depend on the machine."""
    left = MAX_STEPS // STEPS

    def step() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    database.set_progress_handler(step, STEPS)


def _broken(error: sqlite3.Error) -> Broken:
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
        return Exhausted("It takes more steps to read than a table may take.")
    return Broken(f"SQLite cannot read it: {error}.")
