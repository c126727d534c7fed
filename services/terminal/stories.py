"""Stories on disk: what each call id ran, in one file per id, told again from there.

A file `<call id>.story` holds a header of fixed size and then frames: the length of a RunResponse in 4 bytes (little
endian) and the message. Frames are only ever appended. The header says whether the story goes on or how it stands; it
is rewritten in place, and only after the last frame is there, so what a process was killed over is never taken for
whole. Nothing is synced: files outlive any end of the process, and no power cut.
"""

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

from conductor.v1 import terminal_pb2
from google.protobuf.message import DecodeError

SUFFIX = ".story"
NEW = ".new"  # a file that is being written, to take the place of a story
BLOCK_BYTES = 4096  # what the smallest file takes of a disk
MAX_FRAME_BYTES = 16 * 1024 * 1024  # a result with 1,000 paths of 4,096 bytes fits well
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4)
LENGTH = struct.Struct("<I")
HEADER = struct.Struct("<8sB32s36sqqQQQ")
MAGIC = b"story 1\n"
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class State(IntEnum):
    """How a story stands."""

    RUNNING = 1
    ENDED = 2
    UNKNOWN = 3  # the command was tried, and how it ended is not known


class Moment(NamedTuple):
    """A point in time that stays one when the wall clock is moved, as long as the machine runs."""

    boot_id: bytes
    boot_ns: int  # since the machine was started, sleep included (CLOCK_BOOTTIME)
    wall_ns: int

    @classmethod
    def now(cls) -> "Moment":
        """Returns the present."""
        return cls(_boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())

    def until(self, now: "Moment") -> int:
        """Returns the nanoseconds up to `now`, at least 0. After a reboot they are the wall clock's."""
        same = self.boot_id != b"" and self.boot_id == now.boot_id
        return max(0, now.boot_ns - self.boot_ns if same else now.wall_ns - self.wall_ns)


NEVER = Moment(b"", 0, 0)


@cache
def _boot_id() -> bytes:
    """Returns the id of this run of the machine; nothing when it cannot be had."""
    try:
        return BOOT_ID.read_bytes().strip()[:36]
    except OSError:
        return b""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its story."""

    state: State
    fingerprint: bytes  # SHA-256 of what the call asked for
    ended: Moment = NEVER
    result_at: int = 0  # where the frame with the result begins
    stdout: int = 0  # bytes of output in the file
    stderr: int = 0

    def pack(self) -> bytes:
        """Returns the header as it is in the file."""
        counts = (self.result_at, self.stdout, self.stderr)
        return HEADER.pack(MAGIC, self.state, self.fingerprint, *self.ended, *counts)

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """Reads a header. Raises ValueError when it is none."""
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise ValueError("no header of a story")
        _, state, fingerprint, boot_id, boot_ns, wall_ns, *counts = HEADER.unpack_from(data)
        return cls(State(state), fingerprint, Moment(boot_id.rstrip(b"\0"), boot_ns, wall_ns), *counts)


def frame(response: terminal_pb2.RunResponse) -> bytes:
    """Returns a message as it is in the file. Raises ValueError when it is too large to be read again."""
    data = response.SerializeToString()
    if len(data) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(data)} bytes; at most {MAX_FRAME_BYTES} fit")
    return LENGTH.pack(len(data)) + data


def write(fd: int, data: bytes, at: int) -> None:
    """Writes all of it at an offset. Raises OSError; a part of it may then be there."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def dropping(result: terminal_pb2.RunResponse, stdout: int, stderr: int) -> terminal_pb2.RunResponse:
    """Returns the result for somebody who is not told so many bytes of the output."""
    told = terminal_pb2.RunResponse()
    told.CopyFrom(result)
    told.result.stdout_dropped_bytes += stdout
    told.result.stderr_dropped_bytes += stderr
    return told


