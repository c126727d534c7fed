"""Cursors over the log: replay, then live. Nothing is queued for a subscriber, so a slow one is merely behind.

The newest events are kept once for all subscribers in a tail, read from the log after each commit. A subscriber reads
the tail when its cursor is in it and the store when it is not; in between it sleeps until an event of its interest is
in the tail, so a subscriber whom a commit does not concern costs the writer nothing.
"""

import asyncio
import contextlib
import logging
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from conductor.v1 import event_pb2, task_pb2
from google.protobuf import json_format

from services.common.errors import Reason, Refusal
from services.conductor.events import CHECKPOINT, TERMINAL_TYPES
from services.conductor.store.base import Key, Listener, Page, Store, StoreUnavailable

log = logging.getLogger(__name__)

PAGE = 1000  # events read from the store at once
READ_AGAIN_S = 0.5  # pause after the log could not be read
TAIL = 4096  # newest events kept in memory …
TAIL_BYTES = 32 * 1024 * 1024  # … and their size
BEATS = 10  # how often in the time of one heartbeat it is looked for quiet streams
RINGS = 16  # most subscribers woken in one turn of the event loop
RETRY_MS = 2000  # how soon a browser reconnects
SSE_OPEN = f"retry: {RETRY_MS}\n\n".encode()
SSE_CLOSING = b"event: conductor.closing\ndata: {}\n\n"


