"""What happens in one research, as it is told to people and kept: events, gaps, and what was spent."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from conductor.v1 import researcher_pb2

from services.researcher.documents import Document, Kind
from services.researcher.protocol import Candidate, Limits, ModelUsage
from services.researcher.watch import Watch

MAX_GAPS = 32  # of each kind; the rest is counted in one more
MAX_READ = 200  # documents told one by one; the rest is in the usage
MAX_JUDGED = 100  # passages told one by one
BEGINNING = 160  # characters of a passage that are shown
USAGE_S = 0.5  # between two events about what was spent
STEPS = 3  # of every research: opening, searching, answering

Event = researcher_pb2.ResearchResponse
Tell = Callable[[Event], None]


class Journal:
    """Takes down one research. Thread-safe; implements protocol.Notes.

    Args:
        watch: of the research; every note looks whether somebody still waits.
        tell: gets each event, in order.
        max_fetches: requests to the web that are allowed.
    """

    def __init__(self, watch: Watch, tell: Tell, max_fetches: int) -> None:
        self._watch = watch
        self._tell = tell
        self._max_fetches = max_fetches
        self._lock = threading.Lock()
        self._gaps: dict[tuple[int, str, str], researcher_pb2.Gap] = {}
        self._step = 0
        self._read = self._judged = self._read_files = self._read_bytes = 0
        self._file = ""
        self._usage_at = 0.0
        self.spent: set[str] = set()  # budgets that ended something early
        self.usage = researcher_pb2.ResearchUsage()

    def begin(self, message: str) -> None:
        """The next of the STEPS begins."""
        self._step += 1
        self.say(message)

    def say(self, message: str) -> None:
        """A short sentence for people. Raises Cancelled."""
        self._watch.still()
        progress = researcher_pb2.ResearchProgress(message=message, step=self._step, total_steps=STEPS)
        self._send(Event(progress=progress))

    def read(self, document: Document) -> None:
        """A document or page was read. Raises Cancelled."""
        self._watch.still()
        with self._lock:
            self._read += 1
            few = self._read <= MAX_READ
            file = document.uri.partition("!/")[0]
            if file != self._file:  # the members of an archive come one after another
                self._file = file
                self._read_files += 1
                self._read_bytes += document.size
        if few:
            read = researcher_pb2.SourceRead(uri=document.uri, title=document.title, bytes=document.size)
            self._send(Event(read=read))
        self.tell_usage()

    def left(self, limits: Limits) -> Limits:
        """Returns what is left of limits after what was read."""
        with self._lock:
            return Limits(
                max_documents=max(0, limits.max_documents - self._read_files),
                max_bytes=max(0, limits.max_bytes - self._read_bytes),
                max_fetches=limits.max_fetches,
            )

    def judge(self, candidate: Candidate, kept: bool, why: str) -> None:
        """A passage became evidence, or was looked at closely and did not."""
        self._judged += 1
        if self._judged <= MAX_JUDGED:
            beginning = " ".join(candidate.passage.text[: 2 * BEGINNING].split())[:BEGINNING]
            judged = researcher_pb2.PassageJudged(uri=candidate.document.uri, beginning=beginning, kept=kept, why=why)
            self._send(Event(judged=judged))

    def miss(self, kind: Kind.ValueType, subject: str, detail: str) -> None:
        """Something is missing from the answer; the same is noted once."""
        with self._lock:
            self._gaps.setdefault((kind, subject, detail), gap(kind, subject, detail))

    def spend(self, budget: str, detail: str) -> None:
        """A budget ended something early; noted once for each budget."""
        with self._lock:
            if budget in self.spent:
                return
            self.spent.add(budget)
        self.miss(Kind.GAP_KIND_BUDGET_EXHAUSTED, budget, detail)

    def fetched(self) -> bool:
        """Counts one request to the web before it is made. False when the budget allows no more."""
        with self._lock:
            if self.usage.fetches >= self._max_fetches:
                return False
            self.usage.fetches += 1
        self.tell_usage()
        return True

    def asked(self, model: str, used: ModelUsage) -> None:
        """Notes what a model cost so far."""
        self.usage.model = model
        self.usage.model_calls = used.calls
        self.usage.model_input_tokens = used.input_tokens
        self.usage.model_output_tokens = used.output_tokens
        self.usage.model_cost_micros = used.cost_micros
        self.tell_usage()

    def tell_usage(self) -> None:
        """Tells what was spent, unless it was told a moment ago."""
        now = time.monotonic()
        with self._lock:
            if now - self._usage_at < USAGE_S:
                return
            self._usage_at = now
            self.usage.wall_time.FromMicroseconds(round(self._watch.elapsed() * 1_000_000))
            event = Event()
            event.usage.CopyFrom(self.usage)
        self._send(event)

    def gaps(self) -> list[researcher_pb2.Gap]:
        """Returns what is missing, kind by kind, at most MAX_GAPS of each and one that counts the rest."""
        with self._lock:
            return list(_bounded(self._gaps.values()))

    def _send(self, event: Event) -> None:
        with self._lock:  # events keep their order
            self._tell(event)


def gap(kind: Kind.ValueType, subject: str, detail: str) -> researcher_pb2.Gap:
    """Builds a gap; file names that are no UTF-8 are made printable."""
    return researcher_pb2.Gap(kind=kind, subject=printable(subject), detail=printable(detail))


def printable(name: str) -> str:
    """Returns a file name as valid Unicode; bytes that are no UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _bounded(gaps: Iterable[researcher_pb2.Gap]) -> Iterator[researcher_pb2.Gap]:
    ordered = sorted(gaps, key=lambda each: each.kind)
    for kind, same in groupby(ordered, key=lambda each: each.kind):
        listed = list(same)
        yield from listed[:MAX_GAPS]
        if len(listed) > MAX_GAPS:
            yield gap(kind, "", f"{len(listed) - MAX_GAPS} more of this kind are not listed.")
