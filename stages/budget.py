"""A budget of processor time that holds: what is left, what the next step takes, and an end to a step that does not.

Forecasts decide what is begun. Only when the clock shows that they were too low are later forecasts raised, and a step
that would eat what the end needs is cut off.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from stages.contract import cpu_seconds

TOLERATED = 1.25  # a forecast that was at most so many times too low is no reason to change anything


class Late(BaseException):
    """A step took so long that the budget would not hold. Not an Exception, so that no library swallows it."""


class Budget:
    """A budget of processor time, in seconds, of this process from its start."""

    def __init__(self, seconds: float, clock: Callable[[], float] = cpu_seconds, since: float = 0.0) -> None:
        self.seconds = seconds
        self._clock, self._since = clock, since
        self._forecast = self._measured = 0.0

    @property
    def used(self) -> float:
        """Seconds used."""
        return self._clock() - self._since

    @property
    def share(self) -> float:
        """Of the budget that is used."""
        return self.used / self.seconds

    def resume(self, used: float) -> None:
        """Goes on from where an earlier attempt was, so that what follows is decided as it was there."""
        self._since = self._clock() - used

    def learn(self, forecast: float, measured: float) -> None:
        """Takes note of what a step was forecast to take and took."""
        self._forecast += forecast
        self._measured += measured

    @property
    def slower(self) -> float:
        """How many times more than forecast everything takes; 1 as long as the forecasts are about right."""
        ratio = self._measured / self._forecast if self._forecast else 1.0
        return ratio if ratio > TOLERATED else 1.0

    def allows(self, forecast: float, reserve: float) -> bool:
        """Returns whether a step may begin: whether it and what has to come after it still fit."""
        return self.used + self.slower * (forecast + reserve) <= self.seconds

    @contextmanager
    def ending(self, reserve: float) -> Iterator[None]:
        """Ends what is inside with Late when it leaves less than `reserve` seconds.

        Works between two instructions of Python: a single long call into C is ended when it returns (setitimer(2)).
        """
        left = self.seconds - self.used - self.slower * reserve
        ended = False

        def late(_signal: int, _frame: object) -> NoReturn:
            nonlocal ended
            ended = True
            raise Late

        before = signal.signal(signal.SIGPROF, late)
        signal.setitimer(signal.ITIMER_PROF, max(0.001, left))
        try:
            yield
        except Exception as error:  # what compiled code has made of Late, which it may have met in the middle
            if ended:
                raise Late from error
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.signal(signal.SIGPROF, before)
