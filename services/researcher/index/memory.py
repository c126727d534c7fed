"""An index in memory, for pages that are read for one inquiry and not kept."""

from collections.abc import Callable, Sequence

from services.researcher.documents import Document, Original, Passage, Text
from services.researcher.index.lexical import Reader, Writer, open_index
from services.researcher.index.vectors import Held
from services.researcher.index.view import Found, IndexView
from services.researcher.index.words import above_text
from services.researcher.passages import split
from services.researcher.protocol import Encoder, View
from services.researcher.watch import Watch


class MemoryIndex:
    """Takes documents, then gives a view of them. Not thread-safe until it is a view.

    Args:
        encoder: finds by meaning too; None for words only.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self._index = open_index(None)
        self._writer = Writer(self._index)
        self._encoder = encoder
        self._documents: list[Document] = []
        self._passages: list[tuple[Document, Passage]] = []

    def add(self, document: Document, text: Text, watch: Watch) -> None:
        """Adds a document. Raises OutOfTime, Cancelled; then nothing of it is there."""
        passages = tuple(split(text, watch))
        above = [above_text(document.title, each.above) for each in passages]
        self._writer.add(len(self._passages), above, [each.text for each in passages], ())
        self._passages += [(document, each) for each in passages]
        self._documents.append(document)

    def view(self, original: Callable[[str, Watch], Original]) -> View:
        """Returns a view of what was added; nothing can be added any more. `original` reads a document again."""
        self._writer.commit()
        self._writer.close()
        size = len(self._documents), len(self._passages), sum(document.size for document in self._documents)
        meaning = None if self._encoder is None else Held(self._encoder, [each.text for _, each in self._passages])
        return IndexView(Reader(self._index, size[1]), self._fetch, size, original, meaning=meaning)

    def _fetch(self, numbers: Sequence[int]) -> Found:
        return {number: self._passages[number] for number in numbers}
