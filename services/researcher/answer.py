"""Passages that match → the few sentences in them that answer best, each near-duplicate told once."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.researcher.closeness import weights_of
from services.researcher.contradictions import contradictions
from services.researcher.documents import Document, Heading, Passage, below
from services.researcher.protocol import Candidate, Term
from services.researcher.quantities import measures, quantities
from services.researcher.terms import Analyzer
from services.researcher.units import MAX_WORDS, Unit, units_of
from services.researcher.watch import Watch

MAX_SENTENCES = 6  # of a quote
EASY_WORDS = 40  # a quote this long can be understood by itself; shorter and longer ones are worth a little less
MAX_CITATIONS = 3  # of one finding: other documents that say nearly the same
# Share of the objective's weight that a quote must cover, with the headings above it, to count as an answer.
RELEVANT = 0.4
NEAR_BEST = 0.5  # of the best coverage, below which a finding is noise beside it
QUOTED = 24  # passages, the best ones, that quotes are looked for in
HEADING_SHARE = 0.5  # what a term counts that stands only in the headings above the quote
BLOCK_COST = 0.02  # of each paragraph, list item or row that a quote reaches into
READABLE_SHARE = 0.05  # of a quote's worth is its length
ASKING_COST = 0.2  # of a quote that ends with a question: the answer stands behind it
AMOUNT_SHARE = 0.15  # of a quote's worth is the number in it, where one is asked for
FRAGMENT_SHARE = 0.85  # what counts of a quote without a sentence: a list of names, a line of code
WEAK_SHARE = 0.7  # what counts of a unit as the direct sentence when it is none
ASKING_SHARE = 0.3  # and when it asks itself
AMOUNT_WITHIN = 2  # sentences behind the direct one that may give the number that was asked for
SAME = 0.8  # Jaccard similarity of stems from which two quotes say the same

_AMOUNT = re.compile(
    r"\bhow\s+(?:many|much|long|often|large|big|small|high|low|deep|far|fast|old|wide|frequently|soon)\b"
    r"|\b(?:what|which|maximum|minimum|largest|longest|highest|smallest|biggest)\b[^.?;,]{0,30}"
    r"\b(?:number|port|size|limit|length|percentage|code|year|date|timeout|interval|maximum|minimum|value|rate)\b"
    r"|\bwhat\s+(?:is|are)\s+the\s+(?:maximum|minimum|largest|longest|highest|smallest|biggest|default)\b",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What quotes are looked for: the stems with what each counts, and whether a number is asked for."""

    weights: Mapping[str, float]
    amount: bool = False


def asked(question: str, terms: Sequence[Term]) -> Asked:
    """Returns what a question asks for. Questions in English only are seen to ask for a number."""
    return Asked(weights_of(terms), _AMOUNT.search(question) is not None)


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


def quotes(hits: Sequence[Candidate], what: Asked, analyzer: Analyzer, watch: Watch) -> list[Quote]:
    """Returns the best quote of each passage that is relevant, best first; those without a sentence come later."""
    found = []
    for hit in hits[:QUOTED]:
        watch.check()
        quote = _best(hit, what, analyzer)
        if quote is not None and quote.coverage >= RELEVANT:
            found.append(quote)
    most = max((quote.coverage for quote in found), default=0.0)
    return sorted((quote for quote in found if quote.coverage >= NEAR_BEST * most), key=lambda each: -each.score)


def group(ranked: Sequence[Quote], limit: int, analyzer: Analyzer) -> list[list[Quote]]:
    """Puts quotes that say nearly the same together, best first; other documents become further citations.

    Those with other numbers, or a yes for a no, stand by themselves: neither bears out the other.
    """
    groups: list[list[Quote]] = []
    for quote in ranked:
        same = next((group for group in groups if _similar(group[0], quote, analyzer)), None)
        if same is None:
            if len(groups) < limit:
                groups.append([quote])
        elif len(same) < MAX_CITATIONS and all(quote.document.uri != other.document.uri for other in same):
            same.append(quote)
    return groups


