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
from typing import Any, TypeVar

import apsw
import uuid_utils
from conductor.v1 import event_pb2

from services.common.config import ConfigError
from services.conductor.store.base import (
    Answer,
    Append,
    Appended,
    Conflict,
    GroupCommit,
    Key,
    Listing,
    Outcome,
    Page,
    RequestKey,
    Row,
    Store,
    StoreUnavailable,
    Stream,
)

SCHEMA = Path(__file__).parent / "schema" / "sqlite"
BUSY_MS = 5000
READERS = 2  # threads that read rows; writing and reading pages of events have one each
PAGE_BYTES = 1024 * 1024  # of events in one page, whatever their number
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

# One statement is one snapshot, so the rows are current through that head.
SHOWN = "SELECT id, created_at, state, (SELECT pos FROM log_head) FROM aggregates"

T = TypeVar("T")


class SqliteStore(Store):
    """The Store on one SQLite file. Opened in the constructor, in the event loop that uses it.

    Args:
        path: the database file; its folder is made when missing.

    Raises:
        ConfigError: the file cannot be used, or another process uses it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = _lock(path)
        self._path = path
        self._writing = ThreadPoolExecutor(1, "store-writer")
        self._reading = ThreadPoolExecutor(READERS, "store-reader")
        self._paging = ThreadPoolExecutor(1, "store-pager")
        self._readers = threading.local()
        self._listeners: list[Callable[[], None]] = []
        self._group = GroupCommit(self._commit_in_thread, self._ring)
        try:
            self._connection = _open(path, WRITER_PRAGMAS)
            _migrate(self._connection)
            self._head: int = _one(self._connection, "SELECT pos FROM log_head")
        except BaseException as error:
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

    async def claim(self, owner: str) -> Sequence[str]:
        return await self._run(self._writing, lambda: self._claim(owner))

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
        except BaseException:
            self._head = head
            if not self._connection.getautocommit():
                cursor.execute("ROLLBACK")
            raise
        return outcomes

    def _append(self, cursor: apsw.Cursor, append: Append) -> Outcome:
        """Everything is checked before the first write, so that one refused append leaves the batch whole."""
        if append.request is not None:
            earlier = _answer(self._connection, append.request.key)
            if earlier is not None:
                return earlier
        kind, name = append.key
        pos, version = self._head + len(append.events), append.version + len(append.events)
        view = append.view
        shown = (version, view.status, view.finished, view.state)
        if append.version == 0:
            cursor.execute(
                "INSERT INTO aggregates(version, status, finished, state, kind, id, project_id, desktop_id,"
                " owner, epoch, created_at) VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
                (*shown, kind, name, view.project_id, view.desktop_id, append.owner, append.epoch, view.created_at),
            )
        else:
            cursor.execute(
                "UPDATE aggregates SET version=?, status=?, finished=?, state=?"
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
            _remember(cursor, append.request, pos)
        self._head = pos
        return Appended(pos, version)

    def _claim(self, owner: str) -> Sequence[str]:
        now = time.time_ns()
        with self._connection:
            cursor = self._connection.cursor()
            cursor.execute("INSERT OR REPLACE INTO replicas(id, beat_at) VALUES (?, ?)", (owner, now))
            sql = "UPDATE aggregates SET owner = ?, epoch = epoch + 1 WHERE kind = 'task' AND finished = 0 RETURNING id"
            rows = _all(self._connection, sql, (owner,))
        return sorted(row[0] for row in rows)

    # ---- reading ----

    async def stream(self, key: Key) -> Stream:
        return await self._read(lambda db: _stream(db, key))

    async def row(self, key: Key) -> Row | None:
        sql = f"{SHOWN} WHERE kind = ? AND id = ?"
        found = await self._read(lambda db: _all(db, sql, key))
        return Row(*found[0]) if found else None

    async def list(self, listing: Listing) -> Sequence[Row]:
        sql, values = _listing(listing)
        return [Row(*found) for found in await self._read(lambda db: _all(db, sql, values))]

    async def answer(self, request_key: str) -> Answer | None:
        return await self._read(lambda db: _answer(db, request_key))

    async def read(self, after: int, limit: int, key: Key | None = None) -> Page:
        # On a thread of its own: somebody's replay must not keep everybody's small reads waiting.
        return await self._read(lambda db: _page(db, after, limit, key), self._paging)

    async def bounds(self) -> tuple[int, int]:
        low, head = (await self._read(lambda db: _all(db, "SELECT low, pos FROM log_head")))[0]
        return low, head

    def on_commit(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def _ring(self) -> None:
        for listener in self._listeners:
            listener()

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


def _lock(path: Path) -> int:
    """Takes the lock that makes this process the only one on the file. Returns its file descriptor."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"The store's folder {path.parent} cannot be written: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigError(f"Another process uses the store {path}; SQLite serves one Conductor only.") from None
    return lock


