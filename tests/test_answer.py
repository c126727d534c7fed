"""Quotes and direct sentences of passages: where a unit ends, what is a sentence, what a re-ranker cut short leaves."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from conductor.v1 import researcher_pb2

from services.researcher.answer import Asked, Quote, asked, direct, group, quotes
from services.researcher.contradictions import contradictions
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


def of(*words: str, question: str = "") -> Asked:
    return asked(question, [Term(word, stem, 1.0, present=True) for word in words for stem in ANALYZER.stems(word)])


def quoted(uri: str, text: str, *words: str, question: str = "") -> Quote:
    """The best quote of a passage."""
    candidate = Candidate(Document(uri, "", "", len(text), 0), Passage(0, text, (), ()), 1.0)
    (quote,) = quotes([candidate], of(*words, question=question), ANALYZER, Watch(10))
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
    assert direct(quote, of("mechanical", "seal", "hours"), ANALYZER) == "The seal is replaced as follows."


def test_where_there_are_only_rows_the_best_is_told() -> None:
    quote = quoted("docs/a.csv", PEOPLE, "bob", "south")
    assert direct(quote, of("bob"), ANALYZER) == "Bob,Oslo. South,22"


# What is a sentence, and which one answers

PAGE = """\
       tcp_keepalive_probes (integer; default: 9)
              The maximum number of TCP keep-alive probes to send before giving
              up and killing the connection if no response is obtained from the
              other end.
"""
CODE = """\
    def close_every_connection_of_the_pool(self):
        make all of these connections wait for them;
        return jsonify([item.to_json() for item in items])
"""


def test_a_sentence_of_an_indented_page_goes_on_over_its_lines() -> None:
    quote = quoted("docs/tcp.7.txt", PAGE, "killing", "connection", "response", "obtained")
    assert quote.text.startswith("The maximum number") and quote.text.endswith("other end.")
    assert quoted("docs/a.txt", f"  - {PAGE.strip()[45:]}", "up").text.endswith(
        "up and killing the connection if no response is obtained from the\n              other end."
    )
    assert quoted("docs/a.md", CODE, "jsonify").text == "return jsonify([item.to_json() for item in items])"
    short = quoted("docs/a.md", "It takes e.g. a seal. It rains.", "seal", "takes")
    assert direct(short, of("seal", "takes"), ANALYZER) == "It takes e.g. a seal."


def test_where_a_number_is_asked_for_the_sentence_that_gives_it_is_told() -> None:
    text = "The delay sets the time between two health checks of a server. If left unspecified, it is 2000 ms."
    words = "health", "checks", "server", "time"
    how_often = quoted("docs/a.md", text, *words, question="How often are health checks made?")
    assert how_often.text == text
    assert direct(how_often, of(*words, question="How often are health checks made?"), ANALYZER) == text
    assert direct(how_often, of(*words), ANALYZER) == text.partition(" If")[0]
    long = text.replace("server.", f"server{', and of another one' * 10}.")
    assert quoted("docs/a.md", long, *words, question="How often are health checks made?").text == long
    for named in ("See RFC 1122.", "It came with Linux 2.6.", "Table 13.1 lists it.", "This is HTTP/1.1 only."):
        other = f"The delay sets the time between two health checks of a server. {named}"
        quote = Quote(Document("a.md", "", "", 9, 0), 0, len(other), other, (), 1, 1, frozenset())
        assert named not in direct(quote, of(*words, question="How long is it?"), ANALYZER)


def test_a_question_or_a_list_of_names_is_no_answer() -> None:
    text = "How is the seal of the pump replaced? Loosen the four screws of the seal, then pull."
    quote = quoted("docs/a.md", text, "seal", "pump", "replaced")
    assert quote.text == text and direct(quote, of("seal", "pump"), ANALYZER).startswith("Loosen")
    listed, said = "seal, pump, replaced, screws", "The seal of the pump is replaced."
    found = [
        Candidate(Document(name, "", "", 9, 0), Passage(0, each, (), ()), score)
        for name, each, score in (("a.md", listed, 0.7), ("b.md", said, 0.65))
    ]
    best = quotes(found, of("seal", "pump", "replaced"), ANALYZER, Watch(10))
    assert [quote.text for quote in best] == [said, listed] and best[0].score > best[1].score


# Contradictions


@pytest.mark.parametrize(
    ("one", "other", "detail"),
    [
        ("The seal of the pump lasts 16,000 hours.", "The seal of the pump lasts 8,000 hours.", "16000 h or 8000 h"),
        ("The gateway listens on port 80 by default.", "The gateway listens on port 81 by default.", "80 or 81"),
        ("The queue of the pump is kept on disk.", "The queue of the pump is not kept on disk.", "the contrary"),
        ("Set max_age to 5 seconds on the server.", "Set max_age to 9 seconds on the server.", "5 s or 9 s"),
        ("The default of connect_timeout is 30 s there.", "The default of helo_timeout is 300 s there.", ""),
        ("Exit code 1 means that tests failed.", "Exit code 2 means that tests failed to start.", ""),
        ("With Linux 2.4 a pipe holds 4096 bytes.", "With Linux 2.6 a pipe holds 65536 bytes.", ""),
        ("The flag --keep makes it wait 5 seconds.", "The flag --drop makes it wait 9 seconds.", ""),
        ("In version 3 the pool of workers has 4 threads.", "In version 4 the pool of workers has 8 threads.", ""),
    ],
)
def test_what_cannot_both_hold_is_told_and_what_speaks_of_other_things_is_not(
    one: str, other: str, detail: str
) -> None:
    found = contradictions([one, other], ANALYZER)
    assert len(found) == bool(detail)
    assert not found or detail in found[0].detail


@pytest.mark.parametrize(
    ("one", "other", "findings"),
    [
        ("The default body limit of the gateway is 1 MB.", "The default body limit of the gateway is 10 MB.", 2),
        ("The port of the gateway is 80 by default.", "The port of the gateway is 81 by default.", 2),
        ("The pool of workers has 4 threads and 8 queues.", "The pool of workers has 4 threads and 9 queues.", 2),
        ("The queue of the pump is kept on disk there.", "The queue of the pump is not kept on disk there.", 2),
        ("The queue of the pump is kept on disk there.", "There the queue of the pump is kept on a disk.", 1),
        ("The queue of 2 pumps is kept on disk there.", "The queue of two pumps is kept on disk there.", 1),
    ],
)
def test_quotes_that_contradict_each_other_are_no_citations_of_one_finding(one: str, other: str, findings: int) -> None:
    both = [quoted(f"docs/{number}.md", text, *text.split()) for number, text in enumerate((one, other))]
    assert len(group(both, 8, ANALYZER)) == findings


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
