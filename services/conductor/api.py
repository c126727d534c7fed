"""The Conductor servicer: submits to the actor, reads views, maps the answer. No workflow here.

Requests arrive validated; refusals leave as status. Both happen in services.common.server.
"""

import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from conductor.v1 import conductor_pb2, conductor_pb2_grpc, event_pb2, project_pb2, report_writer_pb2, task_pb2
from google.api import httpbody_pb2

from services.common.boundary import Context, correlation_id, new_id
from services.common.errors import Reason, Refusal
from services.conductor.actor import Actor
from services.conductor.events import SNAPSHOT
from services.conductor.intake import Intake
from services.conductor.mailbox import Caller
from services.conductor.protocol import ProjectCommand, RecordUpload, StartRun, Submit
from services.conductor.state import edits, task_state
from services.conductor.state.task import DEFAULT_DESKTOP
from services.conductor.subscribe import SSE_CLOSING, SSE_OPEN, Filter, Subscriptions, sse
from services.conductor.views import Views

LAST_EVENT_ID = "last-event-id"
MARKDOWN = "text/markdown; charset=utf-8"
EVENT_STREAM = "text/event-stream"
MAX_SEQUENCE = 2**63 - 1

SubscribeRequest = conductor_pb2.SubscribeEventsRequest | conductor_pb2.StreamEventsRequest


class Reports(Protocol):
    """Reads reports from where they are kept."""

    async def read_report(self, path: str, correlation_id: str) -> bytes:
        """Returns a report's text. Raises Refusal."""

    def read_artifact(
        self, task_id: str, file: report_writer_pb2.Artifact, correlation_id: str
    ) -> AsyncIterator[bytes]:
        """Yields a task's file. Raises Refusal."""


