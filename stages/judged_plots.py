"""The pictures of a judgement: confusion, ROC, calibration, residuals, importance, effects."""

from collections.abc import Iterator, Sequence

import numpy as np

from stages.contract import Artifact, Room
from stages.effects import Effect
from stages.explaining import Importance
from stages.judging import Calibration, Case, Draw, roc
from stages.plots import COLOURS, GREY, drawn, picture, short
from stages.shown import plain

LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
MARKERS = "osD^"
MAX_CLASSES = 20  # of a confusion picture
MAX_COUNTED = 12  # classes up to which each cell has its count
MAX_CURVES = len(LINES)
MAX_POINTS = 3_000  # of residuals
MAX_BARS = 15
FEW_LABELS = 5  # that stand side by side without turning
MAX_CAPTION = 400  # characters


def of_classes(room: Room, case: Case, held: Calibration, target: str) -> Iterator[Artifact]:
    """Draws what is to be seen of a prediction of classes."""
    yield _confusion(room, case, target)
    yield _roc(room, case)
    yield _calibration(room, case, held, target)


def of_values(room: Room, case: Case, target: str) -> Iterator[Artifact]:
    """Draws what is to be seen of a prediction of values."""
    name, title = "plot-residuals.png", f"Test rows: {target}, predicted and true"
    step = max(1, len(case.truth) // MAX_POINTS)
    with picture(room, name, title, f"{target} as predicted", f"{target} as it is") as axes:
        axes.scatter(case.said[::step], case.truth[::step], s=14, alpha=0.5, color=COLOURS[0], linewidths=0)
        ends = [float(min(case.said.min(), case.truth.min())), float(max(case.said.max(), case.truth.max()))]
        axes.plot(ends, ends, color=COLOURS[5], label="exactly right")
        axes.legend(loc="upper left")
    yield drawn(name, title)
    name, title = "plot-errors.png", f"Test rows: how far off the predicted {target} is"
    with picture(room, name, title, "true minus predicted", "test rows") as axes:
        axes.hist(case.truth - case.said, bins=30, color=COLOURS[0], edgecolor="white")
        axes.axvline(0, color=COLOURS[5])
    yield drawn(name, title)


def _confusion(room: Room, case: Case, target: str) -> Artifact:
    table = Draw(case, np.ones(len(case.truth))).confusion
    chosen = np.sort(np.argsort(-table.sum(axis=1), kind="stable")[:MAX_CLASSES])
    counts = table[np.ix_(chosen, chosen)]
    shares = counts / np.maximum(1, table.sum(axis=1)[chosen])[:, None]
    labels = [plain(case.classes[at], 20) for at in chosen]
    name, title = "plot-confusion.png", f"Test rows: {target} as it is and as the model calls it"
    if len(labels) < len(case.classes):
        title += f" ({len(labels)} of {len(case.classes)} classes)"
    with picture(room, name, title, "called", "is") as axes:
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 5 else 0)
        axes.set_yticks(range(len(labels)), labels)
        if len(labels) <= MAX_COUNTED:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{int(count):,}", ha="center", va="center", color=colour)
    return drawn(name, title)


def _roc(room: Room, case: Case) -> Artifact:
    counts = np.bincount(case.truth, minlength=len(case.classes))
    numbers = [case.positive] if case.positive >= 0 else np.argsort(-counts, kind="stable")[:MAX_CURVES].tolist()
    name, title = "plot-roc.png", "Test rows: found against false alarms (ROC)"
    with picture(room, name, title, "share of the others called by mistake", "share found") as axes:
        for at, number in enumerate(numbers):
            alarms, found = roc(case, number)
            axes.plot(alarms, found, color=COLOURS[at], linestyle=LINES[at], label=short(case.classes[number]))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="guessing")
        axes.legend(loc="lower right")
    return drawn(name, title)


def _calibration(room: Room, case: Case, held: Calibration, target: str) -> Artifact:
    about = (
        f"{short(target)} = {short(case.classes[case.positive])}" if case.positive >= 0 else "the class that is called"
    )
    name, title = "plot-calibration.png", f"Test rows: do the probabilities of {about} hold?"
    with picture(room, name, title, "probability said", "share that came true") as axes:
        said, true, rows = (np.asarray(values, dtype=float) for values in zip(*held.curve, strict=True))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="as it should be")
        axes.plot(said, true, color=COLOURS[0], marker="o", label=f"about {rows.mean():.0f} rows a point")
        axes.legend(loc="upper left")
    return drawn(name, title)


def of_importance(room: Room, found: Sequence[Importance], metric: str) -> Artifact:
    """Draws the columns the model leans on most."""
    top = found[:MAX_BARS]
    name, title = "plot-importance.png", "What the model leans on: association, not cause"
    with picture(room, name, title, f"loss of {metric} when the column is shuffled", "column") as axes:
        whiskers = {"xerr": [each.sd for each in top], "ecolor": "black", "capsize": 3}
        axes.barh(range(len(top)), [each.mean for each in top], color=COLOURS[0], **whiskers)
        axes.set_yticks(range(len(top)), [short(each.column) for each in top])
        axes.invert_yaxis()
    return drawn(name, title)


def of_effect(room: Room, number: int, found: Effect, names: Sequence[str]) -> Artifact:
    """Draws the mean prediction at each value of a column; with several classes those that move most.

    Args:
        number: the first effect is 1.
        names: what each curve is about.
    """
    chosen = np.argsort(-np.ptp(found.curves, axis=1), kind="stable")[: len(MARKERS)]
    at: Sequence[float] = found.at or range(len(found.labels))
    name, title = f"plot-effect-{number}.png", f"The prediction as {short(found.column)} changes, all else as it is"
    with picture(room, name, title, found.column, "mean prediction") as axes:
        for place, curve in enumerate(chosen):
            line = "none" if found.direction == "LEVELS" else LINES[place]
            how = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": line}
            axes.plot(at, found.curves[curve], label=plain(names[curve], 60), **how)
        if found.at is None:
            axes.set_xticks(range(len(found.labels)), [plain(label, 16) for label in found.labels])
            axes.tick_params("x", rotation=30 if len(found.labels) > FEW_LABELS else 0)
            axes.margins(x=0.1)
        axes.legend(loc="best")
    return Artifact(name, "image/png", plain(f"{found.words} Association, not cause.", MAX_CAPTION))
