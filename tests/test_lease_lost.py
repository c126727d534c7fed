"""A lease is given up in time, and what came back is held anew."""

import asyncio
import time

import pytest

from services.conductor.store.base import Store
from tests.conftest import until
from tests.leased import CALLS, LONG, SECONDS, Replica, an_orphan, memory, never, replica, stores
from tests.stores import an_append

__all__ = ["memory", "stores"]


async def claimed(store: Store) -> bool:
    """Tells whether anybody else may take a task, by taking it."""
    if not await store.beat("other"):
        await store.join("other")
    return bool(await store.claim("other", SECONDS, 10))


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
