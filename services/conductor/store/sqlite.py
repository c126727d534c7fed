"""The log on SQLite: one process, one writing connection on one thread, WAL with synchronous=FULL, group commit.

apsw brings its own SQLite, newer than 3.51.3, where the WAL-reset bug that could corrupt a database with several
connections is fixed (https://sqlite.org/wal.html).
"""

import asyncio
import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw
import uuid_utils
from conductor.v1 import event_pb2

from services.common.config import ConfigError
from services.conductor.store import migrations
from services.conductor.store import sqlite_queries as queries
from services.conductor.store.base import (
    Answer,
    Append,
    Appended,
    Conflict,
    GroupCommit,
    Key,
    Listener,
    Listing,
    Outcome,
    Page,
    RequestKey,
    Row,
    Store,
    StoreUnavailable,
    Stream,
)
from services.conductor.store.beats import Beats

BUSY_MS = 5000
READERS = 2  # threads that read rows; writing and reading pages of events have one each
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",  # NORMAL loses acknowledged commits at a power cut
    "fullfsync=ON",  # macOS: fsync alone does not reach the platter; elsewhere it means nothing
    "checkpoint_fullfsync=ON",
    "foreign_keys=ON",
    "cache_size=-65536",
    "temp_store=MEMORY",
)
WRITER_PRAGMAS = ("wal_autocheckpoint=4000",)
READER_PRAGMAS = ("query_only=ON", "wal_autocheckpoint=0")

T = TypeVar("T")


