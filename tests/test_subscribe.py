"""The promises of the event stream, over real gRPC with writers at work, and through restarts of the Conductor."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, error_pb2, event_pb2, project_pb2, task_pb2
from google.protobuf import duration_pb2

from services.common.errors import Reason
from services.conductor import subscribe as subscribe_module
from services.conductor.store.base import Append, StoreUnavailable, View
from services.conductor.subscribe import TAIL
from tests.conftest import Running, until
from tests.fakes import Workers, hangs
from tests.test_actor import Gate, Start, move, reason_of, start

CHECKPOINT, SNAPSHOT = "conductor.checkpoint", "conductor.snapshot"
PARSE, DATA = project_pb2.STAGE_PARSE_INTENT, project_pb2.STAGE_DATA_SOURCE
IN_PROGRESS = project_pb2.STAGE_STATUS_IN_PROGRESS

__all__ = ["start"]  # a fixture


def subscribe(running: Running, **fields: Any) -> Any:
    return running.stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(**fields))


def stream(running: Running, metadata: Sequence[tuple[str, str]] = (), **fields: Any) -> Any:
    return running.stub.StreamEvents(conductor_pb2.StreamEventsRequest(**fields), metadata=metadata)


async def take(call: Any, count: int, seconds: float = 10) -> list[event_pb2.Event]:
    """Returns the next `count` events of a stream, checkpoints left out."""
    events: list[event_pb2.Event] = []
    async with asyncio.timeout(seconds):
        while len(events) < count:
            event = await call.read()
            assert event is not grpc.aio.EOF, "the stream ended"
            if event.type != CHECKPOINT:
                events.append(event)
    return events


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, error_pb2.ErrorReason.ValueType]:
    """Reads a stream to the end it comes to; returns its code and reason."""
    try:
        async with asyncio.timeout(10):
            while await call.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError as error:
        return error.code(), reason_of(error)
    raise AssertionError("the stream ended well")


async def fill(running: Running, count: int, name: str = "bulk", size: int = 0, **view: str) -> None:
    """Appends `count` events of one stream to the log, past the actor."""
    fields = {"project_id": "", "desktop_id": "", **view}
    shown = View(1, 1, created_at=1, state=b"", **fields)
    version = 0
    while version < count:
        step = min(500, count - version)
        progress = event_pb2.TaskProgress(message="x" * size)
        event = event_pb2.Event(
            type="conductor.task.progress", task_id=name, project_id=fields["project_id"], task_progress=progress
        )
        await running.store.append(Append(("task", name), version, 1, "me", [event] * step, shown))
        version += step


@contextlib.asynccontextmanager
async def writers(running: Running, count: int = 4) -> AsyncIterator[None]:
    """Keeps tasks and project moves coming while the block runs."""

    async def write(number: int) -> None:
        turn = 0
        while True:
            turn += 1
            project = f"p-{number}"
            with contextlib.suppress(grpc.aio.AioRpcError):  # when the Conductor is being killed
                await running.execute(project_id=project, correlation_id=f"c-{number}", desktop_id=f"d-{number}")
                await move(running, "TransitionTo", project, status=IN_PROGRESS, message=str(turn))
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(write(number)) for number in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def head_of(running: Running) -> int:
    return int((await running.store.bounds())[1])


def sequences(events: Sequence[event_pb2.Event]) -> list[int]:
    return [event.sequence for event in events]


# ---- the seven promises ----


async def test_ordered_unique_and_gapless_while_writers_are_at_work(conductor: Running) -> None:
    async with writers(conductor):
        events = await take(subscribe(conductor, after_sequence=0), 200)
    assert sequences(events) == list(range(1, 201))
    assert events == (await conductor.events())[:200]  # what is streamed is what is stored
    assert len({event.event_id for event in events}) == 200


async def test_resumable_from_any_sequence(conductor: Running) -> None:
    async with writers(conductor):
        await until(lambda: conductor.tail.head > 60)
        for cursor in range(0, 60, 7):
            call = subscribe(conductor, after_sequence=cursor)
            assert sequences(await take(call, 20)) == list(range(cursor + 1, cursor + 21))
            call.cancel()


async def test_resumable_through_restarts_of_the_conductor(start: Start) -> None:
    seen: list[event_pb2.Event] = []
    for _ in range(4):
        running = await start()
        async with writers(running):
            call = subscribe(running, after_sequence=seen[-1].sequence if seen else 0)
            seen += await take(call, 60)
            again = await start()  # kills the one before, with streams and writers at work
        seen += await take(subscribe(again, after_sequence=seen[-1].sequence), await head_of(again) - len(seen))
        assert sequences(seen) == list(range(1, len(seen) + 1)) and seen == (await again.events())[: len(seen)]


async def test_complete_from_0_through_the_log_and_its_tail(start: Start) -> None:
    running = await start()
    await fill(running, TAIL + 300)
    async with writers(running):
        events = await take(subscribe(running, after_sequence=0), TAIL + 400)
    assert sequences(events) == list(range(1, len(events) + 1))
    running = await start()  # nothing in memory now
    events = await take(subscribe(running, after_sequence=0), TAIL + 400)
    assert sequences(events) == list(range(1, len(events) + 1))


async def test_hydrated_with_the_open_confirmation_first_and_then_everything_after_it(conductor: Running) -> None:
    question = (await move(conductor, "WaitForConfirmation", summary="Is this right?")).waiting_confirmation
    async with writers(conductor, 2):
        for turn in range(12):
            call = subscribe(conductor, project_id="p")
            await asyncio.gather(*(move(conductor, "ProposePlan", summary=f"{turn}.{i}") for i in range(3)))
            await conductor.execute(project_id="p")
            first, *rest = await take(call, 2)
            state = first.snapshot.project
            assert (first.type, first.stream_sequence, first.project_id) == (SNAPSHOT, 0, "p")
            assert state.waiting_confirmation == question and state.as_of_sequence == first.sequence
            rest += await take(call, 2)
            call.cancel()
            behind = (await conductor.store.read(first.sequence, 3, ("project", "p"))).events
            assert rest == list(behind)
            plans = (await conductor.store.read(0, 10**6, ("project", "p"))).events
            before = [e.plan_proposed for e in plans if e.type == "PLAN_PROPOSED" and e.sequence <= first.sequence]
            assert state.plan == (before[-1] if before else project_pb2.Plan())


async def test_hydrated_with_the_task_and_with_the_default_of_an_unseen_project(
    conductor: Running, workers: Workers
) -> None:
    workers.research = hangs
    task_id = (await conductor.execute()).task_id
    await until(lambda: workers.seen)
    (snapshot,) = await take(subscribe(conductor, task_id=task_id), 1)
    shown = await conductor.stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id))
    assert snapshot.snapshot.task == shown and snapshot.status == "TASK_STATUS_WAITING_WORKER"
    unseen = subscribe(conductor, project_id="unseen")
    assert (await take(unseen, 1))[0].snapshot.project.current_stage == PARSE
    await move(conductor, "Confirm", "unseen")
    assert (await take(unseen, 1))[0].stream_sequence == 1
    assert not (await conductor.stub.ListProjects(conductor_pb2.ListProjectsRequest())).projects[1:]


async def test_alive_with_checkpoints_that_can_be_resumed_from(start: Start) -> None:
    running = await start(heartbeat=0.2)
    task_id = (await running.execute()).task_id
    await running.ended(task_id)
    calls = [subscribe(running, after_sequence=7), subscribe(running, after_sequence=0, project_id="quiet")]
    for call in calls:
        for _ in range(3):
            checkpoint = await asyncio.wait_for(call.read(), 2)
            assert checkpoint == event_pb2.Event(type=CHECKPOINT, sequence=7, log_id=running.store.log_id)
    await running.execute(project_id="quiet")
    for call in (calls[1], subscribe(running, after_sequence=7, project_id="quiet")):
        assert (await take(call, 1))[0].sequence == 8


async def test_alive_though_nothing_that_happens_matches(start: Start) -> None:
    running = await start(heartbeat=0.2)
    call = subscribe(running, after_sequence=0, types=["PLAN_APPROVED"])
    async with writers(running):
        assert (await asyncio.wait_for(call.read(), 1.5)).type == CHECKPOINT


# ---- state and stream ----


async def test_a_state_joins_the_stream_without_a_hole(conductor: Running) -> None:
    async with writers(conductor):
        for turn in range(20):
            moves = [
                move(conductor, "TransitionTo", "p-0", status=IN_PROGRESS, message=f"{turn}.{i}") for i in range(3)
            ]
            state = await conductor.stub.GetState(conductor_pb2.GetStateRequest(project_id="p-0"))
            await asyncio.gather(*moves)
            log = await conductor.events(project_id="p-0")
            behind = [event for event in log if event.sequence > state.as_of_sequence]
            call = subscribe(conductor, project_id="p-0", after_sequence=state.as_of_sequence)
            assert await take(call, len(behind)) == behind
            call.cancel()
            said = [e.stage_status.message for e in log if e.type == "STAGE_STATUS" and e not in behind]
            assert state.stages[0].message == (said[-1] if said else "")


async def test_filters_never_reorder_and_apply_before_limits(conductor: Running) -> None:
    await fill(conductor, 2500, "foreign")  # more than is read from the log at once
    async with writers(conductor, 3):
        tasks = [
            await conductor.execute(
                project_id="mine", correlation_id="c-mine", scope={"session_id": "s", "user_id": f"u-{i}"}
            )
            for i in range(5)
        ]
        await move(conductor, "Confirm", "mine")
        for task in tasks:
            await conductor.ended(task.task_id)
    await fill(conductor, 2500, "foreign-2")
    log = await conductor.events()
    cases: list[tuple[dict[str, Any], Callable[[event_pb2.Event], bool]]] = [
        ({"task_id": tasks[2].task_id}, lambda e: e.task_id == tasks[2].task_id),
        ({"project_id": "mine"}, lambda e: e.project_id == "mine"),
        ({"project_id": "mine", "types": ["STAGE_STATUS"]}, lambda e: e.project_id == "mine" and not e.task_id),
        ({"types": ["conductor.task.completed", "CONFIRMATION_ANSWERED"]}, lambda e: ".completed" in e.type),
        ({"correlation_id": "c-mine"}, lambda e: e.correlation_id == "c-mine"),
        ({"scope": {"session_id": "s"}}, lambda e: e.scope.session_id == "s"),
        ({"scope": {"user_id": "u-3", "session_id": "s"}}, lambda e: e.scope.user_id == "u-3"),
        ({"scope": {"desktop_id": "d-1"}, "correlation_id": "c-1"}, lambda e: e.correlation_id == "c-1" and e.task_id),
    ]
    for fields, wanted in cases:
        expected = [event for event in log if wanted(event) or event.type in fields.get("types", [])]
        if "project_id" in fields and "types" in fields:
            expected = [e for e in log if e.project_id == "mine" and e.type == "STAGE_STATUS"]
        assert expected, fields
        for after in (0, expected[0].sequence):
            behind = [event for event in expected if event.sequence > after]
            assert await take(subscribe(conductor, after_sequence=after, **fields), len(behind)) == behind


async def test_a_filter_lets_nothing_else_through(start: Start) -> None:
    running = await start(heartbeat=0.2)
    await fill(running, 3000)
    call = subscribe(running, after_sequence=0, types=["PLAN_APPROVED"], task_id=None)
    checkpoint = event_pb2.Event(type=CHECKPOINT, sequence=3000, log_id=running.store.log_id)
    assert await asyncio.wait_for(call.read(), 5) == checkpoint


# ---- many, slow and dead subscribers ----


async def test_50_subscribers_joining_under_load_all_see_everything(conductor: Running) -> None:
    async def follow(number: int) -> None:
        after = number % 10
        await until(lambda: conductor.tail.head >= 10 * number // 5)
        events = await take(subscribe(conductor, after_sequence=after), 120, 15)
        assert sequences(events) == list(range(after + 1, after + 121))

    async with writers(conductor):
        await asyncio.gather(*map(follow, range(50)))


async def test_a_slow_reader_and_one_who_vanishes_cost_nobody_anything(start: Start) -> None:
    running = await start(max_streams=3)
    slow, dead = subscribe(running, after_sequence=0), subscribe(running, after_sequence=0)
    live = subscribe(running, after_sequence=0)
    await fill(running, 5500, size=400)
    assert sequences(await take(live, 5500)) == list(range(1, 5501))  # the others have read nothing
    dead.cancel()
    live.cancel()
    assert (await running.ended((await running.execute()).task_id)).status == task_pb2.TASK_STATUS_COMPLETED
    events = await take(slow, 5507)
    assert sequences(events) == list(range(1, 5508))
    for _ in range(5):  # the streams of those who left are free again
        others = [subscribe(running, after_sequence=5500) for _ in range(2)]
        for other in others:
            assert len(await take(other, 7)) == 7
            other.cancel()
        await until(lambda: running.tail._bells and sum(map(len, running.tail._bells.values())) == 1)


async def test_more_streams_than_allowed_are_refused(start: Start) -> None:
    running = await start(max_streams=2, heartbeat=0.1)
    calls = [subscribe(running, after_sequence=0) for _ in range(2)]
    for call in calls:
        await call.read()
    over = grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_OVER_CAPACITY
    assert await refusal_of(subscribe(running, after_sequence=0)) == over


async def test_a_log_that_could_not_be_read_for_a_while_leaves_no_hole(start: Start) -> None:
    class Blind(Gate):
        blind = False

        def on_commit(self, listener: Any) -> None:
            self._real.on_commit(lambda _: listener(()))  # as if another process had written: it has to be read

        async def read(self, *args: Any) -> Any:
            self.refused += self.blind
            if self.blind:
                raise StoreUnavailable("IOError: disk I/O error")
            return await self._real.read(*args)

    running = await start(wrap=Blind)
    call = subscribe(running, after_sequence=0)
    await running.ended((await running.execute()).task_id)
    running.store.blind = True
    task_id = (await running.execute()).task_id
    await until(lambda: running.store.refused)
    running.store.blind = False
    await running.ended(task_id)
    assert sequences(await take(call, 14, 5)) == list(range(1, 15))


async def test_a_cursor_of_another_log_is_refused_where_it_is_told(start: Start) -> None:
    running = await start(heartbeat=0.1)
    await running.ended((await running.execute()).task_id)
    call = subscribe(running, after_sequence=0)
    while not (told := await call.read()).log_id:
        pass
    assert told.type == CHECKPOINT and told.log_id == running.store.log_id
    assert len(await take(subscribe(running, after_sequence=3, log_id=told.log_id), 4)) == 4
    out = grpc.StatusCode.OUT_OF_RANGE, Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE
    assert await refusal_of(subscribe(running, after_sequence=3, log_id="another")) == out


async def test_a_repeat_waits_for_the_end_also_when_the_beginning_has_left_memory(
    start: Start, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_module, "TAIL", 5)
    running = await start()
    workers.research = hangs
    asked = {"objective": "Why?", "output_mode": 1, "request_id": "r-1"}
    first = await running.stub.Execute(conductor_pb2.ExecuteRequest(**asked))
    await fill(running, 20)
    again = conductor_pb2.ExecuteRequest(**asked, wait=duration_pb2.Duration(seconds=30))
    waiting = asyncio.ensure_future(running.stub.Execute(again))
    await until(lambda: running.tail._ends)
    await running.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=first.task_id))
    answer = await asyncio.wait_for(waiting, 10)
    assert (answer.task_id, answer.status) == (first.task_id, task_pb2.TASK_STATUS_CANCELLED)
