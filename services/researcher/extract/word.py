"""Word documents (WordprocessingML, ECMA-376 part 1, 17) → text.

Left out, since no reader sees it: hidden runs (by themselves or by style), deleted and moved-away revisions, comments,
field codes, alternative texts, white text without a background, text of one point or less.
"""

from dataclasses import dataclass, field, replace

from services.researcher.extract.ooxml import Package, on, walk
from services.researcher.extract.parts import Bounds, Items, Page

MAX_HEADING = 200  # characters; a longer paragraph is no heading
_GONE = frozenset(
    {"w:del", "w:moveFrom", "mc:Fallback", "w:instrText", "w:delText", "w:rt", "w:pPrChange", "w:rPrChange"}
)
_BREAKS = {"w:tab": "\t", "w:br": "\n", "w:cr": "\n", "w:noBreakHyphen": "-"}
_LEAST_SIZE = 2  # half-points; what is no larger cannot be read
_WHITE = "ffffff"
_VAL = "w:val"


@dataclass(frozen=True, slots=True)
class _Look:
    """What decides whether a run is seen; None where nothing is said."""

    hidden: bool | None = None
    color: str | None = None
    backed: bool | None = None  # shading or highlight stands behind it
    size: int | None = None

    def over(self, below: "_Look") -> "_Look":
        """Returns this look, and what it leaves open from the one below."""
        return _Look(
            below.hidden if self.hidden is None else self.hidden,
            below.color if self.color is None else self.color,
            below.backed if self.backed is None else self.backed,
            below.size if self.size is None else self.size,
        )

    @property
    def seen(self) -> bool:
        """Returns whether a reader sees a run of this look."""
        blank = self.color == _WHITE and not self.backed
        return not (self.hidden or blank or (self.size is not None and self.size <= _LEAST_SIZE))


def _taken(look: _Look, tag: str, given: dict[str, str]) -> _Look:
    """Returns a look with one property of a run (w:rPr) taken in."""
    value = given.get(_VAL, "")
    if tag in ("w:vanish", "w:specVanish"):
        return replace(look, hidden=on(given, _VAL))
    if tag == "w:color":
        return replace(look, color=value.lower())
    if tag == "w:highlight":
        return replace(look, backed=value not in ("none", "white"))
    if tag == "w:shd":
        return replace(look, backed=given.get("w:fill", "auto").lower() not in ("auto", _WHITE))
    if tag == "w:sz" and value.isdecimal():
        return replace(look, size=int(value))
    return look


@dataclass(slots=True)
class _Style:
    look: _Look = _Look()
    level: int = 0
    based: str = ""


class _Styles:
    """Styles by id: their look and heading level, with those they are based on."""

    def __init__(self, data: bytes) -> None:
        self._styles: dict[str, _Style] = {}
        self._current = self._defaults = _Style()
        self.normal = ""
        if data:
            walk(data, self._start)

    def _start(self, tag: str, given: dict[str, str]) -> None:
        if tag == "w:style":
            self._current = self._styles[given.get("w:styleId", "")] = _Style()
            if given.get("w:type") == "paragraph" and given.get("w:default", "0") in ("1", "true", "on"):
                self.normal = given.get("w:styleId", "")
        elif tag == "w:basedOn":
            self._current.based = given.get(_VAL, "")
        elif tag == "w:name":
            self._current.level = self._current.level or _level(given.get(_VAL, ""))
        elif tag == "w:outlineLvl":
            self._current.level = _outline(given)
        else:
            self._current.look = _taken(self._current.look, tag, given)

    def look(self, name: str) -> _Look:
        """Returns the look of a style."""
        look, seen = _Look(), 0
        while name in self._styles and seen < 20:  # a chain may be a ring
            look = look.over(self._styles[name].look)
            name, seen = self._styles[name].based, seen + 1
        return look

    def bottom(self) -> _Look:
        """Returns the look of a document's plain text."""
        return self._defaults.look

    def level(self, name: str) -> int:
        """Returns the heading level of a style, 0 when it is none."""
        seen = 0
        while name in self._styles and seen < 20:
            if self._styles[name].level:
                return self._styles[name].level
            name, seen = self._styles[name].based, seen + 1
        return 0


def _level(name: str) -> int:
    name = name.lower()
    if name == "title":
        return 1
    number = name.removeprefix("heading ")
    return int(number) if number != name and number.isdecimal() and 1 <= int(number) <= 9 else 0


