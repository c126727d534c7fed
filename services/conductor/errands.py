"""Between a project and the tasks of its stages: to whom an errand goes, and as what."""

from conductor.v1 import conductor_pb2

from services.conductor.mailbox import Caller
from services.conductor.protocol import CancelStage, Command, Errand, Submit, SubmitStage
from services.conductor.store.base import Key

WHY = "The run goes another way."


def addressed(errand: Errand) -> tuple[Key, Command, Caller]:
    """Returns whose mailbox an errand goes to, the command it is there, and on whose behalf."""
    if isinstance(errand, SubmitStage):
        command = Submit(errand.request, stage=errand.stage)
        return ("task", errand.task_id), command, Caller(errand.stage.run.correlation_id)
    if isinstance(errand, CancelStage):
        cancel = conductor_pb2.CancelTaskRequest(task_id=errand.task_id, reason=WHY)
        return ("task", errand.task_id), cancel, Caller(correlation_id="")
    task = errand.task
    return ("project", task.project_id), errand.ended, Caller(task.correlation_id, task.scope)
