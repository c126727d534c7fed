"""What Conductor says → lines for a person. Text of workers and callers cannot steer the terminal."""

import re
from collections.abc import Callable
from typing import Any

from conductor.v1 import error_pb2, event_pb2, project_pb2, report_writer_pb2, researcher_pb2, task_pb2, terminal_pb2
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from client.visible import output_lines, visible

OBJECTIVE_CHARS = 80
FINDINGS = "findings.json"  # the file of a task that holds what its research found
SHOWN_OPTIONS = 12  # of a choice
OUTPUT_CHARS = 200  # of a piece of output, on the one line of its event
# Controls, bidirectional and zero-width characters, and line ends of any kind.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff]+")
_PREFIXES = re.compile(
    r"^(TASK_STATUS|STAGE_STATUS|STAGE_ACTION_KIND|STAGE|RUN_STATUS|ISSUE_SEVERITY|CAPABILITY|ERROR_REASON|COMMAND_END|SOURCE_KIND|CITATION_STATE|GAP_KIND"
    r"|RESEARCH_OUTCOME)_"
)


def plain(text: str) -> str:
    """Returns the text on one line, without anything a terminal would act on."""
    return _UNSAFE.sub(" ", text).strip()


def shorten(text: str, limit: int = OBJECTIVE_CHARS) -> str:
    """Returns the text plain and at most `limit` characters long."""
    text = plain(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def enum_name(kind: Any, value: int) -> str:
    """Returns a value's name without its prefix, or its number when it is newer than this client."""
    try:
        return _PREFIXES.sub("", kind.Name(value))
    except ValueError:
        return str(value)


def stage_name(stage: int) -> str:
    """Returns the short name of a stage."""
    return enum_name(project_pb2.Stage, stage)


def clock(time: Timestamp) -> str:
    """Returns the time of day in UTC, empty when there is none."""
    return iso(time)[11:19]


def iso(time: Timestamp) -> str:
    """Returns a time in UTC, to the second; empty when there is none."""
    try:
        return time.ToJsonString()[:19] + "Z" if time.seconds else ""
    except (ValueError, OverflowError):  # outside of what the type allows
        return ""


def failure(error: error_pb2.TypedError) -> str:
    """Returns an error on one line."""
    return plain(f"{enum_name(error_pb2.ErrorReason, error.reason)}: {error.message}")


def event_line(event: event_pb2.Event) -> str:
    """Returns an event as one line: sequence, time, type, what it is about, status, what happened."""
    about, status = event.task_id or event.project_id, _PREFIXES.sub("", event.status)
    parts = (str(event.sequence), clock(event.occurred_at), event.type, about, status, summary(event))
    return "  ".join(plain(part) for part in parts if part)


def step_lines(event: event_pb2.Event) -> list[str]:
    """Returns an event for somebody who follows one task: time, type, what happened; below it what a command wrote, or
    what a research read and judged."""
    kind = plain(event.type.removeprefix("conductor."))
    output = event.task_progress.output
    said = plain(event.task_progress.message) if output else summary(event)
    research = event.task_progress.research
    named = [*map(read_line, research.read), *map(judged_line, research.judged)]
    first = "  ".join(part for part in (clock(event.occurred_at), f"{kind:<14}", said) if part)
    return [first, *output_lines(output), *(f"    {line}" for line in named)]


def read_line(read: researcher_pb2.SourceRead) -> str:
    """Returns what was read on one line: `.` before it, or `!` when it was of no use."""
    return f"! {plain(read.uri)}: {shorten(read.gap.detail)}" if read.HasField("gap") else f". {plain(read.uri)}"


def judged_line(judged: researcher_pb2.PassageJudged) -> str:
    """Returns what became of a passage on one line: `+` before one that was kept as evidence, `-` before others."""
    return f"{'+' if judged.kept else '-'} {plain(judged.uri)}: {shorten(judged.beginning)} ({shorten(judged.why)})"


def summary(event: event_pb2.Event) -> str:
    """Returns what an event says beyond its envelope, on one line."""
    kind = event.WhichOneof("payload")
    return plain(_SUMMARIES[kind](getattr(event, kind))) if kind is not None else ""


def task_line(task: task_pb2.Task) -> str:
    """Returns a task as one line: id, status, when, report or error, objective."""
    status = enum_name(task_pb2.TaskStatus, task.status)
    ended = failure(task.error) if task.HasField("error") else task.report_path
    parts = (task.task_id, status, iso(task.created_at), ended, shorten(task.objective))
    return "  ".join(plain(part) for part in parts if part)


def artifact_line(file: report_writer_pb2.Artifact) -> str:
    """Returns a file of a task on one line: its name, and its size or why it is missing."""
    if file.HasField("error"):
        return f"{plain(file.name)} is missing, {failure(file.error)}"
    return f"{plain(file.name)}, {file.size_bytes:,} bytes"


def state_lines(state: project_pb2.ProjectState) -> list[str]:
    """Returns a project as lines: what is current, each stage, what waits for a person."""
    lines = [_state_line(state)]
    if state.HasField("run"):
        lines.append(run_line(state.run))
    lines += [f"{'>' if stage.stage_id == state.current_stage else ' '} {_stage_line(stage)}" for stage in state.stages]
    if state.HasField("waiting_confirmation"):
        lines.append(plain(_waiting(state.waiting_confirmation)))
        lines += [f"    {issue_line(issue)}" for issue in state.waiting_confirmation.issues]
        lines += [f"    {choice_line(choice)}" for choice in state.waiting_confirmation.choices if choice.field]
    current = next((stage for stage in state.stages if stage.stage_id == state.current_stage), None)
    if current is not None and current.status == project_pb2.STAGE_STATUS_FAILED:  # TransitionTo takes these
        lines += [f"    {choice_line(choice)}" for choice in current.outcome.actions if choice.field]
    if state.plan_pending:
        lines.append(plain(_plan(state.plan)))
    return lines


def run_line(run: project_pb2.Run) -> str:
    """Returns a run on one line: its status, its id, what it is for, its report."""
    status = enum_name(project_pb2.RunStatus, run.status)
    parts = (f"run {run.run_id}", status, shorten(run.objective), run.data, run.report_path)
    return "  ".join(plain(part) for part in parts if part)


def issue_line(issue: project_pb2.StageIssue) -> str:
    """Returns what a stage noticed on one line."""
    return plain(
        f"{enum_name(project_pb2.IssueSeverity, issue.severity)} {issue.code}: {issue.message} {issue.suggestion}"
    )


def choice_line(choice: project_pb2.StageAction) -> str:
    """Returns what may be chosen at a gate on one line, as --set takes it."""
    if choice.kind == project_pb2.STAGE_ACTION_KIND_BACK:
        return plain(f"transition {choice.field}: {choice.label}")
    values = "|".join(choice.options[:SHOWN_OPTIONS]) + ("|…" if len(choice.options) > SHOWN_OPTIONS else "")
    default = json_format.MessageToJson(choice.default_value, indent=None) if choice.HasField("default_value") else ""
    now = f" (now {shorten(default)})" if default else ""
    needed = " NEEDED" if choice.required else ""
    return plain(f"--set {choice.field}={values or '…'}{now}{needed}: {choice.label}")


def upload_line(upload: project_pb2.DataUpload) -> str:
    """Returns uploaded data on one line, by the name that a run calls it."""
    return plain(f"uploads/{upload.name}  {upload.size_bytes} bytes  sha256 {upload.sha256}")


def file_line(artifact: project_pb2.RunArtifact) -> str:
    """Returns a file of a run on one line: its task and name, which the command `artifact` takes, and what it is."""
    stale = "  stale" if artifact.stale else ""
    return plain(f"{artifact.task_id} {artifact.name}  {artifact.size_bytes} bytes  {artifact.title}{stale}")


def _state_line(state: project_pb2.ProjectState) -> str:
    return f"{plain(state.project_id)}  {stage_name(state.current_stage)}  as of {state.as_of_sequence}"


def _stage_line(stage: project_pb2.StageState) -> str:
    said = failure(stage.error) if stage.HasField("error") else plain(stage.message)
    return f"{stage_name(stage.stage_id):<12}  {enum_name(project_pb2.StageStatus, stage.status):<20}  {said}".rstrip()


def _progress(fact: event_pb2.TaskProgress) -> str:
    shown = visible(b"".join(chunk.data for chunk in fact.output))
    return f"{fact.message} {shown if len(shown) <= OUTPUT_CHARS else f'…{shown[-OUTPUT_CHARS:]}'}"


def _call(fact: event_pb2.WorkerCall) -> str:
    again = f" (attempt {fact.attempt})" if fact.attempt > 1 else ""
    return f"{enum_name(task_pb2.Capability, fact.capability)}: {fact.summary}{again}"


def _result(fact: event_pb2.WorkerResult) -> str:
    took = fact.duration.seconds + fact.duration.nanos / 1e9
    parts = (_outcome(fact), failure(fact.error) if fact.HasField("error") else "")
    what = "; ".join(part for part in parts if part)
    return f"{enum_name(task_pb2.Capability, fact.capability)}: {what} ({took:.2f} s)"


def _outcome(fact: event_pb2.WorkerResult) -> str:
    kind = fact.WhichOneof("result")
    if kind == "research":
        ended = enum_name(researcher_pb2.ResearchOutcome, fact.research.outcome).lower()
        return f"{ended}, {len(fact.research.findings)} findings, {len(fact.research.gaps)} gaps"
    if kind == "stage":
        return fact.stage.summary
    if kind == "command":
        return "; ".join((_command_end(fact.command.result), *map(artifact_line, fact.command.artifacts)))
    return fact.report.path


def _command_end(result: terminal_pb2.CommandResult) -> str:
    if result.end == terminal_pb2.COMMAND_END_EXITED:
        return f"exited with {result.exit_code}"
    return enum_name(terminal_pb2.CommandEnd, result.end)


def _stage(fact: event_pb2.StageStatusChanged) -> str:
    said = f": {fact.message}" if fact.message else ""
    return f"{stage_name(fact.stage_id)} {enum_name(project_pb2.StageStatus, fact.status)}{said}"


def _waiting(fact: project_pb2.WaitingConfirmation) -> str:
    actions = f" Next: {'; '.join(fact.next_actions)}" if fact.next_actions else ""
    return f"{stage_name(fact.stage_id)} waits, confirmation {fact.confirmation_id}: {fact.summary}{actions}"


def _plan(fact: project_pb2.Plan) -> str:
    steps = "".join(f" {number}. {step}" for number, step in enumerate(fact.steps, 1))
    return f"{stage_name(fact.stage_id)} plan {fact.plan_id}: {fact.summary}{steps}"


def _answered(fact: event_pb2.ConfirmationAnswered) -> str:
    verdict = "approved" if fact.approved else f"rejected: {fact.reason}"
    return f"{stage_name(fact.stage_id)} {verdict}"


def _stage_result(fact: event_pb2.StageResult) -> str:
    files = len(fact.outcome.artifacts)
    return f"{stage_name(fact.stage_id)}: {fact.outcome.summary} ({len(fact.outcome.issues)} issues, {files} files)"


def _run_ended(fact: event_pb2.RunEnded) -> str:
    return f"run {fact.run_id} {enum_name(project_pb2.RunStatus, fact.status)} {fact.reason}"


def _snapshot(fact: event_pb2.Snapshot) -> str:
    return task_line(fact.task) if fact.HasField("task") else _state_line(fact.project)


_SUMMARIES: dict[str, Callable[[Any], str]] = {
    "task_started": lambda fact: shorten(fact.objective),
    "task_progress": _progress,
    "worker_call": _call,
    "worker_result": _result,
    "task_completed": lambda fact: str(fact.report_path),
    "task_failed": lambda fact: failure(fact.error),
    "task_cancelled": lambda fact: str(fact.reason),
    "stage_status": _stage,
    "waiting_confirmation": _waiting,
    "plan_proposed": _plan,
    "plan_approved": lambda fact: f"{stage_name(fact.stage_id)} plan {fact.plan_id}",
    "confirmation_answered": _answered,
    "run_started": lambda fact: run_line(fact.run),
    "stage_result": _stage_result,
    "run_ended": _run_ended,
    "data_uploaded": upload_line,
    "snapshot": _snapshot,
}
