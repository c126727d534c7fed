"""Who may work, and who waits for it: bounded, and fair between those who ask."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from services.conductor.store.base import Key

# Whose turn it is goes around among these: the desktop and the project a task belongs to.
Flow: TypeAlias = tuple[str, str]

SHARE = 8  # a flow may hold at most this many times what is free in the queue


class Slots:
    """A bounded number of tasks at work, and a bounded queue in which every flow has its turn.

    Flows take turns (round robin), so that one with thousands of tasks delays another's by one task and not by
    thousands. How many of a flow may wait follows the free space (dynamic threshold: Choudhury and Hahne, IEEE/ACM
    Transactions on Networking 6(2), 1998): alone it gets eight ninths of the queue, and a newcomer finds room.

    Args:
        ready: told when a task that waited has a slot.
    """

    def __init__(self, max_in_flight: int, max_queued: int, ready: Callable[[Key], None]) -> None:
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._ready = ready
        self._working: set[Key] = set()
        self._waiting: OrderedDict[Flow, dict[Key, None]] = OrderedDict()  # the flow whose turn it is comes first
        self._flows: dict[Key, Flow] = {}
        self._arriving: Counter[Flow] = Counter()

    @property
    def room(self) -> int:
        """How many more tasks could work or wait."""
        return max(0, self._max_in_flight + self._max_queued - len(self._working) - self._queued)

    def take(self, key: Key) -> bool:
        """Takes a slot at once, if there is one and nobody waits for it."""
        if key not in self._working:
            if self._queued or len(self._working) >= self._max_in_flight:
                return False
            self._working.add(key)
        return True

    def arrive(self, flow: Flow) -> bool:
        """Reserves a place in the queue until `arrived`, unless the queue, or the flow's part of it, is full."""
        free = self._max_queued - self._queued
        if free <= 0 or len(self._waiting.get(flow, ())) + self._arriving[flow] >= SHARE * free:
            return False
        self._arriving[flow] += 1
        return True

    def arrived(self, flow: Flow) -> None:
        """Gives a reservation back: the task is in the queue by now, or will not come."""
        self._arriving[flow] -= 1
        if not self._arriving[flow]:
            del self._arriving[flow]

    @property
    def _queued(self) -> int:
        return len(self._flows) + self._arriving.total()

    def queue(self, key: Key, flow: Flow) -> None:
        """Waits for a slot; `ready` may be told before this returns. A task at work keeps the slot it has."""
        if key in self._working:
            self._ready(key)
            return
        if key not in self._flows:
            self._flows[key] = flow
            self._waiting.setdefault(flow, {})[key] = None
        self._fill()

    def waits(self, key: Key) -> bool:
        """Tells whether a task is in the queue."""
        return key in self._flows

    def leave(self, key: Key) -> None:
        """Gives back what a task has: its slot, or its place in the queue."""
        self._working.discard(key)
        flow = self._flows.pop(key, None)
        if flow is not None:
            self._drop(flow, key)
        self._fill()

    def clear(self) -> None:
        """Forgets everybody."""
        self._working.clear()
        self._waiting.clear()
        self._flows.clear()

    def _fill(self) -> None:
        while self._waiting and len(self._working) < self._max_in_flight:
            flow, keys = next(iter(self._waiting.items()))
            key = next(iter(keys))
            self._drop(flow, key)
            if flow in self._waiting:
                self._waiting.move_to_end(flow)
            del self._flows[key]
            self._working.add(key)
            self._ready(key)

    def _drop(self, flow: Flow, key: Key) -> None:
        keys = self._waiting[flow]
        del keys[key]
        if not keys:
            del self._waiting[flow]
