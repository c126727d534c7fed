"""One folder per command: made empty, measured while the command writes to it, removed with whatever it holds.

What lies in it was made by a hostile program: folders nested deeper than any stack, names of any bytes, modes that
lock out. Nothing here recurses, follows a link, or keeps more than DEPTH files open.
"""
# Importing pathlib or contextlib would slow the start of every command.
# ruff: noqa: PTH208

from __future__ import annotations

import errno
import fcntl
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "command-"
DEPTH = 100  # folders below each other that are looked at
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Usage:
    """What a workspace holds."""

    __slots__ = ("_linked", "entries", "largest_bytes", "unknown", "used_bytes")

    def __init__(self) -> None:
        self.used_bytes = 0  # disk space, each file once
        self.entries = 0
        self.largest_bytes = 0  # length of the longest file
        self.unknown = False  # a part could not be looked at; the numbers are too small
        self._linked: set[int] = set()

    def count(self, found: os.stat_result) -> None:
        """Adds one entry."""
        self.entries += 1
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            if found.st_ino in self._linked:
                return
            self._linked.add(found.st_ino)
        self.used_bytes += found.st_blocks * 512
        if stat.S_ISREG(found.st_mode):
            self.largest_bytes = max(self.largest_bytes, found.st_size)


def open_root(path: Path, mode: int) -> int:
    """Opens the folder of all workspaces and locks it; makes it, with the mode, when it is missing.

    Raises BlockingIOError when another process has it, and other OSErrors when it cannot be used.
    """
    if not path.is_dir():
        path.mkdir(parents=True)
        path.chmod(mode)  # mkdir applies the umask
    root = os.open(path, _FOLDER)
    try:
        found = os.fstat(root)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            # In a shared temporary directory somebody else may have been there first.
            raise PermissionError(errno.EPERM, "it belongs to another user, or others may write to it")
        fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(root)
        raise
    return root


def create(root: int, name: str, uid: int) -> int:
    """Makes a workspace for a user (0: the own one) and returns its file descriptor. Raises OSError."""
    os.mkdir(name, 0o700, dir_fd=root)
    if uid:
        os.chown(name, uid, uid, dir_fd=root, follow_symlinks=False)
    return os.open(name, _FOLDER, dir_fd=root)


def measure(root: int, enough: int) -> Usage:
    """Looks at all entries below a folder while others change it; stops after `enough` entries."""
    usage = Usage()
    levels: list[tuple[int, list[str]]] = []
    try:
        _enter(os.dup(root), levels)
        while levels and usage.entries <= enough:
            fd, names = levels[-1]
            if names:
                _look(names.pop(), fd, levels, usage)
            else:
                os.close(levels.pop()[0])
    finally:
        for fd, _ in levels:
            os.close(fd)
    return usage


def _enter(fd: int, levels: list[tuple[int, list[str]]]) -> None:
    levels.append((fd, []))
    levels[-1][1].extend(os.listdir(fd))


def _look(name: str, fd: int, levels: list[tuple[int, list[str]]], usage: Usage) -> None:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        usage.count(found)
        if not stat.S_ISDIR(found.st_mode):
            return
        if len(levels) == DEPTH:
            usage.unknown = True
            return
        _enter(os.open(name, _FOLDER, dir_fd=fd), levels)
    except (FileNotFoundError, NotADirectoryError):
        pass  # changed meanwhile; the next look sees it
    except OSError:
        usage.unknown = True  # locked, or made to be unreadable


def sweep(root: int) -> int:
    """Removes the workspaces that an earlier process left. Returns how many. Raises OSError."""
    left = [name for name in os.listdir(root) if name.startswith(PREFIX)]
    for name in left:
        remove(root, name)
    return len(left)


def remove(root: int, name: str) -> None:
    """Removes a workspace with all it holds. No process may be changing it. Raises OSError."""
    if _unlinked(root, name):
        return
    fd = _open_any(root, name)
    try:
        while entries := os.listdir(fd):
            for entry in entries:
                if not _unlinked(fd, entry):
                    _flatten(fd, entry)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=root)


def _flatten(root: int, name: str) -> None:
    """Removes a folder and its files, and moves its folders up: so depth never matters."""
    fd = _open_any(root, name)
    try:
        for entry in os.listdir(fd):
            if not _unlinked(fd, entry):
                os.chmod(entry, 0o700, dir_fd=fd)  # to move a folder one must be able to write to it
                os.rename(entry, os.urandom(16).hex(), src_dir_fd=fd, dst_dir_fd=root)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=root)


def _open_any(root: int, name: str) -> int:
    os.chmod(name, 0o700, dir_fd=root)  # it is a folder: what else it might be has been unlinked before
    return os.open(name, _FOLDER, dir_fd=root)


def _unlinked(root: int, name: str) -> bool:
    """Unlinks a name and returns True, or returns False for a folder."""
    try:
        os.unlink(name, dir_fd=root)
    except IsADirectoryError:
        return False
    return True
