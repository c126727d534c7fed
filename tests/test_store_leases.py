"""Every engine of the store: leases of replicas, and what retention removes."""

import asyncio
from collections.abc import Sequence

from conductor.v1 import event_pb2

from services.conductor.store.base import (
    Answer,
    Appended,
    Conflict,
    Listing,
    Page,
    Store,
)
from tests.conftest import until
from tests.stores import DONE, LONG, a_key, an_append, log_of, picture, store

__all__ = ["store"]


# ---- every store: leases ----


async def test_a_claim_takes_what_is_unfinished_and_fences_the_old_owner(store: Store) -> None:
    for i in range(3):
        await store.append(an_append(f"t-{i}", created_at=i))
    await store.append(an_append("t-1", 1, ended_at=5, status=DONE))
    await store.append(an_append("p", kind="project"))
    await store.join("other")
    assert list(await store.claim("other", LONG, 9)) == ["t-0", "t-2"]
    streams = [await store.stream(("task", f"t-{i}")) for i in range(3)]
    assert [(stream.epoch, stream.owner) for stream in streams] == [(2, "other"), (1, "me"), (2, "other")]
    before = await picture(store)
    assert await store.append(an_append("t-0", 1)) == Conflict()
    assert await picture(store) == before
    assert isinstance(await store.append(an_append("t-0", 1, epoch=2)), Appended)
    assert isinstance(await store.append(an_append("p", 1, kind="project")), Appended)
    assert (await store.stream(("task", "t-0"))).owner == "other"  # who writes does not change who owns
    await store.leave("other")
    assert list(await store.claim("third", LONG, 9)) == ["t-0", "t-2"]
    assert await store.append(an_append("t-0", 2, epoch=2)) == Conflict()


async def test_a_claim_leaves_alone_what_a_living_replica_works_on(store: Store) -> None:
    for replica in ("a", "b", "c"):
        await store.join(replica)
        for i in range(2):
            await store.append(an_append(f"{replica}-{i}", owner=replica))
    await store.append(an_append("nobody's", owner=None))
    assert list(await store.claim("a", LONG, 9)) == ["nobody's"]
    await store.leave("b")
    assert list(await store.claim("c", LONG, 9)) == ["b-0", "b-1"]
    assert list(await store.claim("a", LONG, 9)) == []
    assert await store.beat("a") and await store.beat("c") and not await store.beat("b")
    await store.leave("b")  # once more, which changes nothing


async def test_a_claim_takes_at_most_so_many_oldest_first_and_the_rest_the_next_time(store: Store) -> None:
    await asyncio.gather(*(store.append(an_append(f"t-{i}", owner=f"dead-{i % 3}")) for i in range(9, -1, -1)))
    await store.join("me")
    claims = [list(await store.claim("me", LONG, 4)) for _ in range(4)]
    assert claims == [[f"t-{i}" for i in range(n, min(n + 4, 10))] for n in (0, 4, 8)] + [[]]


async def test_a_replica_that_does_not_renew_its_lease_is_given_up_when_another_looks(store: Store) -> None:
    for replica in ("quiet", "lively", "looker"):
        await store.join(replica)
        await store.append(an_append(f"of-{replica}", owner=replica))
    found: list[str] = []

    async def look() -> bool:
        assert await store.beat("lively") and await store.beat("looker")
        found.extend(await store.claim("looker", 0.3, 9))
        return bool(found)

    assert await store.beat("quiet") and list(await store.claim("looker", 0.3, 9)) == []
    await until(look, 5)
    assert found == ["of-quiet"]
    assert not await store.beat("quiet") and await store.beat("lively")
    assert await store.append(an_append("of-quiet", 1)) == Conflict()
    await store.join("quiet, again")
    assert await store.beat("quiet, again")


async def test_claims_at_the_same_moment_share_what_there_is(store: Store) -> None:
    await asyncio.gather(*(store.append(an_append(f"t-{i:02}")) for i in range(40)))
    for i in range(6):
        await store.join(f"r-{i}")
    claims = await asyncio.gather(*(store.claim(f"r-{i}", LONG, 10) for i in range(6)))
    rest = await store.claim("r-0", LONG, 40)  # a claim may pass over what another is just taking
    taken = [task for claim in (*claims, rest) for task in claim]
    assert sorted(taken) == [f"t-{i:02}" for i in range(40)]
    assert {(await store.stream(("task", task))).epoch for task in taken} == {2}


