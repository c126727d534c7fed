"""One story while it is told: it is taken from the command, written down, and read by all who follow.

Followers read the file, each at its own pace, so nothing is held in memory for them. The command is made to wait for
the slowest one. A story that outgrows its room on the disk, or a disk that is full, does not harm the command: from
there the story passes through at most WINDOW_BYTES of memory to those who follow already, and whoever comes later is
told the beginning that is kept, and a result that counts the rest as dropped.
"""

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Protocol

from conductor.v1 import terminal_pb2
from google.protobuf.message import DecodeError

from services.common.errors import Reason, Refusal
from services.terminal.stories import HEADER, LENGTH, MAX_FRAME_BYTES, Header, Moment, State, dropping, frame, write

log = logging.getLogger(__name__)

WINDOW_BYTES = 1024 * 1024  # how far the slowest follower may be behind before the command has to wait
PIECE_BYTES = 64 * 1024  # read at once
MORE = "If it may run twice, send it again under a new call_id; otherwise look at what it did first."


class Command(Protocol):
    """A command as the service starts it."""

    def responses(self) -> AsyncGenerator[terminal_pb2.RunResponse, None]:
        """Yields its story: started, chunks, one result. Raises a Refusal; closing it kills the command."""

    def cancel(self) -> None:
        """Asks for its end; `responses` then goes on to the true result. May be called again, and after the end."""


def unknown(call_id: str, why: str) -> Refusal:
    """The command was tried, and how it ended cannot be told."""
    text = f"The command of call_id {call_id} was tried, and {why}. It is not run again. {MORE}"
    return Refusal(Reason.ERROR_REASON_OUTCOME_UNKNOWN, text, call_id=call_id)


class Telling:
    """A story that is open. Offsets count its bytes from the beginning of the file, in memory as on disk.

    Args:
        call_id: whose story it is.
        fd: its file, which is closed when the story is over and nobody follows.
        end: where the file's frames end.
        header: the file's; the story is over unless it is RUNNING.
        may_grow: whether the file may have so many bytes.
    """

    def __init__(self, call_id: str, fd: int, end: int, header: Header, may_grow: Callable[[int], bool]) -> None:
        self.call_id = call_id
        self.over = header.state != State.RUNNING
        self.failure: Refusal | None = None  # what followers get at the end, instead of one
        self.followers: set[Follower] = set()
        self.file_end = end  # for those who came when the file no longer took everything
        self._header = header
        self._fd = fd
        self._may_grow = may_grow
        self._command: Command | None = None
        self._cut = False  # the file takes no more chunks
        self._kept_end = end  # where the tail begins to be needed
        self._tail = bytearray()  # the last bytes of the story that are not in the file and not read by all
        self._end = end
        self._file_output = [0, 0]  # bytes of stdout and stderr in the file
        self._tail_output = [0, 0]  # and those that never got there
        self._caught_up = asyncio.Event()

    @property
    def silent(self) -> bool:
        """Whether nothing has been told yet."""
        return self._end == HEADER.size

    # What followers call

    def follow(self) -> "Follower":
        """Adds somebody who is told the story from its beginning."""
        follower = Follower(self, self._cut)
        self.followers.add(follower)
        return follower

    def read(self, at: int, late: bool) -> bytes:
        """Returns a piece of the story from an offset; nothing when there is none yet. Raises OSError."""
        end = self.file_end if late else self._kept_end
        if at < end:
            return os.pread(self._fd, min(PIECE_BYTES, end - at), at)
        if late:
            return b""
        begin = at - (self._end - len(self._tail))
        return bytes(self._tail[begin : begin + PIECE_BYTES])

    def advanced(self) -> None:
        """A follower has read."""
        self._caught_up.set()

    def left(self, follower: "Follower") -> None:
        """A follower is gone; with the last one goes the command."""
        self.followers.discard(follower)
        self._caught_up.set()
        if self.followers:
            return
        if self.over:
            os.close(self._fd)
        elif self._command is not None:
            log.info("nobody follows the command any more, so it is cancelled, call_id=%s", self.call_id)
            self._command.cancel()

    # What the one who takes the story from the command calls

    def begun(self, command: Command) -> None:
        """Names what to cancel when the last follower goes."""
        self._command = command

    async def add(self, response: terminal_pb2.RunResponse) -> None:
        """Tells the next message, and waits until every follower is close."""
        self._put(response)
        self._wake()
        while self._end - self._slowest() > WINDOW_BYTES:
            self._caught_up.clear()
            await self._caught_up.wait()

    def finish(self, result: terminal_pb2.RunResponse) -> bool:
        """Tells the result, which is the end. Returns whether it can be told again, which a full disk may prevent."""
        result_at = self._kept_end
        self._put(result)
        recorded = not self._cut or self._write(frame(dropping(result, *self._tail_output)))
        stdout, stderr = self._file_output
        ended = recorded and self._mark(
            replace(self._header, state=State.ENDED, result_at=result_at, stdout=stdout, stderr=stderr)
        )
        self._close()
        return ended

    def fail(self, refusal: Refusal, ran: bool) -> None:
        """Ends the story for those who follow with a refusal. To others its outcome is unknown, if it ran."""
        self.failure = refusal
        if ran:
            self._mark(replace(self._header, state=State.UNKNOWN))
        self._close()

    def expel(self, refusal: Refusal) -> None:
        """Sends all followers away."""
        for follower in tuple(self.followers):
            follower.leave(refusal)

    def _put(self, response: terminal_pb2.RunResponse) -> None:
        data = frame(response)
        if not self._cut and not (self._may_grow(self.file_end + len(data)) and self._write(data)):
            self._cut = True
        if self._cut:
            del self._tail[: max(0, self._slowest() - (self._end - len(self._tail)))]
            self._tail += data
        else:
            self._kept_end = self.file_end
        self._end += len(data)
        counts = self._tail_output if self._cut else self._file_output
        counts[response.chunk.stream == terminal_pb2.OUTPUT_STREAM_STDERR] += len(response.chunk.data)

    def _slowest(self) -> int:
        return min((each.at for each in self.followers if not each.late), default=self._end)

    def _write(self, data: bytes) -> bool:
        """Appends to the file. Returns False when the disk does not take it."""
        try:
            write(self._fd, data, self.file_end)
        except OSError as error:
            log.warning("a story cannot be written down in full, call_id=%s: %s", self.call_id, error)
            with contextlib.suppress(OSError):  # then what is torn stays, and makes a later call find damage
                os.ftruncate(self._fd, self.file_end)
            return False
        self.file_end += len(data)
        return True

    def _mark(self, header: Header) -> bool:
        try:
            write(self._fd, replace(header, ended=Moment.now()).pack(), 0)
        except OSError as error:
            log.warning("the end of a story cannot be written down, call_id=%s: %s", self.call_id, error)
            return False
        return True

    def _close(self) -> None:
        self.over = True
        self._wake()
        if not self.followers:
            os.close(self._fd)

    def _wake(self) -> None:
        for follower in self.followers:
            follower.woken.set()


