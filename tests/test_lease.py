"""The promises of a lease: held while it is renewed, given up before anybody else may take what it covers."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.conductor import lease
from services.conductor.store.base import Store
from services.conductor.store.sqlite import SqliteStore
from services.conductor.whereabouts import is_gone, name_here
from tests.conftest import until
from tests.leased import CALLS, LONG, SECONDS, Replica, an_orphan, memory, replica, stores
from tests.stores import an_append

__all__ = ["memory", "stores"]


# ---- held while renewed ----


async def test_a_renewed_lease_is_held_and_nobody_takes_its_tasks(stores: list[Store]) -> None:
    await an_orphan(stores[0])
    async with replica(stores[0], "a") as a, replica(stores[1], "b") as b:
        assert a.worker.tasks == ["t-1"] and a.lease.held and a.lease.name == "a-1"
        end, held = time.monotonic() + 1.8 * SECONDS, set()

        def watched() -> bool:
            held.update((a.lease.held, b.lease.held))
            return time.monotonic() > end

        await until(watched)
        assert held == {True}
        assert (a.worker.losses, a.lease.name) == ([], "a-1")
        assert (b.worker.taken, b.worker.losses, b.lease.name) == ([], [], "b-1")


async def test_new_orphans_are_taken_by_one_replica_only(stores: list[Store]) -> None:
    async with replica(stores[0], "a") as a, replica(stores[1], "b") as b:
        for number in range(20):
            await an_orphan(stores[0], f"t-{number}")
        await until(lambda: len(a.worker.taken + b.worker.taken) >= 20, 2 * SECONDS)
        assert sorted(a.worker.taken + b.worker.taken) == sorted(f"t-{number}" for number in range(20))


async def test_a_holder_without_room_takes_nothing_until_it_has_some(memory: Store) -> None:
    async with replica(memory, "a") as a:
        a.worker.room = 0
        await an_orphan(memory)
        a.line.called.clear()
        await until(lambda: a.line.called.count("beat") > 3)
        assert a.worker.taken == []
        a.worker.room = 1
        await until(lambda: a.worker.taken == ["t-1"])


# ---- the only writer ----


async def test_an_exclusive_store_never_takes_the_lease_away(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    await an_orphan(store)
    async with replica(store, "a", 0.2) as a:
        a.line.down(*CALLS)
        until_then = time.monotonic() + 5 * 0.2
        await until(lambda: time.monotonic() > until_then)
        assert a.lease.held and a.lease.name == "a-1"
        a.line.mend()
        a.line.fail_after = CALLS
        a.line.called.clear()
        await until(lambda: len(a.line.called) > 5)
        assert a.lease.held and a.lease.name == "a-1" and a.worker.losses == [] and a.worker.tasks == ["t-1"]
    await store.close()


async def test_what_an_exclusive_store_was_slow_to_hand_over_is_worked_on(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    async with replica(store, "a", 0.2) as a:
        a.line.hang_after = frozenset({"claim"})  # the disk is slow
        a.line.up.clear()
        await an_orphan(store)

        async def is_taken() -> bool:
            return (await store.stream(("task", "t-1"))).owner == "a-1"

        await until(is_taken)
        end = time.monotonic() + 5 * 0.2
        await until(lambda: time.monotonic() > end)
        a.line.mend()
        await until(lambda: a.worker.tasks == ["t-1"], 3)
    await store.close()


# ---- handing over ----


async def test_what_a_replica_leaves_another_takes_within_a_second(stores: list[Store]) -> None:
    await an_orphan(stores[0])
    async with replica(stores[0], "a", 5.0) as a, replica(stores[1], "b", 5.0) as b:
        assert a.worker.tasks == ["t-1"] and b.worker.tasks == []
        await a.lease.stop()
        assert not a.lease.held
        await until(lambda: b.worker.tasks == ["t-1"], 1)


async def test_a_stop_is_quiet_though_the_store_is_gone(memory: Store) -> None:
    async with replica(memory, "a") as a:
        a.line.fail_after = CALLS
        await a.lease.stop()
        assert not a.lease.held


async def test_what_a_replica_left_by_dying_another_takes_when_the_lease_is_over(stores: list[Store]) -> None:
    await an_orphan(stores[0])
    async with replica(stores[0], "a") as a, replica(stores[1], "b") as b:
        a.lease.abandon()  # the process is gone
        died = time.monotonic()
        await until(lambda: b.worker.tasks == ["t-1"], SECONDS + 1)
        assert time.monotonic() - died > SECONDS / 2  # and not while it may have been alive


# ---- known to be dead ----


async def test_the_tasks_of_a_process_known_to_be_gone_need_not_wait(stores: list[Store]) -> None:
    name = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-c", "from services.conductor.whereabouts import name_here; print(name_here('n'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    alive = name_here("alive")
    for owner, task in ((name, "t-dead"), (alive, "t-alive")):
        await stores[0].join(owner)
        await stores[0].append(an_append(task, owner=owner))
    b = await Replica(stores[1], "b", LONG, is_gone).start()
    try:
        await until(lambda: b.worker.tasks, 2)
        assert b.worker.tasks == ["t-dead"]
        assert set(await stores[0].replicas()) == {alive, "b-1"}
    finally:
        await b.lease.stop()


def test_only_what_is_known_to_be_gone_counts_as_gone() -> None:
    mine = name_here("n")
    place, pid, started, nonce = mine.split("/")
    assert not is_gone(mine) and name_here("m") != mine
    assert is_gone(f"{place}/{pid}/{int(started) - 1}/{nonce}")  # another process had this number before
    for elsewhere in (f"x{place}/4194305/1/n", "", "/", "a-1", "//", f"{place}/", f"{place}/x/1/n", "/1/1/n"):
        assert not is_gone(elsewhere), elsewhere


async def test_a_stop_does_not_wait_for_a_store_that_does_not_answer(
    memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEAVE_S", 0.05)
    a = await Replica(memory, "a").start()
    a.line.down("leave")
    async with asyncio.timeout(2):
        await a.lease.stop()
    assert not a.lease.held
