"""The log behind one small interface, its value types, and group commit, which every engine shares."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from conductor.v1 import event_pb2

from services.common.errors import Reason, Refusal

Kind: TypeAlias = Literal["task", "project"]
Key: TypeAlias = tuple[Kind, str]

log = logging.getLogger(__name__)

MAX_BATCH = 512  # appends in one transaction: bounds how long the first of them waits


class StoreUnavailable(Refusal):
    """The log cannot be written or read now: locked, full or broken. Whether an append was kept may not be known.

    Args:
        cause: what the engine said, beginning with the name of its error.
    """

    def __init__(self, cause: str) -> None:
        text = "The log cannot be written or read now. Ask again later, and repeat a write with the same request_id."
        super().__init__(Reason.ERROR_REASON_STORE_UNAVAILABLE, text, cause=cause.partition(":")[0])
        self.cause = cause


@dataclass(frozen=True, slots=True)
class RequestKey:
    """An idempotency key, and the answer a repeat shall get.

    Attributes:
        covers: how many events of the append the answer includes; the answer's position is that of the last of them.
    """

    key: str
    fingerprint: bytes
    response: bytes
    expires_at: int
    covers: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What an earlier request of the same key was, and got."""

    fingerprint: bytes
    pos: int
    response: bytes


@dataclass(frozen=True, slots=True)
class View:
    """The row that shows a task or project after the events appended with it.

    Attributes:
        ended_at: nanoseconds since the epoch when nothing will happen to it any more; None until then.
    """

    status: int
    ended_at: int | None
    project_id: str
    desktop_id: str
    created_at: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Append:
    """Events of one task or project, to be appended at an expected version, with the state they lead to.

    Attributes:
        version: seq of the last event the writer has seen; 0 when the stream shall begin.
        epoch: fencing token the writer holds; for a new stream, the one it begins with.
        owner: replica that works on it; None when nobody has to.
    """

    key: Key
    version: int
    epoch: int
    owner: str | None
    events: Sequence[event_pb2.Event]
    view: View
    request: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """The append is durable. Its events stand at positions up to `pos`, with seq up to `version`."""

    pos: int
    version: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Somebody else wrote first, or took the lease. Nothing was kept."""


Outcome: TypeAlias = Appended | Conflict | Answer
Listener: TypeAlias = Callable[[Sequence[event_pb2.Event]], None]


@dataclass(frozen=True, slots=True)
class Stream:
    """All events of one task or project, with its version, its fencing token, and the replica that works on it."""

    events: Sequence[event_pb2.Event]
    version: int
    epoch: int
    owner: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """One task or project as shown, current through position `through`."""

    id: str
    created_at: int
    state: bytes
    through: int


@dataclass(frozen=True, slots=True)
class Page:
    """Events after a cursor. Everything that matches through position `through` is in it.

    Events at or below position `low` may be missing: they were pruned.
    """

    events: Sequence[event_pb2.Event]
    through: int
    low: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Which rows to list, newest first. None and 0 match anything; `before` is (created_at, id) of the last one."""

    kind: Kind
    status: int = 0
    project_id: str | None = None
    desktop_id: str | None = None
    before: tuple[int, str] | None = None
    limit: int = 50


