"""A call id runs its command once, whatever happens, and tells the same story to everybody who asks."""

import asyncio
import contextlib
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import terminal_pb2, terminal_pb2_grpc

from services.common.config import ConfigError
from services.common.errors import Reason, Refusal
from services.terminal.calls import Calls
from services.terminal.stories import HEADER, LENGTH, Header, Moment, State, frame
from services.terminal.telling import WINDOW_BYTES, Follower
from tests.conftest import until

MIB = 1024 * 1024
HOUR_NS = 3600 * 10**9
OUT, ERR = terminal_pb2.OUTPUT_STREAM_STDOUT, terminal_pb2.OUTPUT_STREAM_STDERR
STARTED = terminal_pb2.RunResponse(started=terminal_pb2.CommandStarted())
STARTED.started.started_at.seconds = 1
REPOSITORY = Path(__file__).resolve().parent.parent
Response = terminal_pb2.RunResponse


def chunk(data: bytes, stream: Any = OUT) -> Response:
    return Response(chunk=terminal_pb2.OutputChunk(stream=stream, data=data))


def result(end: str = "EXITED", **fields: Any) -> Response:
    told = terminal_pb2.CommandResult(end=terminal_pb2.CommandEnd.Value(f"COMMAND_END_{end}"), **fields)
    told.cpu_time.nanos = 7
    return Response(result=told)


class Scripted:
    """A command that says what it is given; `hold` makes it wait after the output until it is set or cancelled."""

    def __init__(self, *said: Response | Exception, hold: bool = False) -> None:
        self.said: Iterable[Response | Exception] = said or (STARTED, chunk(b"hello"), result())
        self.go_on = asyncio.Event()
        self.begun = 0
        self.told = 0
        self.told_bytes = 0
        self.cancelled = 0
        self.closed = 0
        if not hold:
            self.go_on.set()

    def begin(self) -> "Scripted":
        self.begun += 1
        return self

    def cancel(self) -> None:
        self.cancelled += 1
        self.go_on.set()

    async def responses(self) -> AsyncGenerator[Response, None]:
        try:
            for each in self.said:
                if isinstance(each, Exception):
                    raise each
                if each.HasField("result"):
                    await self.go_on.wait()
                    each = result("CANCELLED") if self.cancelled else each
                self.told += 1
                self.told_bytes += len(each.chunk.data)
                yield each
        finally:
            self.closed += 1


async def rest(follower: Follower) -> list[Response]:
    try:
        return [response async for response in follower]
    finally:
        follower.leave()


def output(story: list[Response], stream: Any = OUT) -> bytes:
    return b"".join(each.chunk.data for each in story if each.chunk.stream == stream)


@contextlib.contextmanager
def refused(reason: str) -> Iterator[dict[str, str]]:
    told: dict[str, str] = {}
    with pytest.raises(Refusal) as caught:
        yield told
    error = caught.value.error
    assert Reason.Name(error.reason) == f"ERROR_REASON_{reason}", error
    told.update(error.metadata, message=error.message)


Open = Callable[..., Any]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the calls of one folder; those opened before are closed, or left as a crash would leave them."""
    now: list[Calls] = []

    async def open_calls(keep_s: float = 3600, max_bytes: int = 64 * MIB, **options: Any) -> Calls:
        for calls in now:
            await calls.close()
        now[:] = [Calls(tmp_path / "calls", keep_s, max_bytes, **options)]
        await now[0].start()
        return now[0]

    yield open_calls
    for calls in now:
        await calls.close()
    assert not descriptors(tmp_path)


@pytest.fixture
async def calls(opened: Open) -> Calls:
    return await opened()  # type: ignore[no-any-return]


def descriptors(folder: Path) -> list[str]:
    """Returns what this process has open below a folder."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(fd.readlink()))
    return [path for path in found if path.startswith(str(folder))]


def story_file(folder: Path, call_id: str = "c") -> Path:
    return folder / "calls" / f"{call_id}.story"


async def tell(calls: Calls, call_id: str = "c", command: Scripted | None = None) -> list[Response]:
    return await rest(calls.run(call_id, b"print", (command or Scripted()).begin))


async def never(calls: Calls, call_id: str = "c") -> list[Response]:
    """Calls again, which must not run anything."""
    command = Scripted()
    try:
        return await tell(calls, call_id, command)
    finally:
        assert not command.begun


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


# Those who follow


