"""How a job travels: a message on a socket, with a file that holds it and the command's descriptors."""

from __future__ import annotations

import marshal
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.terminal.job import Task

MESSAGE = b"run"


class Received(NamedTuple):
    """A job as it came."""

    packed: int  # the file that holds it
    fds: list[int]

    def task(self) -> Task:
        """Unpacks it. The file's offset is shared with others who read it, so it stays."""
        size = os.fstat(self.packed).st_size
        task: Task = marshal.loads(os.pread(self.packed, size, 0))  # noqa: S302 - written by the service itself
        return task


def pair() -> tuple[socket.socket, socket.socket]:
    """Returns the two ends of a channel. Raises OSError."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, packed: int, fds: Sequence[int]) -> None:
    """Sends a job. Raises OSError, a ConnectionError when nobody is at the other end."""
    socket.send_fds(channel, [MESSAGE], [packed, *fds])


def receive(channel: socket.socket, count: int) -> Received | None:
    """Waits for a job with so many descriptors; None when there will be none. Raises OSError."""
    message, fds, _, _ = socket.recv_fds(channel, len(MESSAGE), 1 + count)
    return Received(fds[0], fds[1:]) if message else None


def rehearse(count: int) -> None:
    """Sends a job from here to here.

    The kernel copies a page of memory when it is first written to after a fork, so what a process does for the first
    time is slow. A process that waits for a command can do it before. Raises OSError.
    """
    ours, theirs = pair()
    packed = os.memfd_create("conductor", os.MFD_CLOEXEC)
    os.write(packed, marshal.dumps({"argv": [b"true"], "env": {b"PATH": b"/bin"}}))
    with ours, theirs:
        send(ours, packed, [packed] * count)
        received = receive(theirs, count)
    os.close(packed)
    if received is not None:
        received.task()
        for fd in (received.packed, *received.fds):
            os.close(fd)
