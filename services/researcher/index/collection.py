"""A source with an index on disk: brought up to date when it is opened, and searched."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import apsw
from conductor.v1 import researcher_pb2

from services.common.errors import Reason, Refusal
from services.researcher.documents import Document, Kind, Original, SourceKind, Unreadable
from services.researcher.index.catalogue import uri_of
from services.researcher.index.lexical import Damaged, number_of
from services.researcher.index.memory import MemoryIndex
from services.researcher.index.origin import Origin
from services.researcher.index.store import Absent, Snapshot, Store
from services.researcher.index.sync import Outcome, Sync
from services.researcher.index.update import Update
from services.researcher.index.vectors import Kept
from services.researcher.index.view import Found, IndexView
from services.researcher.protocol import Encoder, Inquiry, Limits, Notes, View
from services.researcher.watch import OutOfTime, Watch

log = logging.getLogger(__name__)

WAITING_SHARE = 0.4  # of the wall time is over when one stops waiting for another who writes the index
DROP_S = 30.0  # wait for one who writes the index, before it can be removed
NOTED_S = 60.0  # between two notes that an index is up to date though nothing changed
MAX_GAPS = 1_000  # told of one source; the number of the rest is told in one more
REBUILT_AT_ONCE = 50_000  # passages of which the word index is built anew within a research

Told = Callable[[researcher_pb2.IndexSourceResponse], None]


class Collection:
    """Documents of an origin with their index, a source. Thread-safe.

    Args:
        name: the first part of its uris.
        origin: where the documents come from.
        home: indexes are kept in `index` below it.
        about: what `describe` says beside: path, include, exclude, configured.
        encoder: finds by meaning too; None for words only.
    """

    def __init__(
        self,
        name: str,
        kind: SourceKind.ValueType,
        origin: Origin,
        home: Path,
        *,
        about: researcher_pb2.Source | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self._origin = origin
        self._about = about or researcher_pb2.Source()
        self._store = Store(home, name, kind)
        self._kept = None if encoder is None else Kept(self._store.folder, encoder)
        self._turn = threading.Lock()  # held by the thread that syncs
        self._begun = self._ended = 0  # syncs of the whole that began; the newest of them that came to its end
        self._ended_in = ""  # id of the index into which it did
        self._suspect: str | None = None  # id of an index in which a search met damage; "" when it cannot be opened

    # A source

    def open(self, inquiry: Inquiry, watch: Watch, notes: Notes) -> View:
        """Indexes what is new or changed, as far as the time goes, and returns a view of what there is then."""
        paths = [path.strip("/") for path in inquiry.paths]
        named = [] if "" in paths else [self._origin.confirm(path) for path in paths]
        keys = _outermost(key for key, _ in named)
        outcome, snapshot = self._caught_up(keys or [""], inquiry.limits, watch, notes)
        for budget, detail in outcome.spent.items():
            notes.spend(budget, detail)
        if snapshot is None:
            return self._empty()
        with contextlib.ExitStack() as held:
            held.callback(snapshot.close)
            self._tell_gaps(snapshot, keys or [""], notes)
            view = self._view(snapshot, named, notes)
            view.complete = outcome.complete
            held.pop_all()  # the view closes it
        return view

    def original(self, uri: str, watch: Watch) -> Original:
        """Reads a document again. Raises Unreadable."""
        path = uri.removeprefix(f"{self.name}/")
        if path != uri:
            problem: Unreadable | None = None
            for key, member in (*_readings(path), *self._unprintable(uri)):
                try:
                    return self._origin.again(key, member, watch)
                except Unreadable as error:
                    problem = problem or error
            if problem is not None:
                raise problem
        raise Unreadable("It is no document of this source.", lasting=False)

    def describe(self) -> researcher_pb2.Source:
        """Returns what the index holds now."""
        source = researcher_pb2.Source()
        source.CopyFrom(self._about)
        source.name, source.kind = self.name, self.kind
        source.index_bytes = self._store.size()
        with contextlib.suppress(Absent, Damaged), contextlib.closing(self._store.snapshot()) as snapshot:
            totals = snapshot.totals
            source.documents, source.unreadable = totals.documents, totals.unreadable
            source.passages, source.bytes = totals.passages, totals.bytes
            if indexed := snapshot.catalogue.fact("indexed_ns"):
                source.indexed_at.FromNanoseconds(indexed)
        return source

    # An index

    def index(self, watch: Watch, told: Told) -> None:
        """Brings the whole index up to date. Raises Refusal, OutOfTime, Cancelled."""

        def tell(progress: researcher_pb2.IndexProgress) -> None:
            told(researcher_pb2.IndexSourceResponse(progress=progress))

        with watch.holding(self._turn), self._full_disk_refused(), self._store.writing(watch):
            outcome = self._sync([""], None, watch, lambda _, __: None, tell, lambda _: None, thorough=True)
        with contextlib.suppress(Absent, Damaged), contextlib.closing(self._store.snapshot()) as snapshot:
            for key, member, kind, detail in snapshot.catalogue.gaps(""):
                gap = researcher_pb2.Gap(kind=kind, subject=uri_of(self.name, key, member), detail=detail)
                told(researcher_pb2.IndexSourceResponse(gap=gap))
        if not outcome.complete:
            raise OutOfTime

    def drop(self) -> None:
        """Removes the index. Raises Refusal when somebody is writing it for long."""
        watch = Watch(DROP_S)
        try:
            with watch.holding(self._turn), self._store.writing(watch):
                self._store.clear()
                self._ended = 0
        except OutOfTime:
            text = f"The index of {self.name} is being written. Stop that, or try again later."
            raise Refusal(Reason.ERROR_REASON_STORE_UNAVAILABLE, text) from None

    def close(self) -> None:
        """Lets go of what it holds."""
        self._origin.close()

    # How

    def _caught_up(
        self, keys: Sequence[str], limits: Limits, watch: Watch, notes: Notes
    ) -> tuple[Outcome, Snapshot | None]:
        """Brings the index up to date and opens it; once more when it is damaged, gone or another's new one then."""
        for last in (False, True):
            outcome = self._fresh(keys, limits, watch, notes)
            try:
                snapshot = self._store.snapshot()
            except Damaged as error:
                log.warning("the index of %s cannot be opened: %s", self.name, error)
                self._suspect = ""
            except Absent:
                self._ended = 0
            else:
                same = snapshot.id == outcome.index
                if same or last or not outcome.index:
                    outcome.complete = outcome.complete and same
                    return outcome, snapshot
                snapshot.close()
            if not outcome.index:
                break  # nobody may write it now, so that another try ends as this one
        outcome.complete = False
        detail = "Its index cannot be opened, and nothing of it was searched. Ask again; if it stays so, index it anew."
        notes.miss(Kind.GAP_KIND_UNREADABLE, self.name, detail)
        return outcome, None

    def _settled(self, asked: int) -> bool:
        """Says whether the index holds all there is, as far as that is known without a walk; only in one's turn."""
        if not self._ended or self._suspect is not None or self._store.whole() != self._ended_in:
            return False
        return self._ended > asked or not self._origin.changed()

    def _fresh(self, keys: Sequence[str], limits: Limits, watch: Watch, notes: Notes) -> Outcome:
        """Brings the index up to date unless nothing changed since that was done."""
        asked = self._begun
        try:
            with watch.until(WAITING_SHARE).holding(self._turn):
                if self._settled(asked):
                    return Outcome(index=self._ended_in)
                with self._store.writing(watch.until(WAITING_SHARE)):
                    return self._sync(keys, limits, watch, self._listed(notes), lambda _: None, notes.read)
        except OutOfTime:
            outcome = Outcome()
            detail = f"The index of {self.name} was being written by another all the while, and may be behind."
            outcome.spend("wall_time", detail)
            return outcome
        except (OSError, apsw.Error) as error:
            notes.miss(Kind.GAP_KIND_UNREADABLE, self.name, _unwritten(error))
            return Outcome(complete=False)

    def _listed(self, notes: Notes) -> Callable[[int, int], None]:
        return lambda all_, new: notes.say(f"Reading {self.name}: {all_} documents, {new} of them new or changed.")

    def _sync(
        self,
        keys: Sequence[str],
        limits: Limits | None,
        watch: Watch,
        listed: Callable[[int, int], None],
        told: Callable[[researcher_pb2.IndexProgress], None],
        read: Callable[[Document], None],
        *,
        thorough: bool = False,
    ) -> Outcome:
        """Syncs; only while writing. An index that is damaged is built anew."""
        whole = keys == [""]
        self._begun += whole
        if whole:
            self._ended = 0  # what is cut short leaves the index behind, though nothing changes afterwards
        for last in (False, True):
            update = None
            try:
                update = self._update(anew=last)
                outcome = Sync(self.name, self._origin, update, limits, listed, told, read).run(keys, watch)
                outcome.index = str(update.catalogue.fact("id"))
                ended = self._tend(update, watch, outcome, whole, thorough)
            except (Damaged, apsw.CorruptError, apsw.NotADBError) as error:
                if last:
                    raise OSError(f"the index is damaged again and again: {error}") from None
                log.warning("the index of %s cannot be used and is built anew: %s", self.name, error)
            else:
                if ended:
                    self._ended, self._ended_in = self._begun, outcome.index
                return outcome
            finally:
                if update is not None:
                    update.close()
        raise AssertionError("unreachable")

    def _update(self, *, anew: bool) -> Update:
        if anew or (self._suspect is not None and self._spoilt()):
            self._ended = 0
            self._store.clear()
            self._store.folder.mkdir(mode=0o700)
        self._suspect = None
        return Update(self._store)

    def _spoilt(self) -> bool:
        """Says whether the index is damaged still; another may have built it anew since it was suspected."""
        try:
            with contextlib.closing(self._store.snapshot()) as snapshot:
                return snapshot.id == self._suspect
        except Absent:
            return False
        except Damaged:
            return True

    def _tend(self, update: Update, watch: Watch, outcome: Outcome, whole: bool, thorough: bool) -> bool:
        """Does what an index needs beside its documents. Says whether all of the origin is in it then."""
        tended = False
        catalogue = update.catalogue
        now = time.time_ns()
        if whole and outcome.complete and abs(now - int(catalogue.fact("indexed_ns") or 0)) > NOTED_S * 1e9:
            catalogue.note("indexed_ns", now)
        with contextlib.suppress(OutOfTime):
            if update.stale() and (thorough or catalogue.totals().passages <= REBUILT_AT_ONCE):
                update.rebuild(watch)
            if self._kept is not None:
                self._kept.extend(catalogue, watch)
            tended = True
        ended = whole and outcome.complete and tended
        if whole and catalogue.fact("whole") != ended:
            catalogue.note("whole", int(ended))
        return ended

    def _tell_gaps(self, snapshot: Snapshot, keys: Sequence[str], notes: Notes) -> None:
        gaps = [gap for key in keys for gap in snapshot.catalogue.gaps(key)]
        for key, member, kind, detail in gaps[:MAX_GAPS]:
            notes.miss(kind, uri_of(self.name, key, member), detail)
        if len(gaps) > MAX_GAPS:
            notes.miss(Kind.GAP_KIND_UNREADABLE, self.name, f"{len(gaps) - MAX_GAPS} more documents are not listed.")

    def _view(self, snapshot: Snapshot, named: Sequence[tuple[str, str]], notes: Notes) -> IndexView:
        totals = snapshot.totals
        size = totals.documents, totals.passages, totals.bytes
        named_by = {f"{key}!/{member}" if member else key: (key, member) for key, member in named}
        paths = _outermost(named_by)
        if paths:
            scopes = [snapshot.catalogue.scope(*named_by[path]) for path in paths]
            size = sum(s[0] for s in scopes), sum(s[1] for s in scopes), sum(s[2] for s in scopes)

        def fetch(numbers: Sequence[int]) -> Found:
            with snapshot.lock:
                return snapshot.catalogue.passages(numbers, self.name)

        def damage(error: Exception) -> None:
            self._suspect = snapshot.id
            log.warning("the index of %s is damaged: %s", self.name, error)
            detail = "Its index is damaged. It is built anew at the next research."
            notes.miss(Kind.GAP_KIND_UNREADABLE, self.name, detail)

        return IndexView(
            snapshot.words,
            fetch,
            size,
            self.original,
            below=[number_of(path) for path in paths],
            inside=_inside([uri_of(self.name, path, "") for path in paths]),
            meaning=None if self._kept is None else self._kept.opened(),
            damage=damage,
            close=snapshot.close,
        )

    def _empty(self) -> View:
        view = MemoryIndex().view(self.original)
        view.complete = False
        return view

    def _unprintable(self, uri: str) -> list[tuple[str, str]]:
        """Looks up a uri that does not give back the name of its file."""
        if "\N{REPLACEMENT CHARACTER}" not in uri:
            return []
        with contextlib.suppress(Absent, Damaged, apsw.Error):
            snapshot = self._store.snapshot()
            try:
                found = snapshot.catalogue.key_of(uri, self.name)
                return [found] if found is not None else []
            finally:
                snapshot.close()
        return []

    @contextlib.contextmanager
    def _full_disk_refused(self) -> Iterator[None]:
        try:
            yield
        except (OSError, apsw.Error) as error:
            raise Refusal(Reason.ERROR_REASON_STORE_UNAVAILABLE, f"{self.name}: {_unwritten(error)}") from None


def _unwritten(error: Exception) -> str:
    """Returns what is told when an index cannot be written."""
    return (
        f"Its index could not be written ({error}); what was indexed before is searched. "
        "Make space, and see that RESEARCHER_HOME can be written to."
    )


def _readings(path: str) -> Iterator[tuple[str, str]]:
    """Yields what a path below a source may mean: a document, or a member of what comes before a `!/`."""
    yield path, ""
    position = path.find("!/")
    while position >= 0:
        yield path[:position], path[position + 2 :]
        position = path.find("!/", position + 1)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Leaves out paths that lie below others."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith((f"{outer}/", f"{outer}!/")) for outer in kept):
            kept.append(path)
    return kept


def _inside(uris: Sequence[str]) -> Callable[[Document], bool]:
    beginnings = tuple(uri + end for uri in uris for end in ("/", "!/"))
    return lambda document: not uris or document.uri in uris or document.uri.startswith(beginnings)
