"""Every engine of the store, and what it is asked to keep."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import event_pb2

from services.conductor.store.base import (
    Append,
    Key,
    Listing,
    RequestKey,
    Store,
    StoreUnavailable,
    View,
)
from services.conductor.store.engine import open_store
from tests import databases
from tests.conftest import every_event
from tests.memory_store import MemoryStore


async def a_memory_store(_: Path) -> Store:
    return MemoryStore()


async def a_sqlite_store(folder: Path) -> Store:
    return await open_store(folder / "log.db")


async def a_postgres_store(_: Path) -> Store:
    return await open_store(await databases.fresh())


STORES: dict[str, Callable[[Path], Awaitable[Store]]] = {
    "sqlite": a_sqlite_store,
    "memory": a_memory_store,
    "postgres": a_postgres_store,
}
QUEUED, DONE = 1, 4
LONG = 60.0  # a lease that does not run out in a test


def an_append(name: str = "t-1", version: int = 0, *, count: int = 1, kind: Any = "task", **fields: Any) -> Append:
    """Builds an append of `count` events. `fields` are those of Append and View."""
    of_view = {"status": QUEUED, "ended_at": None, "project_id": "", "desktop_id": "", "created_at": 1}
    view = View(state=f"{name}@{version + count}".encode(), **{k: fields.pop(k, v) for k, v in of_view.items()})
    events = [event_pb2.Event(type="t", event_id=f"{name}/{version + i}") for i in range(1, count + 1)]
    epoch = 1 if kind == "task" else 0
    return replace(Append((kind, name), version, epoch, "me" if epoch else None, events, view), **fields)


def a_key(name: str, fingerprint: bytes = b"body", covers: int = 1) -> RequestKey:
    return RequestKey(name, fingerprint, b"first answer", 2**62, covers)


async def log_of(store: Store, key: Key | None = None) -> list[event_pb2.Event]:
    return await every_event(store, key)


async def picture(store: Store) -> tuple[Any, ...]:
    """Returns all there is to see, to tell whether anything changed."""
    listings = [await store.list(Listing(kind, limit=1000)) for kind in ("task", "project")]
    return await log_of(store), await store.bounds(), listings, await store.answer("r-1"), await store.answer("r-2")


def check_gapless(events: Sequence[event_pb2.Event]) -> None:
    """Positions run from 1 without a gap, and so does each stream's own count, in the same order."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    streams: dict[str, list[int]] = {}
    for event in events:
        streams.setdefault(event.event_id.partition("/")[0], []).append(event.stream_sequence)
    assert all(counts == list(range(1, len(counts) + 1)) for counts in streams.values())


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store = await STORES[request.param](tmp_path)
    yield store
    with contextlib.suppress(StoreUnavailable):  # the test has closed it
        await store.close()
