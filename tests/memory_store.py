"""A Store in memory, for tests that need none of a disk: the same promises as the engines but durability."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from conductor.v1 import event_pb2

from services.conductor.store.base import (
    Answer,
    Append,
    Appended,
    Conflict,
    GroupCommit,
    Key,
    Listener,
    Listing,
    Outcome,
    Page,
    RequestKey,
    Row,
    Store,
    StoreUnavailable,
    Stream,
    View,
)
from services.conductor.store.beats import Beats


@dataclass
class Aggregate:
    """One task or project as the last append left it."""

    version: int
    epoch: int
    owner: str | None
    view: View


class MemoryStore(Store):
    """The log in a list. Closed, it refuses like an engine that is gone."""

    exclusive = False
    log_id = "memory"

    def __init__(self) -> None:
        self.commits = 0  # transactions, whatever became of the appends in them
        # Stream, project, seq and event; None where an event was pruned.
        self._log: list[tuple[Key, str, int, bytes] | None] = []
        self._low = 0
        self._beats = Beats()
        self._aggregates: dict[Key, Aggregate] = {}
        self._requests: dict[str, tuple[RequestKey, int]] = {}
        self._listeners: list[Listener] = []
        self._group = GroupCommit(self._commit, self._ring)
        self._closed = False

    # ---- writing ----

    async def append(self, append: Append) -> Outcome:
        return await self._group.append(append)

    async def join(self, replica: str) -> None:
        await self._turn()
        self._beats.join(replica)

    async def beat(self, replica: str) -> bool:
        await self._turn()
        return self._beats.beat(replica)

    async def replicas(self) -> Sequence[str]:
        await self._turn()
        return self._beats.names()

    async def claim(self, replica: str, lease: float, limit: int) -> Sequence[str]:
        await self._turn()
        alive = self._beats.alive(lease)
        names = sorted(
            key[1]
            for key, found in self._aggregates.items()
            if key[0] == "task" and found.view.ended_at is None and found.owner not in alive
        )[:limit]
        for name in names:
            found = self._aggregates["task", name]
            found.owner, found.epoch = replica, found.epoch + 1
        return names

    async def leave(self, replica: str) -> None:
        await self._turn()
        self._beats.leave(replica)

    async def ended_before(self, newest: int) -> int:
        await self._turn()
        return next(iter(sorted((at for at, _ in self._ended()), reverse=True)[newest:]), 0)

    async def prune(self, ended_before: int, limit: int) -> int:
        await self._turn()
        doomed = {key for at, key in sorted(self._ended())[:limit] if at < ended_before}
        for pos, entry in enumerate(self._log, 1):
            if entry is not None and entry[0] in doomed:
                self._log[pos - 1], self._low = None, max(self._low, pos)
        for key in doomed:
            del self._aggregates[key]
        return len(doomed)

    def _ended(self) -> list[tuple[int, Key]]:
        found = self._aggregates.items()
        return [(each.view.ended_at, key) for key, each in found if each.view.ended_at is not None]

    async def close(self) -> None:
        await self._group.close()
        self._closed = True

    async def _commit(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        await self._turn()
        self.commits += 1
        return [self._one(append) for append in batch]

    def _one(self, append: Append) -> Outcome:
        request, found = append.request, self._aggregates.get(append.key)
        if request is not None and request.key in self._requests:
            earlier, pos = self._requests[request.key]
            return Answer(earlier.fingerprint, pos, earlier.response)
        stands = (found.version, found.epoch) if found else (0, append.epoch)
        if stands != (append.version, append.epoch):
            return Conflict()
        for seq, event in enumerate(append.events, append.version + 1):
            self._log.append((append.key, append.view.project_id, seq, event.SerializeToString()))
        version, owner = append.version + len(append.events), found.owner if found else append.owner
        self._aggregates[append.key] = Aggregate(version, append.epoch, owner, append.view)
        if request is not None:
            self._requests[request.key] = (request, len(self._log) - len(append.events) + request.covers)
        return Appended(len(self._log), version)

    # ---- reading ----

    async def stream(self, key: Key) -> Stream:
        await self._turn()
        found = self._aggregates.get(key)
        events = [self._event(index) for index, entry in enumerate(self._log) if entry is not None and entry[0] == key]
        return Stream(events, found.version, found.epoch, found.owner) if found else Stream([], 0, 0, None)

    async def row(self, key: Key) -> Row | None:
        await self._turn()
        found = self._aggregates.get(key)
        return self._row(key, found.view) if found else None

    async def list(self, listing: Listing) -> Sequence[Row]:
        await self._turn()
        rows = [self._row(key, found.view) for key, found in self._aggregates.items() if _lists(listing, key, found)]
        return sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)[: listing.limit]

    async def answer(self, request_key: str) -> Answer | None:
        await self._turn()
        if request_key not in self._requests:
            return None
        request, pos = self._requests[request_key]
        return Answer(request.fingerprint, pos, request.response)

    async def read(self, after: int, limit: int, key: Key | None = None) -> Page:
        await self._turn()
        behind = range(after, len(self._log))
        entries = ((index, self._log[index]) for index in behind)
        found = [index for index, entry in entries if entry is not None and _belongs(key, *entry[:2])][:limit]
        events = [self._event(index) for index in found]
        return Page(events, events[-1].sequence if len(events) == limit else max(len(self._log), after), self._low)

    async def bounds(self) -> tuple[int, int]:
        await self._turn()
        return self._low, len(self._log)

    def on_commit(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def _ring(self, events: Sequence[event_pb2.Event]) -> None:
        for listener in self._listeners:
            listener(events)

    def _event(self, index: int) -> event_pb2.Event:
        """Returns a copy, so that nobody can change the log through what was read."""
        _, _, seq, data = self._log[index] or (None, None, 0, b"")
        event = event_pb2.Event.FromString(data)
        event.sequence, event.stream_sequence = index + 1, seq
        return event

    def _row(self, key: Key, view: View) -> Row:
        return Row(key[1], view.created_at, view.state, len(self._log))

    async def _turn(self) -> None:
        """Lets others run, as an engine does while it works."""
        await asyncio.sleep(0)
        if self._closed:
            raise StoreUnavailable("ClosedError: the store is closed")


def _lists(listing: Listing, key: Key, found: Aggregate) -> bool:
    view = found.view
    return (
        key[0] == listing.kind
        and listing.status in (0, view.status)
        and (listing.project_id is None or view.project_id == listing.project_id != "")
        and (listing.desktop_id is None or view.desktop_id == listing.desktop_id != "")
        and (listing.before is None or (view.created_at, key[1]) < listing.before)
    )


def _belongs(wanted: Key | None, stream: Key, project: str) -> bool:
    return wanted is None or (wanted == stream if wanted[0] == "task" else wanted[1] == project)
