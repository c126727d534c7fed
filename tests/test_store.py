"""The promises of a Store: one suite for every store."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from conductor.v1 import event_pb2

from services.conductor.store.base import (
    Answer,
    Append,
    Appended,
    Conflict,
    Listing,
    RequestKey,
    Store,
    StoreUnavailable,
    Stream,
)
from services.conductor.store.postgres import PostgresStore
from services.conductor.store.sqlite import SqliteStore
from tests.conftest import until
from tests.stores import DONE, LONG, a_key, an_append, check_gapless, log_of, picture, store

__all__ = ["store"]


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
