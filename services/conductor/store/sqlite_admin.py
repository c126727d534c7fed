"""Administration of a log on SQLite. Reading goes on beside a running Conductor, writing needs the file's lock."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import uuid_utils

from services.common.config import ConfigError
from services.conductor.store import migrations
from services.conductor.store.admin import AdminError, InUse, Reader
from services.conductor.store.base import Store
from services.conductor.store.sqlite import BUSY_MS, SqliteStore, lock_file
from services.conductor.store.whole import refuse_existing, written

PAGES = 2048  # copied between two looks at whether the work is to be stopped
WRONG = 100  # findings of SQLite's own check


class SqliteReader(Reader):
    """Reads on a connection whose transaction stays open."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    async def rows(self, sql: str, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        for row in self._connection.cursor().execute(sql, values):
            yield row


class SqliteAdministration:
    """The Administration of one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.known = len(migrations.files("sqlite"))
        self._path = path

    async def schema(self) -> int:
        if not self._path.exists():
            return 0
        with _connected(self._path) as connection:
            return _schema(connection)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        with _connected(self._path) as connection:
            _snapshot(connection)
            yield SqliteReader(connection)

    async def damage(self, reader: Reader) -> AsyncIterator[str]:
        async for (finding,) in reader.rows(f"PRAGMA integrity_check({WRONG})"):
            if finding != "ok":
                yield finding

    async def open(self) -> Store:
        os.close(self._locked())  # refuses in the words of an operator
        return SqliteStore(self._path)

    async def backup(self, file: Path, force: bool) -> None:
        self._refuse_itself(file)
        refuse_existing(file, force)
        with _connected(self._path) as source, _replaced(file) as copy:
            await _copy(source, copy)

    async def restore(self, file: Path, force: bool) -> None:
        self._refuse_itself(file)
        with _connected(file) as source, self._alone():
            if not _schema(source):
                raise AdminError(f"{file} holds no log: name a backup.")
            if self._path.exists() and not force:
                raise AdminError(f"The store {self._path} exists: give --force to lose what is in it.")
            with _replaced(self._path, before=self._drop_changes) as copy:
                await _copy(source, copy)
                copy.execute("UPDATE meta SET store_id = ?", (str(uuid_utils.uuid7()),))

    def _refuse_itself(self, file: Path) -> None:
        if file.exists() and self._path.exists() and file.samefile(self._path):
            raise AdminError(f"{file} is the store itself: name a backup.")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        lock = self._locked()
        try:
            yield
        finally:
            os.close(lock)

    def _locked(self) -> int:
        try:
            return lock_file(self._path)
        except ConfigError as error:
            if "Another process" in str(error):
                raise InUse(f"A Conductor uses the store {self._path}: stop it first.") from None
            raise

    def _drop_changes(self) -> None:
        """Empties the WAL beside the file: SQLite would apply it to the file that takes its place."""
        with contextlib.suppress(AdminError), _connected(self._path) as old:  # it may be damaged, which is why
            old.pragma("wal_checkpoint(TRUNCATE)")
        for end in ("-wal", "-shm"):
            Path(f"{self._path}{end}").unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[apsw.Connection]:
    """Opens a file that exists, and says in one sentence what is wrong with it."""
    if not path.exists():
        raise AdminError(f"There is no file {path}: name the store or the backup you mean.")
    try:
        with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.set_busy_timeout(BUSY_MS)
            for pragma in ("query_only=ON", "wal_autocheckpoint=0", "temp_store=FILE"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            yield connection
    except apsw.Error as error:
        raise AdminError(f"{path} cannot be read: {error}.") from error


@contextlib.contextmanager
def _replaced(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[apsw.Connection]:
    """Gives an empty database that takes the place of `path` once it is whole."""
    with written(path, before) as part:
        try:
            with contextlib.closing(apsw.Connection(str(part))) as copy:
                yield copy
        except apsw.Error as error:
            raise AdminError(f"{path} cannot be made: {error}.") from error
        finally:
            Path(f"{part}-journal").unlink(missing_ok=True)


def _snapshot(connection: apsw.Connection) -> None:
    """Begins to read: BEGIN alone would begin with the first statement that follows."""
    connection.execute("BEGIN")
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'log_head'").fetchall():
        raise AdminError(f"{connection.filename} holds no log: name the file of a Conductor.")


def _schema(connection: apsw.Connection) -> int:
    """Returns the version of the schema, 0 for none. Raises ConfigError when it is for newer releases only."""
    columns = {row[0] for row in connection.execute("SELECT name FROM pragma_table_info('meta')")}
    version: Any = connection.execute("SELECT schema_version FROM meta").fetchall()[0][0] if columns else 0
    oldest: Any = connection.execute("SELECT oldest FROM meta").fetchall()[0][0] if "oldest" in columns else version
    migrations.pending("sqlite", version, oldest)
    return int(version)


async def _copy(source: apsw.Connection, copy: apsw.Connection) -> None:
    """Copies all of a database as it is now, also while another process writes (https://sqlite.org/backup.html)."""
    _snapshot(source)  # else it would begin anew at every write
    with copy.backup("main", source, "main") as work:
        while not work.done:
            work.step(PAGES)
            await asyncio.sleep(0)
    copy.pragma("journal_mode", "delete")  # one file, nothing beside it
    if copy.execute(f"PRAGMA integrity_check({WRONG})").fetchall() != [("ok",)]:
        raise AdminError(f"{source.filename} is damaged, so no copy was kept: see conductor admin check.")