def big(total: int, piece: bytes = b"x" * 65_536) -> Iterator[Response]:
    yield STARTED
    for _ in range(total // len(piece)):
        yield chunk(piece)
    yield result()


class Big(Scripted):
    """A command that writes so many bytes, made as they are asked for."""

    def __init__(self, total: int, hold: bool = False) -> None:
        super().__init__(hold=hold)
        self.said = big(total)


async def settled(command: Scripted) -> int:
    """Waits until a command tells nothing more, and returns how many bytes it told."""
    told = -1
    while told != command.told_bytes:
        told = command.told_bytes
        for _ in range(50):
            await asyncio.sleep(0)
    return told


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


CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.test_calls import Calls, Scripted, STARTED, chunk, result, tell, settled

async def main(folder, how):
    calls = Calls(Path(folder), 3600, 1 << 26)
    await calls.start()
    await tell(calls, "ended", Scripted(STARTED, chunk(b"x" * 100_000), result(exit_code=5)))
    if how == "begin":
        calls.run("killed", b"print", lambda: os.kill(os.getpid(), signal.SIGKILL))
    if how == "middle":
        command = Scripted(STARTED, *[chunk(b"x" * 65_536)] * 3, result(), hold=True)
        followers = [calls.run(name, b"print", command.begin) for name in ("killed", "killed-2")]
        await settled(command)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "storm":
        log = os.open(Path(folder).parent / "begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        ended = os.open(Path(folder).parent / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        class Logged(Scripted):
            def begin(self):
                os.write(log, self.name + b"\\n")
                return self
        async def one(number):
            command = Logged(STARTED, *[chunk(os.urandom(50_000))] * (number % 4), result())
            command.name = b"s-%d" % number
            await tell(calls, command.name.decode(), command)
            os.write(ended, command.name + b"\\n")
        for number in range(0, 1_000_000, 8):
            await asyncio.gather(*(one(number + more) for more in range(8)))
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def child(folder: Path, how: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", CHILD, str(folder / "calls"), how]
    return subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:gen"})


@pytest.mark.parametrize("how", ["begin", "middle"])
async def test_killed_in_the_middle(opened: Open, tmp_path: Path, how: str) -> None:
    with child(tmp_path, how) as process:
        assert await asyncio.to_thread(process.wait, 20) == -signal.SIGKILL
    calls = await opened()
    told = await never(calls, "ended")
    assert (len(output(told)), told[-1]) == (100_000, result(exit_code=5))
    for _ in range(2):
        for name in ("killed", "killed-2") if how == "middle" else ("killed",):
            with refused("OUTCOME_UNKNOWN"):
                await never(calls, name)
            with refused("REQUEST_ID_REUSED"):
                calls.run(name, b"something else", Scripted().begin)
            assert story_file(tmp_path, name).stat().st_size == HEADER.size
        calls = await opened()


async def test_killed_at_any_moment(opened: Open, tmp_path: Path) -> None:
    with child(tmp_path, "storm") as process:
        await until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").stat().st_size > 2000, 20)
        process.kill()
    begun = (tmp_path / "begun").read_text().splitlines()
    told = set((tmp_path / "told").read_text().splitlines())
    assert len(begun) == len(set(begun))
    calls = await opened()
    for name in begun:
        try:
            story = await never(calls, name)
            assert story[-1] == result() and len(output(story)) == int(name[2:]) % 4 * 50_000
        except Refusal as refusal:
            assert refusal.error.reason == Reason.ERROR_REASON_OUTCOME_UNKNOWN and name not in told, name


# What lies in the folder


def written(state: State, *frames: bytes, **fields: Any) -> bytes:
    header = Header(state, b"\0" * 32, fields.pop("ended", Moment.now()), **fields)
    return header.pack() + b"".join(frames)


WHOLE = [frame(each) for each in (STARTED, chunk(b"x" * 1000), result())]
DAMAGED = {
    "empty": b"",
    "torn header": written(State.ENDED)[:50],
    "other format": b"story 9\n" + written(State.ENDED)[8:],
    "impossible state": written(State.ENDED)[:8] + b"\x09" + written(State.ENDED)[9:],
    "noise": bytes(range(256)) * 10,
    "torn frame": written(State.RUNNING, *WHOLE)[:-3],
    "torn length": written(State.RUNNING, *WHOLE[:2], b"\1\0"),
    "running, with a result": written(State.RUNNING, *WHOLE),
    "unknown": written(State.UNKNOWN, *WHOLE[:1]),
    "unknown, with a result": written(State.UNKNOWN, *WHOLE, result_at=HEADER.size),
}
ZEROS = b"\0" * 32
ENDED_DAMAGED = {
    "no result": written(State.ENDED, *WHOLE[:2]),
    "cut": written(State.ENDED, *WHOLE)[:-3],
    "cut in the length": written(State.ENDED, *WHOLE[:2], b"\1\0"),
    "nothing": written(State.ENDED),
    "no message": written(State.ENDED, WHOLE[0], LENGTH.pack(4) + b"\xff\xff\xff\xff", WHOLE[2]),
    "absurd length": written(State.ENDED, WHOLE[0], b"\xff\xff\xff\xff", WHOLE[2]),
    "zeros": written(State.ENDED, WHOLE[0], b"\0" * 4096),
}


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / "calls").mkdir(mode=0o700, exist_ok=True)
    path = story_file(folder, name)
    path.write_bytes(content)
    return path


def with_fingerprint(content: bytes) -> bytes:
    """Makes a story belong to what `tell` asks for."""
    return content.replace(ZEROS, hashlib.sha256(b"print").digest(), 1) if content.startswith(b"story 1") else content


@pytest.mark.parametrize("content", [*DAMAGED.values(), *ENDED_DAMAGED.values()], ids=[*DAMAGED, *ENDED_DAMAGED])
async def test_what_cannot_be_read_is_not_run(opened: Open, tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "c", with_fingerprint(content))
    put(tmp_path, "good", with_fingerprint(written(State.ENDED, *WHOLE, result_at=HEADER.size)))
    calls = await opened()
    assert (await never(calls, "good"))[-1] == result()
    for _ in range(2):
        with refused("OUTCOME_UNKNOWN"):
            await never(calls)


async def test_strange_entries(opened: Open, tmp_path: Path) -> None:
    half = put(tmp_path, "c", b"x").rename(tmp_path / "calls" / "c.new")
    (tmp_path / "calls" / "notes.txt").write_text("kept")
    os.mkfifo(story_file(tmp_path, "fifo"))
    calls = await opened()
    with refused("OUTCOME_UNKNOWN"):
        await never(calls, "fifo")
    assert not half.exists() and (tmp_path / "calls" / "notes.txt").exists()
    command = Scripted()
    put(tmp_path, "foreign", b"appeared meanwhile")
    with refused("SANDBOX_UNAVAILABLE") as told:
        await tell(calls, "foreign", command)
    assert (told["layer"], told["errno"], command.begun) == ("calls", "EEXIST", 0)
    await tell(calls)
    story_file(tmp_path).unlink()
    with refused("OUTCOME_UNKNOWN"):
        await never(calls)


async def test_one_process_at_a_time(calls: Calls, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in use by another"):
        await Calls(tmp_path / "calls", 60, MIB).start()
    assert (tmp_path / "calls").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link", "file/below"):
        with pytest.raises(ConfigError, match="cannot be used"):
            await Calls(tmp_path / name, 60, MIB).start()


# Time


async def test_a_story_is_forgotten_when_its_time_is_over(opened: Open, tmp_path: Path) -> None:
    calls = await opened(keep_s=0.3)
    held = Scripted(hold=True)
    running = calls.run("running", b"print", held.begin)
    await tell(calls, "ended")
    assert await never(calls, "ended")
    begin = time.monotonic()
    await until(lambda: not story_file(tmp_path, "ended").exists())
    assert time.monotonic() - begin > 0.2
    assert await tell(calls, "ended") == list(Scripted().said)
    assert story_file(tmp_path, "running").exists()
    held.go_on.set()
    assert (await rest(running))[-1] == result()


async def test_it_is_over_at_its_time_and_not_at_the_next_sweep(opened: Open) -> None:
    calls = await opened(keep_s=0.2)
    for _ in range(3):
        await tell(calls)
        over = time.monotonic() + 0.25
        assert await never(calls)
        await until(lambda over=over: time.monotonic() > over)  # type: ignore[misc]


async def test_who_is_being_told_is_told_to_the_end(opened: Open, tmp_path: Path) -> None:
    calls = await opened(keep_s=0.2)
    await tell(calls, command=Big(MIB))
    follower = calls.run("c", b"print", Scripted().begin)
    await anext(follower)
    await until(lambda: not story_file(tmp_path).exists())
    assert len(output(await rest(follower))) == MIB


NOW = Moment.now()
ANOTHER_BOOT = NOW._replace(boot_id=b"another")
MOVED = {
    "same boot, clock set back": (NOW._replace(wall_ns=NOW.wall_ns + 99 * HOUR_NS), True),
    "same boot, clock set on": (NOW._replace(wall_ns=0), True),
    "same boot, its time over": (NOW._replace(boot_ns=NOW.boot_ns - HOUR_NS, wall_ns=NOW.wall_ns), False),
    "other boot": (ANOTHER_BOOT._replace(wall_ns=NOW.wall_ns - HOUR_NS // 2), True),
    "other boot, its time over": (ANOTHER_BOOT._replace(wall_ns=NOW.wall_ns - HOUR_NS), False),
    "other boot, clock set back": (ANOTHER_BOOT._replace(wall_ns=NOW.wall_ns + 99 * HOUR_NS), True),
    "boot unknown": (NOW._replace(boot_id=b"", boot_ns=0), True),
}


@pytest.mark.parametrize(("ended", "kept"), MOVED.values(), ids=MOVED)
async def test_clocks_that_move(opened: Open, tmp_path: Path, ended: Moment, kept: bool) -> None:
    put(tmp_path, "c", with_fingerprint(written(State.ENDED, *WHOLE, ended=ended)))
    calls, command = await opened(), Scripted()
    await tell(calls, command=command)
    assert command.begun == (not kept)


def test_a_moment_of_an_unknown_boot_is_told_by_the_wall_clock() -> None:
    assert Moment(b"", 100, 7).until(Moment(b"", 900, 9)) == 2
    assert Moment(b"a", 100, 7).until(Moment(b"a", 900, 9)) == 800
    assert Moment(b"a", 100, 9).until(Moment(b"b", 900, 7)) == 0


async def test_a_story_from_the_future_is_not_kept_longer(opened: Open, tmp_path: Path) -> None:
    future = ANOTHER_BOOT._replace(wall_ns=NOW.wall_ns + 99 * HOUR_NS)
    put(tmp_path, "c", with_fingerprint(written(State.ENDED, *WHOLE, ended=future)))
    put(tmp_path, "a", with_fingerprint(written(State.ENDED, *WHOLE)))
    await opened(keep_s=0.3)
    await until(lambda: not list((tmp_path / "calls").iterdir()))


# Room


def disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (folder / "calls").iterdir())


async def test_the_oldest_lose_their_output_first(opened: Open, tmp_path: Path) -> None:
    calls = await opened(max_bytes=8 * MIB)
    said = [STARTED, chunk(b"x" * 65_536), *[chunk(b"y" * 65_536, ERR)] * 15, result(stderr_dropped_bytes=5)]
    for number in range(30):
        assert await tell(calls, f"c-{number}", Scripted(*said)) == said
        assert disk(tmp_path) <= 8 * MIB
    stripped = [STARTED, result(stdout_dropped_bytes=65_536, stderr_dropped_bytes=15 * 65_536 + 5)]
    for _ in range(2):
        told = [await never(calls, f"c-{number}") for number in range(30)]
        assert told[-6:] == [said] * 6
        assert told[:-6] == [stripped] * 24
        calls = await opened(max_bytes=8 * MIB)


async def test_output_is_taken_out_once(opened: Open) -> None:
    calls = await opened(max_bytes=4 * MIB)
    files = [terminal_pb2.OutputFile(path=f"{n:0100}") for n in range(100)]
    await tell(calls, "c", Scripted(STARTED, chunk(b"x" * 65_536), result(files=files)))
    for part in "ab":
        for number in range(8):
            await tell(calls, f"{part}-{number}", Big(MIB // 2))
        assert await never(calls, "c") == [STARTED, result(files=files, stdout_dropped_bytes=65_536)]
        calls = await opened(max_bytes=4 * MIB)


async def test_a_story_that_outgrows_its_share(opened: Open, tmp_path: Path) -> None:
    calls = await opened(max_bytes=8 * MIB)
    command = Big(24 * MIB, hold=True)
    first = calls.run("c", b"print", command.begin)
    second = calls.run("c", b"print", command.begin)
    heard, also = 0, 0
    while heard < 16 * MIB:
        heard += len((await anext(first)).chunk.data)
        also += len((await anext(second)).chunk.data)
    late = calls.run("c", b"print", command.begin)
    assert await settled(command) <= 16 * MIB + WINDOW_BYTES + 2 * 65_536  # who comes late does not hold it up
    command.go_on.set()
    for story in await asyncio.gather(rest(first), rest(second)):
        assert (heard + len(output(story)), story[-1]) == (24 * MIB, result())
    kept = await rest(late)
    assert kept[0] == STARTED
    assert MIB < len(output(kept)) < 2 * MIB
    assert kept[-1] == result(stdout_dropped_bytes=24 * MIB - len(output(kept)))
    assert await never(calls) == kept
    assert await never(await opened(max_bytes=8 * MIB)) == kept
    assert disk(tmp_path) <= 2 * MIB


async def test_a_long_story_takes_little_memory_and_disk(opened: Open, tmp_path: Path) -> None:
    """Of 256 MiB, no more than the window is ever in memory, and no more than the share on the disk."""
    calls = await opened(max_bytes=8 * MIB)
    command = Big(256 * MIB)
    follower, heard = calls.run("c", b"print", command.begin), 0
    tracemalloc.start()
    try:
        async for response in follower:
            heard += len(response.chunk.data)
            assert heard % (16 * MIB) or disk(tmp_path) <= 2 * MIB
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        follower.leave()
    assert heard == 256 * MIB
    assert peak < 6 * MIB


async def test_room_that_running_stories_have_is_not_taken(opened: Open, tmp_path: Path) -> None:
    calls = await opened(max_bytes=4 * MIB)
    commands = [Big(MIB - 65_536, hold=True) for _ in range(8)]
    followers = [calls.run(f"c-{number}", b"print", each.begin) for number, each in enumerate(commands)]
    for command in commands:
        await settled(command)
    assert disk(tmp_path) <= 4 * MIB
    for command in commands:
        command.go_on.set()
    for follower in followers:
        story = await rest(follower)
        assert (len(output(story)), story[-1]) == (MIB - 65_536, result())
    for number in range(8):
        story = await never(calls, f"c-{number}")
        assert len(output(story)) + story[-1].result.stdout_dropped_bytes == MIB - 65_536


async def test_beyond_the_count_the_oldest_are_forgotten(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = await opened(max_stories=10, keep_s=3600)
    held = Scripted(hold=True)
    running = calls.run("running", b"print", held.begin)
    for number in range(25):
        await tell(calls, f"c-{number}")
    left = {path.name for path in (tmp_path / "calls").iterdir()}
    assert left == {"running.story", *(f"c-{number}.story" for number in range(16, 25))}
    held.go_on.set()
    await rest(running)
    calls = await opened(max_stories=3)
    await until(lambda: len(list((tmp_path / "calls").iterdir())) == 3)
    assert "forgotten before their time" in caplog.text
    assert await never(calls, "c-24")


async def test_a_restart_keeps_the_order_of_ends(calls: Calls, opened: Open, tmp_path: Path) -> None:
    for name in ("m", "z", "a", "y", "b"):
        await tell(calls, name)
    await opened(max_stories=3)
    await until(lambda: {path.stem for path in (tmp_path / "calls").iterdir()} == {"a", "y", "b"})


async def test_output_does_not_cost_other_ids_their_place(opened: Open) -> None:
    """Commands that fill all the room meanwhile make nobody forget what has ended."""
    calls = await opened(max_bytes=4 * MIB)
    for number in range(50):
        await tell(calls, f"small-{number}")
    commands = [Big(MIB - 65_536, hold=True) for _ in range(6)]
    followers = [calls.run(f"big-{number}", b"print", each.begin) for number, each in enumerate(commands)]
    for command in commands:
        await settled(command)
    for number in range(50, 100):
        await tell(calls, f"small-{number}")
    for number in range(100):
        assert await never(calls, f"small-{number}") == list(Scripted().said)
    for follower in followers:
        follower.leave()


async def test_when_all_that_is_remembered_runs(opened: Open) -> None:
    calls = await opened(max_stories=2)
    commands = [Scripted(hold=True) for _ in range(2)]
    followers = [calls.run(f"c-{number}", b"print", each.begin) for number, each in enumerate(commands)]
    with refused("OVER_CAPACITY") as told:
        await tell(calls, "c-2")
    assert told["limit"] == "2"
    for follower in followers:
        follower.leave()


async def test_smaller_settings_after_a_restart(calls: Calls, opened: Open, tmp_path: Path) -> None:
    for number in range(40):
        await tell(calls, f"c-{number}", Big(MIB // 4))
    calls = await opened(max_bytes=2 * MIB)
    await until(lambda: disk(tmp_path) <= 2 * MIB)
    for number in range(40):
        story = await never(calls, f"c-{number}")
        assert len(output(story)) + story[-1].result.stdout_dropped_bytes == MIB // 4


async def test_thousands_of_calls(calls: Calls, tmp_path: Path) -> None:
    async def some(part: int) -> None:
        for number in range(250):
            name = f"c-{part}-{number}"
            command = Scripted(STARTED, chunk(name.encode()), result())
            assert output(await tell(calls, name, command)) == output(await never(calls, name)) == name.encode()

    await asyncio.gather(*(some(part) for part in range(10)))
    assert descriptors(tmp_path) == [str(tmp_path / "calls")]
    assert len(list((tmp_path / "calls").iterdir())) == 2500


# A disk that is full


@contextlib.contextmanager
def file_size(most: int) -> Iterator[None]:
    """Lets this process write no file beyond a size: EFBIG, as ENOSPC would come."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 50])
async def test_no_room_for_the_record(calls: Calls, tmp_path: Path, room: int) -> None:
    command = Scripted()
    with file_size(room), refused("SANDBOX_UNAVAILABLE") as told:
        await tell(calls, command=command)
    assert (told["layer"], told["errno"], command.begun) == ("calls", "EFBIG", 0)
    assert "nothing ran" in told["message"] and "space" in told["message"]
    assert not list((tmp_path / "calls").iterdir())
    assert await tell(calls, command=command) == list(command.said)


async def test_no_room_for_the_output(calls: Calls, opened: Open) -> None:
    """The command goes on, its readers are told everything, and who comes later what is there."""
    command = Big(4 * MIB)
    with file_size(MIB + 30_000):
        story = await tell(calls, command=command)
    assert (len(output(story)), story[-1], command.cancelled) == (4 * MIB, result(), 0)
    kept = await never(calls)
    assert len(output(kept)) == MIB
    assert kept[-1] == result(stdout_dropped_bytes=3 * MIB)
    assert await never(await opened()) == kept


async def test_no_room_for_the_result(calls: Calls, opened: Open) -> None:
    command = Scripted(STARTED, chunk(b"x" * 1000), result())
    with file_size(len(written(State.RUNNING, *WHOLE)) - 1):
        assert await tell(calls, command=command) == list(command.said)
    for _ in range(2):
        with refused("OUTCOME_UNKNOWN"):
            await never(calls)
        calls = await opened()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    (path := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


async def test_a_disk_that_is_full_indeed(small_disk: Path) -> None:
    calls = Calls(small_disk / "calls", 60, 64 * MIB)
    await calls.start()
    story = await tell(calls, "big", Big(2 * MIB))
    assert (len(output(story)), story[-1]) == (2 * MIB, result())
    kept = await never(calls, "big")
    assert len(output(kept)) + kept[-1].result.stdout_dropped_bytes == 2 * MIB
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(b"x" * MIB)
    command = Scripted()
    with refused("SANDBOX_UNAVAILABLE") as told:
        await tell(calls, "next", command)
    assert (told["errno"], command.begun) == ("ENOSPC", 0)
    assert await never(calls, "big") == kept
    await calls.close()


async def test_no_descriptors_left(calls: Calls) -> None:
    await tell(calls, "ended")
    command = Scripted()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with refused("OVER_CAPACITY"):
            calls.run("c", b"print", command.begin)
        with refused("OVER_CAPACITY"):
            calls.run("ended", b"print", command.begin)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await never(calls, "ended")
    assert await tell(calls, command=command)


# The end of the service


async def test_close_cancels_and_remembers(calls: Calls, opened: Open) -> None:
    commands = [Scripted(hold=True), Big(8 * MIB, hold=True), Scripted(hold=True)]
    followers = [calls.run(f"c-{number}", b"print", each.begin) for number, each in enumerate(commands[:2])]
    waiting = asyncio.create_task(rest(followers[0]))
    for command in commands[:2]:
        await settled(command)
    calls.run("c-2", b"print", commands[2].begin)  # never begun
    again = await opened()
    for reader in (waiting, rest(followers[1])):
        with refused("SHUTTING_DOWN"):
            await reader
    assert [command.begun for command in commands] == [1, 1, 0]
    for number in range(2):
        assert (await never(again, f"c-{number}"))[-1] == result("CANCELLED")
    commands[2].go_on.set()
    assert await tell(again, "c-2", commands[2])