class Folder:
    """The folder of all stories; one process has it at a time.

    Opening makes it when it is missing. Raises BlockingIOError when another process has it, and other OSErrors.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
        try:
            found = os.fstat(self._fd)
            if found.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it belongs to another user")
            os.fchmod(self._fd, 0o700)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:  # the file is nobody else's yet; it is raised on
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Gives it up."""
        os.close(self._fd)

    def call_ids(self) -> Iterator[str]:
        """Yields the ids that have a story. Removes what was left half-written beside them."""
        for name in os.listdir(self._fd):  # noqa: PTH208 - a Path has no way to list a descriptor
            if name.endswith(SUFFIX):
                yield name.removesuffix(SUFFIX)
            elif name.endswith(NEW):
                os.unlink(name, dir_fd=self._fd)

    def create(self, call_id: str, header: Header) -> int:
        """Begins a story and returns its file. Raises OSError, then nothing is left of it."""
        fd = os.open(call_id + SUFFIX, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=self._fd)
        try:
            write(fd, header.pack(), 0)
        except BaseException:  # the file is nobody else's yet; it is raised on
            os.close(fd)
            self.remove(call_id)
            raise
        return fd

    def open(self, call_id: str) -> int:
        """Opens a story to read it. Raises OSError."""
        return os.open(call_id + SUFFIX, os.O_RDONLY | _OPEN, dir_fd=self._fd)

    def remove(self, call_id: str) -> None:
        """Removes a story. Who has it open reads on. Raises OSError."""
        os.unlink(call_id + SUFFIX, dir_fd=self._fd)

    def take_over(self, call_id: str) -> tuple[Header, int]:
        """Returns what an earlier process left, and its size. What had no end there has none for ever.

        A file without a header says that much: the id was tried. Its fingerprint is then empty.
        """
        fd = os.open(call_id + SUFFIX, os.O_RDWR | _OPEN, dir_fd=self._fd)
        try:
            found = os.fstat(fd)
            try:
                header = Header.unpack(os.pread(fd, HEADER.size, 0) if stat.S_ISREG(found.st_mode) else b"")
            except ValueError:
                return Header(State.UNKNOWN, b"", Moment(b"", 0, found.st_mtime_ns)), found.st_size
            if header.state != State.RUNNING:
                return header, found.st_size
            header = replace(header, state=State.UNKNOWN, ended=Moment.now())
            write(fd, header.pack(), 0)
            os.ftruncate(fd, HEADER.size)
            return header, HEADER.size
        finally:
            os.close(fd)

    def strip(self, call_id: str) -> int:
        """Takes the output out of an ended story and counts it as dropped. Returns the new size.

        The result stays, so the command is not run again. Raises OSError or ValueError; the story is then as before.
        """
        fd = self.open(call_id)
        try:
            header = Header.unpack(os.pread(fd, HEADER.size, 0))
            content = _stripped(fd, header) if header.state == State.ENDED else header.pack()
        finally:
            os.close(fd)
        new = os.open(call_id + NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OPEN, 0o600, dir_fd=self._fd)
        try:
            write(new, content, 0)
        except OSError:
            os.unlink(call_id + NEW, dir_fd=self._fd)
            raise
        finally:
            os.close(new)
        os.rename(call_id + NEW, call_id + SUFFIX, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        return len(content)


def _stripped(fd: int, header: Header) -> bytes:
    started = _frame_at(fd, HEADER.size) if header.result_at > HEADER.size else b""
    try:
        result = terminal_pb2.RunResponse.FromString(_frame_at(fd, header.result_at)[LENGTH.size :])
    except DecodeError as error:
        raise ValueError("its result cannot be read") from error
    header_bytes = replace(header, result_at=HEADER.size + len(started), stdout=0, stderr=0).pack()
    return header_bytes + started + frame(dropping(result, header.stdout, header.stderr))


def _frame_at(fd: int, at: int) -> bytes:
    length = os.pread(fd, LENGTH.size, at)
    if len(length) < LENGTH.size:
        raise ValueError("the file is too short")
    return os.pread(fd, LENGTH.size + min(LENGTH.unpack(length)[0], MAX_FRAME_BYTES), at)
