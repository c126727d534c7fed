"""Passages that match → the few sentences in them that answer best, each near-duplicate told once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.researcher.extract import below
from services.researcher.index import Analyzer, Document, Hit, Term, headings_text
from services.researcher.passages import Passage
from services.researcher.watch import Watch

MAX_SENTENCES = 6  # of a quote
MAX_WORDS = 120  # of a quote
EASY_WORDS = 40  # a quote this long can be understood by itself; shorter and longer ones are worth a little less
MAX_CITATIONS = 3  # of one finding: other documents that say nearly the same
# Share of the objective's weight that a quote must cover, with the headings above it, to count as an answer.
RELEVANT = 0.4
NEAR_BEST = 0.5  # of the best score, below which a finding is noise beside it
HEADING_SHARE = 0.5  # what a term counts that stands only in the headings above the quote
RANK_SHARE = 0.3  # of the score is the passage's BM25 rank, the rest is coverage
BLOCK_COST = 0.02  # of each paragraph, list item or row that a quote reaches into
READABLE_SHARE = 0.05  # of a quote's worth is its length
SAME = 0.8  # Jaccard similarity of stems from which two quotes say the same

_UNIT_END = re.compile(
    r"(?P<close>(?<=[^\d\s][.!?…])[\"'”’)\]*_`]*)\s+(?=\S)"  # a sentence ends, with what closes it; `3.` numbers a list
    r"|(?<=[。！？])"
    r"|\n(?:[ \t\r]*\n)+"  # a paragraph ends
    r"|\n(?=[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t])"  # a list item begins
    r"|\n(?=[ \t]*\|)|\n(?=[ ]{4}|\t)|\n(?=[ ]{0,3}(?:`{3}|~{3}))"  # a row of a table, a line of code
)
_BLOCK = re.compile(r"(?:[-*+•]|\d{1,3}[.)])[ \t]|\||`{3}|~{3}")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence, list item, table row or line of code: its place in the passage, its stems."""

    start: int
    end: int
    words: int
    stems: frozenset[str]
    heading: bool = False
    opens: bool = False  # begins a paragraph, list item, row or line


@dataclass(frozen=True, slots=True)
class Quote:
    """A run of units of one passage, below the headings in `path`.

    `start` and `end` count code points of the document's text.
    """

    document: Document
    start: int
    end: int
    text: str
    path: tuple[str, ...]
    coverage: float
    score: float
    stems: frozenset[str]


def quotes(hits: Sequence[Hit], terms: Sequence[Term], analyzer: Analyzer, watch: Watch) -> list[Quote]:
    """Returns the best quote of each passage that is relevant, best first, in one order for one input."""
    weights = {term.stem: term.weight for term in terms}
    top = max((hit.score for hit in hits), default=0.0)
    found = []
    for hit in hits:
        watch.check()
        quote = _best(hit, weights, top, analyzer)
        if quote is not None and quote.coverage >= RELEVANT:
            found.append(quote)
    found.sort(key=lambda quote: (-quote.score, quote.document.found.uri, quote.start))
    return [quote for quote in found if quote.score >= NEAR_BEST * found[0].score]


def group(ranked: Sequence[Quote], limit: int) -> list[list[Quote]]:
    """Puts quotes that say nearly the same together, best first; other documents become further citations."""
    groups: list[list[Quote]] = []
    for quote in ranked:
        same = next((group for group in groups if _similar(group[0], quote)), None)
        if same is None:
            if len(groups) < limit:
                groups.append([quote])
        elif len(same) < MAX_CITATIONS and all(quote.document is not other.document for other in same):
            same.append(quote)
    return groups


def _similar(one: Quote, other: Quote) -> bool:
    overlap = len(one.stems & other.stems)
    return overlap >= SAME * len(one.stems | other.stems)


