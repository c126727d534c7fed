"""Markup of plain files: where headings stand, and what a reader of the rendered page never sees.

The text is the decoded file itself, so that lines and offsets are the file's own.
"""

import codecs
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from services.researcher.documents import Heading, Outline, Span, Text, Unreadable
from services.researcher.extract import code, rows
from services.researcher.extract.elements import OPEN_TAG, Elements, hidden, may_hide
from services.researcher.watch import Watch

MAX_HEADING = 200  # characters kept of a heading or title; a longer line is no heading
CHECK_EVERY = 64  # marks

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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


def read(name: str, kind: str, data: bytes, watch: Watch) -> Text:
    """Reads a plain file of a kind. Raises Unreadable when it is not text."""
    text = decode(data)
    if kind == "rows":
        return rows.read(name, text, watch)
    headings, unseen = _MARKUP.get(kind, _plain)(text, watch)
    outline = Outline(headings)
    first = min(outline.headings, key=lambda heading: heading.level, default=None) if kind != "code" else None
    return Text(text, first.text if first else name, outline, tuple(_rest(unseen, len(text))))


def words(text: str) -> str:
    """Returns the words of a heading."""
    return " ".join(text[:MAX_HEADING].split())


def _rest(unseen: Iterable[Span], length: int) -> Iterator[Span]:
    """Yields what the hidden spans leave of [0, length)."""
    position = 0
    for start, end in unseen:
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
    r"|(?P<comment><!--)"
    r"|<(?P<tag>script|style|template)\b"
    rf"|{OPEN_TAG}",
    re.M | re.I | re.X,
)
# What every mark begins with: found many times faster, so that a long text does not hold other threads. Two patterns,
# since one that begins with a fixed character is found several times faster than one that begins with either of two.
_LINE_HINT = re.compile(r"\n {0,3}(?:#|```|~~~|==|---|\[)")
_TAG_HINT = re.compile(r"<(?:!-|[sS][cCtT]|[tT][eE])")
_ANY_TAG_HINT = re.compile(r"<(?:!-|[a-zA-Z])")  # where some tag may hide what its element holds
_CLOSING = {name: re.compile(rf"</{name}\b[^>\n]{{0,20}}>", re.I) for name in ("script", "style", "template")}
_CLOSING["comment"] = re.compile("-->")


class _Markdown:
    """One pass over markdown: jumps from mark to mark."""

    def __init__(self, text: str, watch: Watch) -> None:
        self.text = text
        self.headings: list[Heading] = []
        self.hidden: list[Span] = []
        self._elements = Elements(text)
        self._watch = watch
        self._fence = ""  # the run of characters that closes the fence we are in
        self._tags = _ANY_TAG_HINT if may_hide(text) else _TAG_HINT
        self._line, self._tag = 0, self._search(self._tags, 0)  # next places where a mark may begin; -1: there is none
        self._unclosed: set[str] = set()  # what is never closed from here on: not searched for again

    def read(self) -> Marks:
        at = self._front_matter()
        for number in itertools.count():
            if at < 0:
                break
            if number % CHECK_EVERY == 0:
                self._watch.check()
            mark = _MARKDOWN.match(self.text, at)
            if mark:
                at = self._take(mark)
            elif self.text.startswith("<", at):
                at += 1
            at = self._hint(at)
        return self.headings, self.hidden

    def _hint(self, position: int) -> int:
        """Returns the next place where a mark may begin, -1 when there is none."""
        if 0 <= self._line <= position:  # where we stand, a line was tried already
            self._line = self._search(_LINE_HINT, position)
        if 0 <= self._tag < position:
            self._tag = self._search(self._tags, position)
        return min(self._line, self._tag) if self._line >= 0 and self._tag >= 0 else max(self._line, self._tag)

    def _search(self, hint: re.Pattern[str], position: int) -> int:
        found = hint.search(self.text, position)
        return -1 if found is None else found.start() + found[0].startswith("\n")

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
        elif mark["element"]:
            return self._element(mark)
        elif not self._elements.in_code(mark.start()):
            return self._hide(mark, (mark["tag"] or "comment").lower())
        return mark.end()

    def _element(self, mark: re.Match[str]) -> int:
        if not hidden(mark[0]) or self._elements.in_code(mark.start()):
            return mark.start() + 1
        end = self._elements.end(mark["element"], mark.start(), mark.end(), self._watch)
        self.hidden.append((mark.start(), end))
        return end

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
        if end - start <= 2 * MAX_HEADING and (text := words(line)):
            self.headings.append(Heading(start, end, level, text))

    def _hide(self, mark: re.Match[str], what: str) -> int:
        closing = None if what in self._unclosed else _CLOSING[what].search(self.text, mark.end())
        if closing is None:
            self._unclosed.add(what)  # without its end it is shown as text
            return mark.end()
        self.hidden.append((mark.start(), closing.end()))
        return closing.end()


