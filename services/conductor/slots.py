"""Who may work, and who waits for it: bounded, and fair between those who ask."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from conductor.v1 import conductor_pb2, task_pb2

from services.conductor.state.task import DEFAULT_DESKTOP
from services.conductor.store.base import Key

# Whose turn it is: a task's desktop, and its project.
Flow: TypeAlias = tuple[str, str]

SHARE = 8  # a desktop may hold at most this many times what is free in the queue


def flow_of(asked: conductor_pb2.ExecuteRequest | task_pb2.Task) -> Flow:
    """Returns whose turn a task takes: its desktop's and project's."""
    return asked.desktop_id or DEFAULT_DESKTOP, asked.project_id


class Slots:
    """A bounded number of tasks at work, and a bounded queue in which everybody has a turn.

    Desktops take turns, and so do the projects of each desktop (round robin), so that one with thousands of tasks
    delays another's by one task and not by thousands. How many of a desktop may wait follows the free space (dynamic
    threshold: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998): alone it gets eight ninths of the
    queue, and a newcomer finds room.

    Args:
        ready: told when a task that waited has a slot.
    """

    def __init__(self, max_in_flight: int, max_queued: int, ready: Callable[[Key], None]) -> None:
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._ready = ready
        self._working: set[Key] = set()
        # Desktop → project → tasks. Whose turn it is comes first.
        self._waiting: OrderedDict[str, OrderedDict[str, dict[Key, None]]] = OrderedDict()
        self._flows: dict[Key, Flow] = {}  # of those that wait
        self._resting: dict[Key, Flow] = {}  # of those that will wait again: they keep a place, and need no slot yet
        self._held: Counter[str] = Counter()  # places in the queue by desktop, reserved ones included
        self._arriving = 0

    @property
    def room(self) -> int:
        """How many more tasks could work or wait."""
        return max(0, self._max_in_flight + self._max_queued - len(self._working) - self._queued)

    def take(self, key: Key) -> bool:
        """Takes a slot at once, if there is one and nobody waits for it."""
        if key not in self._working:
            if self._flows or self._arriving or len(self._working) >= self._max_in_flight:
                return False
            self._wake(key)
            self._working.add(key)
        return True

    def arrive(self, flow: Flow) -> bool:
        """Reserves a place in the queue until `arrived`, unless the queue, or the desktop's part of it, is full."""
        free = self._max_queued - self._queued
        if free <= 0 or self._held[flow[0]] >= SHARE * free:
            return False
        self._arriving += 1
        self._held[flow[0]] += 1
        return True

    def arrived(self, flow: Flow) -> None:
        """Gives a reservation back: the task is in the queue by now, or will not come."""
        self._arriving -= 1
        self._give_back(flow[0])

    def queue(self, key: Key, flow: Flow, after: float = 0) -> None:
        """Waits for a slot; `ready` may be told before this returns. A task at work keeps the slot it has.

        Args:
            after: seconds to rest first, without one.
        """
        if after:
            self.rest(key, flow)
            asyncio.get_running_loop().call_later(after, self.queue, key, flow)
            return
        if key in self._working:
            self._ready(key)
            return
        self._wake(key)
        if key not in self._flows:
            desktop, project = self._flows[key] = flow
            self._held[desktop] += 1
            self._waiting.setdefault(desktop, OrderedDict()).setdefault(project, {})[key] = None
        self._fill()

    def rest(self, key: Key, flow: Flow) -> None:
        """Gives a slot to others until the task asks for one again with `queue`; its place in the queue is kept."""
        self._working.discard(key)
        if key not in self._flows and key not in self._resting:
            self._resting[key] = flow
            self._held[flow[0]] += 1
        self._fill()

    def waits(self, key: Key) -> bool:
        """Tells whether a task is in the queue, or has a place kept there."""
        return key in self._flows or key in self._resting

    def leave(self, key: Key) -> None:
        """Gives back what a task has: its slot, or its place in the queue."""
        self._working.discard(key)
        self._wake(key)
        if key in self._flows:
            self._drop(key)
        self._fill()

    def clear(self) -> None:
        """Forgets everybody but those who are arriving."""
        self._working.clear()
        for key in list(self._flows):
            self._drop(key)
        for key in list(self._resting):
            self._wake(key)

    @property
    def _queued(self) -> int:
        return len(self._flows) + len(self._resting) + self._arriving

    def _fill(self) -> None:
        while self._waiting and len(self._working) < self._max_in_flight:
            desktop, projects = next(iter(self._waiting.items()))
            project, keys = next(iter(projects.items()))
            key = next(iter(keys))
            projects.move_to_end(project)
            self._waiting.move_to_end(desktop)
            self._drop(key)
            self._working.add(key)
            self._ready(key)

    def _drop(self, key: Key) -> None:
        desktop, project = self._flows.pop(key)
        projects = self._waiting[desktop]
        del projects[project][key]
        if not projects[project]:
            del projects[project]
        if not projects:
            del self._waiting[desktop]
        self._give_back(desktop)

    def _wake(self, key: Key) -> None:
        if (flow := self._resting.pop(key, None)) is not None:
            self._give_back(flow[0])

    def _give_back(self, desktop: str) -> None:
        self._held[desktop] -= 1
        if not self._held[desktop]:
            del self._held[desktop]