# ---- every store: retention ----


async def ended_tasks(store: Store, count: int) -> None:
    """Appends tasks of three events that end at 100, 101, ..., each beside one that does not end, and a project."""
    for i in range(count):
        await store.append(an_append(f"t-{i}", count=2, request=a_key(f"r-{i}"), project_id="p"))
        await store.append(an_append(f"open-{i}"))
        await store.append(an_append(f"t-{i}", 2, status=DONE, ended_at=100 + i, project_id="p"))
    await store.append(an_append("p", kind="project", project_id="p"))


async def test_pruning_removes_the_oldest_ended_tasks_whole_and_nothing_else(store: Store) -> None:
    await ended_tasks(store, 6)
    log = await log_of(store)
    assert await store.prune(100, 9) == 0 and await store.bounds() == (0, 25)
    assert await store.prune(104, 3) == 3  # of the four that ended before
    left = [event for event in log if not event.event_id.startswith(("t-0/", "t-1/", "t-2/"))]
    assert await log_of(store) == left and await store.bounds() == (12, 25)
    for i, gone in enumerate([True] * 3 + [False] * 3):
        stream, row = await store.stream(("task", f"t-{i}")), await store.row(("task", f"t-{i}"))
        assert (stream.version == 0, row is None) == (gone, gone)
    assert len(await store.list(Listing("task"))) == 9
    assert await store.prune(104, 9) == 1 and await store.prune(104, 9) == 0 and await store.bounds() == (16, 25)
    assert await store.append(an_append("next")) == Appended(26, 1)  # positions are never used again
    assert await store.answer("r-0") == Answer(b"body", 1, b"first answer")  # kept until it expires


async def test_a_page_says_below_which_position_events_may_be_missing(store: Store) -> None:
    await ended_tasks(store, 3)
    assert (await store.read(0, 100)).low == 0
    await store.prune(102, 9)
    for key in (None, ("project", "p"), ("task", "t-2"), ("task", "t-0")):
        page = await store.read(0, 100, key)
        assert (page.low, page.through) == (8, 13)
    assert [e.event_id for e in (await store.read(0, 100, ("task", "open-0"))).events] == ["open-0/1"]  # below low
    assert (await store.read(100, 5)) == Page([], 100, 8)


async def test_the_time_behind_which_so_many_younger_tasks_stand(store: Store) -> None:
    assert await store.ended_before(0) == 0
    await ended_tasks(store, 5)
    assert [await store.ended_before(n) for n in range(6)] == [104, 103, 102, 101, 100, 0]
    await store.prune(await store.ended_before(2) + 1, 9)
    assert len(await store.list(Listing("task", status=DONE))) == 2


async def test_pruning_under_load_keeps_positions_and_what_is_still_open(store: Store) -> None:
    async def live(writer: int) -> None:
        for i in range(10):
            name = f"t-{writer}-{i}"
            assert isinstance(await store.append(an_append(name, count=2)), Appended)
            assert isinstance(await store.append(an_append(name, 2, ended_at=100 + i, status=DONE)), Appended)
        assert isinstance(await store.append(an_append(f"open-{writer}")), Appended)

    async def prune() -> int:
        removed = 0
        while removed < 8 * 9:
            removed += await store.prune(109, 7)
            await asyncio.sleep(0)
        return removed

    *_, removed = await asyncio.gather(*map(live, range(8)), prune())
    low, head = await store.bounds()
    assert (removed, head) == (72, 8 * 31) and 0 < low <= head
    events = await log_of(store)
    positions = [event.sequence for event in events]
    assert len(events) == 8 * 4 and positions == sorted(set(positions))
    assert len(await store.list(Listing("task", limit=100))) == 16


async def test_a_listener_that_fails_stops_nobody_who_appends_later(store: Store) -> None:
    def fails(_: Sequence[event_pb2.Event]) -> None:
        raise RuntimeError("a listener's bug")

    store.on_commit(fails)
    for number in range(3):
        assert await asyncio.wait_for(store.append(an_append(f"t-{number}")), 5) == Appended(number + 1, 1)
