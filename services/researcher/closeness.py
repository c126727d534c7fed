"""Passages ordered by how close together they say what was asked, which BM25 does not see.

Three things count: BM25; the share of the terms' weight that stands within one window of the passage, as an answer's
words do; and how near terms stand to each other that were written side by side in the question ("exit status").
`make eval-research` measures each: BM25 alone finds the answer among the first ten for 60 of 100 questions, with the
window 64, with both 66.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from services.researcher.protocol import Candidate, Term
from services.researcher.terms import Analyzer
from services.researcher.watch import Watch

WORD = 6  # characters of a word and the space behind it, about
WINDOW = 60 * WORD
FAR = 10 * WORD  # from which on terms stand for themselves
WINDOW_SHARE = 0.8  # of the window, against 1 for BM25
NEAR_SHARE = 0.8  # of the pairs
ABOVE_SHARE = 0.6  # what a term counts that stands only in the title or the headings above the passage
EACH = 2.0  # that each term weighs beside what its rarity tells, so that one word that is nowhere does not decide alone
# Score from which the best passage answers. 95 of 100 questions of the tuning half that the corpus answers reach it.
ENOUGH = 0.56

Places = Mapping[str, Sequence[int]]  # stem → where words that have it begin, ascending

_REST = re.compile(r"[^\W_]+")


def closest(found: Sequence[Candidate], terms: Sequence[Term], analyzer: Analyzer, watch: Watch) -> list[Candidate]:
    """Returns the candidates with new scores from 0 to 1, best first. Raises OutOfTime, Cancelled."""
    weights = weights_of(terms)
    total = sum(weights.values())
    top = max((each.score for each in found), default=0.0)
    if not total or top <= 0:
        return list(found)
    sought = _Sought(weights, analyzer)
    ranked = []
    for each in found:
        watch.check()
        places = sought.places(each.passage.text)
        above = sought.places("\n".join((each.document.title, *(heading.text for heading in each.passage.above))))
        near = max(_nearness(places, weights), ABOVE_SHARE * _nearness(above, weights))
        close = WINDOW_SHARE * _window(places, weights, above) + NEAR_SHARE * near
        score = (each.score / top + close / total) / (1 + WINDOW_SHARE + NEAR_SHARE)
        ranked.append(Candidate(each.document, each.passage, score))
    return sorted(ranked, key=lambda each: (-each.score, each.document.uri, each.passage.start))


def weights_of(terms: Sequence[Term]) -> dict[str, float]:
    """Returns what each stem counts when it is seen in a passage or not, in the order of the question."""
    return {term.stem: EACH + term.weight for term in terms}


class _Sought:
    """Finds the words that have one of some stems; to cut the whole text into words takes several times as long."""

    def __init__(self, stems: Mapping[str, float], analyzer: Analyzer) -> None:
        self._analyzer = analyzer
        self._stems: dict[str, list[str]] = {}  # of words met before
        self._beginnings = {stem: _beginning(stem) for stem in stems}

    def places(self, text: str) -> Places:
        """Returns where each stem stands, those that do."""
        lower = text.lower()
        found = {}
        for stem, beginning in self._beginnings.items():
            places = []
            at = lower.find(beginning)
            while at >= 0:
                if (not at or not lower[at - 1].isalnum()) and self._is(lower, at, stem):
                    places.append(at)
                at = lower.find(beginning, at + 1)
            if places:
                found[stem] = places
        return found

    def _is(self, lower: str, at: int, stem: str) -> bool:
        match = _REST.match(lower, at)
        if match is None:
            return False
        word = match[0]
        if word not in self._stems:
            self._stems[word] = self._analyzer.stems(word)
        return stem in self._stems[word]


def _beginning(stem: str) -> str:
    """Returns what the words of a stem begin with: `happi` ends for `happy`, `hope` for `hoping`."""
    return stem[:-1] if len(stem) > 2 and stem[-1] in "eily" else stem


def _window(places: Places, weights: Mapping[str, float], above: Places) -> float:
    """Returns the largest weight of terms within WINDOW characters, those above the passage counting in part."""
    ordered = sorted((place, stem) for stem, all_of_it in places.items() for place in all_of_it)
    inside: Counter[str] = Counter()
    best = held = ABOVE_SHARE * sum(weights[stem] for stem in above)
    worth = {stem: weight * (1 - ABOVE_SHARE) if stem in above else weight for stem, weight in weights.items()}
    first = 0
    for place, stem in ordered:
        if not inside[stem]:
            held += worth[stem]
        inside[stem] += 1
        while ordered[first][0] <= place - WINDOW:
            gone = ordered[first][1]
            inside[gone] -= 1
            if not inside[gone]:
                held -= worth[gone]
            first += 1
        best = max(best, held)
    return best


def _nearness(places: Places, weights: Mapping[str, float]) -> float:
    """Returns the weight of neighbours in the question that are near here: the lighter one's, less with distance."""
    near = 0.0
    for one, other in pairwise(weights):
        if one in places and other in places:
            apart = _apart(places[one], places[other], len(one), len(other))
            if apart <= FAR:
                near += min(weights[one], weights[other]) / (1 + apart / WORD)
    return near


def _apart(one: Sequence[int], other: Sequence[int], length: int, other_length: int) -> int:
    """Returns the characters between the two nearest words, given where they begin and how long they are."""
    nearest = FAR + 1
    i = j = 0
    while i < len(one) and j < len(other):
        if one[i] < other[j]:
            nearest = min(nearest, other[j] - one[i] - length)
            i += 1
        else:
            nearest = min(nearest, one[i] - other[j] - other_length)
            j += 1
    return max(nearest - 1, 0)


def answering(found: Sequence[Candidate]) -> bool:
    """Says whether the best of what `closest` returned comes near enough to be an answer."""
    return bool(found) and found[0].score >= ENOUGH
