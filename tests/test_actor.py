"""The actor's promises, through a whole Conductor: durable first, started means ended, same request same answer."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import (
    conductor_pb2,
    conductor_pb2_grpc,
    error_pb2,
    event_pb2,
    project_pb2,
    report_writer_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)

from services.common.errors import Reason
from services.common.status import from_rpc_error
from services.conductor import actor as actor_module
from services.conductor.store.base import Append, Outcome, StoreUnavailable
from tests.conftest import MARKDOWN, Running, refused, start_conductor, until
from tests.fakes import FailingStore, Workers, finding, finds, hangs, research_result, runs, writes

ROOT = Path(__file__).parent.parent
PARSE, DATA = project_pb2.STAGE_PARSE_INTENT, project_pb2.STAGE_DATA_SOURCE
ENDINGS = {"conductor.task.completed", "conductor.task.failed", "conductor.task.cancelled"}
COMPLETED, FAILED = task_pb2.TASK_STATUS_COMPLETED, task_pb2.TASK_STATUS_FAILED
Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(tmp_path: Path, workers: Workers) -> AsyncIterator[Start]:
    """Starts a Conductor on the test's file, after killing the one before."""
    running: list[Running] = []

    async def again(**options: Any) -> Running:
        if running:
            await running.pop().kill()
        running.append(await start_conductor(tmp_path / "conductor.db", workers, **options))
        return running[0]

    yield again
    await running[0].kill()


@pytest.fixture(autouse=True)
def short_store_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "STORE_RETRY_S", 0.02)


def reason_of(error: grpc.RpcError) -> error_pb2.ErrorReason.ValueType:
    found = from_rpc_error(error)
    assert found is not None
    return found.reason


async def outcome_of(call: Awaitable[Any]) -> Any:
    """Returns a call's answer, or the reason it was refused with."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return Reason.Name(reason_of(error)).removeprefix("ERROR_REASON_")


def check_story(events: Sequence[event_pb2.Event]) -> None:
    """One start, first; one ending, last; one result for each call, after it; nothing open at the end."""
    assert [event.stream_sequence for event in events] == list(range(1, len(events) + 1))
    types = [event.type for event in events]
    assert types[0] == "conductor.task.started" and types.count("conductor.task.started") == 1
    assert [kind in ENDINGS for kind in types] == [False] * (len(types) - 1) + [True]
    steps = [e.worker_call.call_id or e.worker_result.call_id for e in events if e.type.startswith("conductor.worker")]
    assert steps[::2] == steps[1::2] and len(set(steps)) == len(steps) / 2
    assert all(event.worker_result.duration.ToNanoseconds() >= 0 for event in events)


class Gate:
    """A store that can be held shut before or after its commit, or refuse for a while, and counts what it refused."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.before, self.after = asyncio.Event(), asyncio.Event()
        self.open(True)
        self.down, self.refused, self.held = False, 0, 0

    def open(self, wide: bool) -> None:
        for gate in (self.before, self.after):
            gate.set() if wide else gate.clear()

    async def append(self, append: Append) -> Outcome:
        if self.down:
            self.refused += 1
            raise StoreUnavailable("FullError: database or disk is full")
        self.held += not (self.before.is_set() and self.after.is_set())
        await self.before.wait()
        outcome: Outcome = await self._real.append(append)
        await self.after.wait()
        return outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def collect(stream: Any, seen: list[event_pb2.Event]) -> None:
    async for event in stream:
        seen.append(event)


def move(running: Running, rpc: str, project: str = "p", **fields: Any) -> Any:
    """Calls an rpc on a project's first stage; the defaults are legal once."""
    stage = {"TransitionTo": {"status": project_pb2.STAGE_STATUS_COMPLETED}, "ProposePlan": {"summary": "A plan"}}
    request = getattr(conductor_pb2, f"{rpc}Request")(
        **{"project_id": project, "stage_id": PARSE, **stage.get(rpc, {}), **fields}
    )
    return getattr(running.stub, rpc)(request)


def submit(running: Running, **fields: Any) -> Any:
    request = conductor_pb2.ExecuteRequest(**{"objective": "Why?", "output_mode": MARKDOWN, **fields})
    return running.stub.Execute(request)


async def holds(running: Running, count: int) -> bool:
    return len(await running.events()) >= count


async def free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        return int(server.sockets[0].getsockname()[1])


async def release(seen: list[Any], answer: asyncio.Event, request: Any) -> Sequence[Any]:
    seen.append(request)
    await answer.wait()
    return [research_result(finding())]


# ---- durable before anything else ----


