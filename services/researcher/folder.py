"""Finds and opens documents below a folder, and nothing else.

A path is walked one component at a time from an open directory, each step with O_NOFOLLOW and without `..`: the kernel
decides what is below the folder, and no link, whether it stays or leaves, is followed (openat(2)). Comparing path
strings would lose that race.
"""

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath

from conductor.v1 import researcher_pb2

from services.common.errors import Reason, Refusal
from services.researcher.documents import Kind, Original, SourceKind, Unreadable
from services.researcher.extract.reading import Parsers
from services.researcher.files import hidden, identity, must_be_file, printable, settled, stamp
from services.researcher.formats import Documents, Formats
from services.researcher.freshness import Changes
from services.researcher.globs import matcher
from services.researcher.index.collection import Collection
from services.researcher.index.origin import Entry, Missed, Reading
from services.researcher.protocol import Encoder, Inquiry, Notes, View
from services.researcher.watch import Watch

MAX_DEPTH = 32  # folders below the source; each holds one descriptor while it is walked
CHUNK_BYTES = 1024 * 1024

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what became a FIFO since it was looked at must not hold the reader.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that may be read, and the name it has in uris."""

    label: str
    path: Path


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


class FolderSource(Collection):
    """The documents below a folder, with an index.

    Args:
        name: the first part of its uris.
        root: a folder the operator allows; it may itself be a link.
        path: below the root, "" for the root; not followed over links.
        include: patterns of paths that belong to it, all when empty, see globs.py.
        exclude: patterns of paths that do not.
        home: where the index is kept.
        rescan: seconds after which it is walked without a sign of change.
        configured: by the operator, as `describe` says.
        watched: it is to be kept up to date before anybody asks, see background.py.
        formats: which files belong to it, and what is in them; all documents that can be read when absent.
    """

    def __init__(
        self,
        name: str,
        root: Root,
        path: str = "",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        home: Path,
        parsers: Parsers,
        max_file_bytes: int,
        rescan: float,
        encoder: Encoder | None = None,
        kind: SourceKind.ValueType = SourceKind.SOURCE_KIND_FOLDER,
        configured: bool = False,
        watched: bool = False,
        formats: Formats | None = None,
    ) -> None:
        origin = Folder(
            name, root, path, matcher(include, exclude), formats or Documents(parsers), max_file_bytes, rescan
        )
        about = researcher_pb2.Source(
            path=f"{root.label}/{path}" if path else root.label, include=include, exclude=exclude, configured=configured
        )
        super().__init__(name, kind, origin, home, about=about, encoder=encoder)
        self.watched = watched
        self._folder = origin
        self.closed = False
        self.problem = ""  # why the background could not index it
        self._asking = 0
        self._state = threading.Lock()

    def open(self, inquiry: Inquiry, watch: Watch, notes: Notes) -> View:
        """Indexes what is new or changed and returns a view, see Collection. What works in the background gives way."""
        with self._state:
            self._asking += 1
        try:
            return super().open(inquiry, watch, notes)
        finally:
            with self._state:
                self._asking -= 1

    def describe(self) -> researcher_pb2.Source:
        """Returns what the index holds now, and why it stays behind."""
        source = super().describe()
        source.problem = self.problem
        return source

    def asked(self) -> bool:
        """Says whether a research is opening it just now."""
        with self._state:
            return self._asking > 0

    def finished(self) -> bool:
        """Says whether the last pass over all of it, by this process, came to its end."""
        return self._ended > 0

    def due(self, quiet: float, most: float) -> bool:
        """Says whether its index is behind, and the folder has been quiet for so long, or changing for the most."""
        return not self.closed and (not self.finished() or self._folder.due(quiet, most))

    def close(self) -> None:
        """Lets go of what it holds."""
        self.closed = True
        super().close()

    def confirm(self, path: str) -> None:
        """Raises Refusal (SOURCE_REFUSED) when no folder or document stands at a path, "" for the whole of it.

        So it does for all paths when the source itself lies in a folder whose name begins with a dot.
        """
        self._folder.confirm(path)

    def holds(self, path: str) -> bool:
        """Says whether a folder or document stands at a path."""
        try:
            self._folder.confirm(path)
        except Refusal:
            return False
        return True


class Folder:
    """Lists and reads the documents below a folder: an Origin.

    Names that begin with a dot are a tool's own (.git, .venv, editors' swap files) and never belong to it.
    """

    def __init__(
        self,
        name: str,
        root: Root,
        path: str,
        belongs: Callable[[str], bool],
        formats: Formats,
        max_file_bytes: int,
        rescan: float,
    ) -> None:
        self._name = name
        self._root = root
        self._base = PurePosixPath(path).parts
        self._belongs = belongs
        self._formats = formats
        self._max_file_bytes = max_file_bytes
        self._rescan = rescan
        self._changes = Changes()
        self._state = threading.Lock()
        self._walked: tuple[float, tuple[int, int]] | None = None  # when, by the monotonic clock, and which folder

    # What an origin does

    def confirm(self, path: str) -> tuple[str, str]:
        """Returns (key, member) of a path that stands below the folder. Raises Refusal (SOURCE_REFUSED)."""
        self._must_show()
        parts = self._parts(path)
        for end in (len(parts), *(n for n in range(1, len(parts)) if parts[n - 1].endswith("!"))):
            whole = end == len(parts)
            inner = parts if whole else (*parts[: end - 1], parts[end - 1][:-1])
            if self._stands(inner, whole=whole):
                return "/".join(inner), "" if whole else "/".join(parts[end:])
        raise self._refused(path, "it is no folder or document below it; links are not followed")

    def changed(self) -> bool:
        """Says whether anything may have changed since the last whole walk."""
        with self._state:
            walked = self._walked
        if walked is None or time.monotonic() - walked[0] > self._rescan or self._changes.some():
            return True
        return self._replaced(walked[1])

    def due(self, quiet: float, most: float) -> bool:
        """Says whether something changed that is worth a walk now; where changes are not seen, it is after a rescan."""
        with self._state:
            walked = self._walked
        if walked is None:
            return True
        if self._changes.blind():
            return time.monotonic() - walked[0] > self._rescan
        return self._changes.settled(quiet, most) or self._replaced(walked[1])

    def entries(self, below: str, watch: Watch) -> Iterator[Entry | Missed]:
        """Lists the documents at or below a key, in a fixed order. Raises Refusal, OutOfTime, Cancelled."""
        self._must_show()
        parts = tuple(below.split("/")) if below else ()
        began = time.monotonic()
        if not parts:
            with self._state:
                self._walked = None
            self._changes.begin()
        try:
            with self._opened(parts[:-1]) as parent:
                if parts:
                    info = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
                    yield from self._visit(info, parent, parts, watch, watched=False)
                    return
                walked = identity(os.fstat(parent))
                yield from self._walk(parent, (), watch, watched=True)
        except OSError as error:
            if parts:
                return  # it went away since it was confirmed
            text = f"The folder of {self._name} cannot be opened: {error.strerror}. See that {self._path()} exists."
            raise Refusal(Reason.ERROR_REASON_SOURCE_REFUSED, text, source=self._name) from None
        with self._state:
            self._walked = began, walked

    def read(self, key: str, watch: Watch) -> Reading:
        """Reads a document. Raises Unreadable, OutOfTime, Cancelled."""
        data, info = self._bytes(key, watch)
        members = self._formats.documents(printable(key), data, watch)
        return Reading(hashlib.sha256(data).hexdigest(), len(data), settled(info), members)

    def again(self, key: str, member: str, watch: Watch) -> Original:
        """Reads one document again. Raises Unreadable, OutOfTime, Cancelled."""
        if not self._is_document(tuple(key.split("/"))):
            raise Unreadable("It is no document of this source.", lasting=False)
        data, _ = self._bytes(key, watch)
        text = self._formats.document(printable(key), member, data, watch)
        return Original(text, hashlib.sha256(data).hexdigest())

    def close(self) -> None:
        """Lets go of the watches."""
        self._changes.close()

    # Paths

    def _path(self) -> str:
        return "/".join((self._root.label, *self._base))

    def _parts(self, path: str) -> tuple[str, ...]:
        if "\0" in path:
            raise self._refused(path, "it holds a NUL character")
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            raise self._refused(path, "name it relative to the source, without '..'")
        if any(hidden(part) for part in pure.parts):
            raise self._refused(path, "names that begin with a dot do not belong to it")
        return pure.parts

    def _must_show(self) -> None:
        if any(hidden(part) for part in self._base):
            raise self._refused("", f"{self._path()} has a name in it that begins with a dot; take another folder")

    def _refused(self, path: str, why: str) -> Refusal:
        source = f"{self._name}/{path}"
        return Refusal(Reason.ERROR_REASON_SOURCE_REFUSED, f"The source {source!r} is refused: {why}.", source=source)

    def _stands(self, parts: tuple[str, ...], *, whole: bool) -> bool:
        try:
            with self._opened(parts[:-1]) as parent:
                info = os.stat(parts[-1] if parts else ".", dir_fd=parent, follow_symlinks=False)
        except (OSError, ValueError):
            return False
        return (whole and stat.S_ISDIR(info.st_mode)) or (stat.S_ISREG(info.st_mode) and self._is_document(parts))

    def _is_document(self, parts: tuple[str, ...]) -> bool:
        return self._formats.supported(parts[-1]) and self._belongs("/".join(parts))

    @contextmanager
    def _opened(self, parts: Sequence[str]) -> Iterator[int]:
        """Opens a folder below the source, component by component. Raises OSError."""
        # The root itself may be a link: the operator chose it.
        descriptor = os.open(self._root.path, _FOLDER & ~os.O_NOFOLLOW)
        try:
            for part in (*self._base, *parts):
                inner = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _replaced(self, walked: tuple[int, int]) -> bool:
        """Says whether another folder stands where the walked one stood, or none."""
        try:
            with self._opened(()) as folder:
                return walked != identity(os.fstat(folder))
        except OSError:
            return True

    # Walking

    def _walk(self, folder: int, parts: tuple[str, ...], watch: Watch, *, watched: bool) -> Iterator[Entry | Missed]:
        if watched:
            self._changes.add(folder)  # before it is read, so that no change falls between
        with os.scandir(folder) as entries:
            shown = sorted((entry for entry in entries if not hidden(entry.name)), key=attrgetter("name"))
        for entry in shown:
            watch.check()
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # it went away since the folder was read
            yield from self._visit(info, folder, (*parts, entry.name), watch, watched=watched)

    def _visit(
        self, info: os.stat_result, parent: int, parts: tuple[str, ...], watch: Watch, *, watched: bool
    ) -> Iterator[Entry | Missed]:
        key = "/".join(parts)
        if stat.S_ISDIR(info.st_mode):
            yield from self._enter(parent, parts, watch, watched=watched)
        elif not self._is_document(parts):
            return
        elif stat.S_ISREG(info.st_mode):
            yield Entry(key, stamp(info), info.st_size)
        elif stat.S_ISLNK(info.st_mode):
            yield Missed(key, "It is a symbolic link, which is not followed. Put the document itself into the folder.")
        else:
            yield Missed(key, "It is not a regular file.")

    def _enter(self, parent: int, parts: tuple[str, ...], watch: Watch, *, watched: bool) -> Iterator[Entry | Missed]:
        key = "/".join(parts)
        if len(parts) > MAX_DEPTH:
            yield Missed(key, f"It lies more than {MAX_DEPTH} folders deep. Make a folder nearer to it a source.")
            return
        try:
            folder = os.open(parts[-1], _FOLDER, dir_fd=parent)
        except OSError as error:
            yield Missed(key, f"The folder could not be opened: {error.strerror}.")
            return
        try:
            yield from self._walk(folder, parts, watch, watched=watched)
        finally:
            os.close(folder)

    # Reading

    def _bytes(self, key: str, watch: Watch) -> tuple[bytes, os.stat_result]:
        parts = tuple(key.split("/"))
        if any(not part or hidden(part) or "\0" in part for part in (*self._base, *parts)):
            raise Unreadable("It is no document of this source.", lasting=False)
        try:
            with self._opened(parts[:-1]) as parent:
                must_be_file(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False))
                descriptor = os.open(parts[-1], _FILE, dir_fd=parent)
            try:
                info = os.fstat(descriptor)
                must_be_file(info)
                return self._drain(descriptor, info.st_size, watch), info
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Unreadable(f"It could not be opened or read: {error.strerror}.", lasting=False) from None

    def _drain(self, descriptor: int, size: int, watch: Watch) -> bytes:
        chunks: list[bytes] = []
        total = 0
        while max(total, size) <= self._max_file_bytes and (chunk := os.read(descriptor, CHUNK_BYTES)):
            watch.check()
            total += len(chunk)
            chunks.append(chunk)
        if max(total, size) > self._max_file_bytes:
            detail = f"It is larger than {self._max_file_bytes} bytes and was left out."
            raise Unreadable(detail, Kind.GAP_KIND_TRUNCATED)
        return b"".join(chunks)
