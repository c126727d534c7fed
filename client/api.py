"""The Python client of `conductor.v1.Conductor`: typed, repeats what is safe to repeat, resumes streams.

    with ConductorClient("127.0.0.1:8080") as client:
        answer = client.execute("What does durable mean?", wait=30)
        print(client.report(answer.task_id).data.decode())

Every method raises ConductorError. One client may be used by many threads.
"""

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from conductor.v1 import conductor_pb2, conductor_pb2_grpc, error_pb2, event_pb2, project_pb2, task_pb2
from google.api import httpbody_pb2
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from client.calls import Connection

DEFAULT_TARGET = "127.0.0.1:8080"
CHECKPOINT = "conductor.checkpoint"
UPLOAD_S = 3600.0
PIECE_BYTES = 256 * 1024
WAIT_MARGIN_S = 10.0  # for an answer to come back after the wait it asked for


class ConductorClient:
    """A connection to Conductor, directly or through the edge.

    Calls that read, and calls that carry a request_id, are repeated while nothing can be reached. Where the caller
    gives no request_id, one is made for each call, so that a repeat never does the work twice.

    Args:
        target: host:port of the edge or of a Conductor.
        timeout: seconds one try of a call may take.
        retry_for: seconds to go on repeating a call while Conductor is unavailable.
        resume_for: seconds to go on resuming a stream from which nothing comes.
    """

    def __init__(
        self, target: str = DEFAULT_TARGET, timeout: float = 30.0, retry_for: float = 3.0, resume_for: float = 30.0
    ) -> None:
        self._timeout = timeout
        self._connection = Connection(target, timeout, retry_for, resume_for)
        self._stub = conductor_pb2_grpc.ConductorStub(self._connection.channel)

    def __enter__(self) -> "ConductorClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and every stream on it."""
        self._connection.channel.close()

    # Tasks

    def execute(
        self,
        objective: str,
        *,
        hints: task_pb2.Hints | None = None,
        desktop_id: str | None = None,
        project_id: str | None = None,
        correlation_id: str | None = None,
        request_id: str | None = None,
        wait: float = 0.0,
        scope: task_pb2.Scope | None = None,
    ) -> conductor_pb2.ExecuteResponse:
        """Submits an objective; answers at once, or after at most `wait` seconds (up to 60) with the newest state."""
        duration = Duration()
        duration.FromNanoseconds(round(wait * 1e9))
        request = conductor_pb2.ExecuteRequest(
            objective=objective,
            output_mode=task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER,
            hints=hints,
            desktop_id=desktop_id,
            project_id=project_id,
            correlation_id=correlation_id,
            request_id=request_id or new_request_id(),
            wait=duration,
            scope=scope,
        )
        return self._connection.repeated(self._stub.Execute, request, max(self._timeout, wait + WAIT_MARGIN_S))

    def get_task(self, task_id: str) -> task_pb2.Task:
        """Returns a task."""
        return self._connection.repeated(self._stub.GetTask, conductor_pb2.GetTaskRequest(task_id=task_id))

    def list_tasks(
        self,
        *,
        status: task_pb2.TaskStatus.ValueType = task_pb2.TASK_STATUS_UNSPECIFIED,
        project_id: str | None = None,
        desktop_id: str | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> conductor_pb2.ListTasksResponse:
        """Returns one page of tasks, newest first."""
        request = conductor_pb2.ListTasksRequest(
            status=status, project_id=project_id, desktop_id=desktop_id, page_size=page_size, page_token=page_token
        )
        return self._connection.repeated(self._stub.ListTasks, request)

    def cancel(self, task_id: str, reason: str = "") -> task_pb2.Task:
        """Cancels a task. Tried once: a repeat could not tell its own success from a task that had ended before."""
        request = conductor_pb2.CancelTaskRequest(task_id=task_id, reason=reason)
        return self._connection.once(self._stub.CancelTask, request)

    def report(self, task_id: str = "", *, project_id: str = "") -> httpbody_pb2.HttpBody:
        """Returns the report of a completed task, or the newest of a project's run: `data` is markdown in UTF-8."""
        request = conductor_pb2.GetTaskReportRequest(task_id=task_id, project_id=project_id)
        return self._connection.repeated(self._stub.GetReport, request)

    def artifact(self, task_id: str, name: str, project_id: str = "") -> Iterator[bytes]:
        """Yields a file of a task as it comes, such as all that a command wrote; `get_task` lists the names.

        Args:
            project_id: the project whose run lists the file; it is there also when the task is kept no more.
        """
        request = conductor_pb2.GetTaskArtifactRequest(task_id=task_id, name=name, project_id=project_id)
        return (body.data for body in self._connection.streamed(self._stub.GetArtifact, request))

    # Projects

    def state(self, project_id: str) -> project_pb2.ProjectState:
        """Returns a project. An id nobody wrote to gives the default state."""
        return self._connection.repeated(self._stub.GetState, conductor_pb2.GetStateRequest(project_id=project_id))

    def list_projects(self, *, page_size: int = 0, page_token: str = "") -> conductor_pb2.ListProjectsResponse:
        """Returns one page of projects, newest first."""
        request = conductor_pb2.ListProjectsRequest(page_size=page_size, page_token=page_token)
        return self._connection.repeated(self._stub.ListProjects, request)

    def transition(
        self,
        project_id: str,
        stage: project_pb2.Stage.ValueType,
        *,
        status: project_pb2.StageStatus.ValueType = project_pb2.STAGE_STATUS_UNSPECIFIED,
        message: str = "",
        error: error_pb2.TypedError | None = None,
        edits: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        correlation_id: str | None = None,
        scope: task_pb2.Scope | None = None,
    ) -> project_pb2.ProjectState:
        """Moves a project to a stage, or reports on the current one. In a run it begins the stage again, with edits."""
        request = conductor_pb2.TransitionToRequest(
            project_id=project_id,
            stage_id=stage,
            status=status,
            message=message,
            error=error,
            edits=_struct(edits),
            request_id=request_id or new_request_id(),
            correlation_id=correlation_id,
            scope=scope,
        )
        return self._connection.repeated(self._stub.TransitionTo, request)

    def wait_for_confirmation(
        self,
        project_id: str,
        stage: project_pb2.Stage.ValueType,
        *,
        summary: str = "",
        next_actions: Iterable[str] = (),
        request_id: str | None = None,
        correlation_id: str | None = None,
        scope: task_pb2.Scope | None = None,
    ) -> project_pb2.ProjectState:
        """Asks a person to confirm the current stage. Does not wait for the answer."""
        request = conductor_pb2.WaitForConfirmationRequest(
            project_id=project_id,
            stage_id=stage,
            summary=summary,
            next_actions=next_actions,
            request_id=request_id or new_request_id(),
            correlation_id=correlation_id,
            scope=scope,
        )
        return self._connection.repeated(self._stub.WaitForConfirmation, request)

    def propose_plan(
        self,
        project_id: str,
        stage: project_pb2.Stage.ValueType,
        summary: str,
        *,
        steps: Iterable[str] = (),
        request_id: str | None = None,
        correlation_id: str | None = None,
        scope: task_pb2.Scope | None = None,
    ) -> project_pb2.ProjectState:
        """Proposes a plan for the current stage."""
        request = conductor_pb2.ProposePlanRequest(
            project_id=project_id,
            stage_id=stage,
            summary=summary,
            steps=steps,
            request_id=request_id or new_request_id(),
            correlation_id=correlation_id,
            scope=scope,
        )
        return self._connection.repeated(self._stub.ProposePlan, request)

    def confirm(
        self,
        project_id: str,
        *,
        stage: project_pb2.Stage.ValueType = project_pb2.STAGE_UNSPECIFIED,
        confirmation_id: str = "",
        plan_id: str = "",
        approved: bool = True,
        reason: str = "",
        edits: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        correlation_id: str | None = None,
        scope: task_pb2.Scope | None = None,
    ) -> project_pb2.ProjectState:
        """Answers the gate of the current stage. What is named must be what waits; a rejection needs a reason.

        Args:
            edits: what to choose, by field, among what the gate of a run offers.
        """
        request = conductor_pb2.ConfirmRequest(
            project_id=project_id,
            stage_id=stage,
            confirmation_id=confirmation_id,
            plan_id=plan_id,
            approved=approved,
            reason=reason,
            edits=_struct(edits),
            request_id=request_id or new_request_id(),
            correlation_id=correlation_id,
            scope=scope,
        )
        return self._connection.repeated(self._stub.Confirm, request)

    # Runs

    def start(
        self,
        project_id: str,
        objective: str,
        *,
        data: str = "",
        options: project_pb2.RunOptions | None = None,
        request_id: str | None = None,
        correlation_id: str | None = None,
        scope: task_pb2.Scope | None = None,
    ) -> project_pb2.ProjectState:
        """Begins a run: the stages of a project are done by programs, and stop at their gates. Answers at once."""
        request = conductor_pb2.StartProjectRequest(
            project_id=project_id,
            objective=objective,
            data=data,
            options=options,
            request_id=request_id or new_request_id(),
            correlation_id=correlation_id,
            scope=scope,
        )
        return self._connection.repeated(self._stub.StartProject, request)

    def cancel_run(
        self, project_id: str, reason: str = "", *, request_id: str | None = None
    ) -> project_pb2.ProjectState:
        """Cancels the run of a project."""
        request = conductor_pb2.CancelRunRequest(
            project_id=project_id, reason=reason, request_id=request_id or new_request_id()
        )
        return self._connection.repeated(self._stub.CancelRun, request)

    def upload(
        self,
        project_id: str,
        path: Path,
        *,
        name: str = "",
        timeout: float = UPLOAD_S,
        correlation_id: str | None = None,
        scope: task_pb2.Scope | None = None,
    ) -> project_pb2.DataUpload:
        """Uploads a file of data to a project. A run calls it `uploads/<name>` then.

        Args:
            name: letters, digits, dots, dashes and underscores; the file's own when left out.
            timeout: seconds it may take.

        Raises OSError when the file cannot be read.
        """
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            first = conductor_pb2.UploadDataRequest(
                project_id=project_id, name=name or path.name, sha256=sha256, correlation_id=correlation_id, scope=scope
            )
            return self._connection.once(self._stub.UploadData, _pieces(first, file), timeout)

    # Events

    def events(
        self,
        *,
        after_sequence: int | None = None,
        task_id: str | None = None,
        project_id: str | None = None,
        types: Iterable[str] = (),
        correlation_id: str | None = None,
        scope: task_pb2.Scope | None = None,
        follow: bool = True,
    ) -> Iterator[event_pb2.Event]:
        """Yields events in order, each once, over as many broken connections as it takes.

        Without `after_sequence` it begins now; for a task or a project the first one is then its snapshot. Checkpoints
        move the cursor and are not yielded. With `follow=False` it ends at what was the log's end when it began; with
        a filter it takes up to a heartbeat of the service to know that nothing more comes.
        """
        request = conductor_pb2.SubscribeEventsRequest(
            after_sequence=after_sequence,
            task_id=task_id,
            project_id=project_id,
            types=types,
            correlation_id=correlation_id,
            scope=scope,
        )
        end = None if follow else self.head()
        if after_sequence is not None and after_sequence == end:
            return
        cursor = after_sequence
        for event in self._connection.resumed(self._stub.SubscribeEvents, request):
            fresh = cursor is None or event.sequence > cursor
            cursor = event.sequence if fresh else cursor
            if fresh and event.type != CHECKPOINT:
                yield event
            if end is not None and event.sequence >= end:
                return

    def head(self) -> int:
        """Returns the sequence of the log's last event; what happens later has a higher one."""
        for message in self._connection.resumed(self._stub.SubscribeEvents, conductor_pb2.SubscribeEventsRequest()):
            return message.sequence
        raise AssertionError("a resumed stream ends with an error only")


def _struct(edits: Mapping[str, Any] | None) -> Struct | None:
    return json_format.ParseDict(dict(edits), Struct()) if edits else None


def _pieces(first: conductor_pb2.UploadDataRequest, file: BinaryIO) -> Iterator[conductor_pb2.UploadDataRequest]:
    yield first
    while data := file.read(PIECE_BYTES):
        yield conductor_pb2.UploadDataRequest(content=httpbody_pb2.HttpBody(data=data))


def new_request_id() -> str:
    """Returns a new id that makes repeats of one request harmless."""
    return str(uuid.uuid4())
