"""Backpressure: what a full Conductor says, and what it keeps in memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, project_pb2, researcher_pb2, task_pb2, terminal_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.errors import Reason, Refusal
from services.conductor import actor as actor_module
from services.conductor.actor import MAX_WAITING
from services.conductor.state.task import MAX_PROGRESS
from tests.conftest import Running, refused, start_conductor, until
from tests.fakes import Workers, command_result, finding, finds, hangs, research_result
from tests.test_actor import COMPLETED, Gate, Start, check_story, move, outcome_of, reason_of, start, submit

__all__ = ["start"]  # a fixture


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


async def test_states_of_idle_projects_are_not_all_kept_in_memory(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "IDLE_PROJECTS", 3)
    running = await start()
    for again in range(2):
        await asyncio.gather(*(move(running, "ProposePlan", f"p-{i}", summary=f"Plan {again}") for i in range(20)))
        assert len(running.actor._mailboxes) <= 3
    states = (await running.stub.ListProjects(conductor_pb2.ListProjectsRequest())).projects
    assert [state.plan.summary for state in states] == ["Plan 1"] * 20


async def test_who_waits_for_a_full_worker_keeps_nobody_from_another(start: Start, workers: Workers) -> None:
    full = True

    async def run(request: Any) -> Sequence[Any]:
        if full:
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, "All places are taken.")
        return command_result()

    workers.run = run
    running = await start(max_in_flight=2, max_queued=9)
    hints = task_pb2.Hints(capabilities=[task_pb2.CAPABILITY_TERMINAL], commands=[terminal_pb2.Command(argv=["true"])])
    tasks = [(await submit(running, hints=hints, desktop_id="big")).task_id for _ in range(8)]
    await until(lambda: len({request.call_id for request in workers.seen}) > 10)
    assert (await running.ended((await submit(running)).task_id, 3)).status == COMPLETED
    assert running.actor.room == 2 + 9 - 8, "whoever waits has a place all the same"
    gone = tasks.pop()
    await running.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=gone))
    full = False
    for task_id in tasks:
        assert (await running.ended(task_id, 20)).status == COMPLETED
        check_story(await running.events(task_id))
    await until(lambda: running.actor.room == 2 + 9)


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
