"""The four services and Envoy as processes: the whole path, and any of them killed at any moment."""

import asyncio
import hashlib
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, error_pb2, event_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2

from ops.stack import Stack
from services.conductor.events import TERMINAL_TYPES
from tests.conftest import MARKDOWN, until

TASKS = 100
TERMINAL = task_pb2.CAPABILITY_TERMINAL
RESEARCHER = task_pb2.CAPABILITY_RESEARCHER


def stub_of(stack: Stack, name: str = "conductor") -> tuple[Any, Any]:
    """Returns a channel and a stub, to the Conductor itself or through the edge."""
    channel = grpc.aio.insecure_channel(stack.addresses[name], [("grpc.use_local_subchannel_pool", 1)])
    return channel, conductor_pb2_grpc.ConductorStub(channel)


def request(objective: str = "At what temperature does water boil?", **fields: Any) -> conductor_pb2.ExecuteRequest:
    return conductor_pb2.ExecuteRequest(objective=objective, output_mode=MARKDOWN, **fields)


def terminal(script: str, **fields: Any) -> task_pb2.Hints:
    return task_pb2.Hints(capabilities=[TERMINAL], commands=[terminal_pb2.Command(script=script, **fields)])


async def history(stub: Any) -> list[event_pb2.Event]:
    """Returns everything in the log, read as a subscriber from the beginning to the present end."""
    head = (await stub.GetState(conductor_pb2.GetStateRequest(project_id="nobody"))).as_of_sequence
    events: list[event_pb2.Event] = []
    stream = stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(after_sequence=0))
    async for event in stream:
        events.append(event)
        if event.sequence >= head:
            stream.cancel()
            return events
    raise AssertionError("the stream ended before the log's end")


