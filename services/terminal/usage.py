"""What a workspace holds, measured by the supervisor while the command writes to it.

What lies in it was made by a hostile program: folders nested deeper than any stack, names of any bytes, modes that
lock out. Nothing here recurses, follows a link, or keeps more than DEPTH files open.
"""

from __future__ import annotations

import os
import stat

from services.terminal import folders

DEPTH = 100  # folders below each other that are looked at


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


def measure(work: int, enough: int) -> Usage:
    """Looks at all entries below a folder while others change it; stops after `enough` entries and one more."""
    usage = Usage()
    levels: list[tuple[int, list[str]]] = []
    try:
        _enter(os.dup(work), levels, enough)
        while levels and usage.entries <= enough:
            fd, names = levels[-1]
            if names:
                _look(names.pop(), levels, usage, enough)
            else:
                os.close(levels.pop()[0])
    finally:
        for fd, _ in levels:
            os.close(fd)
    return usage


def _enter(fd: int, levels: list[tuple[int, list[str]]], enough: int) -> None:
    levels.append((fd, []))
    levels[-1][1].extend(folders.names(fd, enough + 1))


def _look(name: str, levels: list[tuple[int, list[str]]], usage: Usage, enough: int) -> None:
    fd = levels[-1][0]
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        usage.count(found)
        if not stat.S_ISDIR(found.st_mode):
            return
        if len(levels) == DEPTH:
            usage.unknown = True
            return
        _enter(os.open(name, folders.FOLDER, dir_fd=fd), levels, enough)
    except (FileNotFoundError, NotADirectoryError):
        pass  # changed meanwhile; the next look sees it
    except OSError:
        usage.unknown = True  # locked, or made to be unreadable
