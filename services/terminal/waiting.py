"""The command's process while there is no command yet: made beforehand, with all layers that need to know none."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from services.terminal import channel, child
from services.terminal.job import Setting

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

Identities = list[tuple[int, int] | None]


class Waiting(NamedTuple):
    """A process that waits for its job, as its supervisor has it."""

    pid: int
    channel: socket.socket  # takes the job
    report: int  # what happens before the exec
    verdict: int  # what the init of the strong tier says at the end
    seen: Identities  # what the paths of its layers were when it was made

    def fresh(self, setting: Setting) -> bool:
        """Whether it waits, or has said why not, and its paths are what its layers were made of.

        A file that was replaced is another one to them.
        """
        return not self._killed() and self.seen == _identities(setting)

    def _killed(self) -> bool:
        poll = select.poll()
        poll.register(self.report, select.POLLIN)
        return [event for _, event in poll.poll(0)] == [select.POLLHUP]

    def take(self, packed: int, streams: Sequence[int]) -> None:
        """Hands the job over. If the process has met its end, the report says why."""
        with suppress(BrokenPipeError, ConnectionResetError):
            channel.send(self.channel, packed, streams)
        self.channel.close()

    def discard(self) -> None:
        """Ends it, unused."""
        os.kill(self.pid, signal.SIGKILL)  # a child that nobody has waited for yet
        self.channel.close()
        for fd in (self.report, self.verdict):
            os.close(fd)


def make(setting: Setting, uid: int) -> Waiting:
    """Forks the process. Raises OSError."""
    seen = _identities(setting)
    ours, theirs = channel.pair()
    (report, write), (verdict, conclude) = os.pipe(), os.pipe()
    supervisor = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            child.become(setting, uid, child.Lines(write, conclude, theirs), supervisor)
    except OSError:
        _close((ours.detach(), report, verdict))
        raise
    finally:
        _close((theirs.detach(), write, conclude))
    return Waiting(pid, ours, report, verdict, seen)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _identities(setting: Setting) -> Identities:
    return [_identity(path) for path, _ in setting["paths"]]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - called for each path of each command
    except OSError:
        return None
    return found.st_dev, found.st_ino