def _open(path: Path, pragmas: Sequence[str]) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(BUSY_MS)
    for pragma in (*PRAGMAS, *pragmas):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    if (_one(connection, "PRAGMA journal_mode"), _one(connection, "PRAGMA synchronous")) != ("wal", 2):
        raise ConfigError(f"The file system of {path} does not support SQLite's WAL; use a local disk.")
    return connection


def _migrate(connection: apsw.Connection) -> None:
    """Applies the numbered schema files that the database does not have yet, each in one transaction."""
    known = _one(connection, "SELECT count(*) FROM sqlite_schema WHERE name = 'meta'")
    version = _one(connection, "SELECT schema_version FROM meta") if known else 0
    files = sorted(SCHEMA.glob("*.sql"))
    if version > len(files):
        raise ConfigError(f"The store has schema {version}, newer than this Conductor's {len(files)}; upgrade it.")
    for number, file in enumerate(files[version:], version + 1):
        with connection:
            connection.execute(file.read_text())
            if number == 1:
                connection.execute("INSERT INTO meta VALUES (1, ?)", (str(uuid_utils.uuid7()),))
                connection.execute("INSERT INTO log_head VALUES (1, 0, 0)")
            connection.execute("UPDATE meta SET schema_version = ?", (number,))


def _one(connection: apsw.Connection, sql: str) -> Any:
    return _all(connection, sql)[0][0]


def _all(connection: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """Returns all rows at once: a half-read cursor would keep the WAL from being reset."""
    return connection.execute(sql, tuple(values)).fetchall()


def _answer(connection: apsw.Connection, key: str) -> Answer | None:
    sql = "SELECT fingerprint, pos, response FROM requests WHERE key = ? AND expires_at > ?"
    found = _all(connection, sql, (key, time.time_ns()))
    return Answer(*found[0]) if found else None


def _remember(cursor: apsw.Cursor, request: RequestKey, pos: int) -> None:
    values = (request.key, request.fingerprint, pos, request.response, request.expires_at)
    cursor.execute("REPLACE INTO requests(key, fingerprint, pos, response, expires_at) VALUES (?,?,?,?,?)", values)
    # A few old ones go with every new one, so that they never pile up.
    cursor.execute(
        "DELETE FROM requests WHERE key IN (SELECT key FROM requests WHERE expires_at < ? LIMIT 4)", (time.time_ns(),)
    )


def _event(data: bytes, pos: int, seq: int) -> event_pb2.Event:
    event = event_pb2.Event.FromString(data)
    event.sequence, event.stream_sequence = pos, seq
    return event


def _stream(db: apsw.Connection, key: Key) -> Stream:
    with db:  # one snapshot for both reads
        head = _all(db, "SELECT version, epoch FROM aggregates WHERE kind = ? AND id = ?", key)
        rows = _all(db, "SELECT data, pos, seq FROM events WHERE kind = ? AND id = ? ORDER BY seq", key)
    version, epoch = head[0] if head else (0, 0)
    return Stream([_event(*row) for row in rows], version, epoch)


def _page(db: apsw.Connection, after: int, limit: int, key: Key | None) -> Page:
    where = {None: "", "task": "kind = 'task' AND id = ? AND", "project": "project_id = ? AND"}[key[0] if key else None]
    values = (*(key[1:] if key else ()), after, limit)
    with db:  # one snapshot: the head must not be newer than the rows
        head = _one(db, "SELECT pos FROM log_head")
        sql = f"SELECT data, pos, seq FROM events WHERE {where} pos > ? ORDER BY pos LIMIT ?"  # noqa: S608  constants
        rows, whole = _bounded(db, sql, values)
    through = max(head, after) if whole and len(rows) < limit else rows[-1][1]
    return Page([_event(*row) for row in rows], through)


def _bounded(db: apsw.Connection, sql: str, values: Sequence[Any]) -> tuple[list[Any], bool]:
    """Returns rows up to PAGE_BYTES of data, and whether those were all."""
    rows: list[Any] = []
    size = 0
    cursor = db.cursor()
    for row in cursor.execute(sql, tuple(values)):
        rows.append(row)
        size += len(row[0])
        if size >= PAGE_BYTES:
            break
    cursor.close(True)  # a half-read cursor would keep the WAL from being reset
    return rows, size < PAGE_BYTES


def _listing(listing: Listing) -> tuple[str, tuple[Any, ...]]:
    conditions: list[tuple[str, tuple[Any, ...]]] = [("kind = ?", (listing.kind,))]
    if listing.status:
        conditions.append(("status = ?", (listing.status,)))
    if listing.project_id is not None:
        conditions.append(("project_id = ? AND project_id <> ''", (listing.project_id,)))
    if listing.desktop_id is not None:
        conditions.append(("desktop_id = ? AND desktop_id <> ''", (listing.desktop_id,)))
    if listing.before is not None:
        conditions.append(("(created_at, id) < (?, ?)", listing.before))
    where = " AND ".join(text for text, _ in conditions)
    values = tuple(value for _, some in conditions for value in some)
    return f"{SHOWN} WHERE {where} ORDER BY created_at DESC, id DESC LIMIT ?", (*values, listing.limit)
