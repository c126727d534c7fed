"""The state machine of a run: programs do the stages of a project, a person confirms at the gates. Pure and total.

A project has at most one run. Each attempt at a stage is a task of its own, with the id that the STAGE_STATUS event of
its beginning names; what becomes of that task comes back as StageEnded. So a run has nothing that a crash could lose:
whoever finds a stage in progress looks after its task (`to_begin`).
"""

from collections.abc import Sequence
from typing import TypeAlias

from conductor.v1 import conductor_pb2, error_pb2, event_pb2, project_pb2, task_pb2
from google.protobuf import struct_pb2

from services.common.errors import Reason, Refusal, typed
from services.conductor.events import Payload, project_event
from services.conductor.protocol import (
    CancelStage,
    Effect,
    Given,
    ProjectCommand,
    RecordUpload,
    StageEnded,
    StartRun,
    SubmitStage,
)
from services.conductor.state import edits

Stage = project_pb2.Stage
Status = project_pb2.StageStatus
RunStatus = project_pb2.RunStatus
StageValue: TypeAlias = "project_pb2.Stage.ValueType"
State: TypeAlias = project_pb2.ProjectState
Moved: TypeAlias = tuple[list[event_pb2.Event], Sequence[Effect]]

IN_PROGRESS = Status.STAGE_STATUS_IN_PROGRESS
WAITING = Status.STAGE_STATUS_WAITING_CONFIRMATION
COMPLETED = Status.STAGE_STATUS_COMPLETED
FAILED = Status.STAGE_STATUS_FAILED
PENDING = Status.STAGE_STATUS_PENDING
FIRST, LAST = Stage.STAGE_PARSE_INTENT, Stage.STAGE_EXPORT
OPEN = frozenset({RunStatus.RUN_STATUS_RUNNING, RunStatus.RUN_STATUS_WAITING_CONFIRMATION})

# The current stage may be begun again from these. A program at work is cancelled, or gone back from, not begun twice.
AGAIN = frozenset({WAITING, COMPLETED, FAILED})
STAGE_DEADLINE_S = 24 * 3600.0  # for waiting for a free place; the program's own time is its command's limit
MAX_SECONDS = 3600  # that the Terminal lets a command take
STAGE_ATTEMPTS = 60  # at a worker that is away: some minutes, so that one may be restarted


def folder_of(stage: StageValue) -> str:
    """Returns how a stage is called in names of tasks, files and folders: `profile-data`."""
    return Stage.Name(stage).removeprefix("STAGE_").lower().replace("_", "-")


def task_id_of(run_id: str, stage: StageValue, attempt: int) -> str:
    """Returns the id of the task that makes an attempt at a stage."""
    return f"{run_id}-{folder_of(stage)}-{attempt}"


def is_open(state: State) -> bool:
    """Tells whether a run drives the project now."""
    return state.run.status in OPEN


def current(state: State) -> project_pb2.StageState:
    """Returns the state of the current stage."""
    return state.stages[state.current_stage - FIRST]


def waits_for(state: State, task_id: str) -> bool:
    """Tells whether the run goes on when this task ends."""
    if state.run.status != RunStatus.RUN_STATUS_RUNNING:
        return False
    stage = current(state)
    return stage.status == IN_PROGRESS and stage.task_id == task_id


def allowed_moves(state: State) -> str:
    """Returns what may be done now, for a refusal."""
    found = current(state).status
    begins = f"→{Status.Name(IN_PROGRESS)}"
    moves = [f"{Stage.Name(state.current_stage)}{begins}"] if found in AGAIN else []
    moves += [f"any earlier stage{begins}"] if state.current_stage != FIRST else []
    moves += ["Confirm"] if found == WAITING else []
    return ", ".join([*moves, "CancelRun" if is_open(state) else "StartProject"])


# ---- commands ----


