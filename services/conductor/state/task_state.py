"""What the events of a task add up to. Pure and total: every event of a task has its fold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from conductor.v1 import event_pb2, project_pb2, report_writer_pb2, researcher_pb2, task_pb2

from services.common.errors import Reason, typed

Status = task_pb2.TaskStatus
StatusValue: TypeAlias = "task_pb2.TaskStatus.ValueType"
Capability = task_pb2.Capability

NONE = Status.TASK_STATUS_UNSPECIFIED  # before the task exists
QUEUED = Status.TASK_STATUS_QUEUED
RUNNING = Status.TASK_STATUS_RUNNING
WAITING = Status.TASK_STATUS_WAITING_WORKER
COMPLETED = Status.TASK_STATUS_COMPLETED
FAILED = Status.TASK_STATUS_FAILED
CANCELLED = Status.TASK_STATUS_CANCELLED
TERMINAL = frozenset({COMPLETED, FAILED, CANCELLED})

SERVICES: Mapping[int, str] = {
    Capability.CAPABILITY_RESEARCHER: "researcher",
    Capability.CAPABILITY_TERMINAL: "terminal",
    Capability.CAPABILITY_REPORT_WRITER: "report_writer",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One call to be made. `command_index` points into hints.commands, for the Terminal only; `stage`: for a stage."""

    capability: task_pb2.Capability.ValueType
    command_index: int | None = None
    stage: bool = False


def plan(route: event_pb2.Route, hints: task_pb2.Hints, stage: event_pb2.StageCall | None) -> tuple[Step, ...]:
    """Returns the steps of a route, the report last."""
    if stage is not None:
        report = (Step(Capability.CAPABILITY_REPORT_WRITER, stage=True),) if stage.program.report else ()
        return (Step(Capability.CAPABILITY_TERMINAL, stage=True), *report)
    steps: list[Step] = []
    for capability in route.capabilities:
        if capability == Capability.CAPABILITY_TERMINAL:
            steps += [Step(capability, index) for index in range(len(hints.commands))]
        else:
            steps.append(Step(capability))
    return (*steps, Step(Capability.CAPABILITY_REPORT_WRITER))


@dataclass(slots=True)
class TaskState:
    """What the events of a task add up to. `task` is what a client may see; the rest is what comes next.

    Whoever has one treats it as a value: only `apply` changes a state, and only one that was copied for it.
    """

    task: task_pb2.Task
    hints: task_pb2.Hints = field(default_factory=task_pb2.Hints)
    deadline: int = 0  # nanoseconds since the epoch
    route: event_pb2.Route = field(default_factory=event_pb2.Route)
    steps: tuple[Step, ...] = ()  # still to be done; the first is under way or next
    call: event_pb2.WorkerCall | None = None  # open: has no result yet
    called_at: int = 0
    attempts: int = 0  # calls made for the first of `steps`
    refused: int = 0  # of these, how many found the worker full
    progress: int = 0  # progress events of the open call
    results: tuple[event_pb2.WorkerResult, ...] = ()  # that did their work, in order
    runs: tuple[report_writer_pb2.WorkerRun, ...] = ()  # one for each of `results`
    gaps: tuple[researcher_pb2.Gap, ...] = ()  # what a replaced worker could not give
    stage: event_pb2.StageCall | None = None  # that it does, if it does one …
    outcome: project_pb2.StageOutcome | None = None  # … and what its program found, also when it failed

    def copy(self) -> "TaskState":
        """Returns a state that can be changed without changing this one."""
        task = task_pb2.Task()
        task.CopyFrom(self.task)
        return TaskState(
            task,
            self.hints,
            self.deadline,
            self.route,
            self.steps,
            self.call,
            self.called_at,
            self.attempts,
            self.refused,
            self.progress,
            self.results,
            self.runs,
            self.gaps,
            self.stage,
            self.outcome,
        )


def initial(task_id: str) -> TaskState:
    """Returns the state before a task exists."""
    return TaskState(task_pb2.Task(task_id=task_id))


def evolve(state: TaskState, event: event_pb2.Event) -> TaskState:
    """Returns the state after one event. Total: every event of a task has its fold."""
    after = state.copy()
    apply(after, event)
    return after


def apply(state: TaskState, event: event_pb2.Event) -> None:
    """Changes a state of one's own to what it is after one event."""
    state.task.status = Status.Value(event.status)
    state.task.phase = event.phase
    FOLDS[event.WhichOneof("payload") or ""](state, event)


