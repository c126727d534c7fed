"""Passages → a searchable index in memory (tantivy, BM25, English stems). Built once, never changed, shared by threads.

A changed document means a new index, at about 0.06 s for each megabyte of text: statistics are then exact and equal
corpora give equal answers, which an index with deletions in it does not promise.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import tantivy

from services.researcher.extract import Heading
from services.researcher.passages import Passage
from services.researcher.sources import Found
from services.researcher.watch import OutOfTime, Watch

HEAP_BYTES = 64 * 1024 * 1024  # of the writer while an index is built
HEADING_WEIGHT = 0.4  # of a term in the headings above a passage, against 1 in its text
MAX_TERM = 40  # characters; the en_stem tokenizer drops longer ones too


@dataclass(frozen=True, slots=True)
class Document:
    """A document that was read: where it stands, what it held then, and its passages."""

    found: Found
    sha256: str
    title: str
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """A word of the objective as it was written, its stem, and how much it tells (inverse document frequency)."""

    word: str
    stem: str
    weight: float
    present: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that matches, with its BM25 score."""

    document: Document
    passage: Passage
    score: float


@dataclass(slots=True)
class Analyzer:
    """Cuts text into stems exactly as the index does."""

    _words: tantivy.TextAnalyzer = field(
        default_factory=lambda: (
            tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.remove_long(MAX_TERM)).build()
        )
    )
    _stems: tantivy.TextAnalyzer = field(
        default_factory=lambda: (
            tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
            .filter(tantivy.Filter.remove_long(MAX_TERM))
            .filter(tantivy.Filter.lowercase())
            .filter(tantivy.Filter.stemmer("english"))
            .build()
        )
    )

    def words(self, text: str) -> list[str]:
        """Returns the words as they are written."""
        return list(self._words.analyze(text))

    def stems(self, text: str) -> list[str]:
        """Returns the stem of every word."""
        return list(self._stems.analyze(text))


def headings_text(document: Document, above: Iterable[Heading]) -> str:
    """Returns what stands above a place: the document's title and the headings."""
    return "\n".join((document.title, *(heading.text for heading in above)))


class Index:
    """The passages of some documents. `complete` is false when time ran out while it was built."""

    def __init__(self, documents: Iterable[Document], watch: Watch) -> None:
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("body", tokenizer_name="en_stem", index_option="freq")
        builder.add_text_field("headings", tokenizer_name="en_stem", index_option="freq")
        builder.add_unsigned_field("number", fast=True)
        self._schema = builder.build()
        self._index = tantivy.Index(self._schema)
        self._places: list[tuple[Document, Passage]] = []
        self.documents = 0
        self.complete = True
        self._build(documents, watch)
        self._searcher = self._index.searcher()

    def __len__(self) -> int:
        return len(self._places)

    def _build(self, documents: Iterable[Document], watch: Watch) -> None:
        # One thread: several would order equal scores differently from run to run.
        writer = self._index.writer(heap_size=HEAP_BYTES, num_threads=1)
        try:
            for document in documents:
                for passage in document.passages:
                    watch.check()
                    writer.add_document(self._entry(document, passage))
                    self._places.append((document, passage))
                self.documents += 1
        except OutOfTime:
            self.complete = False
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()

    def _entry(self, document: Document, passage: Passage) -> tantivy.Document:
        entry = tantivy.Document()
        entry.add_text("body", passage.text)
        entry.add_text("headings", headings_text(document, passage.above))
        entry.add_unsigned("number", len(self._places))
        return entry

    def weigh(self, word: str, stem: str) -> Term:
        """Returns the term with its weight, ln(1 + (N - n + 0.5) / (n + 0.5)) as in BM25: n of N passages hold it."""
        count = max(self._searcher.doc_freq("body", stem), self._searcher.doc_freq("headings", stem))
        return Term(word, stem, math.log(1 + (len(self) - count + 0.5) / (count + 0.5)), count > 0)

    def search(self, terms: Sequence[Term], limit: int) -> list[Hit]:
        """Returns the passages that match any term, best first. Terms are looked up as they are, never parsed."""
        clauses = []
        for term in terms:
            body = tantivy.Query.term_query(self._schema, "body", term.stem, "freq")
            heading = tantivy.Query.term_query(self._schema, "headings", term.stem, "freq")
            clauses.append((tantivy.Occur.Should, body))
            clauses.append((tantivy.Occur.Should, tantivy.Query.boost_query(heading, HEADING_WEIGHT)))
        if not clauses:
            return []
        hits = self._searcher.search(tantivy.Query.boolean_query(clauses), limit, count=False).hits
        numbers = cast(list[int], self._searcher.fast_field_values("number", [address for _, address in hits]))
        ranked = sorted((-score, number) for (score, _), number in zip(hits, numbers, strict=True))
        return [Hit(*self._places[number], -negative) for negative, number in ranked]
