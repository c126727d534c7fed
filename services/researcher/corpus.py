"""Keeps what was read and indexed between calls; reads again only what changed.

A document is read again when its device, inode, size, mtime or ctime differ from what was read. An index belongs to one
exact set of documents. Calls with the same set share it; a call that must build one makes others wait their turn.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from conductor.v1 import researcher_pb2

from services.researcher.extract import extract, reread
from services.researcher.html import HtmlParser
from services.researcher.index import Document, Index
from services.researcher.passages import split
from services.researcher.sources import Found, Stamp, Unreadable, gap, read
from services.researcher.watch import OutOfTime, Watch

MAX_INDEXES = 4  # sets of documents whose index is kept
KEPT_BYTES_FACTOR = 2  # documents are kept up to this many times the largest corpus

Place: TypeAlias = tuple[str, tuple[str, ...]]  # label of the root, path below it


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that could not be read, kept so that it is not tried again before it changes."""

    found: Found
    gap: researcher_pb2.Gap


Entry: TypeAlias = Document | Failure


@dataclass(slots=True)
class Reading:
    """What was read of a listing. `in_time` is false when the time was over before the end."""

    documents: list[Document] = field(default_factory=list)
    gaps: list[researcher_pb2.Gap] = field(default_factory=list)
    in_time: bool = True


class Corpus:
    """Documents and indexes in memory, shared by all calls. Thread-safe.

    Args:
        html: parses HTML in its own process.
        max_file_bytes: a larger document is left out with a gap.
        max_bytes: the largest corpus of one call; bounds what is kept.
    """

    def __init__(self, html: HtmlParser, max_file_bytes: int, max_bytes: int) -> None:
        self._html = html
        self._max_file_bytes = max_file_bytes
        self._keep_bytes = max_bytes * KEPT_BYTES_FACTOR
        self._kept_bytes = 0
        self._entries: OrderedDict[Place, Entry] = OrderedDict()
        self._indexes: OrderedDict[tuple[tuple[Place, Stamp], ...], Index] = OrderedDict()
        self._state = threading.Lock()  # held for moments, to touch the two caches
        self._build = threading.Lock()  # held while reading and indexing

    def unread(self, found: Sequence[Found]) -> int:
        """Returns how many documents would have to be read."""
        with self._state:
            return sum(self._known(each) is None for each in found)

    def load(self, found: Sequence[Found], watch: Watch) -> Reading:
        """Reads the documents that are not known as they stand now."""
        reading = Reading()
        try:
            for each in found:
                watch.check()
                entry = self._entry(each, watch)
                if isinstance(entry, Failure):
                    reading.gaps.append(entry.gap)
                else:
                    reading.documents.append(entry)
        except OutOfTime:
            reading.in_time = False
        return reading

    def index(self, documents: Sequence[Document], watch: Watch, building: Callable[[], None]) -> Index:
        """Returns the index of exactly these documents; calls `building` first when it has to be built."""
        key = tuple((_place(each.found), each.found.stamp) for each in documents)
        if (index := self._cached(key)) is None:
            with watch.holding(self._build):
                if (index := self._cached(key)) is None:
                    building()
                    index = Index(documents, watch)
                    self._cache(key, index)
        return index

    def reread(self, document: Document, watch: Watch) -> str:
        """Reads the text of a document from its file once more. Raises Unreadable when it is not what it was."""
        found = document.found
        data, _ = read(found.root, found.parts, self._max_file_bytes, watch)
        if hashlib.sha256(data).hexdigest() != document.sha256:
            self.forget(document)
            raise Unreadable("It changed while the answer was being made. Ask again.")
        return reread(found.name, data, self._html, watch)

    def forget(self, document: Document) -> None:
        """Makes the next call read the document again."""
        with self._state:
            self._drop(_place(document.found))

    def _entry(self, found: Found, watch: Watch) -> Entry:
        with self._state:
            known = self._known(found)
        if known is not None:
            return known
        with watch.holding(self._build):
            with self._state:
                known = self._known(found)
            return known or self._read(found, watch)

    def _known(self, found: Found) -> Entry | None:
        entry = self._entries.get(_place(found))
        if entry is None or entry.found.stamp != found.stamp:
            return None
        self._entries.move_to_end(_place(found))
        return entry

    def _read(self, found: Found, watch: Watch) -> Entry:
        try:
            data, stamp = read(found.root, found.parts, self._max_file_bytes, watch)
            text = extract(found.name, data, self._html, watch)
        except Unreadable as problem:
            failure = Failure(found, gap(problem.kind, found.uri, str(problem)))
            return self._keep(failure) if problem.lasting else failure
        passages = tuple(split(text, watch))
        as_read = Found(found.root, found.parts, stamp)
        return self._keep(Document(as_read, hashlib.sha256(data).hexdigest(), text.title, passages))

    def _keep(self, entry: Entry) -> Entry:
        with self._state:
            self._drop(_place(entry.found))
            self._entries[_place(entry.found)] = entry
            self._kept_bytes += entry.found.size
            while self._kept_bytes > self._keep_bytes and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))
        return entry

    def _drop(self, place: Place) -> None:
        entry = self._entries.pop(place, None)
        self._kept_bytes -= entry.found.size if entry is not None else 0

    def _cached(self, key: tuple[tuple[Place, Stamp], ...]) -> Index | None:
        with self._state:
            if key not in self._indexes:
                return None
            self._indexes.move_to_end(key)
            return self._indexes[key]

    def _cache(self, key: tuple[tuple[Place, Stamp], ...], index: Index) -> None:
        if not index.complete:
            return
        with self._state:
            self._indexes[key] = index
            while len(self._indexes) > MAX_INDEXES:
                self._indexes.popitem(last=False)


def _place(found: Found) -> Place:
    return found.root.label, found.parts
