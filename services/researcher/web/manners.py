"""How often one host is asked: at most so many requests at once, and a pause between the beginnings of two."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.researcher.watch import POLL_S, Watch

AT_ONCE = 2  # requests to one host
ALL_AT_ONCE = 32  # requests of this process
MAX_HOSTS = 4096  # remembered; of the rest the oldest that is idle is forgotten


@dataclass(slots=True)
class _Host:
    under_way: int = 0
    next_start: float = field(default_factory=time.monotonic)


class Manners:
    """Counts requests to hosts, in this process. Thread-safe.

    Args:
        pause: seconds between the beginnings of two requests to a host.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._changed = threading.Condition()
        self._under_way = 0
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    @contextmanager
    def turn(self, origin: str, watch: Watch) -> Iterator[None]:
        """Waits for a turn with a host and holds it. Raises Cancelled, OutOfTime."""
        with self._changed:
            host = self._host(origin)
            while (wait := self._wait(host)) > 0:
                watch.check()
                self._changed.wait(min(wait, POLL_S))
            host.under_way += 1
            self._under_way += 1
            host.next_start = time.monotonic() + self._pause
        try:
            yield
        finally:
            with self._changed:
                host.under_way -= 1
                self._under_way -= 1
                self._changed.notify_all()

    def defer(self, origin: str, seconds: float) -> None:
        """Makes the next request to a host wait, because it asked for that."""
        with self._changed:
            host = self._host(origin)
            host.next_start = max(host.next_start, time.monotonic() + seconds)

    def _host(self, origin: str) -> _Host:
        host = self._hosts.setdefault(origin, _Host())
        self._hosts.move_to_end(origin)
        while len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
        return host

    def _wait(self, host: _Host) -> float:
        """Returns seconds to wait before looking again; 0 when it is our turn."""
        if host.under_way >= AT_ONCE or self._under_way >= ALL_AT_ONCE:
            return POLL_S
        return max(host.next_start - time.monotonic(), 0.0)
