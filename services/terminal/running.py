"""One command under way: reads what its supervisor says and what it writes, and sees to its end."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from services.terminal.outputs import OutputFile
from services.terminal.policy import Bounds

log = logging.getLogger(__name__)

CHUNK_BYTES = 65_536
# After a command has ended, its pipes are closed when they have been silent for this long. All who could write to
# them are dead by then, so normally their end comes first.
QUIET_S = 0.3


@dataclass(frozen=True, slots=True)
class Started:
    """The program runs, or the self-test has passed, in a sandbox with these layers."""

    at_ns: int
    landlock_abi: int
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The command never ran: the errno of `layer`; `program` is the one that stands for the exec itself."""

    layer: str
    errno: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes the command wrote, in the order they were read."""

    stderr: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """How the command ended. `end` is a CommandEnd without its prefix; `status` is as of wait(2)."""

    end: str
    status: int
    started_ns: int
    ended_ns: int
    cpu_ns: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The supervisor went away without saying how the command ended; the command is gone with it."""


@dataclass(frozen=True, slots=True)
class Left:
    """The files that a command was asked for and left, and how many more there were."""

    files: tuple[OutputFile, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Pipes:
    """The service's ends of a command's pipes."""

    control: int  # closing it ends the command
    status: int
    stdout: int
    stderr: int


class Running:
    """One command. It ends by itself, or through `cancel`; `done` is then set, and nothing of it is left.

    Args:
        bounds: the limits that hold.
        conclude: run in a thread when all processes are gone.
        on_done: called in the loop after it.
    """

    def __init__(
        self,
        pipes: Pipes,
        bounds: Bounds,
        conclude: Callable[[], Left],
        on_done: Callable[["Running"], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.cancelled = False
        self.bounds = bounds
        self.left = Left((), 0)  # known when it has ended
        self.dropped = {False: 0, True: 0}  # bytes read beyond output_bytes; the key says whether of stderr
        self._pipes = pipes
        self._kept = {False: bounds.output_bytes, True: bounds.output_bytes}  # bytes still to be passed on
        self._begun: asyncio.Future[Started | NotStarted | Lost] = loop.create_future()
        self._ended: asyncio.Future[Ended | Lost] = loop.create_future()
        # Its own task: limits, clean-up and the slot do not wait for a caller that reads slowly.
        self.done = loop.create_task(self._watch(conclude, on_done))

    def cancel(self) -> None:
        """Asks the supervisor to kill the command with all its descendants. May be called again."""
        if not self.cancelled:
            self.cancelled = True
            os.close(self._pipes.control)

    async def begun(self) -> Started | NotStarted | Lost:
        """Waits until the program runs, or will not."""
        return await asyncio.shield(self._begun)

    async def ended(self) -> Ended | Lost:
        """Waits until nothing is left of a command that has begun, its workspace included."""
        await asyncio.shield(self.done)
        return self._ended.result()

    async def output(self) -> AsyncIterator[Chunk]:
        """Yields what the command writes, up to `output_bytes` per stream, until it has ended.

        What is not asked for is not read: a slow caller makes the command wait, and nothing is buffered here.
        """
        streams = {self._pipes.stdout: False, self._pipes.stderr: True}
        while streams:
            ready = await _readable(streams, QUIET_S)
            if not ready and self._ended.done():
                return
            for fd in ready:
                try:
                    data = os.read(fd, CHUNK_BYTES)
                except BlockingIOError:
                    continue  # the command was first
                stderr = streams[fd]
                if not data:
                    del streams[fd]
                if kept := self._keep(stderr, data):
                    yield Chunk(stderr, kept)

    def _keep(self, stderr: bool, data: bytes) -> bytes:
        kept = data[: self._kept[stderr]]
        self._kept[stderr] -= len(kept)
        self.dropped[stderr] += len(data) - len(kept)
        return kept

    def close(self) -> None:
        """Lets go of the output. The command is cancelled if it still runs."""
        self.cancel()
        os.close(self._pipes.stdout)
        os.close(self._pipes.stderr)

    async def _watch(self, conclude: Callable[[], Left], on_done: Callable[["Running"], None]) -> None:
        try:
            await self._listen()
            self.left = await asyncio.to_thread(conclude)
        finally:
            on_done(self)
            for future in (self._begun, self._ended):
                if not future.done():
                    future.set_result(Lost())

    async def _listen(self) -> None:
        """Hears the supervisor until its last word, which is that no process of the tree is left.

        Without one the status pipe ends when supervisor and guard have, which comes to the same.
        """
        try:
            async for said in _lines(self._pipes.status):
                self._hear(said)
                if said["event"] != "started":
                    return
        except (ValueError, KeyError, asyncio.InvalidStateError):
            log.exception("a supervisor said what it cannot say; its command is ended")
            self.cancel()
            await _ended(self._pipes.status)
        finally:
            os.close(self._pipes.status)

    def _hear(self, said: dict[str, Any]) -> None:
        match said["event"]:
            case "started" | "passed":
                at_ns = said.get("at_ns", 0)
                self._begun.set_result(Started(at_ns, said["abi"], tuple(said["layers"])))
            case "refused":
                self._begun.set_result(NotStarted(said["layer"], said["errno"]))
            case "not_started":
                self._begun.set_result(NotStarted("program", said["errno"]))
            case "ended":
                self._ended.set_result(self._end(said))

    def _end(self, said: dict[str, Any]) -> Ended:
        begun = self._begun.result()
        started_ns = begun.at_ns if isinstance(begun, Started) else 0
        return Ended(said["end"], said["status"], started_ns, said["at_ns"], said["cpu_ns"], said["peak_bytes"])


async def _lines(fd: int) -> AsyncIterator[dict[str, Any]]:
    """Yields the JSON object of each line until the pipe ends."""
    text = b""
    while True:
        await _readable([fd], None)
        part = os.read(fd, CHUNK_BYTES)
        if not part:
            return
        *lines, text = (text + part).split(b"\n")
        for line in lines:
            yield json.loads(line)


async def _ended(fd: int) -> None:
    """Waits for the end of a pipe."""
    while True:
        await _readable([fd], None)
        if not os.read(fd, CHUNK_BYTES):
            return


async def _readable(fds: Iterable[int], timeout_s: float | None) -> list[int]:
    """Waits until a read of some of these would not block; returns them, or none when the time is over."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    ready: list[int] = []

    def mark(fd: int) -> None:
        loop.remove_reader(fd)
        ready.append(fd)
        woken.set()

    watched = list(fds)
    for fd in watched:
        loop.add_reader(fd, mark, fd)
    try:
        async with asyncio.timeout(timeout_s):
            await woken.wait()
    except TimeoutError:
        pass
    finally:
        for fd in watched:
            loop.remove_reader(fd)
    return ready
