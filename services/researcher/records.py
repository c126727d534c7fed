"""Researches and their events, kept on disk: for repeated requests, for those who come back, and for other replicas.

They outlive the process, not a power cut: a research that is lost is asked for again. What the process worked on when
it died is ended by whoever looks at it next: each process holds a lock that the kernel lets go of (flock(2)).
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
from conductor.v1 import error_pb2, researcher_pb2

from services.common.boundary import new_id
from services.common.errors import Reason, Refusal, typed

BUSY_MS = 5_000  # wait for another process that writes
SWEEP_S = 60.0  # between two looks for what need not be kept any more
_SCHEMA = """
    create table if not exists research (
        id text primary key, digest blob not null, objective text not null, owner text not null,
        started_ns integer not null, ended_ns integer, error blob, cancelled integer not null default 0
    ) without rowid;
    create table if not exists event (
        research text not null, sequence integer not null, body blob not null, primary key (research, sequence)
    ) without rowid;
    create index if not exists ended on research (ended_ns) where ended_ns is not null;
"""


@dataclass(frozen=True, slots=True)
class State:
    """How far a research is. `error` is what it failed with, `ended` also true without one when it has a result."""

    objective: str
    sequence: int
    started_ns: int
    ended_ns: int | None
    error: error_pb2.TypedError | None
    own: bool  # this process works on it, or did

    @property
    def ended(self) -> bool:
        """Whether no event comes any more."""
        return self.ended_ns is not None


class Records:
    """Keeps researches below `home`. Thread-safe; several processes may share it.

    Args:
        keep: seconds an ended research is kept.
    """

    def __init__(self, home: Path, keep: float) -> None:
        self._keep_ns = int(keep * 1e9)
        self._owners = home / "owners"
        self._owners.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner = new_id()
        self._held = os.open(self._owners / self._owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        self._lock = threading.Lock()
        self._swept = 0.0
        self._db: Any = apsw.Connection(str(home / "researches.db"))  # its rows have no types
        self._db.set_busy_timeout(BUSY_MS)
        for pragma in ("journal_mode = wal", "synchronous = off"):
            self._db.execute(f"pragma {pragma}").fetchall()
        self._db.execute(_SCHEMA)

    def begin(self, research_id: str, digest: bytes, objective: str) -> bool:
        """Notes a new research. Returns False when it is there already; one that failed for a
        time, or whose process died, begins anew.

        Raises:
            Refusal: REQUEST_ID_REUSED when the id belongs to another request.
        """
        with self._writing():
            self._sweep()
            query = "select digest, error from research where id = ?"
            found = self._db.execute(query, (research_id,)).fetchone()
            if found is not None:
                if found[0] != digest:
                    text = f"The research_id {research_id} belongs to another request; take a new one."
                    raise Refusal(Reason.ERROR_REASON_REQUEST_ID_REUSED, text, research_id=research_id)
                failed = found[1] is not None and error_pb2.TypedError.FromString(found[1]).retryable
                if not failed and not self._abandoned(research_id):
                    return False
                self._forget([research_id])
            row = (research_id, digest, objective, self._owner, time.time_ns())
            self._db.execute("insert into research (id, digest, objective, owner, started_ns) values (?,?,?,?,?)", row)
            return True

    def add(self, research_id: str, event: researcher_pb2.ResearchResponse) -> None:
        """Numbers an event and keeps it. The result ends the research; what comes behind it is dropped."""
        with self._writing():
            query = "select 1 from research where id = ? and owner = ? and ended_ns is null"
            if self._db.execute(query, (research_id, self._owner)).fetchone() is None:
                return
            last = self._last(research_id)
            event.research_id = research_id
            event.sequence = last + 1
            event.occurred_at.FromNanoseconds(time.time_ns())
            row = (research_id, event.sequence, event.SerializeToString())
            self._db.execute("insert into event values (?,?,?)", row)
            if event.WhichOneof("event") == "result":
                self._end(research_id, None)

    def fail(self, research_id: str, error: error_pb2.TypedError) -> None:
        """Ends a research without a result."""
        with self._writing():
            self._end(research_id, error)

    def after(self, research_id: str, sequence: int) -> Sequence[researcher_pb2.ResearchResponse]:
        """Returns the events behind a sequence, in order."""
        query = "select body from event where research = ? and sequence > ? order by sequence"
        with self._lock:
            rows = self._db.execute(query, (research_id, sequence)).fetchall()
        return [researcher_pb2.ResearchResponse.FromString(body) for (body,) in rows]

    def state(self, research_id: str) -> State:
        """Returns how far a research is. Raises RESEARCH_NOT_FOUND."""
        query = "select objective, started_ns, ended_ns, error, owner from research where id = ?"
        with self._writing():
            if self._abandoned(research_id):
                self._end(research_id, _orphaned())
            found = self._db.execute(query, (research_id,)).fetchone()
            if found is None:
                raise _unknown(research_id)
            objective, started_ns, ended_ns, error, owner = found
            failed = None if error is None else error_pb2.TypedError.FromString(error)
            return State(objective, self._last(research_id), started_ns, ended_ns, failed, owner == self._owner)

    def cancel(self, research_id: str) -> None:
        """Asks whichever process works on a research to stop. Raises RESEARCH_NOT_FOUND."""
        with self._writing():
            self._db.execute("update research set cancelled = 1 where id = ? and ended_ns is null", (research_id,))
            if self._db.execute("select 1 from research where id = ?", (research_id,)).fetchone() is None:
                raise _unknown(research_id)

    def cancelled(self, research_id: str) -> bool:
        """Says whether somebody asked to stop a research."""
        with self._lock:
            found = self._db.execute("select cancelled from research where id = ?", (research_id,)).fetchone()
        return found is not None and bool(found[0])

    def close(self) -> None:
        """Closes the database and gives up what this process works on."""
        with self._lock:
            self._db.close()
            os.close(self._held)
            (self._owners / self._owner).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield
            except BaseException:  # whatever it is: all of it or nothing, and it goes on up
                self._db.execute("rollback")
                raise
            self._db.execute("commit")

    def _last(self, research_id: str) -> int:
        found = self._db.execute("select max(sequence) from event where research = ?", (research_id,)).fetchone()
        return (found and found[0]) or 0

    def _end(self, research_id: str, error: error_pb2.TypedError | None) -> None:
        row = (time.time_ns(), None if error is None else error.SerializeToString(), research_id)
        self._db.execute("update research set ended_ns = ?, error = ? where id = ?", row)

    def _abandoned(self, research_id: str) -> bool:
        """Says whether the process that works on it is gone."""
        query = "select owner from research where id = ? and ended_ns is null"
        found = self._db.execute(query, (research_id,)).fetchone()
        return found is not None and found[0] != self._owner and not self._alive(found[0])

    def _alive(self, owner: str) -> bool:
        try:
            descriptor = os.open(self._owners / owner, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            (self._owners / owner).unlink()
        return False

    def _sweep(self) -> None:
        if time.monotonic() - self._swept < SWEEP_S and self._swept:
            return
        self._swept = time.monotonic()
        owners = self._db.execute("select distinct owner from research where ended_ns is null").fetchall()
        for owner in {each for (each,) in owners if each != self._owner and not self._alive(each)}:
            query = "select id from research where owner = ? and ended_ns is null"
            for (each,) in self._db.execute(query, (owner,)).fetchall():
                self._end(each, _orphaned())
        query = "select id from research where ended_ns < ?"
        self._forget([each for (each,) in self._db.execute(query, (time.time_ns() - self._keep_ns,)).fetchall()])

    def _forget(self, ids: Sequence[str]) -> None:
        for each in ids:
            self._db.execute("delete from event where research = ?", (each,))
            self._db.execute("delete from research where id = ?", (each,))


def _orphaned() -> error_pb2.TypedError:
    text = "The Researcher that worked on it ended before it had a result. Ask again."
    return typed(Reason.ERROR_REASON_WORKER_UNAVAILABLE, text)


def _unknown(research_id: str) -> Refusal:
    text = f"There is no research {research_id}, or it is not kept any more."
    return Refusal(Reason.ERROR_REASON_RESEARCH_NOT_FOUND, text, research_id=research_id)