def start(state: State, command: StartRun, given: Given) -> Moved:
    """Begins a run. Raises RUN_ACTIVE and DATA_NOT_FOUND."""
    request = command.request
    if is_open(state):
        raise _active(state, "A run goes on already: cancel it first, or use another project.")
    names = {f"{edits.UPLOADS}{upload.name}" for upload in state.uploads}
    if request.data.startswith(edits.UPLOADS) and request.data not in names:
        text = f"Nothing named {request.data} was uploaded to this project. Upload it first: {sorted(names)} are there."
        raise Refusal(Reason.ERROR_REASON_DATA_NOT_FOUND, text, data=request.data)
    run = project_pb2.Run(
        run_id=given.id,
        status=RunStatus.RUN_STATUS_RUNNING,
        objective=request.objective,
        data=request.data,
        options=request.options,
        programs=[_budgeted(program, request.options) for program in command.programs],
        correlation_id=given.correlation_id,
    )
    run.uploads.extend(upload for upload in state.uploads if f"{edits.UPLOADS}{upload.name}" == request.data)
    run.started_at.FromNanoseconds(given.at)
    begun = _event(state, event_pb2.RunStarted(run=run), IN_PROGRESS, FIRST)
    return [begun, _begin(run.run_id, state.project_id, FIRST, 1)], []


def cancel(state: State, command: conductor_pb2.CancelRunRequest) -> Moved:
    """Ends a run on request. Raises NO_RUN."""
    if not is_open(state):
        found = RunStatus.Name(state.run.status)
        text = f"No run goes on: it is {found}. There is nothing to cancel."
        raise Refusal(Reason.ERROR_REASON_NO_RUN, text, found=found)
    task_id = current(state).task_id
    text = f"The run was cancelled: {command.reason}" if command.reason else "The run was cancelled."
    error = typed(Reason.ERROR_REASON_TASK_CANCELLED, text[:4000], task_id=task_id)
    ended = _ended(state, RunStatus.RUN_STATUS_CANCELLED, command.reason)
    effects = [CancelStage(task_id)] if current(state).status == IN_PROGRESS else []
    return [_failed(state, error), ended], effects


def transition(state: State, command: conductor_pb2.TransitionToRequest) -> Moved:
    """Begins the current stage, or an earlier one, again. Raises RUN_ACTIVE, ILLEGAL_TRANSITION, EDIT_REFUSED."""
    wanted, target = command.status or IN_PROGRESS, command.stage_id
    if wanted != IN_PROGRESS:
        raise _active(state, "Its stages are completed and failed by their programs. TransitionTo begins one again.")
    found = current(state).status
    if target > state.current_stage or (target == state.current_stage and found not in AGAIN):
        name, now, here = Stage.Name(target), Status.Name(found), Stage.Name(state.current_stage)
        text, allowed = f"{name} cannot be begun while {here} is {now}", allowed_moves(state)
        text = f"{text}. Allowed now: {allowed}."
        raise Refusal(Reason.ERROR_REASON_ILLEGAL_TRANSITION, text, found=now, stage_id=here, allowed=allowed)
    stage = state.stages[target - FIRST]
    edits.check(command.edits, stage.outcome.actions, state.uploads)
    effects: list[Effect] = []
    if found == IN_PROGRESS and state.run.status == RunStatus.RUN_STATUS_RUNNING:
        effects.append(CancelStage(current(state).task_id))
    resets = [
        _status(state, later.stage_id, PENDING)
        for later in state.stages[target - FIRST + 1 :]
        if later.status != PENDING
    ]
    chosen = edits.merged(stage.edits, command.edits)
    begun = _begin(state.run.run_id, state.project_id, target, stage.attempt + 1, command.message, chosen)
    begun.stage_status.begun_again = True
    begun.scope.CopyFrom(command.scope)  # who decided is part of the state, not only of the record
    return [*resets, begun], effects


