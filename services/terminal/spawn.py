"""The service's side of the spawner: starts it, starts it again when it was killed, and hands it commands."""

import errno
import fcntl
import marshal
import os
import select
import socket
import subprocess
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from services.terminal import channel
from services.terminal.job import ASK, FDS, REFUSED, Setting, Task
from services.terminal.running import Pipes
from services.terminal.spawner import BOOT

ROOT = str(Path(__file__).parents[2])  # where the spawner finds its modules
SEND_S = 5.0  # how long the spawner may leave a command lying, on a machine that is very busy
_SEAL_EXEC = 0x20  # F_SEAL_EXEC, Linux 6.3: nobody can make it executable again
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class Offer:
    """A supervisor that waits for one command. Who has an offer must `close` it, used or not.

    Args:
        uid: the command's user, lent to it for as long as its processes live; 0 for the service's own user.
    """

    uid: int
    _channel: socket.socket

    @property
    def stands(self) -> bool:
        """Whether the supervisor still waits."""
        try:
            self._channel.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            pass
        return False

    def launch(self, task: Task, stdin: bytes, workspace: int) -> Pipes:
        """Starts a command and returns the service's ends of its pipes.

        Raises OSError; a ConnectionError when the supervisor is gone: nothing ran, another one may take it.
        """
        # The command's ends are closed here in any case, the service's only when something fails.
        with ExitStack() as theirs, ExitStack() as ours:
            control, hang_up = _pipe(theirs, ours)
            status, tell = _pipe(ours, theirs)
            stdout, out = _pipe(ours, theirs)
            stderr, err = _pipe(ours, theirs)
            source = _file(theirs, stdin) if stdin else _null(theirs)
            if self.uid:
                for fd in (stdout, stderr):  # else /dev/stdout could not be opened
                    os.fchown(fd, self.uid, self.uid)
            for fd in (status, stdout, stderr):
                # A command may open its own output for reading and be first: a read here must never wait.
                os.set_blocking(fd, False)
            fds = {"control": control, "status": tell, "stdin": source, "stdout": out, "stderr": err}
            fds["workspace"] = workspace
            packed = _file(theirs, marshal.dumps(dict(task)))
            channel.send(self._channel, packed, [fds[name] for name in FDS])
            ours.pop_all()
        return Pipes(hang_up, status, stdout, stderr)

    def close(self) -> None:
        """Lets go of the supervisor; it ends when it has got nothing. Again is no error."""
        self._channel.close()


class Spawner:
    """A spawner process. It runs from the first command to `close`.

    Args:
        interpreter: runs it; needs nothing but the standard library.
        setting: what all its commands have in common.
    """

    def __init__(self, interpreter: str, setting: Setting) -> None:
        self._interpreter = interpreter
        self._setting = setting
        self._lock = threading.Lock()  # commands are launched from several threads
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def take(self) -> Offer:
        """Returns a supervisor that waits. Raises OSError, EUSERS when all users are lent."""
        with self._lock:
            try:
                return self._next()
            except ConnectionError:  # it was killed; commands that ran have gone on
                self.close()
                return self._next()

    def close(self) -> None:
        """Ends the spawner; commands that have begun go on, and end with their control pipes."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()  # it may be stopped; what lies in its socket ends with it
            self._process.wait()
        self._socket = self._process = None

    def _next(self) -> Offer:
        spawner = self._started()
        while True:
            offer = _offered(spawner)
            if offer.stands:
                return offer
            offer.close()

    def _started(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = channel.pair()
            self._socket.settimeout(SEND_S)
            with theirs, ExitStack() as sent:
                setting = _file(sent, marshal.dumps(dict(self._setting)))
                self._process = subprocess.Popen(
                    [self._interpreter, "-I", "-S", "-c", BOOT, ROOT, str(theirs.fileno()), str(setting)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), setting),
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
        return self._socket


def _offered(spawner: socket.socket) -> Offer:
    """Waits for the next offer. Raises OSError: ConnectionError at the spawner's end, TimeoutError, or its refusal."""
    coming = select.poll()
    coming.register(spawner, select.POLLIN)
    if not coming.poll(0):
        spawner.send(ASK)
    message, fds, _, _ = socket.recv_fds(spawner, 16, 1, socket.MSG_CMSG_CLOEXEC)
    if not message:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    if message.startswith(REFUSED):
        number = int(message.removeprefix(REFUSED))
        raise OSError(number, os.strerror(number))
    return Offer(int(message), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fds[0]))


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
