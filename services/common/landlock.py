"""Landlock: binds the calling thread and all it starts to named files (Linux, userspace-api/landlock).

Every right the kernel's ABI knows is handled, so what no rule allows is denied. Not covered by Landlock at all: stat,
chmod, chown, utime, extended attributes; and for sockets anything but TCP bind and connect.
"""

import ctypes
import errno
import os

from services.common import kernel

KNOWN_ABI = 7  # the newest this module uses in full

# include/uapi/linux/landlock.h; the ABI that brought a right stands behind it where it is not 1.
EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
MAKE_CHAR = 1 << 6
MAKE_BLOCK = 1 << 11
TRUNCATE = 1 << 14  # 3
_BASE = (1 << 13) - 1
_REFER = 1 << 13  # 2
_ADDED = ((2, _REFER), (3, TRUNCATE), (5, 1 << 15))  # IOCTL_DEV
_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | 1 << 15  # what a rule on anything but a folder may name
_NET = 0b11  # bind and connect of TCP; 4
_SCOPE = 0b11  # abstract unix sockets, signals; SCOPES_SINCE

READ = READ_FILE | READ_DIR
READ_EXECUTE = READ | EXECUTE
DEVICE = READ_FILE | WRITE_FILE | TRUNCATE
# All but device nodes, and ioctl on devices, of which there are none.
WORKSPACE = (_BASE | _REFER | TRUNCATE) & ~(MAKE_CHAR | MAKE_BLOCK)

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_LOG_OFF_FLAG = 1  # no audit records about this program; 7
_PATH_BENEATH = 1
SCOPES_SINCE = 6
_SIGNALS = 0b10


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """Returns the ABI in use: the kernel's, at most KNOWN_ABI; 0 where there is no Landlock."""
    try:
        return min(kernel.call(_CREATE_RULESET, None, 0, _VERSION_FLAG), KNOWN_ABI)
    except OSError:
        return 0


def build(version: int, paths: list[tuple[str, int]], network: bool) -> int:
    """Builds a ruleset and returns its file descriptor.

    Args:
        version: what `abi` returned.
        paths: (path, rights); a path that does not exist is left out.
        network: whether TCP is left alone, for a command that has a network of its own.
    """
    attributes = _Ruleset(
        _handled(version), _NET if version >= 4 and not network else 0, _SCOPE if version >= SCOPES_SINCE else 0
    )
    size = 24 if version >= SCOPES_SINCE else 16 if version >= 4 else 8
    ruleset = kernel.call(_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    allow(ruleset, version, paths)
    return ruleset


def allow(ruleset: int, version: int, paths: list[tuple[str, int]]) -> None:
    """Adds paths to a ruleset as `build` does."""
    handled = _handled(version)
    for path, rights in paths:
        _allow_path(ruleset, path, rights & handled)


def _handled(version: int) -> int:
    return _BASE | sum(right for since, right in _ADDED if version >= since)


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return
        raise
    try:
        folder = os.fstat(fd).st_mode & 0o170000 == 0o040000
        _allow(ruleset, fd, rights if folder else rights & _FILE)
    finally:
        os.close(fd)


def _allow(ruleset: int, parent: int, rights: int) -> None:
    rule = _PathBeneath(rights, parent)
    kernel.call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)


def restrict(ruleset: int) -> None:
    """Binds this thread to the ruleset for good. no_new_privs must be set. Raises OSError."""
    kernel.call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def confine_signals(version: int) -> None:
    """Leaves this process able to signal what it starts from now on, and nothing else. no_new_privs must be set.

    That makes kill(-1) the way to end all of them at once. As a mistake would end everything else too, it is tried.
    Whoever is held so cannot mount, in no namespace. Raises OSError, EUCLEAN when the parent can still be signalled.
    """
    # Every ruleset denies links and renames between folders until a rule allows them.
    attributes = _Ruleset(_REFER, 0, _SIGNALS)
    ruleset = kernel.call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    _allow_path(ruleset, "/", _REFER)
    kernel.call(_RESTRICT_SELF, ruleset, _LOG_OFF_FLAG if version >= 7 else 0)
    os.close(ruleset)
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return
    raise OSError(errno.EUCLEAN, "signals are not confined")
