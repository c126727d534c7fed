"""The evaluation set itself: questions are cut out of documents, answers are known, figures are counted right."""

import hashlib
import io
import math
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.research import packages as packaging
from bench.research.corpus import QUESTIONS, UNANSWERABLE, Question, listed
from bench.research.headings import asked, cut, shingles, words
from bench.research.hostile import zipped
from bench.research.packages import Missing, Package, packages
from bench.research.scale import write
from bench.research.scores import Answer, auroc, first, ranked
from services.researcher.closeness import answering, closest
from services.researcher.documents import Document, Heading, Passage
from services.researcher.protocol import Candidate
from services.researcher.terms import Analyzer, lowered, terms_of
from services.researcher.watch import Cancelled, Watch

ANSWER = "Open the inlet valve slowly, wait for two bar on the gauge, then press the green button twice to begin."
DOCUMENTS = {
    "html": f"<ul><li><a href='#a'>How do I start the pump?</a></li></ul><h2>1.2 How do I start <b>the</b> pump?</h2>"
    f"<p>{ANSWER}</p><h2>Appendix</h2><p>Other words.</p>",
    "bold": f"<p><b>(1) How do I start the pump?</b></p><p>{ANSWER}</p>",
    "emphasis": f"<li><em>How do I start the pump</em> ?<p>{ANSWER}</p></li><h3>More</h3>",
    "rst": f"Title\n=====\n\nHow do I start the pump?\n------------------------\n\n{ANSWER}\n\nNext\n----\n\nOther.\n",
    "pod": f"=head1 TITLE\n\n=head2 How do I start the pump? X<pump>\n\n{ANSWER}\n\n=head2 Next\n\nOther words.\n",
    "adoc": f"= Title\n\n== How do I start the pump?\n\n{ANSWER}\n\n== Next\n\nOther words.\n",
    "list": f"How do I start the pump?::\n\t{ANSWER}\n\nNext?::\n\tOther.\n",
    "numbered": "    1.1. How do I start the pump?\n\n"
    f"1.1. How do I start\n     the pump?\n\n{ANSWER}\n\n1.2. Next thing\n\nOther.\n",
}


@pytest.mark.parametrize("style", DOCUMENTS)
def test_a_question_is_found_with_its_answer_and_cut_out_everywhere(style: str) -> None:
    (found,) = asked(DOCUMENTS[style], style)
    assert words(found.question) == ("how", "do", "i", "start", "the", "pump")
    assert found.answer == words(ANSWER)
    left = words(cut(DOCUMENTS[style], style))
    assert "start" not in left
    assert " ".join(words(ANSWER)) in " ".join(left)


def test_what_is_no_question_stays() -> None:
    source = f"Installation of the new pump\n----------------------------\n\n{ANSWER}\n"
    assert list(asked(source, "rst")) == []
    assert cut(source, "rst") == source


def test_a_passage_counts_when_it_holds_a_good_part_of_the_answer() -> None:
    answer = Answer(words(ANSWER * 3))
    assert answer.in_passage(f"Before. {ANSWER} Behind.")
    assert not answer.in_passage("Open the inlet valve slowly, and that is all.")
    assert answer.holds_quote("wait for two bar on the gauge")
    assert not answer.holds_quote("Wait for the bus on the corner of the street.")
    assert first(answer, ["no", "neither", ANSWER]) == 3
    assert first(answer, ["no"] * 10 + [ANSWER]) == 0
    assert not Answer(()).in_passage("") or not Answer(()).holds_quote("")


def test_figures_are_means_over_all_questions() -> None:
    found = ranked([1, 0, 6, 2])
    assert (found.precision, found.recall_5, found.recall_10) == (0.25, 0.5, 0.75)
    assert found.mrr == pytest.approx((1 + 1 / 6 + 1 / 2) / 4)
    assert found.ndcg == pytest.approx((1 + 1 / math.log2(7) + 1 / math.log2(3)) / 4)
    assert ranked([]).recall_10 == 0
    assert auroc([0.9, 0.8], [0.1, 0.8]) == pytest.approx(0.875)


def test_the_lists_are_as_large_as_promised_and_split_in_halves() -> None:
    answerable = [Question(text, name, ()) for name, text in listed(QUESTIONS)]
    unanswerable = listed(UNANSWERABLE)
    assert len({each.text for each in answerable}) == len(answerable) >= 300
    assert len(set(unanswerable)) == len(unanswerable) >= 30
    held_out = sum(each.held_out for each in answerable)
    assert 0.4 < held_out / len(answerable) < 0.6
    inside = {package.name for package in packages() if package.take}
    assert {each.package for each in answerable} <= inside
    assert not {name for name, _ in unanswerable} & inside


