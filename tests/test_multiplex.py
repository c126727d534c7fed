"""The Multiplex service's promises, to a client that speaks the contract by hand (multiplex.proto)."""

import asyncio
import gc
import itertools
import logging
from asyncio import ensure_future as begin
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from operator import length_hint
from typing import Any

import grpc
import pytest
from conductor.v1 import multiplex_pb2, multiplex_pb2_grpc, report_writer_pb2, researcher_pb2, researcher_pb2_grpc
from google.protobuf.message import Message

from services.common.boundary import CORRELATION_HEADER, correlation_id
from services.common.errors import Reason, Refusal, typed
from services.common.multiplex import WAITING_BYTES
from services.common.server import MAX_MESSAGE_BYTES, Service
from services.common.status import Status, as_error, from_rpc_error
from services.conductor.router import OPTIONS, READ, RESEARCH, WRITE
from tests.conftest import refused, until
from tests.fakes import Script, Workers, finding, finds, hangs, research_result

QUESTION = researcher_pb2.ResearchRequest(objective="At what temperature does water boil?")
REPORT = report_writer_pb2.WriteReportRequest(
    task_id="t-1", objective="boil", provenance=report_writer_pb2.Provenance()
)
READING = report_writer_pb2.GetReportRequest(path="reports/t-1.md")
MEBIBYTE = 1024 * 1024
OK, SHORT = Status(), timedelta(seconds=0.2)
LATE, LARGE = (code.value[0] for code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED))


def call(number: int, method: str = RESEARCH.path, request: Message | bytes = QUESTION, **fields: Any) -> Any:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return multiplex_pb2.CarriedCall(number=number, method=method, request=data, **fields)


def running(file: str = "services/common/multiplex.py") -> list[str]:
    """Returns the names of a file's tasks that are not over."""
    coros: list[Any] = [coro for task in asyncio.all_tasks() if hasattr(coro := task.get_coro(), "cr_code")]
    return [coro.__qualname__ for coro in coros if coro.cr_code.co_filename.endswith(file)]


class Caller:
    """One stream of a client, and what the server said on it."""

    def __init__(self, port: int, reads: bool = True) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        self.stream: Any = multiplex_pb2_grpc.MultiplexStub(self.channel).Carry()
        self.said: list[Any] = []
        self.answers: dict[int, list[Any]] = defaultdict(list)
        self.reader = begin(self.read()) if reads else None

    async def read(self) -> None:
        """Reads to the end of the stream. Raises when it does not end OK."""
        while (response := await self.stream.read()) is not grpc.aio.EOF:
            self.said.append(response)
            for answer in response.answers:
                self.answers[answer.number].append(answer)

    async def send(self, *calls: Any, cancelled: Sequence[int] = ()) -> None:
        await self.stream.write(multiplex_pb2.CarryRequest(calls=calls, cancelled=cancelled))

    def messages(self, number: int, kind: Any = researcher_pb2.ResearchResponse) -> list[Any]:
        return [kind.FromString(one.message) for one in self.answers[number] if one.HasField("message")]

    async def ends(self, *numbers: int) -> list[Status]:
        """Returns how calls ended, once they have; nothing may be said of one after its end."""
        for number in numbers:
            await until(lambda heard=self.answers[number]: any(answer.HasField("ended") for answer in heard), 5)
            assert not any(answer.HasField("ended") for answer in self.answers[number][:-1])
        return [self.answers[number][-1].ended for number in numbers]

    async def finish(self) -> None:
        """Half-closes, and waits until the stream has ended OK."""
        await self.stream.done_writing()
        await asyncio.wait_for(self.reader or self.read(), 10)
        assert await self.stream.code() == grpc.StatusCode.OK

    async def __aenter__(self) -> "Caller":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await asyncio.gather(*filter(None, [self.reader]), return_exceptions=True)


