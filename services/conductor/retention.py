"""Removes finished work that nobody keeps: a bounded background job, in transactions so small that writers hardly wait.

Only tasks that have ended go, each with all its events. Projects stay, and so do the files below the reports root:
reports and artefacts alike.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from services.conductor.protocol import SECOND
from services.conductor.store.base import Store, StoreUnavailable

log = logging.getLogger(__name__)

ROUND_S = 60.0  # pause between rounds, give or take half; also the longest a round lasts
SMALLEST, LARGEST = 10, 200  # tasks in one transaction, by how long the last one took
TRANSACTION_S = 0.01  # what a transaction shall take: writers wait for it
REST = 3.0  # pause after a transaction, by what it took: writers have at least three quarters of the time


class Ended(Protocol):
    """Who knows when tasks ended: a Store, for one."""

    async def ended_before(self, newest: int) -> int:
        """See Store.ended_before."""


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept of the tasks that have ended: both must hold. None means no limit.

    Attributes:
        seconds: for how long after their end.
        tasks: how many, the youngest; more when several ended in the same nanosecond.
    """

    seconds: float | None = None
    tasks: int | None = None

    def __str__(self) -> str:
        limits = [f"for {self.seconds:g} s"] if self.seconds is not None else []
        limits += [f"if they are among the youngest {self.tasks}"] if self.tasks is not None else []
        return " and ".join(limits) or "for ever"

    async def cutoff(self, store: Ended, now: int) -> int:
        """Returns the time before which a task must have ended to go. Nanoseconds; 0: none goes."""
        by_age = now - round(min(self.seconds * SECOND, now)) if self.seconds is not None else 0
        by_count = await store.ended_before(self.tasks - 1) if self.tasks is not None else 0
        return max(by_age, by_count)


async def sweep(store: Store, before: int, seconds: float = float("inf")) -> AsyncIterator[int]:
    """Removes tasks that ended before a time (nanoseconds), until none is left or `seconds` are over.

    Yields how many went after each transaction. Raises StoreUnavailable; what was removed until then is gone.
    """
    limit, deadline = SMALLEST, time.monotonic() + seconds
    while (began := time.monotonic()) < deadline:
        gone = await store.prune(before, limit)
        if not gone:
            return
        yield gone
        took = time.monotonic() - began
        limit = min(max(int(limit * TRANSACTION_S / took), SMALLEST), LARGEST)
        await asyncio.sleep(took * REST)


class Retention:
    """Sweeps now and then. Every replica does; they find the less to do.

    Args:
        clock: wall time in nanoseconds.
        every: seconds between rounds, see ROUND_S.
    """

    def __init__(self, store: Store, keep: Keep, clock: Callable[[], int], every: float = ROUND_S) -> None:
        self._store = store
        self._keep = keep
        self._clock = clock
        self._every = every
        self._started = (0, 0.0)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, if there is any limit to what is kept."""
        if self._keep == Keep():
            return
        log.info("ended tasks are kept %s", self._keep)
        self._started = (self._clock(), time.monotonic())
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends. A transaction under way is finished by the store."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            # Replicas started together shall not sweep together.
            await asyncio.sleep(self._every * random.uniform(0.5, 1.5))  # noqa: S311  nothing secret hangs on it
            while await self._round():
                pass

    async def _round(self) -> bool:
        """Sweeps once. Tells whether its time was over before everything was gone."""
        removed, began = 0, time.monotonic()
        try:
            before = await self._keep.cutoff(self._store, self._now())
            async for gone in sweep(self._store, before, self._every):
                removed += gone
        except StoreUnavailable as error:
            log.warning("ended tasks cannot be removed now, the next round tries again: %s", error.cause)
            return False
        finally:
            if removed:
                log.info("ended tasks removed: %d", removed)
        return removed > 0 and time.monotonic() - began >= self._every

    def _now(self) -> int:
        """Returns the wall time, but no later than the time that really passed since the start allows.

        A clock that is set forward by mistake would otherwise take everything with it.
        """
        wall, monotonic = self._started
        return min(self._clock(), wall + round((time.monotonic() - monotonic) * SECOND))
