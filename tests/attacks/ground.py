"""What attacks aim at, laid out anew for each: files, listening sockets, shared memory, and a process as a victim.

All of it belongs to the service's user and is open to everybody, so that nothing but the sandbox protects it.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/usr/bin", "/etc", "/")  # where attacks try to leave a file
STARTED_S = 5
# None of the ports that the kernel gives to those who ask for any (ip(7)): others connect to theirs, and to those they
# had, at any time. Nor are those attacks listen on among those they aim at.
AIMED_AT, LISTENED_ON = range(12_000, 22_000), range(22_000, 32_000)
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.shmat.restype = ctypes.c_void_p
_GET_FLAGS = 0x80086601
_IPC_CREAT, _IPC_RMID = 0o1000, 0
State = dict[str, Any]


def number() -> str:
    """Returns 18 digits that nobody can guess: fit for `sleep`, for a time in nanoseconds, and to be searched for."""
    return str(10**17 + secrets.randbelow(9 * 10**17))


@dataclass
class Ground:
    """What one attack aims at."""

    folder: Path
    victim: "subprocess.Popen[bytes] | None"
    listeners: dict[str, socket.socket]
    secret: str  # never told to the attack
    proof: str  # what it prints when it got what the outside cannot see
    mark: str  # in the command line of all its processes
    before: State = field(default_factory=dict)
    victim_before: State = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Returns what the attack is told."""
        families = (socket.AF_INET, socket.AF_INET6)
        numbered = {name: made for name, made in self.listeners.items() if made.family in families}
        ports = {f"{name.upper()}_PORT": made.getsockname()[1] for name, made in numbered.items()}
        ports.setdefault("TCP6_PORT", 0)
        names = {"OUT": str(self.folder), "VICTIM": self.victim.pid if self.victim else 0, "MARK": self.mark}
        return {
            **names,
            **ports,
            "KEY_1": self.proof[9:],
            "KEY_2": self.proof[:9],
            "SHM_KEY": int(self.mark[:8]),
            "LISTEN_PORT": free_port(),
        }

    def evidence(self) -> Iterator[str]:
        """Tells what has been touched."""
        after = state_of(self.folder)
        for name in sorted(self.before.keys() | after.keys()):
            if self.before.get(name) != after.get(name):
                yield f"changed outside: {name} from {self.before.get(name)} to {after.get(name)}"
        yield from (f"left {path}" for path in left_in_shared(self.mark))
        for name, listener in self.listeners.items():
            if reached(listener):
                yield f"reached the listener {name}"
        if self.victim and (now := state_of_process(self.victim)) != self.victim_before:
            yield f"victim changed from {self.victim_before} to {now}"


@contextlib.contextmanager
def laid_out(uid: int, with_victim: bool) -> Iterator[Ground]:
    """Lays out a ground whose files and victim belong to a user, and takes it away again."""
    secret, mark = number(), number()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="attacked-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _fill(folder, secret)
        victim = stack.enter_context(_victim(folder, secret, uid)) if with_victim else None
        listeners = {name: stack.enter_context(made) for name, made in _listeners(folder, mark)}
        stack.callback(_shared_memory(int(mark[:8]), secret))
        _give(folder, uid)
        ground = Ground(folder, victim, listeners, secret, number(), mark)
        ground.before, ground.victim_before = state_of(folder), state_of_process(victim) if victim else {}
        yield ground


def _fill(folder: Path, secret: str) -> None:
    for name in ("readable", "writable", "movable", "deletable", "private", f"name-{secret}", "inner/file", "cwd/note"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{secret}\n")
        (folder / name).chmod(0o666)
    (folder / "tool").write_text(f"#!/bin/sh\necho {secret}\n")
    (folder / "tool").chmod(0o777)
    (folder / "private").chmod(0o600)
    (folder / "dated").touch()
    os.utime(folder / "dated", ns=(int(secret), int(secret)))
    for path in (folder, folder / "inner", folder / "cwd"):
        path.chmod(0o777)


def _give(folder: Path, uid: int) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, uid)


