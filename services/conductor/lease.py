"""This replica's right to work on its tasks: renewed while it can be, given up when it cannot.

A replica owns tasks under a name that no other process ever had. As long as it renews its lease, nobody else takes
them. When it cannot prove that it did, it stops working on them before anybody may take them, and comes back under a
new name.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from services.conductor.store.base import Store, StoreUnavailable

log = logging.getLogger(__name__)

BEATS = 10  # renewals in the time of one lease, so that several may fail …
MAX_PAUSE_S = 0.5  # … and how long a dead replica's tasks wait for somebody to look
SAFE = 0.9  # part of a lease after which its holder stops, well before anybody may take over
LEAVE_S = 2.0  # how long a stop waits for the store
CLAIM = 500  # tasks taken over at once

# Goes on while the machine sleeps, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Holder(Protocol):
    """Works on the tasks of a lease."""

    @property
    def room(self) -> int:
        """How many more tasks it can take."""

    def took(self, tasks: Sequence[str]) -> None:
        """Is told of unfinished tasks that are its own now."""

    def lost(self) -> None:
        """Is told to stop all work: its tasks may be another's from here on."""


class Lease:
    """Holds a lease for as long as the store can be reached.

    Args:
        seconds: how long it lasts without renewal.
        new_name: gives a name that nobody ever had.
        is_gone: tells of a name whether its process is known to have ended.
    """

    def __init__(
        self, store: Store, seconds: float, new_name: Callable[[], str], is_gone: Callable[[str], bool]
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._new_name = new_name
        self._is_gone = is_gone
        self._until = 0.0
        self._holder: Holder
        self._keeper: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None
        self._joined = False
        self._claiming = False  # a claim was begun of which the outcome is not known
        self.name = ""

    @property
    def held(self) -> bool:
        """Whether nobody else can have taken what this replica owns."""
        return self._joined and (self._store.exclusive or _now() < self._until)

    async def start(self, holder: Holder) -> int:
        """Joins, takes over what nobody works on, and goes on doing so. Returns how many tasks that were."""
        self._holder = holder
        taken = await self._round()
        self._keeper = asyncio.create_task(self._keep())
        return taken

    def abandon(self) -> None:
        """Renews it no more. What it owns is another's when it has run out."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._end is not None:
            self._end.cancel()
        self._joined = False

    async def stop(self) -> None:
        """Hands all tasks back; other replicas take them the next time they look."""
        self.abandon()
        with contextlib.suppress(StoreUnavailable, TimeoutError):  # then others take them when the lease has run out
            async with asyncio.timeout(LEAVE_S):
                await self._store.leave(self.name)

    async def _keep(self) -> None:
        pause = min(MAX_PAUSE_S, self._seconds / BEATS)
        # A store of which nobody else takes anything may be slow: what it hands over must not be missed.
        limit = None if self._store.exclusive else self._seconds
        while True:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(limit):
                    await self._round()
            except (StoreUnavailable, TimeoutError) as error:
                log.warning("the lease was not renewed: %s", getattr(error, "cause", "the store does not answer"))
                if self._claiming:
                    self._give_up()  # whether tasks were taken is not known, so nobody would work on them

    async def _round(self) -> int:
        if self._joined:
            await self._renew()
        if not self._joined:
            await self._join()
        await self._bury()
        return await self._claim()

    async def _renew(self) -> None:
        asked = _now()
        # A renewal that comes too late does not count: work may have been stopped for want of it.
        if await self._store.beat(self.name) and self.held:
            self._prolong(asked)
        else:
            self._give_up()

    async def _join(self) -> None:
        # Only who has joined may own anything: until then new tasks carry the old name, and anybody takes them.
        name, asked = self._new_name(), _now()
        await self._store.join(name)
        self.name, self._joined, self._claiming = name, True, False
        self._prolong(asked)

    def _prolong(self, asked: float) -> None:
        self._until = asked + self._seconds * SAFE
        if not self._store.exclusive:
            self._watch()

    def _watch(self) -> None:
        """Gives the lease up in the moment it runs out, whatever the store is doing."""
        if self._end is not None:
            self._end.cancel()
        if not self.held:
            return self._give_up()
        self._end = asyncio.get_running_loop().call_later(self._until - _now(), self._watch)
        return None

    def _give_up(self) -> None:
        if self._joined and not self._store.exclusive:
            log.error("the lease is given up: all work is stopped and taken up anew")
            self._joined = False
            self._holder.lost()

    async def _bury(self) -> None:
        """Ends the leases of processes that are known to be gone; their tasks need not wait."""
        for name in await self._store.replicas():
            if self._is_gone(name):
                log.info("replica %s is gone", name)
                await self._store.leave(name)

    async def _claim(self) -> int:
        taken = 0
        while (limit := min(CLAIM, self._holder.room)) > 0:
            self._claiming = True
            tasks = await self._store.claim(self.name, self._seconds, limit)
            self._claiming = False
            if not self._joined:
                break  # the answer came too late: they are taken under a name that is given up
            if tasks:
                log.info("%d unfinished tasks taken over", len(tasks))
                self._holder.took(tasks)
            taken += len(tasks)
            if len(tasks) < limit:
                break
        return taken


def _now() -> float:
    return time.clock_gettime(_CLOCK)
