"""One system for all: the whole path, and what is left of commands when those who run or ask for them are killed."""

import signal
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import conductor_pb2, error_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2

from ops.stack import Stack
from tests.conftest import until
from tests.system.served import TERMINAL, check_promises, end_of, history, request, stub_of, terminal

RESEARCHER = task_pb2.CAPABILITY_RESEARCHER
pytestmark = pytest.mark.asyncio(loop_scope="session")  # that of the system they share


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


async def test_research_and_commands_become_one_report_through_all_services(shared: Stack) -> None:
    channel, stub = stub_of(shared, "envoy")
    command = terminal_pb2.Command(argv=["uname", "-s"])
    hints = task_pb2.Hints(capabilities=[RESEARCHER, TERMINAL], commands=[command])
    answer = await stub.Execute(request(hints=hints, wait=duration_pb2.Duration(seconds=30)))
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED, answer
    report = (shared.run_dir / answer.report_path).read_text()
    assert "100 degrees Celsius" in report and "water.md" in report and "Linux" in report
    served = await stub.GetReport(conductor_pb2.GetTaskReportRequest(task_id=answer.task_id))
    assert served.data.decode() == report and served.content_type.startswith("text/markdown")
    check_promises(await history(stub))
    await channel.close()


async def test_the_terminal_killed_in_a_command_is_a_typed_failure_and_leaves_no_process(shared: Stack) -> None:
    channel, stub = stub_of(shared)
    task_id, _ = await started_command(shared, stub)
    await shared.kill("terminal", signal.SIGKILL)
    task = await end_of(stub, task_id)
    assert task.error.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN and task.error.retryable
    await until(lambda: not find_process("sleep 1000"))
    check_promises(await history(stub))
    await channel.close()


async def test_the_conductor_killed_in_a_command_never_runs_it_twice(shared: Stack) -> None:
    channel, stub = stub_of(shared)
    task_id, _ = await started_command(shared, stub)
    await shared.kill("conductor", signal.SIGKILL)
    await channel.close()
    await until(lambda: not find_process("sleep 1000"))
    await shared.start_one("conductor")
    channel, stub = stub_of(shared)
    task = await end_of(stub, task_id)
    assert task.error.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN and task.error.retryable
    calls = [event for event in await history(stub) if event.HasField("worker_call")]
    assert [event.task_id for event in calls].count(task_id) == 1
    await channel.close()


async def test_an_idempotent_command_is_taken_up_again_after_a_crash(shared: Stack) -> None:
    channel, stub = stub_of(shared)
    hints = terminal("sleep 3; echo done", idempotent=True)
    answer = await stub.Execute(request(hints=hints))
    await until(lambda: find_process("sleep 3"))
    await shared.kill("conductor", signal.SIGKILL)
    await channel.close()
    await shared.start_one("conductor")
    channel, stub = stub_of(shared)
    task = await end_of(stub, answer.task_id)
    assert task.status == task_pb2.TASK_STATUS_COMPLETED, task
    check_promises(await history(stub))
    await channel.close()


async def test_cancel_kills_the_child_processes(shared: Stack) -> None:
    channel, stub = stub_of(shared)
    task_id, _ = await started_command(shared, stub)
    task = await stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task_id, reason="enough"))
    assert task.status == task_pb2.TASK_STATUS_CANCELLED
    await until(lambda: not find_process("sleep 1000"))
    check_promises(await history(stub))
    await channel.close()


async def test_a_project_keeps_its_gate_across_a_crash(shared: Stack) -> None:
    channel, stub = stub_of(shared)
    waiting = await stub.WaitForConfirmation(
        conductor_pb2.WaitForConfirmationRequest(project_id="gated", stage_id=1, summary="Predict species?")
    )
    await shared.kill("conductor", signal.SIGKILL)
    await channel.close()
    await shared.start_one("conductor")
    channel, stub = stub_of(shared)
    state = await stub.GetState(conductor_pb2.GetStateRequest(project_id="gated"))
    assert state.waiting_confirmation == waiting.waiting_confirmation
    seen = waiting.waiting_confirmation.confirmation_id
    state = await stub.Confirm(conductor_pb2.ConfirmRequest(project_id="gated", confirmation_id=seen))
    assert state.current_stage == 2
    await channel.close()