def _markdown(text: str, watch: Watch) -> Marks:
    return _Markdown(text, watch).read()


# reStructuredText: a section title is a line over a run of one punctuation character; a comment is `..` that is no
# directive, target, footnote or substitution, with the indented block below it. What goes raw into the page is left out
# too: a reader sees part of it, or nothing.
_RST_HINT = re.compile(r"\n(?:(?P<unseen>[ \t]*+\.\.[ \t\r\n])|(?P<under>[=\-~^\"'`#*+.:_]){3})")
_RST_TITLE = re.compile(r"(?P<title>\S[^\n]{0,199})\n(?P<under>(\S)\3{2,})[ \t]*\r?(?=\n|\Z)")
_RST_UNSEEN = re.compile(
    r"(?:\.\.(?=[ \t\r\n])(?![ \t]+(?:[\w:.+-]+::|_|\[|\|))"
    r"|(?P<indent>[ \t]*+)\.\.[ \t]+(?:\|[^|\n]{1,200}\|[ \t]+)?raw::)[^\n]*",
    re.I,
)
_RST_LINE = re.compile(r"\n(?P<indent>[ \t]*+)(?P<words>\S?)[^\n]*")


def _rst(text: str, watch: Watch) -> Marks:
    headings: list[Heading] = []
    unseen: list[Span] = []
    levels: dict[str, int] = {}  # by first appearance
    position = _unseen(text, 0, unseen, watch)
    while hint := _RST_HINT.search(text, position):
        watch.check()
        position = hint.start() + 1
        if hint["unseen"]:
            position = _unseen(text, position, unseen, watch)
        elif heading := _section(text, hint.start(), levels):
            headings.append(heading)
            position = heading.end
    return headings, unseen


def _unseen(text: str, start: int, unseen: list[Span], watch: Watch) -> int:
    """Takes the comment or raw block that begins with a line, if one does, and returns where to go on."""
    first = _RST_UNSEEN.match(text, start)
    if first is None:
        return start
    indent, end, position = len((first["indent"] or "").expandtabs()), first.end(), first.end()
    for number in itertools.count():
        if number % CHECK_EVERY == 0:
            watch.check()
        line = _RST_LINE.match(text, position)
        if line is None or (line["words"] and len(line["indent"].expandtabs()) <= indent):
            break
        position = line.end()
        end = position if line["words"] else end
    unseen.append((start, end))
    return end


def _section(text: str, end: int, levels: dict[str, int]) -> Heading | None:
    """Takes the line that ends at `end` as a title, if the line below is a run that is long enough."""
    start = text.rfind("\n", max(end - MAX_HEADING, 0), end) + 1
    mark = _RST_TITLE.match(text, start)
    if mark is None or len(mark["under"]) < len(mark["title"].strip()) or not mark["title"].strip(mark["under"][0]):
        return None
    level = levels.setdefault(mark["under"][0], len(levels) + 1)
    return Heading(mark.start(), mark.end(), level, words(mark["title"]))


def _code(text: str, watch: Watch) -> Marks:
    return list(code.definitions(text, watch)), []


_MARKUP: dict[str, Callable[[str, Watch], Marks]] = {"markdown": _markdown, "rst": _rst, "code": _code}
