"""Scripted workers behind the Conductor's router."""

from collections.abc import AsyncIterator

import pytest
from conductor.v1 import (
    event_pb2,
    report_writer_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)

from services.conductor.protocol import Answered, CallWorker, Command
from services.conductor.router import GrpcRouter
from tests.conftest import until
from tests.fakes import Workers

RESEARCHER, TERMINAL, WRITER = (
    task_pb2.CAPABILITY_RESEARCHER,
    task_pb2.CAPABILITY_TERMINAL,
    task_pb2.CAPABILITY_REPORT_WRITER,
)
PROVENANCE = report_writer_pb2.Provenance(correlation_id="corr-1")
REQUESTS = {
    RESEARCHER: researcher_pb2.ResearchRequest(objective="At what temperature does water boil?"),
    TERMINAL: terminal_pb2.RunRequest(call_id="c-1", command=terminal_pb2.Command(argv=["echo", "hello"])),
    WRITER: report_writer_pb2.WriteReportRequest(task_id="t-1", objective="boil", provenance=PROVENANCE),
}
SCRIPTS = {RESEARCHER: "research", TERMINAL: "run", WRITER: "write"}

ANY_WORKER = pytest.mark.parametrize("capability", SCRIPTS, ids=SCRIPTS.values())


def results(heard: list[Command]) -> list[event_pb2.WorkerResult]:
    return [command.result for command in heard if isinstance(command, Answered)]


def begin(router: GrpcRouter, capability: int, seconds: float = 10, call_id: str = "call-1") -> list[Command]:
    heard: list[Command] = []
    router.call(CallWorker(call_id, capability, REQUESTS[capability], seconds), heard.append)
    return heard


async def ask(router: GrpcRouter, capability: int, seconds: float = 10) -> event_pb2.WorkerResult:
    """Makes a call to its end and returns its one answer."""
    heard = begin(router, capability, seconds)
    await until(lambda: results(heard))
    (answer,) = results(heard)
    assert (answer.call_id, answer.capability) == ("call-1", capability)
    return answer


@pytest.fixture(params=[True, False], ids=["multiplexed", "rpc by rpc"])
async def workers(request: pytest.FixtureRequest) -> AsyncIterator[Workers]:
    workers = await Workers(multiplexed=request.param).start()
    yield workers
    await workers.stop()


@pytest.fixture
async def router(workers: Workers) -> AsyncIterator[GrpcRouter]:
    router = GrpcRouter(workers.targets())
    yield router
    await router.close()
