"""Passages that match → the few sentences in them that answer best, each near-duplicate told once."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.researcher.closeness import weights_of
from services.researcher.documents import Document, Heading, Passage, below
from services.researcher.extract.kinds import kind
from services.researcher.protocol import Candidate, Term
from services.researcher.terms import Analyzer
from services.researcher.watch import Watch

MAX_SENTENCES = 6  # of a quote
MAX_WORDS = 120  # of a quote
EASY_WORDS = 40  # a quote this long can be understood by itself; shorter and longer ones are worth a little less
MAX_CITATIONS = 3  # of one finding: other documents that say nearly the same
# Share of the objective's weight that a quote must cover, with the headings above it, to count as an answer.
RELEVANT = 0.4
NEAR_BEST = 0.5  # of the best coverage, below which a finding is noise beside it
QUOTED = 24  # passages, the best ones, that quotes are looked for in
HEADING_SHARE = 0.5  # what a term counts that stands only in the headings above the quote
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
_ROWS = frozenset({"rows", "sheets"})  # kinds of documents whose text is rows, each from the beginning of a line
_ROW_END = re.compile(r"\r?\n")


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence, list item, table row or line of code: its place in the passage, its stems."""

    start: int
    end: int
    words: int
    stems: frozenset[str]
    heading: bool = False
    opens: bool = False  # begins a paragraph, list item, row or line
    row: bool = False  # of a table


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


def quotes(hits: Sequence[Candidate], terms: Sequence[Term], analyzer: Analyzer, watch: Watch) -> list[Quote]:
    """Returns the best quote of each passage that is relevant, in the passages' order, best first."""
    weights = weights_of(terms)
    found = []
    for hit in hits[:QUOTED]:
        watch.check()
        quote = _best(hit, weights, analyzer)
        if quote is not None and quote.coverage >= RELEVANT:
            found.append(quote)
    most = max((quote.coverage for quote in found), default=0.0)
    return [quote for quote in found if quote.coverage >= NEAR_BEST * most]


def group(ranked: Sequence[Quote], limit: int) -> list[list[Quote]]:
    """Puts quotes that say nearly the same together, best first; other documents become further citations."""
    groups: list[list[Quote]] = []
    for quote in ranked:
        same = next((group for group in groups if _similar(group[0], quote)), None)
        if same is None:
            if len(groups) < limit:
                groups.append([quote])
        elif len(same) < MAX_CITATIONS and all(quote.document.uri != other.document.uri for other in same):
            same.append(quote)
    return groups


def direct(quote: Quote, terms: Sequence[Term], analyzer: Analyzer) -> str:
    """Returns the sentence of a quote that says most of what was asked, as it stands there.

    A row of a table is none; it is taken where the quote is made of rows.
    """
    passage = Passage(0, quote.text, (), ())
    weights = weights_of(terms)
    units = _units(passage, analyzer, _in_rows(quote.document))

    def worth(unit: Unit) -> tuple[bool, float, int]:
        return not unit.row, sum(weights.get(stem, 0.0) for stem in unit.stems), -unit.start

    best = max(units, key=worth)
    return quote.text[best.start : best.end]


def above_text(document: Document, above: Iterable[Heading]) -> str:
    """Returns what stands above a place: the document's title and the headings."""
    return "\n".join((document.title, *(heading.text for heading in above)))


def _similar(one: Quote, other: Quote) -> bool:
    overlap = len(one.stems & other.stems)
    return overlap >= SAME * len(one.stems | other.stems)


def _best(hit: Candidate, weights: Mapping[str, float], analyzer: Analyzer) -> Quote | None:
    passage = hit.passage
    above = frozenset(analyzer.stems(above_text(hit.document, passage.above)))
    units = _units(passage, analyzer, _in_rows(hit.document))
    best: tuple[float, float, int, int] | None = None
    for first, last, words, coverage, crossed in _windows(units, above, weights):
        value = coverage + READABLE_SHARE * _ease(words) - BLOCK_COST * crossed
        if best is None or value > best[0] + 1e-9:
            best = (value, coverage, units[first].start, units[last].end)
    if best is None:
        return None
    value, coverage, start, end = best
    text = passage.text[start:end]
    stems = frozenset(analyzer.stems(text))
    start += passage.start
    return Quote(hit.document, start, start + len(text), text, _path(passage, start), coverage, hit.score, stems)


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


def _in_rows(document: Document) -> bool:
    return kind(document.uri) in _ROWS


def _units(passage: Passage, analyzer: Analyzer, in_rows: bool) -> list[Unit]:
    text = passage.text
    between = _rows if in_rows else _sentences
    units: list[Unit] = []
    position = 0
    for heading in passage.headings:
        start, end = heading.start - passage.start, min(heading.end - passage.start, len(text))
        units += between(text, position, start, analyzer)
        units.append(Unit(start, end, 0, frozenset(analyzer.stems(heading.text)), heading=True))
        position = end
    units += between(text, position, len(text), analyzer)
    return units


def _sentences(text: str, start: int, end: int, analyzer: Analyzer) -> Iterator[Unit]:
    position, opens = start, True
    for mark in _UNIT_END.finditer(text, start, end):
        yield from _pieces(text, position, max(mark.start(), mark.end("close")), opens, analyzer)
        position, opens = mark.end(), _opens_block(mark)
    yield from _pieces(text, position, end, opens, analyzer)


def _rows(text: str, start: int, end: int, analyzer: Analyzer) -> Iterator[Unit]:
    """Yields rows whole, whatever sentences they hold. Lines inside of quotes belong to one row (RFC 4180)."""
    position = start
    for mark in _ROW_END.finditer(text, start, end):
        if text.count('"', position, mark.start()) % 2 == 0:
            yield from _pieces(text, position, mark.start(), True, analyzer, row=True)
            position = mark.end()
    yield from _pieces(text, position, end, True, analyzer, row=True)


def _opens_block(mark: re.Match[str]) -> bool:
    """Says whether a paragraph, item, row or line of code, not only a sentence, begins behind the mark."""
    lines = mark[0].count("\n")
    return mark["close"] is None or lines > 1 or bool(lines and _BLOCK.match(mark.string, mark.end()))


def _pieces(text: str, start: int, end: int, opens: bool, analyzer: Analyzer, *, row: bool = False) -> Iterator[Unit]:
    """Yields the text between two places without the white space around it, in pieces of at most MAX_WORDS."""
    words = list(_WORD.finditer(text, start, end))
    row = row or (bool(words) and words[0][0].startswith("|"))
    for index in range(0, len(words), MAX_WORDS):
        piece = words[index : index + MAX_WORDS]
        first, last = piece[0].start(), piece[-1].end()
        yield Unit(first, last, len(piece), frozenset(analyzer.stems(text[first:last])), opens=opens, row=row)
