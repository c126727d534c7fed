"""Finds and opens documents below the allowed roots, and nothing else.

A path is walked one component at a time from an open directory, each step with O_NOFOLLOW and without `..`: the kernel
decides what is below a root, and no link, whether it stays or leaves, is followed (openat(2)). Comparing path strings
would lose that race.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from conductor.v1 import researcher_pb2

from services.common.errors import Reason, Refusal
from services.researcher.watch import OutOfTime, Watch

SUFFIXES = frozenset({".md", ".markdown", ".txt", ".rst", ".html", ".htm"})
MAX_DEPTH = 32  # folders below a root; each holds one descriptor while it is walked
CHUNK_BYTES = 1024 * 1024

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what became a FIFO since it was looked at must not hold the reader.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Stamp: TypeAlias = tuple[int, int, int, int, int]  # device, inode, size, mtime_ns, ctime_ns: changes when the file does
Kind = researcher_pb2.GapKind


class Unreadable(Exception):
    """A document cannot be evidence. `kind` is the gap it becomes; the text is the gap's detail.

    `lasting` is true when trying again is of no use before the document changes.
    """

    def __init__(self, detail: str, kind: Kind.ValueType = Kind.GAP_KIND_UNREADABLE, *, lasting: bool = True) -> None:
        super().__init__(detail)
        self.kind = kind
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that may be read, and the name it has in uris."""

    label: str
    path: Path


@dataclass(frozen=True, slots=True)
class Found:
    """A document below a root, as it stood when it was listed."""

    root: Root
    parts: tuple[str, ...]
    stamp: Stamp

    @property
    def uri(self) -> str:
        """Returns the root's label and the path below it, joined by '/'."""
        return printable("/".join((self.root.label, *self.parts)))

    @property
    def name(self) -> str:
        """Returns the file's own name."""
        return printable(self.parts[-1])

    @property
    def size(self) -> int:
        """Returns bytes."""
        return self.stamp[2]


@dataclass(slots=True)
class Listing:
    """What a walk found so far. `in_time` is false when time ended it, `overfull` true when the limit did."""

    limit: int
    found: list[Found] = field(default_factory=list)
    gaps: list[researcher_pb2.Gap] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)
    in_time: bool = True
    overfull: bool = False

    def add(self, found: Found) -> None:
        """Keeps a document once, however many sources or roots lead to it."""
        identity = found.stamp[:2]
        if identity in self.seen:
            return
        if len(self.found) >= self.limit:
            self.overfull = True
            raise _Full
        self.seen.add(identity)
        self.found.append(found)

    def miss(self, root: Root, parts: tuple[str, ...], detail: str) -> None:
        """Notes what could not be listed."""
        self.gaps.append(gap(Kind.GAP_KIND_UNREADABLE, "/".join((root.label, *parts)), detail))


class _Full(Exception):
    """The listing holds as many documents as the budget allows."""


def gap(kind: Kind.ValueType, subject: str, detail: str) -> researcher_pb2.Gap:
    """Builds a gap; file names that are no UTF-8 are made printable."""
    return researcher_pb2.Gap(kind=kind, subject=printable(subject), detail=printable(detail))


def printable(name: str) -> str:
    """Returns a file name as valid Unicode; bytes that are no UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def stamp_of(info: os.stat_result) -> Stamp:
    """Returns what tells one state of a file from the next."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def label_roots(paths: Sequence[Path]) -> tuple[Root, ...]:
    """Names each root by its last component; a repeated name gets `-2`, `-3` and so on."""
    roots: dict[str, Root] = {}
    for path in dict.fromkeys(paths):
        base = path.name or "root"
        label, number = base, 1
        while label in roots:
            number += 1
            label = f"{base}-{number}"
        roots[label] = Root(label, path)
    return tuple(roots.values())


def find(roots: Sequence[Root], sources: Sequence[str], limit: int, watch: Watch) -> Listing:
    """Lists the documents of the sources, of every root when there are none, in a fixed order.

    Names that begin with a dot are passed over unless a source names them. Raises NO_SOURCES when no root can be
    opened and SOURCE_REFUSED, metadata `source`, for a source that is not a folder or document below a root.
    """
    listing = Listing(limit)
    live = [root for root in roots if _opens(root)]
    if not live:
        text = "No document folder is configured, or none can be opened. Set RESEARCHER_ROOTS to existing folders."
        raise Refusal(Reason.ERROR_REASON_NO_SOURCES, text)
    places = [_resolve(live, source) for source in sources] or [(root, ()) for root in live]
    for root in roots:
        if root not in live and not sources:
            listing.miss(root, (), "This root does not exist or is not a folder that can be opened.")
    try:
        for root, parts in places:
            _list(root, parts, listing, watch)
    except _Full:
        pass
    except OutOfTime:
        listing.in_time = False
    return listing


