"""The power fails under SQLite at any moment: nothing acknowledged is lost, and the log is whole.

The counter-proof with synchronous=NORMAL shows that these tests can fail, and why FULL is not negotiable.
"""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import apsw
import pytest
from conductor.v1 import event_pb2

from services.common.config import ConfigError
from services.conductor.store import sqlite
from services.conductor.store.base import Append, Appended, Listing, RequestKey, View
from services.conductor.store.sqlite import SqliteStore
from tests.conftest import every_event
from tests.power_cut import Disk, Platter, luck_of, plugged_in

WRITERS = 64
CUTS = 4  # one after the other on one log
MAX_OPERATIONS = 5000  # of the disk, until the cut comes
EVENTS = 3  # of one append
WAIT_S = 30

Acknowledged = dict[str, int]  # by task, the newest version


def an_append(name: str, version: int) -> Append:
    after = version + EVENTS
    events = [event_pb2.Event(type="t", event_id=f"{name}/{version + i}") for i in range(1, EVENTS + 1)]
    view = View(status=1, ended_at=None, project_id="", desktop_id="", created_at=1, state=f"{name}@{after}".encode())
    request = RequestKey(f"{name}@{after}", b"body", b"answer", 2**62, EVENTS)
    return Append(("task", name), version, 1, "me", events, view, request)


async def write_until_the_cut(path: Path, luck: random.Random, kept: float, pragmas: Sequence[str]) -> Acknowledged:
    """Lets 64 writers append until the power fails. Returns what had been acknowledged by then."""
    newest: Acknowledged = {}
    witnessed: Acknowledged = {}
    disk = Disk(luck.randint(1, MAX_OPERATIONS), luck, kept, lambda: witnessed.update(newest))
    with plugged_in(disk):
        store = SqliteStore(path)
        for pragma in pragmas:
            store._connection.execute(f"PRAGMA {pragma}").fetchall()

        async def write(name: str) -> None:
            version = (await store.stream(("task", name))).version
            while not disk.off:
                outcome = await store.append(an_append(name, version))
                assert isinstance(outcome, Appended)
                newest[name] = version = outcome.version

        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*(write(f"w-{i}") for i in range(WRITERS)))
        await store.close()
    disk.leave()
    return witnessed


async def whole(path: Path) -> Acknowledged:
    """Opens the log on the real disk, checks all that must hold of it, and returns each task's version."""
    store = SqliteStore(path)
    try:
        assert store._connection.pragma("integrity_check") == "ok"
        events = await every_event(store)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert await store.bounds() == (0, len(events))
        versions: Acknowledged = {}
        for event in events:
            name = event.event_id.partition("/")[0]
            assert event.stream_sequence == versions.get(name, 0) + 1
            versions[name] = event.stream_sequence
        rows = await store.list(Listing("task", limit=10_000))
        assert {row.id: row.state for row in rows} == {name: f"{name}@{v}".encode() for name, v in versions.items()}
        for name, version in versions.items():
            assert await store.answer(f"{name}@{version}") is not None
        return versions
    finally:
        await store.close()


def lost(acknowledged: Acknowledged, kept: Acknowledged) -> int:
    """How many acknowledged appends are not in the log."""
    return sum(max(0, version - kept.get(name, 0)) for name, version in acknowledged.items()) // EVENTS


# Small checkpoints: the power then also fails in the middle of one, and after one.
@pytest.mark.parametrize("checkpoint", ["wal_autocheckpoint=4000", "wal_autocheckpoint=40"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
async def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path, kept: float, checkpoint: str) -> None:
    path, luck = tmp_path / "log.db", luck_of((kept, checkpoint))
    appends = 0
    for _ in range(CUTS):
        acknowledged = await write_until_the_cut(path, luck, kept, [checkpoint])
        versions = await whole(path)
        assert lost(acknowledged, versions) == 0
        appends += sum(acknowledged.values()) // EVENTS
    assert appends > WRITERS, "the power failed before there was anything to lose"


async def test_without_full_synchronous_acknowledged_appends_are_lost(tmp_path: Path) -> None:
    missing = 0
    for seed in range(3):
        path = tmp_path / f"{seed}.db"
        acknowledged = await write_until_the_cut(path, luck_of(seed), 0.0, ["synchronous=NORMAL"])
        missing += lost(acknowledged, await whole(path))
    assert missing > 0


def test_a_store_that_is_not_fully_synchronous_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PRAGMAS", ("journal_mode=WAL", "synchronous=NORMAL"))

    async def open_it() -> None:
        SqliteStore(tmp_path / "log.db")

    with pytest.raises(ConfigError):
        asyncio.run(open_it())


def test_the_disk_forgets_what_was_not_synced_and_tears_at_sectors(tmp_path: Path) -> None:
    platter = Platter()
    platter.changes.append((0, b"a" * 1000))
    platter.sync()
    platter.changes += [(600, b"b" * 1000), (200, None)]
    assert platter.left(luck_of(0), 0.0) == b"a" * 1000
    assert platter.left(luck_of(0), 1.0) == b"a" * 200
    torn = {platter.left(luck_of(seed), 0.5) for seed in range(64)}
    assert b"a" * 600 + b"b" * 424 in torn  # the first piece only, up to the border of its sector
    assert b"a" * 1000 + bytes(24) + b"b" * 512 + b"b" * 64 in torn  # the first piece lost, the others kept
    with plugged_in(Disk(10**9, luck_of(0), 0.0, lambda: None)) as disk:
        connection = apsw.Connection(str(tmp_path / "x.db"))
        connection.execute("PRAGMA synchronous=OFF; CREATE TABLE t(a)")
        connection.close()
    assert disk.operations > 0 and not disk.off
    disk.cut()
    disk.leave()
    assert (tmp_path / "x.db").read_bytes() == b""
