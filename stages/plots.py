"""Pictures: one size, one style, readable by the colour-blind, safe for names and values of a stranger's table."""

import logging
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from stages.contract import Artifact, Room
from stages.shown import plain

WIDTH, HEIGHT, DPI = 9.0, 6.0, 100  # inches, inches, dots an inch: 900 x 600
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")  # Okabe and Ito
GREY = "#777777"
LABEL = 28  # characters of a label at an axis
NUMBERED, NAMED = 0.11, 0.3  # share of the width that numbers, and labels of LABEL characters, take at the left
STYLE: Any = {  # matplotlib's type lists every setting it has
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
}


@contextmanager
def picture(
    room: Room, name: str, title: str, across: str, up: str, left: float | None = None, bottom: float = 0.11
) -> Iterator[Any]:
    """Gives axes to draw on, and leaves the picture as `name` (`plot-….png`) in the stage's folder.

    Args:
        across, up: what the axes show.
        left: share of the width that labels at the left take. None: found out, which takes twice as long.
        bottom: share of the height that labels at the bottom take, where `left` is given.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a sign that no font has is not worth a line for each
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for the same reason
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained" if left is None else None)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if left is not None:
            figure.subplots_adjust(left=left, right=0.97, bottom=bottom, top=0.93)
        axes.set_title(plain(title, 90))
        axes.set_xlabel(plain(across, 60))
        axes.set_ylabel(plain(up, 60))
        yield axes
        _make_legible(axes)
        figure.savefig(room.path(name), metadata={"Software": None})


def legible(text: str) -> str:
    """Returns a text that the font can draw: signs it has not, and scripts that run leftwards, in Latin letters.

    Matplotlib's own font has no Chinese, Japanese, Korean or Indian signs, and Arabic and Hebrew would stand in the
    wrong order. Letters rather than another font: the picture is then the same on every machine.
    """
    from anyascii import anyascii

    if text.isascii():
        return text
    said = "".join(anyascii(sign) if _undrawable(sign) else sign for sign in text)
    return said if said.strip() else " ".join(f"U+{ord(sign):04X}" for sign in text)


def _undrawable(sign: str) -> bool:
    return ord(sign) not in _drawable() or unicodedata.bidirectional(sign) in ("R", "AL")


@cache
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _make_legible(axes: Any) -> None:
    """Replaces what the font cannot draw in all that is written on the axes."""
    from matplotlib.ticker import FixedLocator

    legend = axes.get_legend()
    for each in (axes.title, axes.xaxis.label, axes.yaxis.label, *(legend.get_texts() if legend else ())):
        each.set_text(legible(each.get_text()))
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_locator(), FixedLocator):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            if not "".join(labels).isascii():
                axis.set_ticks(axis.get_ticklocs(), [legible(label) for label in labels])


def drawn(name: str, title: str) -> Artifact:
    """Returns a picture as an artefact; the title is its caption."""
    return Artifact(name, "image/png", plain(title, 120))


def bars(axes: Any, labels: Sequence[Any], values: Sequence[float], colour: str = COLOURS[0]) -> None:
    """Draws bars that lie, the first one at the top, each with its value."""
    places = range(len(labels))
    drawn_ = axes.barh(places, values, color=colour)
    axes.bar_label(
        drawn_, [f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" for value in values], padding=3
    )
    axes.set_yticks(places, [short(label) for label in labels])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")


def short(label: Any) -> str:
    """Returns a label as an axis has room for it."""
    return plain(str(label), LABEL)
