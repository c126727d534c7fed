"""A world of its own for a command, made with namespaces (namespaces(7)): the strong tier.

Three processes: the *keeper*, which makes the namespaces and waits; the *init*, process 1 of the new process namespace,
which has no power left, reaps, and takes everything down with its end; and below it the command, which builds the file
system before it gives its power up. What the command sees is a tmpfs of a few folders: programs and inputs read-only,
its workspace, devices without power, a /proc of its own processes, and no network but, if asked for, a loopback of its
own.
"""

# Paths are of two roots at once, and go to system calls as they are.
# ruff: noqa: PTH102, PTH103, PTH106, PTH112, PTH115, PTH120, PTH211

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING

from services.common import kernel
from services.terminal.job import Job, Setting

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

# linux/sched.h
_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_ALL = _NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS | _NEWCGROUP
# linux/mount.h
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_DETACH = 2
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _CAPABILITIES = 24, 64
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_BASE = "/tmp"  # noqa: S108 - covered by a new mount, nothing in it is used
_OLD = "/.old"
_SCRATCH = "size=16m,nr_inodes=4096,mode=0700"  # of /tmp and of /dev/shm: memory that no limit of the tree counts
DEVICES = ("null", "zero", "full", "random", "urandom")
SCRATCH = ("/tmp", "/dev/shm")  # noqa: S108 - the command's own
PROC = "/proc"
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)


def unshare() -> None:
    """Makes the namespaces, with this process's user and group as the only ones. Raises OSError.

    The process namespace begins with the next fork.
    """
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(_ALL)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # a change of user has made /proc/self root's
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        _write(f"/proc/self/{name}", text)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def keep(init: int) -> NoReturn:
    """Is the keeper: waits for the init, and holds nothing else."""
    close_all_but(())
    os.waitpid(init, 0)
    os._exit(0)


def reap(command: int, verdict: int) -> NoReturn:
    """Is the init: waits for the command, says how it ended, and ends all that is left with its own end.

    Says: the status as of wait(2), nanoseconds since the epoch, and seconds of CPU of the command's process.
    """
    close_all_but((verdict,))
    while True:
        pid, status, used = os.wait4(-1, 0)
        if pid == command:
            break
    os.write(verdict, f"{status} {time.time_ns()} {used.ru_utime + used.ru_stime}".encode())
    os._exit(0)


def close_all_but(kept: Iterable[int]) -> None:
    """Closes every descriptor but some. Raises OSError."""
    low = 0
    for fd in sorted(kept):
        if low < fd:  # closerange(0, 0) closes all
            os.closerange(low, fd)
        low = fd + 1
    kernel.close_range(low)


def build(setting: Setting) -> None:
    """Makes the file system, as far as it is the same for every command. Raises OSError."""
    kernel.mount(None, "/", None, _REC | _PRIVATE, None)
    kernel.mount("tmpfs", _BASE, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=0755")
    os.mkdir(_BASE + _OLD)
    kernel.call(_PIVOT_ROOT[os.uname().machine], _BASE.encode(), (_BASE + _OLD).encode())
    os.chdir("/")
    os.mkdir("/tmp", 0o700)  # noqa: S108
    executable = 0 if setting["workspace_execute"] else _NOEXEC
    kernel.mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV | executable, _SCRATCH)  # noqa: S108
    for path, _ in setting["paths"]:  # after /tmp, where some of them may be
        if not path.startswith("/dev/") and not os.path.lexists(path):  # a file in a folder is there with the folder
            # Below /tmp, which is the command's own, Landlock would not keep what is there from being run.
            _show(path, _ATTR_NOEXEC if path in setting["data"] else 0)
    _devices()
    os.mkdir(PROC, 0o555)
    kernel.mount("proc", PROC, "proc", _NOSUID | _NODEV | _NOEXEC, None)
    kernel.sethostname(b"sandbox")


def furnish(job: Job) -> None:
    """Adds the workspace and the inputs to what `build` has made, and takes the old root away. Raises OSError."""
    home, inputs = os.fsdecode(job["home"]), os.fsdecode(job["inputs"])
    _bind(home, _ATTR_NOSUID | _ATTR_NODEV | (0 if job["workspace_execute"] else _ATTR_NOEXEC))
    _bind(inputs, _ATTR_NOSUID | _ATTR_NODEV | _ATTR_NOEXEC | _ATTR_RDONLY)
    kernel.umount(_OLD, _DETACH)
    os.rmdir(_OLD)
    _attributes("/", _ATTR_RDONLY, 0)


def _show(path: str, attributes: int) -> None:
    """Makes a path of the old root visible, read-only: a link as a link, all else as what it is."""
    try:
        found = os.lstat(_OLD + path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    if stat.S_ISLNK(found.st_mode):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(os.readlink(_OLD + path), path)
    else:
        _bind(path, _ATTR_NOSUID | _ATTR_NODEV | _ATTR_RDONLY | attributes)


def _bind(path: str, attributes: int) -> None:
    _place(path, os.path.isdir(_OLD + path))
    # What is mounted below must come along: the kernel does not let a new namespace uncover what it hides.
    kernel.mount(_OLD + path, path, None, _BIND | _REC, None)
    if attributes:
        _attributes(path, attributes, _AT_RECURSIVE)


def _place(path: str, folder: bool) -> None:
    if folder:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _devices() -> None:
    os.mkdir("/dev", 0o755)
    kernel.mount("tmpfs", "/dev", "tmpfs", _NOSUID | _NOEXEC, "size=64k,mode=0755")
    for name in DEVICES:
        _bind(f"/dev/{name}", 0)
    for name, target in _LINKS:
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/shm", 0o700)  # noqa: S108
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV | _NOEXEC, _SCRATCH)  # noqa: S108
    _attributes("/dev", _ATTR_RDONLY, 0)


def _attributes(path: str, attributes: int, flags: int) -> None:
    """Adds attributes to a mount; unlike a remount it needs to know of none that are there (mount_setattr(2))."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    kernel.call(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, wanted, len(wanted))


def loopback() -> None:
    """Takes the loopback interface up (netdevice(7)). Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xh", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def drop_capabilities() -> None:
    """Gives up what the user namespace gave, for good (capabilities(7)). Raises OSError."""
    for capability in range(_CAPABILITIES):
        try:
            kernel.prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the kernel knows no more of them
                raise
            break
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    kernel.call(_CAPSET[os.uname().machine], header, bytes(24))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