def _deb(name: str, data: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:xz") as tar:
        member = tarfile.TarInfo(f"./{name}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    parts = b""
    for part, content in (("debian-binary", b"2.0\n"), ("data.tar.xz", held.getvalue())):
        header = f"{part:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        parts += header + content + b"\n" * (len(content) % 2)
    return b"!<arch>\n" + parts


def test_a_package_is_checked_and_read(tmp_path: Path) -> None:
    deb = _deb("usr/share/doc/pump/faq.txt", b"text")
    package = Package("pump", "1", hashlib.sha256(deb).hexdigest(), "usr/share/doc/pump", ("*.txt",))
    kept = tmp_path / f"pump-{package.sha256[:16]}.deb"
    kept.write_bytes(deb)
    assert list(package.files(tmp_path)) == [("faq.txt", b"text")]
    kept.write_bytes(deb[:-1] + b"x")
    with pytest.raises(Missing, match="not what"):
        list(package.files(tmp_path))
    assert not kept.exists()


def test_a_package_that_is_gone_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "apt-get"
    tool.write_text("#!/bin/sh\necho gone >&2\nexit 100\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(Missing, match=r"apt-get update"):
        list(Package("pump", "1", "0" * 64, "usr", ("*",)).files(tmp_path / "kept"))
    assert packaging.LIST.exists()


def test_what_is_made_is_the_same_each_time(tmp_path: Path) -> None:
    assert zipped({"a": "b" * 1000}) == zipped({"a": "b" * 1000})
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text(" ".join(f"word{n}" for n in range(5000)))
    for name in ("one", "two"):
        assert write(docs, tmp_path / name, 100_000) >= 100_000
    one, two = ([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.txt"))] for name in ("one", "two"))
    assert one == two


def _candidate(uri: str, text: str, score: float = 1.0) -> Candidate:
    return Candidate(Document(uri, uri, "", len(text), 0), Passage(0, text, (), ()), score)


def _closest(question: str, *texts: str) -> list[Candidate]:
    analyzer = Analyzer()
    stems = [set(analyzer.stems(text)) for text in texts]

    def counts(asked: object) -> dict[str, int]:
        return {stem: sum(stem in each for each in stems) for stem in asked}  # type: ignore[attr-defined]

    terms = terms_of(question, counts, len(texts), analyzer)
    return closest([_candidate(str(n), text) for n, text in enumerate(texts)], terms, analyzer, Watch(60))


def test_words_that_stand_together_win_over_words_that_stand_apart() -> None:
    filler = "Nothing of it matters to anybody in the least. " * 12
    apart = f"The exit is over there. {filler} The status is good."
    together = f"{filler} The exit status is good. {filler}"
    found = _closest("What is the exit status?", apart, together)
    assert [each.document.uri for each in found] == ["1", "0"]
    assert found[0].score <= 1
    assert answering(found)


def test_a_passage_with_one_word_of_many_is_no_answer() -> None:
    found = _closest("How does the turbine regulator of Kestrelmoor compensate drift?", "A turbine is loud.", "Other.")
    assert not answering(found)
    assert not answering([])


def test_one_word_that_is_nowhere_does_not_decide_alone() -> None:
    pumps = [f"The cooling pump of hall seven is inspected by shift {number}." for number in range(200)]
    assert answering(_closest("How regularly is the cooling pump of hall seven inspected?", *pumps))


def test_a_passage_below_a_heading_that_says_it_all_is_an_answer() -> None:
    analyzer = Analyzer()
    terms = terms_of("mechanical seal", lambda stems: dict.fromkeys(stems, 1), 10, analyzer)
    seal = Heading(0, 15, 1, "Mechanical seal")
    below = Candidate(Document("a", "Guide", "", 9, 0), Passage(20, "Every 4,000 hours.", (seal,), ()), 1.0)
    assert answering(closest([below], terms, analyzer, Watch(60)))


def test_other_forms_of_a_word_count_and_longer_words_do_not() -> None:
    (best, other) = _closest("hoping for possibilities", "He hopes it is possible.", "Hopscotch on the possum farm.")
    assert best.document.uri == "0"
    assert best.score > other.score + 0.3


def test_a_cancelled_look_ends() -> None:
    analyzer, watch = Analyzer(), Watch(60)
    terms = terms_of("exit status", lambda stems: dict.fromkeys(stems, 1), 1, analyzer)
    watch.cancel()
    with pytest.raises(Cancelled):
        closest([_candidate("a", "exit status")], terms, analyzer, watch)


@given(st.text(max_size=200))
@example("Ⓐb ①")
@example("½ ªº ÀB")
@example("İx")
def test_words_that_were_met_before_have_the_same_stems(text: str) -> None:
    analyzer = Analyzer()
    plain: Callable[[str], object] = analyzer.tokenizer.analyze
    for each in (text, text.encode("latin-1", "ignore").decode("latin-1"), text + " " + "x" * 45):
        expected = list(plain(lowered(each)))  # type: ignore[call-overload]
        assert analyzer.stems(each) == expected
        assert analyzer.stems(each) == expected


def test_a_shingle_is_a_run_of_words() -> None:
    assert len(shingles(words("one two three four five six"))) == 2
    assert shingles(words("one two")) == frozenset()
