"""Pictures: one size, one style, readable by the colour-blind, safe for names and values of a stranger's table."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        figure.savefig(room.path(name), metadata={"Software": None})


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