class Store(Protocol):
    """The log. Every method raises StoreUnavailable when the engine cannot serve it.

    Attributes:
        exclusive: whether no other process can write, so that a lease never runs out.
        log_id: tells this log's positions from another's.
    """

    exclusive: bool
    log_id: str

    async def append(self, append: Append) -> Outcome:
        """Makes an append durable, or changes nothing and says why not."""

    async def stream(self, key: Key) -> Stream:
        """Returns all events of one task or project; an empty stream of version 0 when there is none."""

    async def row(self, key: Key) -> Row | None:
        """Returns the newest state of one task or project."""

    async def list(self, listing: Listing) -> Sequence[Row]:
        """Returns rows, newest first."""

    async def answer(self, request_key: str) -> Answer | None:
        """Returns what an idempotency key was used for."""

    async def read(self, after: int, limit: int, key: Key | None = None) -> Page:
        """Returns events behind a position: all, those of a task, or those of a project and its tasks.

        A task's events are all there as long as the task is, also below `low`.

        At most `limit`, and fewer when they are large; a page that is not at the log's end is never empty.
        """

    async def bounds(self) -> tuple[int, int]:
        """Returns (low, head): the log holds the events at positions low < pos <= head."""

    async def join(self, replica: str) -> None:
        """Registers a replica under a name nobody ever had; its lease begins."""

    async def beat(self, replica: str) -> bool:
        """Renews a replica's lease. False: it was given up for dead, and must join again under a new name."""

    async def replicas(self) -> Sequence[str]:
        """Returns the names of all that joined and neither left nor were given up."""

    async def claim(self, replica: str, lease: float, limit: int) -> Sequence[str]:
        """Takes over unfinished tasks whose owner left or has not renewed its lease for `lease` seconds.

        Sets their owner, bumps their epoch. Returns the ids of at most `limit`, oldest first.
        """

    async def leave(self, replica: str) -> None:
        """Hands back all that the replica owns, at once. An unknown name is ignored."""

    async def ended_before(self, newest: int) -> int:
        """Returns when the task ended behind which `newest` younger ended tasks stand, in nanoseconds; 0: none did."""

    async def prune(self, ended_before: int, limit: int) -> int:
        """Removes tasks that ended before a time (nanoseconds), oldest first, with all their events.

        At most `limit` in one transaction; `low` rises to the newest position removed. Returns how many.
        """

    def on_commit(self, listener: Listener) -> None:
        """Calls the listener in the event loop after every transaction, with the events it appended.

        They carry their positions, which follow each other; none are given when another process wrote: read the log.
        """

    async def close(self) -> None:
        """Ends all work. Appends under way are finished first."""


class GroupCommit:
    """Turns whatever queued up during the last commit into the next one.

    One commit costs one fsync however many appends it holds, so throughput grows with load and a lone append waits for
    nobody.

    Args:
        commit: makes a batch durable and returns one outcome each. No two appends of a batch are for the same key or
            carry the same request key, so that an engine may do it in one statement.
        committed: called after each batch, with the events appended, in order, at the positions they got.
    """

    def __init__(self, commit: Callable[[Sequence[Append]], Awaitable[Sequence[Outcome]]], committed: Listener) -> None:
        self._commit = commit
        self._committed = committed
        self._waiting: list[tuple[Append, asyncio.Future[Outcome]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, append: Append) -> Outcome:
        """Waits until the append is durable or refused."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((append, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await future

    async def close(self) -> None:
        """Waits for everything that was handed in."""
        if self._writer is not None:
            await self._writer

    async def _write(self) -> None:
        while self._waiting:
            batch = self._take()
            try:
                outcomes = await self._commit([append for append, _ in batch])
            except Exception as error:  # whatever it is, nobody may wait for ever, and the next batch must go on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():  # its caller may have gone away
                    future.set_result(outcome)
            self._tell(batch, outcomes)
        self._writer = None

    def _tell(self, batch: Sequence[tuple[Append, asyncio.Future[Outcome]]], outcomes: Sequence[Outcome]) -> None:
        """Gives the events their positions, now that these are durable, and hands them to the listener."""
        appended = [
            (outcome, append)
            for (append, _), outcome in zip(batch, outcomes, strict=True)
            if isinstance(outcome, Appended)
        ]
        appended.sort(key=lambda pair: pair[0].pos)
        events: list[event_pb2.Event] = []
        for outcome, append in appended:
            first = outcome.pos - len(append.events)
            for i, event in enumerate(append.events, 1):
                event.sequence, event.stream_sequence = first + i, append.version + i
                events.append(event)
        if events:
            try:
                self._committed(events)
            except Exception:  # a bug of who only listens must not keep anybody from writing
                log.exception("a listener to commits failed")

    def _take(self) -> list[tuple[Append, asyncio.Future[Outcome]]]:
        """Takes the next batch: in order, and each key and each request key once."""
        batch: list[tuple[Append, asyncio.Future[Outcome]]] = []
        rest: list[tuple[Append, asyncio.Future[Outcome]]] = []
        keys: set[Key | str] = set()
        for item in self._waiting:
            append = item[0]
            request = append.request.key if append.request is not None else None
            if len(batch) < MAX_BATCH and append.key not in keys and (request is None or request not in keys):
                batch.append(item)
            else:
                rest.append(item)
            keys.add(append.key)
            if request is not None:
                keys.add(request)
        self._waiting = rest
        return batch
