"""The best passages in a re-ranker's order, as far as the time goes."""

import math
from collections.abc import Sequence
from dataclasses import replace

from services.researcher.protocol import Candidate, Notes, Reranker
from services.researcher.watch import OutOfTime, Watch


def reranked(
    reranker: Reranker | None, question: str, found: Sequence[Candidate], most: int, watch: Watch, notes: Notes
) -> Sequence[Candidate]:
    """Returns the first `most` in their new order; all as they came without a re-ranker. Raises Cancelled.

    When the time ends before all are scored, the others follow as they came, and the notes say so.
    """
    if reranker is None or len(found) < 2:
        return found
    first = found[:most]
    try:
        scores = reranker.score(question, [each.passage.text for each in first], watch)
    except OutOfTime:
        scores = []
    ranked = [replace(each, score=score) for each, score in zip(first, scores, strict=False)]
    ranked.sort(key=lambda each: (-each.score, each.document.uri, each.passage.start))
    if len(ranked) == len(first):
        return ranked
    notes.spend("reranking", f"There was time to re-rank {len(ranked)} of {len(first)} passages. The others follow.")
    least = min((each.score for each in ranked), default=math.inf)  # they must not look better
    return ranked + [replace(each, score=min(each.score, least)) for each in found[len(ranked) :]]
