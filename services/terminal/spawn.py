"""The service's side of the spawner: starts it, starts it again when it was killed, and hands it commands."""

import fcntl
import marshal
import os
import socket
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

from services.terminal import job
from services.terminal.job import MESSAGE, Job
from services.terminal.running import Pipes
from services.terminal.spawner import BOOT

ROOT = str(Path(__file__).parents[2])  # where the spawner finds its modules
SEND_S = 5.0  # how long the spawner may leave a command lying, on a machine that is very busy
_SEAL_EXEC = 0x20  # F_SEAL_EXEC, Linux 6.3: nobody can make it executable again
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Spawner:
    """A spawner process. It runs from the first command to `close`.

    Args:
        interpreter: runs it; needs nothing but the standard library.
        confine: whether Landlock confines the signals of supervisors, see spawner.main.
    """

    def __init__(self, interpreter: str, confine: bool) -> None:
        self._interpreter = interpreter
        self._confine = confine
        self._lock = threading.Lock()  # commands are launched from several threads
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def launch(self, order: Job, stdin: bytes) -> Pipes:
        """Starts a command and returns the service's ends of its pipes; the order's descriptors are filled in here.

        Raises OSError.
        """
        # The command's ends are closed here in any case, the service's only when something fails.
        with ExitStack() as theirs, ExitStack() as ours:
            order["control_fd"], hang_up = _pipe(theirs, ours)
            status, order["status_fd"] = _pipe(ours, theirs)
            stdout, order["stdout_fd"] = _pipe(ours, theirs)
            stderr, order["stderr_fd"] = _pipe(ours, theirs)
            order["stdin_fd"] = _file(theirs, stdin) if stdin else _null(theirs)
            if order["uid"]:
                for fd in (stdout, stderr):  # else /dev/stdout could not be opened
                    os.fchown(fd, order["uid"], order["uid"])
            for fd in (status, stdout, stderr):
                # A command may open its own output for reading and be first: a read here must never wait.
                os.set_blocking(fd, False)
            self._send([_file(theirs, marshal.dumps(dict(order))), *_descriptors(order)])
            ours.pop_all()
        return Pipes(hang_up, status, stdout, stderr)

    def close(self) -> None:
        """Ends the spawner; commands that have begun go on, and end with their control pipes."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()  # it may be stopped; what lies in its socket ends with it
            self._process.wait()
        self._socket = self._process = None

    def _send(self, fds: list[int]) -> None:
        with self._lock:
            try:
                socket.send_fds(self._started(), [MESSAGE], fds)
            except (BrokenPipeError, ConnectionResetError):  # it was killed; commands that ran have gone on
                self.close()
                socket.send_fds(self._started(), [MESSAGE], fds)

    def _started(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.settimeout(SEND_S)
            with theirs:
                self._process = subprocess.Popen(
                    [self._interpreter, "-I", "-S", "-c", BOOT, ROOT, str(theirs.fileno()), str(int(self._confine))],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
        return self._socket


def _descriptors(order: Job) -> list[int]:
    return [order[f"{name}_fd"] for name in job.FDS]  # type: ignore[literal-required] # names of the same dictionary


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _file(owner: ExitStack, content: bytes) -> int:
    """Returns a file in memory that nobody can change, so that it needs no feeding and cannot grow.

    Nor can it be executed: it would pass by the list of programs that may run, which Landlock holds for files on disk.
    """
    fd = os.memfd_create("conductor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    owner.callback(os.close, fd)
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]
    os.lseek(fd, 0, os.SEEK_SET)
    os.fchmod(fd, 0o444)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | _SEAL_EXEC)
    except OSError:  # an older kernel
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _null(owner: ExitStack) -> int:
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    owner.callback(os.close, fd)
    return fd
