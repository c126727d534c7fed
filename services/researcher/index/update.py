"""Writes to an index in batches: each is whole in the catalogue or not there at all, whenever its writer dies.

A batch goes to the word index first. Passages that are there and not in the catalogue were written by one who died in
between: their numbers are the next to be given, and they are taken out before these are given again. What leaves the
catalogue leaves the word index with the batch behind, so that a reader who opens both finds all that counts.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import apsw
import tantivy

from services.researcher.documents import Passage, Text, Unreadable
from services.researcher.index.catalogue import Catalogue
from services.researcher.index.lexical import Damaged, Writer, open_index, places
from services.researcher.index.origin import Reading, Stamp
from services.researcher.index.store import Store
from services.researcher.index.words import above_text
from services.researcher.watch import Cancelled, OutOfTime, Watch

BATCH_CHARS = 32 * 1024 * 1024  # of text in one batch; smaller ones make more segments, which are merged
BATCH_ENTRIES = 20_000
STALE_SHARE = 0.25  # of the passages are deleted ones, from which the word index is built anew for true statistics
STALE_LEAST = 10  # deleted passages before that


class Update:
    """One writer's work on an index; `close` it. Only within `store.writing`.

    Raises Damaged, apsw.Error, and OSError for a full disk; what was flushed before stays.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer: Writer | None = None
        self._dirty = False
        self._chars = self._entries = 0
        self._next = 0
        self._added: list[tuple[int, int]] = []  # spans of passages in this batch
        self._burying: list[tuple[int, int]] = []
        self.catalogue = Catalogue(store.folder / "catalogue.db", store.form, writes=True)
        try:
            if self.catalogue.fact("form") != store.form:
                raise Damaged("It is of another version or kind.")
            self._number = int(self.catalogue.fact("words"))
            self._tidy()
            self._index = self._open()
        except BaseException:  # whatever it is, a cancel too: nothing stays open, and it goes on up
            self.catalogue.close()
            raise

    def _tidy(self) -> None:
        """Removes word indexes that nobody counts on: of one who died while he built one."""
        for folder in self._store.folder.glob("words-*"):
            if folder != self._store.words(self._number):
                shutil.rmtree(folder, ignore_errors=True)

    def _open(self) -> tantivy.Index:
        folder = self._store.words(self._number)
        if not (folder / "meta.json").exists() and self.catalogue.totals().passages:
            raise Damaged("The word index is not there.")
        folder.mkdir(exist_ok=True)
        return open_index(folder)

    def _begin(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self._index)
            self._writer.remove_from(int(self.catalogue.fact("next")))
        if not self._dirty:
            self.catalogue.db.execute("begin immediate")
            self._dirty = True
            self.catalogue.note("whole", 0)  # until who syncs the whole says that all of it is in
            self._next = int(self.catalogue.fact("next"))
            self._burying = self.catalogue.dead()
            self._writer.remove(first for first, _ in self._burying)
        return self._writer

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Adds one entry in place of an older one, or nothing of it when it is interrupted."""
        self._begin()
        start = len(self._added)
        self.catalogue.db.execute("savepoint entry")
        try:
            yield
        except (OutOfTime, Cancelled):
            self.catalogue.db.execute("rollback to entry")
            for first, passages in self._added[start:]:
                self.catalogue.kill(first, passages)
            raise
        finally:
            if self.catalogue.db.in_transaction:
                self.catalogue.db.execute("release entry")

    def touch(self, entry: int, stamp: Stamp | None) -> None:
        """Notes another stamp for the same content."""
        self._begin()
        self.catalogue.touch(entry, stamp)

    def remove(self, entry: int) -> None:
        """Takes an entry out."""
        self._begin()
        self.catalogue.remove(entry)

    def miss(self, below: str, missed: dict[str, str]) -> None:
        """Notes what could not be listed."""
        self._begin()
        self.catalogue.miss(below, missed)

    def add(self, key: str, stamp: Stamp | None, reading: Reading | None, read_ns: int) -> int:
        """Adds an entry without its documents and returns its number."""
        self._begin()
        sha256, size = (reading.sha256, reading.size) if reading is not None else ("", 0)
        self._entries += 1
        return self.catalogue.add(key, stamp, sha256, size, read_ns)

    def add_document(self, entry: int, key: str, member: str, text: Text, passages: Sequence[Passage]) -> None:
        """Adds a document of an entry."""
        writer = self._begin()
        self.catalogue.add_document(entry, member, text.title, self._next, passages)
        above = [above_text(text.title, each.above) for each in passages]
        self._added.append((self._next, len(passages)))
        writer.add(self._next, above, [each.text for each in passages], places(key, member))
        self._next += len(passages)
        self._chars += len(text.text)

    def add_gap(self, entry: int, member: str, gap: Unreadable) -> None:
        """Notes what could not be read of an entry."""
        self._begin()
        self.catalogue.add_gap(entry, member, gap)

    def full(self) -> bool:
        """Says whether the batch is large enough to be written."""
        return self._chars >= BATCH_CHARS or self._entries >= BATCH_ENTRIES

    def flush(self) -> None:
        """Writes the batch."""
        if not self._dirty:
            return
        self._begin().commit()
        self.catalogue.bury(self._burying)
        buried = int(self.catalogue.fact("buried")) + sum(passages for _, passages in self._burying)
        self.catalogue.note("buried", buried)
        self.catalogue.note("next", self._next)
        self.catalogue.note("generation", int(self.catalogue.fact("generation")) + 1)
        self.catalogue.db.execute("commit")
        self._dirty, self._chars, self._entries = False, 0, 0
        self._added.clear()

    def finish(self) -> None:
        """Writes the last batch, and makes the word index forget what it still has to."""
        self.flush()
        if self.catalogue.dead():
            self._begin()
            self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def stale(self) -> bool:
        """Says whether so much was deleted that the statistics lie."""
        buried = int(self.catalogue.fact("buried"))
        return buried >= STALE_LEAST and buried >= STALE_SHARE * self.catalogue.totals().passages

    def rebuild(self, watch: Watch) -> None:
        """Builds the word index anew from the catalogue. Behind `finish`. Raises OutOfTime, Cancelled."""
        number = self._number + 1
        folder = self._store.words(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        writer = Writer(open_index(folder))
        for first, title_and_above, bodies, below in self.catalogue.documents():
            watch.check()
            writer.add(first, title_and_above, bodies, below)
        writer.commit()
        writer.close()
        with self.catalogue.db:
            self.catalogue.bury(self.catalogue.dead())
            self.catalogue.note("buried", 0)
            self.catalogue.note("words", number)
            # Two on, so that who opened the old catalogue looks again.
            self.catalogue.note("generation", int(self.catalogue.fact("generation")) + 2)
        self._number = number
        self._tidy()

    def close(self) -> None:
        """Lets go; what was not flushed is not there."""
        if self._dirty:
            with contextlib.suppress(apsw.Error):  # a full disk may have rolled it back already
                self.catalogue.db.execute("rollback")
        self._writer = None
        self.catalogue.close()
