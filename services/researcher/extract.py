"""Bytes of a document → its text, its headings, and which parts of the text a reader sees.

For markdown, reStructuredText and plain text the text is the decoded file itself, so that lines and offsets are the
file's own. HTML becomes the text a reader sees (see hypertext.py).
"""

import codecs
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias

from services.researcher.html import HtmlParser, ParserFailed
from services.researcher.sources import Unreadable
from services.researcher.watch import Watch

MAX_HEADING = 200  # characters kept of a heading or title; a longer line is no heading
Span: TypeAlias = tuple[int, int]  # [start, end) in code points

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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


@dataclass(frozen=True, slots=True)
class Text:
    """What a document says. Only text inside `visible` may become evidence."""

    text: str
    title: str
    outline: Outline
    visible: tuple[Span, ...]


def extract(name: str, data: bytes, html: HtmlParser, watch: Watch) -> Text:
    """Reads a document by the suffix of its name. Raises Unreadable when it is not text."""
    text = decode(data)
    if _is_html(name):
        return _html(name, text, html, watch)
    headings, hidden = _MARKUP.get(PurePosixPath(name).suffix.lower(), _plain)(text, watch)
    outline = Outline(headings)
    first = min(outline.headings, key=lambda heading: heading.level, default=None)
    return Text(text, first.text if first else name, outline, tuple(_rest(hidden, len(text))))


def decode(data: bytes) -> str:
    """Returns UTF-8, or UTF-16 with its byte order mark, as text without the mark. Raises Unreadable."""
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Unreadable(f"It is not valid {encoding.removesuffix('-sig').upper()} (byte {error.start}).") from None
    if "\0" in text:
        raise Unreadable("It holds NUL characters, so it is binary and not text.")
    return text


def reread(name: str, data: bytes, html: HtmlParser, watch: Watch) -> str:
    """Returns only the text that `extract` returns."""
    if _is_html(name):
        return _html(name, decode(data), html, watch).text
    return decode(data)


