"""PDF → text, page by page, through pdfium.

Left out, since no reader sees it: text drawn invisibly (render mode 3; also the text layer of a scan), as a clip only
(mode 7), fully transparent, smaller than half a point, outside of the page, or of the colour of what lies under it (the
page is taken to be white). Not noticed: text that something drawn later covers, or that a clip or layer hides.
"""

import ctypes
import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pypdfium2 as pdfium
import pypdfium2.raw as api

from services.researcher.extract.parts import Bounds, Broken, Items, Page, Trouble

MAX_PAGES = 10_000
MAX_TEXT = 64 * 1024**2  # characters
MAX_OBJECTS = 200_000  # of a page
MAX_FORMS = 8  # forms in forms
MAX_GROUNDS = 2_000  # shapes of a page that may lie under text
LEAST_POINTS = 0.5  # of a font; what is smaller cannot be read
LEAST_GROUND = 4.0  # points; a smaller shape is a line, and lies under no text
NEAR = 12  # of 255: colours that differ less are one to the eye
WHITE = (255, 255, 255)
_HYPHEN_AT_END = "\ufffe"  # pdfium's sign for the hyphen of a word that goes on in the next line
_NO_TITLES = ("untitled", "(anonymous)", "unspecified")  # what programs write for none
_UNSEEN_MODES = (api.FPDF_TEXTRENDERMODE_INVISIBLE, api.FPDF_TEXTRENDERMODE_CLIP)
_BLANK = re.compile(r"\n[ \t\xa0]*(?:\n[ \t\xa0]*)+")
_PAINTED = (api.FPDF_PAGEOBJ_IMAGE, api.FPDF_PAGEOBJ_SHADING)

Box = tuple[float, float, float, float]  # left, bottom, right, top
Color = tuple[int, int, int]


def prepare() -> None:
    """Starts the library while files can still be opened."""
    document = pdfium.PdfDocument.new()
    document.new_page(10, 10).close()
    document.close()
    gc.collect()


def read(data: bytes, bounds: Bounds) -> Items:
    """Yields the text of a document, each page a place. Raises Broken."""
    document = _open(data)
    page, left_out, unread = Page(), 0, 0
    count = len(document)
    starts: dict[int, int] = {}
    for number in range(min(count, MAX_PAGES)):
        if bounds.late() or page.length > MAX_TEXT:
            break
        try:
            text, hidden = _page(document, number)
        except pdfium.PdfiumError:
            unread += 1
            continue
        left_out += hidden and not text.strip()
        starts[number] = page.length
        if text.strip():
            page.place(page=number + 1)
            page.add(text.strip("\n") + "\n\n")
    _outline(document, page, starts)
    title = document.get_metadata_value("Title") or ""
    yield page.part("" if title.strip().lower() in _NO_TITLES else title)
    if len(starts) + unread < count:
        yield Trouble("", f"Only {len(starts) + unread:,} of its {count:,} pages are read.", truncated=True)
    elif unread:
        yield Trouble("", f"{unread:,} of its {count:,} pages are damaged.", truncated=True)
    elif left_out:
        yield Trouble("", f"{left_out:,} of its {count:,} pages have no text but an invisible one.", truncated=True)
    elif not page.length and count:
        yield Trouble("", "Its pages hold no text, only images.")


def _open(data: bytes) -> pdfium.PdfDocument:
    try:
        return pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == api.FPDF_ERR_PASSWORD or "password" in str(error).lower():
            raise Broken("It is encrypted. Give it without its password.") from None
        raise Broken("It is no PDF document, or it is broken.") from None


def _page(document: pdfium.PdfDocument, number: int) -> tuple[str, bool]:
    """Returns what a reader sees of a page's text, and whether there is more."""
    page = document[number]
    try:
        text = page.get_textpage()
        try:
            hidden = _Look(page.get_mediabox()).hidden(page.raw)
            shown = _visible(text.raw, hidden) if hidden else text.get_text_bounded()
        finally:
            text.close()
    finally:
        page.close()
    return _joined(shown), bool(hidden)


def _joined(text: str) -> str:
    text = text.replace("\r\n", "\n").replace(_HYPHEN_AT_END + "\n", "").replace(_HYPHEN_AT_END, "")
    text = text.replace("\x02\n", "").replace("\x02", "").replace("\r", "\n").replace("\0", "")
    return _BLANK.sub("\n\n", text)


def _visible(text: api.FPDF_TEXTPAGE, hidden: set[int]) -> str:
    """Returns the characters of a page but for those of hidden objects."""
    shown = []
    dropped = False
    for index in range(api.FPDFText_CountChars(text)):
        drawn = ctypes.cast(api.FPDFText_GetTextObject(text, index), ctypes.c_void_p).value
        dropped = drawn in hidden if drawn else dropped  # generated white space goes with what stands before it
        if not dropped or not drawn:
            code = api.FPDFText_GetUnicode(text, index)
            shown.append(chr(code) if 0 < code < 0x110000 else "")
    return "".join(shown)