def _best(hit: Hit, weights: Mapping[str, float], top: float, analyzer: Analyzer) -> Quote | None:
    passage = hit.passage
    above = frozenset(analyzer.stems(headings_text(hit.document, passage.above)))
    units = _units(passage, analyzer)
    best: tuple[float, float, int, int] | None = None
    for first, last, words, stems, near in _windows(units, above):
        coverage = _coverage(weights, stems, near)
        crossed = sum(unit.opens for unit in units[first + 1 : last + 1])
        value = coverage + READABLE_SHARE * _ease(words) - BLOCK_COST * crossed
        if best is None or value > best[0] + 1e-9:
            best = (value, coverage, units[first].start, units[last].end)
    if best is None:
        return None
    value, coverage, start, end = best
    text = passage.text[start:end]
    score = (1 - RANK_SHARE) * value / (1 + READABLE_SHARE) + RANK_SHARE * hit.score / top
    stems = frozenset(analyzer.stems(text))
    start += passage.start
    return Quote(hit.document, start, start + len(text), text, _path(passage, start), coverage, score, stems)


def _path(passage: Passage, offset: int) -> tuple[str, ...]:
    above = passage.above
    for heading in passage.headings:
        if heading.start <= offset:
            above = below(above, heading)
    return tuple(heading.text for heading in above)


def _ease(words: int) -> float:
    """Returns 1 for a quote of EASY_WORDS, falling to 0 for none and for MAX_WORDS."""
    if words <= EASY_WORDS:
        return words / EASY_WORDS
    return (MAX_WORDS - words) / (MAX_WORDS - EASY_WORDS)


def _coverage(weights: Mapping[str, float], stems: frozenset[str], above: frozenset[str]) -> float:
    """Returns the share of the terms' weight found in the quote, and in part in the headings above it."""
    covered = sum(
        weight if stem in stems else HEADING_SHARE * weight
        for stem, weight in weights.items()
        if stem in stems or stem in above
    )
    return covered / sum(weights.values())


def _windows(
    units: Sequence[Unit], above: frozenset[str]
) -> Iterator[tuple[int, int, int, frozenset[str], frozenset[str]]]:
    """Yields (first, last, words, stems, stems of the headings above) of every run within one section."""
    for first, unit in enumerate(units):
        if unit.heading:
            above = above | unit.stems
            continue
        words, stems = 0, frozenset[str]()
        for last in range(first, min(first + MAX_SENTENCES, len(units))):
            words += units[last].words
            if units[last].heading or words > MAX_WORDS:
                break
            stems |= units[last].stems
            yield first, last, words, stems, above


def _units(passage: Passage, analyzer: Analyzer) -> list[Unit]:
    text = passage.text
    units: list[Unit] = []
    position = 0
    for heading in passage.headings:
        start, end = heading.start - passage.start, min(heading.end - passage.start, len(text))
        units += _sentences(text, position, start, analyzer)
        units.append(Unit(start, end, 0, frozenset(analyzer.stems(heading.text)), heading=True))
        position = end
    units += _sentences(text, position, len(text), analyzer)
    return units


def _sentences(text: str, start: int, end: int, analyzer: Analyzer) -> Iterator[Unit]:
    position, opens = start, True
    for mark in _UNIT_END.finditer(text, start, end):
        yield from _pieces(text, position, max(mark.start(), mark.end("close")), opens, analyzer)
        position, opens = mark.end(), _opens_block(mark)
    yield from _pieces(text, position, end, opens, analyzer)


def _opens_block(mark: re.Match[str]) -> bool:
    """Says whether a paragraph, item, row or line of code, not only a sentence, begins behind the mark."""
    lines = mark[0].count("\n")
    return mark["close"] is None or lines > 1 or bool(lines and _BLOCK.match(mark.string, mark.end()))


def _pieces(text: str, start: int, end: int, opens: bool, analyzer: Analyzer) -> Iterator[Unit]:
    """Yields the text between two places without the white space around it, in pieces of at most MAX_WORDS."""
    words = list(_WORD.finditer(text, start, end))
    for index in range(0, len(words), MAX_WORDS):
        piece = words[index : index + MAX_WORDS]
        first, last = piece[0].start(), piece[-1].end()
        yield Unit(first, last, len(piece), frozenset(analyzer.stems(text[first:last])), opens=opens)
