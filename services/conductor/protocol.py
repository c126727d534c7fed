"""What the actor is told, and what it asks for: commands, effects, and what `decide` needs to know from outside.

Pure: no grpc, asyncio, clock, random, os. Commands on projects, and Execute, are the requests of the contract
themselves; the commands here are those nobody outside can send.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from conductor.v1 import (
    conductor_pb2,
    error_pb2,
    event_pb2,
    project_pb2,
    report_writer_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)

SECOND = 1_000_000_000  # nanoseconds
MAX_PROGRESS = 50  # progress events kept of one call; a chatty worker cannot flood the log
MAX_OUTPUT_PROGRESS = 100  # of a call of the Terminal: what its command writes
MAX_ACTIVITY = 100  # of a call of the Researcher, beside the sentences it says: what it reads, keeps and rejects


@dataclass(frozen=True, slots=True)
class Given:
    """What a decision may use from outside, as values.

    Attributes:
        at: the time, nanoseconds since the epoch.
        id: a fresh unique id, for whatever the decision creates.
        correlation_id: of the request that caused the command.
    """

    at: int
    id: str
    correlation_id: str


# ---- commands on tasks ----


@dataclass(frozen=True, slots=True)
class Submit:
    """Accepts an objective as a new task.

    Attributes:
        at_once: whether a slot is free, so that its first worker is called without another decision.
        stage: what the task does, when it does a stage of a run. Such a task has its id from the run, so it may be
            there already; then nothing changes.
    """

    request: conductor_pb2.ExecuteRequest
    at_once: bool = False
    stage: event_pb2.StageCall | None = None


@dataclass(frozen=True, slots=True)
class Proceed:
    """Goes on with the next step: a slot is free, or the wait before another attempt is over."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """A worker said how far it is."""

    call_id: str
    progress: event_pb2.TaskProgress


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker's call ended, well or badly. `result` lacks the duration."""

    result: event_pb2.WorkerResult


@dataclass(frozen=True, slots=True)
class Resume:
    """Takes an unfinished task up again after a restart: whoever called its worker is gone."""


@dataclass(frozen=True, slots=True)
class Expire:
    """Ends a task whose deadline has passed."""


@dataclass(frozen=True, slots=True)
class Retell:
    """Tells the project once more how a task that did one of its stages ended."""


TaskCommand: TypeAlias = (
    Submit | Proceed | Progressed | Answered | Resume | Expire | Retell | conductor_pb2.CancelTaskRequest
)


# ---- commands on projects ----


@dataclass(frozen=True, slots=True)
class StartRun:
    """Begins a run, its stages done by these programs."""

    request: conductor_pb2.StartProjectRequest
    programs: Sequence[project_pb2.StageProgram]


@dataclass(frozen=True, slots=True)
class StageEnded:
    """The task that did a stage has ended. Without an error it did its work. `scope`: on whose behalf."""

    task_id: str
    outcome: project_pb2.StageOutcome | None
    error: error_pb2.TypedError | None
    report_path: str = ""
    scope: task_pb2.Scope = field(default_factory=task_pb2.Scope)


@dataclass(frozen=True, slots=True)
class BeginStage:
    """Has the task made that does the stage in progress, unless it is there. `scope`: on whose behalf."""

    scope: task_pb2.Scope = field(default_factory=task_pb2.Scope)


@dataclass(frozen=True, slots=True)
class RecordUpload:
    """Data was uploaded and is durable."""

    upload: project_pb2.DataUpload


ProjectCommand: TypeAlias = (
    StartRun
    | StageEnded
    | RecordUpload
    | BeginStage
    | conductor_pb2.CancelRunRequest
    | conductor_pb2.TransitionToRequest
    | conductor_pb2.WaitForConfirmationRequest
    | conductor_pb2.ProposePlanRequest
    | conductor_pb2.ConfirmRequest
)
Command: TypeAlias = TaskCommand | ProjectCommand

# ---- effects: started only after the events of the same decision are durable ----

WorkerRequest: TypeAlias = (
    researcher_pb2.ResearchRequest
    | terminal_pb2.RunRequest
    | event_pb2.StageCall
    | report_writer_pb2.WriteReportRequest
    | report_writer_pb2.WriteRunReportRequest
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the whole output of a command is kept: files of a task, `<stem>.stdout` and `<stem>.stderr`."""

    task_id: str
    stem: str


@dataclass(frozen=True, slots=True)
class CallWorker:
    """Calls a worker; the outcome comes back as Answered with this call_id.

    Attributes:
        timeout: seconds the call may take.
        place: for a command's output. None: it is not kept whole.
        again: whether the same was asked of a worker before.
    """

    call_id: str
    capability: task_pb2.Capability.ValueType
    request: WorkerRequest
    timeout: float
    place: Place | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Stops a call under way; its outcome is no longer wanted."""

    call_id: str


@dataclass(frozen=True, slots=True)
class ProceedLater:
    """Sends Proceed to the same task.

    Attributes:
        after: seconds to wait first.
        needs_slot: whether the task has to wait for a free slot as well. One that it has goes to others meanwhile.
    """

    after: float
    needs_slot: bool = False


@dataclass(frozen=True, slots=True)
class ExpireLater:
    """Sends Expire to the same task, unless it has ended by then.

    Attributes:
        after: seconds to wait first.
    """

    after: float


@dataclass(frozen=True, slots=True)
class SubmitStage:
    """Makes the task that does a stage, unless it is there. Any replica may."""

    task_id: str
    request: conductor_pb2.ExecuteRequest
    stage: event_pb2.StageCall


@dataclass(frozen=True, slots=True)
class CancelStage:
    """Cancels the task that does a stage, if it goes on. Any replica may."""

    task_id: str


@dataclass(frozen=True, slots=True)
class TellProject:
    """Tells a project how the task of one of its stages ended. Any replica may."""

    task: task_pb2.Task
    ended: StageEnded


# Between a project and the tasks of its stages. Each may be done twice; none is missed, see `driving`.
Errand: TypeAlias = SubmitStage | CancelStage | TellProject
Effect: TypeAlias = CallWorker | CancelCall | ProceedLater | ExpireLater | Errand


@dataclass(frozen=True, slots=True)
class Decision:
    """What a command leads to. No events: nothing changes.

    Attributes:
        after: the state the events lead to.
        accepted: the state after the first event, when the caller is told of that one only.
    """

    events: Sequence[event_pb2.Event] = ()
    effects: Sequence[Effect] = ()
    after: Any = None
    accepted: Any = None


NOTHING = Decision()
