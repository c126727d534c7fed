"""A passage → its units: sentences, list items, rows of a table and lines of code, each with its stems."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.researcher.documents import Document, Passage
from services.researcher.extract.kinds import kind
from services.researcher.terms import Analyzer

MAX_WORDS = 120  # of a unit; longer ones are cut
FULL_LINE = 40  # characters, without its indentation, from which a line of prose may go on in the next one
PROSE_SHARE = 0.7  # of a line's characters are letters and spaces, from which it is prose
LEAST_PROSE = 4  # words of a line of prose, and of a sentence

_UNIT_END = re.compile(
    # a sentence ends, with what closes it; `3.` numbers a list
    r"(?P<close>(?<=[^\d\s][.!?…])(?<!\b[ei]\.[ge]\.)(?<!\bvs\.)[\"'”’)\]*_`]*)\s+(?=\S)"
    r"|(?<=[。！？])"
    r"|\n(?:[ \t\r]*\n)+"  # a paragraph ends
    r"|\n(?=[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t])"  # a list item begins
    r"|\n(?=[ \t]*\|)|\n(?=[ ]{4}|\t)|\n(?=[ ]{0,3}(?:`{3}|~{3}))"  # a row of a table, a line of code
)
_BLOCK = re.compile(r"(?:[-*+•]|\d{1,3}[.)])[ \t]|\||`{3}|~{3}")
_WORD = re.compile(r"\S+")
_ROWS = frozenset({"rows", "sheets"})  # kinds of documents whose text is rows, each from the beginning of a line
_ROW_END = re.compile(r"\r?\n")
_PROSE = re.compile(r"[^\W\d_]|[ \t]")
_ENDS = re.compile(r"[.!?…。！？][\"'”’)\]*_`]*$")
_BROKEN_OFF = re.compile(r"(?:[^\W_]|[-‐,.*`\"'’]|\(\d\w?\))$")  # `open(2)` is a manual page, `open(a)` is code
_GOES_ON = re.compile(r"[^\W_]|[(\"'“‘]")


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
    asks: bool = False  # a question, which answers none
    sentence: bool = False  # it ends like one, and is long enough for one


def units_of(document: Document, passage: Passage, analyzer: Analyzer) -> list[Unit]:
    """Cuts a passage of a document; headings are units too."""
    text = passage.text
    between = _rows if kind(document.uri) in _ROWS else _sentences
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
        if mark[0] == "\n" and _wrapped(text, mark.start()):
            continue
        yield from _pieces(text, position, max(mark.start(), mark.end("close")), opens, analyzer)
        position, opens = mark.end(), _opens_block(mark)
    yield from _pieces(text, position, end, opens, analyzer)


def _wrapped(text: str, at: int) -> bool:
    """Says whether the line that ends here is indented prose that goes on in the next, as a manual page has it."""
    line, following = text[text.rfind("\n", 0, at) + 1 : at], text[at + 1 :].partition("\n")[0]
    bare, rest = line.strip(), following.lstrip()
    mark = _BLOCK.match(bare)
    if mark is not None:
        bare = bare[mark.end() :].lstrip()
    inset = len(line.rstrip()) - len(bare)  # of the text, behind the sign of a list
    return (
        inset > 0
        and len(following) - len(rest) == inset
        and len(bare) >= FULL_LINE
        and len(bare.split()) >= LEAST_PROSE
        and len(_PROSE.findall(bare)) >= PROSE_SHARE * len(bare)
        and _BROKEN_OFF.search(bare) is not None
        and _GOES_ON.match(rest) is not None
    )


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
        shown = text[first:last]
        yield Unit(
            first,
            last,
            len(piece),
            frozenset(analyzer.stems(shown)),
            opens=opens,
            row=row,
            asks=shown.endswith(("?", "？")),
            sentence=len(piece) >= LEAST_PROSE and _ENDS.search(shown) is not None,
        )
