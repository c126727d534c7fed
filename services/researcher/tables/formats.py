"""Files of tables as a folder's source reads them."""

from collections.abc import Iterator

from services.researcher.documents import Text
from services.researcher.extract.parsers import Parsers
from services.researcher.extract.reading import again, parsed
from services.researcher.index.origin import Member
from services.researcher.tables.kinds import kind
from services.researcher.tables.program import BOOT
from services.researcher.watch import Watch


class Tables:
    """Tables in files, each a document: of a database `shop.sqlite!/orders`. Parsed in processes of their own."""

    def __init__(self) -> None:
        self._parsers = Parsers(BOOT)

    def supported(self, name: str) -> bool:
        """Says by its name whether a file holds tables."""
        return kind(name) != ""

    def documents(self, path: str, data: bytes, watch: Watch) -> Iterator[Member]:
        """Yields the text of each table. Raises Cancelled, OutOfTime."""
        return parsed(path, None, data, self._parsers, watch)

    def document(self, path: str, member: str, data: bytes, watch: Watch) -> Text:
        """Returns the text of one table. Raises Unreadable, Cancelled, OutOfTime."""
        return again(path, member, data, self._parsers, watch)

    def close(self) -> None:
        """Ends the processes."""
        self._parsers.close()
