"""The folder of reports as a source: the reports of earlier tasks, what their commands wrote, the files they left.

What is still being written has a name that begins with a dot and never belongs to a folder's source.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from services.researcher.documents import Span, Text
from services.researcher.formats import Documents
from services.researcher.index.origin import Member
from services.researcher.watch import Watch

FINDINGS = "findings.json"  # repeats the quotes of other sources
OUTPUTS = frozenset({".stdout", ".stderr"})  # of a task's commands, `command-1.stdout`
AS_TEXT = ".txt"
_RENDITION = re.compile(r"\x1b\[([\d;]{0,64})m", re.A)
_COLOURS = {"5": 2, "2": 4}  # parameters that follow 38, 48 or 58: a number of a palette, or red, green and blue


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
    return replace(text, title=PurePosixPath(path).name, visible=tuple(_shown(text.text)))


def _shown(text: str) -> Iterator[Span]:
    """Yields what a terminal shows: all that is not concealed (SGR 8 until 28 or 0; ECMA-48, 8.3.117)."""
    at, concealed = 0, False
    for mark in _RENDITION.finditer(text):
        before, concealed = concealed, _concealed(mark[1].split(";"), concealed)
        if concealed and not before and mark.start() > at:
            yield at, mark.start()
        if before and not concealed:
            at = mark.end()
    if not concealed and at < len(text):
        yield at, len(text)


def _concealed(parameters: Sequence[str], before: bool) -> bool:
    """Says whether text is concealed behind a sequence with these parameters."""
    concealed, position = before, 0
    while position < len(parameters):
        parameter = parameters[position].lstrip("0")
        if parameter in ("38", "48", "58"):  # a colour: its own parameters mean nothing else
            position += _COLOURS.get("".join(parameters[position + 1 : position + 2]), 0)
        elif parameter == "8":
            concealed = True
        elif parameter in ("", "28"):
            concealed = False
        position += 1
    return concealed
