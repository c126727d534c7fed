"""HTML → the text a reader sees, with its headings. Part of the parser process."""

import codecs
import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from services.researcher.extract.hiding import hides
from services.researcher.extract.parts import Bounds, Broken, Items, Part

CLOCK = (2.0, 1e-6)  # CPU seconds for one page, and for each byte; ordinary markup takes about 0.4e-6 a byte
MAX_TITLE = 200  # characters
HEADINGS = {f"h{level}": level for level in range(1, 7)}
# Never shown as text, or not until a script or a person acts.
_UNSEEN = (
    "script style template noscript head title iframe object embed svg math canvas audio video map select datalist "
    "textarea input button"
)
UNSEEN = frozenset(_UNSEEN.split())
_BLOCKS = (
    "address article aside blockquote body caption center details dialog dir div dl fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend main menu nav ol p pre section summary table tbody "
    "tfoot thead ul"
)
_GAPS = ("", " ", " | ", "\n", "\n\n")  # white space between two words, each stronger than the one before
_LINES = dict.fromkeys(("li", "dt", "dd", "tr"), "\n")
_AFTER = dict.fromkeys(_BLOCKS.split(), "\n\n") | _LINES
_BEFORE = _AFTER | {"br": "\n", "td": " | ", "th": " | "}
PRESCAN_BYTES = 1024  # where a page must name its encoding
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.I)
# Leads elsewhere and says nothing: landmarks (HTML 4.3.4, ARIA), and the lines of links that DocBook makes.
NAVIGATION = 'nav, [role="navigation"], table[summary^="Navigation "]'
_SPACE = re.compile(r"\s+")
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.S)
# Rules for other media, such as print, say nothing about what a reader sees.
_AT_BLOCK = re.compile(r"@[^{};]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")


class _Page:
    """Collects text: white space folded within a block, one empty line between blocks, `pre` as it stands."""

    def __init__(self, hidden: set[int]) -> None:
        self.hidden = hidden
        self.parts: list[str] = []
        self.length = 0
        self.headings: list[tuple[int, int, int]] = []
        self._open = 0  # where the heading being read began
        self._pre = 0  # how many `pre` are open
        self._gap = ""  # white space owed before the next word

    def enter(self, node: LexborNode) -> bool:
        """Takes a node in; False when nothing below it is seen."""
        tag = node.tag or ""
        if tag == "-text":
            self._text(node.text_content or "")
            return False
        if tag.startswith("-") or tag in UNSEEN or node.mem_id in self.hidden:
            return False
        self._owe(_BEFORE.get(tag, ""))
        self._pre += tag == "pre"
        if tag in HEADINGS:
            self._open = self.length + len(self._gap if self.parts else "")
        return True

    def leave(self, tag: str) -> None:
        """Ends an element that was entered."""
        self._pre -= tag == "pre"
        if tag in HEADINGS and self.length > self._open:
            self.headings.append((self._open, self.length, HEADINGS[tag]))
        self._owe(_AFTER.get(tag, ""))

    def _owe(self, space: str) -> None:
        self._gap = max(self._gap, space, key=_GAPS.index)

    def _text(self, text: str) -> None:
        bare = text.strip() if self._pre else " ".join(text.split())
        if text[:1].isspace():
            self._owe(" ")
        if not bare:
            return
        shown = (self._gap if self.parts else "") + (text if self._pre else bare)
        self.parts.append(shown)
        self.length += len(shown)
        self._gap = " " if text[-1].isspace() and not self._pre else ""


def read(data: bytes, bounds: Bounds) -> Items:
    """Yields the page. Raises Broken."""
    yield part(decode(data))


def part(markup: str) -> Part:
    """Returns the visible text, the title and the headings of a page, without its navigation if it has more."""
    tree = LexborHTMLParser(markup)
    hidden = {*_hidden_by_attribute(tree), *_hidden_by_style(tree)}
    leading = {node.mem_id for node in tree.css(NAVIGATION)}
    page = _Page(hidden | leading)
    _visit(tree.root, page)
    if leading and not page.parts:  # it is nothing else, or says so of all of it
        page = _Page(hidden)
        _visit(tree.root, page)
    title = tree.css_first("title")
    text = _SPACE.sub(" ", (title.text() if title else "") or "").strip()
    return Part("", "".join(page.parts), text[:MAX_TITLE], tuple(page.headings))


def decode(data: bytes) -> str:
    """Returns markup as text: by its byte order mark, as UTF-8, or as it says itself (HTML 13.2.3.2). Raises Broken."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = _declared(data) or ""
        if not text:
            raise Broken(f"It is not valid {encoding.removesuffix('-sig').upper()} (byte {error.start}).") from None
    if "\0" in text:
        raise Broken("It holds NUL characters, so it is binary and not text.")
    return text


def _declared(data: bytes) -> str | None:
    """Returns the text by the encoding named at the top, if there is one that fits."""
    if not (found := _CHARSET.search(data[:PRESCAN_BYTES])):
        return None
    name = found[1].decode("ascii").lower()
    try:
        return data.decode("cp1252" if name in ("iso-8859-1", "latin1", "ascii", "us-ascii") else name)
    except (LookupError, ValueError):
        return None


def _hidden_by_attribute(tree: LexborHTMLParser) -> Iterator[int]:
    """Yields the nodes that say themselves that they are not shown."""
    for node in tree.css("[hidden], [aria-hidden], [style], dialog"):
        given = node.attributes
        if (
            "hidden" in given
            or (given.get("aria-hidden") or "").strip().lower() == "true"
            or hides(given.get("style") or "")
            or (node.tag == "dialog" and "open" not in given)
        ):
            yield node.mem_id


def _hidden_by_style(tree: LexborHTMLParser) -> Iterator[int]:
    """Yields the nodes that the page's own style sheets hide, as far as selectors tell without running a browser."""
    for sheet in tree.css("style"):
        rules = _AT_BLOCK.sub("", _CSS_COMMENT.sub("", sheet.text() or ""))
        for selector, body in _RULE.findall(rules):
            if hides(body):
                yield from _matches(tree, selector.strip())


def _matches(tree: LexborHTMLParser, selector: str) -> list[int]:
    try:
        return [node.mem_id for node in tree.css(selector)]
    except Exception:  # selectolax raises several types for a selector it does not know; that rule hides nothing here
        return []


def _visit(root: LexborNode | None, page: _Page) -> None:
    """Walks in document order without recursion: depth is the document's to choose."""
    node = root
    while node is not None:
        if page.enter(node):
            if node.child is not None:
                node = node.child
                continue
            page.leave(node.tag or "")
        while node is not None and node.next is None:
            node = node.parent
            if node is not None:
                page.leave(node.tag or "")
        node = node.next if node is not None else None
