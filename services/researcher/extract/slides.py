"""PowerPoint presentations (PresentationML, ECMA-376 part 1, 19) → text, slide by slide.

Left out, since an audience sees none of it: hidden slides, hidden shapes, shapes wholly outside of the slide, notes,
comments, alternative texts, text of one point or less.
"""

from services.researcher.extract.ooxml import Package, on, walk
from services.researcher.extract.parts import Bounds, Broken, Items, Page, Trouble

MAX_SLIDES = 5_000
LEAST_SIZE = 100  # hundredths of a point; what is no larger cannot be read
_SHAPES = frozenset({"p:sp", "p:graphicFrame", "p:pic", "p:cxnSp", "p:grpSp"})


class _Deck:
    """The order of slides, and how large they are."""

    def __init__(self, data: bytes) -> None:
        self.slides: list[str] = []
        self.size = (0, 0)
        walk(data, self._start)

    def _start(self, tag: str, given: dict[str, str]) -> None:
        if tag == "p:sldId":
            self.slides.append(given.get("r:id", ""))
        elif tag == "p:sldSz":
            self.size = (_number(given, "cx"), _number(given, "cy"))


class _Slide:
    """Takes in the elements of one slide."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.hidden = False
        self.title = ""
        self.lines: list[str] = []
        self._size = size
        self._gone = 0
        self._groups = 0  # how many are open: places inside are the group's own
        self._shape: list[str] = []
        self._away = self._is_title = False
        self._at = (0, 0)
        self._text: list[str] = []
        self._in_text = False
        self._seen = True
        self._row: list[str] | None = None

    def start(self, tag: str, given: dict[str, str]) -> None:
        if self._gone or tag == "mc:Fallback":
            self._gone += 1
        elif tag == "p:sld":
            self.hidden = not on(given, "show")
        elif tag in _SHAPES:
            self._begin(tag)
        elif tag == "p:cNvPr":
            self._away = self._away or ("hidden" in given and on(given, "hidden"))
        elif tag == "p:ph":
            self._is_title = given.get("type") in ("title", "ctrTitle")
        elif tag == "a:off":
            self._at = (_number(given, "x"), _number(given, "y"))
        elif tag == "a:ext" and "cx" in given:
            self._place(_number(given, "cx"), _number(given, "cy"))
        else:
            self._inside(tag, given)

    def _inside(self, tag: str, given: dict[str, str]) -> None:
        if tag == "a:tr":
            self._row = []
        elif tag in ("a:p", "a:tc"):
            self._text = [] if tag == "a:p" and self._row is None else self._text
        elif tag in ("a:r", "a:fld"):
            self._seen = True
        elif tag == "a:rPr":
            self._seen = _number(given, "sz", LEAST_SIZE + 1) > LEAST_SIZE
        elif tag == "a:t":
            self._in_text = True
        elif tag == "a:br":
            self._text.append(" ")

    def end(self, tag: str) -> None:
        if self._gone:
            self._gone -= 1
        elif tag == "a:t":
            self._in_text = False
        elif tag == "a:p":
            self._paragraph()
        elif tag == "a:tc" and self._row is not None:
            self._row.append(" ".join("".join(self._text).split()))
            self._text = []
        elif tag == "a:tr" and self._row is not None:
            self._line(" | ".join(self._row))
            self._row = None
        elif tag in _SHAPES and self._shape:
            self._finish(self._shape.pop())

    def chars(self, data: str) -> None:
        if self._in_text and self._seen and not self._gone and not self._away:
            self._text.append(data)

    def _begin(self, tag: str) -> None:
        self._shape.append(tag)
        self._groups += tag == "p:grpSp"
        self._is_title = False

    def _finish(self, tag: str) -> None:
        self._groups -= tag == "p:grpSp"
        self._is_title = False
        if not self._groups:
            self._away = False

    def _place(self, width: int, height: int) -> None:
        inside_group = self._groups and self._shape[-1:] != ["p:grpSp"]
        if inside_group or self._groups > 1 or not all(self._size):
            return
        (left, top), (right, bottom) = self._at, self._size
        if left >= right or top >= bottom or left + width <= 0 or top + height <= 0:
            self._away = True

    def _paragraph(self) -> None:
        if self._row is None:
            self._line("".join(self._text))
            self._text = []
        else:
            self._text.append(" ")

    def _line(self, text: str) -> None:
        text = " ".join(text.split())
        if text.strip(" |"):
            if self._is_title:
                self.title = f"{self.title} {text}".strip()
            else:
                self.lines.append(text)


def _number(given: dict[str, str], name: str, default: int = 0) -> int:
    try:
        return int(given.get(name, default))
    except ValueError:
        return default


def read(data: bytes, bounds: Bounds) -> Items:
    """Yields the text of the slides that are shown, each a page. Raises Broken."""
    package = Package(data, bounds)
    main = package.main()
    deck = _Deck(package.need(main))
    related = package.related(main)
    page = Page()
    lost = []
    for number, identity in enumerate(deck.slides[:MAX_SLIDES], 1):
        try:
            slide = _read(package, related.get(identity, ("", ""))[1], deck.size)
        except Broken as broken:
            lost.append(f"slide {number}: {broken}")
            continue
        if not slide.hidden and (slide.title or slide.lines):
            _write(page, slide, number)
    yield page.part(package.title())
    if lost or len(deck.slides) > MAX_SLIDES:
        yield Trouble("", "Not all slides could be read. " + (lost[0] if lost else f"Only {MAX_SLIDES:,} are."), True)


def _read(package: Package, name: str, size: tuple[int, int]) -> _Slide:
    slide = _Slide(size)
    walk(package.need(name), slide.start, slide.end, slide.chars)
    return slide


def _write(page: Page, slide: _Slide, number: int) -> None:
    page.place(page=number)
    if slide.title:
        page.heading(slide.title, 1)
        page.add("\n\n")
    for line in slide.lines:
        page.add(line + "\n")
    page.add("\n")
