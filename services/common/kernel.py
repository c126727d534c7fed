"""System calls that Python has no function for, by number or by libc's name, through ctypes."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SIGPIPE, SIGCHLD, SIGXFSZ = 13, 17, 25

_CLOSE_RANGE = 436
_CLOSE_RANGE_CLOEXEC = 4
_MOST = 0xFFFFFFFF

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.mount.argtypes = (ctypes.c_char_p,) * 3 + (ctypes.c_ulong, ctypes.c_char_p)


def call(number: int, *arguments: object) -> int:
    """Makes a system call. Integers go as 64 bits, anything else as ctypes passes it. Raises OSError."""
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _checked(_LIBC.syscall(ctypes.c_long(number), *words))


def prctl(option: int, value: int) -> None:
    """Sets one process attribute (prctl(2)). Raises OSError."""
    zero = ctypes.c_ulong(0)
    _checked(_LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def set_name(name: bytes) -> None:
    """Names this process, in 15 bytes at most, for whoever lists processes (PR_SET_NAME of prctl(2))."""
    zero = ctypes.c_ulong(0)
    _checked(_LIBC.prctl(PR_SET_NAME, name, zero, zero, zero))


def unshare(namespaces: int) -> None:
    """Moves this process into new namespaces (unshare(2)). Raises OSError."""
    _checked(_LIBC.unshare(namespaces))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    """Mounts (mount(2)). Raises OSError."""
    source_, target_, kind_, data_ = (
        None if text is None else os.fsencode(text) for text in (source, target, kind, data)
    )
    _checked(_LIBC.mount(source_, target_, kind_, flags, data_))


def umount(target: str, flags: int) -> None:
    """Takes a mount away (umount2(2)). Raises OSError."""
    _checked(_LIBC.umount2(os.fsencode(target), flags))


def sethostname(name: bytes) -> None:
    """Names the machine, in this UTS namespace (sethostname(2)). Raises OSError."""
    _checked(_LIBC.sethostname(name, ctypes.c_size_t(len(name))))


def close_range(first: int) -> None:
    """Closes every descriptor from one on (close_range(2), Linux 5.9). Raises OSError."""
    call(_CLOSE_RANGE, first, _MOST, 0)


def close_range_on_exec(first: int) -> None:
    """Has every descriptor from one on closed by the next exec (close_range(2), Linux 5.11). Raises OSError."""
    call(_CLOSE_RANGE, first, _MOST, _CLOSE_RANGE_CLOEXEC)


def default_signals() -> None:
    """Undoes what the interpreter and the spawner ignore: an ignored signal stays ignored across exec."""
    for number in (SIGPIPE, SIGCHLD, SIGXFSZ):
        _LIBC.signal(number, None)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
