"""Text → passages of 1,200 to 1,600 characters that follow its structure: what is indexed and quoted from."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from services.researcher.documents import Heading, Outline, Passage, Text
from services.researcher.watch import Watch

LEAST = 1_200  # characters before a passage may end inside a section
LEAST_BEFORE_HEADING = 800  # characters before it may end in front of a heading
MOST = 1_600  # characters
BREAKS = ("\n\n", "\n", ". ", " ")  # where to cut inside a section, best first


def split(text: Text, watch: Watch) -> Iterator[Passage]:
    """Cuts the visible text of a document; no passage reaches over a hidden part."""
    for start, end in text.visible:
        while start < end:
            watch.check()
            cut = _cut(text, start, end)
            piece = text.text[start:cut]
            if not piece.isspace():
                yield Passage(start, piece, text.outline.above(start), _within(text.outline, start, cut))
            start = cut


def _cut(text: Text, start: int, end: int) -> int:
    if end - start <= MOST:
        return end
    starts = text.outline.starts
    before = bisect_right(starts, start + MOST) - 1
    if before >= 0 and starts[before] >= start + LEAST_BEFORE_HEADING:
        return starts[before]
    for sign in BREAKS:
        found = text.text.rfind(sign, start + LEAST, start + MOST)
        if found >= 0:
            return found + len(sign)
    return start + MOST


def _within(outline: Outline, start: int, end: int) -> tuple[Heading, ...]:
    return outline.headings[bisect_left(outline.starts, start) : bisect_left(outline.starts, end)]
