"""What the events of a run add up to. Pure and total; `project.evolve` calls these for a project that has a run."""

from collections.abc import Callable, Mapping

from conductor.v1 import event_pb2, project_pb2
from google.protobuf import struct_pb2

State = project_pb2.ProjectState
RunStatus = project_pb2.RunStatus
Status = project_pb2.StageStatus

MAX_STALE = 200  # artefacts of attempts that were done again
MAX_DECISIONS = 200
MAX_DECIDED_BYTES = 256 * 1024  # of all decisions, about
OLD_REASON = 200  # characters of the reason of an old one, when they are too much
MAX_UPLOADS = 20
MAX_FOUND_BYTES = 1536 * 1024  # of what all stages found: gRPC clients take 4 MiB by default

_OF_RUN = {
    Status.STAGE_STATUS_IN_PROGRESS: RunStatus.RUN_STATUS_RUNNING,
    Status.STAGE_STATUS_WAITING_CONFIRMATION: RunStatus.RUN_STATUS_WAITING_CONFIRMATION,
}


def on_started(state: State, event: event_pb2.Event) -> None:
    """Begins a run: whatever the project was before, its stages are pending."""
    state.run.CopyFrom(event.run_started.run)
    for stage in state.stages:
        fresh = project_pb2.StageState(stage_id=stage.stage_id, status=Status.STAGE_STATUS_PENDING)
        stage.CopyFrom(fresh)
    for name in ("plan", "plan_pending", "plan_approved", "waiting_confirmation"):
        state.ClearField(name)


def on_stage_status(state: State, stage: project_pb2.StageState, event: event_pb2.Event) -> None:
    """Takes in what a run's stage has become, beyond what every project's has."""
    changed = event.stage_status
    if changed.begun_again:
        again = project_pb2.GateDecision(stage_id=changed.stage_id, reason=changed.message, begun_again=True)
        again.user_id = event.scope.user_id
        _decided(state, again, changed.edits, event)
    if changed.task_id:
        stage.task_id, stage.attempt, stage.approved_ahead = changed.task_id, changed.attempt, changed.approved_ahead
        _keep_offers(stage)
        stage.ClearField("edits")
        if changed.HasField("edits"):
            stage.edits.CopyFrom(changed.edits)
            _pin(state, changed.edits)
        _make_stale(state.run, changed.stage_id)
    elif changed.status == Status.STAGE_STATUS_PENDING:
        for name in ("task_id", "outcome", "edits", "approved_ahead"):  # attempts go on counting: they name tasks
            stage.ClearField(name)
    if changed.status in _OF_RUN:
        state.run.status = _OF_RUN[changed.status]
        state.run.ClearField("ended_at")


def _keep_offers(stage: project_pb2.StageState) -> None:
    """Forgets what a stage found, but for what may be chosen: an edit may be what its program crashes over."""
    offered = project_pb2.StageOutcome(actions=stage.outcome.actions)
    stage.ClearField("outcome")
    if offered.actions:
        stage.outcome.CopyFrom(offered)


def _make_stale(run: project_pb2.Run, since: "project_pb2.Stage.ValueType") -> None:
    """Marks what a stage and all later ones left."""
    for artifact in run.artifacts:
        artifact.stale = artifact.stale or artifact.stage_id >= since
    stale = [artifact for artifact in run.artifacts if artifact.stale]
    for artifact in stale[: max(0, len(stale) - MAX_STALE)]:
        run.artifacts.remove(artifact)


def on_answered(state: State, event: event_pb2.Event) -> None:
    """Records what was decided at a gate."""
    answer = event.confirmation_answered
    decision = project_pb2.GateDecision(
        stage_id=answer.stage_id,
        approved=answer.approved,
        reason=answer.reason,
        user_id="" if answer.by_itself else event.scope.user_id,
        by_itself=answer.by_itself,
    )
    _decided(state, decision, answer.edits, event)


def _decided(
    state: State, decision: project_pb2.GateDecision, chosen: struct_pb2.Struct, event: event_pb2.Event
) -> None:
    """Adds a decision; the oldest lose what was chosen and most of the reason when all are too large, or go."""
    decision.decided_at.CopyFrom(event.occurred_at)
    if chosen.fields:
        decision.edits.CopyFrom(chosen)
    decisions = state.run.decisions
    decisions.append(decision)
    del decisions[: max(0, len(decisions) - MAX_DECISIONS)]
    size = sum(each.ByteSize() for each in decisions)
    for oldest in decisions[:-1]:
        if size <= MAX_DECIDED_BYTES:
            break
        size -= oldest.ByteSize()
        oldest.ClearField("edits")
        oldest.reason = oldest.reason[:OLD_REASON]
        size += oldest.ByteSize()


def _pin(state: State, chosen: struct_pb2.Struct) -> None:
    """Keeps the uploaded data that was chosen as it is now, whatever is uploaded under its name later."""
    named = chosen.fields["data"].string_value if "data" in chosen.fields else ""
    for upload in state.uploads:
        if f"uploads/{upload.name}" == named and all(known.name != upload.name for known in state.run.uploads):
            state.run.uploads.add().CopyFrom(upload)


def on_result(state: State, event: event_pb2.Event) -> None:
    """Takes in what a stage's program found."""
    found = event.stage_result
    state.stages[found.stage_id - 1].outcome.CopyFrom(found.outcome)
    _shorten(state, found.stage_id)
    state.run.artifacts.extend(found.outcome.artifacts)
    state.run.report_path = found.report_path or state.run.report_path


def _shorten(state: State, newest: "project_pb2.Stage.ValueType") -> None:
    """Forgets what other stages offered and warned of, the largest first, when all together is too much."""
    found = sorted((stage.outcome.ByteSize(), stage.stage_id) for stage in state.stages)
    size = sum(each for each, _ in found)
    for each, stage_id in reversed(found):
        if size <= MAX_FOUND_BYTES:
            return
        if stage_id != newest:
            outcome = state.stages[stage_id - 1].outcome
            outcome.ClearField("actions")
            outcome.ClearField("issues")
            size -= each - outcome.ByteSize()


def on_ended(state: State, event: event_pb2.Event) -> None:
    """Ends a run, until one of its stages is begun again."""
    state.run.status = event.run_ended.status
    state.run.ended_at.CopyFrom(event.occurred_at)


def on_uploaded(state: State, event: event_pb2.Event) -> None:
    """Lists uploaded data; the newest of a name takes the place of an older one."""
    kept = [upload for upload in state.uploads if upload.name != event.data_uploaded.name]
    newest = project_pb2.DataUpload()
    newest.CopyFrom(event.data_uploaded)
    newest.uploaded_at.CopyFrom(event.occurred_at)
    del state.uploads[:]
    state.uploads.extend([*kept, newest][-MAX_UPLOADS:])


FOLDS: Mapping[str, Callable[[State, event_pb2.Event], None]] = {
    "run_started": on_started,
    "stage_result": on_result,
    "run_ended": on_ended,
    "data_uploaded": on_uploaded,
}
