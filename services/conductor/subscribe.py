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
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from conductor.v1 import event_pb2, task_pb2
from google.protobuf import json_format

from services.common.errors import Reason, Refusal
from services.conductor.events import CHECKPOINT
from services.conductor.store.base import Key, Page, Store, StoreUnavailable

log = logging.getLogger(__name__)

PAGE = 1000  # events read from the store at once
READ_AGAIN_S = 0.5  # pause after the log could not be read
TAIL = 4096  # newest events kept in memory …
TAIL_BYTES = 32 * 1024 * 1024  # … and their size
RETRY_MS = 2000  # how soon a browser reconnects
SSE_OPEN = f"retry: {RETRY_MS}\n\n".encode()
SSE_CLOSING = b"event: conductor.closing\ndata: {}\n\n"


# A kind of condition, and its value.
Interest: TypeAlias = tuple[str, str]
EVERYTHING: Interest = ("", "")


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


class Tail:
    """The newest events of the log, and a bell for each interest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: list[event_pb2.Event] = []
        self._committed = asyncio.Event()
        self._bytes = 0
        self._bells: defaultdict[Interest, set[asyncio.Event]] = defaultdict(set)
        self._reader: asyncio.Task[None] | None = None
        self.head = 0
        self.closed = False

    async def start(self) -> None:
        """Begins to follow the log from its present end."""
        _, self.head = await self._store.bounds()
        self._store.on_commit(self._committed.set)
        self._reader = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Ends every subscription with SHUTTING_DOWN."""
        self.closed = True
        if self._reader is not None:
            self._reader.cancel()
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    def after(self, cursor: int) -> Page | None:
        """Returns the events behind a cursor; None when the tail does not reach back to it."""
        low = self._events[0].sequence - 1 if self._events else self.head
        if cursor < low:
            return None
        start = bisect_right(self._events, cursor, key=lambda event: event.sequence)
        return Page(self._events[start:], max(self.head, cursor))

    @contextlib.contextmanager
    def bell(self, interests: Collection[Interest]) -> Iterator[asyncio.Event]:
        """Gives a bell that rings for every event of these interests."""
        bell = asyncio.Event()
        for interest in interests:
            self._bells[interest].add(bell)
        try:
            yield bell
        finally:
            for interest in interests:
                self._bells[interest].discard(bell)
                if not self._bells[interest]:
                    del self._bells[interest]

    async def _follow(self) -> None:
        while True:
            await self._committed.wait()
            self._committed.clear()
            try:
                await self._catch_up()
            except StoreUnavailable as error:
                log.error("the log cannot be read, subscribers wait: %s", error.cause)
                await asyncio.sleep(READ_AGAIN_S)
                self._committed.set()

    async def _catch_up(self) -> None:
        while (page := await self._store.read(self.head, PAGE)).events:
            self._keep(page.events)
            self.head = page.through
            self._ring(page.events)

    def _keep(self, events: Sequence[event_pb2.Event]) -> None:
        self._events.extend(events)
        self._bytes += sum(event.ByteSize() for event in events)
        surplus = max(0, len(self._events) - TAIL)
        dropped = sum(event.ByteSize() for event in self._events[:surplus])
        while self._bytes - dropped > TAIL_BYTES:
            dropped += self._events[surplus].ByteSize()
            surplus += 1
        del self._events[:surplus]
        self._bytes -= dropped

    def _ring(self, events: Sequence[event_pb2.Event]) -> None:
        interests = {EVERYTHING}
        for event in events:
            interests |= {
                ("task", event.task_id),
                ("project", event.project_id),
                ("correlation", event.correlation_id),
                ("desktop", event.scope.desktop_id),
                ("type", event.type),
            }
        for interest in interests:
            for bell in self._bells.get(interest, ()):
                bell.set()


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
        self._open = 0

    async def open(self, wanted: Filter, after: int) -> AsyncIterator[event_pb2.Event]:
        """Returns every wanted event behind a position, in order, for ever, and checkpoints when it is quiet.

        Raises:
            Refusal: CURSOR_OUT_OF_RANGE or OVER_CAPACITY at once; the iterator, SHUTTING_DOWN when the service stops.
        """
        await self._refuse_out_of_range(after)
        if self._open >= self._limit:
            text = f"{self._limit} streams are open already; subscribe again when some have ended."
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=self._limit)
        return self._counted(wanted, after)

    async def _counted(self, wanted: Filter, after: int) -> AsyncIterator[event_pb2.Event]:
        self._open += 1
        try:
            async for event in self._read(wanted, after):
                yield event
        finally:
            self._open -= 1

    async def first(self, wanted: Filter, after: int, seconds: float) -> None:
        """Waits for a wanted event behind a position, at most `seconds`, and no longer than the service runs."""
        with contextlib.suppress(TimeoutError, Refusal):
            async with asyncio.timeout(seconds):
                async for event in self._read(wanted, after):
                    if event.type != CHECKPOINT:
                        return

    async def checkpoint(self) -> event_pb2.Event:
        """Returns a checkpoint at the log's end."""
        _, head = await self._store.bounds()
        return event_pb2.Event(type=CHECKPOINT, sequence=head)

    async def _read(self, wanted: Filter, cursor: int) -> AsyncIterator[event_pb2.Event]:
        quiet_until = time.monotonic() + self._heartbeat
        with self._tail.bell(wanted.interests) as bell:
            while True:
                bell.clear()  # before reading: what is committed from here on rings again
                self._refuse_when_closed()
                page = self._tail.after(cursor) or await self._store.read(cursor, PAGE, wanted.key)
                for event in page.events:
                    if wanted.matches(event):
                        yield event
                        quiet_until = time.monotonic() + self._heartbeat
                cursor = page.through
                quiet = quiet_until - time.monotonic()
                if cursor < self._tail.head and quiet > 0:
                    continue  # in the middle of a replay
                if cursor < self._tail.head or not await _rings(bell, quiet):
                    yield event_pb2.Event(type=CHECKPOINT, sequence=cursor)
                    quiet_until = time.monotonic() + self._heartbeat

    async def _refuse_out_of_range(self, after: int) -> None:
        low, head = await self._store.bounds()
        if not low <= after <= head:
            raise Refusal(
                Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE,
                f"The log holds what is behind {low} up to {head}, and {after} is not there. Read the state and go on"
                " from its as_of_sequence.",
                after_sequence=after,
                low=low,
                head=head,
            )

    def _refuse_when_closed(self) -> None:
        if self._tail.closed:
            text = "The service is stopping; subscribe again after the last sequence."
            raise Refusal(Reason.ERROR_REASON_SHUTTING_DOWN, text)


async def _rings(bell: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await bell.wait()
    except TimeoutError:
        return False
    return True


def sse(event: event_pb2.Event) -> bytes:
    """Returns an event as a Server-Sent Event (WHATWG HTML, 9.2). A checkpoint is a comment that moves the last id."""
    if event.type == CHECKPOINT:
        return f": {CHECKPOINT}\nid: {event.sequence}\n\n".encode()
    data = json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None, ensure_ascii=False)
    return f"id: {event.sequence}\nevent: {event.type}\ndata: {data}\n\n".encode()
