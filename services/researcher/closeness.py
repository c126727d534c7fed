"""Passages ordered by how close together they say what was asked, which BM25 does not see.

Three things count: BM25; the share of the terms' weight that stands within one window of the passage, as an answer's
words do; and how near terms stand to each other that were written side by side in the question ("exit status").
`make eval-research` measures each: BM25 alone finds the answer among the first ten for 60 of 100 questions, with the
window 64, with both 66.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

from services.researcher.index.words import above_text
from services.researcher.protocol import Candidate, Term
from services.researcher.terms import Analyzer, lowered
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

Event = tuple[int, int]  # (where a word begins, which of the question's stems it has, from 0)
Above = tuple[Sequence[int], float]  # what stands above a passage: which stems, and how near each other

_REST = re.compile(r"[^\W_]+")
_NOWHERE = -1_000_000  # further away than any two words that are looked at together


def closest(found: Sequence[Candidate], terms: Sequence[Term], analyzer: Analyzer, watch: Watch) -> list[Candidate]:
    """Returns the candidates with new scores from 0 to 1, best first. Raises OutOfTime, Cancelled."""
    weights = weights_of(terms)
    total = sum(weights.values())
    top = max((each.score for each in found), default=0.0)
    if not total or top <= 0:
        return list(found)
    watch.check()
    over = [above_text(each.document.title, each.passage.above) for each in found]
    distinct = list(dict.fromkeys(over))  # passages of a document share what stands above
    events = _events([*(each.passage.text for each in found), *distinct], weights, analyzer)
    watch.check()
    measure = _Measure(weights)
    above = dict(zip(distinct, map(measure.above, events[len(found) :]), strict=True))
    ranked = []
    for each, text, inside in zip(found, over, events, strict=False):
        score = (each.score / top + measure.close(inside, above[text]) / total) / (1 + WINDOW_SHARE + NEAR_SHARE)
        ranked.append(Candidate(each.document, each.passage, score))
    return sorted(ranked, key=lambda each: (-each.score, each.document.uri, each.passage.start))


def weights_of(terms: Sequence[Term]) -> dict[str, float]:
    """Returns what each stem counts when it is seen in a passage or not, in the order of the question."""
    return {term.stem: EACH + term.weight for term in terms}


def _events(texts: Sequence[str], stems: Iterable[str], analyzer: Analyzer) -> list[list[Event]]:
    """Returns of each text where words stand that have one of the stems, ascending.

    All texts are searched as one: they are too short to be searched for each stem one by one.
    """
    lower = [lowered(text) for text in texts]
    everything = "\n".join(["", *lower])  # so that something stands before every word
    met = sorted((at, number) for number, stem in enumerate(stems) for at in _places(everything, stem, analyzer))
    events, first = [], 0
    for behind in accumulate(len(text) + 1 for text in lower):
        last = bisect_left(met, (behind,), first)
        events.append(met[first:last])
        first = last
    return events


def _places(lower: str, stem: str, analyzer: Analyzer) -> list[int]:
    """Returns where words begin that have a stem; to cut the whole text into words takes several times as long."""
    beginning, places = _beginning(stem), []
    has: dict[str, bool] = {}  # words met before
    find, behind = lower.find, len(beginning)
    at = find(beginning)
    while at >= 0:
        if not lower[at - 1].isalnum():
            rest = _REST.match(lower, at + behind)
            word = beginning + rest[0] if rest else beginning
            if word not in has:
                has[word] = stem in analyzer.stems(word)
            if has[word]:
                places.append(at)
        at = find(beginning, at + behind)
    return places


def _beginning(stem: str) -> str:
    """Returns what the words of a stem begin with: `happi` ends for `happy`, `hope` for `hoping`."""
    return stem[:-1] if len(stem) > 2 and stem[-1] in "eily" else stem


class _Measure:
    """Tells how much of a question's weight stands close together in a text."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = list(weights.values())
        self._lengths = [*map(len, weights), 0]  # one more, before the first and behind the last
        self._lighter = [min(pair) for pair in pairwise(self._weights)]

    def above(self, events: Sequence[Event]) -> Above:
        """Measures what stands above a passage."""
        return sorted({stem for _, stem in events}), ABOVE_SHARE * self._nearness(events)

    def close(self, events: Sequence[Event], above: Above) -> float:
        """Measures a passage."""
        near = max(self._nearness(events), above[1])
        return WINDOW_SHARE * self._window(events, above[0]) + NEAR_SHARE * near

    def _window(self, events: Sequence[Event], above: Sequence[int]) -> float:
        """Returns the largest weight of terms within WINDOW characters, those above the passage counting in part."""
        worth = self._weights
        best = held = ABOVE_SHARE * sum(worth[stem] for stem in above)
        if above:
            worth = [weight * (1 - ABOVE_SHARE) if stem in above else weight for stem, weight in enumerate(worth)]
        inside = [0] * len(worth)
        first = 0
        for place, stem in events:
            if not inside[stem]:
                held += worth[stem]
            inside[stem] += 1
            while events[first][0] <= place - WINDOW:
                gone = events[first][1]
                inside[gone] -= 1
                if not inside[gone]:
                    held -= worth[gone]
                first += 1
            if held > best:
                best = held
        return best

    def _nearness(self, events: Sequence[Event]) -> float:
        """Returns the weight of neighbours in the question near here: the lighter one's, less with distance."""
        if len(events) < 2:
            return 0.0
        lengths = self._lengths
        last = [_NOWHERE] * len(lengths)  # where each stem stood last
        apart = [FAR] * len(lengths)  # the fewest characters between a stem and the question's next one
        for place, stem in events:
            last[stem] = place
            if (gap := place - last[stem - 1] - lengths[stem - 1] - 1) < apart[stem - 1]:
                apart[stem - 1] = gap
            if (gap := place - last[stem + 1] - lengths[stem + 1] - 1) < apart[stem]:
                apart[stem] = gap
        near = 0.0
        for stem, weight in enumerate(self._lighter):
            if last[stem] >= 0 and last[stem + 1] >= 0:
                near += weight / (1 + max(apart[stem], 0) / WORD)
        return near


def answering(found: Sequence[Candidate]) -> bool:
    """Says whether the best of what `closest` returned comes near enough to be an answer."""
    return bool(found) and found[0].score >= ENOUGH