def confirm(state: State, command: conductor_pb2.ConfirmRequest) -> Moved:
    """Answers the gate that waits. The caller has seen to it that it waits. Raises EDIT_REFUSED."""
    stage = current(state)
    approved = command.approved if command.HasField("approved") else True
    edits.check(command.edits, stage.outcome.actions, state.uploads)
    answer = event_pb2.ConfirmationAnswered(
        stage_id=stage.stage_id,
        confirmation_id=state.waiting_confirmation.confirmation_id,
        approved=approved,
        reason=command.reason,
    )
    if command.edits.fields:
        answer.edits.CopyFrom(command.edits)
    answered = _event(state, answer, COMPLETED if approved and not command.edits.fields else IN_PROGRESS)
    answered.scope.CopyFrom(command.scope)  # who decided is part of the state, not only of the record
    if approved and not command.edits.fields:
        edits.require(stage.outcome)
        return [answered, *_onward(state, command.reason or "Confirmed.")], []
    chosen = edits.merged(stage.edits, command.edits)
    again = _begin(state.run.run_id, state.project_id, stage.stage_id, stage.attempt + 1, command.reason, chosen)
    again.stage_status.approved_ahead = approved
    return [answered, again], []


def uploaded(state: State, command: RecordUpload) -> Moved:
    """Records data that was uploaded."""
    return [_event(state, command.upload, current(state).status)], []


def ended(state: State, command: StageEnded, given: Given) -> Moved:
    """Takes in what became of a stage's task. Late news of a stage that was begun again change nothing."""
    if not waits_for(state, command.task_id):
        return [], []
    stage = current(state)
    events: list[event_pb2.Event] = []
    if command.outcome is not None:
        found = event_pb2.StageResult(
            stage_id=stage.stage_id, task_id=stage.task_id, attempt=stage.attempt, outcome=command.outcome
        )
        if command.error is not None and not command.outcome.actions:
            found.outcome.actions.extend(stage.outcome.actions)  # it crashed: what it offered before still holds
        found.report_path = command.report_path
        events.append(_event(state, found, IN_PROGRESS))
    if command.error is not None or command.outcome is None:
        error = command.error or typed(Reason.ERROR_REASON_WORKER_PROTOCOL, "The stage's task ended without a result.")
        failed = RunStatus.RUN_STATUS_CANCELLED if _is_cancel(error) else RunStatus.RUN_STATUS_FAILED
        return [*events, _failed(state, error), _ended(state, failed, error.message)], []
    if command.outcome.needs_input or not (_passes(state, stage) or stage.approved_ahead):
        return [*events, *_ask(state, command.outcome, given)], []
    if not stage.approved_ahead:
        answer = event_pb2.ConfirmationAnswered(stage_id=stage.stage_id, approved=True, by_itself=True)
        events.append(_event(state, answer, COMPLETED))
    return [*events, *_onward(state, command.outcome.summary)], []


def scope_of(command: ProjectCommand) -> task_pb2.Scope:
    """Returns on whose behalf a command is, for the stages that follow from it."""
    asked = command.request if isinstance(command, StartRun) else command
    return task_pb2.Scope() if isinstance(asked, RecordUpload) else asked.scope


def to_begin(state: State, scope: task_pb2.Scope) -> Sequence[Effect]:
    """Returns what keeps a run going: the task of the stage in progress, to be begun unless it is there."""
    if state.run.status != RunStatus.RUN_STATUS_RUNNING or current(state).status != IN_PROGRESS:
        return ()
    stage, run = current(state), state.run
    program = next((one for one in run.programs if one.stage_id == stage.stage_id), None)
    call = event_pb2.StageCall(
        run=run,
        stage_id=stage.stage_id,
        attempt=stage.attempt,
        program=program,
        edits=stage.edits,
        project_id=state.project_id,
    )
    request = conductor_pb2.ExecuteRequest(
        objective=run.objective,
        output_mode=task_pb2.OUTPUT_MODE_STAGE,
        project_id=state.project_id,
        desktop_id=scope.desktop_id,
        scope=scope,
    )
    request.hints.deadline.FromNanoseconds(int(STAGE_DEADLINE_S * 1e9))
    request.hints.max_attempts = STAGE_ATTEMPTS
    return (SubmitStage(stage.task_id, request, call),)


