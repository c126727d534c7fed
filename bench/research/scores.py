"""What a ranking is worth, given the words of the answer that should be found."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.research.headings import shingles, words

ENOUGH = 10  # shingles of the answer that a passage must hold
ENOUGH_SHARE = 0.5  # or this share of a short answer's
OF_QUOTE = 0.6  # share of a quote's shingles that stand in the answer
DEPTH = 10


@dataclass(frozen=True, slots=True)
class Ranked:
    """Means over questions. `precision` is of the first, recall says whether the answer is among the first 5 or 10."""

    precision: float
    recall_5: float
    recall_10: float
    mrr: float
    ndcg: float


class Answer:
    """The answer that should be found."""

    def __init__(self, answer: Sequence[str]) -> None:
        self._shingles = shingles(tuple(answer))
        self._needed = min(ENOUGH, math.ceil(ENOUGH_SHARE * len(self._shingles)))

    def in_passage(self, text: str) -> bool:
        """Says whether a passage holds it, or a good part."""
        return len(self._shingles & shingles(words(text))) >= self._needed

    def holds_quote(self, text: str) -> bool:
        """Says whether a quote lies in it."""
        quoted = shingles(words(text))
        return bool(quoted) and len(self._shingles & quoted) >= OF_QUOTE * len(quoted)


def first(answer: Answer, texts: Iterable[str]) -> int:
    """Returns the rank of the first passage that holds the answer, from 1; 0 when none of the first DEPTH does."""
    for rank, text in enumerate(texts, 1):
        if rank > DEPTH:
            break
        if answer.in_passage(text):
            return rank
    return 0


def ranked(ranks: Sequence[int]) -> Ranked:
    """Returns the means over the ranks of the first right passage."""
    count = max(len(ranks), 1)

    def share(most: int) -> float:
        return sum(0 < rank <= most for rank in ranks) / count

    found = [rank for rank in ranks if rank]
    mrr = sum(1 / rank for rank in found) / count
    return Ranked(share(1), share(5), share(DEPTH), mrr, sum(1 / math.log2(rank + 1) for rank in found) / count)


def auroc(answerable: Sequence[float], unanswerable: Sequence[float]) -> float:
    """Returns how often an answerable question scores above an unanswerable one, ties counting half."""
    pairs = sum((a > u) + (a == u) / 2 for a in answerable for u in unanswerable)
    return pairs / max(len(answerable) * len(unanswerable), 1)
