"""Passages ordered by how close together they say what was asked, which BM25 does not see.

Three things count: BM25; the share of the terms' weight that stands within one window of the passage, as an answer's
words do; and how near terms stand to each other that were written side by side in the question ("exit status").
`make eval-research` measures each: BM25 alone finds the answer among the first ten for 61 of 100 questions, with the
window 64, with both 66.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from services.researcher.protocol import Candidate, Term
from services.researcher.terms import Analyzer
from services.researcher.watch import Watch

WINDOW = 60  # words
FAR = 10  # words apart, from which on terms stand for themselves
WINDOW_SHARE = 0.8  # of the window, against 1 for BM25
NEAR_SHARE = 0.8  # of the pairs
# Score from which the best passage answers. 95 of 100 questions of the tuning half that the corpus answers reach it.
ENOUGH = 0.55

Places = Mapping[str, Sequence[int]]  # stem → the numbers of the words that have it, ascending


def closest(found: Sequence[Candidate], terms: Sequence[Term], analyzer: Analyzer, watch: Watch) -> list[Candidate]:
    """Returns the candidates with new scores from 0 to 1, best first. Raises OutOfTime, Cancelled."""
    weights = {term.stem: term.weight for term in terms}
    total = sum(weights.values())
    top = max((each.score for each in found), default=0.0)
    if not total or top <= 0:
        return list(found)
    pairs = [pair for pair in pairwise(weights) if pair[0] != pair[1]]
    ranked = []
    for each in found:
        watch.check()
        places = _places(analyzer.stems(each.passage.text), weights)
        close = WINDOW_SHARE * _window(places, weights) + NEAR_SHARE * _nearness(places, pairs, weights)
        score = (each.score / top + close / total) / (1 + WINDOW_SHARE + NEAR_SHARE)
        ranked.append(Candidate(each.document, each.passage, score))
    return sorted(ranked, key=lambda each: (-each.score, each.document.uri, each.passage.start))


def _places(stems: Sequence[str], weights: Mapping[str, float]) -> Places:
    places: dict[str, list[int]] = {}
    for place, stem in enumerate(stems):
        if stem in weights:
            places.setdefault(stem, []).append(place)
    return places


def _window(places: Places, weights: Mapping[str, float]) -> float:
    """Returns the largest weight of terms within WINDOW words."""
    ordered = sorted((place, stem) for stem, all_of_it in places.items() for place in all_of_it)
    inside: Counter[str] = Counter()
    best = held = 0.0
    first = 0
    for place, stem in ordered:
        if not inside[stem]:
            held += weights[stem]
        inside[stem] += 1
        while ordered[first][0] <= place - WINDOW:
            gone = ordered[first][1]
            inside[gone] -= 1
            if not inside[gone]:
                held -= weights[gone]
            first += 1
        best = max(best, held)
    return best


def _nearness(places: Places, pairs: Sequence[tuple[str, str]], weights: Mapping[str, float]) -> float:
    """Returns the weight of neighbours in the question that are near here: the lighter one's, by their distance."""
    near = 0.0
    for one, other in pairs:
        if one in places and other in places:
            apart = _apart(places[one], places[other])
            if apart <= FAR:
                near += min(weights[one], weights[other]) / apart
    return near


def _apart(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns the distance of the two nearest places, both ascending."""
    nearest = abs(one[0] - other[0])
    i = j = 0
    while i < len(one) and j < len(other):
        nearest = min(nearest, abs(one[i] - other[j]))
        if one[i] < other[j]:
            i += 1
        else:
            j += 1
    return max(nearest, 1)


def answering(found: Sequence[Candidate]) -> bool:
    """Says whether the best of what `closest` returned comes near enough to be an answer."""
    return bool(found) and found[0].score >= ENOUGH
