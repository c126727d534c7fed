"""Which styles keep a reader from seeing text. For the service and the parser process: imports nothing of either."""

import re

_HIDING = re.compile(
    r"(?:^|[;{\s])(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)"
    r"|opacity\s*:\s*(?:0++(?:\.0++)?+|\.0++)\s*(?:[;!}]|$)|font-size\s*:\s*0|color\s*:\s*transparent"
    r"|transform\s*:\s*scale\(\s*0"
    # moved off the screen, or cut to nothing
    r"|(?:left|right|top|bottom|text-indent|margin(?:-left|-top)?)\s*:\s*-\s*(?:\d{4,}(?:px|pt)|\d{3,}(?:r?em|%|v[wh]))"
    r"|clip\s*:\s*rect\(\s*[01](?:px)?\b|clip-path\s*:\s*inset\(\s*(?:50|100)%)",
    re.I,
)
_NO_ROOM = re.compile(r"(?:^|[;{\s])(?:max-)?(?:width|height)\s*:\s*0(?:px|em|rem|%)?\s*(?:[;!}]|$)", re.I)
_CUT = re.compile(r"overflow(?:-[xy])?\s*:\s*(?:hidden|clip)", re.I)
_COMMENT = re.compile(
    r"/\*[^*]*+(?:\*(?!/)[^*]*+)*+(?:\*/|\Z)"
)  # one without end goes to the end (CSS Syntax 3, 4.3.2)


def hides(style: str) -> bool:
    """Says whether declarations keep a reader from seeing the text of what they apply to. Takes linear time."""
    if "/*" in style:
        style = _COMMENT.sub("", style)
    return bool(_HIDING.search(style) or (_NO_ROOM.search(style) and _CUT.search(style)))