class SqliteStore(Store):
    """The Store on one SQLite file. Opened in the constructor, in the event loop that uses it.

    Args:
        path: the database file; its folder is made when missing.

    Raises:
        ConfigError: the file cannot be used, or another process uses it.
    """

    exclusive = True

    def __init__(self, path: Path) -> None:
        self._lock = lock_file(path)
        self._path = path
        self._writing = ThreadPoolExecutor(1, "store-writer")
        self._reading = ThreadPoolExecutor(READERS, "store-reader")
        self._paging = ThreadPoolExecutor(1, "store-pager")
        self._readers = threading.local()
        self._listeners: list[Listener] = []
        self._beats = Beats()
        self._group = GroupCommit(self._commit_in_thread, self._ring)
        try:
            self._connection = _open(path, WRITER_PRAGMAS)
            _migrate(self._connection)
            self._head: int = queries.one(self._connection, "SELECT pos FROM log_head")
            self.log_id: str = queries.one(self._connection, "SELECT store_id FROM meta")
        except BaseException as error:  # also when interrupted: the lock must not outlive a failed start
            self._abandon()
            if isinstance(error, apsw.Error):
                raise ConfigError(f"The store {path} cannot be opened: {error}.") from error
            raise

    def _abandon(self) -> None:
        """Lets go of what a constructor that failed had taken."""
        if hasattr(self, "_connection"):
            self._connection.close()
        self._reading.shutdown()
        self._paging.shutdown()
        self._writing.shutdown()
        os.close(self._lock)

    # ---- writing ----

    async def append(self, append: Append) -> Outcome:
        return await self._group.append(append)

    async def join(self, replica: str) -> None:
        self._beats.join(replica)

    async def beat(self, replica: str) -> bool:
        return self._beats.beat(replica)

    async def replicas(self) -> Sequence[str]:
        return self._beats.names()

    async def claim(self, replica: str, lease: float, limit: int) -> Sequence[str]:
        self._beats.join(replica)  # whoever asks is alive
        alive = self._beats.alive(lease)
        return await self._run(self._writing, lambda: self._claim(replica, alive, limit))

    async def leave(self, replica: str) -> None:
        self._beats.leave(replica)

    async def ended_before(self, newest: int) -> int:
        sql = (
            "SELECT ended_at FROM aggregates WHERE ended_at IS NOT NULL"
            " ORDER BY ended_at DESC, id DESC LIMIT 1 OFFSET ?"
        )
        found = await self._read(lambda db: queries.fetch(db, sql, (newest,)), self._paging)
        return found[0][0] if found else 0

    async def prune(self, ended_before: int, limit: int) -> int:
        return await self._run(self._writing, lambda: self._prune(ended_before, limit))

    async def close(self) -> None:
        await self._group.close()
        # Readers first: the writer is then the last connection and folds the WAL into the file.
        await asyncio.to_thread(self._reading.shutdown)
        await asyncio.to_thread(self._paging.shutdown)
        self._readers = threading.local()
        await self._run(self._writing, self._connection.close)
        self._writing.shutdown()
        os.close(self._lock)

    async def _commit_in_thread(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        return await self._run(self._writing, lambda: self._commit(batch))

    def _commit(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        cursor = self._connection.cursor()
        head = self._head
        cursor.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [self._append(cursor, append) for append in batch]
            if self._head != head:
                cursor.execute("UPDATE log_head SET pos = ?", (self._head,))
            cursor.execute("COMMIT")
        except BaseException:  # whatever it is, nothing of the batch was kept; the caller is told
            self._head = head
            if not self._connection.getautocommit():
                cursor.execute("ROLLBACK")
            raise
        return outcomes

    def _append(self, cursor: apsw.Cursor, append: Append) -> Outcome:
        """Everything is checked before the first write, so that one refused append leaves the batch whole."""
        if append.request is not None:
            earlier = queries.answer(self._connection, append.request.key)
            if earlier is not None:
                return earlier
        kind, name = append.key
        pos, version = self._head + len(append.events), append.version + len(append.events)
        view = append.view
        shown = (version, view.status, view.ended_at, view.state)
        if append.version == 0:
            cursor.execute(
                "INSERT INTO aggregates(version, status, ended_at, state, kind, id, project_id, desktop_id,"
                " owner, epoch, created_at) VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
                (*shown, kind, name, view.project_id, view.desktop_id, append.owner, append.epoch, view.created_at),
            )
        else:
            cursor.execute(
                "UPDATE aggregates SET version=?, status=?, ended_at=?, state=?"
                " WHERE kind=? AND id=? AND version=? AND epoch=?",
                (*shown, kind, name, append.version, append.epoch),
            )
        if self._connection.changes() == 0:
            return Conflict()
        cursor.executemany(
            "INSERT INTO events(pos, kind, id, seq, project_id, data) VALUES (?,?,?,?,?,?)",
            [
                (self._head + i, kind, name, append.version + i, view.project_id, event.SerializeToString())
                for i, event in enumerate(append.events, 1)
            ],
        )
        if append.request is not None:
            _remember(cursor, append.request, self._head + append.request.covers)
        self._head = pos
        return Appended(pos, version)

    def _claim(self, replica: str, alive: Sequence[str], limit: int) -> Sequence[str]:
        others = ",".join("?" * len(alive))
        with self._connection:
            sql = (
                "UPDATE aggregates SET owner = ?, epoch = epoch + 1 WHERE kind = 'task' AND id IN"  # noqa: S608
                " (SELECT id FROM aggregates INDEXED BY aggregates_open WHERE kind = 'task' AND ended_at IS NULL"
                f" AND (owner IS NULL OR owner NOT IN ({others})) ORDER BY id LIMIT ?) RETURNING id"
            )
            rows = queries.fetch(self._connection, sql, (replica, *alive, limit))
        return sorted(row[0] for row in rows)

    def _prune(self, ended_before: int, limit: int) -> int:
        with self._connection:
            sql = "SELECT kind, id FROM aggregates WHERE ended_at < ? ORDER BY ended_at, id LIMIT ?"
            doomed = queries.fetch(self._connection, sql, (ended_before, limit))
            low = 0
            for key in doomed:
                sql = "DELETE FROM events WHERE kind = ? AND id = ? RETURNING pos"
                low = max(low, *(row[0] for row in queries.fetch(self._connection, sql, key)))
                self._connection.execute("DELETE FROM aggregates WHERE kind = ? AND id = ?", key)
            if doomed:
                self._connection.execute("UPDATE log_head SET low = max(low, ?)", (low,))
        return len(doomed)

    # ---- reading ----

    async def stream(self, key: Key) -> Stream:
        return await self._read(lambda db: queries.stream(db, key))

    async def row(self, key: Key) -> Row | None:
        sql = f"{queries.SHOWN} WHERE kind = ? AND id = ?"
        found = await self._read(lambda db: queries.fetch(db, sql, key))
        return Row(*found[0]) if found else None

    async def list(self, listing: Listing) -> Sequence[Row]:
        sql, values = queries.listing(listing)
        return [Row(*found) for found in await self._read(lambda db: queries.fetch(db, sql, values))]

    async def answer(self, request_key: str) -> Answer | None:
        return await self._read(lambda db: queries.answer(db, request_key))

    async def read(self, after: int, limit: int, key: Key | None = None) -> Page:
        # On a thread of its own: somebody's replay must not keep everybody's small reads waiting.
        return await self._read(lambda db: queries.page(db, after, limit, key), self._paging)

    async def bounds(self) -> tuple[int, int]:
        low, head = (await self._read(lambda db: queries.fetch(db, "SELECT low, pos FROM log_head")))[0]
        return low, head

    def on_commit(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def _ring(self, events: Sequence[event_pb2.Event]) -> None:
        for listener in self._listeners:
            listener(events)

    async def _read(self, query: Callable[[apsw.Connection], T], executor: ThreadPoolExecutor | None = None) -> T:
        def work() -> T:
            if not hasattr(self._readers, "connection"):
                self._readers.connection = _open(self._path, READER_PRAGMAS)
            return query(self._readers.connection)

        return await self._run(executor or self._reading, work)

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        except (apsw.Error, RuntimeError) as error:  # RuntimeError: the executor has been shut down
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


def lock_file(path: Path) -> int:
    """Takes the lock that makes this process the only one on the file.

    Returns its file descriptor. Raises ConfigError when the file cannot be had.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"The store's folder {path.parent} cannot be written: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigError(
            f"Another process uses the store {path}, and SQLite serves one Conductor only: stop the other, or give all"
            " of them a postgresql:// URL in CONDUCTOR_STORE."
        ) from None
    return lock


def _open(path: Path, pragmas: Sequence[str]) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(BUSY_MS)
    for pragma in (*PRAGMAS, *pragmas):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    if (queries.one(connection, "PRAGMA journal_mode"), queries.one(connection, "PRAGMA synchronous")) != ("wal", 2):
        raise ConfigError(f"The file system of {path} does not support SQLite's WAL; use a local disk.")
    return connection


def _migrate(connection: apsw.Connection) -> None:
    """Applies the numbered schema files that the database does not have yet, each in one transaction."""
    columns = [row[0] for row in queries.fetch(connection, "SELECT name FROM pragma_table_info('meta')")]
    version = queries.one(connection, "SELECT schema_version FROM meta") if columns else 0
    oldest = queries.one(connection, "SELECT oldest FROM meta") if "oldest" in columns else version
    for number, file in migrations.pending("sqlite", version, oldest):
        with connection:
            connection.execute(file.read_text())
            if number == 1:
                connection.execute("INSERT INTO meta VALUES (1, ?)", (str(uuid_utils.uuid7()),))
                connection.execute("INSERT INTO log_head VALUES (1, 0, 0)")
            connection.execute("UPDATE meta SET schema_version = ?", (number,))


def _remember(cursor: apsw.Cursor, request: RequestKey, pos: int) -> None:
    values = (request.key, request.fingerprint, pos, request.response, request.expires_at)
    cursor.execute("REPLACE INTO requests(key, fingerprint, pos, response, expires_at) VALUES (?,?,?,?,?)", values)
    # A few old ones go with every new one, so that they never pile up.
    cursor.execute(
        "DELETE FROM requests WHERE key IN (SELECT key FROM requests WHERE expires_at < ? LIMIT 4)", (time.time_ns(),)
    )
