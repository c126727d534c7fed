"""The pictures of a profile: the target, what is missing, and the columns that tell most about the target."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.columns import Look, Series
from stages.contract import Artifact, Room
from stages.plots import COLOURS, NAMED, NUMBERED, bars, drawn, picture, short
from stages.preparing import dates, numbers, words
from stages.targets import Target

LEVELS = 10  # of a category that are drawn
CLASSES = 6
POINTS = 2_000
MISSING = 20  # columns
BINS = 40


def of_target(room: Room, target: Target) -> Artifact:
    """Draws how the target is distributed."""
    name, title = "plot-target.png", f"What is to be predicted: {target.column}"
    known = target.values.dropna()
    if target.task == "regression":
        with picture(room, name, title, target.column, "rows", NUMBERED) as axes:
            axes.hist(known, bins=BINS, color=COLOURS[0], edgecolor="white")
    else:
        counts = sorted(target.classes.items(), key=lambda pair: (-pair[1], pair[0]))[: 2 * LEVELS]
        with picture(room, name, title, "rows", target.column, NAMED) as axes:
            bars(axes, [label for label, _ in counts], [rows for _, rows in counts])
    return drawn(name, title)


def of_missing(room: Room, looks: Sequence[Look]) -> Iterator[Artifact]:
    """Draws how much is missing, if anything is."""
    worst = sorted((look for look in looks if look.missing), key=lambda look: (-look.missing, look.name))[:MISSING]
    if worst:
        name, title = "plot-missing.png", "Missing values, in percent of the rows"
        with picture(room, name, title, "percent missing", "column", NAMED) as axes:
            bars(axes, [look.name for look in worst], [round(100 * look.missing / look.rows, 1) for look in worst])
            axes.set_xlim(0, 100)
        yield drawn(name, title)


def of_columns(room: Room, looks: Sequence[Look], values: Mapping[str, Series], target: Target) -> Iterator[Artifact]:
    """Draws columns against the target. `values` are of the sample, as `target.values` at their index."""
    for place, look in enumerate(looks, start=1):
        name, title = f"plot-column-{place:02}.png", f"{target.column} by {look.name}"
        pairs = pd.DataFrame({"x": _read(look, values[look.name]), "y": target.values.loc[values[look.name].index]})
        pairs = pairs.dropna()
        if len(pairs):
            _one(room, name, title, look, pairs, target)
            yield drawn(name, title)


def _read(look: Look, values: Series) -> Series:
    if look.role == "DATETIME":
        return dates(values, look.parse)
    return numbers(values, look.parse) if look.role in ("NUMERIC", "BOOL") else words(values, look.parse)


def _one(room: Room, name: str, title: str, look: Look, pairs: pd.DataFrame, target: Target) -> None:
    graded = look.role in ("NUMERIC", "DATETIME")
    if graded and target.task == "regression":
        with picture(room, name, title, look.name, target.column, NUMBERED) as axes:
            some = pairs.iloc[:POINTS]
            axes.scatter(some["x"], some["y"], s=14, alpha=0.5, color=COLOURS[0], linewidths=0)
    elif target.task == "regression":
        with picture(room, name, title, target.column, look.name, NAMED) as axes:
            boxes(axes, pairs, "x", "y", LEVELS)
    elif graded:
        pairs["x"] = pairs["x"].astype("int64") / 1e6 / 86400 if look.role == "DATETIME" else pairs["x"]
        across = f"{look.name} (days since 1970)" if look.role == "DATETIME" else look.name
        with picture(room, name, title, across, target.column, NAMED) as axes:
            boxes(axes, pairs, "y", "x", CLASSES)
    else:
        with picture(room, name, title, "percent of the rows", look.name, NAMED, bottom=0.2) as axes:
            shares(axes, pairs)


def boxes(axes: Any, pairs: pd.DataFrame, by: str, of: str, most: int) -> None:
    """Draws a lying box for each of the most frequent values of `by`."""
    levels = sorted(pairs[by].value_counts().index[:most])
    groups = [pairs.loc[pairs[by] == level, of].to_numpy() for level in levels]
    made = axes.boxplot(groups, orientation="horizontal", patch_artist=True, widths=0.6, flierprops={"markersize": 3})
    for box, colour in zip(made["boxes"], np.resize(np.array(COLOURS[:6]), len(groups)), strict=True):
        box.set(facecolor=str(colour), alpha=0.7)
    axes.set_yticks(range(1, len(levels) + 1), [short(level) for level in levels])


def shares(axes: Any, pairs: pd.DataFrame) -> None:
    """Draws, for each frequent value of x, how its rows divide into the classes y."""
    levels = sorted(pairs["x"].value_counts().index[:LEVELS])
    classes = sorted(pairs["y"].value_counts().index[:CLASSES])
    left = np.zeros(len(levels))
    for place, name in enumerate(classes):
        part = np.array([100 * (pairs.loc[pairs["x"] == level, "y"] == name).mean() for level in levels])
        axes.barh(range(len(levels)), part, left=left, color=COLOURS[place], label=short(name))
        left += part
    if pairs["y"].nunique() > len(classes):
        axes.barh(range(len(levels)), 100 - left, left=left, color="lightgrey", label="others")
    axes.set_yticks(range(len(levels)), [short(level) for level in levels])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
