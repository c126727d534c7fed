"""The decisions of a task's state machine: which worker comes next, and how it ends. Pure and total.

    TABLE  (status, command) → what happens. A pair that is missing changes nothing when it comes from inside (a late,
           repeated or unknown answer) and is refused when a caller asked for it.

A task is a list of steps: research, one step for each command, and the report. One step is under way at a time.
"""

from collections.abc import Callable, Mapping
from typing import Any

from conductor.v1 import conductor_pb2, error_pb2, event_pb2, report_writer_pb2, task_pb2, terminal_pb2

from services.common.errors import Reason, Refusal, typed
from services.conductor.events import Payload, task_event
from services.conductor.protocol import (
    MAX_ACTIVITY,
    MAX_OUTPUT_PROGRESS,
    MAX_PROGRESS,
    NOTHING,
    SECOND,
    Answered,
    CallWorker,
    CancelCall,
    Decision,
    Effect,
    Expire,
    ExpireLater,
    Given,
    Proceed,
    ProceedLater,
    Progressed,
    Resume,
    Retell,
    StageEnded,
    Submit,
    TaskCommand,
    TellProject,
)
from services.conductor.state.requests import place_for, request_for, summary_of, timeout_for
from services.conductor.state.task_state import (
    CANCELLED,
    COMPLETED,
    FAILED,
    NONE,
    QUEUED,
    RUNNING,
    WAITING,
    Capability,
    Status,
    StatusValue,
    TaskState,
    apply,
)

DEFAULT_DESKTOP = "default"
DEFAULT_DEADLINE_S = 600
DEFAULT_ATTEMPTS = 2
BACKOFF_S = 0.2  # before the second attempt; doubles with each further one
MAX_BACKOFF_S = 5.0
MAX_DOUBLINGS = 10  # beyond, the pause is the longest one anyway

PHASES: Mapping[int, str] = {
    Capability.CAPABILITY_RESEARCHER: "research",
    Capability.CAPABILITY_TERMINAL: "terminal",
    Capability.CAPABILITY_REPORT_WRITER: "report",
}
INTAKE, ROUTING, DONE = "intake", "routing", "done"

# After these answers of the Terminal nothing has run, so asking again cannot run a command twice.
NEVER_RAN = frozenset(
    {
        Reason.ERROR_REASON_WORKER_UNAVAILABLE,
        Reason.ERROR_REASON_OVER_CAPACITY,
        Reason.ERROR_REASON_SHUTTING_DOWN,
    }
)
# After these answers the Terminal may take the Researcher's place.
FALLBACK = frozenset({Reason.ERROR_REASON_WORKER_UNAVAILABLE, Reason.ERROR_REASON_WORKER_TIMEOUT})


def decide(state: TaskState, command: TaskCommand, given: Given) -> Decision:
    """Returns what a command leads to. Raises Refusal for a caller's illegal move; the state is never changed."""
    handler = TABLE.get((state.task.status, type(command)))
    if handler is not None:
        draft = _Draft(state.copy(), given)
        handler(draft, command)
        return Decision(tuple(draft.events), tuple(draft.effects), draft.state, draft.accepted)
    if isinstance(command, conductor_pb2.CancelTaskRequest):
        found = Status.Name(state.task.status)
        raise Refusal(
            Reason.ERROR_REASON_ILLEGAL_TRANSITION,
            f"The task has ended: it is {found}, and ended tasks stay as they are.",
            found=found,
            allowed="",
        )
    return NOTHING


class _Draft:
    """A decision in the making: its events and effects so far, and the state they lead to."""

    __slots__ = ("accepted", "effects", "events", "given", "state")

    def __init__(self, state: TaskState, given: Given) -> None:
        self.state = state
        self.given = given
        self.events: list[event_pb2.Event] = []
        self.effects: list[Effect] = []
        self.accepted: TaskState | None = None

    def tell(self, payload: Payload, status: StatusValue, phase: str) -> None:
        """Adds an event."""
        event = task_event(self.state.task, payload, status, phase)
        event.occurred_at.FromNanoseconds(self.given.at)
        apply(self.state, event)
        self.events.append(event)


# ---- handlers ----