def _outline(given: dict[str, str]) -> int:
    value = given.get(_VAL, "9")
    return int(value) + 1 if value.isdecimal() and int(value) < 9 else 0


@dataclass(slots=True)
class _Paragraph:
    text: list[str] = field(default_factory=list)
    style: str = ""
    level: int = 0


class _Body:
    """Takes in the elements of a document part."""

    def __init__(self, styles: _Styles, page: Page) -> None:
        self._styles = styles
        self._page = page
        self._gone = 0  # how many elements are open of which nothing is seen
        self._open: list[_Paragraph] = []  # a text box lies inside a paragraph
        self._run = _Look()
        self._in_run = self._in_text = False
        self._seen = True
        self._mark = 0  # how many paragraph properties are open: the look in them is that of the mark
        self._cells: list[int] = []  # cells begun in each open row
        self._cell_begun = False

    def start(self, tag: str, given: dict[str, str]) -> None:
        if self._gone or tag in _GONE:
            self._gone += 1
        elif tag == "w:p":
            self._begin()
        elif tag == "w:pPr":
            self._mark += 1
        elif tag == "w:tr":
            self._cells.append(0)
        elif tag == "w:tc":
            self._cell()
        elif self._open:
            self._inside(tag, given)

    def _inside(self, tag: str, given: dict[str, str]) -> None:
        paragraph = self._open[-1]
        if self._mark:
            if tag == "w:pStyle":
                paragraph.style = given.get(_VAL, "")
            elif tag == "w:outlineLvl":
                paragraph.level = _outline(given)
        elif tag == "w:r":
            self._in_run, self._run, self._seen = True, _Look(), self._visible(_Look())
        elif tag == "w:rStyle":
            self._run = self._run.over(self._styles.look(given.get(_VAL, "")))
            self._seen = self._visible(self._run)
        elif tag == "w:t":
            self._in_text = True
        elif tag in _BREAKS and self._seen:
            paragraph.text.append(_BREAKS[tag])
        elif self._in_run:
            self._run = _taken(self._run, tag, given)
            self._seen = self._visible(self._run)

    def _visible(self, run: _Look) -> bool:
        style = self._open[-1].style or self._styles.normal
        return run.over(self._styles.look(style)).over(self._styles.bottom()).seen

    def end(self, tag: str) -> None:
        if self._gone:
            self._gone -= 1
        elif tag == "w:t":
            self._in_text = False
        elif tag == "w:r":
            self._in_run = False
        elif tag == "w:pPr":
            self._mark = max(self._mark - 1, 0)
        elif tag == "w:p" and self._open:
            self._close(self._open.pop())
        elif tag == "w:tr" and self._cells:
            self._cells.pop()
            self._page.add("\n")
        elif tag == "w:tbl":
            self._page.add("\n")

    def chars(self, data: str) -> None:
        if self._in_text and self._seen and not self._gone and self._open:
            self._open[-1].text.append(data)

    def _begin(self) -> None:
        self._open.append(_Paragraph())

    def _cell(self) -> None:
        if self._cells:
            self._cells[-1] += 1
            self._page.add(" | " if self._cells[-1] > 1 else "")
            self._cell_begun = False

    def _close(self, paragraph: _Paragraph) -> None:
        text = "".join(paragraph.text).strip()
        if not text:
            return
        level = paragraph.level or self._styles.level(paragraph.style)
        if self._cells:
            self._page.add(" " * self._cell_begun + " ".join(text.split()))
            self._cell_begun = True
        elif level and len(text) <= MAX_HEADING:
            self._page.heading(text, level)
            self._page.add("\n\n")
        else:
            self._page.add(text + "\n\n")


def read(data: bytes, bounds: Bounds) -> Items:
    """Yields the text of a document, its foot- and endnotes behind it. Raises Broken."""
    package = Package(data, bounds)
    main = package.main()
    related = list(package.related(main).values())
    styles = _Styles(b"".join(package.get(name) for kind, name in related if kind == "styles"))
    page = Page()
    notes = [name for kind, name in related if kind in ("footnotes", "endnotes")]
    for data_ in (package.need(main), *(package.get(name) for name in notes)):
        body = _Body(styles, page)
        if data_:
            walk(data_, body.start, body.end, body.chars)
    yield page.part(package.title())
