"""A call id runs its command once, whatever happens, and tells the same story to everybody who asks."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import terminal_pb2, terminal_pb2_grpc

from services.common.errors import Reason, Refusal
from services.terminal.calls import Calls
from services.terminal.stories import Header, State
from services.terminal.telling import WINDOW_BYTES
from tests.calls_at_hand import (
    ERR,
    MIB,
    OUT,
    STARTED,
    Big,
    Open,
    Response,
    Scripted,
    calls,
    chunk,
    never,
    opened,
    output,
    refused,
    rest,
    result,
    settled,
    story_file,
    tell,
)
from tests.conftest import until

__all__ = ["calls", "opened"]


# One id, one run


async def test_it_is_told_again_and_not_run_again(calls: Calls) -> None:
    command = Scripted(
        STARTED, chunk(b"a\xff"), chunk(b"b", ERR), chunk(b""), chunk(b"x" * 65_536), result(exit_code=3)
    )
    first = await tell(calls, command=command)
    assert first == list(command.said)
    assert [await never(calls) for _ in range(3)] == [first] * 3
    assert command.begun == command.closed == 1
    assert not command.cancelled


async def test_of_many_at_once_one_runs(calls: Calls) -> None:
    command = Scripted(STARTED, *(chunk(bytes([n])) for n in range(50)), result())
    stories = await asyncio.gather(*(tell(calls, command=command) for _ in range(300)))
    assert stories == [list(command.said)] * 300
    assert command.begun == 1


async def test_the_ids_do_not_mix(calls: Calls) -> None:
    names = ["a", "A", "a.", "a-b", "a.story", "9" * 128]
    told = await asyncio.gather(*(tell(calls, name, Scripted(chunk(name.encode()), result())) for name in names))
    assert [output(each).decode() for each in told] == names
    assert [output(await never(calls, name)).decode() for name in names] == names


async def test_an_id_belongs_to_its_command(calls: Calls, opened: Open) -> None:
    command, other = Scripted(hold=True), Scripted()
    follower = calls.run("c", b"print", command.begin)
    with refused("REQUEST_ID_REUSED") as told:
        calls.run("c", b"delete", other.begin)
    assert told["call_id"] == "c" and "call_id of its own" in told["message"]
    command.go_on.set()
    await rest(follower)
    with refused("REQUEST_ID_REUSED"):
        calls.run("c", b"delete", other.begin)
    with refused("REQUEST_ID_REUSED"):
        (await opened()).run("c", b"", other.begin)
    assert not other.begun


async def test_the_record_is_there_before_the_command(calls: Calls, tmp_path: Path) -> None:
    seen: list[State] = []

    class Looking(Scripted):
        def begin(self) -> "Looking":
            seen.append(Header.unpack(story_file(tmp_path).read_bytes()).state)
            return self

    await tell(calls, command=Looking())
    assert seen == [State.RUNNING]


async def test_who_comes_in_the_middle_is_told_the_beginning(calls: Calls) -> None:
    command = Scripted(hold=True)
    early = calls.run("c", b"print", command.begin)
    assert [await anext(early) for _ in range(2)] == [STARTED, chunk(b"hello")]
    late = calls.run("c", b"print", command.begin)
    assert [await anext(late) for _ in range(2)] == [STARTED, chunk(b"hello")]
    command.go_on.set()
    assert await rest(early) == await rest(late) == [result()]


@pytest.mark.parametrize("seed", range(6))
async def test_any_sizes_at_any_pace(calls: Calls, seed: int) -> None:
    luck = random.Random(seed)  # noqa: S311 - no secret is made of it
    sizes = [luck.choice((0, 1, 100, 4_000, 65_535, 65_536)) for _ in range(120)]
    command = Scripted(STARTED, *(chunk(luck.randbytes(size), luck.choice((OUT, ERR))) for size in sizes), result())

    async def follow() -> list[Response]:
        pause, story = luck.random(), []
        follower = calls.run("c", b"print", command.begin)
        async for response in follower:
            story.append(response)
            for _ in range(luck.randrange(10) * (pause > 0.5)):
                await asyncio.sleep(0)
        follower.leave()
        return story

    assert await asyncio.gather(*(follow() for _ in range(4))) == [list(command.said)] * 4
    assert await never(calls) == list(command.said)


async def test_a_huge_result(calls: Calls) -> None:
    files = [terminal_pb2.OutputFile(path=f"{n:04}" * 1024, sha256="0" * 64) for n in range(1000)]
    command = Scripted(STARTED, result(files=files))
    assert await tell(calls, command=command) == await never(calls) == list(command.said)


async def test_a_command_waits_for_a_slow_reader(calls: Calls) -> None:
    command = Big(8 * MIB)
    follower = calls.run("c", b"print", command.begin)
    assert await settled(command) <= WINDOW_BYTES + 65_536
    for _ in range(33):
        await anext(follower)
    assert 2 * MIB < await settled(command) <= 3 * MIB + 2 * 65_536
    assert len(output(await rest(follower))) == 6 * MIB


async def test_the_slowest_reader_sets_the_pace_until_it_leaves(calls: Calls) -> None:
    command = Big(8 * MIB)
    slow, fast = (calls.run("c", b"print", command.begin) for _ in range(2))
    reading = asyncio.create_task(rest(fast))
    assert await settled(command) <= WINDOW_BYTES + 65_536
    assert not reading.done()
    slow.leave()
    assert len(output(await reading)) == 8 * MIB
    assert not command.cancelled
    with pytest.raises(StopAsyncIteration):
        await anext(slow)


async def test_with_the_last_reader_goes_the_command(calls: Calls) -> None:
    command = Scripted(hold=True)
    first, second = (calls.run("c", b"print", command.begin) for _ in range(2))
    await anext(first)
    first.leave()
    first.leave()
    await anext(second)
    await settled(command)
    assert not command.cancelled
    second.leave()
    assert command.cancelled == 1
    assert await never(calls) == [STARTED, chunk(b"hello"), result("CANCELLED")]
    assert command.begun == command.closed == 1


async def test_a_cancelled_command_is_taken_to_its_end_though_nobody_reads(calls: Calls) -> None:
    command = Big(8 * MIB, hold=True)
    follower = calls.run("c", b"print", command.begin)
    await settled(command)
    follower.leave()
    await until(lambda: command.closed)
    story = await never(calls)
    assert (len(output(story)), story[-1]) == (8 * MIB, result("CANCELLED"))


async def test_a_reader_whose_task_is_cancelled(calls: Calls) -> None:
    command = Scripted(hold=True)
    reading = asyncio.create_task(tell(calls, command=command))
    await until(lambda: command.told == 2)
    reading.cancel()
    await until(lambda: command.closed)
    assert (await never(calls))[-1] == result("CANCELLED")


async def test_it_had_ended_when_the_last_reader_went(calls: Calls) -> None:
    command = Big(2 * MIB)
    follower = calls.run("c", b"print", command.begin)
    await settled(command)
    follower.leave()
    command.cancelled = 0  # the command was done: cancelling it changes nothing
    await until(lambda: command.closed)
    assert (await never(calls))[-1] == result()


async def test_gone_before_it_began(calls: Calls) -> None:
    command = Scripted()
    calls.run("c", b"print", command.begin).leave()
    await asyncio.sleep(0)
    assert not command.begun
    assert await tell(calls, command=command) == list(command.said)


class Service(terminal_pb2_grpc.TerminalServicer):
    """Serves one scripted command as the Terminal would."""

    def __init__(self, calls: Calls, command: Scripted) -> None:
        self.calls = calls
        self.command = command
        self.done = 0

    async def Run(self, request: terminal_pb2.RunRequest, context: Any) -> AsyncIterator[Response]:
        follower = self.calls.run(request.call_id, b"print", self.command.begin)

        def done(_: Any) -> None:
            follower.leave()
            self.done += 1

        context.add_done_callback(done)
        try:
            async for response in follower:
                yield response
        finally:
            follower.leave()


@contextlib.asynccontextmanager
async def served(calls: Calls, command: Scripted) -> AsyncIterator[tuple[Any, Service]]:
    server, service = grpc.aio.server(), Service(calls, command)
    terminal_pb2_grpc.add_TerminalServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield terminal_pb2_grpc.TerminalStub(channel), service
    await server.stop(None)


@pytest.mark.parametrize("reading", [True, False], ids=["that reads", "that never read"])
async def test_a_caller_that_goes(calls: Calls, reading: bool) -> None:
    command = Big(64 * MIB, hold=True)
    async with served(calls, command) as (terminal, service):
        callers = [terminal.Run(terminal_pb2.RunRequest(call_id="c")) for _ in range(2)]
        await asyncio.gather(*(each.read() for each in callers if reading))
        await until(lambda: command.told_bytes > MIB)
        callers[0].cancel()
        await until(lambda: service.done == 1)
        assert not command.cancelled
        assert command.told_bytes < 32 * MIB  # it waits for the other
        callers[1].cancel()
        await until(lambda: command.closed)
        again = [each async for each in terminal.Run(terminal_pb2.RunRequest(call_id="c"))]
    assert (command.begun, command.cancelled) == (1, 1)
    assert again[-1].result.end == terminal_pb2.COMMAND_END_CANCELLED
    assert len(output(again)) + again[-1].result.stdout_dropped_bytes == 64 * MIB


# Refusals


NOTHING_RAN = ["OVER_CAPACITY", "SANDBOX_UNAVAILABLE", "COMMAND_NOT_STARTED", "SHUTTING_DOWN", "PROGRAM_REFUSED"]


def a_refusal(reason: str) -> Refusal:
    return Refusal(Reason.Value(f"ERROR_REASON_{reason}"), "for a reason", layer="some")


@pytest.mark.parametrize("at_once", [True, False], ids=["begin", "responses"])
@pytest.mark.parametrize("reason", NOTHING_RAN)
async def test_what_never_ran_is_forgotten(calls: Calls, tmp_path: Path, reason: str, at_once: bool) -> None:
    class Refusing(Scripted):
        def begin(self) -> "Refusing":
            self.begun += 1
            if at_once:
                raise a_refusal(reason)
            return self

    command = Refusing(a_refusal(reason))
    followers = [calls.run("c", b"print", command.begin) for _ in range(3)]
    for follower in followers:
        with refused(reason) as told:
            await rest(follower)
        assert told == {"layer": "some", "message": "for a reason"}
    assert command.begun == 1
    assert not story_file(tmp_path).exists()
    other = Scripted()
    assert await rest(calls.run("c", b"something else", other.begin)) == list(other.said)


LOST: list[tuple[str, list[Any]]] = [
    ("INTERNAL", [a_refusal("INTERNAL")]),
    ("INTERNAL", [STARTED, chunk(b"x"), a_refusal("INTERNAL")]),
    ("OVER_CAPACITY", [STARTED, a_refusal("OVER_CAPACITY")]),
    ("INTERNAL", [RuntimeError("a bug")]),
    ("INTERNAL", [STARTED, RuntimeError("a bug")]),
    ("INTERNAL", [STARTED, chunk(b"x")]),
    ("INTERNAL", [STARTED, chunk(b"x" * 17 * MIB), result()]),
]


@pytest.mark.parametrize(("reason", "said"), LOST, ids=range(len(LOST)))
async def test_what_was_lost_is_unknown_for_ever(calls: Calls, opened: Open, reason: str, said: list[Any]) -> None:
    command = Scripted(*said)
    follower, heard = calls.run("c", b"print", command.begin), []
    with refused(reason):
        async for response in follower:
            heard.append(response)
    assert heard == [each for each in said if isinstance(each, Response)][: len(heard)]
    assert command.closed == 1
    for _ in range(3):
        with refused("OUTCOME_UNKNOWN") as told:
            await never(calls)
        assert told["call_id"] == "c" and "new call_id" in told["message"]
        calls = await opened()


async def test_what_comes_after_the_result_is_not_told(calls: Calls) -> None:
    command = Scripted(STARTED, result(), chunk(b"late"), RuntimeError("later"))
    assert await tell(calls, command=command) == await never(calls) == [STARTED, result()]
    assert command.closed == 1


# Another process


async def test_stories_outlive_the_process(calls: Calls, opened: Open) -> None:
    story = await tell(calls, "done", Scripted(STARTED, chunk(b"x" * MIB), result(exit_code=1)))
    follower = calls.run("held", b"print", Scripted(hold=True).begin)
    await anext(follower)
    again = await opened()
    assert await never(again, "done") == story
    assert (await never(again, "held"))[-1] == result("CANCELLED")
    with refused("SHUTTING_DOWN"):
        await rest(follower)
    with refused("SHUTTING_DOWN"):
        await tell(calls, "new")
