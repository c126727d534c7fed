"""Fairness and backpressure: who may work, who waits, and what a full Conductor says and keeps in memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, project_pb2, researcher_pb2, task_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.common.errors import Reason
from services.conductor.actor import MAX_WAITING
from services.conductor.slots import Flow, Slots
from services.conductor.state.task import MAX_PROGRESS
from services.conductor.store.base import Key
from tests.conftest import Running, refused, start_conductor, until
from tests.fakes import Workers, finding, finds, hangs, research_result
from tests.test_actor import COMPLETED, Gate, Start, check_story, move, outcome_of, reason_of, start, submit

__all__ = ["start"]  # a fixture

MANY = 10_000
BIG, SMALL = ("big", ""), ("small", "")


def key(number: object) -> Key:
    return "task", str(number)


class Turns:
    """Slots, with the order in which they were given."""

    def __init__(self, max_in_flight: int, max_queued: int = MANY) -> None:
        self.given: list[Key] = []
        self.slots = Slots(max_in_flight, max_queued, self.given.append)

    def finish(self) -> None:
        """Ends the work of whoever has had a slot for longest."""
        self.slots.leave(self.given[self.finished])
        self.finished += 1

    finished = 0


# ---- turns ----


def test_no_more_work_at_once_than_allowed_and_no_slot_stays_empty() -> None:
    turns = Turns(3)
    for number in range(10):
        turns.slots.queue(key(number), BIG)
    assert turns.given == [key(number) for number in range(3)]
    for ended in range(10):
        turns.finish()
        assert len(turns.given) == min(10, ended + 4)
    assert turns.given == [key(number) for number in range(10)]  # and in the order they came


def test_a_slot_taken_at_once_counts_like_any_other() -> None:
    turns = Turns(2)
    assert turns.slots.take(key(1)) and turns.slots.take(key(2)) and not turns.slots.take(key(3))
    assert turns.slots.take(key(1))  # who has one may ask again
    turns.slots.queue(key(3), BIG)
    assert turns.given == [] and turns.slots.waits(key(3))
    turns.slots.leave(key(1))
    assert turns.given == [key(3)] and not turns.slots.waits(key(3))
    turns.slots.queue(key(4), BIG)
    turns.slots.leave(key(2))
    assert turns.given == [key(3), key(4)] and not turns.slots.take(key(5))


def test_nobody_takes_a_slot_past_those_who_wait() -> None:
    turns = Turns(1)
    turns.slots.queue(key(1), BIG)
    turns.slots.queue(key(2), BIG)
    assert not turns.slots.take(key(3))
    turns.slots.leave(key(1))
    assert turns.given == [key(1), key(2)] and not turns.slots.take(key(3))


@pytest.mark.parametrize("at_once", [1, 4])
def test_ten_thousand_tasks_of_one_delay_the_single_task_of_another_by_one_turn(at_once: int) -> None:
    turns = Turns(at_once)
    for number in range(MANY):
        turns.slots.queue(key(number), BIG)
    turns.slots.queue(key("single"), SMALL)
    while key("single") not in turns.given:
        turns.finish()
        assert turns.finished <= 2
    turns.slots.queue(key("another"), SMALL)
    before = turns.finished
    while key("another") not in turns.given:
        turns.finish()
    assert turns.finished - before <= 2


def test_projects_of_one_desktop_have_turns_too() -> None:
    turns = Turns(1)
    for number in range(100):
        turns.slots.queue(key(number), ("d", "big"))
    for number in range(3):
        turns.slots.queue(key(f"s{number}"), ("d", "small"))
    for _ in range(7):
        turns.finish()
    assert [name for _, name in turns.given if name.startswith("s")] == ["s0", "s1", "s2"]


def test_every_flow_gets_the_same_however_much_it_asks_for() -> None:
    turns = Turns(1)
    flows: dict[Key, Flow] = {}
    for flow, count in (("a", 300), ("b", 30), ("c", 30)):
        for number in range(count):
            flows[key(f"{flow}{number}")] = (flow, "")
            turns.slots.queue(key(f"{flow}{number}"), (flow, ""))
    for _ in range(90):
        turns.finish()
    got = Counter(flows[name][0] for name in turns.given[1:91])  # the first came before there was a choice
    assert max(got.values()) - min(got.values()) <= 1


def test_whoever_leaves_the_queue_costs_nobody_a_turn() -> None:
    turns = Turns(1)
    for name in ("working", "gone", "next"):
        turns.slots.queue(key(name), BIG)
    turns.slots.leave(key("gone"))
    turns.slots.leave(key("never seen"))
    assert turns.given == [key("working")] and not turns.slots.waits(key("gone"))
    turns.finish()
    turns.slots.leave(key("working"))  # a second time frees no second slot
    turns.slots.queue(key("later"), BIG)
    assert turns.given == [key("working"), key("next")]


def test_a_task_that_asks_twice_has_one_place_and_one_slot() -> None:
    turns = Turns(1)
    for name in ("working", "twice", "twice", "last"):
        turns.slots.queue(key(name), BIG)
    assert turns.slots.room == 1 + MANY - 3
    turns.slots.queue(key("working"), BIG)
    assert turns.given == [key("working")] * 2  # told again that it may go on
    turns.slots.leave(key("working"))
    assert turns.given[2:] == [key("twice")]


# ---- who may wait ----


def test_a_desktop_gets_no_more_by_using_more_projects() -> None:
    given: list[Key] = []
    slots = Slots(1, 1000, given.append)
    for number in range(100):
        slots.queue(key(f"many{number}"), ("many", f"project-{number % 50}"))
    for number in range(3):
        slots.queue(key(f"one{number}"), ("one", ""))
    while len(given) < 103:
        slots.leave(given[-1])
    assert [given.index(key(f"one{number}")) for number in range(3)] == [2, 4, 6]
    # Within the desktop its projects take turns.
    projects = [int(name[1].removeprefix("many")) % 50 for name in given if name[1].startswith("many")]
    assert sorted(projects[1:51]) == list(range(50))


def submits(slots: Slots, flow: Flow, name: Key) -> bool:
    """Lets a task come in as the actor does: it arrives, is made durable, waits."""
    if not slots.arrive(flow):
        return False
    slots.queue(name, flow)
    slots.arrived(flow)
    return True


def fill(slots: Slots, flow: Flow) -> int:
    """Lets a flow submit as long as it may; returns how many then wait of it."""
    count = 0
    while submits(slots, flow, key(f"{flow}{count}")):
        count += 1
    return count


def burst(slots: Slots, flow: Flow) -> int:
    """Lets a flow submit as long as it may, all at the same time; returns how many are on their way."""
    count = 0
    while slots.arrive(flow):
        count += 1
    return count


@pytest.mark.parametrize("size", [1, 9, 10, 100, MANY])
@pytest.mark.parametrize("come", [fill, burst])
def test_a_lone_flow_gets_eight_ninths_and_newcomers_still_find_room(
    size: int, come: Callable[[Slots, Flow], int]
) -> None:
    slots = Turns(1, size).slots
    slots.take(key("working"))
    assert abs(come(slots, BIG) - size * 8 / 9) <= 1
    if size >= 9:
        assert come(slots, SMALL) >= 1
    flows = 0
    while submits(slots, (f"newcomer {flows}", ""), key(f"n{flows}")):
        flows += 1
    assert slots.room == 0  # together they may have it all, and no more
    assert not slots.arrive(BIG) and not slots.arrive(("one", "more"))


def test_those_still_arriving_count_and_who_does_not_come_gives_the_place_back() -> None:
    turns = Turns(1, 10)
    assert turns.slots.take(key("working"))
    before = turns.slots.room
    assert burst(turns.slots, BIG) >= 8 and turns.slots.room < before
    assert not turns.slots.take(key("overtakes"))
    for _ in range(8):
        turns.slots.arrived(BIG)
    while turns.slots.room < before:
        turns.slots.arrived(BIG)
    turns.slots.leave(key("working"))
    assert turns.slots.take(key("next")) and turns.given == []


def test_nobody_takes_a_slot_past_those_who_arrive() -> None:
    turns = Turns(1)
    assert turns.slots.arrive(BIG)
    assert not turns.slots.take(key("overtakes"))  # it would be durable later and work earlier
    turns.slots.queue(key("first"), BIG)
    turns.slots.arrived(BIG)
    assert turns.given == [key("first")]


def test_clear_forgets_everybody() -> None:
    turns = Turns(2, 10)
    for number in range(8):
        turns.slots.queue(key(number), BIG)
    turns.slots.clear()
    assert turns.slots.room == 12 and not turns.slots.waits(key(5))
    turns.slots.leave(key(0))  # late
    turns.slots.leave(key(5))
    assert turns.slots.take(key("a")) and turns.slots.take(key("b")) and not turns.slots.take(key("c"))
    assert turns.given == [key(0), key(1)]


# ---- any order of events, against a model one can see through ----


class SlotsModel(RuleBasedStateMachine):
    """Lists only: who works, who waits in which order they came, and whose turn is next."""

    @initialize(at_once=st.integers(1, 4), queued=st.integers(1, 12))
    def begin(self, at_once: int, queued: int) -> None:
        self.at_once, self.queued = at_once, queued
        self.told: list[Key] = []
        self.slots = Slots(at_once, queued, self.told.append)
        self.working: list[Key] = []
        self.waiting: list[tuple[Key, Flow]] = []
        self.turns: list[Flow] = []
        self.expected: list[Key] = []
        self.arriving: list[Flow] = []

    def serve(self) -> None:
        while self.waiting and len(self.working) < self.at_once:
            flow = self.turns.pop(0)
            place = next(item for item in self.waiting if item[1] == flow)
            self.waiting.remove(place)
            if any(other == flow for _, other in self.waiting):
                self.turns.append(flow)
            self.working.append(place[0])
            self.expected.append(place[0])

    keys = st.integers(0, 15).map(key)
    flows = st.sampled_from("abc").map(lambda name: (name, ""))

    @rule(name=keys, flow=flows)
    def queue(self, name: Key, flow: Flow) -> None:
        if name in self.working:
            self.expected.append(name)
        elif all(name != waiting for waiting, _ in self.waiting):
            self.waiting.append((name, flow))
            if flow not in self.turns:
                self.turns.append(flow)
        self.serve()
        self.slots.queue(name, flow)

    @rule(name=keys)
    def take(self, name: Key) -> None:
        idle = not self.waiting and not self.arriving
        may = name in self.working or (idle and len(self.working) < self.at_once)
        if may and name not in self.working:
            self.working.append(name)
        assert self.slots.take(name) == may

    @rule(name=keys)
    def leave(self, name: Key) -> None:
        self.working = [other for other in self.working if other != name]
        self.waiting = [item for item in self.waiting if item[0] != name]
        self.turns = [flow for flow in self.turns if any(flow == other for _, other in self.waiting)]
        self.serve()
        self.slots.leave(name)

    @precondition(lambda self: len(self.waiting) > 5)
    @rule()
    def clear(self) -> None:
        self.working, self.waiting, self.turns = [], [], []
        self.slots.clear()

    @rule(flow=flows)
    def arrive(self, flow: Flow) -> None:
        free = self.queued - len(self.waiting) - len(self.arriving)
        own = sum(other == flow for _, other in self.waiting) + self.arriving.count(flow)
        may = free > 0 and own < 8 * free
        if may:
            self.arriving.append(flow)
        assert self.slots.arrive(flow) == may

    @precondition(lambda self: self.arriving)
    @rule(name=keys, comes=st.booleans(), data=st.data())
    def arrived(self, name: Key, comes: bool, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(self.arriving))
        if comes:
            self.queue(name, flow)
        self.arriving.remove(flow)
        self.slots.arrived(flow)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "slots"):
            assert self.told == self.expected
            assert len(self.working) <= self.at_once
            waiting = {name for name, _ in self.waiting}
            assert all(self.slots.waits(key(number)) == (key(number) in waiting) for number in range(16))
            held = len(self.working) + len(self.waiting) + len(self.arriving)
            assert self.slots.room == max(0, self.at_once + self.queued - held)


TestSlotsModel = SlotsModel.TestCase
TestSlotsModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


# ---- a whole Conductor that has too much to do ----


@pytest.fixture
async def busy(tmp_path: Path, workers: Workers) -> AsyncIterator[Running]:
    """A Conductor whose workers hang, with 2 slots and a short queue, on a store that can be held shut."""
    workers.research = hangs
    running = await start_conductor(tmp_path / "c.db", workers, max_in_flight=2, max_queued=90, wrap=Gate)
    yield running
    await running.kill()


async def count_until_refused(running: Running, desktop: str) -> tuple[list[str], grpc.aio.AioRpcError]:
    accepted: list[str] = []
    while len(accepted) < 1000:
        try:
            accepted.append((await submit(running, desktop_id=desktop)).task_id)
        except grpc.aio.AioRpcError as error:
            return accepted, error
    raise AssertionError("never refused")


async def test_a_full_conductor_says_when_to_come_back_and_others_find_room(busy: Running, workers: Workers) -> None:
    accepted, error = await count_until_refused(busy, "greedy")
    assert len(accepted) == 2 + 80  # two at work, and eight ninths of the queue
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(error) == Reason.ERROR_REASON_OVER_CAPACITY
    details = rpc_status.from_call(error).details
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in details) and 0 < retry.retry_delay.ToMilliseconds() <= 60_000
    head = len(await busy.events())
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await submit(busy, desktop_id="greedy", request_id="r-1")
    assert len(await busy.events()) == head  # nothing of what was refused is left
    modest = (await submit(busy, desktop_id="modest")).task_id
    workers.research = finds
    for task_id in accepted[:2]:
        await busy.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task_id))
    for task_id in (modest, *accepted[2:]):
        assert (await busy.ended(task_id, 20)).status == COMPLETED
    again = await submit(busy, desktop_id="greedy", request_id="r-1")
    assert (await busy.ended(again.task_id)).status == COMPLETED


async def test_a_burst_of_one_desktop_leaves_room_for_another(busy: Running) -> None:
    busy.store.before.clear()  # so that all of them are arriving at the same time
    burst = [asyncio.ensure_future(outcome_of(submit(busy, desktop_id="greedy"))) for _ in range(200)]
    await until(lambda: busy.store.held + sum(call.done() for call in burst) == 200)
    modest = asyncio.ensure_future(outcome_of(submit(busy, desktop_id="modest")))
    await until(lambda: modest.done() or busy.store.held + sum(call.done() for call in burst) == 201)
    busy.store.open(True)
    answers = await asyncio.gather(*burst)
    assert 0 < answers.count("OVER_CAPACITY") < 200
    assert getattr(await modest, "task_id", await modest) != "OVER_CAPACITY"


async def test_a_thousand_tasks_of_one_desktop_do_not_starve_another_and_are_not_kept_in_memory(
    start: Start, workers: Workers
) -> None:
    workers.research = hangs
    running = await start(max_in_flight=2, max_queued=2000)
    await asyncio.gather(*(submit(running, desktop_id="big") for _ in range(1000)))
    await until(lambda: len(workers.seen) == 2)
    boxes = running.actor._mailboxes
    await until(lambda: len(boxes) <= 4)  # those at work; all else is in the log
    workers.research = finds
    single = (await submit(running, desktop_id="single")).task_id
    working = conductor_pb2.ListTasksRequest(status=task_pb2.TASK_STATUS_WAITING_WORKER)
    for task in (await running.stub.ListTasks(working)).tasks:
        await running.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task.task_id))
    assert (await running.ended(single, 5)).status == COMPLETED
    left = await running.stub.ListTasks(
        conductor_pb2.ListTasksRequest(desktop_id="big", status=task_pb2.TASK_STATUS_QUEUED, page_size=1000)
    )
    assert len(left.tasks) > 900
    order = [event.task_id for event in await running.events() if event.task_progress.HasField("route")]
    assert order.index(single) < 12
    assert len(boxes) <= 12


async def test_a_repeated_request_takes_no_slot(start: Start, workers: Workers) -> None:
    running = await start(max_in_flight=1)
    first = await submit(running, request_id="again")
    await running.ended(first.task_id)
    for _ in range(3):
        assert (await submit(running, request_id="again")).task_id == first.task_id
        assert await outcome_of(submit(running, request_id="again", objective="Another?")) == "REQUEST_ID_REUSED"
    assert (await running.ended((await submit(running)).task_id, 3)).status == COMPLETED
    assert (await running.ended((await submit(running)).task_id, 3)).status == COMPLETED


async def test_what_is_taken_over_has_its_bound_and_all_of_it_ends(
    start: Start, tmp_path: Path, workers: Workers
) -> None:
    workers.research = hangs
    running = await start_conductor(tmp_path / "conductor.db", workers)
    ids = [task.task_id for task in await asyncio.gather(*(submit(running) for _ in range(30)))]
    await until(lambda: len(workers.seen) == 30)
    await running.kill()
    await until(lambda: len(workers.cancelled) == 30)
    go, now, most = asyncio.Event(), 0, 0

    async def research(request: Any) -> Sequence[Any]:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await go.wait()
        now -= 1
        return [research_result(finding())]

    workers.research = research
    running = await start(max_in_flight=4, max_queued=10)
    await until(lambda: now == 4)
    rounds = 0

    async def looked_again() -> bool:
        nonlocal rounds
        rounds += 1
        rows = [await running.store.stream(("task", task_id)) for task_id in ids]
        owned = sum(row.owner == running.actor._lease.name for row in rows)
        assert owned <= 4 + 10, f"{owned} tasks taken over by a replica with room for 14"
        return rounds > 5

    await until(looked_again)
    go.set()
    for task_id in ids:
        assert (await running.ended(task_id, 20)).status == COMPLETED
        check_story(await running.events(task_id))
    assert most == 4


async def test_too_many_requests_on_one_project_are_refused_and_the_others_all_answered(busy: Running) -> None:
    def ask(count: int) -> list[asyncio.Future[Any]]:
        calls = [move(busy, "WaitForConfirmation", summary=f"{number}") for number in range(count)]
        return [asyncio.ensure_future(outcome_of(call)) for call in calls]

    busy.store.before.clear()
    first = ask(MAX_WAITING // 2) + ask(MAX_WAITING // 2)
    boxes = busy.actor._mailboxes
    await until(lambda: ("project", "p") in boxes and len(boxes["project", "p"].waiting) == MAX_WAITING)
    assert set(await asyncio.gather(*ask(50))) == {"OVER_CAPACITY"}
    assert await outcome_of(move(busy, "WaitForConfirmation", request_id="late")) == "OVER_CAPACITY"
    elsewhere = asyncio.ensure_future(outcome_of(move(busy, "WaitForConfirmation", "another")))
    busy.store.open(True)
    assert isinstance(await elsewhere, project_pb2.ProjectState)
    answers = await asyncio.gather(*first)
    told = sorted(answer.waiting_confirmation.confirmation_id for answer in answers)
    log = [event for event in await busy.events(project_id="p") if event.type == "WAITING_CONFIRMATION"]
    assert len(set(told)) == MAX_WAITING  # each was carried out, once
    assert sorted(event.waiting_confirmation.confirmation_id for event in log) == told
    late = await move(busy, "WaitForConfirmation", request_id="late")  # nothing was remembered of the refusal
    assert late.waiting_confirmation.confirmation_id not in told


async def test_a_burst_of_thousands_of_calls_is_refused_with_a_reason(busy: Running) -> None:
    async def code_of(call: Any) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value.code()

    busy.store.before.clear()
    extra = 1500
    calls = [asyncio.ensure_future(code_of(move(busy, "WaitForConfirmation"))) for _ in range(MAX_WAITING + extra)]
    await until(lambda: sum(call.done() for call in calls) >= extra)
    codes = Counter(call.result().name for call in calls if call.done())
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    busy.store.open(True)
    assert set(codes) == {"RESOURCE_EXHAUSTED"}, codes


async def test_a_worker_that_floods_fills_no_mailbox_while_the_store_is_slow(start: Start, workers: Workers) -> None:
    progress = researcher_pb2.ResearchProgress(message="x" * 500, step=1, total_steps=2)
    flood = [researcher_pb2.ResearchResponse(progress=progress)] * 5000
    go = asyncio.Event()

    async def chatters(_: Any) -> Sequence[Any]:
        await go.wait()
        return [*flood, research_result(finding())]

    workers.research = chatters
    running = await start(wrap=Gate)
    task_id = (await submit(running)).task_id
    await until(lambda: workers.seen)
    running.store.before.clear()
    go.set()
    await until(lambda: running.store.held)
    box = running.actor._mailboxes["task", task_id]
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, len(box.waiting))
        return not running.router._calls or most > 10 * MAX_PROGRESS

    await until(over, 5)
    running.store.open(True)
    assert (await running.ended(task_id)).status == COMPLETED
    assert most <= 2 * MAX_PROGRESS, f"{most} messages of one worker waited in memory"
