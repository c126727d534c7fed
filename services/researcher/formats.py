"""Which files a folder's source takes, and what it reads in them."""

from collections.abc import Iterator
from typing import Protocol

from services.researcher.documents import Text
from services.researcher.extract import reading
from services.researcher.extract.parsers import Parsers
from services.researcher.index.origin import Member
from services.researcher.watch import Watch


class Formats(Protocol):
    """Reads files of some kinds. Thread-safe. A file's `path` is the one below its source."""

    def supported(self, name: str) -> bool:
        """Says by its name whether a file is read."""

    def documents(self, path: str, data: bytes, watch: Watch) -> Iterator[Member]:
        """Yields what a file holds, each with the member it comes from. Raises Cancelled, OutOfTime."""

    def document(self, path: str, member: str, data: bytes, watch: Watch) -> Text:
        """Returns the text of one member, as `documents` gave it. Raises Unreadable, Cancelled, OutOfTime."""


class Documents:
    """All documents that extract/ reads."""

    def __init__(self, parsers: Parsers) -> None:
        self._parsers = parsers

    def supported(self, name: str) -> bool:
        """Says by its name whether a file is read."""
        return reading.supported(name)

    def documents(self, path: str, data: bytes, watch: Watch) -> Iterator[Member]:
        """Yields what a file holds, each with the member it comes from."""
        return reading.documents(_name(path), data, self._parsers, watch)

    def document(self, path: str, member: str, data: bytes, watch: Watch) -> Text:
        """Returns the text of one member."""
        return reading.document(_name(path), member, data, self._parsers, watch)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
