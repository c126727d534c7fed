"""Which styles keep a reader from seeing text. For the service and the parser process: imports nothing of either."""

import re
from collections.abc import Iterator

LEAST_OPACITY = 0.05
LEAST_FONT = 2.0  # CSS pixels
_PIXELS = {"px": 1.0, "": 1.0, "pt": 4 / 3, "em": 16.0, "rem": 16.0, "%": 0.16}
_COLOURS = {"white": "#ffffff", "black": "#000000"}

# One without end goes to the end (CSS Syntax 3, 4.3.2).
_COMMENT = re.compile(r"/\*[^*]*+(?:\*(?!/)[^*]*+)*+(?:\*/|\Z)")
_ESCAPE = re.compile(r"\\(?:([0-9a-f]{1,6})\s?|(.))", re.S)
_SIZE = re.compile(r"([+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?:e[+-]?\d{1,2})?)(px|pt|r?em|%|)(?![\w.%])")
_PLACED = re.compile(r"(?:left|right|top|bottom|inset|text-indent|margin|margin-(?:left|top))$")
_FAR = re.compile(r"-\s*(?:\d{4,}(?:\.\d*)?(?:px|pt)|\d{3,}(?:\.\d*)?(?:r?em|%|v[wh]))")
_FLUNG = re.compile(r"-\s*(?:\d{4,}(?:\.\d*)?(?:px|pt)|\d{3,}(?:\.\d*)?(?:r?em|v[wh]))")  # percents are of its own size
_FONT = re.compile(r"(?:^|\s)(?:0+(?:\.0*)?|\.0+)(?:px|pt|r?em|%)?\s*(?:/|\s)")
_NOTHING = r"(?:0+(?:\.0*)?|\.0+)%?"
_FADED = re.compile(rf"opacity\(\s*{_NOTHING}\s*\)")
_SHRUNK = re.compile(rf"scale[xy3d]{{0,2}}\(\s*{_NOTHING}\s*[,)]")
_CLIPPED = re.compile(
    r"rect\(\s*[01](?:px)?\b|inset\(\s*(?:50|100)%|circle\(\s*0|polygon\(\s*0\w*\s+0\w*\s*,\s*0\w*\s+0\w*\s*\)"
)
_CLEAR = re.compile(
    rf"transparent$|(?:rgb|hsl)a?\((?:(?:[^),]*,){{3}}|[^)/]*/)\s*{_NOTHING}\s*\)$|#(?:[0-9a-f]{{3}}0|[0-9a-f]{{6}}00)$"
)
_OPAQUE = re.compile(r"rgb\(\s*(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})\s*\)$")


def hides(style: str) -> bool:
    """Says whether declarations keep a reader from seeing the text of what they apply to. Takes linear time.

    One that hides is enough, whatever comes behind it: a browser may not understand that.
    """
    given = list(_declarations(style))
    return any(_hides(name, value) for name, value in given) or _merges(given) or _cuts(given)


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    plain = _ESCAPE.sub(_unescaped, _COMMENT.sub("", style).lower())
    for each in plain.replace("{", ";").replace("}", ";").split(";"):
        name, _, value = each.partition(":")
        yield name.strip(), value.partition("!")[0].strip()


def _unescaped(escape: re.Match[str]) -> str:
    code = int(escape[1], 16) if escape[1] else 0
    return chr(code).lower() if 0 < code < 0x110000 else escape[2] or ""


def _hides(name: str, value: str) -> bool:
    if name == "display":
        return value == "none"
    if name in ("visibility", "content-visibility"):
        return value in ("hidden", "collapse")
    if name == "opacity":
        return (size := _size(value)) is not None and size[0] / (100 if size[1] == "%" else 1) < LEAST_OPACITY
    if name == "font-size":
        return (size := _size(value)) is not None and size[0] * _PIXELS[size[1]] < LEAST_FONT
    if name in ("color", "-webkit-text-fill-color"):
        return _CLEAR.match(value) is not None
    if name in ("transform", "scale", "zoom", "filter"):
        nothing = (size := _size(value)) is not None and size[0] == 0
        return nothing or any(each.search(value) for each in (_SHRUNK, _FADED, _FLUNG))
    if name in ("clip", "clip-path"):
        return _CLIPPED.match(value) is not None
    if name == "font":
        return _FONT.search(value) is not None
    return _PLACED.match(name) is not None and _FAR.search(value) is not None


def _size(value: str) -> tuple[float, str] | None:
    """Returns a number and its unit."""
    found = _SIZE.match(value)
    return (float(found[1]), found[2]) if found else None


def _merges(given: list[tuple[str, str]]) -> bool:
    """Says whether text has the colour that is declared for its own background."""
    colours = {_colour(value) for name, value in given if name == "color"}
    return any(
        _colour(value) in colours for name, value in given if name in ("background", "background-color") and value
    )


def _colour(value: str) -> str:
    value = _COLOURS.get(value, value)
    if rgb := _OPAQUE.match(value):
        return "#" + "".join(f"{int(each):02x}" for each in rgb.groups())
    return "#" + "".join(2 * each for each in value[1:]) if value.startswith("#") and len(value) == 4 else value


def _cuts(given: list[tuple[str, str]]) -> bool:
    """Says whether there is no room for text, and what goes beyond is cut."""
    room = [_size(value) for name, value in given if name.removeprefix("max-") in ("width", "height")]
    cut = any(name.startswith("overflow") and value.startswith(("hidden", "clip")) for name, value in given)
    return cut and any(size == (0.0, "%") or size[0] * _PIXELS[size[1]] <= (size[1] != "%") for size in room if size)
