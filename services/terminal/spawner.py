"""The program that keeps supervisors ready: `python -I -S -c BOOT ROOT SOCKET_FD CONFINE`.

One runs beside the service, single-threaded and without the service's memory, descriptors and environment; the service
itself has threads and must not fork. It keeps a few guards with their supervisors waiting, forked and confined before
there is a command for them, so that a command pays neither for the start of an interpreter nor for theirs. All wait at
the same socket, and the kernel gives each message to one. The spawner keeps nothing of a command; it ends when the
service closes the socket.
"""

import gc
import os
import select
import signal
import socket
import traceback

from services.common import kernel, seccomp
from services.terminal import guard
from services.terminal.supervisor import receive, refused, say

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from services.terminal.spawner import main; "
    "main(*map(int, sys.argv[2:]))"
)
READY, FEW = 4, 2  # guards that wait for a command; with few left, more are forked at once
QUIET_MS = 20  # else when no command has come for this long
REAP_EVERY_MS = 1000


def main(socket_fd: int, confine: int) -> None:
    """Keeps guards ready until the service closes the socket.

    Args:
        confine: 1 when Landlock shall confine their signals. Not in the strong tier, whose commands need mounts, and
            all end with their init.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the operator's, meant for the service
    for network in (False, True):
        seccomp.program(os.uname().machine, network)  # made once, and found by all who are forked from here
    gc.freeze()
    with socket.socket(fileno=socket_fd) as service:
        _Spawner(service, bool(confine)).run()


class _Spawner:
    """Counts who is ready and forks who is missing."""

    def __init__(self, service: socket.socket, confine: bool) -> None:
        self._service = service
        self._confine = confine
        self._taken, self._tell = os.pipe()  # a guard's id, when it has got a command
        self._ready: set[int] = set()
        self._pid = os.getpid()

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._taken, select.POLLIN)
        poll.register(self._service, 0)  # only its end
        while True:
            if len(self._ready) <= FEW:
                self._fill()
            ready = [fd for fd, _ in poll.poll(REAP_EVERY_MS if len(self._ready) == READY else QUIET_MS)]
            if not ready:
                self._fill()
            if self._service.fileno() in ready:
                return
            if self._taken in ready:
                self._ready -= set(map(int, os.read(self._taken, 4096).split()))
            self._reap()

    def _fill(self) -> None:
        while len(self._ready) < READY:
            try:
                pid = os.fork()
            except OSError as error:
                if not self._ready:
                    self._refuse(error.errno or 0)
                return
            if pid == 0:
                self._become_guard()
            self._ready.add(pid)

    def _become_guard(self) -> None:
        try:
            os.close(self._taken)
            guard.stand_by(self._service, self._tell, self._confine, self._pid)
        except Exception:  # whatever it is, the spawner's code must not go on in this process
            traceback.print_exc()  # to the service's log
        finally:
            os._exit(0)

    def _refuse(self, number: int) -> None:
        """Answers what has come, as nobody else can."""
        while select.select([self._service], [], [], 0)[0] and (order := receive(self._service)) is not None:
            say(order["status_fd"], refused("spawner", number))
            for name, fd in order.items():
                if name.endswith("_fd") and isinstance(fd, int):
                    os.close(fd)

    def _reap(self) -> None:
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._ready.discard(pid)
        except ChildProcessError:
            pass
