"""Reads what a stage's program says of its progress, one JSON object a line on its standard output."""

import json

from conductor.v1 import event_pb2, project_pb2

from services.conductor import plain
from services.conductor.pieces import GROWTH
from services.conductor.protocol import MAX_OUTPUT_PROGRESS

LINE_BYTES = 64 * 1024  # of a line of progress; a longer one is none
TRIED = 20  # of the newest lines that came together: a program that prints a great deal must cost nobody else time
WORDS = 200  # characters of a phase, detail or candidate
MAX_COUNT = 2**31


class Lines:
    """Reads what a program says of its progress; keeps the newest until it is told.

    Args:
        interval: seconds the first piece lasts.
    """

    def __init__(self, call_id: str, interval: float) -> None:
        self._call_id = call_id
        self._interval = interval
        self._told = 0
        self._rest = b""
        self._newest: project_pb2.StageProgress | None = None

    @property
    def pause(self) -> float | None:
        """Seconds until the next piece; None when there is nothing to tell before the end."""
        if self._newest is None or self._told >= MAX_OUTPUT_PROGRESS - 1:
            return None
        return float(self._interval * GROWTH**self._told)

    def add(self, data: bytes) -> None:
        """Takes what was written to standard output."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest if len(rest) <= LINE_BYTES else b""
        said = [line for line in reversed(lines) if line.startswith(b"{")][:TRIED]
        self._newest = next(filter(None, map(_progress, said)), self._newest)

    def take(self, last: bool = False) -> event_pb2.TaskProgress | None:
        """Returns the next piece, None when there is none. `last` changes nothing: no line is half a one."""
        newest, self._newest = self._newest, None
        if newest is None:
            return None
        self._told += 1
        message = newest.detail or f"{newest.percent:.0f} %: {newest.phase}"
        return event_pb2.TaskProgress(message=message, call_id=self._call_id, stage=newest)


def _progress(line: bytes) -> project_pb2.StageProgress | None:
    try:
        given = plain.table(json.loads(line))
    except (ValueError, RecursionError):  # a library of the program may print what it likes, also what is no UTF-8
        return None
    if given.get("event") != "progress":
        return None
    progress = project_pb2.StageProgress(
        percent=min(100.0, max(0.0, plain.number(given.get("pct")) or 0.0)),
        phase=plain.text(given.get("phase"), WORDS),
        detail=plain.text(given.get("detail"), WORDS),
        candidate=plain.text(given.get("candidate"), WORDS),
    )
    for name in ("done", "total"):
        if (count := plain.number(given.get(name), 0, MAX_COUNT)) is not None:
            setattr(progress, name, int(count))
    if (best := plain.number(given.get("best"))) is not None:
        progress.best = best
    if (share := plain.number(given.get("budget_share"), 0)) is not None:
        progress.budget_share = share
    return progress