# A kind of condition, and its value.
Interest: TypeAlias = tuple[str, str]
EVERYTHING: Interest = ("", "")
SEQUENCE = attrgetter("sequence")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a subscriber wants. Everything given must match; what is empty matches anything."""

    task_id: str = ""
    project_id: str = ""
    types: frozenset[str] = frozenset()
    correlation_id: str = ""
    scope: task_pb2.Scope = field(default_factory=task_pb2.Scope)

    @property
    def key(self) -> Key | None:
        """The narrowest stream that holds all matches; None for the whole log."""
        if self.task_id:
            return "task", self.task_id
        return ("project", self.project_id) if self.project_id else None

    @property
    def interests(self) -> frozenset[Interest]:
        """What a subscriber is to be woken for: its narrowest condition."""
        if self.key is not None:
            return frozenset({self.key})
        if self.correlation_id:
            return frozenset({("correlation", self.correlation_id)})
        if self.scope.desktop_id:
            return frozenset({("desktop", self.scope.desktop_id)})
        return frozenset(("type", name) for name in self.types) or frozenset({EVERYTHING})

    def matches(self, event: event_pb2.Event) -> bool:
        """Tells whether an event is wanted."""
        return (
            (not self.task_id or event.task_id == self.task_id)
            and (not self.project_id or event.project_id == self.project_id)
            and (not self.types or event.type in self.types)
            and (not self.correlation_id or event.correlation_id == self.correlation_id)
            and all(getattr(event.scope, part.name) == value for part, value in self.scope.ListFields())
        )


class Bell:
    """Wakes one subscriber. Rung while nobody waits, it is heard at once by the next who does."""

    __slots__ = ("_rung", "_waiter", "queued", "quiet_until")

    def __init__(self) -> None:
        self.queued = False  # about to be rung
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None
        self.quiet_until = 0.0  # when a checkpoint is due (time.monotonic)

    def ring(self) -> None:
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def silence(self) -> None:
        """Forgets what was rung until now."""
        self._rung = False

    async def heard(self) -> None:
        """Waits until it rings, or has rung since it was silenced."""
        if not self._rung:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class Tail:
    """The newest events of the log, and a bell for each interest.

    What this process wrote comes from the store right after its commit; what others wrote is read when the store says
    that there is more.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: list[event_pb2.Event] = []
        self._bytes = 0
        self._behind = asyncio.Event()
        self._bells: defaultdict[Interest, set[Bell]] = defaultdict(set)
        self._ends: defaultdict[str, set[asyncio.Future[event_pb2.Event]]] = defaultdict(set)
        self._to_ring: deque[Bell] = deque()
        self._readers: list[Listener] = []
        self._follower: asyncio.Task[None] | None = None
        self.head = 0
        self.closed = False

    async def start(self) -> None:
        """Begins to follow the log from its present end."""
        self._store.on_commit(self._committed)
        _, self.head = await self._store.bounds()
        self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Ends every subscription with SHUTTING_DOWN."""
        self.closed = True
        if self._follower is not None:
            self._follower.cancel()
        for bells in self._bells.values():
            for bell in bells:
                bell.ring()
        for ends in self._ends.values():
            for end in ends:
                end.cancel()

    def on_read(self, reader: Listener) -> None:
        """Tells the reader of events that were read from the log, so that others may have written them."""
        self._readers.append(reader)

    def after(self, cursor: int) -> Page | None:
        """Returns the events behind a cursor; None when the tail does not reach back to it."""
        low = self._events[0].sequence - 1 if self._events else self.head
        if cursor < low:
            return None
        start = bisect_right(self._events, cursor, key=SEQUENCE)
        return Page(self._events[start:], max(self.head, cursor), low)

    @contextlib.contextmanager
    def bell(self, interests: Collection[Interest]) -> Iterator[Bell]:
        """Gives a bell that rings for every event of these interests."""
        bell = Bell()
        for interest in interests:
            self._bells[interest].add(bell)
        try:
            yield bell
        finally:
            for interest in interests:
                self._bells[interest].discard(bell)
                if not self._bells[interest]:
                    del self._bells[interest]

    @contextlib.contextmanager
    def end_of(self, task_id: str) -> Iterator[asyncio.Future[event_pb2.Event]]:
        """Gives what will be the last event of a task; cancelled when the tail is closed."""
        end: asyncio.Future[event_pb2.Event] = asyncio.get_running_loop().create_future()
        if self.closed:
            end.cancel()
        self._ends[task_id].add(end)
        try:
            yield end
        finally:
            self._ends[task_id].discard(end)
            if not self._ends[task_id]:
                del self._ends[task_id]

    def _committed(self, events: Sequence[event_pb2.Event]) -> None:
        if events and events[0].sequence == self.head + 1:
            self._take(events, events[-1].sequence)
        else:
            self._behind.set()

    async def _follow(self) -> None:
        while True:
            await self._behind.wait()
            self._behind.clear()
            try:
                await self._catch_up()
            except StoreUnavailable as error:
                log.error("the log cannot be read, subscribers wait: %s", error.cause)
                await asyncio.sleep(READ_AGAIN_S)
                self._behind.set()

    async def _catch_up(self) -> None:
        while (page := await self._store.read(self.head, PAGE)).events:
            # Some may have come directly while this page was read.
            events = [event for event in page.events if event.sequence > self.head]
            self._take(events, max(self.head, page.through))
            for reader in self._readers:
                reader(events)

    def _take(self, events: Sequence[event_pb2.Event], head: int) -> None:
        self._events.extend(events)
        self._bytes += sum(event.ByteSize() for event in events)
        surplus = max(0, len(self._events) - TAIL)
        dropped = sum(event.ByteSize() for event in self._events[:surplus])
        while self._bytes - dropped > TAIL_BYTES:
            dropped += self._events[surplus].ByteSize()
            surplus += 1
        del self._events[:surplus]
        self._bytes -= dropped
        self.head = head
        self._ring(events)

    def _ring(self, events: Sequence[event_pb2.Event]) -> None:
        for event in events:
            if event.type in TERMINAL_TYPES:
                for end in self._ends.get(event.task_id, ()):
                    if not end.done():
                        end.set_result(event)
        if not self._bells:
            return
        interests = {EVERYTHING}
        for event in events:
            interests |= {
                ("task", event.task_id),
                ("project", event.project_id),
                ("correlation", event.correlation_id),
                ("desktop", event.scope.desktop_id),
                ("type", event.type),
            }
        silent = not self._to_ring
        for interest in interests:
            for bell in self._bells.get(interest, ()):
                if not bell.queued:
                    bell.queued = True
                    self._to_ring.append(bell)
        if silent:
            self._ring_some(1)

    def _ring_some(self, most: int) -> None:
        """Rings a few bells at a time, so that a thousand subscribers do not come between a writer and its answer.

        The answer leaves some turns of the loop after the commit: the first turns ring one, two, four.
        """
        for _ in range(min(most, len(self._to_ring))):
            bell = self._to_ring.popleft()
            bell.queued = False
            bell.ring()
        if self._to_ring:
            asyncio.get_running_loop().call_soon(self._ring_some, min(2 * most, RINGS))


class Subscriptions:
    """Opens cursors over the log.

    Args:
        heartbeat: seconds of quiet after which a checkpoint goes out.
        limit: streams open at once; more are refused with OVER_CAPACITY.
    """

    def __init__(self, store: Store, tail: Tail, heartbeat: float, limit: int) -> None:
        self._store = store
        self._tail = tail
        self._heartbeat = heartbeat
        self._limit = limit
        self._open: set[Bell] = set()
        self._pulse: asyncio.TimerHandle | None = None

    async def open(
        self, wanted: Filter, after: int, *, log_id: str = "", first: event_pb2.Event | None = None
    ) -> AsyncIterator[event_pb2.Event]:
        """Returns every wanted event behind a position, in order, for ever, and checkpoints when it is quiet.

        Args:
            log_id: of the log that `after` belongs to; empty when the caller does not know.
            first: comes before all others.

        Raises:
            Refusal: CURSOR_OUT_OF_RANGE or OVER_CAPACITY at once; the iterator, SHUTTING_DOWN when the service stops,
                and CURSOR_OUT_OF_RANGE when what it has to read was pruned.
        """
        if log_id not in ("", self._store.log_id):
            text = "The cursor is of another log. Read the state and go on from its as_of_sequence."
            raise Refusal(Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE, text, log_id=self._store.log_id)
        await self._refuse_out_of_range(wanted, after)
        if first is not None:
            first.log_id = self._store.log_id
        if len(self._open) >= self._limit:
            text = f"{self._limit} streams are open already; subscribe again when some have ended."
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=self._limit)
        return self._read(wanted, after, first)

    async def end_of(self, task: task_pb2.Task, seconds: float) -> event_pb2.Event | None:
        """Waits for the last event of a task, at most `seconds`, and no longer than the service runs.

        Args:
            task: as it was when its last event had not been seen.

        Returns:
            The event; None when it did not come, or came too long ago to be in memory.
        """
        with self._tail.end_of(task.task_id) as end:
            page = self._tail.after(task.as_of_sequence)
            for event in page.events if page is not None else ():
                if event.task_id == task.task_id and event.type in TERMINAL_TYPES:
                    return event
            if page is not None:
                await asyncio.wait({end}, timeout=seconds)
            return end.result() if end.done() and not end.cancelled() else None

    async def checkpoint(self) -> event_pb2.Event:
        """Returns a checkpoint at the log's end."""
        _, head = await self._store.bounds()
        return self._checkpoint(head)

    def _checkpoint(self, sequence: int) -> event_pb2.Event:
        return event_pb2.Event(type=CHECKPOINT, sequence=sequence, log_id=self._store.log_id)

    async def _read(self, wanted: Filter, cursor: int, first: event_pb2.Event | None) -> AsyncIterator[event_pb2.Event]:
        with self._tail.bell(wanted.interests) as bell, self._beating(bell):
            if first is not None:
                yield first
            while True:
                bell.silence()  # before reading: what is committed from here on rings again
                self._refuse_when_closed()
                page = self._tail.after(cursor) or await self._read_store(wanted, cursor)
                for event in page.events:
                    if wanted.matches(event):
                        yield event
                        bell.quiet_until = time.monotonic() + self._heartbeat
                cursor = page.through
                if time.monotonic() >= bell.quiet_until:
                    yield self._checkpoint(cursor)
                    bell.quiet_until = time.monotonic() + self._heartbeat
                elif cursor >= self._tail.head:
                    await bell.heard()

    async def _read_store(self, wanted: Filter, cursor: int) -> Page:
        page = await self._store.read(cursor, PAGE, wanted.key)
        if cursor < page.low and not await self._is_whole(wanted, page):
            raise _out_of_range(cursor, page.low, self._tail.head)  # pruned while this reader was behind
        return page

    async def _is_whole(self, wanted: Filter, page: Page) -> bool:
        """Tells whether nothing can be missing in a page from below `low`: of a task there is all, or nothing."""
        if not wanted.task_id:
            return False
        return bool(page.events) or await self._store.row(("task", wanted.task_id)) is not None

    @contextlib.contextmanager
    def _beating(self, bell: Bell) -> Iterator[None]:
        """Wakes a subscriber also when it has been quiet for too long. One timer serves them all."""
        self._open.add(bell)
        bell.quiet_until = time.monotonic() + self._heartbeat
        if self._pulse is None:
            self._beat()
        try:
            yield
        finally:
            self._open.discard(bell)

    def _beat(self) -> None:
        now = time.monotonic()
        for bell in self._open:
            if now >= bell.quiet_until:
                bell.ring()
        pause = self._heartbeat / BEATS
        self._pulse = asyncio.get_running_loop().call_later(pause, self._beat) if self._open else None

    async def _refuse_out_of_range(self, wanted: Filter, after: int) -> None:
        low, head = await self._store.bounds()
        if not (low <= after or wanted.task_id) or after > head:
            raise _out_of_range(after, low, head)

    def _refuse_when_closed(self) -> None:
        if self._tail.closed:
            text = "The service is stopping; subscribe again after the last sequence."
            raise Refusal(Reason.ERROR_REASON_SHUTTING_DOWN, text)


def _out_of_range(after: int, low: int, head: int) -> Refusal:
    text = (
        f"The log holds what is behind {low} up to {head}, and {after} is not there. Read the state and go on from its"
        " as_of_sequence."
    )
    return Refusal(Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE, text, after_sequence=after, low=low, head=head)


def sse(event: event_pb2.Event) -> bytes:
    """Returns an event as a Server-Sent Event (WHATWG HTML, 9.2). A checkpoint is a comment that moves the last id."""
    if event.type == CHECKPOINT:
        return f": {CHECKPOINT}\nid: {event.sequence}\n\n".encode()
    data = json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None, ensure_ascii=False)
    return f"id: {event.sequence}\nevent: {event.type}\ndata: {data}\n\n".encode()