def check_promises(events: list[event_pb2.Event]) -> None:
    """Checks what must hold of every log: gapless, started means ended, calls and results paired, last is last."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    by_task: dict[str, list[event_pb2.Event]] = {}
    for event in events:
        by_task.setdefault(event.task_id, []).append(event)
    for task_id, own in by_task.items():
        assert [event.stream_sequence for event in own] == list(range(1, len(own) + 1))
        assert own[0].type == "conductor.task.started", task_id
        assert [event.type in TERMINAL_TYPES for event in own].count(True) == 1, task_id
        assert own[-1].type in TERMINAL_TYPES, task_id
        calls = [event.worker_call.call_id for event in own if event.HasField("worker_call")]
        results = [event.worker_result.call_id for event in own if event.HasField("worker_result")]
        assert calls == results, task_id


def check_reports(stack: Stack, events: list[event_pb2.Event]) -> int:
    """Checks that every completed task's report is on disk, whole as its writer described it. Returns how many."""
    reports = [event.worker_result.report for event in events if event.worker_result.HasField("report")]
    for report in reports:
        content = (stack.run_dir / report.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (report.size_bytes, report.sha256)
    completed = [event for event in events if event.HasField("task_completed")]
    assert {event.task_completed.report_path for event in completed} == {report.path for report in reports}
    on_disk = {f"reports/{path.name}" for path in (stack.run_dir / "reports").iterdir()}
    paths = {report.path for report in reports}
    beside = {path.removesuffix(".md") for path in paths}  # a folder for each: what was found, as data
    assert paths <= on_disk <= paths | beside, "a trace of something that did not complete"
    return len(completed)


async def all_ended(stub: Any, count: int) -> bool:
    tasks = (await stub.ListTasks(conductor_pb2.ListTasksRequest(page_size=1000))).tasks
    assert len(tasks) == count
    return all(task.status >= task_pb2.TASK_STATUS_COMPLETED for task in tasks)


async def test_research_and_commands_become_one_report_through_all_services(stack: Stack) -> None:
    channel, stub = stub_of(stack, "envoy")
    command = terminal_pb2.Command(argv=["uname", "-s"])
    hints = task_pb2.Hints(capabilities=[RESEARCHER, TERMINAL], commands=[command])
    answer = await stub.Execute(request(hints=hints, wait=duration_pb2.Duration(seconds=30)))
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED, answer
    report = (stack.run_dir / answer.report_path).read_text()
    assert "100 degrees Celsius" in report and "water.md" in report and "Linux" in report
    served = await stub.GetReport(conductor_pb2.GetTaskReportRequest(task_id=answer.task_id))
    assert served.data.decode() == report and served.content_type.startswith("text/markdown")
    check_promises(await history(stub))
    await channel.close()


@pytest.mark.timeout(180)
async def test_a_hundred_tasks_survive_kill_9_of_the_conductor(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    accepted = await asyncio.gather(*(stub.Execute(request(f"Does water boil? {i}")) for i in range(TASKS)))
    await stack.kill("conductor", signal.SIGKILL)
    await channel.close()
    await stack.start_one("conductor")
    channel, stub = stub_of(stack)
    await until(lambda: all_ended(stub, TASKS), 90)
    events = await history(stub)
    check_promises(events)
    ends = Counter(event.type for event in events if event.type in TERMINAL_TYPES)
    assert ends == {"conductor.task.completed": TASKS}
    assert {event.task_id for event in events} == {answer.task_id for answer in accepted}
    assert check_reports(stack, events) == TASKS
    await channel.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["researcher", "report_writer"])
async def test_a_worker_killed_in_the_middle_costs_no_task(stack: Stack, name: str) -> None:
    channel, stub = stub_of(stack)
    hints = task_pb2.Hints(max_attempts=5)
    await asyncio.gather(*(stub.Execute(request(f"Water {i}", hints=hints)) for i in range(40)))
    await stack.kill(name, signal.SIGKILL)
    await stack.start_one(name)
    await until(lambda: all_ended(stub, 40), 90)
    events = await history(stub)
    check_promises(events)
    assert check_reports(stack, events) == 40
    await channel.close()


async def started_command(stack: Stack, stub: Any, **fields: Any) -> tuple[str, int]:
    """Starts a long command and returns its task, and the process id of what it started, once it runs."""
    task = await stub.Execute(request(hints=terminal("sleep 1000 & wait", **fields)))
    return task.task_id, await until(lambda: find_process("sleep 1000"))


def find_process(command: str) -> int:
    """Returns the id of a process by its command line, 0 when there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if line == command:
            return int(entry.name)
    return 0


async def end_of(stub: Any, task_id: str) -> task_pb2.Task:
    async def look() -> task_pb2.Task | None:
        task = await stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id))
        return task if task.completed_at.seconds else None

    return await until(look, 30)


async def test_the_terminal_killed_in_a_command_is_a_typed_failure_and_leaves_no_process(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    task_id, _ = await started_command(stack, stub)
    await stack.kill("terminal", signal.SIGKILL)
    task = await end_of(stub, task_id)
    assert task.error.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN and task.error.retryable
    await until(lambda: not find_process("sleep 1000"))
    check_promises(await history(stub))
    await channel.close()


async def test_the_conductor_killed_in_a_command_never_runs_it_twice(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    task_id, _ = await started_command(stack, stub)
    await stack.kill("conductor", signal.SIGKILL)
    await channel.close()
    await until(lambda: not find_process("sleep 1000"))
    await stack.start_one("conductor")
    channel, stub = stub_of(stack)
    task = await end_of(stub, task_id)
    assert task.error.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN and task.error.retryable
    calls = [event for event in await history(stub) if event.HasField("worker_call")]
    assert len(calls) == 1
    await channel.close()


async def test_an_idempotent_command_is_taken_up_again_after_a_crash(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    hints = terminal("sleep 3; echo done", idempotent=True)
    answer = await stub.Execute(request(hints=hints))
    await until(lambda: find_process("sleep 3"))
    await stack.kill("conductor", signal.SIGKILL)
    await channel.close()
    await stack.start_one("conductor")
    channel, stub = stub_of(stack)
    task = await end_of(stub, answer.task_id)
    assert task.status == task_pb2.TASK_STATUS_COMPLETED, task
    check_promises(await history(stub))
    await channel.close()


async def test_cancel_kills_the_child_processes(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    task_id, _ = await started_command(stack, stub)
    task = await stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task_id, reason="enough"))
    assert task.status == task_pb2.TASK_STATUS_CANCELLED
    await until(lambda: not find_process("sleep 1000"))
    check_promises(await history(stub))
    await channel.close()


async def test_envoy_killed_cuts_only_itself(stack: Stack) -> None:
    channel, stub = stub_of(stack, "envoy")
    stream = stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(after_sequence=0))
    answer = await stub.Execute(request())
    seen = [await stream.read()]
    await stack.kill("envoy", signal.SIGKILL)
    await channel.close()
    await stack.start_one("envoy")
    channel, stub = stub_of(stack, "envoy")
    await end_of(stub, answer.task_id)
    rest = stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(after_sequence=seen[-1].sequence))
    while seen[-1].type not in TERMINAL_TYPES:
        seen.append(await rest.read())
    check_promises(seen)
    rest.cancel()
    await channel.close()


async def test_a_project_keeps_its_gate_across_a_crash(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    waiting = await stub.WaitForConfirmation(
        conductor_pb2.WaitForConfirmationRequest(project_id="p", stage_id=1, summary="Predict species?")
    )
    await stack.kill("conductor", signal.SIGKILL)
    await channel.close()
    await stack.start_one("conductor")
    channel, stub = stub_of(stack)
    state = await stub.GetState(conductor_pb2.GetStateRequest(project_id="p"))
    assert state.waiting_confirmation == waiting.waiting_confirmation
    seen = waiting.waiting_confirmation.confirmation_id
    state = await stub.Confirm(conductor_pb2.ConfirmRequest(project_id="p", confirmation_id=seen))
    assert state.current_stage == 2
    await channel.close()


async def test_the_report_writer_down_is_a_typed_failure_without_a_trace(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    await stack.kill("report_writer", signal.SIGTERM)
    answer = await stub.Execute(request(hints=task_pb2.Hints(max_attempts=1)))
    task = await end_of(stub, answer.task_id)
    assert task.status == task_pb2.TASK_STATUS_FAILED
    assert task.error.reason == error_pb2.ERROR_REASON_WORKER_UNAVAILABLE
    assert not list((stack.run_dir / "reports").iterdir())
    await channel.close()
