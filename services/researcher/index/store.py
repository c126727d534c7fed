"""The files of one collection's index, below RESEARCHER_HOME/index:

    <source>/catalogue.db       what there is, see catalogue.py
    <source>/words-<number>/    the word index; the catalogue names the one that counts
    .<source>.lock              held by the one who writes

A reader takes a snapshot and never waits. It opens the catalogue first and the word index behind it: that has then all
passages the catalogue speaks of, unless two batches were written in between, and then it looks again.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import tantivy

from services.researcher.index.catalogue import FORMAT, Catalogue, Totals
from services.researcher.index.lexical import Damaged, Reader, open_index
from services.researcher.index.lock import alone
from services.researcher.watch import Watch

ATTEMPTS = 5  # at a snapshot while batches are written


class Absent(Exception):
    """There is no index yet."""


@dataclass(slots=True)
class Snapshot:
    """The index as it stood at one moment. Its catalogue is for one thread at a time: hold `lock`."""

    id: str  # of the index; another one when it was built anew
    catalogue: Catalogue
    words: Reader
    totals: Totals
    lock: threading.Lock

    def close(self) -> None:
        """Lets go of it; twice is once."""
        with self.lock:
            self.catalogue.close()


class Store:
    """Where the index of one source is kept. Thread-safe.

    Args:
        kind: of the source; the index of another kind makes other texts of the same files.
    """

    def __init__(self, home: Path, name: str, kind: int) -> None:
        self.form = f"{FORMAT}/{kind}"
        self.folder = home / "index" / name
        self._lock_file = home / "index" / f".{name}.lock"
        self._state = threading.Lock()
        self._opened: tuple[tuple[str, int], tantivy.Index] | None = None
        self._reader: tuple[tuple[str, int, int], Reader] | None = None

    def snapshot(self) -> Snapshot:
        """Opens the index as it is now. Raises Absent, Damaged."""
        for attempt in range(ATTEMPTS):
            catalogue = self._catalogue()
            try:
                return self._snapshot(catalogue)
            except (Damaged, apsw.Error, _Moved) as error:
                catalogue.close()
                # While it is rebuilt or written fast, what the catalogue spoke of may be gone already.
                if attempt == ATTEMPTS - 1:
                    raise Damaged(str(error)) from None
                time.sleep(0.02 * attempt)
            except BaseException:  # whatever it is, a cancel too: nothing stays open, and it goes on up
                catalogue.close()
                raise
        raise AssertionError("unreachable")

    def whole(self) -> str | None:
        """Returns the id of the index when the last sync of the whole, by whomever, came to its end; None otherwise."""
        with contextlib.suppress(Absent, Damaged, apsw.Error), contextlib.closing(self._catalogue()) as catalogue:
            if catalogue.fact("whole"):
                return str(catalogue.fact("id"))
        return None

    def _snapshot(self, catalogue: Catalogue) -> Snapshot:
        catalogue.db.execute("begin")
        if catalogue.fact("form") != self.form:
            raise Damaged("It is of another version or kind.")
        generation = int(catalogue.fact("generation"))
        totals = catalogue.totals()
        identity = str(catalogue.fact("id")), int(catalogue.fact("words")), generation
        with self._state:
            if self._reader is None or self._reader[0] != identity:
                index = self._index(identity[:2])
                self._reader = identity, Reader(index, totals.passages, totals.dead + int(catalogue.fact("buried")))
                if self._generation() > generation + 1:
                    self._reader = None
                    raise _Moved
            return Snapshot(identity[0], catalogue, self._reader[1], totals, threading.Lock())

    def _index(self, identity: tuple[str, int]) -> tantivy.Index:
        if self._opened is None or self._opened[0] != identity:
            folder = self.words(identity[1])
            if not (folder / "meta.json").exists():
                raise Damaged("The word index is not there.")
            self._opened = identity, open_index(folder)
        return self._opened[1]

    def _generation(self) -> int:
        catalogue = self._catalogue()
        try:
            return int(catalogue.fact("generation"))
        finally:
            catalogue.close()

    def _catalogue(self) -> Catalogue:
        try:
            return Catalogue(self.folder / "catalogue.db", self.form, writes=False)
        except apsw.CantOpenError:
            raise Absent from None
        except apsw.Error as error:
            raise Damaged(str(error)) from None

    def words(self, number: int) -> Path:
        """Returns the folder of a word index."""
        return self.folder / f"words-{number}"

    @contextmanager
    def writing(self, watch: Watch) -> Iterator[None]:
        """Holds the right to write. Raises OutOfTime, Cancelled, OSError."""
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        with alone(self._lock_file, watch):
            self.folder.mkdir(exist_ok=True, mode=0o700)
            yield

    def clear(self) -> None:
        """Removes the index; views that are open go on with what they have. Only while writing."""
        with self._state:
            self._opened = self._reader = None
        gone = self.folder.with_name(f".{self.folder.name}.{os.getpid()}-{time.monotonic_ns()}")
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def size(self) -> int:
        """Returns bytes on disk."""
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    total += (Path(folder) / name).stat().st_size
        return total


class _Moved(Exception):
    """The index was written on while it was opened."""
