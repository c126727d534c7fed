"""The word index of a collection (tantivy, BM25): which passages hold which words. It keeps no text.

Words are looked up, never parsed. A question's stem is widened to the words that share it, see words.py; each of them
weighs what the stem weighs, so that a rare form is worth no more than a common one.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import tantivy

from services.researcher.index.words import forms, indexed_words
from services.researcher.protocol import Term
from services.researcher.terms import Analyzer, lowered

HEAP_BYTES = 64 * 1024 * 1024  # of the writer
COUNTED = 20_000  # passages up to which it is counted, not estimated, how many hold a stem
ABOVE_WEIGHT = 0.4  # of a word above a passage, against 1 in it
# What further words of a stem add to the best of them. Their full sum would make a passage with `file`, `files` and
# `filed` worth three: the answer was then among the first ten for .53 of the questions, not for .61. What stands
# above counts only where it is more: added, the few words of a heading count for too much.
FURTHER = 0.2
KEPT_STEMS = 10_000  # whose words are remembered

FIELDS = ("words", "above")
_TOKENIZER = "words"


class Damaged(Exception):
    """The files of the word index are not what was written."""


@contextmanager
def noticing_damage() -> Iterator[None]:
    """Turns what tantivy raises into Damaged, but lets a full disk be one (OSError)."""
    try:
        yield
    except (ValueError, OSError) as error:
        if "os error 28" in str(error) or "File too large" in str(error):  # ENOSPC, EFBIG
            raise OSError(str(error)) from None
        raise Damaged(str(error)) from None
    except BaseException as error:  # a panic of the library derives from BaseException, and has no public name
        if type(error).__name__ != "PanicException":
            raise
        raise Damaged(str(error)) from None


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("words", tokenizer_name=_TOKENIZER, index_option="freq")
    builder.add_text_field("above", tokenizer_name=_TOKENIZER, index_option="freq")
    builder.add_unsigned_field("number", fast=True, indexed=True)
    builder.add_unsigned_field("document", indexed=True)
    builder.add_unsigned_field("below", indexed=True)
    builder.add_unsigned_field("same", fast=True, indexed=True)
    return builder.build()


def open_index(folder: Path | None) -> tantivy.Index:
    """Opens or makes the index in a folder, in memory when there is none. Raises Damaged, OSError."""
    with noticing_damage():
        index = tantivy.Index(_schema()) if folder is None else tantivy.Index(_schema(), path=str(folder))
        index.register_tokenizer(_TOKENIZER, indexed_words())
        index.config_reader("manual")
        return index


def number_of(text: str) -> int:
    """Returns the number that stands for a text in the index: a path, or all of a passage."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def places(key: str, member: str) -> list[int]:
    """Returns the numbers of a document and of all that it lies in, below the source."""
    path = f"{key}!/{member}" if member else key
    named = {path[:end] for end, character in enumerate(path) if character == "/"} | {path}
    if member:
        named.add(key)
    return [number_of(each) for each in sorted(named)]


class Match(NamedTuple):
    """A passage that matches. `same` is the number of its text, which passages with the very same text share."""

    score: float
    number: int
    same: int


def best_first(match: Match) -> tuple[float, int]:
    """Returns what hits are ordered by."""
    return -match.score, match.number


class Writer:
    """Adds and removes passages; nothing shows before `commit`. One at a time. Raises Damaged, OSError."""

    def __init__(self, index: tantivy.Index) -> None:
        self._schema = index.schema
        with noticing_damage():
            # One thread: several would order equal scores differently from run to run.
            self._writer = index.writer(heap_size=HEAP_BYTES, num_threads=1)

    def add(self, first: int, title_and_above: Iterable[str], bodies: Iterable[str], below: Sequence[int]) -> None:
        """Adds the passages of one document, which are numbered from `first`."""
        with noticing_damage():
            for number, (above, body) in enumerate(zip(title_and_above, bodies, strict=True), first):
                entry = tantivy.Document()
                entry.add_text("words", lowered(body))
                entry.add_text("above", lowered(above))
                entry.add_unsigned("same", number_of(body))
                entry.add_unsigned("number", number)
                entry.add_unsigned("document", first)
                for folder in below:
                    entry.add_unsigned("below", folder)
                self._writer.add_document(entry)

    def remove(self, documents: Iterable[int]) -> None:
        """Takes out all passages of documents, given the numbers of their first ones."""
        # By a query: deleting by a term takes its number for a signed one, and finds nothing (tantivy-py 0.27).
        if firsts := list(documents):
            self._delete(tantivy.Query.term_set_query(self._schema, "document", firsts))

    def remove_from(self, number: int) -> None:
        """Takes out all passages from a number on: added by one who died before they were in the catalogue."""
        kind = tantivy.FieldType.Unsigned
        self._delete(tantivy.Query.range_query(self._schema, "number", kind, lower_bound=number, upper_bound=None))

    def _delete(self, query: tantivy.Query) -> None:
        with noticing_damage():
            self._writer.delete_documents_by_query(query)

    def commit(self) -> None:
        """Makes what was done last."""
        with noticing_damage():
            self._writer.commit()

    def close(self) -> None:
        """Waits for merges; the writer is of no use behind it."""
        with noticing_damage():
            self._writer.wait_merging_threads()