def direct(quote: Quote, what: Asked, analyzer: Analyzer) -> str:
    """Returns the sentence of a quote that says most of what was asked, as it stands there.

    A row of a table is none; it is taken where the quote is made of rows. Where a number is asked for, the sentences
    up to the one that gives it belong to it.
    """
    units = units_of(quote.document, Passage(0, quote.text, (), ()), analyzer)

    def worth(unit: Unit) -> tuple[bool, float, int]:
        share = ASKING_SHARE if unit.asks else 1 if unit.sentence else WEAK_SHARE
        return not unit.row, share * sum(what.weights.get(stem, 0.0) for stem in unit.stems), -unit.start

    best = max(units, key=worth)
    last = best
    if what.amount and not best.row and not measures(quote.text[best.start : best.end]):
        first = units.index(best) + 1
        behind = (unit for unit in units[first : first + AMOUNT_WITHIN] if not unit.row)
        last = next((unit for unit in behind if measures(quote.text[unit.start : unit.end])), best)
    return quote.text[best.start : last.end]


def above_text(document: Document, above: Iterable[Heading]) -> str:
    """Returns what stands above a place: the document's title and the headings."""
    return "\n".join((document.title, *(heading.text for heading in above)))


def _similar(one: Quote, other: Quote, analyzer: Analyzer) -> bool:
    overlap = len(one.stems & other.stems)
    if overlap < SAME * len(one.stems | other.stems):
        return False
    mine, theirs = ({(each.value, each.unit) for each in quantities(quote.text)} for quote in (one, other))
    return not (mine - theirs and theirs - mine) and not contradictions([one.text, other.text], analyzer)


def _best(hit: Candidate, what: Asked, analyzer: Analyzer) -> Quote | None:
    passage = hit.passage
    above = frozenset(analyzer.stems(above_text(hit.document, passage.above)))
    units = units_of(hit.document, passage, analyzer)
    amounts = [what.amount and measures(passage.text[unit.start : unit.end]) for unit in units]
    best: tuple[float, float, int, int] | None = None
    for first, last, words, coverage, crossed in _windows(units, above, what.weights):
        value = coverage + READABLE_SHARE * _ease(words) - BLOCK_COST * crossed - ASKING_COST * units[last].asks
        value += AMOUNT_SHARE * any(amounts[first : last + 1])
        if best is None or value > best[0] + 1e-9:
            best = (value, coverage, first, last)
    if best is None:
        return None
    _, coverage, first, last = best
    chosen = units[first : last + 1]
    text = passage.text[chosen[0].start : chosen[-1].end]
    score = hit.score * (1 if any(unit.sentence or unit.row for unit in chosen) else FRAGMENT_SHARE)
    start = passage.start + chosen[0].start
    stems = frozenset(analyzer.stems(text))
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


def _windows(
    units: Sequence[Unit], above: frozenset[str], weights: Mapping[str, float]
) -> Iterator[tuple[int, int, int, float, int]]:
    """Yields (first, last, words, coverage, blocks crossed) of the runs within one section.

    They begin with a unit that holds a term, unless the terms stand in the headings alone.
    """
    total = sum(weights.values())
    anywhere = all(unit.heading or weights.keys().isdisjoint(unit.stems) for unit in units)
    for first, unit in enumerate(units):
        if unit.heading:
            above = above | unit.stems
            continue
        if not anywhere and weights.keys().isdisjoint(unit.stems):
            continue
        left = dict(weights)  # of the terms that the run does not hold yet
        near = HEADING_SHARE * sum(left[stem] for stem in left.keys() & above)
        words = crossed = 0
        covered = 0.0
        for last in range(first, min(first + MAX_SENTENCES, len(units))):
            words += units[last].words
            if units[last].heading or words > MAX_WORDS:
                break
            crossed += last > first and units[last].opens
            for stem in left.keys() & units[last].stems:
                weight = left.pop(stem)
                covered += weight
                near -= HEADING_SHARE * weight if stem in above else 0.0
            yield first, last, words, (covered + near) / total, crossed
