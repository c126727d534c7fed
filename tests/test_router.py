"""The router's promises: every call ends once, in its time, with the worker's own reason, and is really stopped."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import (
    error_pb2,
    event_pb2,
    report_writer_pb2,
    researcher_pb2,
    researcher_pb2_grpc,
    task_pb2,
    terminal_pb2,
    terminal_pb2_grpc,
)

from services.common.errors import TABLE, Reason, Refusal, typed
from services.conductor.protocol import Answered, CallWorker, Command, Progressed
from services.conductor.router import GrpcRouter
from tests.conftest import until
from tests.fakes import Workers, command_result, finding, finds, hangs, research_result

ROOT = Path(__file__).resolve().parent.parent
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
GONE = {
    RESEARCHER: Reason.ERROR_REASON_WORKER_UNAVAILABLE,
    TERMINAL: Reason.ERROR_REASON_OUTCOME_UNKNOWN,  # the command may have done its work
    WRITER: Reason.ERROR_REASON_WORKER_UNAVAILABLE,
}
KEPT = 256 * 1024
MEBIBYTE = 1024 * 1024
ANY_WORKER = pytest.mark.parametrize("capability", SCRIPTS, ids=SCRIPTS.values())
STREAMING = pytest.mark.parametrize("capability", (RESEARCHER, TERMINAL), ids=("research", "run"))
STARTED = terminal_pb2.RunResponse(started=terminal_pb2.CommandStarted())
PROGRESS = researcher_pb2.ResearchResponse(progress=researcher_pb2.ResearchProgress(message="reading"))


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


def script(capability: int, what: Callable[[Any], Awaitable[Sequence[Any]]], workers: Workers) -> None:
    setattr(workers, SCRIPTS[capability], what)


def answers(*messages: Any) -> Callable[[Any], Awaitable[Sequence[Any]]]:
    async def play(_: Any) -> Sequence[Any]:
        return messages

    return play


def raises(error: Exception) -> Callable[[Any], Awaitable[Sequence[Any]]]:
    async def play(_: Any) -> Sequence[Any]:
        raise error

    return play


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


# ---- one call ----


@ANY_WORKER
async def test_a_worker_that_hangs_is_given_up_in_time_and_told(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    setattr(workers, SCRIPTS[capability], hangs)
    begun = time.monotonic()
    answer = await ask(router, capability, seconds=0.3)
    assert 0.25 < time.monotonic() - begun < 2
    assert answer.error.reason == Reason.ERROR_REASON_WORKER_TIMEOUT and answer.error.retryable
    assert answer.error.kind == error_pb2.ERROR_KIND_TIMEOUT
    assert answer.error.metadata == {"capability": task_pb2.Capability.Name(capability), "timeout_s": "0.3"}
    await until(lambda: workers.cancelled)


async def test_workers_that_are_down_are_unavailable_and_found_again_when_they_return(workers: Workers) -> None:
    router = GrpcRouter(workers.targets())
    await workers.stop()
    for capability, answer in zip(SCRIPTS, await asyncio.gather(*(ask(router, c) for c in SCRIPTS)), strict=True):
        assert answer.error.reason == Reason.ERROR_REASON_WORKER_UNAVAILABLE and answer.error.retryable
        assert answer.error.metadata == {"capability": task_pb2.Capability.Name(capability)}
    await workers.start(workers.port)
    begun = time.monotonic()
    assert not (await ask(router, RESEARCHER)).HasField("error")
    assert time.monotonic() - begun < 2
    await router.close()


@ANY_WORKER
async def test_a_worker_that_stops_during_the_call_is_told_apart(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    setattr(workers, SCRIPTS[capability], hangs)
    heard = begin(router, capability)
    await until(lambda: workers.seen)
    await workers.stop()
    await until(lambda: results(heard))
    assert [answer.error.reason for answer in results(heard)] == [GONE[capability]]


CHILD = """
import asyncio
from tests.fakes import Workers
async def tell_and_hang(_):
    print("called", flush=True)
    await asyncio.Event().wait()
async def main():
    workers = await Workers(tell_and_hang, tell_and_hang, tell_and_hang).start()
    print(workers.port, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@ANY_WORKER
async def test_a_worker_killed_during_the_call_is_told_apart(capability: int) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, cwd=ROOT, env=environ, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    port = int(await worker.stdout.readline())
    router = GrpcRouter(dict.fromkeys(SCRIPTS, f"127.0.0.1:{port}"))
    heard = begin(router, capability)
    assert await worker.stdout.readline() == b"called\n"
    worker.send_signal(signal.SIGKILL)
    assert await worker.wait() == -signal.SIGKILL
    await until(lambda: results(heard))
    assert [answer.error.reason for answer in results(heard)] == [GONE[capability]]
    await router.close()


@ANY_WORKER
async def test_a_cancelled_call_stops_the_worker_and_delivers_nothing(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    setattr(workers, SCRIPTS[capability], hangs)
    heard = begin(router, capability)
    await until(lambda: workers.seen)
    router.cancel("call-1")
    router.cancel("call-1")
    router.cancel("never-made")
    await until(lambda: workers.cancelled == [REQUESTS[capability]])
    workers.research = finds
    assert not (await ask(router, RESEARCHER)).HasField("error")  # others go on, and by now anything late had arrived
    assert heard == []


async def test_an_answer_that_comes_with_the_cancel_delivers_nothing(router: GrpcRouter, workers: Workers) -> None:
    release = asyncio.Event()

    async def answers_late(_: Any) -> Sequence[Any]:
        await release.wait()
        return [research_result(finding())]

    workers.research = answers_late
    heard = begin(router, RESEARCHER)
    await until(lambda: workers.seen)
    release.set()
    router.cancel("call-1")
    workers.research = finds
    assert not (await ask(router, RESEARCHER)).HasField("error")
    assert heard == []


async def test_closing_ends_every_call_at_the_worker_and_delivers_nothing(workers: Workers) -> None:
    router = GrpcRouter(workers.targets())
    workers.research = workers.run = workers.write = hangs
    heard = [begin(router, capability, call_id=f"call-{capability}") for capability in SCRIPTS]
    await until(lambda: len(workers.seen) == 3)
    await asyncio.wait_for(router.close(), 5)
    await until(lambda: len(workers.cancelled) == 3)
    assert heard == [[], [], []]


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
