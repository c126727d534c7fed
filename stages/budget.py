"""A budget of processor time that holds, on a machine as slow as it may be.

What is tried is decided by forecasts (stages.scheduling), never by this clock. It only ends work that would pass the
budget although the forecast said that it would not: then the answer may be another one elsewhere, and TRAIN says so.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from stages.contract import cpu_seconds

AGAIN_S = 0.25  # until an end that was swallowed is asked for again
HARD = 1.05  # times the budget at which work is ended; what compiled code does meanwhile comes on top


class Late(BaseException):
    """A step took so long that the budget would not hold. Not an Exception, so that no library swallows it."""


class Budget:
    """A budget of processor time, in seconds, of this process from its start."""

    def __init__(self, seconds: float, clock: Callable[[], float] = cpu_seconds, since: float = 0.0) -> None:
        self.seconds = seconds
        self._clock, self._since = clock, since

    def now(self) -> float:
        """Returns what its clock says, in seconds."""
        return self._clock()

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

    def holds(self, seconds: float) -> bool:
        """Returns whether so many seconds more are still within it."""
        return self.used + seconds <= HARD * self.seconds

    @contextmanager
    def ending(self, reserve: float) -> Iterator[None]:
        """Ends what is inside with Late when it leaves less than `reserve` seconds.

        Works between two instructions of Python: a single long call into C is ended when it returns (setitimer(2)).
        Python drops what is raised while it clears away an object, so the end is asked for until it is heard.
        """
        left = HARD * self.seconds - self.used - reserve
        if left <= 0:
            raise Late
        ended = False

        def late(_signal: int, _frame: object) -> NoReturn:
            nonlocal ended
            ended = True
            raise Late

        before = signal.signal(signal.SIGPROF, late)
        signal.setitimer(signal.ITIMER_PROF, left, AGAIN_S)
        try:
            yield
        except Exception as error:  # what compiled code has made of Late, which it may have met in the middle
            if ended:
                raise Late from error
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.signal(signal.SIGPROF, before)
