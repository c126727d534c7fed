"""Tells pieces of what a worker does at their times."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from conductor.v1 import event_pb2


class Told(Protocol):
    """What is told piece by piece."""

    @property
    def pause(self) -> float | None:
        """Seconds until the next piece; None when there is nothing to tell before the end."""

    def take(self, last: bool = False) -> event_pb2.TaskProgress | None:
        """Returns the next piece, None when there is none."""


class Telling:
    """Keeps the time between pieces.

    Args:
        tell: is given each piece; not after `stop`.
    """

    def __init__(self, pieces: Told, tell: Callable[[event_pb2.TaskProgress], None]) -> None:
        self._pieces = pieces
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None

    def go_on(self) -> None:
        """Makes sure that what was added is told in its time."""
        if self._timer is None and (pause := self._pieces.pause) is not None:
            self._timer = asyncio.get_running_loop().call_later(pause, self._tick)

    def end(self) -> None:
        """Tells the last piece at once."""
        self.stop()
        if last := self._pieces.take(last=True):
            self._tell(last)

    def stop(self) -> None:
        """Tells nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if piece := self._pieces.take():
            self._tell(piece)
        self.go_on()
