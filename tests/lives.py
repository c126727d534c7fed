"""Tasks and projects as they really ran, under other names and at other times: what golden logs hold, appended anew."""

import asyncio
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from conductor.v1 import event_pb2
from google.protobuf import json_format

from services.conductor.events import SNAPSHOT
from services.conductor.machines import MACHINES
from services.conductor.store.base import Append, Appended, Kind, RequestKey, Store

GOLDEN = Path(__file__).parent / "golden"
SECOND = 1_000_000_000
RUNS = ("task_completed", "task_failed", "task_cancelled", "task_fallback", "task_nothing", "task_recovered")


@cache
def golden(run: str) -> Sequence[event_pb2.Event]:
    """Returns the events of a golden run; of the project's, those that are not its tasks'."""
    lines = (GOLDEN / f"0.1.0-{run}.jsonl").read_text().splitlines()
    events = [json_format.Parse(line, event_pb2.Event()) for line in lines]
    return [event for event in events if event.type != SNAPSHOT and bool(event.task_id) == run.startswith("task")]


def life(name: str, run: str = "task_completed", *, ends: int, project: str = "", left: int = 0) -> Iterator[Append]:
    """Yields the appends of a run, three events each, the last at time `ends` (nanoseconds).

    Args:
        project: which project a task belongs to.
        left: events at its end that have not happened yet.
    """
    kind: Kind = "task" if run.startswith("task") else "project"
    machine = MACHINES[kind]
    state: Any = machine.initial(name)
    events = list(golden(run))[: len(golden(run)) - left]
    version = 0
    while version < len(events):
        part = [_renamed(event, kind, name, project) for event in events[version : version + 3]]
        for i, event in enumerate(part, version + 1):
            event.occurred_at.FromNanoseconds(ends - (len(golden(run)) - i) * 1000)
            state = machine.evolve(state, event)
        request = None if version else RequestKey(f"r-{name}", b"body", b"answer", 2**62, covers=1)
        owner = "me" if kind == "task" else None
        yield Append((kind, name), version, machine.first_epoch, owner, part, machine.view(state), request)
        version += len(part)


def _renamed(event: event_pb2.Event, kind: Kind, name: str, project: str) -> event_pb2.Event:
    renamed = event_pb2.Event()
    renamed.CopyFrom(event)
    renamed.ClearField("sequence"), renamed.ClearField("stream_sequence")
    renamed.event_id = f"{name}/{event.event_id}"
    if kind == "task":
        renamed.task_id, renamed.project_id = name, project
    else:
        renamed.project_id = name
    return renamed


async def live(store: Store, *lives: Iterator[Append]) -> None:
    """Appends lives side by side, so that their events lie interleaved."""

    async def one(appends: Iterator[Append]) -> None:
        for append in appends:
            assert isinstance(await store.append(append), Appended)

    await asyncio.gather(*map(one, lives))
