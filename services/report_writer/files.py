"""The boundary of the reports folder: the only code that opens, creates or removes anything there.

The folder is opened once, at start; all later work is relative to that descriptor, so a folder, link or mount put in
its place is never followed. A file is written under a temporary name, synced, and given its final name in one step that
never replaces anything: a reader sees a whole file or none.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from services.common.config import ConfigError

TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}")
# Of a report, of a task's folder, of a file in it: one component, without a leading dot.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,130}")
PARTS = ".parts"  # the folder of files that are still being written

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE = 0x08 | 0x04 | 0x02  # BENEATH, NO_SYMLINKS, NO_MAGICLINKS of <linux/openat2.h>
_RENAME_NOREPLACE = 1  # of <linux/fs.h>
# The kernel, or the profile of a container, does not offer the call.
_NOT_OFFERED = (errno.ENOSYS, errno.EPERM)
# What opening a link, a socket, or a device that is not there answers.
_NOT_PLAIN = (errno.ELOOP, errno.ENXIO, errno.ENODEV)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class NotAReport(Exception):
    """Something stands under the name that this service did not put there: a link, a FIFO, a folder, a huge file."""


class Folder:
    """An open reports folder."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor

    @classmethod
    def open(cls, root: Path) -> "Folder":
        """Opens the folder, makes it when it is missing, removes what killed writers left, and tries to write.

        Raises ConfigError when reports could not be stored there.
        """
        try:
            _make(root)
            folder = cls(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            folder._sweep()
            with folder._temporary(b""):
                pass
        except OSError as error:
            raise ConfigError(
                f"REPORT_WRITER_ROOT={str(root)!r} cannot be used: {error.strerror}. "
                "Give a folder, not a link, that this service may write to."
            ) from None
        return folder

    def publish(self, name: str, content: bytes, into: "Folder | None" = None) -> bool:
        """Stores the content durably under the name, for all to read; returns False when the name is taken.

        Args:
            into: a folder in this one to store it in.

        Raises OSError when it could not be stored; then nothing is left behind.
        """
        with self._temporary(content) as temporary:
            return self.move(temporary, into or self, name)

    def move(self, old: str, into: "Folder", name: str) -> bool:
        """Gives a file, which must be synced, its final name and place durably; returns False when it is taken."""
        _check(name)
        try:
            self._rename(old, into, name)
        except FileExistsError:
            return False
        into.sync()
        return True

    @contextlib.contextmanager
    def inner(self, name: str, make: bool = False) -> Iterator["Folder"]:
        """Opens a folder in this one, and makes it first when asked to.

        Raises FileNotFoundError, NotAReport or OSError.
        """
        if name != PARTS:
            _check(name)
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._fd)
            self.sync()  # also when somebody else has made it: who may have died before this
        try:
            descriptor = self._open(name, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in (*_NOT_PLAIN, errno.ENOTDIR):
                raise NotAReport("no folder") from error
            raise
        try:
            yield Folder(descriptor)
        finally:
            os.close(descriptor)

    def remove_older(self, seconds: float) -> None:
        """Removes the files that nobody has written to for so long."""
        newest = time.time() - seconds
        with os.scandir(self._fd) as entries:
            old = [entry.name for entry in entries if entry.stat(follow_symlinks=False).st_mtime < newest]
        for name in old:
            self.remove(name)

    def remove_folders_older(self, seconds: float) -> int:
        """Removes the folders to whose files nobody has written for so long, with those files. Returns how many."""
        with os.scandir(self._fd) as entries:
            names = [entry.name for entry in entries if entry.name != PARTS and entry.is_dir(follow_symlinks=False)]
        return sum(self._remove_folder(name, seconds) for name in names)

    def _remove_folder(self, name: str, seconds: float) -> bool:
        try:
            with self.inner(name) as inner:
                if inner._written_since(time.time() - seconds):
                    return False
                inner.remove_older(seconds)
            os.rmdir(name, dir_fd=self._fd)
        except (OSError, NotAReport, ValueError):  # it is in use, or nothing of ours
            return False
        return True

    def remove_empty(self, name: str) -> None:
        """Removes a folder in this one, unless something is in it."""
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=self._fd)

    def _written_since(self, moment: float) -> bool:
        """Tells whether a file here was written to since a time (seconds since the epoch)."""
        with os.scandir(self._fd) as entries:
            return any(entry.stat(follow_symlinks=False).st_mtime >= moment for entry in entries)

    def sync(self) -> None:
        """Makes the names in the folder durable."""
        os.fsync(self._fd)

    def read(self, name: str, limit: int) -> bytes:
        """Returns a file's bytes. Raises FileNotFoundError, NotAReport (also above `limit` bytes) or OSError."""
        descriptor = self.open_plain(name, os.O_RDONLY)
        try:
            return _read_plain(descriptor, limit)
        finally:
            os.close(descriptor)

    def open_plain(self, name: str, flags: int) -> int:
        """Returns a descriptor of a plain file with one name. Raises FileNotFoundError, NotAReport or OSError."""
        _check(name)
        try:
            # Without O_NONBLOCK a FIFO would hold the thread until somebody writes to it.
            descriptor = self._open(name, flags | os.O_NONBLOCK, 0o600 if flags & os.O_CREAT else 0)
        except OSError as error:
            if error.errno in (*_NOT_PLAIN, errno.EISDIR):
                raise NotAReport("a link, a folder or a device") from error
            raise
        try:
            if os.fstat(descriptor).st_nlink > 1:
                with self._alone():  # it may have two names because it is just being published
                    pass
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise NotAReport("not a plain file with one name")
        except BaseException:  # the descriptor is nobody else's yet; it is raised on
            os.close(descriptor)
            raise
        return descriptor

    def remove(self, name: str) -> None:
        """Removes a file, if it can be; what stays is removed as left behind, later."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    @contextlib.contextmanager
    def _temporary(self, content: bytes) -> Iterator[str]:
        """Yields the name of a synced file with the content; it is gone afterwards, or has its final name."""
        name, descriptor = self._new_temporary()
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(descriptor, 0o644)
                os.fsync(descriptor)
                yield name  # open, and so locked, until it has its final name
        finally:
            self.remove(name)

    def _new_temporary(self) -> tuple[str, int]:
        """Creates a file and locks it, which tells a sweep by another replica that its writer is alive."""
        while True:
            name = f".tmp-{secrets.token_hex(16)}"
            descriptor = self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                return name, descriptor
            os.close(descriptor)  # swept in the instant before the lock

    def _rename(self, temporary: str, into: "Folder", name: str) -> None:
        """Gives the temporary file its final name, or raises EEXIST and leaves what stands there."""
        try:
            _rename_noreplace(self._fd, temporary, into._fd, name)
        except OSError as error:
            if error.errno not in (errno.EINVAL, *_NOT_OFFERED):
                raise
            # The file system cannot do it in one step. A link does not replace either; for a moment it has two names.
            with into._alone():
                os.link(temporary, name, src_dir_fd=self._fd, dst_dir_fd=into._fd, follow_symlinks=False)
                self.remove(temporary)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other thread or replica is in here, and keeps them out. A dead one keeps nobody out."""
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        with os.scandir(self._fd) as entries:
            names = [entry.name for entry in entries if TEMPORARY.fullmatch(entry.name)]
        for name in names:
            with contextlib.suppress(OSError):  # in use by another replica, or gone
                self._sweep_one(name)

    def _sweep_one(self, name: str) -> None:
        descriptor = self._open(name, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=self._fd)
        finally:
            os.close(descriptor)

    def _open(self, name: str, flags: int, mode: int = 0) -> int:
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return _openat2(self._fd, name, flags, mode)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            return os.open(name, flags, mode, dir_fd=self._fd)


def _make(root: Path) -> None:
    """Makes the folder and those above it where they are missing, each durably."""
    if root.is_dir():
        return
    _make(root.parent)
    root.mkdir(exist_ok=True)
    parent = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(parent)
    os.close(parent)


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a report, nor of a task's file")


def _read_plain(descriptor: int, limit: int) -> bytes:
    if os.fstat(descriptor).st_size > limit:
        raise NotAReport("a file larger than a report may be")
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise NotAReport("a file that grows")
    return content


def _openat2(folder: int, name: str, flags: int, mode: int) -> int:
    """openat2(2), which the standard library does not have."""
    how = _OpenHow(flags, mode, _RESOLVE)
    libc = ctypes.CDLL(None, use_errno=True)
    while True:
        result: int = libc.syscall(_SYS_OPENAT2, folder, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how))
        if result >= 0:
            return result
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def _rename_noreplace(folder: int, old: str, into: int, new: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE, which the standard library does not have."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(folder, os.fsencode(old), into, os.fsencode(new), _RENAME_NOREPLACE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), new)
