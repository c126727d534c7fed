"""The decisions of a task's state machine: which worker comes next, and how it ends. Pure and total.

    TABLE  (status, command) → what happens. A pair that is missing changes nothing when it comes from inside (a late,
           repeated or unknown answer) and is refused when a caller asked for it.

A task is a list of steps: research, one step for each command, and the report. One step is under way at a time.
"""

from collections.abc import Callable, Mapping

from conductor.v1 import conductor_pb2, error_pb2, event_pb2, report_writer_pb2, task_pb2, terminal_pb2

from services.common.errors import Reason, Refusal, typed
from services.conductor.events import task_event
from services.conductor.protocol import (
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
    Submit,
    TaskCommand,
)
from services.conductor.state.requests import request_for, summary_of, timeout_for
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
    evolve,
)

DEFAULT_DESKTOP = "default"
DEFAULT_DEADLINE_S = 600
DEFAULT_ATTEMPTS = 2
BACKOFF_S = 0.2  # before the second attempt; doubles with each further one
MAX_BACKOFF_S = 5.0
MAX_DOUBLINGS = 10  # beyond, the pause is the longest one anyway
MAX_PROGRESS = 50  # progress events kept of one call; a chatty worker cannot flood the log

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
        return handler(state, command, given)
    if isinstance(command, conductor_pb2.CancelTaskRequest):
        found = Status.Name(state.task.status)
        raise Refusal(
            Reason.ERROR_REASON_ILLEGAL_TRANSITION,
            f"The task has ended: it is {found}, and ended tasks stay as they are.",
            found=found,
            allowed="",
        )
    return NOTHING


# ---- handlers ----


def _submit(state: TaskState, command: Submit, given: Given) -> Decision:
    request = command.request
    seconds = request.hints.deadline.ToNanoseconds() or DEFAULT_DEADLINE_S * SECOND
    started = event_pb2.TaskStarted(objective=request.objective, output_mode=request.output_mode, hints=request.hints)
    started.deadline.FromNanoseconds(given.at + seconds)
    scope = task_pb2.Scope()
    scope.CopyFrom(request.scope)
    scope.desktop_id = request.desktop_id or DEFAULT_DESKTOP
    task = task_pb2.Task(
        task_id=state.task.task_id,
        project_id=request.project_id,
        correlation_id=given.correlation_id,
        scope=scope,
    )
    effects = (ExpireLater(seconds / SECOND), ProceedLater(0, needs_slot=True))
    return Decision((task_event(task, started, QUEUED, INTAKE),), effects)


def _begin(state: TaskState, _: Proceed, given: Given) -> Decision:
    """Chooses the route of a queued task and calls the first worker."""
    asked = list(state.hints.capabilities)
    route = event_pb2.Route(
        capabilities=asked or [Capability.CAPABILITY_RESEARCHER],
        reason=event_pb2.ROUTE_REASON_HINTS if asked else event_pb2.ROUTE_REASON_DEFAULT,
    )
    text = "as the hints ask" if asked else "the Researcher is the default"
    return _routed(state, route, text, given)


def _routed(state: TaskState, route: event_pb2.Route, why: str, given: Given) -> Decision:
    names = ", then ".join(PHASES[capability] for capability in route.capabilities)
    progress = event_pb2.TaskProgress(message=f"Route: {names} ({why}).", route=route)
    event = task_event(state.task, progress, RUNNING, ROUTING)
    return _and_then(state, (event,), given, _next_step)


def _proceed(state: TaskState, _: Proceed, given: Given) -> Decision:
    return _next_step(state, given)


def _next_step(state: TaskState, given: Given) -> Decision:
    """Calls the worker of the first step, unless the deadline has passed."""
    if given.at >= state.deadline:
        return _fail(state, _deadline_passed(state))
    step = state.steps[0]
    timeout = timeout_for(step, state.hints, (state.deadline - given.at) / SECOND)
    call = event_pb2.WorkerCall(
        call_id=given.id,
        capability=step.capability,
        summary=summary_of(step, state.task.objective, state.hints),
        attempt=state.attempts + 1,
        command_index=step.command_index,
    )
    call.deadline.FromNanoseconds(given.at + int(timeout * SECOND))
    request = request_for(step, given.id, state)
    event = task_event(state.task, call, WAITING, PHASES[step.capability])
    return Decision((event,), (CallWorker(given.id, step.capability, request, timeout),))


def _progressed(state: TaskState, command: Progressed, _: Given) -> Decision:
    if not _is_open(state, command.call_id) or state.progress >= MAX_PROGRESS:
        return NOTHING
    phase = PHASES[state.steps[0].capability]
    return Decision((task_event(state.task, command.progress, WAITING, phase),))


def _answered(state: TaskState, command: Answered, given: Given) -> Decision:
    if not _is_open(state, command.result.call_id):
        return NOTHING
    result = _settled(state, command.result, given)
    phase = PHASES[result.capability]
    event = task_event(state.task, result, RUNNING, phase)
    return _and_then(state, (event,), given, lambda after, at: _after_result(after, result, at))


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


