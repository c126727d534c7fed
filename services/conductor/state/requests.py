"""What each step of a task asks its worker. Pure."""

import shlex
from typing import Any

from conductor.v1 import event_pb2, report_writer_pb2, researcher_pb2, task_pb2, terminal_pb2

from services.conductor.protocol import Place, WorkerRequest
from services.conductor.state.task_state import Step, TaskState

Capability = task_pb2.Capability

VERSION = "0.1.0"
RESEARCH_TIMEOUT_S = 60.0  # when hints.research.timeout is absent
REPORT_TIMEOUT_S = 30.0
GRACE_S = 5.0  # a worker may take this much longer than its own budget before the call is given up
STAGE_GRACE_S = 600.0  # for a stage's files to be brought to its program, and what it left to be stored
LAST_PART = 0.25  # of a call's time, at most, that a research leaves for giving its result and for the report
SUMMARY_CHARS = 500


def summary_of(step: Step, objective: str, hints: task_pb2.Hints) -> str:
    """Returns what a step asks for, as a person would say it, at most 500 characters."""
    if step.capability == Capability.CAPABILITY_REPORT_WRITER:
        return "Write the report."
    if step.stage:
        return objective[:SUMMARY_CHARS]
    if step.command_index is None:
        return objective[:SUMMARY_CHARS]
    command = hints.commands[step.command_index]
    return (shlex.join(command.argv) if command.argv else command.script)[:SUMMARY_CHARS]


def timeout_for(step: Step, state: TaskState, remaining: float) -> float:
    """Returns the seconds a call may take: the step's own limit, never more than what remains of the task."""
    if step.capability == Capability.CAPABILITY_REPORT_WRITER:
        return min(REPORT_TIMEOUT_S, remaining)
    if state.stage is not None:
        return min(_seconds(state.stage.program.wall_time, remaining) + STAGE_GRACE_S, remaining)
    if step.command_index is None:
        return min(_research_seconds(state.hints.research) + GRACE_S, remaining)
    wall_time = state.hints.commands[step.command_index].limits.wall_time
    return min(_seconds(wall_time, remaining) + GRACE_S, remaining)


def _seconds(duration: Any, default: float) -> float:
    nanoseconds: int = duration.ToNanoseconds()
    return nanoseconds / 1e9 if nanoseconds else default


def _research_seconds(hints: task_pb2.ResearchHints) -> float:
    return _seconds(hints.budget.wall_time, _seconds(hints.timeout, RESEARCH_TIMEOUT_S))


def request_for(step: Step, call_id: str, state: TaskState, timeout: float) -> WorkerRequest:
    """Returns the request a step sends to its worker.

    Args:
        timeout: seconds the call may take, as `timeout_for` gives them.
    """
    if step.capability == Capability.CAPABILITY_REPORT_WRITER:
        return _write_report(state) if state.stage is None else _write_run_report(state, state.stage)
    if state.stage is not None:
        return state.stage
    if step.command_index is None:
        return _research(call_id, state, timeout)
    return terminal_pb2.RunRequest(
        call_id=call_id,
        command=state.hints.commands[step.command_index],
        correlation_id=state.task.correlation_id,
    )


def place_for(step: Step, attempt: int, state: TaskState) -> Place | None:
    """Returns where what a command or a stage leaves is kept; no two calls of a task have the same place."""
    if step.stage:
        return Place(state.task.task_id, "program")
    if step.command_index is None:
        return None
    again = f"-attempt-{attempt}" if attempt > 1 else ""
    return Place(state.task.task_id, f"command-{step.command_index + 1}{again}")


def _research(call_id: str, state: TaskState, timeout: float) -> researcher_pb2.ResearchRequest:
    hints = state.hints.research
    budget = researcher_pb2.ResearchBudget()
    budget.CopyFrom(hints.budget)
    budget.max_findings = hints.budget.max_findings or hints.max_findings
    # A research that is out of time still gives what it found. One that is cut off gives nothing.
    seconds = min(_research_seconds(hints), timeout - min(GRACE_S, timeout * LAST_PART))
    budget.wall_time.FromNanoseconds(max(1, int(seconds * 1e9)))
    return researcher_pb2.ResearchRequest(
        objective=state.task.objective,
        sources=hints.sources,
        budget=budget,
        correlation_id=state.task.correlation_id,
        research_id=call_id,
        mode=hints.mode,
        kinds=hints.kinds,
        web=hints.web,
    )


def _write_report(state: TaskState) -> report_writer_pb2.WriteReportRequest:
    """Everything in it comes from the log, so that a repeat after a crash is the same request."""
    task = state.task
    request = report_writer_pb2.WriteReportRequest(
        task_id=task.task_id, objective=task.objective, gaps=state.gaps, provenance=_provenance(state)
    )
    for result in state.results:
        if result.WhichOneof("result") == "research":
            _add_research(request, result)
        elif result.WhichOneof("result") == "command":
            request.commands.append(result.command)
    return request


def _provenance(state: TaskState) -> report_writer_pb2.Provenance:
    task = state.task
    return report_writer_pb2.Provenance(
        correlation_id=task.correlation_id,
        project_id=task.project_id,
        created_at=task.created_at,
        conductor_version=VERSION,
        workers=state.runs,
    )


def _write_run_report(state: TaskState, stage: event_pb2.StageCall) -> report_writer_pb2.WriteRunReportRequest:
    return report_writer_pb2.WriteRunReportRequest(
        task_id=state.task.task_id,
        run=stage.run,
        stage_id=stage.stage_id,
        outcome=state.outcome,
        provenance=_provenance(state),
    )


def _add_research(request: report_writer_pb2.WriteReportRequest, result: event_pb2.WorkerResult) -> None:
    found = result.research
    request.research_id = result.call_id
    if found.outcome in researcher_pb2.ResearchOutcome.values():  # a newer Researcher may have another
        request.outcome = found.outcome
    request.findings.extend(found.findings)
    request.gaps.extend(found.gaps)
    request.answer.extend(found.answer)
    request.sub_questions.extend(found.sub_questions)
    request.contradictions.extend(found.contradictions)
    request.searched.extend(found.searched)
    if found.HasField("usage"):
        request.usage.CopyFrom(found.usage)
