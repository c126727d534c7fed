"""Which passages are found: the Researcher's own index and ordering, against plain SQLite full text."""

import re
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.research.corpus import Question
from bench.research.scores import Answer, Ranked, first, ranked
from services.researcher.closeness import closest
from services.researcher.documents import Document, Kind
from services.researcher.extract.parsers import Parsers
from services.researcher.folder import FolderSource, Root
from services.researcher.protocol import Encoder, Inquiry, Limits, Reranker, View
from services.researcher.research import CANDIDATES, RERANKED
from services.researcher.terms import Analyzer, terms_of
from services.researcher.watch import Watch

NAME = "eval"
LONG_S = 7200.0  # seconds; nothing here is to end early
MAX_FILE_BYTES = 64 * 1024 * 1024
LIMITS = Limits(max_documents=1_000_000, max_bytes=1 << 40, max_fetches=0)
MIB = 1024 * 1024

Search = Callable[[str], Sequence[str]]  # a question → the texts of the best passages


class Silent:
    """Notes that nobody reads; keeps what was missed."""

    def __init__(self) -> None:
        self.missed: list[tuple[str, str]] = []

    def say(self, message: str) -> None: ...

    def read(self, document: Document) -> None: ...

    def miss(self, kind: Kind.ValueType, subject: str, detail: str) -> None:
        """Keeps it."""
        self.missed.append((subject, detail))

    def spend(self, budget: str, detail: str) -> None: ...

    def fetched(self) -> bool:
        """No web here."""
        return False


@dataclass(frozen=True, slots=True)
class Indexed:
    """An index that was just built, and what that took."""

    view: View
    catalogue: Path
    cpu: float  # seconds, parsers included
    wall: float  # seconds
    bytes: int  # of the index on disk
    missed: Sequence[tuple[str, str]]  # (document, why) of what could not be read


@dataclass(frozen=True, slots=True)
class Found:
    """How well a system finds, and what a question costs."""

    name: str
    quality: Ranked
    p50: float  # CPU seconds of a question
    p99: float


def cpu() -> float:
    """Returns CPU seconds of this process and of its children that ended."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def indexed(folder: Path, home: Path, encoder: Encoder | None = None) -> Iterator[Indexed]:
    """Indexes a folder as the service does, from nothing."""
    began, wall, watch, notes = cpu(), time.perf_counter(), Watch(LONG_S), Silent()
    parsers = Parsers()
    source = FolderSource(
        NAME,
        Root(NAME, folder),
        home=home,
        parsers=parsers,
        max_file_bytes=MAX_FILE_BYTES,
        rescan=LONG_S,
        encoder=encoder,
    )
    try:
        view = source.open(Inquiry("", (), (), LIMITS), watch, notes)
        parsers.close()  # its processes have ended, so their time counts
        took = cpu() - began, time.perf_counter() - wall
        size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        (catalogue,) = home.rglob("catalogue.db")
        yield Indexed(view, catalogue, *took, size, notes.missed)
        view.close()
    finally:
        parsers.close()
        source.close()


def passages(catalogue: Path) -> list[str]:
    """Returns the passages of an index, so that others can be measured on the very same."""
    with sqlite3.connect(f"file:{catalogue}?mode=ro", uri=True) as db:
        return [text for (text,) in db.execute("select text from passages order by id")]


def full_text(texts: Sequence[str]) -> Search:
    """Returns the baseline: SQLite FTS5, unicode61, the question's words joined by OR, BM25."""
    db = sqlite3.connect(":memory:")
    db.execute("create virtual table passages using fts5(text, tokenize='unicode61')")
    db.executemany("insert into passages values (?)", ((text,) for text in texts))

    def search(question: str) -> Sequence[str]:
        words = dict.fromkeys(re.findall(r"\w+", question.lower()))
        query = " OR ".join(f'"{word}"' for word in words)
        rows = db.execute("select text from passages where passages match ? order by rank, rowid limit 10", (query,))
        return [text for (text,) in rows]

    return search


def words_only(view: View) -> Search:
    """Returns the index alone, without a closer look."""
    analyzer, watch = Analyzer(), Watch(LONG_S)

    def search(question: str) -> Sequence[str]:
        terms = terms_of(question, view.counts, view.passages, analyzer)
        present = [term for term in terms if term.present]
        return [each.passage.text for each in view.search(question, present, CANDIDATES, watch)]

    return search


def as_served(view: View, reranker: Reranker | None = None) -> Search:
    """Returns what research.py does with a view until it makes quotes."""
    analyzer, watch = Analyzer(), Watch(LONG_S)

    def search(question: str) -> Sequence[str]:
        terms = terms_of(question, view.counts, view.passages, analyzer)
        present = [term for term in terms if term.present]
        found = closest(view.search(question, present, CANDIDATES, watch), terms, analyzer, watch)
        texts = [each.passage.text for each in found[:RERANKED]]
        if reranker is None or not texts:
            return [each.passage.text for each in found]
        scores = reranker.score(question, texts, watch)
        return [text for _, text in sorted(zip(scores, texts, strict=True), key=lambda each: -each[0])]

    return search


def measure(name: str, search: Search, questions: Sequence[Question]) -> Found:
    """Asks all questions."""
    ranks, took = [], []
    for question in questions:
        began = time.process_time()
        texts = search(question.text)
        took.append(time.process_time() - began)
        ranks.append(first(Answer(question.answer), texts))
    took.sort()
    return Found(name, ranked(ranks), quantile(took, 0.5), quantile(took, 0.99))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns a quantile of ascending figures; 0 of none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0