class ConductorApi(conductor_pb2_grpc.ConductorServicer):
    """Implements conductor.v1.Conductor."""

    def __init__(
        self,
        actor: Actor,
        views: Views,
        subscriptions: Subscriptions,
        reports: Reports,
        programs: Sequence[project_pb2.StageProgram],
        intake: Intake,
    ) -> None:
        self._actor = actor
        self._views = views
        self._subscriptions = subscriptions
        self._reports = reports
        self._programs = programs
        self._intake = intake

    # ---- tasks ----

    async def Execute(self, request: conductor_pb2.ExecuteRequest, context: Context) -> conductor_pb2.ExecuteResponse:
        task = await self._actor.ask(("task", new_id()), Submit(request), _caller(request))
        assert isinstance(task, task_pb2.Task)  # noqa: S101  what ask returns for a task
        if request.wait.ToNanoseconds():
            task = await self._ended(task, request.wait.ToNanoseconds() / 1e9)
        return _execute_response(task)

    async def GetTask(self, request: conductor_pb2.GetTaskRequest, context: Context) -> task_pb2.Task:
        return await self._views.task(request.task_id)

    async def ListTasks(
        self, request: conductor_pb2.ListTasksRequest, context: Context
    ) -> conductor_pb2.ListTasksResponse:
        return await self._views.tasks(request)

    async def CancelTask(self, request: conductor_pb2.CancelTaskRequest, context: Context) -> task_pb2.Task:
        await self._views.task(request.task_id)
        task = await self._actor.ask(("task", request.task_id), request, Caller(correlation_id.get()))
        assert isinstance(task, task_pb2.Task)  # noqa: S101  what ask returns for a task
        return task

    async def GetReport(self, request: conductor_pb2.GetTaskReportRequest, context: Context) -> httpbody_pb2.HttpBody:
        if request.project_id:
            path = _report_of_run(await self._views.project(request.project_id))
        else:
            path = _report_of_task(await self._views.task(request.task_id))
        content = await self._reports.read_report(path, correlation_id.get())
        return httpbody_pb2.HttpBody(content_type=MARKDOWN, data=content)

    async def GetArtifact(
        self, request: conductor_pb2.GetTaskArtifactRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        if request.project_id:
            file = _of_run(await self._views.project(request.project_id), request.task_id, request.name)
        else:
            file = _artifact(await self._views.task(request.task_id), request.name)
        async for data in self._reports.read_artifact(request.task_id, file, correlation_id.get()):
            yield httpbody_pb2.HttpBody(content_type=file.media_type, data=data)

    # ---- projects ----

    async def GetState(self, request: conductor_pb2.GetStateRequest, context: Context) -> project_pb2.ProjectState:
        return await self._views.project(request.project_id)

    async def ListProjects(
        self, request: conductor_pb2.ListProjectsRequest, context: Context
    ) -> conductor_pb2.ListProjectsResponse:
        return await self._views.projects(request)

    async def TransitionTo(
        self, request: conductor_pb2.TransitionToRequest, context: Context
    ) -> project_pb2.ProjectState:
        return await self._move(request)

    async def WaitForConfirmation(
        self, request: conductor_pb2.WaitForConfirmationRequest, context: Context
    ) -> project_pb2.ProjectState:
        return await self._move(request)

    async def ProposePlan(
        self, request: conductor_pb2.ProposePlanRequest, context: Context
    ) -> project_pb2.ProjectState:
        return await self._move(request)

    async def Confirm(self, request: conductor_pb2.ConfirmRequest, context: Context) -> project_pb2.ProjectState:
        return await self._move(request)

    async def StartProject(
        self, request: conductor_pb2.StartProjectRequest, context: Context
    ) -> project_pb2.ProjectState:
        try:
            edits.check_json(request.options.hints)
        except ValueError as error:
            raise _invalid("options.hints", str(error)) from None
        return await self._ask(request.project_id, StartRun(request, self._programs), _caller(request))

    async def CancelRun(self, request: conductor_pb2.CancelRunRequest, context: Context) -> project_pb2.ProjectState:
        return await self._move(request)

    async def UploadData(
        self, requests: AsyncIterator[conductor_pb2.UploadDataRequest], context: Context
    ) -> project_pb2.DataUpload:
        first = await anext(requests, conductor_pb2.UploadDataRequest())
        for field in ("project_id", "name"):
            if not getattr(first, field):
                raise _invalid(field, "must be given on the first message")
        upload = await self._intake.take(first, requests, correlation_id.get())
        caller = Caller(correlation_id.get(), _scope(first))
        try:
            await self._ask(first.project_id, RecordUpload(upload), caller)
        except Refusal as refusal:
            if refusal.error.reason != Reason.ERROR_REASON_STORE_UNAVAILABLE:  # then it may be listed after all
                await self._intake.forget(upload, correlation_id.get())
            raise
        return upload

    # ---- events ----

    async def SubscribeEvents(
        self, request: conductor_pb2.SubscribeEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.Event]:
        after = request.after_sequence if request.HasField("after_sequence") else None
        async for event in await self._open(request, after):
            yield event

    async def StreamEvents(
        self, request: conductor_pb2.StreamEventsRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        after = _last_event_id(context)
        if after is None and request.HasField("after_sequence"):
            after = request.after_sequence
        events = await self._open(request, after)  # what is refused here still chooses the HTTP status
        yield _body(SSE_OPEN)
        try:
            async for event in events:
                yield _body(sse(event))
        except Refusal:
            yield _body(SSE_CLOSING)  # over HTTP/1.1 a status after the first byte would not be seen

    # ---- parts ----

    async def _move(self, request: Any) -> project_pb2.ProjectState:
        return await self._ask(request.project_id, request, _caller(request))

    async def _ask(self, project_id: str, command: ProjectCommand, caller: Caller) -> project_pb2.ProjectState:
        state = await self._actor.ask(("project", project_id), command, caller)
        assert isinstance(state, project_pb2.ProjectState)  # noqa: S101  what ask returns for a project
        return state

    async def _ended(self, task: task_pb2.Task, seconds: float) -> task_pb2.Task:
        """Waits for the task's last event, at most `seconds`; returns its newest state."""
        deadline = time.monotonic() + seconds
        last = await self._subscriptions.end_of(task, seconds)
        if last is None:  # the time is over, or a repeat shows the task as it was long ago
            try:
                task = await self._views.task(task.task_id)
            except Refusal as refusal:
                if refusal.error.reason != Reason.ERROR_REASON_TASK_NOT_FOUND:
                    raise
                return task  # ended so long ago that it is kept no more: the repeat gets its first answer
            rest = deadline - time.monotonic()
            if task.status not in task_state.TERMINAL and rest > 0:
                last = await self._subscriptions.end_of(task, rest)
        return task if last is None else task_state.closed(task, last)

    async def _open(self, request: SubscribeRequest, after: int | None) -> AsyncIterator[event_pb2.Event]:
        """Opens a subscription; without a cursor it begins with the present state. Raises Refusal."""
        wanted = Filter(
            request.task_id, request.project_id, frozenset(request.types), request.correlation_id, request.scope
        )
        if after is None:
            snapshot = await self._snapshot(wanted)
            return await self._subscriptions.open(wanted, snapshot.sequence, first=snapshot)
        if wanted.task_id:
            await self._views.task(wanted.task_id)  # an unknown id is told before the stream begins
        return await self._subscriptions.open(wanted, after, log_id=request.log_id)

    async def _snapshot(self, wanted: Filter) -> event_pb2.Event:
        """Returns the present state of what is subscribed to, or a checkpoint when that is everything."""
        if wanted.task_id:
            return _task_snapshot(await self._views.task(wanted.task_id))
        if wanted.project_id:
            return _project_snapshot(await self._views.project(wanted.project_id))
        return await self._subscriptions.checkpoint()


def _invalid(field: str, what: str) -> Refusal:
    return Refusal(Reason.ERROR_REASON_INVALID_REQUEST, f"{field}: {what}.", [(field, what)], field=field)


def _caller(request: Any) -> Caller:
    return Caller(correlation_id.get(), _scope(request), request.request_id)


def _scope(request: Any) -> task_pb2.Scope:
    scope = task_pb2.Scope()
    scope.CopyFrom(request.scope)
    scope.desktop_id = scope.desktop_id or DEFAULT_DESKTOP
    return scope


def _report_of_task(task: task_pb2.Task) -> str:
    """Returns the path of a task's report. Raises REPORT_NOT_READY."""
    if not task.HasField("report_path"):
        found = task_pb2.TaskStatus.Name(task.status)
        text = f"The task is {found} and has no report. Only completed tasks have one."
        raise Refusal(Reason.ERROR_REASON_REPORT_NOT_READY, text, task_id=task.task_id, found=found)
    return task.report_path


def _report_of_run(state: project_pb2.ProjectState) -> str:
    """Returns the path of the newest report of a project's run. Raises REPORT_NOT_READY."""
    if not state.run.report_path:
        found = project_pb2.RunStatus.Name(state.run.status)
        text = f"The run of {state.project_id} is {found} and has no report yet. REVIEW_EDIT writes the first."
        raise Refusal(Reason.ERROR_REASON_REPORT_NOT_READY, text, project_id=state.project_id, found=found)
    return state.run.report_path


def _artifact(task: task_pb2.Task, name: str) -> report_writer_pb2.Artifact:
    """Returns a task's file by its name. Raises REPORT_NOT_FOUND, with the reason when it could not be stored."""
    found = next((file for file in task.artifacts if file.name == name), None)
    if found is not None and not found.HasField("error"):
        return found
    why = "It has none of this name; Task.artifacts lists them." if found is None else found.error.message
    text = f"Task {task.task_id} has no artefact {name}. {why}"
    raise Refusal(Reason.ERROR_REASON_REPORT_NOT_FOUND, text, path=name)


def _of_run(state: project_pb2.ProjectState, task_id: str, name: str) -> report_writer_pb2.Artifact:
    """Returns a file that a project's run lists. Raises REPORT_NOT_FOUND."""
    for file in state.run.artifacts:
        if (file.task_id, file.name) == (task_id, name):
            return report_writer_pb2.Artifact(name=name, sha256=file.sha256, media_type=file.media_type)
    text = f"The run of {state.project_id} lists no file {name} of task {task_id}; run.artifacts of the state has all."
    raise Refusal(Reason.ERROR_REASON_REPORT_NOT_FOUND, text, path=name)


def _execute_response(task: task_pb2.Task) -> conductor_pb2.ExecuteResponse:
    response = conductor_pb2.ExecuteResponse(
        task_id=task.task_id,
        status=task.status,
        correlation_id=task.correlation_id,
        as_of_sequence=task.as_of_sequence,
    )
    if task.HasField("report_path"):
        response.report_path = task.report_path
        response.writer_window_props.CopyFrom(task.writer_window_props)
    if task.HasField("error"):
        response.error.CopyFrom(task.error)
    return response


def _task_snapshot(task: task_pb2.Task) -> event_pb2.Event:
    return event_pb2.Event(
        sequence=task.as_of_sequence,
        type=SNAPSHOT,
        task_id=task.task_id,
        project_id=task.project_id,
        correlation_id=task.correlation_id,
        status=task_pb2.TaskStatus.Name(task.status),
        phase=task.phase,
        scope=task.scope,
        snapshot=event_pb2.Snapshot(task=task),
    )


def _project_snapshot(state: project_pb2.ProjectState) -> event_pb2.Event:
    current = state.stages[state.current_stage - 1]
    return event_pb2.Event(
        sequence=state.as_of_sequence,
        type=SNAPSHOT,
        project_id=state.project_id,
        correlation_id=correlation_id.get(),
        status=project_pb2.StageStatus.Name(current.status),
        phase=project_pb2.Stage.Name(current.stage_id),
        snapshot=event_pb2.Snapshot(project=state),
    )


def _last_event_id(context: Context) -> int | None:
    """Returns the cursor a browser sends when it reconnects (WHATWG HTML, 9.2). Raises INVALID_REQUEST."""
    text = str(dict(context.invocation_metadata() or ()).get(LAST_EVENT_ID, ""))
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) > MAX_SEQUENCE:
        raise _invalid(LAST_EVENT_ID, "must be a sequence, a whole number from 0")
    return int(text)


def _body(data: bytes) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=EVENT_STREAM, data=data)
