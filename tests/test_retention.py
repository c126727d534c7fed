"""Retention: finished work goes when it is due, whole, and nothing else goes; nobody who writes has to wait for it."""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import Reason, Refusal
from services.conductor import audit, retention, subscribe
from services.conductor.retention import Keep, Retention, sweep
from services.conductor.store.base import Answer, Appended, Listing, Store, StoreUnavailable
from services.conductor.store.sqlite import SqliteStore
from services.conductor.store.sqlite_admin import SqliteAdministration
from services.conductor.subscribe import Filter, Subscriptions, Tail
from tests import test_store
from tests.conftest import Clock, every_event, until
from tests.lives import RUNS, SECOND, golden, life, live

ROOT = Path(__file__).parent.parent
NOW = 1_800_000_000 * SECOND
DAY = 86_400 * SECOND

store = test_store.store  # every store: those of its contract


def old(count: int, *, age: int = 40 * DAY) -> list[Any]:
    """Returns tasks of every kind that ended a nanosecond after the other, the first `age` before NOW."""
    return [
        life(f"old-{i:04}", run, ends=NOW - age + i)
        for i, run in zip(range(count), itertools.cycle(RUNS), strict=False)
    ]


async def ids(store: Store, kind: Any = "task") -> set[str]:
    return {row.id for row in await store.list(Listing(kind, limit=10_000))}


async def swept(store: Store, keep: Keep, now: int = NOW) -> int:
    return sum([gone async for gone in sweep(store, await keep.cutoff(store, now))])


def check_left(events: Any, low: int, head: int) -> None:
    """Everything behind `low` is there, in order; whatever is older is of streams that are there whole."""
    positions = [event.sequence for event in events]
    assert [pos for pos in positions if pos > low] == list(range(low + 1, head + 1))
    assert positions == sorted(set(positions))
    counts: dict[tuple[str, str], list[int]] = {}
    for event in events:
        counts.setdefault((event.task_id, event.project_id), []).append(event.stream_sequence)
    assert all(count == list(range(1, len(count) + 1)) for count in counts.values())


# ---- what goes ----


async def test_only_what_ended_long_enough_ago_goes_and_it_goes_whole(store: Store) -> None:
    young = [life(f"young-{i}", RUNS[i % 6], ends=NOW - 10 * DAY + i) for i in range(5)]
    running = [life(f"running-{i}", ends=NOW - 50 * DAY, left=1 + i) for i in range(4)]
    await live(store, *old(30), *running, life("p-1", "project", ends=NOW - 60 * DAY))
    _, before = await store.bounds()
    await live(store, *young)
    kept = {f"young-{i}" for i in range(5)} | {f"running-{i}" for i in range(4)}
    log = await every_event(store)

    assert await swept(store, Keep(seconds=30 * 86400)) == 30
    assert await ids(store) == kept and await ids(store, "project") == {"p-1"}
    events = await every_event(store)
    assert events == [event for event in log if not event.task_id.startswith("old-")]
    low, head = await store.bounds()
    assert (low, head) == (max(e.sequence for e in log if e.task_id.startswith("old-")), len(log)) and low <= before
    check_left(events, low, head)
    assert (await store.read(low, 1)).low == low
    for name in ("old-0000", "old-0029"):
        assert await store.row(("task", name)) is None
        stream = await store.stream(("task", name))
        assert (list(stream.events), stream.version) == ([], 0)
        assert await every_event(store, ("task", name)) == []
    assert len((await store.stream(("task", "running-3"))).events) == len(golden("task_completed")) - 4
    assert await swept(store, Keep(seconds=30 * 86400)) == 0 and await store.bounds() == (low, head)


async def test_life_goes_on_behind_what_was_removed(store: Store) -> None:
    await live(store, *old(12), life("running", ends=NOW, left=3))
    head = (await store.bounds())[1]
    assert await swept(store, Keep(seconds=1)) == 12
    answer = await store.answer("r-old-0000")
    assert isinstance(answer, Answer) and answer.response == b"answer"
    repeat = next(life("other", ends=NOW))
    again = next(life("old-0000", ends=NOW))
    assert isinstance(await store.append(again), Answer)  # a repeat of a request begins nothing anew
    outcome = await store.append(repeat)
    assert isinstance(outcome, Appended) and outcome.pos == head + 3
    last = list(life("running", ends=NOW))[-1]
    assert isinstance(await store.append(last), Appended)
    low, head = await store.bounds()
    check_left(await every_event(store), low, head)
    assert await swept(store, Keep(seconds=1), NOW + DAY) == 1 and await ids(store) == {"other"}


