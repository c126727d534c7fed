"""What tests of the whole system ask of it: its log, its promises, the reports on disk."""

import hashlib
from typing import Any

import grpc
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, event_pb2, task_pb2, terminal_pb2

from ops.stack import Stack
from services.conductor.events import TERMINAL_TYPES
from tests.conftest import MARKDOWN, until

TERMINAL = task_pb2.CAPABILITY_TERMINAL


def stub_of(stack: Stack, name: str = "conductor") -> tuple[Any, Any]:
    """Returns a channel and a stub, to the Conductor itself or through the edge."""
    channel = grpc.aio.insecure_channel(stack.addresses[name], [("grpc.use_local_subchannel_pool", 1)])
    return channel, conductor_pb2_grpc.ConductorStub(channel)


def request(objective: str = "At what temperature does water boil?", **fields: Any) -> conductor_pb2.ExecuteRequest:
    return conductor_pb2.ExecuteRequest(objective=objective, output_mode=MARKDOWN, **fields)


def terminal(script: str, **fields: Any) -> task_pb2.Hints:
    return task_pb2.Hints(capabilities=[TERMINAL], commands=[terminal_pb2.Command(script=script, **fields)])


async def history(stub: Any) -> list[event_pb2.Event]:
    """Returns everything in the log, read as a subscriber from the beginning to the present end."""
    head = (await stub.GetState(conductor_pb2.GetStateRequest(project_id="nobody"))).as_of_sequence
    events: list[event_pb2.Event] = []
    stream = stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(after_sequence=0))
    async for event in stream:
        events.append(event)
        if event.sequence >= head:
            stream.cancel()
            return events
    raise AssertionError("the stream ended before the log's end")


def check_promises(events: list[event_pb2.Event]) -> None:
    """Checks what must hold of every log: gapless, started means ended, calls and results paired, last is last."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    by_task: dict[str, list[event_pb2.Event]] = {}
    for event in events:
        if event.task_id:  # those of projects belong to none
            by_task.setdefault(event.task_id, []).append(event)
    for task_id, own in by_task.items():
        assert [event.stream_sequence for event in own] == list(range(1, len(own) + 1))
        assert own[0].type == "conductor.task.started", task_id
        assert [event.type in TERMINAL_TYPES for event in own].count(True) == 1, task_id
        assert own[-1].type in TERMINAL_TYPES, task_id
        calls = [event.worker_call.call_id for event in own if event.HasField("worker_call")]
        results = [event.worker_result.call_id for event in own if event.HasField("worker_result")]
        assert calls == results, task_id


def check_reports(stack: Stack, events: list[event_pb2.Event]) -> int:
    """Checks that every completed task's report is on disk, whole as its writer described it. Returns how many."""
    reports = [event.worker_result.report for event in events if event.worker_result.HasField("report")]
    for report in reports:
        content = (stack.run_dir / report.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (report.size_bytes, report.sha256)
    completed = [event for event in events if event.HasField("task_completed")]
    assert {event.task_completed.report_path for event in completed} == {report.path for report in reports}
    on_disk = {f"reports/{path.name}" for path in (stack.run_dir / "reports").iterdir()}
    paths = {report.path for report in reports}
    beside = {path.removesuffix(".md") for path in paths}  # a folder for each: what was found, as data
    assert paths <= on_disk <= paths | beside, "a trace of something that did not complete"
    return len(completed)


async def all_ended(stub: Any, count: int) -> bool:
    tasks = (await stub.ListTasks(conductor_pb2.ListTasksRequest(page_size=1000))).tasks
    assert len(tasks) == count
    return all(task.status >= task_pb2.TASK_STATUS_COMPLETED for task in tasks)


async def end_of(stub: Any, task_id: str) -> task_pb2.Task:
    async def look() -> task_pb2.Task | None:
        task = await stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id))
        return task if task.completed_at.seconds else None

    return await until(look, 30)
