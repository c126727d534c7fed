"""What a command left in its workspace, taken out: regular files with a single name, in folders that are no links.

A file is looked at before it is opened and again when it is open, each part of its path is opened from the part
before, and no link is followed. So nothing outside is read, no FIFO is waited for and no device is touched.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from services.common import kernel
from services.terminal import folders
from services.terminal.globs import Globs

MIB = 1024 * 1024
PATH_BYTES = 4_096  # of a path that can be asked for
MOST_ENTRIES = 1_000_000  # that are looked at
READ_BYTES = 1024 * MIB  # that are read for all checksums of a listing
_PIECE = MIB
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPENAT2 = 437  # on every architecture
# struct open_how of <linux/openat2.h>: flags, mode, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_HOW = struct.pack("QQQ", folders.FOLDER, 0, 0x08 | 0x04 | 0x02)
# The kernel, or the profile of a container, does not have the call; or it wants to be asked again.
_NOT_OFFERED = (errno.ENOSYS, errno.EPERM, errno.EAGAIN)
# Not there, not a file, not to be read, or under another process's lease (fcntl(2)).
_REFUSED = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM),
    *(errno.EAGAIN, errno.ENXIO, errno.ENODEV),
)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file: its path in the workspace, its size in bytes, and SHA-256 of its content in hexadecimal."""

    path: str  # bytes that are no UTF-8 are replaced
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Folder:
    path: bytes  # with a slash at the end, unless it is the top
    state: int  # of the patterns' automaton


def listing(
    work: int, patterns: Iterable[str], most: int = 1_000, read_bytes: int = READ_BYTES, entries: int = MOST_ENTRIES
) -> tuple[list[OutputFile], int]:
    """Returns the files that patterns (see Globs) ask for, sorted by path, and how many are left out.

    Left out are those beyond the first `most` by path; those for whose checksum more than `read_bytes` in all would be
    read; those that cannot be read, or change meanwhile; and as one each a folder that cannot be read or lies too deep
    for a path that can be asked for, and all that is beyond `entries` entries. Links, devices, FIFOs, sockets and files
    with several names are no outputs and are not counted. Raises ValueError for a pattern, OSError when the disk fails.
    """
    search = _Search(Globs(patterns), most)
    if not search.globs.start:
        return [], 0
    unseen = folders.walk(work, _Folder(b"", search.globs.start), search.visit, entries)
    search.cut()
    files = []
    for path in search.found:
        if file := _hashed(work, path, read_bytes):
            files.append(file)
            read_bytes -= file.size
    left_out = unseen + search.left_out + len(search.found) - len(files)
    return sorted(files, key=lambda file: file.path), left_out


class _Search:
    """The first paths that match, while a walk finds them in any order."""

    def __init__(self, globs: Globs, most: int) -> None:
        self.globs = globs
        self.found: list[bytes] = []
        self.left_out = 0
        self._most = most

    def visit(self, folder: int, name: str, within: _Folder) -> _Folder | None:
        """Takes an entry that matches; returns a folder below which something may match."""
        text = os.fsencode(name)
        state = self.globs.advance(within.state, text.decode("utf-8", "surrogateescape"))
        if not state:
            return None
        path = within.path + text
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except PermissionError:
            self.left_out += 1
            return None
        if stat.S_ISDIR(found.st_mode):
            return self._below(path + b"/", self.globs.advance(state, "/"))
        if _is_output(found) and self.globs.accepts(state):
            self._take(path)
        return None

    def _below(self, path: bytes, state: int) -> _Folder | None:
        if not state:
            return None
        if len(path) >= PATH_BYTES:
            self.left_out += 1
            return None
        return _Folder(path, state)

    def _take(self, path: bytes) -> None:
        if len(path) > PATH_BYTES:
            self.left_out += 1
            return
        self.found.append(path)
        if len(self.found) > 2 * self._most + 1_000:
            self.cut()

    def cut(self) -> None:
        """Keeps the first paths and counts the others."""
        self.found.sort()
        self.left_out += len(self.found[self._most :])
        del self.found[self._most :]


def _is_output(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _hashed(work: int, path: bytes, most: int) -> OutputFile | None:
    try:
        fd, size = _open(work, path)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb", buffering=0) as file:
        before = os.fstat(fd)
        if size > most or size != before.st_size:
            return None
        checksum, left = hashlib.sha256(), size
        while left and (piece := file.read(min(left, _PIECE))):
            checksum.update(piece)
            left -= len(piece)
        if left or _version(before) != _version(os.fstat(fd)):
            return None
    return OutputFile(path.decode("utf-8", "replace"), size, checksum.hexdigest())


def _version(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_ctime_ns, found.st_nlink


def open_file(work: int, path: str) -> tuple[int, int]:
    """Opens a file for reading by its path in the workspace; returns its descriptor and its size in bytes.

    Raises FileNotFoundError for anything that is not a regular file with a single name, in folders that are no links,
    that can be read; also for paths that are absolute or have empty parts, `.` or `..`. The caller closes it.
    """
    try:
        return _open(work, path.encode())
    except UnicodeEncodeError:
        raise FileNotFoundError(errno.ENOENT, "there is no such file") from None


def _open(work: int, path: bytes) -> tuple[int, int]:
    parents, _, name = path.rpartition(b"/")
    if len(path) > PATH_BYTES or b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise FileNotFoundError(errno.ENOENT, "this is no path of a file")
    folder = -1
    try:
        folder = _open_below(work, parents) if parents else os.dup(work)
        return _open_output(folder, name)
    except OSError as error:
        if error.errno in _REFUSED:
            raise FileNotFoundError(errno.ENOENT, "there is no such file, or it cannot be read") from error
        raise
    finally:
        if folder >= 0:
            os.close(folder)


def _open_below(work: int, path: bytes) -> int:
    """Opens a folder below another, through no link."""
    try:
        return kernel.call(_OPENAT2, work, path, _HOW, len(_HOW))
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    folder = os.dup(work)
    for part in path.split(b"/"):
        try:
            inner = os.open(part, folders.FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder


def _open_output(folder: int, name: bytes) -> tuple[int, int]:
    # To open a FIFO would wake who waits at its other end, and to open a device can do anything.
    if not _is_output(os.stat(name, dir_fd=folder, follow_symlinks=False)):
        raise FileNotFoundError(errno.ENOENT, "not a regular file with a single name")
    fd = os.open(name, _FILE, dir_fd=folder)
    found = os.fstat(fd)
    if not _is_output(found):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not a regular file with a single name")
    return fd, found.st_size