def _submit(draft: _Draft, command: Submit) -> None:
    request, given = command.request, draft.given
    seconds = request.hints.deadline.ToNanoseconds() or DEFAULT_DEADLINE_S * SECOND
    started = event_pb2.TaskStarted(objective=request.objective, output_mode=request.output_mode, hints=request.hints)
    started.deadline.FromNanoseconds(given.at + seconds)
    if command.stage is not None:
        started.stage.CopyFrom(command.stage)
    task = draft.state.task
    task.project_id, task.correlation_id = request.project_id, given.correlation_id
    task.scope.CopyFrom(request.scope)
    task.scope.desktop_id = request.desktop_id or DEFAULT_DESKTOP
    draft.tell(started, QUEUED, INTAKE)
    draft.accepted = draft.state.copy()
    draft.effects.append(ExpireLater(seconds / SECOND))
    if command.at_once:
        _begin(draft, Proceed())
    else:
        draft.effects.append(ProceedLater(0, needs_slot=True))


def _begin(draft: _Draft, _: Proceed) -> None:
    """Chooses the route of a queued task and calls the first worker."""
    if draft.state.stage is not None:
        capabilities = [Capability.CAPABILITY_TERMINAL]
        route = event_pb2.Route(capabilities=capabilities, reason=event_pb2.ROUTE_REASON_STAGE)
        return _route(draft, route, "a stage's program runs there")
    asked = list(draft.state.hints.capabilities)
    route = event_pb2.Route(
        capabilities=asked or [Capability.CAPABILITY_RESEARCHER],
        reason=event_pb2.ROUTE_REASON_HINTS if asked else event_pb2.ROUTE_REASON_DEFAULT,
    )
    return _route(draft, route, "as the hints ask" if asked else "the Researcher is the default")


def _route(draft: _Draft, route: event_pb2.Route, why: str) -> None:
    names = ", then ".join(PHASES[capability] for capability in route.capabilities)
    draft.tell(event_pb2.TaskProgress(message=f"Route: {names} ({why}).", route=route), RUNNING, ROUTING)
    _next_step(draft)


def _proceed(draft: _Draft, _: Proceed) -> None:
    _next_step(draft)


def _next_step(draft: _Draft) -> None:
    """Calls the worker of the first step, unless the deadline has passed."""
    state, given = draft.state, draft.given
    if not state.steps:
        return _complete(draft, "")  # a stage without a report
    if given.at >= state.deadline:
        return _fail(draft, _deadline_passed(state))
    step = state.steps[0]
    timeout = timeout_for(step, state, (state.deadline - given.at) / SECOND)
    call = event_pb2.WorkerCall(
        call_id=given.id,
        capability=step.capability,
        summary=summary_of(step, state.task.objective, state.hints),
        attempt=state.attempts + 1,
        command_index=step.command_index,
    )
    call.deadline.FromNanoseconds(given.at + int(timeout * SECOND))
    request = request_for(step, given.id, state, timeout)
    place = place_for(step, call.attempt, state)
    draft.tell(call, WAITING, PHASES[step.capability])
    draft.effects.append(CallWorker(given.id, step.capability, request, timeout, place, call.attempt > 1))
    return None


def _progressed(draft: _Draft, command: Progressed) -> None:
    state = draft.state
    if not _is_open(state, command.call_id):
        return
    capability = state.steps[0].capability
    most = MAX_OUTPUT_PROGRESS if capability == Capability.CAPABILITY_TERMINAL else MAX_PROGRESS + MAX_ACTIVITY
    if state.progress < most:
        draft.tell(command.progress, WAITING, PHASES[capability])


def _answered(draft: _Draft, command: Answered) -> None:
    if not _is_open(draft.state, command.result.call_id):
        return
    result = _settled(draft.state, command.result, draft.given)
    draft.tell(result, RUNNING, PHASES[result.capability])
    _after_result(draft, result)


def _settled(state: TaskState, result: event_pb2.WorkerResult, given: Given) -> event_pb2.WorkerResult:
    """Completes a worker's answer: its duration, and what a command's end means for the task."""
    settled = event_pb2.WorkerResult()
    settled.CopyFrom(result)
    settled.duration.FromNanoseconds(max(0, given.at - state.called_at))
    if settled.WhichOneof("result") == "command" and not settled.HasField("error"):
        error = _command_error(settled.command, state.steps[0].command_index)
        if error is not None:
            settled.error.CopyFrom(error)
    return settled


