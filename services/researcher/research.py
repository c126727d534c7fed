"""The pipeline of one research: list, read, index, rank, quote, check. It stops when it must and says what is missing.

Nothing in a document is ever followed as an order; documents are read, searched and quoted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from conductor.v1 import researcher_pb2

from services.researcher.answer import Quote, group, quotes
from services.researcher.corpus import Corpus
from services.researcher.index import Analyzer, Document, Index, Term
from services.researcher.sources import Found, Kind, Listing, Root, Unreadable, find, gap
from services.researcher.terms import terms_of
from services.researcher.watch import INDEXING_SHARE, READING_SHARE, OutOfTime, Watch

CANDIDATES = 60  # passages looked at closely
MAX_GAPS = 32  # of each kind; the rest is counted in one more
MAX_WORD = 100  # characters of the objective repeated in a gap
STEPS = 4

Say = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked and what it may cost. `max_bytes` counts the files' sizes."""

    objective: str
    sources: tuple[str, ...]
    max_findings: int
    max_documents: int
    max_bytes: int


class Research:
    """Answers questions from the documents below the roots. Thread-safe; each `answer` blocks its thread."""

    def __init__(self, roots: Sequence[Root], corpus: Corpus) -> None:
        self._roots = roots
        self._corpus = corpus

    def answer(self, question: Question, watch: Watch, say: Say) -> researcher_pb2.ResearchResult:
        """Returns findings and gaps; calls `say` with a sentence and a step from 1 to STEPS as it goes.

        Raises SOURCE_REFUSED, NO_SOURCES, and Cancelled.
        """
        return _Run(question, self._roots, self._corpus, watch, say).answer()