@pytest.fixture(autouse=True)
async def no_complaint(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Fails a test in which asyncio had something to say, such as an exception that nobody retrieved."""
    yield
    gc.collect()
    records = caplog.get_records("call") + caplog.get_records("teardown")
    assert [record.getMessage() for record in records if record.name == "asyncio"] == []


@pytest.fixture
async def caller(workers: Workers) -> AsyncIterator[Caller]:
    async with Caller(workers.port) as caller:
        yield caller


def plays(make: Callable[[], Iterator[Any]]) -> Script:
    """Returns a script whose messages are made as they are taken."""

    async def play(_: Any) -> Any:
        return make()

    return play


def raises(error: BaseException, *messages: Any) -> Script:
    """Returns a script that raises, after some messages."""

    def begin() -> Iterator[Any]:
        yield from messages
        raise error

    return plays(begin)


ENDLESS = plays(lambda: itertools.repeat(research_result(finding("x" * 100_000))))


async def settled(value: Callable[[], int]) -> int:
    """Returns a number once it has not changed for a while."""
    seen = [-1] * 50

    def same() -> bool:
        seen.append(value())
        return seen[-50] == seen[-1]

    await until(same)
    return seen[-1]


# ---- calls and their answers ----


async def test_calls_that_come_in_one_message_are_all_answered(workers: Workers, caller: Caller) -> None:
    last = 2**64 - 1
    await caller.send(call(7), call(3, WRITE.path, REPORT), call(last, READ.path, READING))
    assert await caller.ends(7, 3, last) == [OK, OK, OK]
    assert caller.messages(7) == [research_result(finding())]
    assert [written.path for written in caller.messages(3, WRITE.answer)] == ["reports/t-1.md"]
    assert [report.content for report in caller.messages(last, READ.answer)] == [workers.report]
    assert workers.seen == [QUESTION, REPORT]


async def test_the_answers_of_a_call_keep_their_order_among_others(workers: Workers, caller: Caller) -> None:
    steps = [researcher_pb2.ResearchProgress(step=step) for step in range(1500)]
    messages = [researcher_pb2.ResearchResponse(progress=step) for step in steps]
    workers.research = plays(lambda: iter(messages))
    await caller.send(*map(call, range(5)))
    assert await caller.ends(*range(5)) == [OK] * 5
    assert all(caller.messages(number) == messages for number in range(5))
    assert len(caller.said) < 200  # what is ready at the same time travels together


async def test_a_handler_knows_the_correlation_id_and_the_deadline() -> None:
    left: list[float | None] = []

    class Telling(Workers):
        async def Research(self, request: Any, context: Any) -> AsyncIterator[Any]:
            left.append(context.time_remaining())
            yield research_result(finding(correlation_id.get()))

    workers = await Telling().start()
    own = researcher_pb2.ResearchRequest(objective="boil", correlation_id="of-the-request")
    async with Caller(workers.port) as caller:
        await caller.send(call(0, correlation_id="corr-0"), call(1, request=own, correlation_id="corr-1"), call(2))
        await caller.send(call(3), call(4, correlation_id="no id"), call(5, timeout=timedelta(seconds=30)))
        await caller.ends(*range(6))
        heard = [caller.messages(number)[0].result.findings[0].statement for number in range(6)]
    assert heard[:2] == ["corr-0", "of-the-request"]
    assert len(set(heard)) == 6 and not {"", "no id"} & set(heard)  # the others got new ones
    assert left[:5] == [None] * 5 and left[5] is not None and 25 < left[5] <= 30
    await workers.stop()


REFUSED = Refusal.passing_on(typed(Reason.ERROR_REASON_SOURCE_REFUSED, "Say é, \n and 100 %.", source="../x", empty=""))
CASES: dict[str, tuple[str, Message | bytes, Any]] = {
    "an answer": (RESEARCH.path, QUESTION, finds),
    "invalid": (RESEARCH.path, researcher_pb2.ResearchRequest(objective=" ", sources=[""] * 40), finds),
    "refused": (RESEARCH.path, QUESTION, raises(REFUSED)),
    "refused amid answers": (RESEARCH.path, QUESTION, raises(REFUSED, research_result())),
    "refused, unary": (WRITE.path, REPORT, raises(REFUSED)),
    "broken": (RESEARCH.path, QUESTION, raises(RuntimeError("password=hunter2"))),
    "broken, unary": (WRITE.path, REPORT, raises(TimeoutError("of a file"))),
    "no message": (RESEARCH.path, b"\xff\xff", finds),
    "not UTF-8": (WRITE.path, b"\x0a\x02\xff\xff", finds),
    "no method": ("/conductor.v1.Researcher/Guess", QUESTION, finds),
}


@pytest.mark.parametrize(("method", "asked", "script"), CASES.values(), ids=CASES)
async def test_a_call_ends_as_an_rpc_of_its_own_does(
    workers: Workers, caller: Caller, method: str, asked: Message | bytes, script: Any
) -> None:
    workers.research = workers.write = script
    carried, messages = call(1, method, asked, correlation_id="corr-1"), []
    rpc: Any = caller.channel.unary_stream(method)
    single = rpc(carried.request, metadata=((CORRELATION_HEADER, "corr-1"),))
    with suppress(grpc.aio.AioRpcError):
        async for message in single:
            messages.append(message)
    await caller.send(carried)
    (status,) = await caller.ends(1)
    assert [answer.message for answer in caller.answers[1][:-1]] == messages
    assert (status.code, status.message) == ((await single.code()).value[0], await single.details())
    assert dict(as_error(status).trailing_metadata() if status.code else ()) == dict(await single.trailing_metadata())
    await caller.finish()


# ---- how much at once ----


async def test_an_answer_over_the_limit_fails_its_own_call_only(workers: Workers, caller: Caller) -> None:
    whole = report_writer_pb2.GetReportResponse(path=READING.path, content=b"x" * (MAX_MESSAGE_BYTES - 64))
    workers.report = b"x" * (MAX_MESSAGE_BYTES - whole.ByteSize() + len(whole.content))
    await caller.send(call(1, READ.path, READING))
    assert await caller.ends(1) == [OK]
    workers.report += b"x"
    workers.research = plays(lambda: iter([research_result(), research_result(finding("x" * MAX_MESSAGE_BYTES))] * 2))
    await caller.send(call(2, READ.path, READING), call(3), call(4, WRITE.path, REPORT))
    assert [status.code for status in await caller.ends(2, 3, 4)] == [LARGE, LARGE, 0]
    assert caller.messages(2) == [] and caller.messages(3) == [research_result()]


async def test_answers_wait_for_a_caller_who_does_not_read(workers: Workers) -> None:
    large = research_result(finding("x" * (MEBIBYTE // 4)))  # half a mebibyte, statement and quote
    sources = [iter([large] * 100) for _ in range(4)]
    workers.research = plays(iter(sources).__next__)
    async with Caller(workers.port, reads=False) as caller:
        await caller.send(*map(call, range(4)))
        left = await settled(lambda: sum(map(length_hint, sources)))
        assert (400 - left) * MEBIBYTE // 2 < WAITING_BYTES + 8 * MEBIBYTE  # one message of each call, and the wire's
        await caller.send(cancelled=[1])  # a call that waits can be given up, the others go on
        await until(lambda: running().count("_Stream._call") == 3)
        await caller.finish()
        assert await caller.ends(0, 2, 3) == [OK, OK, OK]
        assert [len(caller.messages(number)) for number in (0, 2, 3)] == [100, 100, 100]


async def test_many_small_answers_wait_too_and_let_others_have_their_turn(workers: Workers, caller: Caller) -> None:
    small = iter([researcher_pb2.ResearchResponse()] * 200_000)
    workers.research = plays(lambda: small)
    await caller.send(call(1), call(2, WRITE.path, REPORT))
    assert await caller.ends(2) == [OK]
    assert length_hint(small)


async def test_the_limit_of_calls_counts_carried_ones(workers: Workers) -> None:
    workers.research = hangs
    service = Service("127.0.0.1:0", ["conductor.v1.Researcher"], max_calls=2, multiplexed=True)
    researcher_pb2_grpc.add_ResearcherServicer_to_server(workers, service.server)
    await service.start()
    async with Caller(service.port) as caller:
        await caller.send(*map(call, range(4)))
        for status in await caller.ends(2, 3):
            error = from_rpc_error(as_error(status))
            assert error is not None and error.reason == Reason.ERROR_REASON_OVER_CAPACITY and error.retryable
        await caller.send(cancelled=[0])
        await until(lambda: workers.cancelled)
        workers.research = finds
        await caller.send(call(4))
        assert await caller.ends(4) == [OK]
    await service.stop(0)


# ---- calls that are given up ----


async def test_a_call_that_takes_too_long_ends_and_its_handler_is_cancelled(workers: Workers, caller: Caller) -> None:
    workers.research = hangs
    await caller.send(
        call(1, timeout=SHORT),
        call(2, timeout=timedelta(seconds=0)),
        call(3, timeout=timedelta(seconds=-5)),
        call(4, timeout=timedelta(seconds=60)),
        call(5),
    )
    assert [status.code for status in await caller.ends(1, 2, 3)] == [LATE] * 3
    await until(lambda: workers.cancelled and running().count("_Stream._call") == 2)
    assert not caller.answers[4] and not caller.answers[5]


async def test_a_call_whose_handler_was_cancelled_by_another_hand_ends_too(workers: Workers, caller: Caller) -> None:
    workers.research = raises(asyncio.CancelledError())
    await caller.send(call(1, timeout=timedelta(seconds=0.5)))
    assert (await caller.ends(1))[0].code


async def test_cancelling_stops_the_calls_named_and_no_other(workers: Workers, caller: Caller) -> None:
    async def lingers(_: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)

    workers.research = lingers
    asked = [researcher_pb2.ResearchRequest(objective=f"question {number}") for number in range(4)]
    await caller.send(*(call(number, request=asked[number]) for number in range(4)))
    await until(lambda: len(workers.seen) == 4)
    await caller.send(cancelled=[99, 3, 1, 2**64 - 1])
    await until(lambda: len(workers.cancelled) == 2)
    await caller.send(call(10), cancelled=[1, 10])  # one is over, and one begins
    workers.research = finds
    await caller.send(call(11))
    assert await caller.ends(11) == [OK]
    assert workers.cancelled == [asked[3], asked[1]] and running().count("_Stream._call") == 2
    await caller.send(cancelled=[0, 2])
    await caller.finish()


@pytest.mark.parametrize("script", [hangs, ENDLESS], ids=["silent", "answering"])
async def test_a_client_that_vanishes_leaves_nothing_running(workers: Workers, script: Any, caplog: Any) -> None:
    workers.research = script
    async with Caller(workers.port) as caller:
        await caller.send(*map(call, range(100)))
        await until(lambda: len(workers.seen) == 100)
    await until(lambda: not running() and not workers.service._multiplex._streams)
    assert len(workers.cancelled) == (100 if script is hangs else 0)  # a generator is closed instead
    assert [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR
    ] == []  # no fault of ours


# ---- the end of a stream ----


BAD = {
    "calls.number": [call(7)],
    "calls": map(call, range(1025)),
    "calls[1].correlation_id": [call(1), call(2, correlation_id="x" * 1025)],
    "cancelled": [],
}


@pytest.mark.parametrize(("field", "calls"), BAD.items(), ids=BAD)
async def test_what_breaks_the_contract_ends_the_stream(
    workers: Workers, caller: Caller, field: str, calls: Any
) -> None:
    workers.research = hangs
    await caller.send(call(7), call(8))
    await until(lambda: len(workers.seen) == 2)
    await caller.send(*calls, cancelled=range(1025) if field == "cancelled" else ())
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        await asyncio.wait_for(caller.reader, 10)
    error = from_rpc_error(caught[0])
    assert error is not None and error.metadata["field"] == field
    await until(lambda: len(workers.cancelled) == 2 and not running())


async def test_after_a_half_close_calls_finish_and_the_stream_ends(workers: Workers, caller: Caller) -> None:
    workers.research = hangs
    await caller.send(*(call(number, WRITE.path, REPORT) for number in range(1023)), call(1023, timeout=SHORT))
    await caller.finish()
    assert [status.code for status in await caller.ends(*range(1024))] == [0] * 1023 + [LATE]
    await until(lambda: not running())


async def test_a_server_that_leaves_says_so_and_serves_what_still_comes(workers: Workers, caller: Caller) -> None:
    workers.research = hangs
    await caller.send(call(1, WRITE.path, REPORT), call(2, timeout=timedelta(seconds=1)))
    await until(lambda: len(workers.seen) == 2)
    await workers.service.drain()
    async with Caller(workers.port) as late:
        for each in (caller, late):
            await until(lambda each=each: any(said.leaving for said in each.said))
        assert late.said[0].server == caller.said[0].server != "" == late.said[1].server
        workers.research = finds
        await late.send(call(1))
        assert await late.ends(1) == [OK]
        await late.finish()
    stopping = begin(workers.service.stop(10))
    await caller.send(call(3), call(4))
    assert [status.code for status in await caller.ends(1, 2, 3, 4)] == [0, LATE, 0, 0]
    assert not stopping.done()
    await caller.finish()
    await asyncio.wait_for(stopping, 5)
    assert sum(said.leaving for said in caller.said) == 1 and not running()


async def test_leaving_and_refusals_are_told_amid_answers_without_end(workers: Workers, caller: Caller) -> None:
    workers.research = ENDLESS
    await caller.send(call(1))
    await until(lambda: caller.answers[1])
    await workers.service.drain()
    await until(lambda: any(said.leaving for said in caller.said), 3)
    await caller.send(call(1))  # a number under way: a breach is seen amid them too
    with pytest.raises(grpc.aio.AioRpcError):
        await asyncio.wait_for(caller.reader, 3)
