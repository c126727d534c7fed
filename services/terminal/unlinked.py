"""Disk space of files that no folder names any more, and that processes still hold (proc(5)).

A process can hold such a file by a descriptor, by a mapping, as its executable, or, where it may send messages, by a
descriptor that is on its way through a socket. What cannot be looked at is told, never taken for nothing.
"""
# /proc is read by descriptors and names.
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Callable

from services.terminal import tree

TRIES = 3  # looks at a tree whose processes come and go
MAPS_BYTES = 16 * 1024 * 1024  # of a tree's mappings that are read, some 150,000 mappings
_DELETED = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) \S+ \S+ ([0-9a-f]+:[0-9a-f]+) (\d+) .* \(deleted\)$", re.MULTILINE)
_IN_TRANSIT = re.compile(rb"^scm_fds:\s*[1-9]", re.MULTILINE)  # of a socket's queue; Linux 5.10


class Look:
    """What was seen of a tree."""

    __slots__ = ("_largest", "_mapped", "_sizes", "_unread", "unknown", "vanished")

    def __init__(self, largest: int) -> None:
        self.unknown = False  # a living process hides what it holds, or something is on its way
        self.vanished = False  # a process or a descriptor was gone before it was looked at
        self._largest = largest  # bytes that a file may have; what one counts whose size cannot be seen
        self._sizes: dict[int, int] = {}  # by inode
        self._mapped: set[int] = set()  # inodes
        self._unread = MAPS_BYTES

    @property
    def used_bytes(self) -> int:
        """Returns the disk space of all."""
        return sum(self._sizes.values()) + self._largest * len(self._mapped - self._sizes.keys())

    def take(self, pid: int, device: Device, sockets: bool) -> None:
        """Adds what one process holds."""
        try:
            if thread := tree.living(pid):
                self._descriptors(thread, device, sockets)
                self._mappings(thread, device)
        except (FileNotFoundError, ProcessLookupError):
            self.vanished = True
        except PermissionError:
            # One that is about to end has no memory any more, and what it still holds is root's.
            self.unknown |= tree.has_memory(pid)

    def _descriptors(self, pid: int, device: Device, sockets: bool) -> None:
        for name in ("exe", *(f"fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))):
            try:
                found = os.stat(f"/proc/{pid}/{name}")
            except FileNotFoundError:
                self.vanished = True
                continue
            self._count(found, device)
            if sockets and stat.S_ISSOCK(found.st_mode):
                self.unknown |= bool(_IN_TRANSIT.search(tree.read(f"/proc/{pid}/fdinfo/{name[3:]}")))

    def _count(self, found: os.stat_result, device: Device) -> None:
        if found.st_nlink == 0 and found.st_dev == device.number:
            self._sizes[found.st_ino] = found.st_blocks * 512

    def _mappings(self, pid: int, device: Device) -> None:
        text = tree.read(f"/proc/{pid}/maps", self._unread)
        self._unread -= len(text)
        self.unknown |= self._unread <= 0
        for area, where, inode in _DELETED.findall(text) if b"(deleted)" in text else ():
            if where not in device.names():
                continue
            try:
                self._count(os.stat(f"/proc/{pid}/map_files/{os.fsdecode(area)}"), device)
            except PermissionError:  # only root may; it counts as what it may have grown to
                self._mapped.add(int(inode))


class Device:
    """The device of a workspace."""

    def __init__(self, folder: int) -> None:
        self.number = os.fstat(folder).st_dev
        self._folder = folder
        self._names: set[bytes] = set()

    def names(self) -> set[bytes]:
        """Returns what it may be called in a process's mappings: on some file systems it is not what stat(2) says."""
        if not self._names:
            self._names = {b"%02x:%02x" % (os.major(self.number), os.minor(self.number))}
            with contextlib.suppress(OSError):  # a file system that cannot, or that is full
                self._names |= self._tried()
        return self._names

    def _tried(self) -> set[bytes]:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            inode = os.fstat(fd).st_ino
            os.ftruncate(fd, mmap.PAGESIZE)
            with mmap.mmap(fd, mmap.PAGESIZE):
                found = _DELETED.findall(tree.read("/proc/self/maps"))
        finally:
            os.close(fd)
        return {where for _, where, number in found if int(number) == inode}


def look(processes: Callable[[], list[int]], device: Device, largest: int, sockets: bool) -> tuple[int, bool]:
    """Looks at what a tree holds. Returns (bytes of disk space, whether something could not be seen).

    Args:
        processes: tells the ids of the tree.
        device: of the workspace; files elsewhere do not count.
        largest: bytes that a file counts whose size cannot be seen.
        sockets: whether the tree can send descriptors to itself.

    A tree that comes and goes meanwhile is looked at again; what counts is the most that was seen.
    """
    most, unknown = 0, False
    for _ in range(TRIES):
        seen = Look(largest)
        for pid in processes():
            seen.take(pid, device, sockets)
        most, unknown = max(most, seen.used_bytes), unknown or seen.unknown
        if not seen.vanished:
            break
    return most, unknown
