"""What a folder's files are told apart by. Pure: nothing here opens anything."""

import os
import stat
import time

from services.researcher.documents import Unreadable
from services.researcher.index.origin import Stamp

SETTLED_NS = 50_000_000  # a file changed later than that before it was read may change again and keep its times


def hidden(name: str) -> bool:
    """Says whether a name is a tool's own: it begins with a dot, as `.` and `..` do."""
    return name.startswith(".")


def must_be_file(info: os.stat_result) -> None:
    """Raises Unreadable for what is no regular file."""
    if not stat.S_ISREG(info.st_mode):
        raise Unreadable("It is not a regular file.")


def identity(info: os.stat_result) -> tuple[int, int]:
    """Returns what tells a folder or file from one that took its place."""
    return info.st_dev, info.st_ino


def stamp(info: os.stat_result) -> Stamp:
    """Returns what changes with every change of a file."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def settled(info: os.stat_result) -> Stamp | None:
    """Returns the stamp, None when the file changed so lately that the clock may not tell the next change from it."""
    return None if time.time_ns() - info.st_ctime_ns < SETTLED_NS else stamp(info)


def printable(name: str) -> str:
    """Returns a file name as valid Unicode; bytes that are no UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