def read(root: Root, parts: tuple[str, ...], limit: int, watch: Watch) -> tuple[bytes, Stamp]:
    """Returns a document's bytes and the stamp it had. Raises Unreadable when it cannot be read or passes `limit`."""
    try:
        with _folder(root, parts[:-1]) as parent:
            _must_be_file(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False))
            descriptor = os.open(parts[-1], _FILE, dir_fd=parent)
        try:
            info = os.fstat(descriptor)
            _must_be_file(info)
            return _drain(descriptor, limit, watch), stamp_of(info)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unreadable(f"It could not be opened or read: {error.strerror}.", lasting=False) from None


def _must_be_file(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise Unreadable("It is not a regular file.")


def _drain(descriptor: int, limit: int, watch: Watch) -> bytes:
    chunks: list[bytes] = []
    total = 0
    while chunk := os.read(descriptor, CHUNK_BYTES):
        watch.check()
        total += len(chunk)
        if total > limit:
            raise Unreadable(f"It is larger than {limit} bytes and was left out.", Kind.GAP_KIND_TRUNCATED)
        chunks.append(chunk)
    return b"".join(chunks)


@contextmanager
def _folder(root: Root, parts: Sequence[str]) -> Iterator[int]:
    """Opens a folder below the root, component by component. Raises OSError."""
    # The root itself may be a link: the operator chose it.
    descriptor = os.open(root.path, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in parts:
            inner = os.open(part, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _opens(root: Root) -> bool:
    try:
        with _folder(root, ()):
            return True
    except OSError:
        return False


def _resolve(roots: Sequence[Root], source: str) -> tuple[Root, tuple[str, ...]]:
    """Finds the place a source names: below the root whose label comes first, else below each root in order."""
    parts = _parts(source)
    named = [(root, parts[1:]) for root in roots if parts and root.label == parts[0]]
    for root, rest in (*named, *((root, parts) for root in roots)):
        if _stands(root, rest):
            return root, rest
    raise _refused(source, "it is no folder or document below a configured root; links are not followed")


def _parts(source: str) -> tuple[str, ...]:
    if "\0" in source:
        raise _refused(source, "it holds a NUL character")
    path = PurePosixPath(source)
    if path.is_absolute() or ".." in path.parts:
        raise _refused(source, "name it relative to a root, without '..'")
    return path.parts


def _refused(source: str, why: str) -> Refusal:
    return Refusal(Reason.ERROR_REASON_SOURCE_REFUSED, f"The source {source!r} is refused: {why}.", source=source)


def _stands(root: Root, parts: tuple[str, ...]) -> bool:
    if not parts:
        return True
    try:
        with _folder(root, parts[:-1]) as parent:
            info = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) or (stat.S_ISREG(info.st_mode) and _is_document(parts[-1]))


def _is_document(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _list(root: Root, parts: tuple[str, ...], listing: Listing, watch: Watch) -> None:
    """Lists one place, a folder or a document. What changed since it was resolved becomes a gap."""
    try:
        with _folder(root, parts[:-1]) as parent:
            if not parts:
                _walk(parent, root, (), listing, watch)
                return
            _visit(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False), parent, root, parts, listing, watch)
    except OSError as error:
        listing.miss(root, parts, f"It could not be opened: {error.strerror}.")


def _walk(folder: int, root: Root, parts: tuple[str, ...], listing: Listing, watch: Watch) -> None:
    with os.scandir(folder) as entries:
        # A name with a dot in front is a tool's own: .git, .venv, editors' swap files.
        shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=attrgetter("name"))
    for entry in shown:
        watch.check()
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # it went away since the folder was read
        _visit(info, folder, root, (*parts, entry.name), listing, watch)


def _visit(
    info: os.stat_result, parent: int, root: Root, parts: tuple[str, ...], listing: Listing, watch: Watch
) -> None:
    if stat.S_ISDIR(info.st_mode):
        _enter(parent, root, parts, listing, watch)
    elif not _is_document(parts[-1]):
        return
    elif stat.S_ISREG(info.st_mode):
        listing.add(Found(root, parts, stamp_of(info)))
    elif stat.S_ISLNK(info.st_mode):
        listing.miss(
            root, parts, "It is a symbolic link, which is not followed. Put the document itself below the root."
        )
    else:
        listing.miss(root, parts, "It is not a regular file.")


def _enter(parent: int, root: Root, parts: tuple[str, ...], listing: Listing, watch: Watch) -> None:
    if len(parts) > MAX_DEPTH:
        listing.miss(root, parts, f"It lies more than {MAX_DEPTH} folders deep. Make a folder nearer to it a root.")
        return
    try:
        folder = os.open(parts[-1], _FOLDER, dir_fd=parent)
    except OSError as error:
        listing.miss(root, parts, f"The folder could not be opened: {error.strerror}.")
        return
    try:
        _walk(folder, root, parts, listing, watch)
    finally:
        os.close(folder)
