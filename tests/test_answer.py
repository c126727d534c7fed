"""Quotes and direct sentences of passages: where a unit ends, what is a sentence, what a re-ranker cut short leaves."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from conductor.v1 import researcher_pb2

from services.researcher.answer import Quote, direct, quotes
from services.researcher.documents import Document, Kind, Original, Passage, SourceKind
from services.researcher.index.lexical import Damaged
from services.researcher.index.memory import MemoryIndex
from services.researcher.journal import Journal
from services.researcher.protocol import Candidate, Inquiry, Limits, ModelBudget, Term, View
from services.researcher.research import Chosen, Question, Tools, answer
from services.researcher.terms import Analyzer
from services.researcher.watch import OutOfTime, Watch
from tests.asking import extracted

ANALYZER = Analyzer()


def asked(*words: str) -> list[Term]:
    return [Term(word, stem, 1.0, present=True) for word in words for stem in ANALYZER.stems(word)]


def quoted(uri: str, text: str, *words: str) -> Quote:
    """The best quote of a passage."""
    candidate = Candidate(Document(uri, "", "", len(text), 0), Passage(0, text, (), ()), 1.0)
    (quote,) = quotes([candidate], asked(*words), ANALYZER, Watch(10))
    assert quote.text == text[quote.start : quote.end]
    return quote


# Rows

PEOPLE = "name,city,phone\nAnn,Rome. North,11\nBob,Oslo. South,22\nCid,Bern. West,33\n"


@pytest.mark.parametrize("uri", ["docs/a.csv", "docs/A.TSV", "docs/all.zip!/inner/a.csv", "docs/a.xlsx"])
def test_a_row_of_a_table_is_a_unit(uri: str) -> None:
    assert quoted(uri, PEOPLE, "bob", "south").text == "Bob,Oslo. South,22"
    assert quoted(uri, PEOPLE.replace("\n", "\r\n"), "bob", "south").text == "Bob,Oslo. South,22"


def test_lines_inside_of_quotes_are_of_one_row() -> None:
    table = 'name,note\nAnn,"first line\nsecond ""line""\nthird"\nBob,none\n'
    assert quoted("docs/a.csv", table, "second").text == 'Ann,"first line\nsecond ""line""\nthird"'
    assert quoted("docs/a.csv", table, "bob").text == "Bob,none"


def test_what_is_no_table_is_cut_at_sentences() -> None:
    assert quoted("docs/a.md", "First it rains. Then the sun\nshines.", "sun").text == "Then the sun\nshines."


def test_a_row_without_end_is_cut() -> None:
    assert len(quoted("docs/a.csv", "head\n" + "word " * 10_000 + "needle", "needle").text.split()) <= 120
    assert quoted("docs/a.csv", '"' * 9_999 + "\nneedle,1", "needle").text


# The direct sentence

TABLE = "The seal is replaced as follows.\n\n| seal | mechanical | hours |\n| seal | mechanical | 16,000 hours |\n"


def test_a_row_is_no_sentence() -> None:
    quote = quoted("docs/a.md", TABLE, "mechanical", "seal", "hours", "replaced")
    assert "16,000" in quote.text or "| seal" in quote.text, "the quote holds rows"
    assert direct(quote, asked("mechanical", "seal", "hours"), ANALYZER) == "The seal is replaced as follows."


def test_where_there_are_only_rows_the_best_is_told() -> None:
    quote = quoted("docs/a.csv", PEOPLE, "bob", "south")
    assert direct(quote, asked("bob"), ANALYZER) == "Bob,Oslo. South,22"


# A whole research over passages at hand

NOTES = {f"a{number}.md": f"The valve of hall {number} is made of brass {number}." for number in range(6)}


class Books:
    """A source of NOTES; what is damaged raises as an index on disk does."""

    name = "books"
    kind = SourceKind.SOURCE_KIND_FOLDER

    def __init__(self, damaged: bool = False) -> None:
        self._damaged = damaged

    def open(self, _inquiry: Inquiry, watch: Watch, _notes: object) -> View:
        index = MemoryIndex()
        for name, text in NOTES.items():
            index.add(Document(name, name, "", len(text), 0), extracted(name, text.encode()), watch)
        view = index.view(lambda uri, _: Original(extracted(uri, NOTES[uri].encode()), ""))
        return _Torn(view) if self._damaged else view

    def choose(self, _question: Question) -> Sequence[Chosen]:
        return [Chosen(self, ())]  # type: ignore[arg-type]  # describe() and original() are not asked for


class _Torn:
    """A view whose word index cannot be read where words are counted."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)

    def counts(self, stems: Sequence[str]) -> Mapping[str, int]:
        raise Damaged("checksum")


class Slow:
    """A re-ranker whose time ends after some texts; the later a text, the better."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.texts: Sequence[str] = ()

    def score(self, _question: str, texts: Sequence[str], _watch: Watch) -> list[float]:
        self.texts = texts
        if not self._most:
            raise OutOfTime
        return [0.5 + number / 100 for number in range(len(texts))][: self._most]


def researched(source: Books, reranker: Slow | None = None) -> researcher_pb2.ResearchResult:
    limits, model = Limits(100, 10**6, 0), ModelBudget(0, 0, 0)
    question = Question("valve made of brass", (), frozenset(), False, False, 6, limits, model)
    watch = Watch(60)
    return answer(question, Tools(source, ANALYZER, reranker, None), watch, Journal(watch, lambda _: None, 0))


def details(result: researcher_pb2.ResearchResult, kind: Kind.ValueType) -> dict[str, str]:
    return {gap.subject: gap.detail for gap in result.gaps if gap.kind == kind}


@pytest.mark.parametrize("most", [0, 1, 3, 5, 6])
def test_a_re_ranker_that_is_cut_short_keeps_what_it_scored(most: int) -> None:
    slow = Slow(most)
    result = researched(Books(), slow)
    before = list(slow.texts)
    assert len(before) == 6
    assert [each.statement for each in result.findings] == [*before[:most][::-1], *before[most:]]
    scores = [each.score for each in result.findings]
    assert scores == sorted(scores, reverse=True)
    spent = details(result, Kind.GAP_KIND_BUDGET_EXHAUSTED)
    assert ("reranking" in spent) == (most < 6)
    assert (f"{most} of 6 passages" in spent.get("reranking", "")) == (most < 6)


def test_a_damaged_index_is_a_gap_and_not_the_end() -> None:
    result = researched(Books(damaged=True))
    assert "damaged" in details(result, Kind.GAP_KIND_UNREADABLE)["books"]
    assert result.outcome == researcher_pb2.RESEARCH_OUTCOME_PARTIAL
    assert not details(result, Kind.GAP_KIND_TERM_ABSENT), "nobody knows what is absent"
    assert result.findings, "what can be read still answers"
