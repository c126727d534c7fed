"""The conductor over a real loopback port, with scripted workers."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, error_pb2, event_pb2, task_pb2
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error
from tests.conftest import MARKDOWN, Running, refused, start_conductor, until
from tests.fakes import Workers, hangs

SECONDS_10 = duration_pb2.Duration(seconds=10)
NAME = "conductor.v1.Conductor"
RUNNING = {task_pb2.TASK_STATUS_RUNNING, task_pb2.TASK_STATUS_WAITING_WORKER}


def detail(error: grpc.aio.AioRpcError, kind: type) -> Any:
    """Returns the detail of a type from a refused call."""
    status = rpc_status.from_call(error)
    found = kind()
    assert any(d.Unpack(found) for d in status.details), f"no {kind.__name__} in {status}"
    return found


def reason_of(errors: list[grpc.aio.AioRpcError]) -> error_pb2.TypedError:
    error = from_rpc_error(errors[0])
    assert error is not None, errors[0]
    return error


async def head(conductor: Running) -> int:
    return int((await conductor.store.bounds())[1])


async def get(conductor: Running, task_id: str) -> task_pb2.Task:
    task: task_pb2.Task = await conductor.stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id))
    return task


async def cancel(conductor: Running, task_id: str, **fields: Any) -> task_pb2.Task:
    request = conductor_pb2.CancelTaskRequest(task_id=task_id, **fields)
    task: task_pb2.Task = await conductor.stub.CancelTask(request)
    return task


async def report(conductor: Running, task_id: str) -> Any:
    return await conductor.stub.GetReport(conductor_pb2.GetTaskReportRequest(task_id=task_id))


async def ids(conductor: Running, **fields: Any) -> tuple[list[str], str]:
    page = await conductor.stub.ListTasks(conductor_pb2.ListTasksRequest(**fields))
    return [task.task_id for task in page.tasks], page.next_page_token


async def test_an_objective_becomes_a_report(conductor: Running, workers: Workers) -> None:
    answer = await conductor.execute(wait=SECONDS_10, desktop_id="desk-1", correlation_id="corr-1")
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED
    assert answer.report_path == f"reports/{answer.task_id}.md"
    assert answer.writer_window_props.path == answer.report_path and answer.writer_window_props.preview_mode
    assert answer.correlation_id == "corr-1"
    types = [event.type for event in await conductor.events(answer.task_id)]
    assert types == [
        "conductor.task.started",
        "conductor.task.progress",
        "conductor.worker.call",
        "conductor.worker.result",
        "conductor.worker.call",
        "conductor.worker.result",
        "conductor.task.completed",
    ]
    assert workers.seen[-1].findings[0].statement == "Water boils at 100 °C."


# ---- Execute and its wait ----


async def test_without_wait_the_answer_is_queued_and_already_durable(conductor: Running, workers: Workers) -> None:
    workers.research = hangs
    answer = await conductor.execute()
    assert answer.status == task_pb2.TASK_STATUS_QUEUED and answer.as_of_sequence == 1
    assert not answer.HasField("error") and not answer.HasField("report_path")
    assert not answer.HasField("writer_window_props")
    assert (await conductor.events(answer.task_id))[0].task_started.objective.startswith("At what")


async def test_a_wait_that_runs_out_gives_the_running_state(conductor: Running, workers: Workers) -> None:
    workers.research = hangs
    begun = time.monotonic()
    answer = await conductor.execute(wait=duration_pb2.Duration(nanos=300_000_000))
    assert 0.3 <= time.monotonic() - begun < 3
    assert answer.status in RUNNING and not answer.HasField("error")


async def test_a_wait_ends_with_the_task(conductor: Running, workers: Workers) -> None:
    workers.research = hangs
    begun = time.monotonic()
    waiting = asyncio.ensure_future(conductor.execute(wait=duration_pb2.Duration(seconds=60), correlation_id="corr-w"))
    task_id = (await until(lambda: conductor.events()))[0].task_id
    await cancel(conductor, task_id, reason="enough")
    answer = await asyncio.wait_for(waiting, 5)
    assert time.monotonic() - begun < 5
    assert answer.status == task_pb2.TASK_STATUS_CANCELLED and answer.correlation_id == "corr-w"
    assert (
        answer.error.reason == Reason.ERROR_REASON_TASK_CANCELLED
        and answer.error.kind == error_pb2.ERROR_KIND_CANCELLED
    )


async def test_a_caller_who_hangs_up_changes_nothing(conductor: Running, workers: Workers) -> None:
    waiting = asyncio.ensure_future(conductor.execute(wait=SECONDS_10))
    task_id = (await until(lambda: conductor.events()))[0].task_id
    waiting.cancel()
    assert (await conductor.ended(task_id)).status == task_pb2.TASK_STATUS_COMPLETED


async def test_the_same_request_gets_the_same_task_and_another_body_is_refused(conductor: Running) -> None:
    first = await conductor.execute("one", request_id="r-1", wait=SECONDS_10)
    again = await asyncio.gather(*(conductor.execute("one", request_id="r-1") for _ in range(10)))
    assert {answer.task_id for answer in again} == {first.task_id}
    before = await head(conductor)
    with refused(grpc.StatusCode.ALREADY_EXISTS) as errors:
        await conductor.execute("two", request_id="r-1")
    assert reason_of(errors).reason == Reason.ERROR_REASON_REQUEST_ID_REUSED
    assert await head(conductor) == before and len((await ids(conductor))[0]) == 1


@pytest.mark.parametrize("given", ["field", "header", "both", "none", "odd", "long"])
async def test_the_correlation_id_is_the_requests_then_the_headers_then_a_new_one(
    conductor: Running, workers: Workers, given: str
) -> None:
    fields = {"correlation_id": "corr-f"} if given in ("field", "both") else {}
    headers = {"header": "corr-h", "both": "corr-h", "odd": "a b'; --", "long": "x" * 129}  # ids have a pattern
    header = (("x-correlation-id", headers[given]),) if given in headers else ()
    request = conductor_pb2.ExecuteRequest(objective="x", output_mode=MARKDOWN, wait=SECONDS_10, **fields)
    answer = await conductor.stub.Execute(request, metadata=header)
    expected = {"field": "corr-f", "both": "corr-f", "header": "corr-h"}.get(given, answer.correlation_id)
    assert answer.correlation_id == expected not in ("", headers["odd"], headers["long"])
    assert {event.correlation_id for event in await conductor.events(answer.task_id)} == {expected}
    assert workers.seen[0].correlation_id == workers.seen[-1].provenance.correlation_id == expected


async def test_a_task_shows_what_was_asked_and_when(conductor: Running) -> None:
    scope = task_pb2.Scope(session_id="s-1", thread_id="t-1", user_id="u@x", desktop_id="ignored")
    answer = await conductor.execute("é " * 8192, desktop_id="desk-1", project_id="p-1", scope=scope, wait=SECONDS_10)
    task = await get(conductor, answer.task_id)
    assert (task.objective, task.desktop_id, task.project_id) == ("é " * 8192, "desk-1", "p-1")
    assert (task.output_mode, task.attempt, task.status) == (MARKDOWN, 1, task_pb2.TASK_STATUS_COMPLETED)
    assert task.created_at.ToNanoseconds() <= task.started_at.ToNanoseconds() <= task.completed_at.ToNanoseconds()
    for event in await conductor.events(answer.task_id):
        assert (event.scope.session_id, event.scope.user_id, event.scope.desktop_id) == ("s-1", "u@x", "desk-1")
        assert (event.actor.service, event.actor.instance, event.project_id) == ("conductor", "test", "p-1")
        assert event.status and event.phase and event.correlation_id and event.event_id


# ---- ListTasks, ListProjects ----


async def test_tasks_are_listed_newest_first_in_pages_by_filter(conductor: Running, workers: Workers) -> None:
    made = [
        (await conductor.execute(f"{n}", project_id=f"p-{n % 2}", desktop_id=f"d-{n % 3}")).task_id for n in range(7)
    ]
    for task_id in made:
        await conductor.ended(task_id)
    newest = made[::-1]
    pages, token = [], ""
    while True:
        page, token = await ids(conductor, page_size=3, page_token=token)
        pages.append(page)
        if len(pages) == 1:
            made.append((await conductor.execute("late")).task_id)  # does not disturb a listing under way
        if not token:
            break
    assert pages == [newest[:3], newest[3:6], newest[6:]]
    assert (await ids(conductor, project_id="p-1", page_size=1000))[0] == [made[5], made[3], made[1]]
    assert (await ids(conductor, project_id="p-1", desktop_id="d-0"))[0] == [made[3]]
    await conductor.ended(made[-1])
    workers.research = hangs
    open_task = (await conductor.execute("open")).task_id
    await until(lambda: waits(conductor, open_task))
    assert (await ids(conductor, status=task_pb2.TASK_STATUS_WAITING_WORKER))[0] == [open_task]
    assert (await ids(conductor, status=task_pb2.TASK_STATUS_COMPLETED))[0] == made[::-1]
    assert (await ids(conductor, project_id="nobody")) == ([], "")


async def waits(conductor: Running, task_id: str) -> bool:
    return (await get(conductor, task_id)).status == task_pb2.TASK_STATUS_WAITING_WORKER


async def test_a_full_last_page_has_no_token_and_the_default_page_is_fifty(
    conductor: Running, workers: Workers
) -> None:
    await asyncio.gather(*(conductor.execute(str(n)) for n in range(51)))
    first, token = await ids(conductor)
    assert len(first) == 50 and token
    rest, token = await ids(conductor, page_token=token, page_size=1)
    assert len(rest) == 1 and not token and not set(first) & set(rest)
    assert len((await ids(conductor, page_size=51))[0]) == 51 and (await ids(conductor, page_size=51))[1] == ""


async def test_projects_are_listed_newest_first_in_pages(conductor: Running) -> None:
    for n in range(5):
        await conductor.stub.TransitionTo(conductor_pb2.TransitionToRequest(project_id=f"p-{n}", stage_id=1))
    first = await conductor.stub.ListProjects(conductor_pb2.ListProjectsRequest(page_size=3))
    rest = await conductor.stub.ListProjects(
        conductor_pb2.ListProjectsRequest(page_size=3, page_token=first.next_page_token)
    )
    assert [p.project_id for p in (*first.projects, *rest.projects)] == ["p-4", "p-3", "p-2", "p-1", "p-0"]
    assert rest.next_page_token == "" and len(first.projects[0].stages) == 8


# ---- GetReport ----


async def test_the_report_is_markdown_as_the_writer_keeps_it(conductor: Running, workers: Workers) -> None:
    workers.report = "# Ärger\n".encode() * 100_000
    answer = await conductor.execute(wait=SECONDS_10)
    body = await report(conductor, answer.task_id)
    assert body.content_type.startswith("text/markdown") and body.data == workers.report


async def test_a_report_is_not_there_before_the_end_nor_after_a_failure(conductor: Running, workers: Workers) -> None:
    workers.research = hangs
    task_id = (await conductor.execute()).task_id
    for status in ("TASK_STATUS_WAITING_WORKER", "TASK_STATUS_CANCELLED"):
        await until(lambda s=status: in_status(conductor, task_id, s))
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await report(conductor, task_id)
        assert reason_of(errors).reason == Reason.ERROR_REASON_REPORT_NOT_READY
        assert reason_of(errors).metadata == {"task_id": task_id, "found": status}
        if status == "TASK_STATUS_WAITING_WORKER":
            await cancel(conductor, task_id)


async def in_status(conductor: Running, task_id: str, name: str) -> bool:
    return task_pb2.TaskStatus.Name((await get(conductor, task_id)).status) == name


async def test_a_report_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    class Forgetful(Workers):
        async def GetReport(self, request: Any, context: Any) -> Any:
            raise Refusal(Reason.ERROR_REASON_REPORT_NOT_FOUND, "It is gone.", path=request.path)

    workers = await Forgetful().start()
    conductor = await start_conductor(tmp_path / "log.db", workers)
    answer = await conductor.execute(wait=SECONDS_10)
    with refused(grpc.StatusCode.NOT_FOUND) as errors:
        await report(conductor, answer.task_id)
    assert reason_of(errors).reason == Reason.ERROR_REASON_REPORT_NOT_FOUND
    assert reason_of(errors).metadata == {"path": answer.report_path}
    await workers.stop()
    with refused(grpc.StatusCode.UNAVAILABLE) as errors:
        await report(conductor, answer.task_id)
    assert reason_of(errors).reason == Reason.ERROR_REASON_WORKER_UNAVAILABLE
    await conductor.kill()


# ---- CancelTask ----


@pytest.mark.parametrize("status", ["QUEUED", "RUNNING", "WAITING_WORKER"])
async def test_an_unfinished_task_is_cancelled_once_and_stays_so(tmp_path: Path, workers: Workers, status: str) -> None:
    async def busy(_: Any) -> Sequence[Any]:
        raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, "Busy.")

    conductor = await start_conductor(tmp_path / "log.db", workers, max_in_flight=1)
    workers.research = busy if status == "RUNNING" else hangs
    first = (await conductor.execute(hints=task_pb2.Hints(max_attempts=5))).task_id
    task_id = (await conductor.execute()).task_id if status == "QUEUED" else first
    await until(lambda: in_status(conductor, task_id, f"TASK_STATUS_{status}"))
    task = await cancel(conductor, task_id, reason="wrong question")
    assert task.status == task_pb2.TASK_STATUS_CANCELLED and task.HasField("completed_at")
    assert task.error.reason == Reason.ERROR_REASON_TASK_CANCELLED and "wrong question" in task.error.message
    assert task == await get(conductor, task_id)
    if status == "WAITING_WORKER":
        await until(lambda: workers.cancelled)  # the work is stopped, not only forgotten
    before = await head(conductor)
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
        await cancel(conductor, task_id)
    assert reason_of(errors).reason == Reason.ERROR_REASON_ILLEGAL_TRANSITION
    assert reason_of(errors).metadata["found"] == "TASK_STATUS_CANCELLED" and await head(conductor) == before
    events = await conductor.events(task_id)
    assert events[-1].type == "conductor.task.cancelled" and events[-1].task_cancelled.reason == "wrong question"
    calls = {e.worker_call.call_id for e in events if e.HasField("worker_call")}
    assert calls == {e.worker_result.call_id for e in events if e.HasField("worker_result")}
    await conductor.kill()


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
async def test_an_ended_task_cannot_be_cancelled(conductor: Running, workers: Workers, status: str) -> None:
    async def refuses(_: Any) -> Sequence[Any]:
        raise Refusal(Reason.ERROR_REASON_NO_SOURCES, "No sources.")

    workers.research = refuses if status == "FAILED" else workers.research
    ended = await conductor.execute(wait=SECONDS_10)
    task, before = await get(conductor, ended.task_id), await head(conductor)
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
        await cancel(conductor, ended.task_id)
    assert reason_of(errors).metadata["found"] == f"TASK_STATUS_{status}" and await head(conductor) == before
    assert await get(conductor, ended.task_id) == task


async def test_many_cancels_at_once_end_a_task_once(conductor: Running, workers: Workers) -> None:
    workers.research = hangs
    task_id = (await conductor.execute()).task_id
    answers = await asyncio.gather(*(cancel(conductor, task_id) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, task_pb2.Task) for answer in answers) == 1
    assert [e.type for e in await conductor.events(task_id)].count("conductor.task.cancelled") == 1


# ---- streams, health, reflection ----


async def test_a_projects_stream_holds_the_events_of_its_tasks(conductor: Running) -> None:
    await conductor.execute("of nobody", wait=SECONDS_10)
    task_id = (await conductor.execute(project_id="p-1", wait=SECONDS_10)).task_id
    await conductor.stub.TransitionTo(conductor_pb2.TransitionToRequest(project_id="p-1", stage_id=1))
    request = conductor_pb2.SubscribeEventsRequest(project_id="p-1", after_sequence=0)
    seen: list[event_pb2.Event] = []
    async for event in conductor.stub.SubscribeEvents(request):
        seen.append(event)
        if event.type == "STAGE_STATUS":
            break
    assert seen == await conductor.events(project_id="p-1")
    assert [event.task_id for event in seen] == [task_id] * 7 + [""]
    assert [event.sequence for event in seen] == list(range(8, 16))


async def test_the_stream_for_browsers_carries_the_same_events(conductor: Running) -> None:
    task_id = (await conductor.execute(wait=SECONDS_10)).task_id
    request = conductor_pb2.StreamEventsRequest(task_id=task_id, after_sequence=0)
    text = ""
    async for body in conductor.stub.StreamEvents(request):
        assert body.content_type == "text/event-stream"
        text += body.data.decode()
        if "event: conductor.task.completed" in text:
            break
    assert [f"id: {n}" in text.splitlines() for n in range(1, 8)] == [True] * 7


async def test_health_serves_and_tells_its_watchers_when_it_stops(conductor: Running) -> None:
    health = health_pb2_grpc.HealthStub(conductor.channel)
    serving, stopping = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for service in ("", NAME):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == serving
    with refused(grpc.StatusCode.NOT_FOUND):
        await health.Check(health_pb2.HealthCheckRequest(service="conductor.v1.Nobody"))
    watch = health.Watch(health_pb2.HealthCheckRequest(service=NAME))
    assert (await watch.read()).status == serving
    await conductor.service.drain()
    assert (await watch.read()).status == stopping
    watch.cancel()


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
async def test_reflection_lists_and_describes_the_service(conductor: Running, version: str) -> None:
    call = conductor.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
    ]
    listed, described = [answer async for answer in call(iter(asked))]
    names = {service.name for service in listed.list_services_response.service}
    assert {NAME, "grpc.health.v1.Health"} <= names
    assert b"WaitForConfirmation" in b"".join(described.file_descriptor_response.file_descriptor_proto)
