"""What the router makes of what workers say: results, refusals, broken contracts, output."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from conductor.v1 import (
    error_pb2,
    report_writer_pb2,
    researcher_pb2,
    researcher_pb2_grpc,
    task_pb2,
    terminal_pb2,
    terminal_pb2_grpc,
)

from services.common.errors import TABLE, Reason, Refusal, typed
from services.conductor.protocol import Progressed
from services.conductor.router import GrpcRouter
from tests.conftest import until
from tests.fakes import Workers, command_result, finding, research_result
from tests.routed import (
    ANY_WORKER,
    REQUESTS,
    RESEARCHER,
    SCRIPTS,
    TERMINAL,
    WRITER,
    ask,
    begin,
    results,
    router,
    workers,
)

__all__ = ["router", "workers"]


KEPT = 256 * 1024
MEBIBYTE = 1024 * 1024

STREAMING = pytest.mark.parametrize("capability", (RESEARCHER, TERMINAL), ids=("research", "run"))
STARTED = terminal_pb2.RunResponse(started=terminal_pb2.CommandStarted())
PROGRESS = researcher_pb2.ResearchResponse(progress=researcher_pb2.ResearchProgress(message="reading"))


def answers(*messages: Any) -> Callable[[Any], Awaitable[Sequence[Any]]]:
    async def play(_: Any) -> Sequence[Any]:
        return messages

    return play


def raises(error: Exception) -> Callable[[Any], Awaitable[Sequence[Any]]]:
    async def play(_: Any) -> Sequence[Any]:
        raise error

    return play


# ---- what the worker says ----


@STREAMING
async def test_the_first_of_two_results_counts(router: GrpcRouter, workers: Workers, capability: int) -> None:
    first = [research_result(finding("first"))] if capability == RESEARCHER else command_result(0, b"first")
    second = [research_result(finding("second"))] if capability == RESEARCHER else command_result(1, b"second")
    setattr(workers, SCRIPTS[capability], answers(*first, *second))
    answer = await ask(router, capability)
    assert b"first" in answer.SerializeToString() and b"second" not in answer.SerializeToString()
    assert not answer.HasField("error") and answer.command.result.exit_code == 0


@pytest.mark.parametrize(
    ("capability", "messages"),
    [(RESEARCHER, ()), (RESEARCHER, (PROGRESS,)), (TERMINAL, ()), (TERMINAL, (STARTED, command_result()[0]))],
)
async def test_a_stream_without_a_result_breaks_the_contract(
    router: GrpcRouter, workers: Workers, capability: int, messages: tuple[Any, ...]
) -> None:
    setattr(workers, SCRIPTS[capability], answers(*messages))
    answer = await ask(router, capability)
    assert answer.error.reason == Reason.ERROR_REASON_WORKER_PROTOCOL and not answer.error.retryable
    assert answer.WhichOneof("result") is None


async def test_a_finding_without_a_citation_is_not_let_in(router: GrpcRouter, workers: Workers) -> None:
    workers.research = answers(research_result(finding(), researcher_pb2.Finding(statement="Trust me.")))
    answer = await ask(router, RESEARCHER)
    assert answer.error.reason == Reason.ERROR_REASON_WORKER_PROTOCOL and answer.WhichOneof("result") is None


async def test_progress_arrives_in_order_before_the_answer(router: GrpcRouter, workers: Workers) -> None:
    steps = [researcher_pb2.ResearchProgress(message=f"step {n}", step=n, total_steps=3) for n in (1, 2, 3)]
    workers.research = answers(*(researcher_pb2.ResearchResponse(progress=s) for s in steps), research_result())
    heard = begin(router, RESEARCHER)
    await until(lambda: results(heard))
    told = [c.progress for c in heard[:-1] if isinstance(c, Progressed)]
    assert [(p.message, p.step, p.total_steps, p.call_id) for p in told] == [
        (f"step {n}", n, 3, "call-1") for n in (1, 2, 3)
    ]


@ANY_WORKER
async def test_a_workers_typed_refusal_arrives_as_it_left(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    for reason in set(TABLE) - {Reason.ERROR_REASON_INTERNAL}:  # that is no reason, see below
        error = typed(reason, "Say é, \n and 100 %.", source="../etc", empty="")
        setattr(workers, SCRIPTS[capability], raises(Refusal.passing_on(error)))
        assert (await ask(router, capability)).error == error


@STREAMING
async def test_a_typed_refusal_in_the_middle_of_a_stream_arrives_too(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    error = typed(Reason.ERROR_REASON_SANDBOX_UNAVAILABLE, "No sandbox.", layer="landlock")

    def half() -> Any:
        yield PROGRESS if capability == RESEARCHER else STARTED
        raise Refusal.passing_on(error)

    async def play(_: Any) -> Any:
        return half()

    setattr(workers, SCRIPTS[capability], play)
    assert (await ask(router, capability)).error == error


@ANY_WORKER
async def test_a_worker_that_breaks_is_named_and_its_exception_stays_at_home(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    setattr(workers, SCRIPTS[capability], raises(RuntimeError("password=hunter2")))
    error = (await ask(router, capability)).error
    assert "hunter2" not in str(error) and error.kind == error_pb2.ERROR_KIND_WORKER
    if capability == TERMINAL:  # its command may have run
        assert error.reason == Reason.ERROR_REASON_OUTCOME_UNKNOWN
    else:
        assert error.reason == Reason.ERROR_REASON_WORKER_FAILED
        assert error.metadata["capability"] == task_pb2.Capability.Name(capability)


@dataclass
class Foreign(researcher_pb2_grpc.ResearcherServicer, terminal_pb2_grpc.TerminalServicer):
    """Workers of somebody else: a bare server that ends every call with one code and no reason."""

    code: grpc.StatusCode

    async def Research(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield PROGRESS
        await context.abort(self.code, "no reason")

    async def Run(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield STARTED
        await context.abort(self.code, "no reason")


@pytest.fixture
async def foreign() -> AsyncIterator[tuple[Foreign, GrpcRouter]]:
    workers, server = Foreign(grpc.StatusCode.UNKNOWN), grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    researcher_pb2_grpc.add_ResearcherServicer_to_server(workers, server)
    terminal_pb2_grpc.add_TerminalServicer_to_server(workers, server)
    await server.start()
    router = GrpcRouter(dict.fromkeys(SCRIPTS, f"127.0.0.1:{port}"))
    yield workers, router
    await router.close()
    await server.stop(0)


async def test_every_code_without_a_reason_still_ends_the_call_once(foreign: tuple[Foreign, GrpcRouter]) -> None:
    workers, router = foreign
    late, gone = grpc.StatusCode.DEADLINE_EXCEEDED, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    known = dict.fromkeys(gone, Reason.ERROR_REASON_WORKER_UNAVAILABLE) | {late: Reason.ERROR_REASON_WORKER_TIMEOUT}
    for code in set(grpc.StatusCode) - {grpc.StatusCode.OK}:
        workers.code = code
        research, run = (await ask(router, RESEARCHER)).error, (await ask(router, TERMINAL)).error
        assert research.reason == known.get(code, Reason.ERROR_REASON_WORKER_FAILED), code
        assert research.metadata["capability"] == "CAPABILITY_RESEARCHER"
        explained = {late: known[late], grpc.StatusCode.UNIMPLEMENTED: Reason.ERROR_REASON_WORKER_FAILED}
        assert run.reason == explained.get(code, Reason.ERROR_REASON_OUTCOME_UNKNOWN), code  # it had started


@pytest.mark.parametrize("multiplexed", [True, False])
async def test_what_a_worker_that_stops_has_not_done_may_be_asked_again(multiplexed: bool) -> None:
    for _ in range(5):
        workers = await Workers(multiplexed=multiplexed).start()
        router = GrpcRouter(workers.targets())
        await ask(router, RESEARCHER)
        calls = [asyncio.create_task(ask(router, RESEARCHER)) for _ in range(200)]
        await until(lambda workers=workers: len(workers.seen) > 20)
        await workers.service.stop(1)
        errors = [answer.error for answer in await asyncio.gather(*calls) if answer.HasField("error")]
        assert all(error.reason == Reason.ERROR_REASON_WORKER_UNAVAILABLE for error in errors), errors
        await router.close()
        await workers.stop()


async def test_a_service_of_another_kind_is_told_apart(foreign: tuple[Foreign, GrpcRouter]) -> None:
    error = (await ask(foreign[1], WRITER)).error
    assert error.reason == Reason.ERROR_REASON_WORKER_FAILED and error.metadata["code"] == "UNIMPLEMENTED"


# ---- what a command writes ----


def chunk(stream: int, data: bytes) -> terminal_pb2.RunResponse:
    return terminal_pb2.RunResponse(chunk=terminal_pb2.OutputChunk(stream=stream, data=data))


async def test_output_is_kept_up_to_its_limit_per_stream_and_the_rest_counted(
    router: GrpcRouter, workers: Workers
) -> None:
    out = bytes(range(256)) * (5 * MEBIBYTE // 256)
    err = b"e" * KEPT
    chunks = [chunk(1, out[at : at + 65536]) for at in range(0, len(out), 65536)]
    chunks[3:3] = [chunk(2, err[:-1]), chunk(2, err[-1:]), chunk(0, b"of no stream"), chunk(9, b"of no stream")]
    workers.run = answers(STARTED, *chunks, command_result()[1])
    record = (await ask(router, TERMINAL)).command
    assert record.stdout == out[:KEPT] and record.stdout_cut_bytes == len(out) - KEPT
    assert record.stderr == err and record.stderr_cut_bytes == 0
    assert record.command == REQUESTS[TERMINAL].command


async def test_any_bytes_pass_unchanged(router: GrpcRouter, workers: Workers) -> None:
    parts = [b"\x00\xff\xfe\x80", bytes(range(256)), b"\x1b[2J\x1b]0;title\x07\r\n", "é€".encode()[:3], b"\xac", b""]
    workers.run = answers(*(chunk(1, part) for part in parts), *(chunk(2, part) for part in parts), command_result()[1])
    record = (await ask(router, TERMINAL)).command
    assert record.stdout == record.stderr == b"".join(parts)


@ANY_WORKER
async def test_a_message_over_the_size_limit_is_a_typed_error(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    huge = {
        RESEARCHER: research_result(finding("x" * 20 * MEBIBYTE)),
        TERMINAL: chunk(1, b"x" * 20 * MEBIBYTE),
        WRITER: report_writer_pb2.WriteReportResponse(path="x" * 20 * MEBIBYTE),
    }
    setattr(workers, SCRIPTS[capability], answers(huge[capability]))
    answer = await ask(router, capability)
    assert answer.error.reason in (Reason.ERROR_REASON_WORKER_FAILED, Reason.ERROR_REASON_OUTCOME_UNKNOWN)
    assert answer.WhichOneof("result") is None and len(answer.error.message) < 1000