def _command_error(record: report_writer_pb2.CommandRecord, index: int | None) -> error_pb2.TypedError | None:
    result = record.result
    number = (index or 0) + 1
    exited = result.end == terminal_pb2.COMMAND_END_EXITED
    if result.end not in terminal_pb2.CommandEnd.values()[1:] or (exited and not result.HasField("exit_code")):
        text = f"The Terminal does not say how command {number} ended. Look at its log."
        return typed(Reason.ERROR_REASON_WORKER_PROTOCOL, text, command=number)
    if result.end == terminal_pb2.COMMAND_END_CANCELLED:
        text = f"Command {number} was killed because the Terminal stopped, so its outcome is not known."
        return typed(Reason.ERROR_REASON_OUTCOME_UNKNOWN, f"{text} Submit the task again.", command=number)
    if exited:
        if result.exit_code == 0 or record.command.allow_failure:
            return None
        text = f"Command {number} exited with {result.exit_code}. Mark it allow_failure if that is an answer."
        return typed(Reason.ERROR_REASON_COMMAND_FAILED, text, exit_code=result.exit_code, command=number)
    end = terminal_pb2.CommandEnd.Name(result.end)
    if result.end == terminal_pb2.COMMAND_END_SIGNALED:
        text = f"Command {number} was ended by signal {result.signal}."
        return typed(Reason.ERROR_REASON_COMMAND_FAILED, text, signal=result.signal, command=number)
    text = f"Command {number} was killed: {end}. Raise that limit in hints.commands if it is too low."
    return typed(Reason.ERROR_REASON_COMMAND_LIMIT_EXCEEDED, text, limit=end, command=number)


def _after_result(draft: _Draft, result: event_pb2.WorkerResult) -> None:
    """Decides what follows a result that has been told."""
    if result.HasField("error"):
        _after_failure(draft, result)
    elif result.capability == Capability.CAPABILITY_REPORT_WRITER:
        _complete(draft, result.report.path)
    elif _found_nothing(result) and _may_fall_back(draft.state):
        _fall_back(draft, event_pb2.ROUTE_REASON_NO_FINDINGS, "the Researcher reports no findings")
    else:
        _next_step(draft)


def _found_nothing(result: event_pb2.WorkerResult) -> bool:
    return result.capability == Capability.CAPABILITY_RESEARCHER and not result.research.findings


def _after_failure(draft: _Draft, result: event_pb2.WorkerResult) -> None:
    error, state = result.error, draft.state
    if draft.given.at >= state.deadline:
        _fail(draft, _deadline_passed(state))
    elif error.retryable and _may_repeat(state, error) and _attempts_left(state, error):
        wait = min(BACKOFF_S * 2 ** min(state.attempts - 1, MAX_DOUBLINGS), MAX_BACKOFF_S)
        # Who waits for a worker that is full or away must not keep those from theirs who want another.
        draft.effects.append(ProceedLater(wait, needs_slot=error.reason in NEVER_RAN))
    elif result.capability == Capability.CAPABILITY_RESEARCHER and error.reason in FALLBACK and _may_fall_back(state):
        _fall_back(draft, event_pb2.ROUTE_REASON_RESEARCHER_UNAVAILABLE, "the Researcher is unavailable")
    else:
        _fail(draft, error)


def _attempts_left(state: TaskState, error: error_pb2.TypedError) -> bool:
    """A worker that is full has not tried: the task waits its turn, until its deadline."""
    full = error.reason == Reason.ERROR_REASON_OVER_CAPACITY
    return full or state.attempts - state.refused < (state.hints.max_attempts or DEFAULT_ATTEMPTS)


def _may_repeat(state: TaskState, error: error_pb2.TypedError) -> bool:
    """Only a command can do harm by being done twice; everything else may be asked again."""
    index = state.steps[0].command_index
    return index is None or error.reason in NEVER_RAN or state.hints.commands[index].idempotent


def _may_fall_back(state: TaskState) -> bool:
    return state.route.reason == event_pb2.ROUTE_REASON_DEFAULT and len(state.hints.commands) > 0


def _fall_back(draft: _Draft, reason: event_pb2.RouteReason.ValueType, why: str) -> None:
    _route(draft, event_pb2.Route(capabilities=[Capability.CAPABILITY_TERMINAL], reason=reason), why)


