"""A Store in memory, for tests that need none of a disk: the same promises as the engines but durability."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conductor.v1 import event_pb2

from services.conductor.store.base import (
    Answer,
    Append,
    Appended,
    Conflict,
    GroupCommit,
    Key,
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


@dataclass
class Aggregate:
    """One task or project as the last append left it."""

    version: int
    epoch: int
    owner: str | None
    view: View


class MemoryStore(Store):
    """The log in a list. Closed, it refuses like an engine that is gone."""

    def __init__(self) -> None:
        self.commits = 0  # transactions, whatever became of the appends in them
        self._log: list[tuple[Key, str, int, bytes]] = []  # stream, project, seq and event
        self._aggregates: dict[Key, Aggregate] = {}
        self._requests: dict[str, tuple[RequestKey, int]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._group = GroupCommit(self._commit, self._ring)
        self._closed = False

    # ---- writing ----

    async def append(self, append: Append) -> Outcome:
        return await self._group.append(append)

    async def claim(self, owner: str) -> Sequence[str]:
        await self._turn()
        unfinished = [
            (key, found) for key, found in self._aggregates.items() if key[0] == "task" and not found.view.finished
        ]
        for _, found in unfinished:
            found.owner, found.epoch = owner, found.epoch + 1
        return sorted(key[1] for key, _ in unfinished)

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
            self._requests[request.key] = (request, len(self._log))
        return Appended(len(self._log), version)

    # ---- reading ----

    async def stream(self, key: Key) -> Stream:
        await self._turn()
        found = self._aggregates.get(key)
        events = [self._event(index) for index, (stream, *_) in enumerate(self._log) if stream == key]
        return Stream(events, found.version, found.epoch) if found else Stream([], 0, 0)

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
        events = [self._event(index) for index in behind if _belongs(key, *self._log[index][:2])][:limit]
        return Page(events, events[-1].sequence if len(events) == limit else max(len(self._log), after))

    async def bounds(self) -> tuple[int, int]:
        await self._turn()
        return 0, len(self._log)

    def on_commit(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def _ring(self) -> None:
        for listener in self._listeners:
            listener()

    def _event(self, index: int) -> event_pb2.Event:
        """Returns a copy, so that nobody can change the log through what was read."""
        _, _, seq, data = self._log[index]
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
