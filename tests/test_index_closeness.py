"""How close together passages say what was asked: against a plain reckoning, and what that must not lose."""

import random
from itertools import pairwise, product

import pytest

from services.researcher.closeness import ABOVE_SHARE, FAR, NEAR_SHARE, WINDOW, WINDOW_SHARE, WORD, closest
from services.researcher.documents import Document, Heading, Passage
from services.researcher.protocol import Candidate, Term
from services.researcher.terms import Analyzer
from services.researcher.watch import Cancelled, Watch

WORDS = ("pump", "pumps", "valve", "hall", "halls", "exit", "status", "x", "_pump", "repump", "\u0130stanbul", "...")
TERMS = [
    Term(word, word, weight, True) for word, weight in (("pump", 3.1), ("hall", 2.2), ("exit", 0.7), ("none", 5.0))
]
EACH = 2.0


def _candidate(number: int, text: str, heading: str, score: float) -> Candidate:
    document = Document(f"docs/{number}", "Title", "00", 1, 1)
    return Candidate(document, Passage(0, text, (Heading(0, 1, 1, heading),), ()), score)


def _places(text: str) -> dict[str, list[tuple[int, int]]]:
    """Returns where the words of each term begin; cut letter by letter."""
    text = text.replace("\u0130", "i").lower()
    found: dict[str, list[tuple[int, int]]] = {}
    start = 0
    for at, letter in enumerate(f"{text} "):
        if not letter.isalnum():
            word = text[start:at]
            for term in TERMS:
                if word in (term.stem, f"{term.stem}s"):
                    found.setdefault(term.stem, []).append((start, len(term.stem)))
            start = at + 1
    return found


def _reckoned(each: Candidate, top: float) -> float:
    weights = {term.stem: EACH + term.weight for term in TERMS}
    inside, above = _places(each.passage.text), _places(f"Title\n{each.passage.above[0].text}")

    def near(places: dict[str, list[tuple[int, int]]]) -> float:
        total = 0.0
        for one, other in pairwise(weights):
            if one in places and other in places:
                gaps = [
                    later[0] - first[0] - first[1] - 1
                    for pair in product(places[one], places[other])
                    for first, later in [sorted(pair)]
                ]
                total += min(weights[one], weights[other]) / (1 + min(FAR, max(0, min(gaps))) / WORD)
        return total

    def window(end: int) -> float:
        total = 0.0
        for stem, weight in weights.items():
            within = any(end - WINDOW < at <= end for at, _ in inside.get(stem, ()))
            total += weight if within else ABOVE_SHARE * weight if stem in above else 0
        return total

    ends = [at for places in inside.values() for at, _ in places]
    widest = max(map(window, [-WINDOW, *ends]))
    close = WINDOW_SHARE * widest + NEAR_SHARE * max(near(inside), ABOVE_SHARE * near(above))
    return (each.score / top + close / sum(weights.values())) / (1 + WINDOW_SHARE + NEAR_SHARE)


@pytest.mark.parametrize("seed", range(20))
def test_as_reckoned_one_by_one(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # texts that are the same each time

    def text(most: int) -> str:
        return "".join(chance.choice(WORDS) + chance.choice(("", " ", "\n", "_", "-", " " * 70)) for _ in range(most))

    found = [
        _candidate(number, text(chance.randrange(40)), text(chance.randrange(4)), 9 * chance.random() + 1)
        for number in range(30)
    ]
    ranked = closest(found, TERMS, Analyzer(), Watch(60))
    top = max(each.score for each in found)
    expected = {each.document.uri: _reckoned(each, top) for each in found}
    assert {each.document.uri: each.score for each in ranked} == pytest.approx(expected)
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)


def test_nothing_runs_over_from_one_passage_into_the_next() -> None:
    parted = [_candidate(number, text, "", 1.0) for number, text in enumerate(("a pu", "mp hall", "pump", "exit"))]
    alone = [closest([each], TERMS, Analyzer(), Watch(60))[0].score for each in parted]
    together = {each.document.uri: each.score for each in closest(parted, TERMS, Analyzer(), Watch(60))}
    assert [together[each.document.uri] for each in parted] == pytest.approx(alone)


def test_of_nothing_and_of_no_terms() -> None:
    assert closest([], TERMS, Analyzer(), Watch(60)) == []
    found = [_candidate(0, "pump", "", 1.0)]
    assert closest(found, [], Analyzer(), Watch(60)) == found
    empty = closest([_candidate(0, "", "", 1.0)], TERMS, Analyzer(), Watch(60))
    assert empty[0].score == pytest.approx(1 / (1 + WINDOW_SHARE + NEAR_SHARE))


def test_who_hangs_up_stops_it() -> None:
    watch = Watch(60)
    watch.cancel()
    with pytest.raises(Cancelled):
        closest([_candidate(0, "pump", "", 1.0)], TERMS, Analyzer(), watch)
