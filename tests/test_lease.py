"""The promises of a lease: held while it is renewed, given up before anybody else may take what it covers."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.conductor import lease
from services.conductor.lease import Lease
from services.conductor.store.base import Store, StoreUnavailable
from services.conductor.store.engine import open_store
from services.conductor.store.sqlite import SqliteStore
from services.conductor.whereabouts import is_gone, name_here
from tests import databases
from tests.conftest import numbered, until
from tests.memory_store import MemoryStore
from tests.test_store import an_append

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


async def claimed(store: Store) -> bool:
    """Tells whether anybody else may take a task, by taking it."""
    if not await store.beat("other"):
        await store.join("other")
    return bool(await store.claim("other", SECONDS, 10))


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


# ---- given up in time ----


async def check_given_up_in_time(a: Replica, store: Store) -> None:
    """Waits until somebody else can take over what a replica has; by then it must have stopped, and been told once."""
    await until(lambda: claimed(store), 4 * SECONDS)
    taken_at, held, losses = time.monotonic(), a.lease.held, len(a.worker.losses)
    await until(lambda: a.worker.losses, 3 * SECONDS)
    late = a.worker.losses[-1] - taken_at
    assert (held, losses) == (False, 1), f"it went on for {late:.3f} s after another had taken over"


async def test_a_store_that_does_not_answer_ends_all_work_before_another_may_take_it(stores: list[Store]) -> None:
    await an_orphan(stores[0])
    async with replica(stores[0], "a") as a:
        a.line.down(*CALLS)
        await check_given_up_in_time(a, stores[1])


@pytest.mark.parametrize("call", ["beat", "claim"])
async def test_one_call_that_does_not_end_is_no_longer_waited_for_than_the_lease(call: str, memory: Store) -> None:
    await an_orphan(memory)
    async with replica(memory, "a") as a:
        a.line.down(call)
        await until(lambda: a.worker.losses, 3 * SECONDS)
        assert a.worker.tasks == []


async def test_a_lease_comes_back_under_a_new_name_and_takes_up_what_it_had(stores: list[Store]) -> None:
    await an_orphan(stores[0])
    async with replica(stores[0], "a") as a:
        a.line.down(*CALLS)
        await until(lambda: a.worker.losses, 2 * SECONDS)
        assert not a.lease.held and a.worker.tasks == []
        a.line.mend()
        await until(lambda: a.worker.tasks == ["t-1"], 2 * SECONDS)
        assert a.lease.held and a.lease.name == "a-2" and len(a.worker.losses) == 1
        assert (await stores[0].stream(("task", "t-1"))).owner == "a-2"


async def test_a_name_is_not_used_before_the_store_knows_it(memory: Store) -> None:
    async with replica(memory, "a") as a:
        a.line.down(*CALLS)
        await until(lambda: a.worker.losses, 2 * SECONDS)
        await until(lambda: a.line.called[-1] == "join")
        assert a.lease.name == "a-1" and not a.lease.held
        a.line.up.set()
        await until(lambda: a.lease.held)
        assert a.lease.name in await memory.replicas() and a.lease.name != "a-1"


async def test_a_lease_that_came_back_is_given_up_in_time_as_well(memory: Store) -> None:
    await an_orphan(memory)
    async with replica(memory, "a") as a:
        a.line.down("beat")
        await until(lambda: a.worker.losses, 2 * SECONDS)
        a.worker.losses.clear()
        a.line.hang = frozenset({"claim"})  # so the join comes through, and what follows does not
        await until(lambda: a.lease.held)
        await memory.append(an_append("t-2", owner=a.lease.name))  # work that comes in meanwhile
        await claimed(memory)  # takes t-1; t-2 can be taken when the lease is over
        await check_given_up_in_time(a, memory)


async def test_a_first_claim_that_does_not_end_ends_the_work_on_what_came_before(memory: Store) -> None:
    await an_orphan(memory)
    a = Replica(memory, "a", SECONDS, never)
    a.worker.room = 1  # so that it asks again for more
    a.line.down("claim")
    a.line.passing = 1
    start = asyncio.ensure_future(a.start())
    await until(lambda: a.worker.tasks)
    try:
        await check_given_up_in_time(a, memory)
    finally:
        start.cancel()
        await asyncio.wait([start])
        await a.lease.stop()


async def test_a_lease_given_up_for_dead_by_others_is_given_up_here(stores: list[Store]) -> None:
    await an_orphan(stores[0])
    async with replica(stores[0], "a", LONG) as a:
        await stores[1].leave("a-1")  # as somebody does who thinks it is dead
        await until(lambda: a.lease.name == "a-2", 2)
        assert len(a.worker.losses) == 1 and a.lease.held
        await until(lambda: a.worker.tasks == ["t-1"])
        assert a.worker.taken == ["t-1", "t-1"]


@pytest.mark.parametrize("how", ["fail_after", "hang_after"])
async def test_tasks_of_a_claim_whose_answer_was_lost_are_worked_on_all_the_same(how: str, memory: Store) -> None:
    async with replica(memory, "a") as a:
        setattr(a.line, how, frozenset({"claim"}))
        a.line.up.clear()
        await an_orphan(memory)
        await until(lambda: a.worker.losses, 3 * SECONDS)
        assert a.worker.taken == []
        a.line.mend()
        await until(lambda: a.worker.tasks == ["t-1"], 3 * SECONDS)
        assert (await memory.stream(("task", "t-1"))).owner == a.lease.name != "a-1"


async def test_a_process_that_stood_still_holds_nothing_when_it_goes_on(memory: Store) -> None:
    await an_orphan(memory)
    async with replica(memory, "a") as a:
        time.sleep(SECONDS + 0.05)  # noqa: ASYNC251  the process itself stands still, as under SIGSTOP
        assert not a.lease.held  # at its very first step, before it could look
        await until(lambda: a.worker.losses)
        await until(lambda: a.lease.held and a.worker.tasks == ["t-1"])
        assert a.lease.name != "a-1"


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
