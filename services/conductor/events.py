"""Stable type names of the event family, and the builder that ties each payload to its one type."""

from typing import TypeAlias

from conductor.v1 import event_pb2, project_pb2, task_pb2

Payload: TypeAlias = (
    event_pb2.TaskStarted
    | event_pb2.TaskProgress
    | event_pb2.WorkerCall
    | event_pb2.WorkerResult
    | event_pb2.TaskCompleted
    | event_pb2.TaskFailed
    | event_pb2.TaskCancelled
    | event_pb2.StageStatusChanged
    | project_pb2.WaitingConfirmation
    | project_pb2.Plan
    | event_pb2.PlanApproved
    | event_pb2.ConfirmationAnswered
    | event_pb2.RunStarted
    | event_pb2.StageResult
    | event_pb2.RunEnded
    | project_pb2.DataUpload
)

# payload field of Event → type name on the wire. Names never change and are no Python paths.
TYPES: dict[str, str] = {
    "task_started": "conductor.task.started",
    "task_progress": "conductor.task.progress",
    "worker_call": "conductor.worker.call",
    "worker_result": "conductor.worker.result",
    "task_completed": "conductor.task.completed",
    "task_failed": "conductor.task.failed",
    "task_cancelled": "conductor.task.cancelled",
    "stage_status": "STAGE_STATUS",
    "waiting_confirmation": "WAITING_CONFIRMATION",
    "plan_proposed": "PLAN_PROPOSED",
    "plan_approved": "PLAN_APPROVED",
    "confirmation_answered": "CONFIRMATION_ANSWERED",
    "run_started": "RUN_STARTED",
    "stage_result": "STAGE_RESULT",
    "run_ended": "RUN_ENDED",
    "data_uploaded": "DATA_UPLOADED",
}

# Types of streams only, never stored.
SNAPSHOT = "conductor.snapshot"
CHECKPOINT = "conductor.checkpoint"

# The last event of a task has one of these types.
TERMINAL_TYPES = frozenset(TYPES[name] for name in ("task_completed", "task_failed", "task_cancelled"))

_FIELD_OF = {
    field.message_type.full_name: field.name
    for field in event_pb2.Event.DESCRIPTOR.fields
    if field.name in TYPES and field.message_type is not None
}


def task_event(
    task: task_pb2.Task, payload: Payload, status: task_pb2.TaskStatus.ValueType, phase: str
) -> event_pb2.Event:
    """Builds an event of a task, without what the actor adds: id, time, actor, and positions."""
    event = event_pb2.Event(
        task_id=task.task_id,
        project_id=task.project_id,
        correlation_id=task.correlation_id,
        status=task_pb2.TaskStatus.Name(status),
        phase=phase,
        scope=task.scope,
    )
    return _with_payload(event, payload)


def project_event(
    project_id: str,
    payload: Payload,
    status: project_pb2.StageStatus.ValueType,
    stage: project_pb2.Stage.ValueType,
) -> event_pb2.Event:
    """Builds an event of a project, without what the actor adds: id, time, actor, correlation id, scope, positions."""
    event = event_pb2.Event(
        project_id=project_id,
        status=project_pb2.StageStatus.Name(status),
        phase=project_pb2.Stage.Name(stage),
    )
    return _with_payload(event, payload)


def _with_payload(event: event_pb2.Event, payload: Payload) -> event_pb2.Event:
    name = _FIELD_OF[payload.DESCRIPTOR.full_name]
    event.type = TYPES[name]
    getattr(event, name).CopyFrom(payload)
    return event
