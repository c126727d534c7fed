"""Does the log keep its promises? Each check reads one snapshot and yields a sentence for everything it finds wrong.

Memory does not grow with the log: rows pass by, and nothing is kept but the streams of a sample.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from conductor.v1 import event_pb2, project_pb2, task_pb2

from services.conductor.machines import MACHINES
from services.conductor.store.admin import Reader
from services.conductor.store.base import Kind, View

SAMPLE = 1000  # streams folded unless all are wanted
# What is shown of a kind, and the event's own word for whose it is.
OF_KIND: Mapping[Kind, tuple[Any, str]] = {
    "task": (task_pb2.Task, "task_id"),
    "project": (project_pb2.ProjectState, "project_id"),
}
# Columns that must equal the fold. `ended_at` need not: of what ended before that column came, it holds the beginning.
EXACT = ("status", "project_id", "desktop_id", "created_at")

Findings: TypeAlias = AsyncIterator[str]
Check: TypeAlias = Callable[[Reader], Findings]


@dataclass(frozen=True, slots=True)
class Extent:
    """What a store holds: events at positions low < pos <= head, and older ones of what has not ended."""

    low: int
    head: int
    tasks: int
    projects: int


async def extent(reader: Reader) -> Extent:
    """Returns how much there is to check."""
    low, head = await one(reader, "SELECT low, pos FROM log_head")
    counts = {kind: count async for kind, count in reader.rows("SELECT kind, count(*) FROM aggregates GROUP BY kind")}
    return Extent(low, head, counts.get("task", 0), counts.get("project", 0))


async def head(reader: Reader) -> Findings:
    """The counter is where the events end, and nothing points behind it."""
    low, pos = await one(reader, "SELECT low, pos FROM log_head")
    if not 0 <= low <= pos:
        yield f"the head says that the log holds what is behind {low} up to {pos}"
    (newest,) = await one(reader, "SELECT max(pos) FROM events")
    if (newest or 0) > pos or (newest or 0) < pos > low:
        yield f"the head is {pos}, and the newest event is at {newest}"
    async for key, at in reader.rows("SELECT key, pos FROM requests WHERE pos > $1", pos):
        yield f"request {key} was answered at {at}, and the head is {pos}"


async def positions(reader: Reader) -> Findings:
    """Events follow each other without a gap, from the oldest position kept to the newest."""
    (last,) = await one(reader, "SELECT low FROM log_head")
    async for (pos,) in reader.rows("SELECT pos FROM events WHERE pos > $1 ORDER BY pos", last):
        if pos != last + 1:
            yield f"no event at {last + 1}" if pos == last + 2 else f"no events at {last + 1} to {pos - 1}"
        last = pos


async def streams(reader: Reader) -> Findings:
    """Every stream counts from 1 to the version of its task or project."""
    sql = (
        "SELECT a.kind, a.id, a.version, count(e.seq), min(e.seq), max(e.seq) FROM aggregates a"
        " LEFT JOIN events e ON e.kind = a.kind AND e.id = a.id GROUP BY a.kind, a.id, a.version"
        " HAVING count(e.seq) <> a.version OR min(e.seq) <> 1 OR max(e.seq) <> a.version"
    )
    async for kind, name, version, count, first, last in reader.rows(sql):
        yield f"{kind} {name} is at version {version} and has {count} events, from {first} to {last}"


async def owners(reader: Reader) -> Findings:
    """Every event belongs to a task or project that is there."""
    sql = (
        "SELECT e.kind, e.id, count(*) FROM events e WHERE NOT EXISTS"
        " (SELECT 1 FROM aggregates a WHERE a.kind = e.kind AND a.id = e.id) GROUP BY e.kind, e.id"
    )
    async for kind, name, count in reader.rows(sql):
        yield f"there is no {kind} {name}, and {count} events of it"


STREAM = (
    "SELECT a.kind, a.id, a.status, a.ended_at, a.project_id, a.desktop_id, a.created_at,"
    " CASE WHEN e.seq = a.version THEN a.state END, e.pos, e.project_id, e.data"
    " FROM aggregates a JOIN events e ON e.kind = a.kind AND e.id = a.id"
)


async def states(reader: Reader) -> Findings:
    """What is shown is what the events of each stream add up to."""
    async for finding in _folded(reader.rows(f"{STREAM} ORDER BY a.kind, a.id, e.seq")):
        yield finding


async def sample(reader: Reader) -> Findings:
    """The same for at most SAMPLE streams, spread evenly over the log."""
    (newest,) = await one(reader, "SELECT pos FROM log_head")
    seen: set[tuple[str, str]] = set()
    for pos in range(1, newest + 1, newest // SAMPLE + 1):
        async for kind, name in reader.rows("SELECT kind, id FROM events WHERE pos >= $1 ORDER BY pos LIMIT 1", pos):
            if (kind, name) not in seen:
                seen.add((kind, name))
                rows = reader.rows(f"{STREAM} WHERE a.kind = $1 AND a.id = $2 ORDER BY e.seq", kind, name)
                async for finding in _folded(rows):
                    yield finding


CHECKS: Mapping[str, Check] = {"head": head, "positions": positions, "streams": streams, "owners": owners}


async def _folded(rows: AsyncIterator[tuple[Any, ...]]) -> Findings:
    """Folds events that come stream by stream, each in order, and compares where a stream ends."""
    stream: _Stream | None = None
    async for kind, name, status, ended_at, project, desktop, created_at, state, pos, marked, data in rows:
        if stream is None or stream.key != (kind, name):
            stream = _Stream(kind, name)
        for finding in stream.take(pos, marked, data):
            yield finding
        if state is not None:
            for finding in stream.compare(View(status, ended_at, project, desktop, created_at, state)):
                yield finding


class _Stream:
    """One stream as it is folded. Says nothing more after its first finding: the rest would follow from it."""

    def __init__(self, kind: Kind, name: str) -> None:
        self.key = (kind, name)
        self._machine = MACHINES[kind]
        self._message, self._field = OF_KIND[kind]
        self._state = self._machine.initial(name)
        self._pos = 0
        self._broken = False

    def take(self, pos: int, project: str, data: bytes) -> list[str]:
        """Folds one event; returns what is wrong with it."""
        if self._broken:
            return []
        try:
            event = event_pb2.Event.FromString(data)
            finished = self._machine.finished(self._state)
            self._state = self._machine.evolve(self._state, event)
        except Exception as error:  # damaged bytes may break a fold in any way, and that it broke is the finding
            return self._finding(f"the event at {pos} cannot be read: {type(error).__name__}")
        before, self._pos = self._pos, pos
        if pos <= before:
            return self._finding(f"the event at {before} comes before the one at {pos}")
        if (getattr(event, self._field), event.project_id) != (self.key[1], project):
            return self._finding(f"the event at {pos} says that it belongs elsewhere")
        return self._finding(f"the event at {pos} follows its end") if finished else []

    def compare(self, row: View) -> list[str]:
        """Returns in what the row differs from what the events add up to."""
        if self._broken:
            return []
        try:
            folded = self._machine.view(self._state)
            parts = [(name, getattr(row, name), getattr(folded, name)) for name in EXACT]
            # As messages: equal states may have different bytes, for maps have no order.
            parts.append(("state", *(self._message.FromString(view.state) for view in (row, folded))))
        except Exception as error:  # damaged bytes again: that they cannot be read is the finding
            return self._finding(f"its row cannot be read: {type(error).__name__}")
        differs = [name for name, shown, found in parts if shown != found]
        if row.ended_at != folded.ended_at and (folded.ended_at is None or row.ended_at != folded.created_at):
            differs.append("ended_at")
        return self._finding(f"its row differs from its events in {', '.join(differs)}") if differs else []

    def _finding(self, text: str) -> list[str]:
        self._broken = True
        return [f"{self.key[0]} {self.key[1]}: {text}"]


async def one(reader: Reader, sql: str, *values: Any) -> tuple[Any, ...]:
    """Returns the only row of a statement."""
    return [row async for row in reader.rows(sql, *values)].pop()