@dataclass(slots=True)
class _Look:
    """Goes through the objects of a page in the order they are drawn, and finds texts that cannot be seen."""

    box: Box
    grounds: list[tuple[Box, Color | None]] = field(default_factory=list)  # None: many colours
    colors: set[Color | None] = field(default_factory=set)
    left: int = MAX_OBJECTS

    def hidden(self, page: api.FPDF_PAGE) -> set[int]:
        """Returns the addresses of text objects that cannot be seen."""
        return {ctypes.cast(each, ctypes.c_void_p).value or 0 for each in self._hidden(page)}

    def _hidden(self, page: api.FPDF_PAGE) -> Iterator[api.FPDF_PAGEOBJECT]:
        for each, scale in self._objects(page):
            kind = api.FPDFPageObj_GetType(each)
            if kind == api.FPDF_PAGEOBJ_TEXT:
                if self._unseen(each, scale):
                    yield each
            elif scale == 1.0:
                self._lay(each, kind)

    def _objects(self, page: api.FPDF_PAGE) -> Iterator[tuple[api.FPDF_PAGEOBJECT, float]]:
        for index in range(api.FPDFPage_CountObjects(page)):
            each = api.FPDFPage_GetObject(page, index)
            yield from self._within(each, 1.0, 0)

    def _within(
        self, each: api.FPDF_PAGEOBJECT, scale: float, depth: int
    ) -> Iterator[tuple[api.FPDF_PAGEOBJECT, float]]:
        self.left -= 1
        if self.left < 0:
            raise Broken(f"A page has more than {MAX_OBJECTS:,} objects.", truncated=True)
        if api.FPDFPageObj_GetType(each) != api.FPDF_PAGEOBJ_FORM:
            yield each, scale
        elif depth < MAX_FORMS:
            for index in range(api.FPDFFormObj_CountObjects(each)):
                yield from self._within(api.FPDFFormObj_GetObject(each, index), scale * _scale(each), depth + 1)

    def _unseen(self, each: api.FPDF_PAGEOBJECT, scale: float) -> bool:
        mode = api.FPDFTextObj_GetTextRenderMode(each)
        if mode in _UNSEEN_MODES:
            return True
        size = ctypes.c_float()
        if api.FPDFTextObj_GetFontSize(each, size) and abs(size.value) * _scale(each) * scale < LEAST_POINTS:
            return True
        color, alpha = _fill(each)
        if mode == api.FPDF_TEXTRENDERMODE_FILL and color is not None:
            return alpha == 0 or (scale == 1.0 and self._sunk(each, color))
        return False

    def _sunk(self, each: api.FPDF_PAGEOBJECT, color: Color) -> bool:
        """Returns whether text lies outside of the page or has the colour of what is under it."""
        box = _box(each)
        if box is None:
            return False
        left, bottom, right, top = self.box
        if box[2] <= left or box[0] >= right or box[3] <= bottom or box[1] >= top:
            return True
        white = _near(color, WHITE)
        if not white and not any(ground is not None and _near(color, ground) for ground in self.colors):
            return False
        across, up = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        for (left, bottom, right, top), ground in reversed(self.grounds):
            if left <= across <= right and bottom <= up <= top:
                return ground is not None and _near(color, ground)
        return white

    def _lay(self, each: api.FPDF_PAGEOBJECT, kind: int) -> None:
        """Remembers what text may lie on."""
        color: Color | None = None
        if kind == api.FPDF_PAGEOBJ_PATH:
            mode, stroke = ctypes.c_int(), api.FPDF_BOOL()
            if not api.FPDFPath_GetDrawMode(each, mode, stroke) or mode.value == api.FPDF_FILLMODE_NONE:
                return
            color, alpha = _fill(each)
            if alpha == 0:
                return
            color = color if alpha == 255 else None
        elif kind not in _PAINTED:
            return
        box = _box(each)
        if box is None or box[2] - box[0] < LEAST_GROUND or box[3] - box[1] < LEAST_GROUND:
            return
        if len(self.grounds) < MAX_GROUNDS:
            self.grounds.append((box, color))
            self.colors.add(color)


def _near(one: Color, other: Color) -> bool:
    return abs(one[0] - other[0]) < NEAR and abs(one[1] - other[1]) < NEAR and abs(one[2] - other[2]) < NEAR


def _fill(each: api.FPDF_PAGEOBJECT) -> tuple[Color | None, int]:
    red, green, blue, alpha = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    if not api.FPDFPageObj_GetFillColor(each, red, green, blue, alpha):
        return None, 255
    return (red.value, green.value, blue.value), alpha.value


def _box(each: api.FPDF_PAGEOBJECT) -> Box | None:
    left, bottom, right, top = ctypes.c_float(), ctypes.c_float(), ctypes.c_float(), ctypes.c_float()
    if not api.FPDFPageObj_GetBounds(each, left, bottom, right, top):
        return None
    return left.value, bottom.value, right.value, top.value


def _scale(each: api.FPDF_PAGEOBJECT) -> float:
    """Returns by how much an object's own measures grow on the page."""
    matrix = api.FS_MATRIX()
    if not api.FPDFPageObj_GetMatrix(each, matrix):
        return 1.0
    return float(abs(matrix.a * matrix.d - matrix.b * matrix.c) ** 0.5)


def _outline(document: pdfium.PdfDocument, page: Page, starts: dict[int, int]) -> None:
    """Takes the document's bookmarks as headings: at their words on the page, else where the page begins."""
    text = "".join(page.pieces)
    found: list[tuple[int, int, int]] = []
    for mark in document.get_toc(max_depth=6):
        title, target = mark.get_title(), mark.get_dest()
        number = target.get_index() if target else None
        if number is None or number not in starts or not (title := " ".join(title.split())):
            continue
        start = starts[number]
        end = starts.get(number + 1, len(text))
        at = text.find(title, start, end)
        if at >= 0:
            found.append((at, at + len(title), mark.level + 1))
    page.headings = sorted(found)
