"""Quotes → citations, each checked against its source, which is read once more."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter

from conductor.v1 import researcher_pb2

from services.researcher.answer import Quote
from services.researcher.documents import Document, Original, Place, Text, Unreadable
from services.researcher.journal import Journal
from services.researcher.protocol import View
from services.researcher.watch import Watch

_START = attrgetter("start")


class Citing:
    """Makes the citations of one research.

    Args:
        views: uri of a document → the view it was found in; grows while the research goes on.
    """

    def __init__(self, views: Mapping[str, View], watch: Watch, journal: Journal) -> None:
        self._views = views
        self._watch = watch
        self._journal = journal
        self._originals: dict[str, Original | None] = {}
        self._numbers: dict[tuple[str, int, int], int] = {}  # quote → the finding it leads

    def add(self, quoted: Sequence[Quote], result: researcher_pb2.ResearchResult) -> int | None:
        """Adds a finding of quotes that say the same; returns its number, None when none of them stands.

        A finding that is there already is not added again.
        """
        first = quoted[0]
        key = first.document.uri, first.start, first.end
        if key in self._numbers:
            return self._numbers[key]
        citations = [citation for quote in quoted if (citation := self.cite(quote)) is not None]
        if not citations:
            return None
        self._numbers[key] = len(result.findings)
        statement = " ".join(citations[0].quote.split())
        result.findings.add(statement=statement, citations=citations, score=citations[0].score)
        return self._numbers[key]

    def cite(self, quote: Quote) -> researcher_pb2.Citation | None:
        """Returns the citation of a quote; None when it does not stand in the source as it is now."""
        return self.verbatim(quote.document, quote.start, quote.end, quote.text, quote.score)

    def verbatim(
        self, document: Document, start: int, end: int, text: str, score: float
    ) -> researcher_pb2.Citation | None:
        """Returns the citation of a place; None when another text stands there now, or none that a reader sees."""
        original = self._original(document)
        if original is None or original.text.text[start:end] != text or not visible(original.text, start, end):
            return None
        citation = researcher_pb2.Citation(
            uri=document.uri,
            title=document.title,
            locator=locator(original.text, start, end),
            quote=text,
            score=score,
            source_sha256=document.sha256,
        )
        citation.retrieved_at.FromNanoseconds(document.retrieved_ns)
        return citation

    def _original(self, document: Document) -> Original | None:
        if document.uri not in self._originals:
            self._originals[document.uri] = self._reread(document)
        return self._originals[document.uri]

    def _reread(self, document: Document) -> Original | None:
        try:
            original = self._views[document.uri].original(document.uri, self._watch)
            if original.sha256 != document.sha256:
                raise Unreadable("It changed while the answer was being made. Ask again.")
        except Unreadable as problem:
            self._journal.miss(problem.kind, document.uri, str(problem))
            return None
        return original


def locator(text: Text, start: int, end: int) -> researcher_pb2.Locator:
    """Returns where [start, end) of a text stands, as people and as programs find it."""
    first = text.text.count("\n", 0, start) + 1
    place = _place(text, start)
    return researcher_pb2.Locator(
        line_start=first,
        line_end=first + text.text.count("\n", start, end),
        char_start=start,
        char_end=end,
        heading_path=[heading.text for heading in text.outline.above(start)],
        page=place.page,
        sheet=place.sheet,
        row=place.row,
        cells=place.cells,
    )


def _place(text: Text, start: int) -> Place:
    index = bisect_right(text.places, start, key=_START)
    return text.places[index - 1] if index else Place(0)


def visible(text: Text, start: int, end: int) -> bool:
    """Says whether a reader of the document sees all of [start, end)."""
    return any(first <= start and end <= last for first, last in text.visible)