async def test_everything_may_go_and_the_log_goes_on_where_it_was(store: Store) -> None:
    await live(store, *old(10))
    _, head = await store.bounds()
    assert await swept(store, Keep(seconds=1)) == 10
    assert await store.bounds() == (head, head) and await every_event(store) == []
    assert (await store.read(head, 10)).through == head
    outcome = await store.append(next(life("first-again", ends=NOW)))
    assert isinstance(outcome, Appended) and outcome.pos == head + 3
    assert [event.sequence for event in await every_event(store)] == [head + 1, head + 2, head + 3]


@pytest.mark.parametrize(("keep", "left"), [(1, 1), (7, 7), (20, 20), (21, 20), (10**18, 20)])
async def test_the_youngest_stay_by_number(store: Store, keep: int, left: int) -> None:
    await live(store, *old(20), life("running", ends=NOW - 50 * DAY, left=1), life("p-1", "project", ends=NOW))
    assert await swept(store, Keep(tasks=keep)) == 20 - left
    assert await ids(store) == {f"old-{i:04}" for i in range(20 - left, 20)} | {"running"}


@pytest.mark.parametrize("wanted", [Filter(), Filter(project_id="p"), Filter(task_id="old")])
async def test_a_reader_who_fell_behind_what_goes_is_told_and_not_given_a_gap(
    store: Store, wanted: Filter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe, "PAGE", 2)
    await live(store, life("old", ends=NOW - DAY, project="p"), life("kept", ends=NOW, left=1, project="p"))
    tail = Tail(store)
    await tail.start()
    readers = Subscriptions(store, tail, heartbeat=10, limit=10)
    behind, other = await readers.open(wanted, 0), await readers.open(Filter(task_id="kept"), 0)
    seen = [(await anext(behind)).sequence, (await anext(behind)).sequence]
    assert await swept(store, Keep(seconds=1)) == 1
    with pytest.raises(Refusal, match="holds what is behind") as refused:
        async with asyncio.timeout(5):
            await anext(behind)
    assert refused.value.error.reason == Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE and seen == sorted(seen)
    events = [event.stream_sequence for event in (await store.stream(("task", "kept"))).events]
    assert [(await anext(other)).stream_sequence for _ in events] == events  # of what stays nothing is missing
    await tail.close()


async def test_both_limits_hold(store: Store) -> None:
    await live(store, *old(10), *(life(f"young-{i}", ends=NOW - DAY + i) for i in range(5)))
    assert await swept(store, Keep(seconds=30 * 86400, tasks=12)) == 10
    assert await swept(store, Keep(seconds=30 * 86400, tasks=2)) == 3
    assert await ids(store) == {"young-3", "young-4"}


@pytest.mark.parametrize("keep", [Keep(), Keep(seconds=1e300), Keep(seconds=1), Keep(tasks=1)])
async def test_nothing_goes_of_nothing_and_no_limit_is_too_large(store: Store, keep: Keep) -> None:
    assert await swept(store, keep) == 0 and await store.bounds() == (0, 0)
    await live(store, life("t", ends=NOW - 1))
    assert await swept(store, keep) == 0 and await ids(store) == {"t"}


async def test_writers_get_in_between_and_lose_nothing(store: Store) -> None:
    await live(store, *old(400))
    between: list[int] = []

    async def remove() -> None:
        async for gone in sweep(store, NOW):
            assert gone <= retention.LARGEST
            between.append(gone)

    removing = asyncio.create_task(remove())
    await until(lambda: between)
    await live(store, *(life(f"new-{i}", ends=NOW + i) for i in range(64)))
    await removing
    assert sum(between) == 400 and len(between) > 2 and await ids(store) == {f"new-{i}" for i in range(64)}
    low, head = await store.bounds()
    check_left(await every_event(store), low, head)


async def test_replicas_that_sweep_at_once_remove_everything_once(store: Store) -> None:
    await live(store, *old(100))
    assert sum(await asyncio.gather(*(swept(store, Keep(seconds=1)) for _ in range(3)))) == 100
    assert await ids(store) == set()


async def test_a_sweep_ends_when_its_time_is_over(store: Store) -> None:
    await live(store, *old(30))
    assert [gone async for gone in sweep(store, NOW, seconds=0)] == []
    some = [gone async for gone in sweep(store, NOW, seconds=1e-9)]
    assert sum(some) <= retention.SMALLEST and len(await ids(store)) == 30 - sum(some)


# ---- the job ----


@contextlib.asynccontextmanager
async def job(store: Any, keep: Keep, clock: Any) -> AsyncIterator[Retention]:
    running = Retention(store, keep, clock, every=0.01)
    running.start()
    yield running
    await running.close()


