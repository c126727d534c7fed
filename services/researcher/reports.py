"""The folder of reports as a source: the reports of earlier tasks, what their commands wrote, the files they left.

What is still being written has a name that begins with a dot and never belongs to a folder's source.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from services.researcher.documents import Text
from services.researcher.formats import Documents
from services.researcher.index.origin import Member
from services.researcher.watch import Watch

FINDINGS = "findings.json"  # repeats the quotes of other sources
OUTPUTS = frozenset({".stdout", ".stderr"})  # of a task's commands, `command-1.stdout`
AS_TEXT = ".txt"
# Select Graphic Rendition (ECMA-48, 8.3.117): 8 conceals what follows, 28 and 0 reveal it.
_CONCEALED = re.compile(r"\x1b\[(?:[\d;]*;)?8m.*?(?:\x1b\[(?:[\d;]*;)?(?:0|28)?m|\Z)", re.S)


class Reports:
    """Reads what extract/ reads, and the output of commands as text."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def supported(self, name: str) -> bool:
        """Says by its name whether a file is read."""
        return name != FINDINGS and (_is_output(name) or self._documents.supported(name))

    def documents(self, path: str, data: bytes, watch: Watch) -> Iterator[Member]:
        """Yields what a file holds."""
        if not _is_output(path):
            yield from self._documents.documents(path, data, watch)
            return
        for member, found in self._documents.documents(f"{path}{AS_TEXT}", data, watch):
            yield member, _titled(found, path) if isinstance(found, Text) else found

    def document(self, path: str, member: str, data: bytes, watch: Watch) -> Text:
        """Returns the text of one member. Raises Unreadable, Cancelled, OutOfTime."""
        if not _is_output(path):
            return self._documents.document(path, member, data, watch)
        return _titled(self._documents.document(f"{path}{AS_TEXT}", member, data, watch), path)


def _is_output(path: str) -> bool:
    return PurePosixPath(path).suffix in OUTPUTS


def _titled(text: Text, path: str) -> Text:
    visible, at = [], 0
    for found in _CONCEALED.finditer(text.text):
        visible.append((at, found.start()))
        at = found.end()
    visible.append((at, len(text.text)))
    spans = tuple((start, end) for start, end in visible if start < end)
    return replace(text, title=PurePosixPath(path).name, visible=spans)
