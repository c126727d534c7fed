"""Brings an index up to date with its origin: what is new or changed is read, what is gone is taken out."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from conductor.v1 import researcher_pb2

from services.researcher.documents import Document, Unreadable
from services.researcher.index.catalogue import Known, uri_of
from services.researcher.index.origin import Entry, Missed, Origin, Reading, Stamp
from services.researcher.index.update import Update
from services.researcher.passages import split
from services.researcher.protocol import Limits
from services.researcher.watch import Cancelled, OutOfTime, Watch

TOLD_S = 0.2  # between two messages of progress
UNFINISHED: Stamp = ()  # of an entry that could not be read to its end for a reason that may pass; no file has it

Told = Callable[[researcher_pb2.IndexProgress], None]
Read = Callable[[Document], None]


@dataclass(slots=True)
class Outcome:
    """How a sync went. `spent` names the budgets that ended it early, with what was left out.

    `index` is the id of the index it brought up to date, "" when none was.
    """

    complete: bool = True
    index: str = ""
    progress: researcher_pb2.IndexProgress = field(default_factory=researcher_pb2.IndexProgress)
    spent: dict[str, str] = field(default_factory=dict)

    def spend(self, budget: str, detail: str) -> None:
        """Notes that a budget ended it early."""
        self.complete = False
        self.spent.setdefault(budget, detail)


class Sync:
    """One pass over an origin, or over what is at or below some of its keys.

    Args:
        source: name of the source, for uris.
        limits: what may be read anew; None for all.
        listed: called with (entries, those new or changed) when all is listed.
        told: gets progress now and then.
        read: gets every document that was read.
    """

    def __init__(
        self,
        source: str,
        origin: Origin,
        update: Update,
        limits: Limits | None,
        listed: Callable[[int, int], None],
        told: Told,
        read: Read,
    ) -> None:
        self._source = source
        self._origin = origin
        self._update = update
        self._limits = limits
        self._listed = listed
        self._told = told
        self._read = read
        self._told_at = 0.0
        self.outcome = Outcome()

    def run(self, below: Iterable[str], watch: Watch) -> Outcome:
        """Syncs; what it could do in time is written. Raises Cancelled, Refusal, Damaged, apsw.Error, OSError."""
        try:
            self._run(below, watch)
        except OutOfTime:
            self.outcome.spend("wall_time", f"The time was over before all of {self._source} was indexed.")
        except Cancelled:
            self._update.finish()
            raise
        self._update.finish()
        self._tell(0)
        return self.outcome

    def _run(self, below: Iterable[str], watch: Watch) -> None:
        plan: list[tuple[Entry, Known | None]] = []
        listed = 0
        for key in below:
            known = self._update.catalogue.known(key)
            seen, missed = set(), {}
            for entry in self._origin.entries(key, watch):
                if isinstance(entry, Missed):
                    missed[entry.key] = entry.detail
                    continue
                listed += 1
                seen.add(entry.key)
                was = known.get(entry.key)
                if was is None or was.stamp is None or was.stamp != entry.stamp:
                    plan.append((entry, was))
            self._gone(known, seen)
            if missed != self._update.catalogue.missed(key):
                self._update.miss(key, missed)
        self._listed(listed, len(plan))
        self.outcome.progress.total_documents = listed
        self.outcome.progress.documents = listed - len(plan)
        for entry, was in self._afford(plan):
            watch.check()
            self._one(entry, was, watch)
            self.outcome.progress.documents += 1
            self._tell(TOLD_S)
            if self._update.full():
                self._update.flush()

    def _gone(self, known: Mapping[str, Known], seen: set[str]) -> None:
        for key, entry in known.items():
            if key not in seen:
                self._update.remove(entry.id)
                self.outcome.progress.removed += 1

    def _afford(self, plan: list[tuple[Entry, Known | None]]) -> Iterable[tuple[Entry, Known | None]]:
        """Leaves out what would pass a limit; smaller entries behind one that is too large still fit."""
        if self._limits is None:
            return plan
        kept: list[tuple[Entry, Known | None]] = []
        total = left_out = 0
        for entry, was in plan:
            if len(kept) >= self._limits.max_documents:
                rest = len(plan) - len(kept) - left_out
                detail = f"{rest} new or changed documents of {self._source} are more than may be read at once."
                self.outcome.spend("max_documents", detail)
                break
            if total + entry.size > self._limits.max_bytes:
                left_out += 1
                continue
            total += entry.size
            kept.append((entry, was))
        if left_out:
            detail = f"{left_out} documents of {self._source} did not fit into {self._limits.max_bytes} bytes."
            self.outcome.spend("max_bytes", detail)
        return kept

    def _one(self, entry: Entry, was: Known | None, watch: Watch) -> None:
        read_ns = time.time_ns()
        try:
            reading = self._origin.read(entry.key, watch)
        except Unreadable as problem:
            self._failed(entry, was, problem, read_ns)
            return
        if was is not None and was.sha256 == reading.sha256 and was.stamp != UNFINISHED:
            self._update.touch(was.id, reading.stamp)
            return
        with self._update.entry():
            if was is not None:
                self._update.remove(was.id)
            documents = self._add(entry.key, reading, read_ns, watch)
        self.outcome.progress.indexed += documents > 0
        self.outcome.progress.bytes += reading.size

    def _add(self, key: str, reading: Reading, read_ns: int, watch: Watch) -> int:
        documents, lasting = 0, True
        number = self._update.add(key, reading.stamp, reading, read_ns)
        try:
            for member, text in reading.members:
                watch.check()
                if isinstance(text, Unreadable):
                    lasting &= text.lasting
                    self._update.add_gap(number, member, text)
                    continue
                self._update.add_document(number, key, member, text, tuple(split(text, watch)))
                uri = uri_of(self._source, key, member)
                self._read(Document(uri, text.title, reading.sha256, reading.size, read_ns))
                documents += 1
        except Unreadable as problem:
            lasting &= problem.lasting
            self._update.add_gap(number, "", problem)
        if not lasting:
            self._update.touch(number, UNFINISHED)
        return documents

    def _failed(self, entry: Entry, was: Known | None, problem: Unreadable, read_ns: int) -> None:
        if was is not None and self._update.catalogue.failed_so(was.id, problem):
            return
        with self._update.entry():
            if was is not None:
                self._update.remove(was.id)
            number = self._update.add(entry.key, entry.stamp if problem.lasting else None, None, read_ns)
            self._update.add_gap(number, "", problem)

    def _tell(self, least_s: float) -> None:
        now = time.monotonic()
        if now - self._told_at >= least_s:
            self._told_at = now
            progress = researcher_pb2.IndexProgress()
            progress.CopyFrom(self.outcome.progress)
            self._told(progress)
