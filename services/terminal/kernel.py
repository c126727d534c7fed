"""System calls that Python has no function for, by number, through ctypes.

Like every module the launcher loads, this one imports only cheap parts of the standard library: each command pays for
the import.
"""

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SIGPIPE, SIGXFSZ = 13, 25

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def call(number: int, *arguments: object) -> int:
    """Makes a system call. Integers go as 64 bits, anything else as ctypes passes it. Raises OSError."""
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _checked(_LIBC.syscall(ctypes.c_long(number), *words))


def prctl(option: int, value: int) -> None:
    """Sets one process attribute (prctl(2)). Raises OSError."""
    zero = ctypes.c_ulong(0)
    _checked(_LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def default_signals() -> None:
    """Undoes what the interpreter ignores: an ignored signal stays ignored across exec."""
    for number in (SIGPIPE, SIGXFSZ):
        _LIBC.signal(number, None)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