def _budgeted(program: project_pb2.StageProgram, options: project_pb2.RunOptions) -> project_pb2.StageProgram:
    """Returns a program with time enough for the budget of a run: to read, to fit the last model, to be held up."""
    budgeted = project_pb2.StageProgram()
    budgeted.CopyFrom(program)
    if program.stage_id == Stage.STAGE_TRAIN and options.HasField("budget"):
        cpu = options.budget.ToSeconds() * 2 + 60
        budgeted.cpu_time.FromSeconds(min(MAX_SECONDS, max(cpu, program.cpu_time.ToSeconds())))
        budgeted.wall_time.FromSeconds(min(MAX_SECONDS, max(3 * cpu, program.wall_time.ToSeconds())))
    return budgeted


# ---- events ----


def _ask(state: State, outcome: project_pb2.StageOutcome, given: Given) -> list[event_pb2.Event]:
    stage = state.current_stage
    waiting = project_pb2.WaitingConfirmation(
        confirmation_id=given.id,
        stage_id=stage,
        summary=outcome.summary,
        next_actions=[action.label[:500] for action in outcome.actions][:20],
        choices=outcome.actions,
        issues=outcome.issues,
    )
    waiting.requested_at.FromNanoseconds(given.at)
    return [_status(state, stage, WAITING, outcome.summary), _event(state, waiting, WAITING)]


def _onward(state: State, message: str) -> list[event_pb2.Event]:
    """Completes the current stage and begins the next one, or ends the run behind the last."""
    stage = state.current_stage
    done = _status(state, stage, COMPLETED, message)
    if stage == LAST:
        return [done, _ended(state, RunStatus.RUN_STATUS_COMPLETED, "")]
    following = state.stages[stage - FIRST + 1]
    return [done, _begin(state.run.run_id, state.project_id, following.stage_id, following.attempt + 1)]


def _passes(state: State, stage: project_pb2.StageState) -> bool:
    gates = {program.stage_id: program.gate for program in state.run.programs}
    return stage.stage_id in state.run.options.pass_gates or not gates.get(stage.stage_id, True)


def _begin(
    run_id: str,
    project_id: str,
    stage: StageValue,
    attempt: int,
    message: str = "",
    chosen: struct_pb2.Struct | None = None,
) -> event_pb2.Event:
    changed = event_pb2.StageStatusChanged(
        stage_id=stage,
        status=IN_PROGRESS,
        message=message,
        task_id=task_id_of(run_id, stage, attempt),
        attempt=attempt,
        edits=chosen if chosen is not None and chosen.fields else None,
    )
    return project_event(project_id, changed, IN_PROGRESS, stage)


def _failed(state: State, error: error_pb2.TypedError) -> event_pb2.Event:
    event = _status(state, state.current_stage, FAILED, error.message)
    event.stage_status.error.CopyFrom(error)
    return event


def _ended(state: State, status: "project_pb2.RunStatus.ValueType", reason: str) -> event_pb2.Event:
    stage = COMPLETED if status == RunStatus.RUN_STATUS_COMPLETED else FAILED
    return _event(state, event_pb2.RunEnded(run_id=state.run.run_id, status=status, reason=reason), stage)


def _status(
    state: State, stage: StageValue, status: "project_pb2.StageStatus.ValueType", message: str = ""
) -> event_pb2.Event:
    changed = event_pb2.StageStatusChanged(stage_id=stage, status=status, message=message)
    return project_event(state.project_id, changed, status, stage)


def _event(
    state: State,
    payload: Payload,
    status: "project_pb2.StageStatus.ValueType",
    stage: StageValue = Stage.STAGE_UNSPECIFIED,
) -> event_pb2.Event:
    """Builds an event of a stage, of the current one when none is named."""
    return project_event(state.project_id, payload, status, stage or state.current_stage)


def _active(state: State, what: str) -> Refusal:
    found = RunStatus.Name(state.run.status)
    text = f"The project has a run, {found}. {what}"
    return Refusal(Reason.ERROR_REASON_RUN_ACTIVE, text, run_id=state.run.run_id, found=found)


def refuse_by_hand(state: State) -> None:
    """Raises RUN_ACTIVE when the project has a run: then its gates and plans are the run's."""
    if state.HasField("run"):
        raise _active(state, "Its gates are put before a person by its programs; StartProject begins another run.")


def _is_cancel(error: error_pb2.TypedError) -> bool:
    return error.reason == Reason.ERROR_REASON_TASK_CANCELLED
