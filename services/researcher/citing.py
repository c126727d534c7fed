"""Quotes → citations, each checked against its source, which is read once more."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter, itemgetter

from conductor.v1 import researcher_pb2

from services.researcher.answer import Quote
from services.researcher.documents import Document, Original, Place, Text, Unreadable
from services.researcher.journal import Journal
from services.researcher.protocol import View
from services.researcher.watch import OutOfTime, Watch

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
        self._numbers: dict[tuple[str, int, int], tuple[int, Quote]] = {}  # first quote → finding, and who leads it

    def add(self, quoted: Sequence[Quote], result: researcher_pb2.ResearchResult) -> tuple[int, Quote] | None:
        """Adds a finding of quotes that say the same; returns its number and the quote that leads it.

        None when none of them stands. A finding that is there already is not added again. Raises Cancelled, and
        OutOfTime when none was checked by then.
        """
        first = quoted[0]
        key = first.document.uri, first.start, first.end
        if key not in self._numbers:
            stood = self._standing(quoted)
            if not stood:
                return None
            citations = [citation for _, citation in stood]
            statement = " ".join(citations[0].quote.split())
            self._numbers[key] = len(result.findings), stood[0][0]
            result.findings.add(statement=statement, citations=citations, score=citations[0].score)
        return self._numbers[key]

    def _standing(self, quoted: Sequence[Quote]) -> list[tuple[Quote, researcher_pb2.Citation]]:
        stood: list[tuple[Quote, researcher_pb2.Citation]] = []
        for quote in quoted:
            try:
                citation = self.cite(quote)
            except OutOfTime:
                if not stood:
                    raise
                break  # one that stands is enough; the next look at the watch ends the research
            if citation is not None:
                stood.append((quote, citation))
        return stood

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
    index = bisect_right(text.visible, start, key=itemgetter(0)) - 1
    return index >= 0 and end <= text.visible[index][1]