class Follower:
    """Somebody who is told a story: an async iterator of its messages, the result as last.

    Whoever has one must `leave` it. Iterating raises the Refusal that ended the story, or OUTCOME_UNKNOWN when the
    file does not hold what it should.
    """

    def __init__(self, telling: Telling, late: bool) -> None:
        self.late = late  # it is not told what is not in the file
        self.at = HEADER.size
        self.woken = asyncio.Event()
        self._telling = telling
        self._unread = bytearray()
        self._had_result = False
        self._left = False
        self._sent_away: Refusal | None = None

    def __aiter__(self) -> "Follower":
        return self

    async def __anext__(self) -> terminal_pb2.RunResponse:
        while not self._left:
            try:
                response = self._next()
            except (OSError, DecodeError) as error:
                raise self._damaged(error) from error
            if response is not None:
                self._had_result = response.HasField("result")
                return response
            if self._telling.over:
                self._end()
                break
            self.woken.clear()
            await self.woken.wait()
        if self._sent_away is not None:
            raise self._sent_away.with_traceback(None)
        raise StopAsyncIteration

    def leave(self, because: Refusal | None = None) -> None:
        """Stops following; iterating then ends, or raises the refusal. May be called again."""
        if not self._left:
            self._left = True
            self._sent_away = because
            self.woken.set()
            self._telling.left(self)

    def _next(self) -> terminal_pb2.RunResponse | None:
        """Returns the next whole message; None when there is none yet."""
        while True:
            size = LENGTH.unpack_from(self._unread)[0] if len(self._unread) >= LENGTH.size else None
            if size is not None and size > MAX_FRAME_BYTES:
                raise DecodeError(f"a frame of {size} bytes")
            if size is not None and len(self._unread) >= LENGTH.size + size:
                response = terminal_pb2.RunResponse.FromString(bytes(self._unread[LENGTH.size : LENGTH.size + size]))
                del self._unread[: LENGTH.size + size]
                return response
            piece = self._telling.read(self.at, self.late)
            if not piece:
                return None
            self.at += len(piece)
            self._unread += piece
            self._telling.advanced()

    def _end(self) -> None:
        """Leaves a story that is told. Raises when it did not end with its result."""
        failure = self._telling.failure
        if failure is None and not self._had_result:
            raise self._damaged(None)
        self.leave(failure)

    def _damaged(self, cause: Exception | None) -> Refusal:
        log.error("a story cannot be read, call_id=%s: %s", self._telling.call_id, cause or "it has no result")
        self.leave()
        number = cause.errno if isinstance(cause, OSError) else None
        name = errno.errorcode.get(number or 0, "EBADMSG")
        return unknown(self._telling.call_id, f"the record of it cannot be read ({name})")
