"""Folders that a hostile program filled: opened, walked, handed over and emptied.

All work is relative to open folders (openat(2) and its kin), so a path is never looked up twice. Nothing here
recurses, follows a link, waits for a FIFO, or keeps more than a few files open, whatever the depth.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Container
from typing import Generic, TypeVar

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC  # names a file of any kind without opening it (open(2))
BATCH = 1_000  # names read at once when emptying a folder
_LOCKED = (errno.EACCES, errno.EPERM)
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY)

Tag = TypeVar("Tag")
# Gets the open folder, an entry's name and the folder's tag; returns the tag of a folder to look into, or None.
Visit = Callable[[int, str, Tag], Tag | None]


def names(folder: int, most: int) -> list[str]:
    """Returns up to `most` names in a folder."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in itertools.islice(entries, most)]


def open_unlocked(parent: int | None, name: str) -> int:
    """Opens a folder of the own user, whatever its mode was; it is 0700 then. Raises NotADirectoryError for a link."""
    node = _unlock(parent, name)
    try:
        return os.open(".", FOLDER, dir_fd=node)
    finally:
        os.close(node)


def _unlock(parent: int | None, name: str) -> int:
    node = os.open(name, _NODE | os.O_DIRECTORY, dir_fd=parent)
    try:
        # fchmod(2) refuses such a descriptor and chmod(2) by name would follow a link that is put there now.
        os.chmod(_path(node), 0o700)  # noqa: PTH101 - the path of a descriptor
    except BaseException:  # the descriptor is nobody else's yet; it is raised on
        os.close(node)
        raise
    return node


def _path(node: int) -> str:
    """Names an open file itself, also a link, for calls that want a path (proc_pid_fd(5))."""
    return f"/proc/self/fd/{node}"


def walk(top: int, tag: Tag, visit: Visit[Tag], most: int) -> int:
    """Visits up to `most` entries below a folder, in any order, with two files open.

    The way back up is `..`, taken only when it leads to the folder it came from. Returns how many parts it could not
    look into: locked, changed meanwhile, or more than `most`; 0 says that it saw everything. Raises OSError when the
    disk fails, and what `visit` raises.
    """
    place: _Place[Tag] = _Place(top)
    try:
        unseen: int = place.enter(".", tag, most)
        while place.levels:
            _, left, tag = place.levels[-1]
            if not left:
                if place.leave():
                    return unseen + 1
                continue
            if most == 0:
                return unseen + 1
            most -= 1
            name = left.pop()
            inner = visit(place.here, name, tag)
            if inner is not None:
                unseen += place.enter(name, inner, most)
        return unseen
    finally:
        os.close(place.here)


class _Place(Generic[Tag]):
    """Where a walk is: the open folder, and the folders above it up to the top."""

    def __init__(self, top: int) -> None:
        self.here = os.dup(top)
        self.levels: list[tuple[tuple[int, int], list[str], Tag]] = []  # identity, names still to visit, tag

    def enter(self, name: str, tag: Tag, most: int) -> bool:
        """Goes into a folder; returns True when that cannot be done, and stays."""
        inner = -1
        try:
            inner = os.open(name, FOLDER, dir_fd=self.here)
            found = os.stat(".", dir_fd=inner)  # fails where `..` would fail
            self.levels.append((_identity(found), names(inner, most + 1), tag))
        except OSError as error:
            if inner >= 0:
                os.close(inner)
            return _shut(error)
        os.close(self.here)
        self.here = inner
        return False

    def leave(self) -> bool:
        """Goes up; returns True when the way is lost."""
        self.levels.pop()
        if not self.levels:
            return False
        try:
            outer = os.open("..", FOLDER, dir_fd=self.here)
        except OSError as error:
            return _shut(error)
        os.close(self.here)
        self.here = outer
        return _identity(os.fstat(outer)) != self.levels[-1][0]


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _shut(error: OSError) -> bool:
    if error.errno in _LOCKED or error.errno in _CHANGED:
        return True
    raise error


def hand_over(top: int, uid: int, users: Container[int], most: int) -> None:
    """Gives a folder and all below it to a user (0: the own one). Needs root unless it is that user's already.

    A file with several names is given only if it belongs to one of `users` and all its names lie inside: else giving
    it away would change what lies outside. Killed half-way, the folder itself belongs to the own user, and the next
    call does it all again. Raises OSError, EDQUOT when there are more than `most` entries.
    """
    uid = uid or os.geteuid()
    if os.fstat(top).st_uid == uid:
        return
    os.fchown(top, os.geteuid(), os.getegid())
    giver = _Giver(uid, users)
    unseen = walk(top, True, giver.give, most)
    if giver.linked and not unseen:
        giver.known = giver.linked.copy()
        unseen = walk(top, True, giver.give, most)
    if unseen:
        raise OSError(errno.EDQUOT, f"a workspace holds more than {most} entries, or is being changed: remove it")
    os.fchown(top, uid, uid)


class _Giver:
    """Gives entries to a user; files with several names only once all of these are known to lie inside."""

    def __init__(self, uid: int, users: Container[int]) -> None:
        self.linked: Counter[tuple[int, int]] = Counter()  # file → names met
        self.known: Counter[tuple[int, int]] = Counter()  # the same, of a whole walk
        self._uid = uid
        self._users = users

    def give(self, folder: int, name: str, _: bool) -> bool | None:
        """Gives one entry; returns True for a folder."""
        try:
            node = os.open(name, _NODE, dir_fd=folder)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(node)
            is_folder = stat.S_ISDIR(found.st_mode)
            if is_folder or found.st_nlink == 1 or self._inside(found):
                os.chown(_path(node), self._uid, self._uid)
            return is_folder or None
        finally:
            os.close(node)

    def _inside(self, found: os.stat_result) -> bool:
        file = _identity(found)
        self.linked[file] += 1
        # A program that still runs can show one name twice, so the owner counts too.
        return self.known[file] == found.st_nlink and found.st_uid in self._users


def remove(parent: int, name: str) -> None:
    """Removes an entry of any kind with all it holds. Raises OSError, EBUSY when something is still changing it."""
    if _unlinked(parent, name):
        return
    folder = open_unlocked(parent, name)
    try:
        empty(folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=parent)


def empty(folder: int) -> None:
    """Removes all that a folder holds. Raises OSError, EBUSY when something is still changing it."""
    try:
        while entries := names(folder, BATCH):
            for entry in entries:
                if not _unlinked(folder, entry):
                    _flatten(folder, entry)
    except OSError as error:
        if error.errno in _CHANGED:
            raise OSError(errno.EBUSY, "something is still changing what should be removed") from error
        raise


def _flatten(parent: int, name: str) -> None:
    """Removes a folder and its files, and moves its folders up: so depth never matters."""
    folder = open_unlocked(parent, name)
    try:
        while entries := names(folder, BATCH):
            for entry in entries:
                if not _unlinked(folder, entry):
                    os.close(_unlock(folder, entry))  # to move a folder one must be able to write to it
                    os.rename(entry, os.urandom(16).hex(), src_dir_fd=folder, dst_dir_fd=parent)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=parent)


def _unlinked(parent: int, name: str) -> bool:
    """Unlinks a name and returns True, or returns False for a folder."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        return False
    return True