def _is_html(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in (".html", ".htm")


def _html(name: str, markup: str, html: HtmlParser, watch: Watch) -> Text:
    try:
        page = html.parse(markup, watch)
    except ParserFailed as failed:
        raise Unreadable(str(failed)) from None
    text: str = page["text"]
    outline = Outline(Heading(start, end, level, _line(text[start:end])) for start, end, level in page["headings"])
    first = outline.headings[0].text if outline.headings else name
    return Text(text, page["title"] or first, outline, ((0, len(text)),))


def _line(text: str) -> str:
    return " ".join(text[:MAX_HEADING].split())


def below(above: tuple[Heading, ...], heading: Heading) -> tuple[Heading, ...]:
    """Returns the headings above what follows `heading`, given those above it."""
    return (*(each for each in above if each.level < heading.level), heading)


def _paths(headings: Iterable[Heading]) -> Iterator[tuple[Heading, ...]]:
    above: tuple[Heading, ...] = ()
    for heading in headings:
        above = below(above, heading)
        yield above


def _rest(hidden: Iterable[Span], length: int) -> Iterator[Span]:
    """Yields what the hidden spans leave of [0, length)."""
    position = 0
    for start, end in hidden:
        if start > position:
            yield position, start
        position = max(position, end)
    if position < length:
        yield position, length


Marks: TypeAlias = tuple[list[Heading], list[Span]]


def _plain(text: str, watch: Watch) -> Marks:
    return [], []


# What a markdown line may begin with, and what a reader of the rendered page never sees (CommonMark 0.31: 4.2 ATX and
# 4.3 setext headings, 4.5 fences, 4.6 HTML blocks, 4.7 link reference definitions). Every part is linear.
_MARKDOWN = re.compile(
    r"^[ ]{0,3}(?:(?P<fence>`{3,}|~{3,})[^\n]*"
    r"|(?P<atx>\#{1,6})(?=[ \t\r\n]|\Z)[^\n]*"
    r"|(?P<setext>={2,}|-{3,})[ \t]*\r?$"
    r"|(?P<definition>\[[^\^\]\n][^\]\n]{0,200}\]:)[^\n]*)"
    r"|(?<!`)(?P<comment><!--)"
    r"|(?<!`)<(?P<tag>script|style|template)\b",
    re.M | re.I | re.X,
)
# What every mark begins with: found many times faster, so that a long text does not hold other threads.
_MARKDOWN_HINT = re.compile(r"\n[ ]{0,3}[#`~=\[-]|<[!st]", re.I)
_CLOSING = {name: re.compile(rf"</{name}\b[^>\n]{{0,20}}>", re.I) for name in ("script", "style", "template")}
_CLOSING["comment"] = re.compile("-->")


class _Markdown:
    """One pass over markdown: jumps from mark to mark."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.headings: list[Heading] = []
        self.hidden: list[Span] = []
        self._fence = ""  # the run of characters that closes the fence we are in
        self._unclosed: set[str] = set()  # what is never closed from here on: not searched for again

    def read(self, watch: Watch) -> Marks:
        at = self._front_matter()
        while at >= 0:
            watch.check()
            mark = _MARKDOWN.match(self.text, at)
            if mark:
                at = self._take(mark)
            elif self.text.startswith("<", at):
                at += 1
            at = self._hint(at)
        return self.headings, self.hidden

    def _hint(self, position: int) -> int:
        """Returns the next place where a mark may begin, -1 when there is none."""
        hint = _MARKDOWN_HINT.search(self.text, position)
        return -1 if hint is None else hint.start() + hint[0].startswith("\n")

    def _front_matter(self) -> int:
        """Passes over a YAML block at the top, which renderers do not show."""
        end = self.text.find("\n---", 3) if self.text.startswith(("---\n", "---\r\n")) else -1
        if end < 0:
            return 0
        self.hidden.append((0, end + 4))
        return end + 4

    def _take(self, mark: re.Match[str]) -> int:
        """Handles one mark and returns where to go on."""
        if mark["fence"]:
            return self._toggle(mark)
        if self._fence:
            return mark.start() + 1
        if mark["atx"]:
            self._add(mark.start("atx"), mark.end(), len(mark["atx"]), mark[0].strip().strip("#"))
        elif mark["setext"]:
            self._underline(mark)
        elif mark["definition"]:
            self.hidden.append(mark.span())
        else:
            return self._hide(mark, (mark["tag"] or "comment").lower())
        return mark.end()

    def _toggle(self, mark: re.Match[str]) -> int:
        run = mark["fence"]
        if not self._fence:
            self._fence = run
        elif run.startswith(self._fence) and mark[0].strip() == run:
            self._fence = ""
        return mark.end()

    def _underline(self, mark: re.Match[str]) -> None:
        """Takes the line above `===` or `---` as a heading, if there is one."""
        end = mark.start() - 1
        start = self.text.rfind("\n", max(end - MAX_HEADING, 0), max(end, 0)) + 1
        line = self.text[start:end].strip()
        known = bool(self.headings) and self.headings[-1].end > start
        if line and end - start < MAX_HEADING and not known and line[0] not in "|>-*+`":
            self._add(start, mark.end(), 1 if mark["setext"][0] == "=" else 2, line)

    def _add(self, start: int, end: int, level: int, line: str) -> None:
        if end - start <= 2 * MAX_HEADING and (text := _line(line)):
            self.headings.append(Heading(start, end, level, text))

    def _hide(self, mark: re.Match[str], what: str) -> int:
        closing = None if what in self._unclosed else _CLOSING[what].search(self.text, mark.end())
        if closing is None:
            self._unclosed.add(what)  # without its end it is shown as text
            return mark.end()
        self.hidden.append((mark.start(), closing.end()))
        return closing.end()


def _markdown(text: str, watch: Watch) -> Marks:
    return _Markdown(text).read(watch)


# reStructuredText: a section title is a line over a run of one punctuation character; a comment is `..` that is no
# directive, target, footnote or substitution, with the indented block below it.
_RST_HINT = re.compile(r"\n(?:(?P<comment>\.\.)[ \t\r\n]|(?P<under>[=\-~^\"'`#*+.:_]){3})")
_RST_TITLE = re.compile(r"(?P<title>\S[^\n]{0,199})\n(?P<under>(\S)\3{2,})[ \t]*\r?(?=\n|\Z)")
_RST_COMMENT = re.compile(r"\.\.(?=[ \t\r\n])(?![ \t]+(?:[\w:.+-]+::|_|\[|\|))[^\n]*(?:\n(?:[ \t][^\n]*|(?=\r?\n)))*")


def _rst(text: str, watch: Watch) -> Marks:
    headings: list[Heading] = []
    hidden: list[Span] = []
    levels: dict[str, int] = {}  # by first appearance
    position = 0
    while hint := _RST_HINT.search(text, position):
        watch.check()
        position = hint.start() + 1
        if hint["comment"]:
            if comment := _RST_COMMENT.match(text, position):
                hidden.append(comment.span())
                position = comment.end()
        elif heading := _section(text, hint.start(), levels):
            headings.append(heading)
            position = heading.end
    return headings, hidden


def _section(text: str, end: int, levels: dict[str, int]) -> Heading | None:
    """Takes the line that ends at `end` as a title, if the line below is a run that is long enough."""
    start = text.rfind("\n", max(end - MAX_HEADING, 0), end) + 1
    mark = _RST_TITLE.match(text, start)
    if mark is None or len(mark["under"]) < len(mark["title"].strip()) or not mark["title"].strip(mark["under"][0]):
        return None
    level = levels.setdefault(mark["under"][0], len(levels) + 1)
    return Heading(mark.start(), mark.end(), level, _line(mark["title"]))


_MARKUP: dict[str, Callable[[str, Watch], Marks]] = {".md": _markdown, ".markdown": _markdown, ".rst": _rst}