class Reader:
    """A snapshot of the index. Thread-safe.

    Args:
        index: as opened.
        live: passages that count; the index may hold more that it has not forgotten yet.
        stale: deleted passages that its statistics may still count.
    """

    def __init__(self, index: tantivy.Index, live: int, stale: int = 0) -> None:
        self._index = index
        self._schema = index.schema
        with noticing_damage():
            index.reload()
            self._searcher = index.searcher()
            self.held = int(self._searcher.num_docs)
        self.live = live
        self._stale = stale
        self._analyzer = Analyzer()
        self._forms: dict[str, list[tuple[str, int]]] = {}

    def count(self, stem: str, below: Sequence[int] = ()) -> int:
        """Returns how many passages hold a stem, in their text or above; an estimate for many, 0 is exact."""
        words = self._words(stem)
        largest = max((count for _, count in words), default=0)
        if not words or (largest > self._stale and not below and self.held > COUNTED):
            return self._united(words)
        # All of them may be deleted, or elsewhere: the statistics do not know.
        clauses = [(tantivy.Occur.Should, self._term(field, word)) for word, _ in words for field in FIELDS]
        query = self._within(tantivy.Query.boolean_query(clauses), below, ())
        with noticing_damage():
            return int(self._searcher.search(query, 1, count=True).count)  # type: ignore[attr-defined]  # not in its stub

    def search(
        self, terms: Sequence[Term], below: Sequence[int], limit: int, without: Iterable[int] = ()
    ) -> list[Match]:
        """Returns the passages that match any term, best first.

        Args:
            below: numbers of places, see `number_of`; all when empty.
            without: numbers of the texts of passages that are left out.
        """
        clauses = [clause for term in terms if (clause := self._widened(term.stem)) is not None]
        if not clauses:
            return []
        query = tantivy.Query.boolean_query([(tantivy.Occur.Should, clause) for clause in clauses])
        with noticing_damage():
            hits = self._searcher.search(self._within(query, below, without), limit, count=False).hits
            addresses = [address for _, address in hits]
            numbers = cast(list[int], self._searcher.fast_field_values("number", addresses))
            same = cast(list[int], self._searcher.fast_field_values("same", addresses))
        found = map(Match, (score for score, _ in hits), numbers, same)
        return sorted(found, key=best_first)

    def _within(self, query: tantivy.Query, below: Sequence[int], without: Iterable[int]) -> tantivy.Query:
        clauses = [(tantivy.Occur.MustNot, self._term("same", each)) for each in without]
        if below:
            inside = [(tantivy.Occur.Should, self._term("below", each)) for each in below]
            places = tantivy.Query.const_score_query(tantivy.Query.boolean_query(inside), 0.0)
            clauses.append((tantivy.Occur.Must, places))
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), *clauses]) if clauses else query

    def _widened(self, stem: str) -> tantivy.Query | None:
        """Returns what looks for the words of a stem, within a passage or above it, each weighed as the stem is."""
        words = self._words(stem)
        weight = self._weight(self._united(words))
        within, above = [], []
        for word, count in words:
            share = weight / self._weight(count)
            within.append(tantivy.Query.boost_query(self._term("words", word), share))
            if self._searcher.doc_freq("above", word):
                above.append(tantivy.Query.boost_query(self._term("above", word), ABOVE_WEIGHT * share))
        if not within:
            return None
        inside = tantivy.Query.disjunction_max_query(within, FURTHER)
        return tantivy.Query.disjunction_max_query([inside, *above], 0.0) if above else inside

    def _term(self, field: str, value: str | int) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, value, "freq")

    def _weight(self, count: int) -> float:
        """Returns the inverse document frequency as BM25 has it."""
        return math.log(1 + (max(self.held - count, 0) + 0.5) / (count + 0.5))

    def _united(self, words: Sequence[tuple[str, int]]) -> int:
        """Returns about how many passages hold any of the words, as if each stood where it does by chance."""
        total = max(self.held, 1)
        without = math.prod(1 - min(count / total, 1) for _, count in words)
        return min(round(total * (1 - without)), self.live) if words else 0

    def _words(self, stem: str) -> list[tuple[str, int]]:
        known = self._forms.get(stem)
        if known is None:
            with noticing_damage():
                known = forms(stem, self._analyzer, self._prefixed, self._counted)
            if len(self._forms) < KEPT_STEMS:
                self._forms[stem] = known
        return known

    def _prefixed(self, prefix: str) -> Iterator[tuple[str, int]]:
        for field in FIELDS:
            yield from self._searcher.terms_with_prefix(field, prefix)

    def _counted(self, word: str) -> int:
        frequency = self._searcher.doc_freq
        return max(frequency("words", word), frequency("above", word))