def closed(task: task_pb2.Task, last: event_pb2.Event) -> task_pb2.Task:
    """Returns how a task ended, from its state as accepted and its last event. What lies between is not in it."""
    ended = evolve(TaskState(task), last).task
    ended.as_of_sequence = last.sequence
    return ended


def _on_started(state: TaskState, event: event_pb2.Event) -> None:
    started, task = event.task_started, state.task
    task.correlation_id = event.correlation_id
    task.objective = started.objective
    task.output_mode = started.output_mode
    task.project_id = event.project_id
    task.desktop_id = event.scope.desktop_id
    task.scope.CopyFrom(event.scope)
    task.created_at.CopyFrom(event.occurred_at)
    state.hints, state.deadline = started.hints, started.deadline.ToNanoseconds()
    state.stage = started.stage if started.HasField("stage") else None


def _on_progress(state: TaskState, event: event_pb2.Event) -> None:
    progress = event.task_progress
    if not progress.HasField("route"):
        state.progress += 1
        return
    if not state.task.HasField("started_at"):
        state.task.started_at.CopyFrom(event.occurred_at)
    elif progress.route.reason == event_pb2.ROUTE_REASON_RESEARCHER_UNAVAILABLE:
        detail = "The Researcher was unavailable; no documents were searched."
        gap = researcher_pb2.Gap(kind=researcher_pb2.GAP_KIND_NOT_FOUND, subject="research", detail=detail)
        state.gaps = (*state.gaps, gap)
    state.route, state.steps = progress.route, plan(progress.route, state.hints, state.stage)
    state.attempts = state.refused = 0


def _on_call(state: TaskState, event: event_pb2.Event) -> None:
    call = event.worker_call
    state.task.attempt = state.attempts = call.attempt
    state.call, state.called_at, state.progress = call, event.occurred_at.ToNanoseconds(), 0


def _on_result(state: TaskState, event: event_pb2.Event) -> None:
    result = event.worker_result
    state.call = None
    state.task.artifacts.extend(result.command.artifacts)  # also of a command that failed
    if result.report.HasField("findings"):
        state.task.artifacts.append(result.report.findings)
    if result.WhichOneof("result") == "stage":
        state.outcome = result.stage
        state.task.artifacts.extend(_as_artifact(file) for file in result.stage.artifacts)
    if result.HasField("error"):
        state.refused += result.error.reason == Reason.ERROR_REASON_OVER_CAPACITY
        return
    run = report_writer_pb2.WorkerRun(
        service=SERVICES[result.capability], call_id=result.call_id, ended_at=event.occurred_at
    )
    run.started_at.FromNanoseconds(state.called_at)
    state.steps = state.steps[1:]
    state.attempts = state.refused = 0
    state.results = (*state.results, result)
    state.runs = (*state.runs, run)


def _as_artifact(file: project_pb2.RunArtifact) -> report_writer_pb2.Artifact:
    return report_writer_pb2.Artifact(
        name=file.name, size_bytes=file.size_bytes, sha256=file.sha256, media_type=file.media_type
    )


def _on_completed(state: TaskState, event: event_pb2.Event) -> None:
    if event.task_completed.report_path:
        state.task.report_path = event.task_completed.report_path
        state.task.writer_window_props.CopyFrom(event.task_completed.writer_window_props)
    state.task.completed_at.CopyFrom(event.occurred_at)


def _on_failed(state: TaskState, event: event_pb2.Event) -> None:
    state.task.error.CopyFrom(event.task_failed.error)
    state.task.completed_at.CopyFrom(event.occurred_at)


def _on_cancelled(state: TaskState, event: event_pb2.Event) -> None:
    reason = event.task_cancelled.reason
    text = f"The task was cancelled: {reason}" if reason else "The task was cancelled."
    state.task.error.CopyFrom(typed(Reason.ERROR_REASON_TASK_CANCELLED, text, task_id=state.task.task_id))
    state.task.completed_at.CopyFrom(event.occurred_at)


FOLDS: Mapping[str, Callable[[TaskState, event_pb2.Event], None]] = {
    "task_started": _on_started,
    "task_progress": _on_progress,
    "worker_call": _on_call,
    "worker_result": _on_result,
    "task_completed": _on_completed,
    "task_failed": _on_failed,
    "task_cancelled": _on_cancelled,
}
