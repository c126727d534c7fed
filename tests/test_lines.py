"""What Lines promises a caller, whatever servers are behind the channel and whatever becomes of them."""

import asyncio
from asyncio import ensure_future as begin
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from conductor.v1 import multiplex_pb2, report_writer_pb2, researcher_pb2
from google.protobuf.message import Message

from services.common.boundary import correlation_id
from services.common.errors import Reason, Refusal
from services.common.server import MAX_MESSAGE_BYTES
from services.common.status import Status, from_rpc_error
from services.conductor.lines import HELLO_S, LOOK_S, Lines, Method
from services.conductor.router import OPTIONS, READ, RESEARCH, WRITE
from tests.conftest import refused, until
from tests.fakes import Script, Workers, finding, hangs, research_result
from tests.test_multiplex import MEBIBYTE, QUESTION, READING, no_complaint, plays, raises, running  # noqa: F401

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
GONE = {UNAVAILABLE, grpc.StatusCode.CANCELLED}
Play = Callable[[Any, Any], Awaitable[None]]


def question(text: object) -> researcher_pb2.ResearchRequest:
    return researcher_pb2.ResearchRequest(objective=str(text))


async def ask(lines: Lines, request: Message = QUESTION, method: Method[Any] = RESEARCH, seconds: float = 10) -> Any:
    """Makes a call to its end, and returns its one answer."""
    async with asyncio.timeout(10), lines.call(method, request, seconds, "corr-1") as answers:
        (answer,) = [answer async for answer in answers]
    return answer


def said(answer: researcher_pb2.ResearchResponse) -> str:
    return answer.result.findings[0].statement


def tasks() -> list[str]:
    return running("services/conductor/lines.py")


@asynccontextmanager
async def lines_to(*ports: int) -> AsyncIterator[Lines]:
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    async with grpc.aio.insecure_channel(f"ipv4:{addresses}", options=OPTIONS) as channel:
        lines = Lines(channel, MAX_MESSAGE_BYTES)
        yield lines
        await asyncio.wait_for(lines.close(), 5)
        await until(lambda: not tasks())


@pytest.fixture
async def lines(workers: Workers) -> AsyncIterator[Lines]:
    async with lines_to(workers.port) as lines:
        yield lines


def tells(name: str) -> Script:
    async def play(request: Any) -> Sequence[Any]:
        return [research_result(finding(f"{name} {request.objective}"))]

    return play


@asynccontextmanager
async def named(*names: str, multiplexed: bool = True) -> AsyncIterator[list[Workers]]:
    """Starts workers whose findings say their name and the question."""
    servers = [await Workers(research=tells(name), multiplexed=multiplexed).start() for name in names]
    yield servers
    await asyncio.gather(*(server.stop() for server in servers))


# ---- one call ----


async def test_calls_are_answered_whether_unary_or_streaming(lines: Lines, workers: Workers) -> None:
    steps = [researcher_pb2.ResearchProgress(step=step) for step in range(3000)]
    messages = [researcher_pb2.ResearchResponse(progress=step) for step in steps]
    workers.research = plays(lambda: iter(messages))
    async with lines.call(RESEARCH, QUESTION, 10, "corr-1") as answers:
        assert [answer async for answer in answers] == messages
    workers.research = plays(lambda: iter([research_result(finding(correlation_id.get()))]))
    assert said(await ask(lines)) == "corr-1"
    assert (await ask(lines, READING, READ)).content == workers.report


async def test_an_error_is_the_workers_own(lines: Lines, workers: Workers) -> None:
    refusal = Refusal(Reason.ERROR_REASON_SOURCE_REFUSED, "Say é.", source="../x")
    workers.research = raises(refusal, research_result(), research_result(finding()))
    async with lines.call(RESEARCH, QUESTION, 10, "corr-1") as answers:
        assert [await anext(answers), await anext(answers)] == [research_result(), research_result(finding())]
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as caught:
            await anext(answers)
    assert from_rpc_error(caught[0]) == refusal.error and caught[0].details() == "Say é."
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        await ask(lines, method=Method("/conductor.v1.Nobody/Research", RESEARCH.answer, 1))
    workers.research = hangs
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        await ask(lines, seconds=0.2)
    await until(lambda: workers.cancelled)


