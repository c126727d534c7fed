"""When to stop: the caller's cancel and the budget's end, checked by the thread that works."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL_S = 0.05  # longest wait between two looks at the caller's cancel
INDEXING_SHARE = 0.85  # of the wall time is over when indexing ends; the rest is for the answer


class Cancelled(Exception):
    """The caller hung up. Nobody waits for a result."""


class OutOfTime(Exception):
    """The wall time is over; what was found so far is the answer."""


class Watch:
    """Counts down one research. Thread-safe: one thread cancels, another checks.

    Args:
        wall_time: seconds from now until `check` raises OutOfTime.
    """

    def __init__(self, wall_time: float) -> None:
        self.wall_time = wall_time
        self.started = time.monotonic()
        self._end = self.started + wall_time
        self._gone = threading.Event()

    def cancel(self) -> None:
        """Makes every later `check` raise Cancelled."""
        self._gone.set()

    def check(self) -> None:
        """Raises Cancelled after a cancel, OutOfTime after the end."""
        if self._gone.is_set():
            raise Cancelled
        if time.monotonic() >= self._end:
            raise OutOfTime

    def still(self) -> None:
        """Raises Cancelled after a cancel; the time may be over."""
        if self._gone.is_set():
            raise Cancelled

    def until(self, share: float) -> "Watch":
        """Returns a watch with the same cancel that ends after a share of the time, so that some is left to answer."""
        earlier = Watch(self.wall_time)
        earlier.started = self.started
        earlier._gone = self._gone
        earlier._end = min(self._end, self.started + self.wall_time * share)
        return earlier

    def elapsed(self) -> float:
        """Returns seconds since the start."""
        return time.monotonic() - self.started

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Holds the lock; while waiting for it, still stops when it must."""
        while not lock.acquire(timeout=POLL_S):
            self.check()
        try:
            yield
        finally:
            lock.release()
