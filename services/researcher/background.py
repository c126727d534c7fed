"""Keeps watched sources up to date before anybody asks: one at a time, in small pieces, and behind every question."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from conductor.v1 import researcher_pb2

from services.researcher.folder import FolderSource
from services.researcher.watch import Cancelled, OutOfTime, Watch

LOOK_S = 0.5  # between two looks at what changed
QUIET_S = 1.0  # nothing changed for so long: a burst is over
MOST_S = 10.0  # a folder that never is quiet is indexed so often
PIECE_S = 5.0  # of indexing, before another source or process gets its turn
LONGEST_PIECE_S = 600.0  # of one in which nothing came to its end, as with a document that takes long
STINT_S = 0.02  # of work before as long a rest
REST_S = 0.1  # the longest rest
RETRY_S = 30.0  # after a failure
STOP_S = 5.0  # wait for the piece under way to stop

log = logging.getLogger(__name__)


class Gentle(Watch):
    """A watch whose checks take half of the time, and that ends when a question waits.

    The priority of the thread stays: one that is put back by the kernel while it holds the interpreter's lock would
    hold up everybody.
    """

    def __init__(self, wall_time: float, asked: Callable[[], bool]) -> None:
        super().__init__(wall_time)
        self._asked = asked
        self._rested = self.started

    def check(self) -> None:
        """Rests as long as it worked. Raises Cancelled, OutOfTime."""
        super().check()
        if self._asked():
            raise OutOfTime
        worked = time.monotonic() - self._rested
        if worked >= STINT_S:
            self._gone.wait(min(worked, REST_S))
            self._rested = time.monotonic()


class _Told:
    """Takes what an indexing tells."""

    def __init__(self) -> None:
        self._first = self._last = researcher_pb2.IndexProgress()
        self._any = False

    def __call__(self, message: researcher_pb2.IndexSourceResponse) -> None:
        if message.HasField("progress"):
            self._last = message.progress
            self._first, self._any = (self._first if self._any else self._last), True

    def moved(self) -> bool:
        """Says whether it did something; when it told nothing, it waited for another who writes the index."""
        last = self._last
        return not self._any or last.indexed + last.removed > 0 or last.documents > self._first.documents


class Background:
    """A thread that indexes watched sources when they changed. Thread-safe.

    Replicas that share the indexes take turns by the lock of each: who comes second finds nothing left to read. What
    fails is logged, and tried again later.

    Args:
        sources: returns those to be watched, as they are now.
    """

    def __init__(self, sources: Callable[[], Sequence[FolderSource]]) -> None:
        self._sources = sources
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._working: tuple[str, Watch] | None = None  # name of the source being indexed
        self._left_out: set[str] = set()
        self._worked: dict[str, float] = {}  # when last, by the monotonic clock
        self._piece: dict[str, float] = {}  # seconds of the next piece, where they are not PIECE_S
        self._failed: dict[str, tuple[float, str]] = {}  # when, by the monotonic clock, and why

    def start(self) -> None:
        """Begins."""
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops at the next look of the piece under way; what it did until then is kept."""
        self._stop.set()
        self._cancel(None)
        if self._thread is not None:
            self._thread.join(STOP_S)

    @contextlib.contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Leaves a source alone meanwhile."""
        with self._lock:
            self._left_out.add(name)
        self._cancel(name)
        try:
            yield
        finally:
            with self._lock:
                self._left_out.discard(name)

    def _cancel(self, name: str | None) -> None:
        with self._lock:
            if self._working is not None and name in (None, self._working[0]):
                self._working[1].cancel()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                due = [source for source in self._sources() if self._due(source)]
            except OSError as error:  # no descriptors left, or the like
                log.warning("watched sources cannot be looked at: %s", error)
                continue
            if due:
                self._index(min(due, key=lambda source: self._worked.get(source.name, 0.0)))

    def _due(self, source: FolderSource) -> bool:
        if source.name in self._left_out:
            return False
        at, _ = self._failed.get(source.name, (-RETRY_S, ""))
        return time.monotonic() - at >= RETRY_S and not source.asked() and source.due(QUIET_S, MOST_S)

    def _index(self, source: FolderSource) -> None:
        watch = Gentle(self._piece.get(source.name, PIECE_S), source.asked)
        with self._lock:
            if self._stop.is_set() or source.name in self._left_out or source.closed:
                return
            self._working = source.name, watch
        try:
            self._work(source, watch)
        finally:
            with self._lock:
                self._working = None
            self._worked[source.name] = time.monotonic()

    def _work(self, source: FolderSource, watch: Watch) -> None:
        name = source.name
        told = _Told()
        try:
            source.index(watch, told)
        except Cancelled:
            return
        except OutOfTime:
            self._lengthen(name, moved=told.moved() or source.asked())
        except Exception as error:  # a disk, a file system, a library: whatever it is, the other sources go on
            source.problem = str(error) or type(error).__name__
            self._note(name, source.problem)
            return
        else:  # it may have been too short for what an index needs beside its documents
            self._lengthen(name, moved=source.finished())
        source.problem = ""
        if self._failed.pop(name, None):
            log.info("%s is indexed in the background again", name)

    def _lengthen(self, name: str, *, moved: bool) -> None:
        """Gives more time to what came nowhere, and would come nowhere again."""
        if moved:
            self._piece.pop(name, None)
        else:
            self._piece[name] = min(self._piece.get(name, PIECE_S) * 2, LONGEST_PIECE_S)

    def _note(self, name: str, why: str) -> None:
        _, before = self._failed.get(name, (0.0, ""))
        self._failed[name] = time.monotonic(), why
        if why != before:
            log.warning("%s cannot be indexed in the background, which is tried again: %s", name, why)
