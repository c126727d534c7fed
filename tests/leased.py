"""Replicas that hold leases in a store that can be made to hang."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.conductor.lease import Lease
from services.conductor.store.base import Store, StoreUnavailable
from services.conductor.store.engine import open_store
from tests import databases
from tests.conftest import numbered
from tests.memory_store import MemoryStore
from tests.stores import an_append

SECONDS = 1.0  # of a lease here
LONG = 60.0  # a lease that does not run out in a test
CALLS = frozenset({"join", "beat", "claim", "leave", "replicas"})


class Line:
    """The way to a store. It can be made to hang or to fail, before or after the store did what it was asked."""

    def __init__(self, real: Store) -> None:
        self._real = real
        self.up = asyncio.Event()
        self.up.set()
        self.hang: frozenset[str] = frozenset()
        self.hang_after: frozenset[str] = frozenset()
        self.fail_after: frozenset[str] = frozenset()
        self.passing = 0  # how many calls still come through
        self.called: list[str] = []

    def down(self, *calls: str) -> None:
        self.up.clear()
        self.hang = frozenset(calls)

    def mend(self) -> None:
        self.hang = self.hang_after = self.fail_after = frozenset()
        self.up.set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return self._through(name, found) if name in CALLS else found

    def _through(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def through(*args: Any) -> Any:
            self.called.append(name)
            if name in self.hang:
                self.passing -= 1
                if self.passing < 0:
                    await self.up.wait()
            answer = await call(*args)
            if name in self.hang_after:
                await self.up.wait()
            if name in self.fail_after:
                raise StoreUnavailable("ConnectionDoesNotExistError: connection was closed")
            return answer

        return through


class Worker:
    """The holder of a lease: remembers what it was given, and when it lost everything."""

    def __init__(self) -> None:
        self.room = 100
        self.tasks: list[str] = []
        self.taken: list[str] = []
        self.losses: list[float] = []

    def took(self, tasks: Sequence[str]) -> None:
        self.tasks += tasks
        self.taken += tasks

    def lost(self) -> None:
        self.losses.append(time.monotonic())
        self.tasks.clear()


class Replica:
    """A lease with its holder, over a line of its own to a store."""

    def __init__(self, store: Store, name: str, seconds: float = SECONDS, gone: Callable[[str], bool] = bool) -> None:
        self.line, self.worker = Line(store), Worker()
        self.lease = Lease(self.line, seconds, numbered(name), gone)

    async def start(self) -> "Replica":
        await self.lease.start(self.worker)
        return self


def never(_: str) -> bool:
    return False


async def an_orphan(store: Store, name: str = "t-1") -> None:
    """Leaves an unfinished task whose owner nobody has heard of for ever."""
    await store.append(an_append(name, owner="nobody"))


async def in_memory() -> list[Store]:
    return [MemoryStore()] * 2


async def in_postgres() -> list[Store]:
    where = await databases.fresh()
    return [await open_store(where), await open_store(where)]


@pytest.fixture(params=[in_memory, in_postgres], ids=["memory", "postgres"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[list[Store]]:
    """Two ways to one log, as two replicas have them."""
    pair = await request.param()
    yield pair
    for store in pair:
        await store.close()


@pytest.fixture
async def memory() -> Store:
    """A log for what does not depend on the engine."""
    return MemoryStore()


@asynccontextmanager
async def replica(store: Store, name: str, seconds: float = SECONDS) -> AsyncIterator[Replica]:
    started = await Replica(store, name, seconds, never).start()
    try:
        yield started
    finally:
        started.line.mend()
        await started.lease.stop()
