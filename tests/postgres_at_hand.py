"""PostgreSQL servers to use, and to break."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import asyncpg
import pytest

from ops.postgres import Postgres, children
from services.conductor.store.postgres import PostgresStore
from tests import databases
from tests.conftest import until


@pytest.fixture
async def url() -> str:
    return await databases.fresh()


@pytest.fixture
async def stores(url: str) -> AsyncIterator[Sequence[PostgresStore]]:
    """Three replicas' stores on one database."""
    opened = await asyncio.gather(*(PostgresStore.open(url) for _ in range(3)))  # which make its schema together
    yield opened
    await asyncio.gather(*(store.close() for store in opened))


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that a test may break. It is started anew for each that asks."""
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    asyncio.run(server.kill())


@pytest.fixture
async def server(own_server: Postgres) -> AsyncIterator[Postgres]:
    await own_server.start()
    yield own_server
    for pid in (own_server.pid, *children(own_server.pid)) if own_server.running else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(url)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    database = await asyncpg.connect(url)
    try:
        yield database
    finally:
        await database.close()


async def waiting(url: str, count: int) -> None:
    """Waits until so many statements wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    async def stuck() -> bool:
        return int(await databases.ask(url, query)) >= count

    await until(stuck)


# ---- the bell ----


class Heard:
    """What a store's listener heard: sequences of its own events, () for those of others."""

    def __init__(self, store: PostgresStore) -> None:
        self.rings: list[list[int]] = []
        store.on_commit(lambda events: self.rings.append([event.sequence for event in events]))