def _after_result(state: TaskState, result: event_pb2.WorkerResult, given: Given) -> Decision:
    """Decides what follows a recorded result. `state` includes it already."""
    if result.HasField("error"):
        return _after_failure(state, result, given)
    if result.capability == Capability.CAPABILITY_REPORT_WRITER:
        return _complete(state, result.report.path)
    nothing_found = result.capability == Capability.CAPABILITY_RESEARCHER and not result.research.findings
    if nothing_found and _may_fall_back(state):
        return _fall_back(state, event_pb2.ROUTE_REASON_NO_FINDINGS, "the Researcher reports no findings", given)
    return _next_step(state, given)


def _after_failure(state: TaskState, result: event_pb2.WorkerResult, given: Given) -> Decision:
    error = result.error
    if given.at >= state.deadline:
        return _fail(state, _deadline_passed(state))
    if error.retryable and _may_repeat(state, error) and _attempts_left(state, error):
        wait = min(BACKOFF_S * 2 ** min(state.attempts - 1, MAX_DOUBLINGS), MAX_BACKOFF_S)
        return Decision(effects=(ProceedLater(wait),))
    if result.capability == Capability.CAPABILITY_RESEARCHER and error.reason in FALLBACK and _may_fall_back(state):
        reason = event_pb2.ROUTE_REASON_RESEARCHER_UNAVAILABLE
        return _fall_back(state, reason, "the Researcher is unavailable", given)
    return _fail(state, error)


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


def _fall_back(state: TaskState, reason: event_pb2.RouteReason.ValueType, why: str, given: Given) -> Decision:
    return _routed(state, event_pb2.Route(capabilities=[Capability.CAPABILITY_TERMINAL], reason=reason), why, given)


def _resume(state: TaskState, _: Resume, given: Given) -> Decision:
    """Takes up a task whose caller of workers is gone."""
    # A crash of ours is no attempt of the worker's: the step is done again even after its last attempt.
    effects = (ExpireLater((state.deadline - given.at) / SECOND), ProceedLater(0, needs_slot=True))
    if state.call is None:
        return Decision(effects=effects)
    text = "Conductor stopped while the call was under way, so its outcome is not known. Submit the task again."
    error = typed(Reason.ERROR_REASON_OUTCOME_UNKNOWN, text, call_id=state.call.call_id)
    lost = _ended_call(state, error, given)
    if _may_repeat(state, error):
        return Decision(lost, effects)
    return _and_then(state, lost, given, lambda after, _: _fail(after, error))


def _cancel(state: TaskState, command: conductor_pb2.CancelTaskRequest, given: Given) -> Decision:
    error = typed(Reason.ERROR_REASON_TASK_CANCELLED, "The task was cancelled.", task_id=state.task.task_id)
    cancelled = event_pb2.TaskCancelled(reason=command.reason)
    ended = task_event(state.task, cancelled, CANCELLED, DONE)
    return Decision((*_ended_call(state, error, given), ended), _stopped_call(state))


def _expire(state: TaskState, _: Expire, given: Given) -> Decision:
    error = _deadline_passed(state)
    failed = task_event(state.task, event_pb2.TaskFailed(error=error), FAILED, DONE)
    return Decision((*_ended_call(state, error, given), failed), _stopped_call(state))


def _ended_call(state: TaskState, error: error_pb2.TypedError, given: Given) -> tuple[event_pb2.Event, ...]:
    """Gives the open call, if there is one, its result."""
    if state.call is None:
        return ()
    result = event_pb2.WorkerResult(call_id=state.call.call_id, capability=state.call.capability, error=error)
    result.duration.FromNanoseconds(max(0, given.at - state.called_at))
    return (task_event(state.task, result, RUNNING, PHASES[result.capability]),)


def _stopped_call(state: TaskState) -> tuple[Effect, ...]:
    return () if state.call is None else (CancelCall(state.call.call_id),)


# ---- endings ----


def _complete(state: TaskState, path: str) -> Decision:
    completed = event_pb2.TaskCompleted(
        report_path=path,
        output_mode=state.task.output_mode,
        writer_window_props=task_pb2.WriterWindowProps(path=path, preview_mode=True),
    )
    return Decision((task_event(state.task, completed, COMPLETED, DONE),))


def _fail(state: TaskState, error: error_pb2.TypedError) -> Decision:
    return Decision((task_event(state.task, event_pb2.TaskFailed(error=error), FAILED, DONE),))


def _deadline_passed(state: TaskState) -> error_pb2.TypedError:
    seconds = (state.deadline - state.task.created_at.ToNanoseconds()) / SECOND
    text = f"The task did not end within its deadline of {seconds:g} s. Give hints.deadline more time."
    return typed(Reason.ERROR_REASON_TASK_DEADLINE_EXCEEDED, text, deadline_s=f"{seconds:g}")


# ---- helpers of decisions ----


def _is_open(state: TaskState, call_id: str) -> bool:
    return state.call is not None and state.call.call_id == call_id


def _and_then(
    state: TaskState,
    events: tuple[event_pb2.Event, ...],
    given: Given,
    then: Callable[[TaskState, Given], Decision],
) -> Decision:
    """Decides further from the state these events lead to; both decisions become one."""
    after = state
    for event in events:
        stamped = event_pb2.Event()
        stamped.CopyFrom(event)
        stamped.occurred_at.FromNanoseconds(given.at)
        after = evolve(after, stamped)
    decision = then(after, given)
    return Decision(events + decision.events, decision.effects)


# (status, command) → handler. What is missing is ignored or refused, see decide.
TABLE: Mapping[tuple[StatusValue, type], Callable[..., Decision]] = {
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
}