async def test_nothing_is_answered_seen_or_started_before_it_is_durable(start: Start, workers: Workers) -> None:
    running = await start(wrap=Gate)
    seen: list[event_pb2.Event] = []
    stream = running.stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(after_sequence=0))
    reading = asyncio.create_task(collect(stream, seen))
    running.store.before.clear()
    calls = [asyncio.ensure_future(call) for call in (running.execute(), move(running, "TransitionTo"))]
    await until(lambda: running.store.held == 2)
    await asyncio.wait([*calls, reading], timeout=0.1)
    assert not any(call.done() for call in calls) and not seen and not workers.seen
    running.store.after.clear()
    running.store.before.set()
    await until(lambda: seen)  # durable now, so it may be seen
    await asyncio.wait(calls, timeout=0.1)
    assert not any(call.done() for call in calls) and not workers.seen
    running.store.open(True)
    assert (await running.ended((await calls[0]).task_id)).status == COMPLETED
    assert (await calls[1]).stages[0].status == project_pb2.STAGE_STATUS_COMPLETED
    reading.cancel()


async def test_a_store_that_fails_before_its_commit_keeps_and_starts_nothing(start: Start, workers: Workers) -> None:
    running = await start(wrap=FailingStore)
    running.store.fail_before = True
    for call in (submit(running, request_id="r"), move(running, "Confirm"), move(running, "ProposePlan")):
        assert await outcome_of(call) == "STORE_UNAVAILABLE"
    assert await running.events() == [] and not workers.seen
    running.store.fail_before = False
    assert (await running.ended((await submit(running, request_id="r")).task_id)).status == COMPLETED
    assert (await move(running, "Confirm")).current_stage == DATA


async def test_what_a_failing_store_kept_after_all_is_found_again_by_its_request_id(
    start: Start, workers: Workers
) -> None:
    running = await start(wrap=FailingStore)
    running.store.fail_after = True
    assert await outcome_of(submit(running, request_id="r")) == "STORE_UNAVAILABLE"
    running.store.fail_after = False
    answer = await submit(running, request_id="r")
    running = await start()
    assert (await running.ended(answer.task_id)).status == COMPLETED
    check_story(await running.events(answer.task_id))


@pytest.mark.parametrize("moment", ["submit", "result"])
async def test_a_task_ends_though_the_store_failed_after_its_commit(
    start: Start, workers: Workers, moment: str
) -> None:
    running = await start(wrap=FailingStore)
    seen: list[Any] = []
    answer = asyncio.Event()
    workers.research = lambda request: release(seen, answer, request)
    running.store.fail_after = moment == "submit"
    await outcome_of(submit(running, request_id="r"))
    if moment == "result":
        await until(lambda: seen)
        running.store.fail_after = True
    answer.set()
    await until(lambda: holds(running, 1 if moment == "submit" else 4))
    running.store.fail_after = False
    task = await submit(running, request_id="r")
    assert (await running.ended(task.task_id, 2)).status == COMPLETED


async def test_tasks_end_once_a_store_that_was_down_is_back(start: Start, workers: Workers) -> None:
    running = await start(wrap=Gate)
    seen: list[Any] = []
    answer = asyncio.Event()
    workers.research = lambda request: release(seen, answer, request)
    tasks = [await running.execute() for _ in range(5)]
    await until(lambda: len(seen) == 5)
    running.store.down = True
    answer.set()
    await until(lambda: running.store.refused >= 15)
    running.store.down = False
    for task in tasks:
        assert (await running.ended(task.task_id)).status == COMPLETED
        check_story(await running.events(task.task_id))


# ---- refusals ----


async def test_refusals_leave_no_trace(conductor: Running, workers: Workers) -> None:
    task = await conductor.execute()
    await conductor.ended(task.task_id)
    await move(conductor, "WaitForConfirmation")
    state = conductor_pb2.GetStateRequest(project_id="p")
    before = await conductor.events(), await conductor.stub.GetState(state), len(workers.seen)
    stage = {"stage_id": DATA}
    calls = {
        "INVALID_REQUEST": [submit(conductor, objective=" "), move(conductor, "Confirm", approved=False)],
        "ILLEGAL_TRANSITION": [
            conductor.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task.task_id)),
            move(conductor, "TransitionTo", request_id="free"),
            move(conductor, "TransitionTo", **stage),
            move(conductor, "WaitForConfirmation", **stage),
            move(conductor, "ProposePlan", **stage),
        ],
        "TASK_NOT_FOUND": [conductor.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id="nobody"))],
        "STALE_CONFIRMATION": [move(conductor, "Confirm", **stage), move(conductor, "Confirm", confirmation_id="x")],
    }
    for reason, some in calls.items():
        assert [await outcome_of(call) for call in some] == [reason] * len(some)
    assert (await conductor.events(), await conductor.stub.GetState(state), len(workers.seen)) == before
    assert (await move(conductor, "Confirm", request_id="free")).current_stage == DATA  # a refusal uses up no id


# ---- same request, same answer ----