def _resume(draft: _Draft, _: Resume) -> None:
    """Takes up a task whose caller of workers is gone."""
    state = draft.state
    if state.call is not None:
        text = "Conductor stopped while the call was under way, so its outcome is not known. Submit the task again."
        error = typed(Reason.ERROR_REASON_OUTCOME_UNKNOWN, text, call_id=state.call.call_id)
        _end_call(draft, error)
        if not _may_repeat(state, error):
            return _fail(draft, error)
    # A crash of ours is no attempt of the worker's: the step is done again even after its last attempt.
    draft.effects += (ExpireLater((state.deadline - draft.given.at) / SECOND), ProceedLater(0, needs_slot=True))
    return None


def _cancel(draft: _Draft, command: conductor_pb2.CancelTaskRequest) -> None:
    error = typed(Reason.ERROR_REASON_TASK_CANCELLED, "The task was cancelled.", task_id=draft.state.task.task_id)
    _stop_call(draft, error)
    draft.tell(event_pb2.TaskCancelled(reason=command.reason), CANCELLED, DONE)
    _tell_project(draft)


def _expire(draft: _Draft, _: Expire) -> None:
    error = _deadline_passed(draft.state)
    _stop_call(draft, error)
    _fail(draft, error)


def _stop_call(draft: _Draft, error: error_pb2.TypedError) -> None:
    if draft.state.call is not None:
        draft.effects.append(CancelCall(draft.state.call.call_id))
        _end_call(draft, error)


def _end_call(draft: _Draft, error: error_pb2.TypedError) -> None:
    """Gives the open call, if there is one, its result."""
    call = draft.state.call
    if call is not None:
        result = event_pb2.WorkerResult(call_id=call.call_id, capability=call.capability, error=error)
        result.duration.FromNanoseconds(max(0, draft.given.at - draft.state.called_at))
        draft.tell(result, RUNNING, PHASES[result.capability])


# ---- endings ----


def _complete(draft: _Draft, path: str) -> None:
    completed = event_pb2.TaskCompleted(report_path=path, output_mode=draft.state.task.output_mode)
    if path:
        completed.writer_window_props.CopyFrom(task_pb2.WriterWindowProps(path=path, preview_mode=True))
    draft.tell(completed, COMPLETED, DONE)
    _tell_project(draft)


def _fail(draft: _Draft, error: error_pb2.TypedError) -> None:
    draft.tell(event_pb2.TaskFailed(error=error), FAILED, DONE)
    _tell_project(draft)


def _retell(draft: _Draft, _: Retell) -> None:
    _tell_project(draft)


def _tell_project(draft: _Draft) -> None:
    """Tells the project how the task of one of its stages ended."""
    state, task = draft.state, draft.state.task
    if state.stage is not None:
        error = task.error if task.HasField("error") else None
        ended = StageEnded(task.task_id, state.outcome, error, task.report_path, task.scope)
        draft.effects.append(TellProject(task, ended))


def _deadline_passed(state: TaskState) -> error_pb2.TypedError:
    seconds = (state.deadline - state.task.created_at.ToNanoseconds()) / SECOND
    text = f"The task did not end within its deadline of {seconds:g} s. Give hints.deadline more time."
    return typed(Reason.ERROR_REASON_TASK_DEADLINE_EXCEEDED, text, deadline_s=f"{seconds:g}")


def _is_open(state: TaskState, call_id: str) -> bool:
    return state.call is not None and state.call.call_id == call_id


# (status, command) → handler. What is missing is ignored or refused, see decide.
TABLE: Mapping[tuple[StatusValue, type], Callable[[_Draft, Any], None]] = {
    (NONE, Submit): _submit,
    (QUEUED, Proceed): _begin,
    (QUEUED, Resume): _resume,
    (QUEUED, Expire): _expire,
    (QUEUED, conductor_pb2.CancelTaskRequest): _cancel,
    (RUNNING, Proceed): _proceed,
    (RUNNING, Resume): _resume,
    (RUNNING, Expire): _expire,
    (RUNNING, conductor_pb2.CancelTaskRequest): _cancel,
    (WAITING, Progressed): _progressed,
    (WAITING, Answered): _answered,
    (WAITING, Resume): _resume,
    (WAITING, Expire): _expire,
    (WAITING, conductor_pb2.CancelTaskRequest): _cancel,
    (COMPLETED, Retell): _retell,
    (FAILED, Retell): _retell,
    (CANCELLED, Retell): _retell,
}