@contextlib.contextmanager
def _victim(folder: Path, secret: str, uid: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs a process that holds the secret in arguments, environment, memory, an open deleted file and its folder."""
    held = folder / "held"
    held.write_text(f"{secret}\n")
    # Popen's own `user` would fork, which gRPC does not like in its process.
    become = [] if uid == os.geteuid() else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    argv = ["/bin/sleep", f"300.{secret}"]
    with held.open("rb") as stdin:
        held.unlink()
        environment = {"PATH": os.environ["PATH"], "VICTIM_SECRET": secret}
        made = subprocess.Popen(
            [*become, *argv], env=environment, stdin=stdin, cwd=folder / "cwd", start_new_session=True
        )
    deadline = time.monotonic() + STARTED_S
    while not Path(f"/proc/{made.pid}/cmdline").read_bytes().startswith(argv[0].encode()):
        assert time.monotonic() < deadline, "the victim did not start"
        time.sleep(0.001)
    try:
        yield made
    finally:
        made.kill()
        made.wait()


def _listeners(folder: Path, mark: str) -> Iterator[tuple[str, socket.socket]]:
    yield "tcp", bound(AIMED_AT)
    if has_ipv6():
        yield "tcp6", bound(AIMED_AT, socket.AF_INET6)
    yield "udp", bound(AIMED_AT, kind=socket.SOCK_DGRAM)
    for name, kind, address in (
        ("stream", socket.SOCK_STREAM, f"{folder}/stream"),
        ("dgram", socket.SOCK_DGRAM, f"{folder}/dgram"),
        ("abstract", socket.SOCK_STREAM, f"\0attacked-{mark}"),
    ):
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(address)
        if kind == socket.SOCK_STREAM:
            made.listen()
        if address.startswith("/"):
            Path(address).chmod(0o777)
        yield name, made


def has_ipv6() -> bool:
    """Whether this machine has a loopback of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def bound(ports: range, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Returns a socket on a free port of a range; it listens, if its kind does."""
    while True:
        made = socket.socket(family, kind)
        try:
            made.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", secrets.choice(ports)))
        except OSError as error:
            made.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made


def free_port() -> int:
    """Returns a port that nobody listened on a moment ago."""
    with bound(LISTENED_ON) as made:
        port: int = made.getsockname()[1]
        return port


def reached(listener: socket.socket) -> bool:
    """Whether somebody connected to a listener or sent to it."""
    listener.setblocking(False)
    try:
        if listener.type == socket.SOCK_STREAM:
            listener.accept()[0].close()
        else:
            listener.recv(100)
    except BlockingIOError:
        return False
    return True


def _shared_memory(key: int, secret: str) -> Any:
    """Puts the secret into a System V segment that everybody may attach; returns what removes it."""
    segment = _LIBC.shmget(key, 4096, _IPC_CREAT | 0o666)
    if segment < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    address = ctypes.c_void_p(_LIBC.shmat(segment, None, 0))
    ctypes.memmove(address, secret.encode(), len(secret))
    _LIBC.shmdt(address)
    return lambda: _LIBC.shmctl(segment, _IPC_RMID, None)


def state_of(folder: Path) -> State:
    """Returns all that can be changed about a folder and what is in it. Of plain strings: many are looked at."""
    root = str(folder)
    found = {".": _state_of_file(root)}
    for above, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = f"{above}/{name}"
            found[path[len(root) + 1 :]] = _state_of_file(path)
    return found


def _state_of_file(path: str) -> tuple[Any, ...]:
    found = os.lstat(path)
    attributes = tuple(os.listxattr(path, follow_symlinks=False))
    # An attack that is let down may close a file, but the runner as an ordinary user can open what was its own.
    regular = stat.S_ISREG(found.st_mode) and os.access(path, os.R_OK)
    content, flags = _read(path) if regular else (None, None)
    return oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, found.st_mtime_ns, attributes, flags, content


def _read(path: str) -> tuple[bytes, bytes | None]:
    """Returns a file's content and what chattr(1) changes, None where the file system has no such thing."""
    fd = os.open(path, os.O_RDONLY)
    try:
        content = b"".join(iter(lambda: os.read(fd, 65536), b""))
        with contextlib.suppress(OSError):
            return content, fcntl.ioctl(fd, _GET_FLAGS, bytes(8))
        return content, None
    finally:
        os.close(fd)


def state_of_process(process: "subprocess.Popen[bytes]") -> State:
    """Returns all that attacks try to change about a process."""
    if process.poll() is not None:
        return {"ended": process.returncode}
    pid = process.pid
    proc = Path(f"/proc/{pid}")
    return {
        "stopped": proc.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "Tt",
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "affinity": os.sched_getaffinity(pid),
        "scheduler": os.sched_getscheduler(pid),
        "limits": proc.joinpath("limits").read_text(),
        "oom_score_adj": proc.joinpath("oom_score_adj").read_text(),
        "io_priority": _LIBC.syscall(31 if os.uname().machine == "aarch64" else 252, 1, pid),
    }


def left_in_shared(mark: str) -> list[str]:
    """Removes what an attack left in folders that everybody shares; returns what that was."""
    found = [Path(folder) / f"attack-{mark}" for folder in SHARED]
    found = [path for path in found if os.path.lexists(path)]
    for path in found:
        path.unlink()
    return [str(path) for path in found]
