"""Finds the file that a command's program is, as execvp(3) and execve(2) would, without executing anything.

The walk follows links by itself, name by name, so that it looks at nothing but the folders of programs and the
command's own workspace. All else answers EACCES, whether it exists or not: in a sandbox with a file system of its own
the command could not see it either.
"""

import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import NamedTuple

from services.terminal.policy import PROGRAMS

LINKS = 40  # MAXSYMLINKS of the kernel
PATH_MAX = 4096  # bytes, with the NUL
# Names looked at for one program with its search along PATH and its interpreters. The kernel bounds only links: a PATH
# of thousands of folders, each a chain of long links, would keep the service busy.
STEPS = 10_000
FIRST_LINE = 256  # bytes; BINPRM_BUF_SIZE of the kernel
DEFAULT_PATH = b"/bin:/usr/bin"  # of execvp(3), where there is no PATH
# Debian, Fedora: /usr/bin/awk leads through it to /usr/bin/mawk. Its links are followed, nothing in it is a program.
ALTERNATIVES = b"/etc/alternatives"
_FOLDERS = tuple(os.fsencode(path) for path in PROGRAMS)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT)  # execvp(3) goes on after these
_ELF = b"\x7fELF"
_NAME = re.compile(rb"[^ \t\0\n]*")


class Identity(NamedTuple):
    """Tells a file from one that took its place, even under the same inode number. Owner and mode are no part of it."""

    device: int
    inode: int
    size: int  # bytes
    modified_ns: int


@dataclass(frozen=True, slots=True)
class View:
    """What a command sees of the file system.

    Args:
        home: absolute path of its workspace, as the command has it.
        workspace: file descriptor of the workspace; -1 while nothing is in it.
        uid: its user, in no group but the one of the same number; 0 for the service's own user.
        folders: absolute paths of folders of programs, beyond those that every machine has.
    """

    home: bytes
    workspace: int
    uid: int
    folders: tuple[bytes, ...] = ()

    def may(self, path: bytes, found: os.stat_result, right: int) -> bool:
        """Whether the command's user has os.R_OK or os.X_OK on a file or folder that is not in the workspace."""
        if not self.uid:
            return os.access(path, right, effective_ids=True)
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid == self.uid else 0
        return bool(found.st_mode >> shift & right)


@dataclass(frozen=True, slots=True)
class Found:
    """A file that can be executed, as far as its mode says."""

    name: bytes  # under which it was found: absolute, or relative to the workspace
    real: bytes  # absolute, without links
    inside: bool  # it lies in the workspace
    identity: Identity


class Unreadable(PermissionError):
    """The command's user, or the service, may not read the file, so what interprets it is unknown."""


class _Outside(PermissionError):
    """The path itself, and no link on its way, leads to where nothing is looked at."""


