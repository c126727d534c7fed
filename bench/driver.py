"""The client of `make bench`: calls one Conductor as a program that uses it would."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from conductor.v1 import conductor_pb2, event_pb2, project_pb2, task_pb2
from google.protobuf import duration_pb2

OBJECTIVE = "Compare the durable orchestration engines on the job of submit, research, report. " * 2  # about 200 bytes
MODE = task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER
COMPLETED = "conductor.task.completed"
PAGE = 50  # tasks listed at once
BEHIND = 200  # events that a subscriber who comes back has missed
# A Conductor that comes back must be found at once, not after gRPC's default backoff.
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
)
_numbers = itertools.count()


def fresh(what: str) -> str:
    """Returns an id that no earlier run on the same log has used."""
    return f"{what}-{time.time_ns()}-{next(_numbers)}"


async def task(stub: Any) -> float:
    """Runs one task to its end; returns the milliseconds from Execute to COMPLETED."""
    request = conductor_pb2.ExecuteRequest(
        objective=OBJECTIVE, output_mode=MODE, wait=duration_pb2.Duration(seconds=60)
    )
    start = time.perf_counter()
    answer = await stub.Execute(request, wait_for_ready=True)
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED, answer
    return (time.perf_counter() - start) * 1e3


async def tasks(stub: Any, count: int, in_flight: int) -> list[float]:
    """Runs tasks in closed loops; returns their milliseconds."""
    taken: list[float] = []
    numbers = iter(range(count))

    async def loop() -> None:
        for _ in numbers:  # shared: whoever is free takes the next
            taken.append(await task(stub))

    await asyncio.gather(*(loop() for _ in range(in_flight)))
    return taken


async def acknowledgements(stub: Any, count: int) -> list[float]:
    """Submits tasks one at a time without waiting for their end; returns the milliseconds to the answer."""
    ends = stub.SubscribeEvents(
        conductor_pb2.SubscribeEventsRequest(types=[COMPLETED], after_sequence=await head(stub))
    )
    events = payloads(ends)
    taken: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        answer = await stub.Execute(conductor_pb2.ExecuteRequest(objective=OBJECTIVE, output_mode=MODE))
        taken.append((time.perf_counter() - start) * 1e3)
        while (await anext(events)).task_id != answer.task_id:
            pass
    ends.cancel()
    return taken


async def gates(stub: Any, count: int) -> list[float]:
    """Confirms gates by hand; returns the milliseconds until a subscriber sees the next stage in progress."""
    taken: list[float] = []
    while len(taken) < count:
        project = fresh("gates")
        stream = stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(project_id=project))
        events = stream.__aiter__()
        await anext(events)  # the snapshot: the subscription stands
        for stage in range(project_pb2.STAGE_PARSE_INTENT, project_pb2.STAGE_EXPORT):
            start = time.perf_counter()
            call = stub.Confirm(conductor_pb2.ConfirmRequest(project_id=project))
            await _started(events, stage + 1)
            taken.append((time.perf_counter() - start) * 1e3)
            await call
        stream.cancel()
    return taken


async def reads(stub: Any, count: int) -> dict[str, list[float]]:
    """Reads what there is; returns the milliseconds of each kind of read."""
    newest = await head(stub)
    shown = (await stub.ListTasks(conductor_pb2.ListTasksRequest(page_size=PAGE))).tasks
    finished = conductor_pb2.ListTasksRequest(page_size=PAGE, status=task_pb2.TASK_STATUS_COMPLETED)
    behind = conductor_pb2.SubscribeEventsRequest(after_sequence=max(0, newest - BEHIND))
    kinds: dict[str, Callable[[str], Awaitable[Any]]] = {
        "get_task": lambda task_id: stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id)),
        "list_tasks": lambda _: stub.ListTasks(finished),
        "replay_of_a_task": lambda task_id: _until(
            stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(task_id=task_id, after_sequence=0)), COMPLETED
        ),
        "resume": lambda _: _until(stub.SubscribeEvents(behind), newest),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(count):
        for kind, read in kinds.items():
            start = time.perf_counter()
            await read(shown[i % len(shown)].task_id)
            taken[kind].append((time.perf_counter() - start) * 1e3)
    return taken


async def _until(stream: Any, last: str | int) -> None:
    """Reads a stream up to an event of a type, or at a position."""
    async for event in payloads(stream):
        if last in (event.type, event.sequence):
            break
    stream.cancel()


async def move(stub: Any, project: str) -> float:
    """Writes one event to a project; returns the milliseconds until it is acknowledged."""
    request = conductor_pb2.TransitionToRequest(project_id=project, stage_id=project_pb2.STAGE_PARSE_INTENT)
    start = time.perf_counter()
    await stub.TransitionTo(request)
    return (time.perf_counter() - start) * 1e3


async def head(stub: Any) -> int:
    """Returns the position of the newest event of the log."""
    state = await stub.TransitionTo(
        conductor_pb2.TransitionToRequest(project_id=fresh("head"), stage_id=project_pb2.STAGE_PARSE_INTENT)
    )
    return int(state.as_of_sequence)


async def payloads(stream: Any) -> AsyncIterator[event_pb2.Event]:
    """Yields the events of a stream that are in the log: neither checkpoints nor snapshots."""
    async for event in stream:
        if event.WhichOneof("payload") not in (None, "snapshot"):
            yield event


async def _started(events: Any, stage: int) -> None:
    async for event in events:
        changed = event.stage_status
        if changed.stage_id == stage and changed.status == project_pb2.STAGE_STATUS_IN_PROGRESS:
            return
