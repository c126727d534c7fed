"""What is read, searched and quoted: documents, their text and structure, and passages of them."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from conductor.v1 import researcher_pb2

Kind = researcher_pb2.GapKind
SourceKind = researcher_pb2.SourceKind
Span: TypeAlias = tuple[int, int]  # [start, end) in code points


class Unreadable(Exception):
    """A document cannot be evidence. `kind` is the gap it becomes; the text is the gap's detail.

    `lasting` is true when trying again is of no use before the document changes.
    """

    def __init__(self, detail: str, kind: Kind.ValueType = Kind.GAP_KIND_UNREADABLE, *, lasting: bool = True) -> None:
        super().__init__(detail)
        self.kind = kind
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading line: where it stands, its level from 1, its text."""

    start: int
    end: int
    level: int
    text: str


class Outline:
    """The headings of a document in order, and the path of headings above any place."""

    def __init__(self, headings: Iterable[Heading]) -> None:
        self.headings = tuple(headings)
        self.starts = [heading.start for heading in self.headings]
        self._paths = list(_paths(self.headings))

    def above(self, offset: int) -> tuple[Heading, ...]:
        """Returns the headings above a place, outermost first."""
        index = bisect_right(self.starts, offset)
        return self._paths[index - 1] if index else ()


def below(above: tuple[Heading, ...], heading: Heading) -> tuple[Heading, ...]:
    """Returns the headings above what follows `heading`, given those above it."""
    return (*(each for each in above if each.level < heading.level), heading)


def _paths(headings: Iterable[Heading]) -> Iterator[tuple[Heading, ...]]:
    above: tuple[Heading, ...] = ()
    for heading in headings:
        above = below(above, heading)
        yield above


@dataclass(frozen=True, slots=True)
class Place:
    """Where text stands in the file as a person finds it; holds from `start` up to the next place.

    Attributes:
        start: code points of the document's text.
        page: page or slide, from 1; 0 where there are none.
        sheet: sheet or table; empty where there are none.
        row: from 1 as in the file, header included; 0 where there are none.
        cells: first and last cell, as in "B2:D2"; empty where there are none.
    """

    start: int
    page: int = 0
    sheet: str = ""
    row: int = 0
    cells: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """What a document says. Only text inside `visible` may become evidence."""

    text: str
    title: str
    outline: Outline
    visible: tuple[Span, ...]
    places: Sequence[Place] = ()  # by start; may be made on demand


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of one document's visible text.

    `start`, like the places of headings, counts code points of the document's text. `above` are the headings that
    hold where the passage begins, outermost first; `headings` those that stand inside it.
    """

    start: int
    text: str
    above: tuple[Heading, ...]
    headings: tuple[Heading, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read: where it is, what it was then."""

    uri: str  # as in Citation.uri
    title: str
    sha256: str  # of the file
    size: int  # bytes of the file
    retrieved_ns: int  # when it was read, nanoseconds since 1970


@dataclass(frozen=True, slots=True)
class Original:
    """A document read again: its text as `extract` makes it, and the file's SHA-256."""

    text: Text
    sha256: str
