"""What an index holds for one inquiry: a snapshot that is searched."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import apsw

from services.researcher.documents import Document, Original, Passage
from services.researcher.index.lexical import Damaged, Match, Reader, best_first
from services.researcher.protocol import Candidate, Term
from services.researcher.watch import Watch

SAME_PASSAGE = 3  # passages with the very same text that are returned; more of them would crowd out all else
SEARCHED = 4  # times as many as are wanted are looked for, as some may have the same text or be gone
ROUNDS = 4  # of searching without what was found too often
# Reciprocal rank fusion: of a list of that weight, the passage at rank r gets weight / (RRF_RANK + r).
RRF_RANK = 60
WORDS_WEIGHT = 2.0
MEANING_WEIGHT = 1.0

Hits = Sequence[tuple[float, int]]  # (score, number of the passage), best first
Found = Mapping[int, tuple[Document, Passage]]


class Meaning(Protocol):
    """Finds passages that mean the like."""

    def search(self, question: str, limit: int) -> Hits:
        """Returns the nearest passages, best first."""


class IndexView:
    """Searches a snapshot of an index.

    Args:
        words: the word index.
        fetch: gives the passages of numbers, those that count.
        size: (documents, passages, bytes) that can be searched.
        below: numbers of the places that are searched, see lexical.number_of; none for all.
        inside: says whether a document lies at one of these places.
        meaning: finds by meaning; None without an encoder.
        again: reads a document again by its uri.
        damage: is told when the index turns out to be damaged; nothing is found then.
    """

    def __init__(
        self,
        words: Reader,
        fetch: Callable[[Sequence[int]], Found],
        size: tuple[int, int, int],
        again: Callable[[str, Watch], Original],
        below: Sequence[int] = (),
        inside: Callable[[Document], bool] = lambda _: True,
        meaning: Meaning | None = None,
        damage: Callable[[Exception], None] = lambda _: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.complete = True
        self._words = words
        self._fetch = fetch
        self.documents, self.passages, self.bytes = size
        self._again = again
        self._below = below
        self._inside = inside
        self._meaning = meaning
        self._damage = damage
        self._close = close

    def counts(self, stems: Sequence[str]) -> dict[str, int]:
        """Returns about how many passages hold each stem, in their text or above it; 0 is exact."""
        return {stem: self._words.count(stem, self._below) for stem in stems}

    def search(self, question: str, terms: Sequence[Term], limit: int, watch: Watch) -> list[Candidate]:
        """Returns the passages that match best, best first. Raises OutOfTime, Cancelled."""
        try:
            return self._search(question, terms, limit, watch)
        except (Damaged, apsw.Error) as error:
            self.complete = False
            self._damage(error)
            return []

    def _search(self, question: str, terms: Sequence[Term], limit: int, watch: Watch) -> list[Candidate]:
        passages: dict[int, tuple[Document, Passage]] = {}
        hits = self._distinct(terms, limit, passages, watch)
        if self._meaning is not None:
            hits = fuse(hits, self._meaning.search(question, limit))
            passages.update(self._fetch([number for _, number in hits if number not in passages]))
        return _ranked(hits, passages, self._inside)[:limit]

    def _distinct(
        self, terms: Sequence[Term], limit: int, passages: dict[int, tuple[Document, Passage]], watch: Watch
    ) -> Hits:
        """Finds by words, and fills `passages`. Searches again without those texts that many passages repeat."""
        hits: list[Match] = []
        often: set[int] = set()
        kept: list[Match] = []
        for _ in range(ROUNDS):
            watch.check()
            found = self._words.search(terms, self._below, SEARCHED * limit, sorted(often))
            hits = sorted({*hits, *found}, key=best_first) if hits else found
            kept = self._fetched(hits, limit, passages)
            times = Counter(match.same for match in hits)
            repeated = {same for same, number in times.items() if number > SAME_PASSAGE} - often
            if len(kept) >= limit or len(found) < SEARCHED * limit or not repeated:
                break
            often |= repeated
        return [(match.score, match.number) for match in kept]

    def _fetched(self, hits: list[Match], limit: int, passages: dict[int, tuple[Document, Passage]]) -> list[Match]:
        """Returns the best hits, few with the same text, and fills `passages`; takes out of `hits` what is gone."""
        while True:
            kept = _varied(hits, limit)
            missing = [match.number for match in kept if match.number not in passages]
            found = self._fetch(missing) if missing else {}
            passages.update(found)
            if len(found) == len(missing):
                return kept
            gone = set(missing) - found.keys()
            hits[:] = [match for match in hits if match.number not in gone]

    def original(self, uri: str, watch: Watch) -> Original:
        """Reads a document again from where it is. Raises Unreadable."""
        return self._again(uri, watch)

    def close(self) -> None:
        """Lets go of the snapshot."""
        self._close()


def fuse(words: Hits, meaning: Hits) -> Hits:
    """Puts two rankings together by reciprocal rank."""
    scores: defaultdict[int, float] = defaultdict(float)
    for hits, weight in ((words, WORDS_WEIGHT), (meaning, MEANING_WEIGHT)):
        for rank, (_, number) in enumerate(hits, 1):
            scores[number] += weight / (RRF_RANK + rank)
    return sorted(((score, number) for number, score in scores.items()), key=lambda hit: (-hit[0], hit[1]))


def _varied(hits: Iterable[Match], limit: int) -> list[Match]:
    """Returns the first hits, at most SAME_PASSAGE of the same text."""
    kept: list[Match] = []
    seen: Counter[int] = Counter()
    for match in hits:
        seen[match.same] += 1
        if seen[match.same] <= SAME_PASSAGE:
            kept.append(match)
            if len(kept) == limit:
                break
    return kept


def _ranked(hits: Hits, passages: Found, inside: Callable[[Document], bool]) -> list[Candidate]:
    candidates = [
        Candidate(*passages[number], score)
        for score, number in hits
        if number in passages and inside(passages[number][0])
    ]
    return sorted(candidates, key=lambda each: (-each.score, each.document.uri, each.passage.start))
