"""The client's library: calls that are repeated or not, streams that are resumed."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, event_pb2, project_pb2, task_pb2
from google.api import httpbody_pb2

from client.api import ConductorClient
from client.errors import ConductorError
from services.common.errors import Reason
from tests.scripted_conductor import (
    TASK,
    Act,
    Scripted,
    checkpoint,
    cut,
    event,
    give,
    refuse,
    script,
    serve,
    stream,
    target,
)

__all__ = ["script", "target"]


@pytest.fixture
def client(target: str) -> Iterator[ConductorClient]:
    with ConductorClient(target, timeout=10, retry_for=1, resume_for=1) as made:
        yield made


def ended(request: Any, context: grpc.ServicerContext) -> None:
    """Ends a stream with status OK."""


def snapshot(sequence: int) -> event_pb2.Event:
    return event(sequence, "conductor.snapshot", snapshot=event_pb2.Snapshot(task=task_pb2.Task(task_id=TASK)))


def take(events: Iterator[event_pb2.Event], count: int) -> list[int]:
    return [next(events).sequence for _ in range(count)]


def cursors(script: Scripted) -> list[int | None]:
    asked = script.seen(conductor_pb2.SubscribeEventsRequest)
    return [request.after_sequence if request.HasField("after_sequence") else None for request in asked]


# Calls


def test_execute_asks_for_a_report_under_a_new_request_id(client: ConductorClient, script: Scripted) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    assert client.execute("why?", wait=1.5, project_id="p").task_id == TASK
    client.execute("why?")
    client.execute("why?", request_id="mine")
    first, second, third = script.seen(conductor_pb2.ExecuteRequest)
    assert first.output_mode == task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER
    assert (first.objective, first.project_id, first.wait.ToMilliseconds()) == ("why?", "p", 1500)
    assert not first.HasField("desktop_id")
    assert first.request_id
    assert first.request_id != second.request_id
    assert third.request_id == "mine"


MOVES: dict[str, Callable[[ConductorClient], Any]] = {
    "Execute": lambda client: client.execute("x"),
    "TransitionTo": lambda client: client.transition("p", project_pb2.STAGE_TRAIN),
    "WaitForConfirmation": lambda client: client.wait_for_confirmation("p", project_pb2.STAGE_TRAIN, summary="s"),
    "ProposePlan": lambda client: client.propose_plan("p", project_pb2.STAGE_TRAIN, "s", steps=["a", "b"]),
    "Confirm": lambda client: client.confirm("p", approved=False, reason="r"),
}
READS: dict[str, Callable[[ConductorClient], Any]] = {
    "GetTask": lambda client: client.get_task(TASK),
    "ListTasks": lambda client: client.list_tasks(status=task_pb2.TASK_STATUS_FAILED, page_size=2),
    "GetReport": lambda client: client.report(TASK),
    "GetState": lambda client: client.state("p"),
    "ListProjects": lambda client: client.list_projects(page_token="t"),
}
ANSWERS: dict[str, Any] = {
    "Execute": conductor_pb2.ExecuteResponse(task_id=TASK),
    "GetTask": task_pb2.Task(task_id=TASK),
    "ListTasks": conductor_pb2.ListTasksResponse(next_page_token="n"),
    "GetReport": httpbody_pb2.HttpBody(data=b"# r"),
    "ListProjects": conductor_pb2.ListProjectsResponse(next_page_token="n"),
}


@pytest.mark.parametrize("rpc", [*MOVES, *READS])
def test_a_safe_call_is_repeated_while_unavailable(client: ConductorClient, script: Scripted, rpc: str) -> None:
    answer = ANSWERS.get(rpc, project_pb2.ProjectState(project_id="p"))
    script.on(rpc, cut(), refuse(Reason.ERROR_REASON_SHUTTING_DOWN), give(answer))
    assert (MOVES | READS)[rpc](client) == answer
    assert len(script.requests) == 3
    assert script.requests[0] == script.requests[1] == script.requests[2]  # the request_id too
    assert rpc in READS or script.requests[0].request_id


def test_cancel_is_tried_once(client: ConductorClient, script: Scripted) -> None:
    script.on("CancelTask", cut(), give(task_pb2.Task(task_id=TASK)))
    with pytest.raises(ConductorError) as raised:
        client.cancel(TASK, "enough")
    assert raised.value.retryable
    assert client.cancel(TASK, "enough").task_id == TASK
    assert [request.reason for request in script.requests] == ["enough", "enough"]


def test_a_refusal_is_not_repeated_and_arrives_whole(client: ConductorClient, script: Scripted) -> None:
    script.on("GetTask", refuse(Reason.ERROR_REASON_TASK_NOT_FOUND, "No such task.", task_id=TASK))
    with pytest.raises(ConductorError, match="TASK_NOT_FOUND: No such task") as raised:
        client.get_task(TASK)
    error = raised.value
    assert (error.reason, error.message, error.code) == ("TASK_NOT_FOUND", "No such task.", grpc.StatusCode.NOT_FOUND)
    assert error.metadata == {"task_id": TASK, "correlation_id": "c-1"}
    assert not error.retryable
    assert len(script.requests) == 1


def test_violations_of_an_invalid_request_arrive_by_field(client: ConductorClient, script: Scripted) -> None:
    violations = [("objective", "must not be blank"), ("wait", "must be short")]
    script.on("Execute", refuse(Reason.ERROR_REASON_INVALID_REQUEST, "Bad.", violations, field="objective"))
    with pytest.raises(ConductorError) as raised:
        client.execute("")
    assert raised.value.violations == dict(violations)


def test_an_answer_without_details_is_named_by_its_code(client: ConductorClient, script: Scripted) -> None:
    script.on("GetState", cut(grpc.StatusCode.PERMISSION_DENIED))
    with pytest.raises(ConductorError) as raised:
        client.state("p")
    assert (raised.value.reason, raised.value.message) == ("PERMISSION_DENIED", "cut on the way")


def test_repeating_ends_in_time(client: ConductorClient, script: Scripted) -> None:
    script.on("GetState", cut())
    begun = time.monotonic()
    with pytest.raises(ConductorError, match="UNAVAILABLE"):
        client.state("p")
    assert 1 <= time.monotonic() - begun < 5
    assert len(script.requests) < 10  # the pauses grow


def test_a_call_without_an_answer_ends_at_its_deadline(script: Scripted, target: str) -> None:
    free = threading.Event()
    script.on("GetState", lambda request, context: free.wait(20))
    with ConductorClient(target, timeout=0.2) as client, pytest.raises(ConductorError, match="DEADLINE_EXCEEDED"):
        client.state("p")
    free.set()


# Streams


@pytest.mark.parametrize(
    "how", [cut(), cut(grpc.StatusCode.INTERNAL), refuse(Reason.ERROR_REASON_SHUTTING_DOWN), ended]
)
def test_a_broken_stream_goes_on_behind_its_last_event(client: ConductorClient, script: Scripted, how: Act) -> None:
    script.on(
        "SubscribeEvents",
        stream(event(1), event(2), then=how),
        cut(),
        stream(event(2), event(3), checkpoint(7), then=how),  # an event that comes again is not yielded again
        stream(event(8)),
    )
    assert take(client.events(after_sequence=0), 4) == [1, 2, 3, 8]
    assert cursors(script) == [0, 2, 2, 7]


def test_the_snapshot_comes_once_and_is_the_cursor(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", cut(), stream(snapshot(5), then=cut()), stream(event(6)))
    events = client.events(task_id=TASK)
    assert next(events).snapshot.task.task_id == TASK
    assert next(events).sequence == 6
    assert cursors(script) == [None, None, 5]
    assert {request.task_id for request in script.requests} == {TASK}


def test_filters_are_kept_when_a_stream_is_resumed(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(event(1), then=cut()), stream(event(2)))
    scope = task_pb2.Scope(user_id="u")
    assert take(client.events(after_sequence=0, project_id="p", types=["a", "b"], correlation_id="c", scope=scope), 2)
    for request in script.requests:
        assert (request.project_id, list(request.types), request.correlation_id) == ("p", ["a", "b"], "c")
        assert request.scope == scope


def test_a_refused_stream_raises_at_once(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", refuse(Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE, head=4))
    with pytest.raises(ConductorError, match="CURSOR_OUT_OF_RANGE") as raised:
        next(client.events(after_sequence=9))
    assert raised.value.metadata["head"] == "4"
    assert len(script.requests) == 1


def test_a_fault_of_conductor_is_not_taken_for_a_cut(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(event(1), then=refuse(Reason.ERROR_REASON_INTERNAL)))
    events = client.events(after_sequence=0)
    assert next(events).sequence == 1
    with pytest.raises(ConductorError, match="INTERNAL"):
        next(events)
    assert len(script.requests) == 1


@pytest.mark.parametrize("how", [cut(), stream(then=ended)])
def test_resuming_ends_when_nothing_comes_for_long(client: ConductorClient, script: Scripted, how: Act) -> None:
    script.on("SubscribeEvents", how)
    with pytest.raises(ConductorError, match="UNAVAILABLE"):
        next(client.events(after_sequence=0))
    assert 1 < len(script.requests) < 10


def test_patience_begins_anew_with_each_event(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", *(stream(event(number), then=cut()) for number in range(1, 10)))
    assert take(client.events(after_sequence=0), 9) == list(range(1, 10))


def test_without_follow_a_stream_ends_at_the_present(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(checkpoint(3)), stream(event(1), event(2), event(3), event(4)))
    assert [found.sequence for found in client.events(after_sequence=0, follow=False)] == [1, 2, 3]
    script.on("SubscribeEvents", stream(checkpoint(9)), stream(event(1), checkpoint(9)))
    assert [found.sequence for found in client.events(after_sequence=0, types=["a"], follow=False)] == [1]


def test_an_empty_log_is_read_at_once(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(checkpoint(0)))
    assert list(client.events(after_sequence=0, follow=False)) == []
    assert len(script.requests) == 1  # a second stream would be silent until the service's heartbeat


def test_leaving_a_stream_ends_it_at_the_server(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(event(1)))
    events = client.events(after_sequence=0)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert script.left.wait(5)


def test_a_stream_survives_a_restart_of_the_server(script: Scripted) -> None:
    server, port = serve(script)
    script.on("SubscribeEvents", stream(event(1)), stream(event(2)))
    with ConductorClient(f"127.0.0.1:{port}", resume_for=10) as client:
        events = client.events(after_sequence=0)
        assert next(events).sequence == 1
        server.stop(None).wait()
        server, _ = serve(script, port)
        assert next(events).sequence == 2
    server.stop(None).wait()