async def test_a_message_that_is_too_large_fails_its_own_call_only(lines: Lines, workers: Workers) -> None:
    workers.research = hangs
    other = begin(ask(lines))
    await until(lambda: workers.seen)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await ask(lines, READING, Method(READ.path, READ.answer, 10))
    large = report_writer_pb2.WriteReportRequest(objective="x" * (MAX_MESSAGE_BYTES + MEBIBYTE))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await ask(lines, large, WRITE)
    assert (await ask(lines, READING, READ)).content == workers.report
    other.cancel()
    await asyncio.wait([other])
    assert other.cancelled()  # it was under way until now


@pytest.mark.parametrize("how", ["leaves", "raises", "is cancelled"])
async def test_a_caller_that_goes_cancels_its_call_and_no_other(lines: Lines, workers: Workers, how: str) -> None:
    workers.research = hangs
    other = begin(ask(lines, question("another")))
    await until(lambda: workers.seen)
    with suppress(KeyError, TimeoutError):
        async with asyncio.timeout(0.5), lines.call(RESEARCH, QUESTION, 10, "corr-1") as answers:
            await until(lambda: len(workers.seen) == 2)
            if how == "raises":
                raise KeyError
            if how == "is cancelled":
                await anext(answers)
    await until(lambda: workers.cancelled)
    assert workers.cancelled == [QUESTION] and not other.done()
    other.cancel()


async def test_calls_given_up_before_they_were_sent_are_stopped_too(lines: Lines, workers: Workers) -> None:
    workers.research = hangs
    await ask(lines, READING, READ)
    async with AsyncExitStack() as stack:  # nothing is awaited until they are left, the last one first
        for number in range(2000):
            await stack.enter_async_context(lines.call(RESEARCH, question(number), 60, "corr-1"))
    await ask(lines, READING, READ)
    await until(lambda: len(workers.cancelled) == workers.count(researcher_pb2.ResearchRequest))


async def test_five_hundred_calls_at_once_are_answered_each_with_its_own() -> None:
    async with named("a", "b") as servers, lines_to(*(server.port for server in servers)) as lines:
        await met(lines, *servers)
        for _ in range(3):
            answers = await asyncio.gather(*(ask(lines, question(number)) for number in range(500)))
            assert [said(answer).split()[1] for answer in answers] == [str(number) for number in range(500)]
        assert sum(len(server.seen) for server in servers) == 1500
        await until(lambda: running("services/common/multiplex.py").count("_Stream._read") == 2)  # looks keep nothing


