"""Which styles keep a reader from seeing text, and which only look like it."""

import re
import time

import pytest

from services.researcher.extract.hiding import hides

HIDING = """
    display:none | DISPLAY : NONE !important | display:none;display:grid | \\64isplay:none | di/**/splay:none
    visibility:hidden | visibility:collapse | content-visibility:hidden | opacity:0 | opacity:0%
    opacity:.01 | opacity:0e0
    font-size:0 | font-size:1px | font-size:.05em | font:0/0 a | zoom:0 | transform:scale(0) | transform: scaleX(0)
    transform:translateX(-9999px) | filter:opacity(0) | color:transparent | color:rgba(9,9,9,0) | color:rgb(9 9 9 / 0%)
    color:#fff0 | color:#ffffff00 | -webkit-text-fill-color:transparent | color:#fff;background:#FFFFFF
    background-color:rgb(255, 255, 255);color:white | left:-9999px | text-indent:-100em
    top:-100vh | margin-left:-5000px
    inset:-9999px | clip:rect(0,0,0,0) | clip-path:inset(50%) | clip-path:circle(0) | clip-path:polygon(0 0,0 0)
    width:0;overflow:hidden | max-height:0;overflow:clip | height:1px;overflow:hidden
"""
SHOWING = """
    display:block | visibility:visible | opacity:0.5 | opacity:50% | font-size:0.8em | font-size:0.875rem
    font-size:.9em
    font-size:10px | font-size:80% | font:10px/0 a | zoom:1 | transform:scale(0.5) | transform:translate(-50%, -100%)
    color:red | color:rgb(255,255,0) | color:rgb(0,0,0) | color:rgba(0,0,0,.5) | color:#f00 | color:#ffff00 | color:#fff
    color:#fff;background:#000 | background-color:transparent | border-color:transparent | left:0 | left:-20px
    text-indent:-2em | margin-left:-15px | width:0 | height:20px;overflow:hidden | width:50%;overflow:hidden
    xdisplay:none
"""


def test_which_styles_hide() -> None:
    for expected, styles in ((True, HIDING), (False, SHOWING)):
        for style in re.split(r"[|\n]", styles.strip()):
            assert hides(style.strip()) == expected, style


@pytest.mark.parametrize(
    "unit", ["display:", "-1", "- ", "\\6", "/*", "color:#fff;", "rgb(", "scale(0", "0", "width:0;"]
)
def test_a_hostile_style_takes_linear_time(unit: str) -> None:
    began = time.process_time()
    for name in ("", "left:", "color:", "transform:", "clip:"):
        hides(name + unit * (200_000 // len(unit)))
    assert time.process_time() - began < 5
