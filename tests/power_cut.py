"""A disk that forgets at a power cut what was not synced: a VFS of SQLite that keeps, beside the real files, what a
real disk would still hold.

What is taken as given: a file's entry in its folder is durable once the file was made, a sector of 512 bytes is written
whole or not at all, and a sync that returned has reached the platter. Everything else may be lost: of the writes since
the last sync of a file any subset survives, in any order, each of them torn at any sector (https://sqlite.org/psow.html
is what SQLite itself assumes).
"""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import apsw

SECTOR_BYTES = 512
NAME = "power-cut"

# A write: where, and what; a truncation: to what size, and None.
Change: TypeAlias = tuple[int, bytes | None]


def luck_of(seed: object) -> random.Random:
    """Returns chance that repeats itself."""
    return random.Random(repr(seed))  # noqa: S311 - no secret is made of it


@dataclass
class Platter:
    """One file: what is synced, and what has changed since, in order."""

    synced: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.changes:
            _apply(self.synced, change)
        self.changes.clear()

    def left(self, luck: random.Random, kept: float) -> bytes:
        """What is left after the cut, when a share `kept` of the unsynced sectors survives."""
        content = bytearray(self.synced)
        for at, data in self.changes:
            if data is None:
                if luck.random() < kept:
                    _apply(content, (at, None))
                continue
            for start, piece in _sectors(at, data):
                if luck.random() < kept:
                    _apply(content, (start, piece))
        return bytes(content)


class Disk(apsw.VFS):
    """The machine's default disk while it is plugged in (see `plugged_in`).

    Args:
        cut_at: number of the write, truncation or sync at which the power fails. What comes later changes nothing.
        luck: decides what survives of that which was not synced.
        kept: the share of it that survives.
        witness: called at the cut, before anything else can be acknowledged.
    """

    def __init__(self, cut_at: int, luck: random.Random, kept: float, witness: Callable[[], None]) -> None:
        super().__init__(NAME, "unix", makedefault=True)
        self.off = False
        self.operations = 0
        self._cut_at, self._luck, self._kept, self._witness = cut_at, luck, kept, witness
        self._lock = threading.RLock()
        self._platters: dict[str, Platter] = {}
        self._left: dict[str, bytes] = {}

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        if name is None:
            return super().xOpen(name, flags)  # a temporary file; nothing of it has to survive
        path = str(name.filename() if isinstance(name, apsw.URIFilename) else name)
        with self._lock:
            if path not in self._platters:
                held = Path(path)
                self._platters[path] = Platter(bytearray(held.read_bytes() if held.exists() else b""))
        return File(self, path, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        with self.step():
            super().xDelete(filename, syncdir)
            self._platters.pop(filename, None)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Counts one operation, and cuts the power before it when its turn has come."""
        with self._lock:
            self.operations += 1
            if self.operations == self._cut_at:
                self.cut()
            yield

    def cut(self) -> None:
        """Cuts the power now, unless it is off already."""
        with self._lock:
            if self.off:
                return
            self.off = True
            self._witness()
            self._left = {path: held.left(self._luck, self._kept) for path, held in self._platters.items()}

    def platter(self, path: str) -> Platter:
        return self._platters[path]

    def leave(self) -> None:
        """Writes what survived over the real files. Nothing may have them open."""
        for path, content in self._left.items():
            Path(path).with_name(f"{Path(path).name}-shm").unlink(missing_ok=True)  # memory: gone with the power
            Path(path).write_bytes(content)


class File(apsw.VFSFile):
    """A real file whose changes are also noted on its platter."""

    def __init__(self, disk: Disk, path: str, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk, self._path = disk, path

    def xWrite(self, data: Any, offset: int) -> None:
        with self._disk.step():
            super().xWrite(data, offset)
            self._disk.platter(self._path).changes.append((offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        with self._disk.step():
            super().xTruncate(newsize)
            self._disk.platter(self._path).changes.append((newsize, None))

    def xSync(self, flags: int) -> None:
        with self._disk.step():
            self._disk.platter(self._path).sync()  # the real file needs none: nobody cuts its power


@contextlib.contextmanager
def plugged_in(disk: Disk) -> Iterator[Disk]:
    """Takes the disk away again afterwards, so that files opened from then on are on the real one."""
    try:
        yield disk
    finally:
        disk.unregister()


def _apply(content: bytearray, change: Change) -> None:
    at, data = change
    if data is None:
        del content[at:]
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


def _sectors(at: int, data: bytes) -> Iterator[Change]:
    start = 0
    while start < len(data):
        end = min(len(data), start + SECTOR_BYTES - (at + start) % SECTOR_BYTES)
        yield at + start, data[start:end]
        start = end
