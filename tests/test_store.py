"""The promises of a Store: one suite for every store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import event_pb2

from services.conductor.store.base import (
    Answer,
    Append,
    Appended,
    Conflict,
    Key,
    Listing,
    Page,
    RequestKey,
    Store,
    StoreUnavailable,
    Stream,
    View,
)
from services.conductor.store.engine import open_store
from services.conductor.store.postgres import PostgresStore
from services.conductor.store.sqlite import SqliteStore
from tests import databases
from tests.conftest import every_event, until
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


# ---- every store: appending ----


async def test_an_append_brings_state_events_and_request_key_at_once(store: Store) -> None:
    seen: list[asyncio.Task[Any]] = []
    store.on_commit(lambda _: seen.append(asyncio.create_task(picture(store))))
    assert await store.append(an_append(count=3, request=a_key("r-1", covers=2))) == Appended(3, 3)
    for log, bounds, (tasks, _), answer, _ in (await seen[0], await picture(store)):
        assert [(e.sequence, e.stream_sequence, e.event_id) for e in log] == [(i, i, f"t-1/{i}") for i in (1, 2, 3)]
        assert bounds == (0, 3) and answer == Answer(b"body", 2, b"first answer")
        assert [(row.id, row.state, row.through) for row in tasks] == [("t-1", b"t-1@3", 3)]
    row, stream = await store.row(("task", "t-1")), await store.stream(("task", "t-1"))
    assert row == tasks[0] and stream == Stream(log, 3, 1, "me")


@pytest.mark.parametrize(
    "refused",
    [
        an_append(request=a_key("r-2")),
        an_append(version=1, request=a_key("r-2")),
        an_append(version=3, request=a_key("r-2")),
        an_append(version=2, epoch=0, request=a_key("r-2")),
        an_append(version=2, epoch=2, request=a_key("r-2")),
        an_append("nobody", version=1, request=a_key("r-2")),
        an_append(version=2, kind="project", request=a_key("r-2")),
    ],
    ids=["begun already", "old version", "future version", "old epoch", "future epoch", "no stream", "other kind"],
)
async def test_a_write_at_another_version_or_epoch_is_refused_and_leaves_nothing(store: Store, refused: Append) -> None:
    await store.append(an_append(count=2, request=a_key("r-1")))
    before, rung = await picture(store), []
    store.on_commit(lambda _: rung.append(1))
    assert await store.append(refused) == Conflict()
    assert await picture(store) == before and not rung
    assert await store.append(an_append(version=2)) == Appended(3, 3)


async def test_a_refused_append_leaves_the_rest_of_its_batch_whole(store: Store) -> None:
    await store.append(an_append("taken"))
    batch = [an_append(f"b-{i}", count=2) if i % 2 else an_append("taken", version=7) for i in range(20)]
    outcomes = await asyncio.gather(*map(store.append, batch))
    assert [type(outcome) for outcome in outcomes] == [Conflict, Appended] * 10
    check_gapless(await log_of(store))


async def test_positions_are_gapless_and_in_commit_order_under_64_concurrent_writers(store: Store) -> None:
    read: list[int] = []
    bell = asyncio.Event()
    store.on_commit(lambda _: bell.set())

    async def write(writer: int) -> None:
        last = 0
        for _ in range(10):
            name = f"shared-{writer % 16}" if writer % 2 else f"own-{writer}"
            outcome: Any = Conflict()
            while isinstance(outcome, Conflict):  # on a shared stream: whoever loses the race reads and tries again
                version = (await store.stream(("task", name))).version
                outcome = await store.append(an_append(name, version, count=1 + writer % 3))
            assert outcome.pos > last and (await store.bounds())[1] >= outcome.pos
            last = outcome.pos

    async def tail() -> None:
        while await bell.wait():
            bell.clear()
            while page := (await store.read(read[-1] if read else 0, 50)).events:
                read.extend(event.sequence for event in page)

    reader = asyncio.create_task(tail())
    await asyncio.gather(*map(write, range(64)))
    events = await log_of(store)
    check_gapless(events)
    await until(lambda: len(read) >= len(events) or reader.done())
    reader.cancel()
    assert read == [event.sequence for event in events]


async def test_a_used_request_key_returns_the_first_answer_and_appends_nothing(store: Store) -> None:
    await store.append(an_append(count=2, request=a_key("r-1", covers=2)))
    before = await picture(store)
    for repeat in (an_append("t-2"), an_append(version=2), an_append(version=9)):
        other = replace(repeat, request=RequestKey("r-1", b"another body", b"another answer", 5, 1))
        assert await store.append(other) == Answer(b"body", 2, b"first answer")
    assert await picture(store) == before


async def test_a_request_key_used_20_times_at_once_is_used_once(store: Store) -> None:
    outcomes = await asyncio.gather(*(store.append(an_append(f"t-{i}", request=a_key("r-1"))) for i in range(20)))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Answer"] * 19 + ["Appended"]
    assert await store.bounds() == (0, 1) and len(await store.list(Listing("task"))) == 1


async def test_whatever_an_event_holds_comes_back_equal_and_cannot_be_changed_later(store: Store) -> None:
    append = an_append(count=1)
    event = append.events[0]
    event.task_progress.message, event.correlation_id = "\x00\n\u2028 Ωμέγα 🜍" * 100_000, "c"
    sent = event.SerializeToString()
    await store.append(append)
    event.type = "changed"
    (await log_of(store))[0].type = "changed"
    read = (await log_of(store))[0]
    read.ClearField("sequence"), read.ClearField("stream_sequence")
    assert read.SerializeToString() == sent


async def test_a_caller_cancelled_while_waiting_loses_neither_its_append_nor_its_batch(store: Store) -> None:
    waiting = [asyncio.create_task(store.append(an_append(f"t-{i}"))) for i in range(10)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, Appended] * 5
    assert await store.append(an_append("after")) == Appended(11, 1)
    check_gapless(await log_of(store))


async def transactions(store: Any, counted: list[int]) -> int:
    """Returns how many transactions have appended something, as the engine itself counts them."""
    if isinstance(store, SqliteStore):
        return len(counted)
    if isinstance(store, PostgresStore):
        found: int = await store._pool.fetchval("SELECT count(DISTINCT xmin::text) FROM events")
        return found
    return int(store.commits)


async def test_appends_that_wait_together_share_a_commit(store: Store) -> None:
    commits: list[int] = []
    if isinstance(store, SqliteStore):
        store._connection.set_commit_hook(lambda: bool(commits.append(1)))
    await asyncio.gather(*(store.append(an_append(f"t-{i}")) for i in range(400)))
    assert 1 <= await transactions(store, commits) <= 3
    for i in range(5):
        await store.append(an_append(f"alone-{i}"))
    assert await transactions(store, commits) <= 8


async def test_a_listener_hears_every_event_once_in_order_with_its_positions(store: Store) -> None:
    heard: list[event_pb2.Event] = []
    store.on_commit(heard.extend)
    batch = [an_append("t-0", i, count=2) for i in (0, 2, 7)] + [an_append(f"t-{i}", count=3) for i in range(1, 9)]
    await asyncio.gather(*map(store.append, batch))
    check_gapless(heard)
    assert heard == await log_of(store) and len(heard) == 28


async def test_close_ends_what_is_under_way_and_then_refuses(store: Store) -> None:
    waiting = [asyncio.create_task(store.append(an_append(f"t-{i}"))) for i in range(10)]
    await asyncio.sleep(0)
    await store.close()
    assert all(isinstance(outcome, Appended) for outcome in await asyncio.gather(*waiting))
    for late in (store.append(an_append("late")), store.bounds(), store.claim("me", LONG, 9)):
        with pytest.raises(StoreUnavailable):
            await late


# ---- every store: reading ----


async def test_lists_are_newest_first_and_every_filter_counts(store: Store) -> None:
    for i in range(12):
        fields = {"status": 1 + i % 2, "project_id": f"p-{i % 3}", "desktop_id": f"d-{i % 4}", "created_at": 100 + i}
        await store.append(an_append(f"t-{i:02}", **fields))
    await store.append(an_append("p-0", kind="project", project_id="p-0", status=0, created_at=500))

    async def ids(**fields: Any) -> list[int]:
        return [int(row.id[2:]) for row in await store.list(Listing(**{"kind": "task", "limit": 100, **fields}))]

    assert await ids() == [*range(11, -1, -1)] and await ids(limit=3) == [11, 10, 9]
    assert await ids(status=2) == [11, 9, 7, 5, 3, 1]
    assert await ids(project_id="p-0") == [9, 6, 3, 0] and await ids(desktop_id="d-3") == [11, 7, 3]
    assert await ids(project_id="p-0", status=2, desktop_id="d-1") == [9]
    assert await ids(project_id="none") == [] and await ids(kind="project") == [0]
    await store.append(an_append("t-11", 1, status=DONE, project_id="p-2", desktop_id="d-3", created_at=111))
    assert await ids(status=2) == [9, 7, 5, 3, 1] and await ids(status=DONE) == [11]


async def test_pages_of_a_list_neither_repeat_nor_miss_a_row_while_rows_are_added(store: Store) -> None:
    for i in range(20):
        await store.append(an_append(f"t-{i:02}", created_at=100 + i // 5))  # five at the same time
    seen: list[str] = []
    before: tuple[int, str] | None = None
    while rows := await store.list(Listing("task", before=before, limit=3)):
        seen += [row.id for row in rows]
        before = (rows[-1].created_at, rows[-1].id)
        await store.append(an_append(f"new-{len(seen)}", created_at=1000))
    assert seen == [f"t-{i:02}" for i in range(19, -1, -1)]


async def test_a_page_of_events_holds_all_that_matches_through_its_end(store: Store) -> None:
    for i in range(10):
        await store.append(an_append(f"t-{i}", count=3, project_id=f"p-{i % 2}" if i < 8 else ""))
        await store.append(an_append(f"p-{i}", count=1, kind="project", project_id=f"p-{i}"))
    log = await log_of(store)
    wanted = {
        None: log,
        ("task", "t-3"): [e for e in log if e.event_id.startswith("t-3/")],
        ("project", "p-1"): [e for e in log if e.event_id.startswith(("t-1/", "t-3/", "t-5/", "t-7/", "p-1/"))],
        ("project", "p-9"): [e for e in log if e.event_id.startswith("p-9/")],
        ("task", "p-1"): [],
    }
    for key, expected in wanted.items():
        for limit in (1, 2, 7, 1000):
            cursor, walked = 0, []
            while cursor < 40:
                page = await store.read(cursor, limit, key)
                assert cursor < page.through <= 40 and len(page.events) <= limit
                assert list(page.events) == [e for e in expected if cursor < e.sequence <= page.through]
                cursor, walked = page.through, [*walked, *page.events]
            assert walked == expected
    assert (await store.read(40, 10)).through == 40 and (await store.read(90, 10)).through == 90


async def test_what_was_never_written_is_empty(store: Store) -> None:
    assert await store.bounds() == (0, 0) and await store.list(Listing("task")) == []
    assert await store.row(("task", "t")) is None and await store.answer("r") is None
    stream = await store.stream(("task", "t"))
    assert stream == Stream([], 0, 0, None)


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
