"""HTML elements in plain markup that hide what they hold: where they begin and where they end.

No parser of HTML: the service reads plain files itself, so this takes linear time and little memory whatever the text.
What is in doubt is hidden.
"""

import html
import re
from bisect import bisect_right
from collections.abc import Iterator

from services.researcher.documents import Span
from services.researcher.extract.hiding import hides
from services.researcher.watch import Watch

SCANS = 4  # times the length of a text may be looked through in vain for ends; then all the rest of it is hidden
CHECK_EVERY = 256  # tags

# An opening tag with attributes (CommonMark 0.31, 6.6). A quote or `<` in the wrong place ends the try at once: of the
# tries that begin at different places at most two can then be long, so all together are linear.
OPEN_TAG = r"<(?P<element>[a-z][a-z0-9:_-]*+)(?=[\s/])(?:[^\"'<>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+'|(?=[^\"'])))*+>"
_ATTRIBUTE = re.compile(
    r"[\s/\"'](?P<name>hidden|aria-hidden|style)(?=[\s=/>])(?:\s*+=\s*+(?P<value>\"[^\"]*+\"|'[^']*+'|[^\s\"'<>]++))?",
    re.I,
)
_QUOTED = re.compile(r"=\s*+(?:\"[^\"]*+\"|'[^']*+')")
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:_-]*+)")
_BLANK = re.compile(r"\n[ \t]*\r?\n")
_TICKS = re.compile(r"(?<!\\)`+")
_VOID_NAMES = "area base br col embed hr img input link meta source track wbr"
_VOID = frozenset(_VOID_NAMES.split())
_SHORT = frozenset(("p", "li", "dt", "dd", "option", "td", "th", "tr"))  # they may end without a tag (HTML 13.1.2.4)


def may_hide(text: str) -> bool:
    """Says whether some tag in a text may hide something. Fast, for most texts have none."""
    if "<" not in text:
        return False
    small = text.lower()
    return "hidden" in small or "style" in small


def hidden(tag: str) -> bool:
    """Says whether an opening tag hides what its element holds, by `hidden`, `aria-hidden` or its style."""
    if not may_hide(tag):
        return False
    for name, value in _attributes(tag):
        if name == "hidden" or (name == "aria-hidden" and value.strip().lower() == "true"):
            return True
        if name == "style" and hides(html.unescape(value)):
            return True
    return False


def _attributes(tag: str) -> Iterator[tuple[str, str]]:
    """Yields those that may hide. What stands inside the quotes of others is none."""
    position = 0
    for quoted in [*_QUOTED.finditer(tag), None]:
        end = quoted.end() if quoted else len(tag)
        for found in _ATTRIBUTE.finditer(tag, max(position - 1, 0), end):
            if quoted is None or found.start() < quoted.start():
                yield found["name"].lower(), _bare(found["value"] or "")
        position = end


def _bare(value: str) -> str:
    return value[1:-1] if value[:1] in "\"'" else value


class Elements:
    """Finds where the hidden elements of one text end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._left = SCANS * len(text)  # characters that may be looked through in vain
        self._open: set[str] = set(_SHORT)  # names of which some element does not end: they are not counted in pairs
        self._never: set[str] = set()  # names that nothing closes from here on
        self._line: Span = (0, 0)  # of which we know the code spans
        self._code: list[Span] = []

    def end(self, name: str, start: int, after: int, watch: Watch) -> int:
        """Returns where a hidden element ends that begins at `start` and whose first tag ends at `after`."""
        name = name.lower()
        if name in _VOID:
            return after
        if self._left <= 0:
            return len(self._text)
        end = self._closing(name, after, watch)
        if end >= 0:
            return end
        (self._never if name in self._open else self._open).add(name)
        line = self._text.rfind("\n", max(start - 4, 0), start) + 1
        if name not in _SHORT and start - line < 4 and not self._text[line:start].strip():
            return len(self._text)  # a block without an end
        blank = _BLANK.search(self._text, after)
        return blank.start() if blank else len(self._text)

    def _closing(self, name: str, position: int, watch: Watch) -> int:
        """Returns the end of the tag that closes, -1 when there is none."""
        if name in self._never:
            return -1
        depth = 1
        for number, tag in enumerate(_TAG.finditer(self._text, position)):
            if number % CHECK_EVERY == 0:
                watch.check()
            if tag[2].lower() != name or (not tag[1] and name in self._open) or self.in_code(tag.start()):
                continue
            depth += -1 if tag[1] else 1
            if not depth:
                end = self._text.find(">", tag.end(), tag.end() + 100)
                return end + 1 if end >= 0 else tag.end()
        self._left -= len(self._text) - position
        return -1

    def in_code(self, at: int) -> bool:
        """Says whether a place is in a code span of its line (CommonMark 6.1)."""
        if not self._line[0] <= at < self._line[1]:
            start = self._text.rfind("\n", 0, at) + 1
            end = self._text.find("\n", at)
            self._line = start, end + 1 if end >= 0 else len(self._text) + 1
            self._code = list(_code_spans(self._text, *self._line))
        before = bisect_right(self._code, at, key=lambda span: span[0])
        return before > 0 and at < self._code[before - 1][1]


def _code_spans(text: str, start: int, end: int) -> Iterator[Span]:
    """Yields the code spans of a line: each from a run of backticks to the next run that is as long."""
    runs = [run.span() for run in _TICKS.finditer(text, start, end)]
    later: dict[int, int] = {}  # by length
    closing = [-1] * len(runs)
    for number in range(len(runs) - 1, -1, -1):
        length = runs[number][1] - runs[number][0]
        closing[number] = later.get(length, -1)
        later[length] = number
    number = 0
    while number < len(runs):
        if closing[number] >= 0:
            yield runs[number][0], runs[closing[number]][1]
            number = closing[number]
        number += 1
