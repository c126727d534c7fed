"""Follows one task from its first event to its last."""

from conductor.v1 import task_pb2

from client.api import ConductorClient
from client.output import FAILED, OK, Output
from client.show import FINDINGS, failure, plain, step_lines

ENDINGS = ("conductor.task.completed", "conductor.task.failed", "conductor.task.cancelled")


def watch(client: ConductorClient, task_id: str, output: Output) -> int:
    """Writes a task's whole story as it happens, then the task itself; returns the exit code it deserves.

    Raises ConductorError, and KeyboardInterrupt after a note that says how to come back: the task goes on.
    """
    try:
        with output.progress():
            for event in client.events(after_sequence=0, task_id=task_id):
                output.message(event, step_lines(event))
                if event.type in ENDINGS:
                    break
    except KeyboardInterrupt:
        output.note(f"Stopped watching. The task goes on: conductor watch {plain(task_id)}")
        raise
    return _ended(client.get_task(task_id), output)


def _ended(task: task_pb2.Task, output: Output) -> int:
    if task.status == task_pb2.TASK_STATUS_COMPLETED:
        lines = [f"Completed: {plain(task.report_path)}", f"Read it: conductor report {task.task_id}"]
        if any(file.name == FINDINGS for file in task.artifacts):
            lines.append(f"Check its citations again: conductor verify {task.task_id}")
        output.message(task, lines)
        return OK
    output.message(task, [failure(task.error)])
    return FAILED
