"""The state machine of a project: eight stages, one current, a gate at each. Pure and total.

Two tables say what is allowed:

    REPORTS  (status of the current stage, status asked for) → may TransitionTo report it on the current stage
    MAY      command → statuses of the current stage in which it may be given

Every other pair is refused, changes nothing and writes nothing.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from conductor.v1 import conductor_pb2, error_pb2, event_pb2, project_pb2

from services.common.errors import Reason, Refusal, typed
from services.conductor.events import project_event
from services.conductor.protocol import BeginStage, Decision, Given, ProjectCommand, RecordUpload, StageEnded, StartRun
from services.conductor.state import edits, run, run_state

Stage = project_pb2.Stage
Status = project_pb2.StageStatus
StageValue: TypeAlias = "project_pb2.Stage.ValueType"
StatusValue: TypeAlias = "project_pb2.StageStatus.ValueType"

PENDING = Status.STAGE_STATUS_PENDING
IN_PROGRESS = Status.STAGE_STATUS_IN_PROGRESS
WAITING = Status.STAGE_STATUS_WAITING_CONFIRMATION
COMPLETED = Status.STAGE_STATUS_COMPLETED
FAILED = Status.STAGE_STATUS_FAILED
SKIPPED = Status.STAGE_STATUS_SKIPPED

STAGES: tuple[StageValue, ...] = tuple(value for value in Stage.values() if value)
FIRST, LAST = STAGES[0], STAGES[-1]

# A gate is answered with Confirm only: a stage that waits can be sent back to work or fail, not be completed or
# skipped past the person.
REPORTS: Mapping[StatusValue, frozenset[StatusValue]] = {
    PENDING: frozenset(),  # the current stage is never PENDING
    IN_PROGRESS: frozenset({IN_PROGRESS, COMPLETED, FAILED, SKIPPED}),
    WAITING: frozenset({IN_PROGRESS, FAILED}),
    COMPLETED: frozenset({IN_PROGRESS}),
    FAILED: frozenset({IN_PROGRESS, SKIPPED}),
    SKIPPED: frozenset({IN_PROGRESS}),
}

# The next stage may be started from these statuses of the current one.
DONE = frozenset({COMPLETED, SKIPPED})

MAY: Mapping[type, frozenset[StatusValue]] = {
    conductor_pb2.WaitForConfirmationRequest: frozenset({IN_PROGRESS, WAITING}),
    conductor_pb2.ProposePlanRequest: frozenset({IN_PROGRESS, WAITING}),
    # COMPLETED: a runner reported the stage done without asking; the person moves on. Not at the last stage.
    conductor_pb2.ConfirmRequest: frozenset({IN_PROGRESS, WAITING, COMPLETED}),
}


def initial(project_id: str) -> project_pb2.ProjectState:
    """Returns the state of a project nobody has written to."""
    stages = [
        project_pb2.StageState(stage_id=stage, status=IN_PROGRESS if stage == FIRST else PENDING) for stage in STAGES
    ]
    return project_pb2.ProjectState(project_id=project_id, stages=stages, current_stage=FIRST)


def stage_of(state: project_pb2.ProjectState, stage: StageValue) -> project_pb2.StageState:
    """Returns the state of one stage."""
    return state.stages[stage - FIRST]


def decide(state: project_pb2.ProjectState, command: ProjectCommand, given: Given) -> Decision:
    """Returns the events a command leads to. Raises Refusal; the state is never changed."""
    (events, effects), after = _moved(state, command, given), state
    for event in events:
        event.occurred_at.FromNanoseconds(given.at)
        after = evolve(after, event)
    if isinstance(command, BeginStage) or run.current(after).task_id != run.current(state).task_id:
        effects = (*effects, *run.to_begin(after, run.scope_of(command)))
    return Decision(tuple(events), tuple(effects), after=after)


def _moved(state: project_pb2.ProjectState, command: ProjectCommand, given: Given) -> run.Moved:
    match command:
        case StartRun():
            return run.start(state, command, given)
        case StageEnded():
            return run.ended(state, command, given)
        case RecordUpload():
            return run.uploaded(state, command)
        case BeginStage():
            return [], ()
        case conductor_pb2.CancelRunRequest():
            return run.cancel(state, command)
        case conductor_pb2.ConfirmRequest():
            return _confirm(state, command)
        case conductor_pb2.TransitionToRequest() if state.HasField("run"):
            return run.transition(state, command)
        case conductor_pb2.TransitionToRequest():
            return _transition(state, command), ()
    run.refuse_by_hand(state)
    if isinstance(command, conductor_pb2.WaitForConfirmationRequest):
        return _wait(state, command, given), ()
    return _propose(state, command, given), ()


# ---- TransitionTo ----


def _transition(state: project_pb2.ProjectState, command: conductor_pb2.TransitionToRequest) -> list[event_pb2.Event]:
    edits.check(command.edits, (), ())
    wanted = command.status or IN_PROGRESS
    current, target = state.current_stage, command.stage_id
    found = stage_of(state, current).status
    allowed = (
        (target == current and wanted in REPORTS[found] and not (wanted in DONE and state.plan_pending))
        or (target == current + 1 and wanted == IN_PROGRESS and found in DONE)
        or (target < current and wanted == IN_PROGRESS)
    )
    if not allowed:
        raise _illegal(state, f"{Stage.Name(target)} cannot become {Status.Name(wanted)}")
    resets = [
        _status(state, stage, PENDING)
        for stage in STAGES[target - FIRST + 1 :]
        if stage_of(state, stage).status != PENDING
    ]
    moved = _status(state, target, wanted, command.message)
    if wanted == FAILED:
        moved.stage_status.error.CopyFrom(_failure(command))
    return [*resets, moved]


def _failure(command: conductor_pb2.TransitionToRequest) -> error_pb2.TypedError:
    if command.HasField("error"):
        return typed(command.error.reason, command.error.message, **command.error.metadata)
    text = command.message or "The runner reported a failure and gave no reason."
    return typed(Reason.ERROR_REASON_WORKER_FAILED, text, stage_id=Stage.Name(command.stage_id))


# ---- gates ----


def _wait(
    state: project_pb2.ProjectState, command: conductor_pb2.WaitForConfirmationRequest, given: Given
) -> list[event_pb2.Event]:
    _require(state, command, command.stage_id)
    waiting = project_pb2.WaitingConfirmation(
        confirmation_id=given.id,
        stage_id=command.stage_id,
        summary=command.summary,
        next_actions=command.next_actions,
    )
    waiting.requested_at.FromNanoseconds(given.at)
    return [
        _status(state, command.stage_id, WAITING, command.summary),
        project_event(state.project_id, waiting, WAITING, command.stage_id),
    ]


def _propose(
    state: project_pb2.ProjectState, command: conductor_pb2.ProposePlanRequest, given: Given
) -> list[event_pb2.Event]:
    _require(state, command, command.stage_id)
    plan = project_pb2.Plan(plan_id=given.id, stage_id=command.stage_id, summary=command.summary, steps=command.steps)
    plan.proposed_at.FromNanoseconds(given.at)
    status = stage_of(state, command.stage_id).status
    return [project_event(state.project_id, plan, status, command.stage_id)]


def _require(
    state: project_pb2.ProjectState,
    command: conductor_pb2.WaitForConfirmationRequest | conductor_pb2.ProposePlanRequest,
    stage: StageValue,
) -> None:
    current = stage_of(state, state.current_stage)
    if stage != state.current_stage or current.status not in MAY[type(command)]:
        raise _illegal(state, f"{Stage.Name(stage)} cannot be put before a person")


def _confirm(state: project_pb2.ProjectState, command: conductor_pb2.ConfirmRequest) -> run.Moved:
    _refuse_stale(state, command)
    current = state.current_stage
    found = stage_of(state, current).status
    if state.HasField("run"):
        if found != WAITING:
            raise _nothing_to_confirm(state)
        return run.confirm(state, command)
    edits.check(command.edits, (), ())
    approved = command.approved if command.HasField("approved") else True
    answerable = MAY[conductor_pb2.ConfirmRequest] - (frozenset() if approved and current != LAST else {COMPLETED})
    if found not in answerable:
        raise _nothing_to_confirm(state)
    answer = event_pb2.ConfirmationAnswered(
        stage_id=current,
        confirmation_id=state.waiting_confirmation.confirmation_id,
        plan_id=state.plan.plan_id if state.plan_pending else "",
        approved=approved,
        reason=command.reason,
    )
    return (_approve(state, answer) if approved else _reject(state, answer)), ()


def _approve(state: project_pb2.ProjectState, answer: event_pb2.ConfirmationAnswered) -> list[event_pb2.Event]:
    current = answer.stage_id
    events = [project_event(state.project_id, answer, COMPLETED, current)]
    if answer.plan_id:
        approved = event_pb2.PlanApproved(plan_id=answer.plan_id, stage_id=current)
        events.append(project_event(state.project_id, approved, COMPLETED, current))
    events.append(_status(state, current, COMPLETED, answer.reason or "Confirmed."))
    if current != LAST:
        events.append(_status(state, STAGES[current - FIRST + 1], IN_PROGRESS))
    return events


def _reject(state: project_pb2.ProjectState, answer: event_pb2.ConfirmationAnswered) -> list[event_pb2.Event]:
    current = answer.stage_id
    return [
        project_event(state.project_id, answer, IN_PROGRESS, current),
        _status(state, current, IN_PROGRESS, answer.reason),
    ]


def _refuse_stale(state: project_pb2.ProjectState, command: conductor_pb2.ConfirmRequest) -> None:
    """Refuses an answer that names another stage, confirmation or plan than the one that waits."""
    pending_plan = state.plan.plan_id if state.plan_pending else ""
    seen = (
        (Stage.Name(command.stage_id) if command.stage_id else "", Stage.Name(state.current_stage)),
        (command.confirmation_id, state.waiting_confirmation.confirmation_id),
        (command.plan_id, pending_plan),
    )
    for named, found in seen:
        if named and named != found:
            raise Refusal(
                Reason.ERROR_REASON_STALE_CONFIRMATION,
                f"The answer is for {named}, but {found or 'no such thing'} waits now. Read the state again.",
                named=named,
                found=found,
                stage_id=Stage.Name(state.current_stage),
                allowed=allowed_moves(state),
            )


# ---- refusals ----


def _illegal(state: project_pb2.ProjectState, what: str) -> Refusal:
    found = Status.Name(stage_of(state, state.current_stage).status)
    current = Stage.Name(state.current_stage)
    allowed = allowed_moves(state)
    return Refusal(
        Reason.ERROR_REASON_ILLEGAL_TRANSITION,
        f"{what} while {current} is {found}. Allowed now: {allowed}.",
        found=found,
        stage_id=current,
        allowed=allowed,
    )


def _nothing_to_confirm(state: project_pb2.ProjectState) -> Refusal:
    found = stage_of(state, state.current_stage).status
    current = Stage.Name(state.current_stage)
    finished = state.current_stage == LAST and found == COMPLETED
    text = "The project is finished" if finished else f"{current} is {Status.Name(found)}"
    return Refusal(
        Reason.ERROR_REASON_NOTHING_TO_CONFIRM,
        f"{text}: nothing waits for an answer. TransitionTo starts a stage again.",
        found=Status.Name(found),
        stage_id=current,
        allowed=allowed_moves(state),
    )


def allowed_moves(state: project_pb2.ProjectState) -> str:
    """Returns what may be done now, for a refusal: `STAGE→STATUS` moves of TransitionTo and the names of commands."""
    if state.HasField("run"):
        return run.allowed_moves(state)
    current = state.current_stage
    found = stage_of(state, current).status
    moves = [
        f"{Stage.Name(current)}→{Status.Name(status)}"
        for status in sorted(REPORTS[found])
        if not (status in DONE and state.plan_pending)
    ]
    if found in DONE and current != LAST:
        moves.append(f"{Stage.Name(STAGES[current - FIRST + 1])}→{Status.Name(IN_PROGRESS)}")
    if current != FIRST:
        moves.append("any earlier stage→STAGE_STATUS_IN_PROGRESS")
    moves += [
        command.__name__.removesuffix("Request")
        for command, statuses in MAY.items()
        if found in statuses and not (found == COMPLETED and current == LAST)
    ]
    return ", ".join(moves)


def _status(
    state: project_pb2.ProjectState, stage: StageValue, status: StatusValue, message: str = ""
) -> event_pb2.Event:
    changed = event_pb2.StageStatusChanged(stage_id=stage, status=status, message=message)
    return project_event(state.project_id, changed, status, stage)


# ---- evolve ----


def evolve(state: project_pb2.ProjectState, event: event_pb2.Event) -> project_pb2.ProjectState:
    """Returns the state after one event. Total: every project event has its fold, events of tasks have none."""
    after = project_pb2.ProjectState()
    after.CopyFrom(state)
    if not after.HasField("created_at"):
        after.created_at.CopyFrom(event.occurred_at)
        after.stages[0].started_at.CopyFrom(event.occurred_at)  # in progress from the first word about the project
    after.updated_at.CopyFrom(event.occurred_at)
    FOLDS[event.WhichOneof("payload") or ""](after, event)
    return after


def _on_stage_status(state: project_pb2.ProjectState, event: event_pb2.Event) -> None:
    changed = event.stage_status
    stage = stage_of(state, changed.stage_id)
    before = stage.status
    stage.status, stage.message = changed.status, changed.message
    stage.ClearField("error")
    if changed.status != before:
        stage.ClearField("completed_at")
    if changed.status == PENDING:
        stage.ClearField("started_at")
        _clear_plan(state, changed.stage_id)
    else:
        state.current_stage = changed.stage_id
    if changed.status == IN_PROGRESS and before not in (IN_PROGRESS, WAITING):
        stage.started_at.CopyFrom(event.occurred_at)
        _clear_plan(state, changed.stage_id)
    if changed.status in (COMPLETED, FAILED, SKIPPED):
        if changed.status != before:
            stage.completed_at.CopyFrom(event.occurred_at)
        _end_plan(state, changed.stage_id)
    if changed.HasField("error"):
        stage.error.CopyFrom(changed.error)
    if changed.status != WAITING and state.waiting_confirmation.stage_id == changed.stage_id:
        state.ClearField("waiting_confirmation")
    if state.HasField("run"):
        run_state.on_stage_status(state, stage, event)


def _clear_plan(state: project_pb2.ProjectState, stage: StageValue) -> None:
    """Forgets a plan of a stage that starts over."""
    if state.plan.stage_id == stage:
        state.ClearField("plan")
        state.plan_approved = False
        _set_pending(state, stage, pending=False)


def _end_plan(state: project_pb2.ProjectState, stage: StageValue) -> None:
    """Closes the question of a plan when its stage ends; whether it was approved stays known."""
    if state.plan.stage_id == stage:
        _set_pending(state, stage, pending=False)


def _set_pending(state: project_pb2.ProjectState, stage: StageValue, *, pending: bool) -> None:
    state.plan_pending = pending
    stage_of(state, stage).plan_pending = pending


def _on_waiting(state: project_pb2.ProjectState, event: event_pb2.Event) -> None:
    state.waiting_confirmation.CopyFrom(event.waiting_confirmation)


def _on_plan_proposed(state: project_pb2.ProjectState, event: event_pb2.Event) -> None:
    state.plan.CopyFrom(event.plan_proposed)
    state.plan_approved = False
    _set_pending(state, event.plan_proposed.stage_id, pending=True)


def _on_plan_approved(state: project_pb2.ProjectState, event: event_pb2.Event) -> None:
    state.plan_approved = True
    _set_pending(state, event.plan_approved.stage_id, pending=False)


def _on_answered(state: project_pb2.ProjectState, event: event_pb2.Event) -> None:
    answer = event.confirmation_answered
    state.ClearField("waiting_confirmation")
    if answer.plan_id and not answer.approved:
        _set_pending(state, answer.stage_id, pending=False)
    if state.HasField("run"):
        run_state.on_answered(state, event)


FOLDS: Mapping[str, Callable[[project_pb2.ProjectState, event_pb2.Event], None]] = {
    "stage_status": _on_stage_status,
    "waiting_confirmation": _on_waiting,
    "plan_proposed": _on_plan_proposed,
    "plan_approved": _on_plan_approved,
    "confirmation_answered": _on_answered,
    **run_state.FOLDS,
}
