"""What is asked of SQLite. A query is read to its end, or ended, before anything else happens."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import apsw

from services.conductor.store.base import Answer, Key, Listing, Page, Stream
from services.conductor.store.pages import PAGE_BYTES, event

# Which events a page is of; said so that there is an index for each.
PAGE_OF: Mapping[str | None, str] = {
    None: "",
    "task": "kind = 'task' AND id = ? AND",
    "project": "project_id = ? AND project_id <> '' AND",
}

# One statement is one snapshot, so the rows are current through that head.
SHOWN = "SELECT id, created_at, state, (SELECT pos FROM log_head) FROM aggregates"


def one(connection: apsw.Connection, sql: str) -> Any:
    """Returns the only value that a query gives."""
    return fetch(connection, sql)[0][0]


def fetch(connection: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """Returns all rows at once: a half-read cursor would keep the WAL from being reset."""
    return connection.execute(sql, tuple(values)).fetchall()


def answer(connection: apsw.Connection, key: str) -> Answer | None:
    """Returns what a request key was used for, unless it has expired."""
    sql = "SELECT fingerprint, pos, response FROM requests WHERE key = ? AND expires_at > ?"
    found = fetch(connection, sql, (key, time.time_ns()))
    return Answer(*found[0]) if found else None


def stream(db: apsw.Connection, key: Key) -> Stream:
    """Returns all events of a task or project, and how it stands."""
    with db:  # one snapshot for both reads
        head = fetch(db, "SELECT version, epoch, owner FROM aggregates WHERE kind = ? AND id = ?", key)
        rows = fetch(db, "SELECT data, pos, seq FROM events WHERE kind = ? AND id = ? ORDER BY seq", key)
    version, epoch, owner = head[0] if head else (0, 0, None)
    return Stream([event(*row) for row in rows], version, epoch, owner)


def page(db: apsw.Connection, after: int, limit: int, key: Key | None) -> Page:
    """Returns events behind a position."""
    where = PAGE_OF[key[0] if key else None]
    values = (*(key[1:] if key else ()), after, limit)
    with db:  # one snapshot: the head must not be newer than the rows
        head, low = fetch(db, "SELECT pos, low FROM log_head")[0]
        sql = f"SELECT data, pos, seq FROM events WHERE {where} pos > ? ORDER BY pos LIMIT ?"  # noqa: S608  constants
        rows, whole = _bounded(db, sql, values)
    through = max(head, after) if whole and len(rows) < limit else rows[-1][1]
    return Page([event(*row) for row in rows], through, low)


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


def listing(wanted: Listing) -> tuple[str, tuple[Any, ...]]:
    """Returns the query of a listing and its parameters."""
    # Written out, so that the partial indices fit: it is one of two words.
    conditions: list[tuple[str, tuple[Any, ...]]] = [(f"kind = '{wanted.kind}'", ())]
    if wanted.status:
        conditions.append(("status = ? AND status <> 0", (wanted.status,)))
    if wanted.project_id is not None:
        conditions.append(("project_id = ? AND project_id <> ''", (wanted.project_id,)))
    if wanted.desktop_id is not None:
        conditions.append(("desktop_id = ? AND desktop_id <> ''", (wanted.desktop_id,)))
    if wanted.before is not None:
        conditions.append(("(created_at, id) < (?, ?)", wanted.before))
    where = " AND ".join(text for text, _ in conditions)
    values = tuple(value for _, some in conditions for value in some)
    return f"{SHOWN} WHERE {where} ORDER BY created_at DESC, id DESC LIMIT ?", (*values, wanted.limit)
