"""The two state machines behind one shape, so that the actor treats tasks and projects alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from conductor.v1 import project_pb2

from services.conductor.protocol import Decision, Given
from services.conductor.state import project, task, task_state
from services.conductor.store.base import Kind, View


@dataclass(frozen=True, slots=True)
class Machine:
    """How one kind of thing begins, decides, evolves, and is shown.

    Attributes:
        open_call: id of the worker call that has no result yet, empty when there is none.
        first_epoch: fencing token of a new stream; 0 when no replica has to own it.
    """

    initial: Callable[[str], Any]
    decide: Callable[[Any, Any, Given], Decision]
    evolve: Callable[[Any, Any], Any]
    view: Callable[[Any], View]
    finished: Callable[[Any], bool]
    open_call: Callable[[Any], str]
    first_epoch: int

    @property
    def owned(self) -> bool:
        """Whether what comes from inside is for the replica alone that owns it."""
        return self.first_epoch > 0


def _task_finished(state: task_state.TaskState) -> bool:
    return state.task.status in task_state.TERMINAL


def _project_finished(_: project_pb2.ProjectState) -> bool:
    return False  # it can always go back to an earlier stage


def _task_call(state: task_state.TaskState) -> str:
    return "" if state.call is None else state.call.call_id


def _no_call(_: project_pb2.ProjectState) -> str:
    return ""


def _task_view(state: task_state.TaskState) -> View:
    shown = state.task
    return View(
        status=shown.status,
        ended_at=shown.completed_at.ToNanoseconds() if _task_finished(state) else None,
        project_id=shown.project_id,
        desktop_id=shown.desktop_id,
        created_at=shown.created_at.ToNanoseconds(),
        state=shown.SerializeToString(),
    )


def _project_view(state: project_pb2.ProjectState) -> View:
    return View(
        # Which projects a replica has to look after, see `driving`.
        status=state.run.status if state.run.status == project_pb2.RUN_STATUS_RUNNING else 0,
        ended_at=None,
        project_id=state.project_id,
        desktop_id="",
        created_at=state.created_at.ToNanoseconds(),
        state=state.SerializeToString(),
    )


MACHINES: Mapping[Kind, Machine] = {
    "task": Machine(
        task_state.initial, task.decide, task_state.evolve, _task_view, _task_finished, _task_call, first_epoch=1
    ),
    "project": Machine(
        project.initial, project.decide, project.evolve, _project_view, _project_finished, _no_call, first_epoch=0
    ),
}
