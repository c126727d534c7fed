"""Which workers a task goes to, in what order, and why: through the whole Conductor, as its events tell it."""

import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conductor.v1 import event_pb2, report_writer_pb2, researcher_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2

from services.common.errors import Reason, Refusal, typed
from tests.conftest import Running, start_conductor, until
from tests.fakes import Workers, command_result, finds_nothing, hangs, runs

RESEARCHER, TERMINAL, WRITER = (
    task_pb2.CAPABILITY_RESEARCHER,
    task_pb2.CAPABILITY_TERMINAL,
    task_pb2.CAPABILITY_REPORT_WRITER,
)
REQUESTS = {
    RESEARCHER: researcher_pb2.ResearchRequest,
    TERMINAL: terminal_pb2.RunRequest,
    WRITER: report_writer_pb2.WriteReportRequest,
}
COMMANDS = [terminal_pb2.Command(argv=["echo", "hello"])]
TEN = duration_pb2.Duration(seconds=10)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def routes_of(conductor: Running, task_id: str) -> list[tuple[list[int], int]]:
    """Returns the routes the task's progress events tell, with their reasons."""
    routes = [e.task_progress.route for e in await conductor.events(task_id) if e.task_progress.HasField("route")]
    return [(list(route.capabilities), route.reason) for route in routes]


async def test_without_hints_the_researcher_is_the_route(conductor: Running, workers: Workers) -> None:
    answer = await conductor.execute(wait=TEN)
    assert await routes_of(conductor, answer.task_id) == [([RESEARCHER], event_pb2.ROUTE_REASON_DEFAULT)]
    assert workers.count(terminal_pb2.RunRequest) == 0


async def test_the_terminal_takes_the_place_of_a_researcher_that_is_down(tmp_path: Path, workers: Workers) -> None:
    targets = {**workers.targets(), RESEARCHER: f"127.0.0.1:{closed_port()}"}
    conductor = await start_conductor(tmp_path / "log.db", SimpleNamespace(targets=lambda: targets))
    with_commands = await conductor.execute(wait=TEN, hints=task_pb2.Hints(commands=COMMANDS, max_attempts=1))
    assert with_commands.status == task_pb2.TASK_STATUS_COMPLETED
    assert await routes_of(conductor, with_commands.task_id) == [
        ([RESEARCHER], event_pb2.ROUTE_REASON_DEFAULT),
        ([TERMINAL], event_pb2.ROUTE_REASON_RESEARCHER_UNAVAILABLE),
    ]
    report = workers.seen[-1]
    assert report.commands[0].stdout == b"hello\n" and len(report.gaps) == 1  # the report says what is missing
    await conductor.kill()


async def test_without_commands_there_is_nothing_to_fall_back_to(conductor: Running, workers: Workers) -> None:
    error = typed(Reason.ERROR_REASON_WORKER_UNAVAILABLE, "The index is being built.")
    workers.research = refusing(error)
    answer = await conductor.execute(wait=TEN, hints=task_pb2.Hints(max_attempts=1))
    assert answer.status == task_pb2.TASK_STATUS_FAILED and answer.error == error
    assert len(await routes_of(conductor, answer.task_id)) == 1


async def test_the_terminal_helps_when_nothing_is_found(conductor: Running, workers: Workers) -> None:
    workers.research = finds_nothing
    answer = await conductor.execute(wait=TEN, hints=task_pb2.Hints(commands=COMMANDS))
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED
    assert (await routes_of(conductor, answer.task_id))[1:] == [([TERMINAL], event_pb2.ROUTE_REASON_NO_FINDINGS)]


async def test_a_route_the_hints_chose_has_no_fallback(conductor: Running, workers: Workers) -> None:
    workers.research = refusing(typed(Reason.ERROR_REASON_WORKER_UNAVAILABLE, "The index is being built."))
    hints = task_pb2.Hints(capabilities=[RESEARCHER], commands=COMMANDS, max_attempts=1)
    answer = await conductor.execute(wait=TEN, hints=hints)
    assert answer.status == task_pb2.TASK_STATUS_FAILED and workers.count(terminal_pb2.RunRequest) == 0


@pytest.mark.parametrize("wanted", [[TERMINAL, RESEARCHER], [RESEARCHER, TERMINAL], [TERMINAL]])
async def test_hints_choose_the_workers_and_their_order(
    conductor: Running, workers: Workers, wanted: list[Any]
) -> None:
    hints = task_pb2.Hints(capabilities=wanted, commands=COMMANDS)
    answer = await conductor.execute(wait=TEN, hints=hints, correlation_id="corr-7")
    assert await routes_of(conductor, answer.task_id) == [(wanted, event_pb2.ROUTE_REASON_HINTS)]
    called = [e.worker_call.capability for e in await conductor.events(answer.task_id) if e.HasField("worker_call")]
    assert called == [*wanted, WRITER]
    assert [type(request) for request in workers.seen] == [REQUESTS[capability] for capability in called]
    assert all("corr-7" in str(request) for request in workers.seen)


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_command_cut_short_runs_again_only_when_it_may(
    conductor: Running, workers: Workers, idempotent: bool
) -> None:
    workers.run = hangs
    command = terminal_pb2.Command(argv=["pay"], idempotent=idempotent)
    answer = await conductor.execute(hints=task_pb2.Hints(capabilities=[TERMINAL], commands=[command]))
    await until(lambda: workers.seen)
    await workers.stop()
    workers.run = runs
    await workers.start(workers.port)
    task = await conductor.ended(answer.task_id)
    assert workers.count(terminal_pb2.RunRequest) == (2 if idempotent else 1)
    assert task.error.reason == (0 if idempotent else Reason.ERROR_REASON_OUTCOME_UNKNOWN)


async def test_commands_run_in_order_and_the_first_failure_ends_the_task(conductor: Running, workers: Workers) -> None:
    async def exits(request: Any) -> Sequence[Any]:
        return command_result(exit_code=int(request.command.argv[1]))

    workers.run = exits
    commands = [terminal_pb2.Command(argv=["exit", code], allow_failure=code == "1") for code in "0123"]
    answer = await conductor.execute(wait=TEN, hints=task_pb2.Hints(capabilities=[TERMINAL], commands=commands))
    assert [request.command.argv[1] for request in workers.seen] == ["0", "1", "2"]
    assert answer.error.reason == Reason.ERROR_REASON_COMMAND_FAILED
    assert answer.error.metadata == {"exit_code": "2", "command": "3"}


# ---- the cause a worker gave ----


def refusing(error: Any) -> Any:
    async def play(_: Any) -> Sequence[Any]:
        raise Refusal.passing_on(error)

    return play


@pytest.mark.parametrize("script", ["research", "run", "write"])
async def test_the_workers_cause_arrives_everywhere_as_it_was_given(
    conductor: Running, workers: Workers, script: str
) -> None:
    error = typed(Reason.ERROR_REASON_SOURCE_REFUSED, "The source ../etc is outside.\n„Ärger“", source="../etc")
    setattr(workers, script, refusing(error))
    hints = task_pb2.Hints(capabilities=[RESEARCHER, TERMINAL], commands=COMMANDS)
    answer = await conductor.execute(wait=TEN, hints=hints)
    assert answer.status == task_pb2.TASK_STATUS_FAILED and answer.error == error
    assert (await conductor.ended(answer.task_id)).error == error
    *_, result, failed = await conductor.events(answer.task_id)
    assert result.worker_result.error == error
    assert failed.type == "conductor.task.failed" and failed.task_failed.error == error
    assert not answer.HasField("report_path") and not answer.HasField("writer_window_props")
