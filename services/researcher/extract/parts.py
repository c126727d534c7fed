"""What parsers hand back, and a page to write it on. Part of the parser process: imports nothing of this project."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

MAX_TITLE = 200  # characters
MAX_MEMBERS = 20_000  # of one file, over all depths
MAX_DEPTH = 3  # archives in archives
MAX_MEMBER_BYTES = 32 * 1024**2  # one member, expanded
MAX_EXPANDED_BYTES = 1024**3  # all of a file
# A member of an archive or part of an Office document may grow this much; text grows 3 to 10 times, tables up to 60.
MAX_RATIO = 200
SMALL_BYTES = 32 * 1024**2  # what may grow as it likes
CPU_S = 10.0  # for one document
CPU_S_PER_BYTE = 2e-6
PARTLY = 0.6  # of a document's CPU time is gone when a reader stops by itself with what it has

Place: TypeAlias = tuple[int, int, str, int, str]  # start, page, sheet, row, cells: as documents.Place


class Broken(Exception):
    """A document cannot be read; the text says why, a sentence. `truncated` when a limit and not the file is why."""

    def __init__(self, detail: str, truncated: bool = False) -> None:
        super().__init__(detail)
        self.truncated = truncated


class Exhausted(Broken):
    """A limit on the whole file: no other member of it is read either."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"{detail} The rest is left out.", truncated=True)


@dataclass(frozen=True, slots=True)
class Part:
    """The text of a document or member."""

    member: str
    text: str
    title: str = ""
    headings: tuple[tuple[int, int, int], ...] = ()  # start, end, level
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Raw:
    """A member whose text is the file itself."""

    member: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a document or member could not be read, or not to its end."""

    member: str
    detail: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """A parser begins with a member: when it dies, this one was why."""

    member: str
    number: int


Item: TypeAlias = Part | Raw | Trouble | Begun
Items: TypeAlias = Iterator[Item]


@dataclass(slots=True)
class Bounds:
    """What is left for one file. `wanted` names the only member to read, None reads all; `after` are read already."""

    packed: int
    wanted: str | None = None
    after: int = 0
    expanded: int = 0
    members: int = 0
    begun: int = 0
    _end: float = field(default=0.0)

    def spend(self, size: int) -> None:
        """Counts expanded bytes. Raises Exhausted when it is a bomb."""
        self.expanded += size
        grown = self.expanded > SMALL_BYTES and self.expanded > MAX_RATIO * self.packed
        if grown or self.expanded > MAX_EXPANDED_BYTES:
            raise Exhausted(f"It expands to more than {MAX_RATIO} times its size, or {MAX_EXPANDED_BYTES:,} bytes.")

    def count(self) -> None:
        """Counts a member. Raises Exhausted when there are too many."""
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise Exhausted(f"It has more than {MAX_MEMBERS:,} members.")

    def wants(self, member: str) -> bool:
        """Returns whether a member, or one inside it, is to be read."""
        return self.wanted is None or self.wanted == member or self.wanted.startswith(f"{member}!/")

    def begin(self) -> bool:
        """Numbers a document; returns whether it is still to be read."""
        self.begun += 1
        return self.begun > self.after

    def clock(self, size: int, base: float = CPU_S, each: float = CPU_S_PER_BYTE) -> None:
        """Gives a document its CPU time from now on: the kernel ends this process (SIGPROF) when it needs more.

        CPU and not wall time, so that a busy machine refuses nothing; the kernel, because C code cannot be stopped.
        """
        allowed = base + size * each
        signal.setitimer(signal.ITIMER_PROF, allowed)
        self._end = time.process_time() + allowed * PARTLY

    def late(self) -> bool:
        """Returns whether a reader should stop by itself."""
        return time.process_time() > self._end


class Page:
    """Collects text with its headings and places."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length = 0
        self.headings: list[tuple[int, int, int]] = []
        self.places: list[Place] = []

    def add(self, text: str) -> None:
        """Appends text as it is."""
        self.pieces.append(text)
        self.length += len(text)

    def heading(self, text: str, level: int) -> None:
        """Appends a line that is a heading; the caller ends it."""
        self.headings.append((self.length, self.length + len(text), level))
        self.add(text)

    def place(self, page: int = 0, sheet: str = "", row: int = 0, cells: str = "") -> None:
        """Says where the file has what is added from now on."""
        self.places.append((self.length, page, sheet, row, cells))

    def part(self, title: str = "") -> Part:
        """Returns all of it."""
        title = " ".join(title.split())[:MAX_TITLE]
        return Part("", "".join(self.pieces), title, tuple(self.headings), tuple(self.places))