async def test_the_job_removes_what_becomes_due_and_says_so(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = time.time_ns()
    await live(store, *(life(f"old-{i}", ends=now - SECOND) for i in range(5)), life("young", ends=now + SECOND // 2))
    async with job(store, Keep(seconds=0.5), time.time_ns):
        await until(lambda: "ended tasks removed: 5" in caplog.text)
        assert "ended tasks are kept for 0.5 s" in caplog.text
        assert await ids(store) == {"young"}
        await until(lambda: "ended tasks removed: 1" in caplog.text)  # as soon as it is due, in a later round
    assert await ids(store) == set()


async def test_a_job_that_is_behind_goes_on_without_a_pause(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = itertools.chain([0.0], itertools.repeat(1e18))
    monkeypatch.setattr(retention.random, "uniform", lambda *_: next(pauses))
    monkeypatch.setattr(retention, "SMALLEST", 1)
    monkeypatch.setattr(retention, "LARGEST", 1)
    await live(store, *old(50))
    running = Retention(store, Keep(seconds=1), Clock(NOW), every=0.001)  # time for a few transactions a round
    running.start()

    async def empty() -> bool:
        return not await ids(store)

    await until(empty)
    await running.close()


async def test_without_a_limit_there_is_no_job(store: Store) -> None:
    await live(store, *old(5))
    running = Retention(store, Keep(), lambda: pytest.fail("it looked at the clock"), every=0.001)
    running.start()
    await asyncio.gather(*(ids(store) for _ in range(20)))
    await running.close()
    assert len(await ids(store)) == 5


class Counting(Clock):
    """A clock that knows how often it was read: once at the start, and once each round."""

    reads = 0

    def __call__(self) -> int:
        self.reads += 1
        return super().__call__()


async def test_a_clock_set_forward_takes_nothing_that_is_not_due(store: Store) -> None:
    clock = Counting(NOW)
    await live(store, life("old", ends=NOW - 31 * DAY), life("young", ends=NOW - DAY))
    async with job(store, Keep(seconds=30 * 86400), clock):
        clock.advance(365 * 86400)
        reads = clock.reads
        await until(lambda: clock.reads > reads + 3)
        assert await ids(store) == {"young"}


async def test_a_clock_set_back_takes_nothing_more(store: Store) -> None:
    clock = Counting(NOW)
    await live(store, life("young", ends=NOW - DAY))
    async with job(store, Keep(seconds=86400 + 3600), clock):
        clock.advance(-3600)
        reads = clock.reads
        await until(lambda: clock.reads > reads + 3)
        assert await ids(store) == {"young"}


class Unreachable:
    """A store that cannot be reached, and then can."""

    def __init__(self, real: Store) -> None:
        self._real = real
        self.away = True
        self.asked = 0

    async def prune(self, ended_before: int, limit: int) -> int:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("FullError: database or disk is full")
        return await self._real.prune(ended_before, limit)


async def test_a_store_that_cannot_be_reached_is_tried_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    await live(store, *old(5))
    unreachable = Unreachable(store)
    async with job(unreachable, Keep(seconds=1), Clock(NOW)):
        await until(lambda: unreachable.asked > 2)
        assert "FullError" in caplog.text and len(await ids(store)) == 5
        unreachable.away = False

        async def empty() -> bool:
            return not await ids(store)

        await until(empty)


# ---- a crash in the middle ----

PRUNER = """
import asyncio, itertools, os, sys, threading
from pathlib import Path
from services.conductor.store.sqlite import SqliteStore

path, limit, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
removed = itertools.count(1)

def hook(*_):
    if next(removed) == rows:
        os.write(1, b"in the middle\\n")
        threading.Event().wait()

async def main():
    store = SqliteStore(path)
    store._connection.set_update_hook(hook)
    while await store.prune(2**62, limit):
        pass

asyncio.run(main())
"""


async def findings(path: Path) -> list[str]:
    administration = SqliteAdministration(path)
    async with administration.reader() as reader:
        every = [
            administration.damage(reader),
            audit.states(reader),
            *(check(reader) for check in audit.CHECKS.values()),
        ]
        return [finding for check in every async for finding in check]


def prune_until_killed(path: Path, limit: int, rows: int) -> None:
    """Removes tasks, `limit` in a transaction, in a process that is killed once it has removed so many events."""
    command = [sys.executable, "-c", PRUNER, str(path), str(limit), str(rows)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(signal.SIGKILL)


async def test_kill_9_while_tasks_are_removed_leaves_whole_tasks_only(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    store = SqliteStore(path)
    await live(store, *old(600), life("running", ends=NOW, left=2), life("p-1", "project", ends=NOW))
    await store.close()
    gone = 0
    for limit, rows, whole in ((200, 5, 0), (7, 200, 3), (190, 2500, 1)):  # transactions before the one cut short
        await asyncio.to_thread(prune_until_killed, path, limit, rows)
        assert await findings(path) == []
        store = SqliteStore(path)
        gone += limit * whole
        assert await ids(store) == {"running"} | {f"old-{i:04}" for i in range(gone, 600)}
        low, head = await store.bounds()
        check_left(await every_event(store), low, head)
        await store.close()
