"""What a sandbox must hold, tried from inside of it. Run once when the service starts, in place of a command."""

# Each line is one system call that must or must not work.
# ruff: noqa: PTH104, PTH108, PTH208

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from services.common import kernel
from services.terminal.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBERS = {"x86_64": (41, 272), "aarch64": (198, 97)}  # socket, unshare
_AF_UNIX, _AF_INET, _SOCK_STREAM = 1, 2, 1
_NEW_USER_NAMESPACE = 0x10000000
_NAME = b"conductor-self-test"
_COMMAND_PID = 2  # below the init of its process namespace


def check(job: Job) -> None:
    """Tries what must fail and what must work. Raises OSError with the errno of what is wrong.

    Raises EUCLEAN when something forbidden worked: then the layers are set, and do not hold.
    """
    # The workspace must be reachable by its path, not only as the current folder.
    _create(job["home"] + b"/" + _NAME)
    os.listdir(job["inputs"])
    if job["uid"] and os.getresuid() != (job["uid"],) * 3:
        raise OSError(errno.EUCLEAN, "the user was not changed")
    if job["tier"] == "none":
        return
    for attempt in _forbidden(job):
        _must_fail(attempt)
    if os.getuid() == 0:
        raise OSError(errno.EUCLEAN, "the user is root")


def _forbidden(job: Job) -> list[Callable[[], object]]:
    socket, unshare = _NUMBERS[os.uname().machine]
    everywhere: list[Callable[[], object]] = [
        lambda: _create(job["inputs"] + b"/" + _NAME),
        lambda: os.open("/proc/1/environ", os.O_RDONLY),
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: kernel.call(socket, _AF_INET, _SOCK_STREAM, 0),
        lambda: kernel.call(socket, _AF_UNIX, _SOCK_STREAM, 0),
        lambda: kernel.call(unshare, _NEW_USER_NAMESPACE),
    ]
    if job["tier"] == "strong":
        return [*everywhere, lambda: os.rename("/usr", "/" + _NAME.decode()), _is_in_a_world_of_its_own]
    return [
        *everywhere,
        lambda: _create(b"../" + _NAME),
        lambda: _create(b"/tmp/" + _NAME),  # anybody may write there, were it not for the sandbox
        lambda: os.kill(os.getppid(), 0),
    ]


def _is_in_a_world_of_its_own() -> None:
    if os.getpid() == _COMMAND_PID:
        raise OSError(errno.ESRCH, "the other processes are not to be seen")


def _create(path: bytes) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


def _must_fail(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except OSError:
        return
    raise OSError(errno.EUCLEAN, "the sandbox does not hold")