RPCS = ["Execute", "TransitionTo", "WaitForConfirmation", "ProposePlan", "Confirm"]
OTHER_BODY: dict[str, dict[str, Any]] = {
    "Execute": {"objective": "Why not?"},
    "TransitionTo": {"message": "other"},
    "WaitForConfirmation": {"summary": "other"},
    "ProposePlan": {"summary": "other"},
    "Confirm": {"approved": False, "reason": "other"},
}


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_repeated_request_gets_the_first_answer_and_happens_once(
    start: Start, workers: Workers, rpc: str
) -> None:
    def ask(running: Running, **fields: Any) -> Any:
        return submit(running, **fields) if rpc == "Execute" else move(running, rpc, **fields)

    workers.research = hangs
    running = await start()
    answers = await asyncio.gather(*(ask(running, request_id="r") for _ in range(20)))
    firsts = [event for event in await running.events() if event.stream_sequence == 1]
    assert len(firsts) == 1 and all(answer == answers[0] for answer in answers)
    for _ in range(2):
        assert await ask(running, request_id="r") == answers[0]
        assert await ask(running, request_id="r", correlation_id="another") == answers[0]
        head = await running.store.bounds()
        assert await outcome_of(ask(running, request_id="r", **OTHER_BODY[rpc])) == "REQUEST_ID_REUSED"
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            await ask(running, request_id="r", **({"project_id": "other"}))
        if rpc != "Execute":  # a resumed task goes on meanwhile
            assert await running.store.bounds() == head
        running = await start()
    assert len([event for event in await running.events() if event.stream_sequence == 1]) == 1


# ---- restart ----

TERMINAL = task_pb2.Hints(capabilities=[task_pb2.CAPABILITY_TERMINAL], commands=[terminal_pb2.Command(argv=["true"])])
IDEMPOTENT = task_pb2.Hints(
    capabilities=[task_pb2.CAPABILITY_TERMINAL], commands=[terminal_pb2.Command(argv=["true"], idempotent=True)]
)


@pytest.mark.parametrize(
    ("script", "request_type", "hints", "status", "calls"),
    [
        ("research", researcher_pb2.ResearchRequest, None, COMPLETED, 4),
        ("run", terminal_pb2.RunRequest, IDEMPOTENT, COMPLETED, 4),
        ("run", terminal_pb2.RunRequest, TERMINAL, FAILED, 1),
        ("write", report_writer_pb2.WriteReportRequest, None, COMPLETED, 4),
    ],
    ids=["researcher", "idempotent command", "command", "report writer"],
)
async def test_a_restart_takes_up_a_call_under_way_and_runs_no_command_twice(
    start: Start, workers: Workers, script: str, request_type: type, hints: Any, status: int, calls: int
) -> None:
    setattr(workers, script, hangs)
    running = await start()
    task_id = (await running.execute(hints=hints)).task_id
    for kills in range(1, 4 if calls > 1 else 2):
        await until(lambda kills=kills: workers.count(request_type) == kills)
        if kills == 3:
            workers.research, workers.run, workers.write = finds, runs, writes
        running = await start()
    task = await running.ended(task_id)
    asked = [request for request in workers.seen if isinstance(request, request_type)]
    assert (task.status, len(asked)) == (status, calls)
    events = await running.events(task_id)
    check_story(events)
    lost = [
        e.worker_result.error for e in events if e.worker_result.error.reason == Reason.ERROR_REASON_OUTCOME_UNKNOWN
    ]
    assert len(lost) == max(1, calls - 1)
    if status == FAILED:
        assert task.error == lost[0] and task.error.retryable
    if script == "write":
        assert all(request == asked[0] for request in asked)  # so that the writer knows the repeat


async def test_a_restart_keeps_queued_tasks(start: Start, workers: Workers) -> None:
    workers.research = hangs
    running = await start(max_in_flight=1)
    ids = [(await running.execute()).task_id for _ in range(6)]
    workers.research = finds
    running = await start(max_in_flight=1)
    for task_id in ids:
        assert (await running.ended(task_id)).status == COMPLETED
        check_story(await running.events(task_id))


async def test_kill_9_of_the_service_loses_no_task(tmp_path: Path, workers: Workers) -> None:
    workers.research = hangs
    port, target = await free_port(), f"127.0.0.1:{workers.port}"
    settings = {"LISTEN": f"127.0.0.1:{port}", "STORE": str(tmp_path / "log.db"), "RESEARCHER": target}
    environment = {f"CONDUCTOR_{name}": value for name, value in settings.items()}
    path = f"{ROOT}:{ROOT / 'gen'}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.conductor", cwd=ROOT, env={**os.environ, **environment, "PYTHONPATH": path}
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
        stub: Any = conductor_pb2_grpc.ConductorStub(channel)
        request = conductor_pb2.ExecuteRequest(objective="Why?", output_mode=MARKDOWN)
        ids = [(await stub.Execute(request)).task_id for _ in range(10)]
        process.kill()
    await process.wait()
    workers.research = finds
    running = await start_conductor(tmp_path / "log.db", workers)
    for task_id in ids:
        assert (await running.ended(task_id)).status == COMPLETED
        check_story(await running.events(task_id))
    await running.kill()