async def test_large_requests_and_answers_pass_at_once(lines: Lines, workers: Workers) -> None:
    async def echoes(request: Any) -> Sequence[Any]:
        return [report_writer_pb2.WriteReportResponse(path=request.provenance.project_id)]

    workers.write, workers.report = echoes, bytes(range(256)) * (4 * MEBIBYTE // 256)
    texts = [f"{number} " * (200_000 * number) for number in range(1, 12)]
    provenances = [report_writer_pb2.Provenance(project_id=text) for text in texts]
    large = [report_writer_pb2.WriteReportRequest(task_id="t", objective="o", provenance=each) for each in provenances]
    reading = (ask(lines, READING, READ) for _ in range(10))
    answers = await asyncio.gather(*(ask(lines, request, WRITE) for request in large), *reading)
    assert [answer.path for answer in answers[:11]] == texts
    assert all(answer.content == workers.report for answer in answers[11:])


# ---- which server ----


async def met(lines: Lines, *servers: Workers) -> None:
    """Makes calls until every server got some, and forgets them."""

    async def used() -> bool:
        await asyncio.gather(*(ask(lines) for _ in range(10)))
        return all(server.seen for server in servers)

    await until(used, 30)
    for server in servers:
        server.seen.clear()


async def test_the_server_with_the_fewest_calls_under_way_gets_the_next() -> None:
    async with named("a", "b") as (a, b), lines_to(a.port, b.port) as lines:
        await met(lines, a, b)
        a.research = b.research = hangs
        calls = {str(number): begin(ask(lines, question(number))) for number in range(10)}
        await until(lambda: len(a.seen) == len(b.seen) == 5)
        for given_up in a.seen[:3]:
            calls[given_up.objective].cancel()
        await until(lambda: len(a.cancelled) == 3)
        calls |= {f"late {number}": begin(ask(lines)) for number in range(3)}
        await until(lambda: len(a.seen) == 8)
        assert len(b.seen) == 5 and not b.cancelled
        for call in calls.values():
            call.cancel()


async def test_calls_of_a_server_that_stops_fail_and_servers_that_come_are_used() -> None:
    async with named("a", "b", "c") as (a, b, c), lines_to(a.port, b.port, c.port) as lines:
        await c.stop()
        await met(lines, a, b)
        a.research = hangs
        calls = [begin(ask(lines)) for _ in range(10)]
        await until(lambda: len(a.seen) >= 5)
        await a.stop()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        errors = [outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert len(errors) == len(a.seen) and set(errors) <= GONE
        assert [said(await ask(lines))[0] for _ in range(5)] == ["b"] * 5
        a.research = tells("a")
        await asyncio.gather(a.start(a.port), c.start(c.port))
        await met(lines, a, b, c)


async def test_the_end_of_a_server_is_told_apart_from_its_failure() -> None:
    """Many times, because it depends on what is being written at that moment."""

    async def keep_writing(lines: Lines, until_done: asyncio.Future[Any]) -> None:
        while not until_done.done():
            async with lines.call(RESEARCH, QUESTION, 10, "corr-1"):
                await asyncio.sleep(0.001)

    for _ in range(60):
        workers = await Workers(research=hangs).start()
        async with lines_to(workers.port) as lines:
            call = begin(ask(lines))
            writing = begin(keep_writing(lines, call))
            await until(lambda workers=workers: len(workers.seen) > 20)
            await workers.stop()
            outcome, *_ = await asyncio.gather(call, writing, return_exceptions=True)
            assert isinstance(outcome, grpc.aio.AioRpcError) and outcome.code() in GONE, outcome


async def test_when_one_of_two_servers_leaves_no_call_is_lost() -> None:
    async with named("a", "b") as (a, b), lines_to(a.port, b.port) as lines:
        await met(lines, a, b)
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                await ask(lines)

        asking = [begin(keep_asking()) for _ in range(50)]
        await until(lambda: len(a.seen) > 200)
        await asyncio.wait_for(a.service.stop(30), 5)
        b.seen.clear()
        await until(lambda: len(b.seen) > 200)
        stop.set()
        await asyncio.gather(*asking)
        assert not a.cancelled


async def answered(lines: Lines, carried: bool = False) -> bool:
    """Makes a call. Returns whether it was answered, and by a stream if need be."""
    with suppress(grpc.aio.AioRpcError):
        return bool(await ask(lines)) and (not carried or "_Line._read" in tasks())
    return False


async def test_a_server_is_called_singly_as_long_as_it_has_no_multiplex() -> None:
    async with named("a", multiplexed=False) as (a,), lines_to(a.port) as lines:
        for multiplexed in (False, True, False, True):
            await a.stop()
            a.multiplexed = multiplexed
            await a.start(a.port)
            await until(lambda multiplexed=multiplexed: answered(lines, multiplexed), 5)
            assert ("_Line._read" in tasks()) == multiplexed


async def test_nobody_there_is_told_in_time_and_whoever_comes_is_found(lines: Lines, workers: Workers) -> None:
    await workers.stop()
    for _ in range(3):
        with refused(UNAVAILABLE):
            await asyncio.wait_for(ask(lines), HELLO_S + 1)
    await workers.start(workers.port)
    await until(lambda: answered(lines), 5)


# ---- servers that break the contract, and closing ----


@asynccontextmanager
async def odd(play: Play) -> AsyncIterator[Lines]:
    """Serves Multiplex as a play does; bytes go as they are."""
    server = grpc.aio.server()
    handlers: Any = {"Carry": grpc.stream_stream_rpc_method_handler(play)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("conductor.v1.Multiplex", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with lines_to(port) as lines:
        yield lines
    await server.stop(0)


def says(number: int = 0, *whats: dict[str, Any], **fields: Any) -> bytes:
    answers = [multiplex_pb2.CarriedAnswer(number=number, **what) for what in whats]
    return multiplex_pb2.CarryResponse(answers=answers, **fields).SerializeToString()


HELLO, GARBAGE, BAD = says(server="odd"), b"\xff\xff", {"ended": Status(code=999)}


def writes(*messages: bytes, ends: bool = False) -> Play:
    """Returns what writes messages, the ones after HELLO when a call has come, and then ends the stream or hangs."""

    async def play(_: Any, context: Any) -> None:
        for message in messages:
            await context.write(message)
            if message == HELLO:
                await context.read()
        if not ends:
            await asyncio.Event().wait()

    return play


ODD: dict[str, tuple[Play, set[grpc.StatusCode]]] = {
    "never names itself": (writes(), {UNAVAILABLE}),
    "says nothing": (writes(ends=True), {grpc.StatusCode.UNIMPLEMENTED}),  # it is called singly then
    "begins with garbage": (writes(GARBAGE), {UNAVAILABLE, grpc.StatusCode.INTERNAL}),
    "goes on with garbage": (writes(HELLO, GARBAGE), {UNAVAILABLE, grpc.StatusCode.INTERNAL}),
    "ends the stream": (writes(HELLO, ends=True), {UNAVAILABLE}),
    "answers with garbage": (writes(HELLO, says(1, {"message": GARBAGE})), {grpc.StatusCode.INTERNAL}),
    "ends with a code unheard of": (writes(HELLO, says(1, BAD)), {grpc.StatusCode.UNKNOWN}),
    "leaves as it comes": (writes(says(server="odd", leaving=True)), {grpc.StatusCode.UNIMPLEMENTED}),
}


@pytest.mark.parametrize(("play", "codes"), ODD.values(), ids=ODD)
async def test_a_call_ends_with_an_error_when_its_server(play: Play, codes: set[grpc.StatusCode]) -> None:
    async with odd(play) as lines:
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await asyncio.wait_for(ask(lines), HELLO_S + 2)
        assert info.value.code() in codes


async def test_what_is_nobodys_does_no_harm() -> None:
    streams: list[Any] = []

    async def echo(_: Any, context: Any) -> None:
        streams.append(context)
        await context.write(HELLO)
        while (data := await context.read()) is not grpc.aio.EOF:
            for call in multiplex_pb2.CarryRequest.FromString(data).calls:
                answer = {"message": research_result(finding(str(call.number))).SerializeToString()}
                for number in (call.number + 1000, 0, 2**64 - 1):
                    await context.write(says(number, {"message": GARBAGE}, BAD))
                await context.write(says(call.number, answer, {"ended": Status()}, answer, BAD, server="another"))

    async with odd(echo) as lines:
        answers = await asyncio.gather(*(ask(lines) for _ in range(50)))
        assert len(set(map(said, answers))) == 50
        await until(lambda: len(streams) == 2, LOOK_S / 2)  # the look after one that met a server comes at once


async def test_a_stream_that_ended_is_replaced_though_the_server_is_the_same() -> None:
    answer = {"message": research_result(finding()).SerializeToString()}
    async with odd(writes(HELLO, says(1, answer, {"ended": Status()}), ends=True)) as lines:
        for _ in range(3):
            await until(lambda: answered(lines))


@pytest.mark.parametrize("messages", [[HELLO], []], ids=["under way", "before the server named itself"])
async def test_closing_ends_calls_and_leaves_no_task(messages: list[bytes]) -> None:
    async with odd(writes(*messages)) as lines:
        calls = [begin(ask(lines)) for _ in range(3)]
        await until(lambda: "_Line._read" in tasks() if messages else tasks())
        await lines.close()
        assert tasks() == []
        outcomes: list[Any] = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert [type(outcome) for outcome in outcomes] == [grpc.aio.AioRpcError] * 3
        assert {outcome.code() for outcome in outcomes} <= GONE


async def test_nothing_begins_after_closing(lines: Lines) -> None:
    call = begin(ask(lines))
    while lines._look is None or not lines._look.done():  # noqa: ASYNC110 (a look that has just ended would be followed)
        await asyncio.sleep(0)
    await lines.close()
    await asyncio.gather(call, return_exceptions=True)
    with pytest.raises(grpc.aio.AioRpcError):
        await ask(lines)
    assert tasks() == []
