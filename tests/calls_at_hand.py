"""A memory of commands to test: scripted commands, who follows them, and the files of their stories."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import terminal_pb2

from services.common.errors import Reason, Refusal
from services.terminal.calls import Calls
from services.terminal.stories import Header, Moment, State, frame
from services.terminal.telling import Follower

MIB = 1024 * 1024

OUT, ERR = terminal_pb2.OUTPUT_STREAM_STDOUT, terminal_pb2.OUTPUT_STREAM_STDERR
STARTED = terminal_pb2.RunResponse(started=terminal_pb2.CommandStarted())
STARTED.started.started_at.seconds = 1

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


# What lies in the folder


def written(state: State, *frames: bytes, **fields: Any) -> bytes:
    header = Header(state, b"\0" * 32, fields.pop("ended", Moment.now()), **fields)
    return header.pack() + b"".join(frames)


WHOLE = [frame(each) for each in (STARTED, chunk(b"x" * 1000), result())]