class _Run:
    """One research under way."""

    def __init__(self, question: Question, roots: Sequence[Root], corpus: Corpus, watch: Watch, say: Say) -> None:
        self._question = question
        self._roots = roots
        self._corpus = corpus
        self._watch = watch
        self._say = say
        self._analyzer = Analyzer()
        self._result = researcher_pb2.ResearchResult()
        self._gaps: list[researcher_pb2.Gap] = []
        self._spent: set[str] = set()  # budgets that ended the search early

    def answer(self) -> researcher_pb2.ResearchResult:
        try:
            self._search()
        except OutOfTime:
            self._spend("wall_time", "The time was over before the search was complete.")
        if not self._result.findings:
            self._miss(Kind.GAP_KIND_NOT_FOUND, self._question.objective[:MAX_WORD], self._nothing())
        self._result.gaps.extend(_bounded(self._gaps))
        self._result.usage.wall_time.FromMicroseconds(round(self._watch.elapsed() * 1_000_000))
        return self._result

    def _search(self) -> None:
        documents = self._read(self._list())
        index = self._index(documents)
        if not len(index):
            return
        terms = terms_of(self._question.objective, index, self._analyzer)
        if index.complete:
            self._absent(terms)
        self._say(f"Ranking {len(index)} passages for {len(terms)} terms.", 3)
        hits = index.search([term for term in terms if term.present], CANDIDATES)
        ranked = quotes(hits, terms, self._analyzer, self._watch)
        groups = group(ranked, self._question.max_findings)
        self._say(f"Checking {len(groups)} findings against their sources.", STEPS)
        self._verify(groups)

    def _list(self) -> Listing:
        question = self._question
        listing = find(self._roots, question.sources, question.max_documents, self._watch.until(READING_SHARE))
        self._gaps += listing.gaps
        if listing.overfull:
            self._spend(
                "max_documents", f"There are more than {question.max_documents} documents; the rest was left out."
            )
        if not listing.in_time:
            self._spend("wall_time", "The time was over before all folders were listed.")
        return listing

    def _read(self, listing: Listing) -> list[Document]:
        affordable = self._afford(listing.found)
        unread = self._corpus.unread(affordable)
        self._say(f"Reading {len(affordable)} documents, {unread} of them new or changed.", 1)
        reading = self._corpus.load(affordable, self._watch.until(READING_SHARE))
        self._gaps += reading.gaps
        if not reading.in_time:
            self._spend("wall_time", "The time was over before all documents were read.")
        usage = self._result.usage
        usage.documents = len(reading.documents)
        usage.bytes = sum(document.found.size for document in reading.documents)
        return reading.documents

    def _afford(self, found: Iterable[Found]) -> list[Found]:
        """Leaves out the documents that would pass `max_bytes`; smaller ones behind them still fit."""
        kept: list[Found] = []
        left_out, total = 0, 0
        for each in found:
            if total + each.size > self._question.max_bytes:
                left_out += 1
                continue
            total += each.size
            kept.append(each)
        if left_out:
            limit = self._question.max_bytes
            self._spend("max_bytes", f"{left_out} documents did not fit into {limit} bytes and were left out.")
        return kept

    def _index(self, documents: Sequence[Document]) -> Index:
        passages = sum(len(document.passages) for document in documents)
        building = lambda: self._say(f"Indexing {passages} passages.", 2)  # noqa: E731
        index = self._corpus.index(documents, self._watch.until(INDEXING_SHARE), building)
        self._result.usage.passages = len(index)
        if not index.complete:
            self._spend("wall_time", "The time was over before all passages were indexed.")
        return index

    def _absent(self, terms: Iterable[Term]) -> None:
        for term in terms:
            if not term.present:
                count = self._result.usage.documents
                detail = f"The word occurs nowhere in the {count} documents that were searched."
                self._miss(Kind.GAP_KIND_TERM_ABSENT, term.word, detail)

    def _verify(self, groups: Sequence[Sequence[Quote]]) -> None:
        """Reads every source again and keeps only quotes that stand where they are said to stand."""
        texts: dict[str, str | None] = {}
        for quoted in groups:
            citations = [citation for quote in quoted if (citation := self._cite(quote, texts)) is not None]
            if citations:
                statement = " ".join(citations[0].quote.split())
                self._result.findings.add(statement=statement, citations=citations, score=citations[0].score)
        self._result.findings.sort(key=lambda finding: -finding.score)

    def _cite(self, quote: Quote, texts: dict[str, str | None]) -> researcher_pb2.Citation | None:
        uri = quote.document.found.uri
        if uri not in texts:
            texts[uri] = self._reread(quote.document)
        text = texts[uri]
        if text is None or text[quote.start : quote.end] != quote.text:
            return None
        return researcher_pb2.Citation(
            uri=uri,
            title=quote.document.title,
            locator=_locator(text, quote),
            quote=quote.text,
            score=quote.score,
            source_sha256=quote.document.sha256,
        )

    def _reread(self, document: Document) -> str | None:
        try:
            return self._corpus.reread(document, self._watch)
        except Unreadable as problem:
            self._miss(problem.kind, document.found.uri, str(problem))
            return None

    def _nothing(self) -> str:
        if "wall_time" in self._spent:
            return "Nothing that answers the objective was found in the time there was."
        return f"Nothing in the {self._result.usage.documents} documents that were searched answers the objective."

    def _spend(self, budget: str, detail: str) -> None:
        """Notes once for each budget that it ended the search early."""
        if budget not in self._spent:
            self._spent.add(budget)
            self._miss(Kind.GAP_KIND_BUDGET_EXHAUSTED, budget, detail)

    def _miss(self, kind: Kind.ValueType, subject: str, detail: str) -> None:
        self._gaps.append(gap(kind, subject, detail))


def _locator(text: str, quote: Quote) -> researcher_pb2.Locator:
    first = text.count("\n", 0, quote.start) + 1
    return researcher_pb2.Locator(
        line_start=first,
        line_end=first + text.count("\n", quote.start, quote.end),
        char_start=quote.start,
        char_end=quote.end,
        heading_path=quote.path,
    )


def _bounded(gaps: Iterable[researcher_pb2.Gap]) -> Iterable[researcher_pb2.Gap]:
    """Yields the gaps kind by kind, at most MAX_GAPS of each, then one that counts the rest."""
    ordered = sorted(gaps, key=lambda each: each.kind)
    for kind, same in groupby(ordered, key=lambda each: each.kind):
        listed = list(same)
        yield from listed[:MAX_GAPS]
        if len(listed) > MAX_GAPS:
            yield gap(kind, "", f"{len(listed) - MAX_GAPS} more of this kind are not listed.")
