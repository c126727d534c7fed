"""What a sandbox must hold, tried from inside of it. Run once when the service starts, in place of a command."""
# Importing pathlib or contextlib would slow the start of every command.
# ruff: noqa: PTH102, PTH108, PTH123

from __future__ import annotations

import errno
import os

from services.terminal import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBERS = {"x86_64": (41, 272), "aarch64": (198, 97)}  # socket, unshare
_AF_UNIX, _AF_INET, _SOCK_STREAM = 1, 2, 1
_NEW_USER_NAMESPACE = 0x10000000
_NAME = b"conductor-self-test"


def check(home: bytes, uid: int) -> None:
    """Tries what must fail and what must work. Raises OSError with the errno of what is wrong.

    Raises EUCLEAN when something forbidden worked: then the layers are set, and do not hold.
    """
    os.mkdir(home + b"/" + _NAME)  # the workspace must be reachable by its path, not only as the current folder
    with open(home + b"/" + _NAME + b"/file", "wb", buffering=0) as file:
        file.write(_NAME)
    socket, unshare = _NUMBERS[os.uname().machine]
    for attempt in (
        lambda: _create(b"/tmp/" + _NAME),  # anybody may write there, were it not for the sandbox
        lambda: _create(b"../" + _NAME),
        lambda: os.open("/proc/1/environ", os.O_RDONLY),
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.kill(os.getppid(), 0),
        lambda: kernel.call(socket, _AF_INET, _SOCK_STREAM, 0),
        lambda: kernel.call(socket, _AF_UNIX, _SOCK_STREAM, 0),
        lambda: kernel.call(unshare, _NEW_USER_NAMESPACE),
    ):
        _must_fail(attempt)
    if os.getuid() == 0 or (uid and os.getresuid() != (uid, uid, uid)):
        raise OSError(errno.EUCLEAN, "the user was not changed")


def _create(path: bytes) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


def _must_fail(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except OSError:
        return
    raise OSError(errno.EUCLEAN, "the sandbox does not hold")
