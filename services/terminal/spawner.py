"""The program that keeps supervisors ready: `python -I -S -c BOOT ROOT SOCKET_FD SETTING_FD`.

One runs beside the service, single-threaded and without the service's memory, descriptors and environment; the service
itself has threads and must not fork. It keeps a few guards with their supervisors waiting, forked and confined before
there is a command for them, so that a command pays neither for the start of an interpreter nor for theirs. With each
waits the command's process, in all layers that need to know no command, under a user that is lent to it alone. Each
supervisor offers itself to the service: a message with its user and a socket that takes one job. The spawner hears from
the service only when that finds no offer. It keeps nothing of a command, and ends when the service closes the socket.
"""

import gc
import marshal
import os
import select
import signal
import socket
import sys

from services.common import kernel, seccomp
from services.terminal import guard, users
from services.terminal.job import ASK, REFUSED, Setting

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from services.terminal.spawner import main; "
    "main(*map(int, sys.argv[2:]))"
)
READY, FEW = 4, 2  # guards that wait for a command; with few left, more are forked at once
QUIET_MS = 50  # else when no command has come for this long
REAP_EVERY_MS = 1000


def main(socket_fd: int, setting_fd: int) -> None:
    """Keeps guards ready until the service closes the socket.

    Args:
        setting_fd: a file with the Setting of all commands. Except in the strong tier, whose commands need mounts and
            all end with their init, Landlock confines the guards' signals.
    """
    with os.fdopen(setting_fd, "rb") as file:
        setting: Setting = marshal.load(file)  # noqa: S302 - written by the service that started this program
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the operator's, meant for the service
    for network in (False, True):
        seccomp.program(os.uname().machine, network)  # made once, and found by all who are forked from here
    gc.freeze()
    with socket.socket(fileno=socket_fd) as service:
        _Spawner(service, setting).run()


class _Spawner:
    """Counts who is ready and forks who is missing."""

    def __init__(self, service: socket.socket, setting: Setting) -> None:
        self._service = service
        self._setting = setting
        self._taken, self._tell = os.pipe()  # a guard's id, when it has got a command
        self._ready: set[int] = set()
        self._failure = 0  # the last errno
        self._pid = os.getpid()

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._taken, select.POLLIN)
        poll.register(self._service, select.POLLIN)
        while True:
            if len(self._ready) <= FEW:
                self._fill(READY)
            ready = [fd for fd, _ in poll.poll(REAP_EVERY_MS if len(self._ready) >= READY else QUIET_MS)]
            if not ready:
                self._fill(READY)
            if self._service.fileno() in ready and not self._answer():
                return
            if self._taken in ready:
                self._ready -= set(map(int, os.read(self._taken, 4096).split()))
            self._reap()

    def _answer(self) -> bool:
        """Makes one more guard for a command that found none, or says why not. Returns False at the socket's end."""
        try:
            if not self._service.recv(len(ASK)):
                return False
            if not self._fill(len(self._ready) + 1):
                self._service.send(REFUSED + b"%d" % self._failure)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _fill(self, wanted: int) -> bool:
        """Forks guards until so many are ready. Returns whether it could."""
        while len(self._ready) < wanted:
            try:
                self._ready.add(self._fork())
            except OSError as error:
                self._failure = error.errno or 0
                return False
        return True

    def _fork(self) -> int:
        uid, lease = users.lend() if self._setting["separate_uid"] else (0, None)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_guard(uid)
            return pid
        finally:
            if lease is not None:
                lease.close()  # the guard has it, and its supervisor

    def _become_guard(self, uid: int) -> None:
        try:
            os.close(self._taken)
            guard.stand_by(self._service, self._tell, self._setting, uid, self._pid)
        except Exception:  # whatever it is, the spawner's code must not go on in this process
            sys.excepthook(*sys.exc_info())  # to the service's log, without the modules that traceback needs
        finally:
            os._exit(0)

    def _reap(self) -> None:
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._ready.discard(pid)
        except ChildProcessError:
            pass
