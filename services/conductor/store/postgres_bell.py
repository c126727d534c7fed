"""Who wants to know of commits hears of this process's own, with their events, and of others' commits, without."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from conductor.v1 import event_pb2

from services.conductor.store import postgres_sql as sql
from services.conductor.store.base import Listener
from services.conductor.store.postgres_session import ERRORS, connect

log = logging.getLogger(__name__)

LOOK_S = 1.0  # how often the head is looked at, for what NOTIFY did not say
ANSWER_S = 5.0  # after which a connection that does not answer is opened anew


class Bell:
    """Listens to the channel of a store, over a connection that it keeps open.

    Args:
        head: position of the newest event known.
        is_own: tells whether a server process is one whose commits are told by `committed`.
    """

    def __init__(self, url: str, channel: str, head: int, is_own: Callable[[int], bool]) -> None:
        self._url = url
        self._channel = channel
        self._head = head
        self._is_own = is_own
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._connection: Any = None

    async def start(self) -> None:
        """Begins to listen. Raises one of the engine's errors when it cannot now."""
        await self._connect()
        self._task = asyncio.create_task(self._listen())

    def on_ring(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def committed(self, events: Sequence[event_pb2.Event]) -> None:
        """Tells the events of a batch of this process's own."""
        first, last = events[0].sequence, events[-1].sequence
        self._head = max(self._head, last)
        # After a broken connection a batch may have been kept in parts: their events are in the log, and not in a row.
        self._ring(events if last - first + 1 == len(events) else ())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop()

    async def _listen(self) -> None:
        while True:
            try:
                if self._connection is None:
                    await self._connect()
                    self._ring(())  # others may have written while nobody listened
                await self._look()
            except ERRORS as error:
                log.debug("not listening: %s", type(error).__name__)
                self._drop()
            await asyncio.sleep(LOOK_S)

    async def _connect(self) -> None:
        self._connection = await connect(self._url)
        await self._connection.add_listener(self._channel, self._heard)

    async def _look(self) -> None:
        async with asyncio.timeout(ANSWER_S):
            self._saw(await self._connection.fetchval(sql.HEAD))

    def _heard(self, _: Any, pid: int, __: str, head: object) -> None:
        if not self._is_own(pid):
            self._saw(int(str(head)))

    def _saw(self, head: int) -> None:
        if head > self._head:
            self._head = head
            self._ring(())

    def _ring(self, events: Sequence[event_pb2.Event]) -> None:
        for listener in self._listeners:
            listener(events)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