class Lookup:
    """Looks up one command's program and its interpreters, with one budget of STEPS for all."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._home = view.home.rstrip(b"/")
        self._folders = (*_FOLDERS, *view.folders)
        self._steps = 0

    def search(self, program: bytes, path: bytes | None) -> Found:
        """Finds a program along a PATH as execvp(3) does; an empty folder in it is the workspace.

        Unlike there, a file that the kernel cannot execute is not handed to a shell. Raises OSError.
        """
        if not program or b"/" in program:
            return self.locate(program)
        failure = errno.ENOENT
        for folder in (DEFAULT_PATH if path is None else path).split(b":"):
            try:
                return self.locate(folder + b"/" + program if folder else program)
            except _Outside:
                continue
            except OSError as error:
                if error.errno == errno.EACCES:
                    failure = errno.EACCES  # what is there and cannot be executed says more than what is not there
                elif error.errno not in _ABSENT:
                    raise
        raise OSError(failure, os.strerror(failure))

    def locate(self, name: bytes) -> Found:
        """Finds a program by its path, absolute or relative to the workspace. Raises OSError."""
        if not name or b"\0" in name or len(name) >= PATH_MAX:
            raise _error(errno.ENAMETOOLONG if len(name) >= PATH_MAX else errno.EINVAL if name else errno.ENOENT)
        real, found = self._walk(name)
        inside = self._inside(real)
        if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
            raise _error(errno.EACCES)
        if not inside and not (_below(real, self._folders) and self._view.may(real, found, os.X_OK)):
            raise _error(errno.EACCES)
        return Found(name, real, inside, _identity(found))

    def interpreter(self, found: Found) -> bytes | None:
        """Returns the path that a script's first line names, None for a binary.

        Raises Unreadable, and other OSErrors: ENOEXEC for what is neither, ESTALE when the file was replaced.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        path, folder = self._at(found.real)
        try:
            fd = os.open(path, flags, dir_fd=folder)
        except PermissionError as error:
            raise Unreadable(error.errno, error.strerror) from None
        try:
            status = os.fstat(fd)
            if _identity(status) != found.identity:
                raise _error(errno.ESTALE)
            if not found.inside and not self._view.may(found.real, status, os.R_OK):
                raise Unreadable(errno.EACCES, os.strerror(errno.EACCES))
            return first_line(os.pread(fd, FIRST_LINE, 0))
        finally:
            os.close(fd)

    def _walk(self, name: bytes) -> tuple[bytes, os.stat_result]:
        """Follows a path and its links to the end. Returns where it ends, and what is there."""
        done = b"" if name.startswith(b"/") else self._home
        todo = name.split(b"/")[::-1]
        links = 0
        end = None
        while todo:
            part = todo.pop()
            self._steps += 1
            if self._steps > STEPS or links > LINKS:
                raise _error(errno.ELOOP)
            end = None
            if part == b"..":
                done = done.rpartition(b"/")[0]
            elif part not in (b"", b"."):
                path = done + b"/" + part
                end = self._look(path, bool(links))
                if end is not None and stat.S_ISLNK(end.st_mode):
                    target = self._target(path)
                    links += 1
                    done = b"" if target.startswith(b"/") else done
                    todo += target.split(b"/")[::-1]
                    continue
                if todo and end is not None:
                    self._enter(path, end)
                done = path
        if end is None:
            raise _error(errno.EACCES)  # a folder
        return done, end

    def _look(self, path: bytes, linked: bool) -> os.stat_result | None:
        """Returns what is at a path, None for a folder above those that are looked at."""
        if self._inside(path) or _below(path, (*self._folders, ALTERNATIVES)):
            name, folder = self._at(path)
            return os.lstat(name, dir_fd=folder)
        if any(_below(looked_at, (path,)) for looked_at in (self._home, ALTERNATIVES, *self._folders)):
            return None
        raise _error(errno.EACCES) if linked else _Outside(errno.EACCES, os.strerror(errno.EACCES))

    def _target(self, path: bytes) -> bytes:
        name, folder = self._at(path)
        return os.readlink(name, dir_fd=folder)

    def _enter(self, path: bytes, found: os.stat_result) -> None:
        if not stat.S_ISDIR(found.st_mode):
            raise _error(errno.ENOTDIR)
        # The service's own user is judged by the kernel, at the next look; in its workspace any is, when it executes.
        if self._view.uid and not self._inside(path) and not self._view.may(path, found, os.X_OK):
            raise _error(errno.EACCES)

    def _at(self, path: bytes) -> tuple[bytes, int | None]:
        """Returns what to call a path, and in which folder: the workspace is seen through its descriptor."""
        if not self._inside(path):
            return path, None
        if self._view.workspace < 0:
            raise _error(errno.ENOENT)
        return path[len(self._home) + 1 :], self._view.workspace

    def _inside(self, path: bytes) -> bool:
        return path.startswith(self._home + b"/")


def first_line(head: bytes) -> bytes | None:
    """Returns the interpreter that a file's first FIRST_LINE bytes name, as binfmt_script of the kernel reads them.

    Returns None for a binary. Raises OSError: ENOEXEC for what is neither or cuts the name off, EACCES for no name.
    """
    if head.startswith(_ELF):
        return None
    rest = head.ljust(FIRST_LINE, b"\0")[2:].lstrip(b" \t")
    name = _NAME.match(rest)
    if not head.startswith(b"#!") or name is None or name.end() == len(rest) or rest.startswith(b"\n"):
        raise _error(errno.ENOEXEC)
    if not name[0]:
        raise _error(errno.EACCES)  # a NUL stands there; the kernel opens the current folder
    return name[0]


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _below(path: bytes, folders: tuple[bytes, ...]) -> bool:
    return any(path == folder or path.startswith(folder + b"/") for folder in folders)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
