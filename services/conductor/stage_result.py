"""What goes into a stage's program and what comes out of it, between its JSON contract and ours. Pure.

The contract is that of `stages/contract.py`; docs/stages.md explains it. A program may be anybody's: nothing it says is
trusted further than its type and size.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from conductor.v1 import error_pb2, event_pb2, project_pb2, terminal_pb2
from google.protobuf import json_format, struct_pb2

from services.common.errors import Reason, typed
from services.conductor import plain
from services.conductor.state import edits
from services.conductor.state.run import folder_of

CONTRACT = "stage/1"
RESULT = "result.json"
STDERR = "program.stderr"
MAX_RESULT_BYTES = 1024 * 1024
MAX_OUTCOME_BYTES = 512 * 1024  # of what is taken from it into the project's state
MAX_ARTIFACTS = 64
MAX_ACTIONS = 600  # a wide table has a choice for each column
MAX_ISSUES = 200
MAX_OPTIONS = 1000
TEXT = 600  # characters of a summary, message or suggestion
SHORT = 200  # of names, labels and values
EXACT = 1024  # of fields and options, which come back as they were offered
MAX_SECONDS = 1e9  # that a program may say it took
MAX_MB = 2**33  # of memory, likewise
MAX_COUNT = 2**53
ACTION_KINDS = frozenset(project_pb2.StageActionKind.keys()[1:])
SEVERITIES = frozenset(project_pb2.IssueSeverity.keys()[1:])
STATUSES = ("OK", "NEEDS_INPUT", "FAILED")
FAILED_EXIT = 2  # of a program that says why it could not do its work; 0 when it did
MIB = 1024 * 1024
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
SHA256 = re.compile(r"[0-9a-f]{64}")
BINARY = "application/octet-stream"
NOTES = "application/json"
# What a browser may be told of a file that a program made; everything else is bytes to it, and runs nothing.
MEDIA_TYPES = frozenset(
    {
        "application/json",
        "application/vnd.apache.parquet",
        "application/zip",
        "image/png",
        "text/csv",
        "text/markdown",
        "text/plain",
    }
)
# How the Terminal ended a program → code of docs/stages.md and what to tell.
ENDS: Mapping[int, tuple[str, str]] = {
    terminal_pb2.COMMAND_END_WALL_TIME: ("STAGE_TIMEOUT", "took longer than the time it may take"),
    terminal_pb2.COMMAND_END_CPU_TIME: ("STAGE_TIMEOUT", "used up the processor time it may use"),
    terminal_pb2.COMMAND_END_MEMORY: ("MEMORY_LIMIT", "needed more memory than it may use"),
    terminal_pb2.COMMAND_END_WORKSPACE: ("DISK_LIMIT", "wrote more to disk than it may"),
    terminal_pb2.COMMAND_END_FILE_SIZE: ("DISK_LIMIT", "wrote a larger file than it may"),
    terminal_pb2.COMMAND_END_PROCESSES: ("STAGE_CRASHED", "started more processes than it may"),
}


class Unusable(Exception):
    """A program ended well and left no result that can be used. The message says what is wrong with it."""


def envelope(call: event_pb2.StageCall, folders: Sequence[str]) -> bytes:
    """Returns what a program is asked, as JSON."""
    run, program = call.run, call.program
    hints = edits.as_dict(run.options.hints)
    if run.options.HasField("budget"):
        hints.setdefault("budget_s", run.options.budget.ToNanoseconds() / 1e9)
    document = {
        "contract": CONTRACT,
        "project_id": call.project_id,
        "run_id": run.run_id,
        "stage": project_pb2.Stage.Name(call.stage_id).removeprefix("STAGE_"),
        "attempt": call.attempt,
        "correlation_id": run.correlation_id,
        "seed": run.options.seed,
        "objective": run.objective,
        "hints": hints,
        "data": run.data,
        "data_folders": list(folders),
        "edits": edits.as_dict(call.edits),
        "limits": {
            "cpu_s": program.cpu_time.ToNanoseconds() / 1e9,
            "wall_s": program.wall_time.ToNanoseconds() / 1e9,
            "mem_mb": memory_of(call) // MIB,
            "threads": max(1, program.threads),
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def memory_of(call: event_pb2.StageCall) -> int:
    """Returns how much memory a stage may use, in bytes."""
    return call.run.options.memory_bytes or call.program.memory_bytes


def ended_badly(call: event_pb2.StageCall, result: terminal_pb2.CommandResult) -> error_pb2.TypedError | None:
    """Returns why a program left no result that counts; None when it should have left one."""
    if result.end == terminal_pb2.COMMAND_END_EXITED and result.exit_code in (0, FAILED_EXIT):
        return None
    if result.end == terminal_pb2.COMMAND_END_CANCELLED:
        text = "The stage's program was killed because the Terminal stopped. It is begun again."
        return typed(Reason.ERROR_REASON_OUTCOME_UNKNOWN, text)
    code, what = ENDS.get(result.end, ("STAGE_CRASHED", "crashed"))
    detail = f"exit code {result.exit_code}" if result.HasField("exit_code") else f"signal {result.signal}"
    hint = "program.stderr among the stage's files has its last words" if code == "STAGE_CRASHED" else "raise the limit"
    return _failed(call, code, f"The program of {_name(call)} {what} ({detail}); {hint}. TransitionTo tries again.")


def read(
    call: event_pb2.StageCall, task_id: str, text: bytes, exit_code: int | None
) -> tuple[project_pb2.StageOutcome, error_pb2.TypedError | None]:
    """Returns what a program found, and why it failed when it did. Raises Unusable.

    Args:
        text: of its result.json.
        exit_code: of the program; None when it is not known any more.
    """
    try:
        return _read(call, task_id, json.loads(text), exit_code)
    except (ValueError, RecursionError) as why:
        raise Unusable(str(why)[:SHORT]) from why


def _read(
    call: event_pb2.StageCall, task_id: str, document: Any, exit_code: int | None
) -> tuple[project_pb2.StageOutcome, error_pb2.TypedError | None]:
    stage = project_pb2.Stage.Name(call.stage_id).removeprefix("STAGE_")
    asked = (CONTRACT, stage, call.run.run_id, call.attempt)
    if not isinstance(document, dict) or asked != tuple(
        document.get(key) for key in ("contract", "stage", "run_id", "attempt")
    ):
        raise ValueError("it is not of this contract, stage and attempt")
    metrics = plain.table(document.get("metrics"))
    outcome = project_pb2.StageOutcome(
        summary=plain.text(document.get("summary"), TEXT),
        needs_input=document.get("status") == "NEEDS_INPUT",
        actions=_actions(plain.rows(document.get("next_actions"), MAX_ACTIONS)),
        issues=[_issue(one) for one in plain.rows(document.get("warnings"), MAX_ISSUES)],
        peak_memory_bytes=int((plain.number(metrics.get("peak_mb"), 0, MAX_MB) or 0) * MIB),
    )
    outcome.cpu_time.FromNanoseconds(int((plain.number(metrics.get("cpu_s"), 0, MAX_SECONDS) or 0) * 1e9))
    outcome.wall_time.FromNanoseconds(int((plain.number(metrics.get("wall_s"), 0, MAX_SECONDS) or 0) * 1e9))
    outcome.artifacts.extend(
        _artifact(call, task_id, one) for one in plain.rows(document.get("artifacts"), MAX_ARTIFACTS)
    )
    if len({file.name for file in outcome.artifacts}) < len(outcome.artifacts):
        raise ValueError("it names a file twice")
    status = document.get("status")
    if status not in STATUSES or exit_code not in (None, FAILED_EXIT if status == "FAILED" else 0):
        raise ValueError("its status is not that of the exit code")  # it may be that of a process before
    if status != "FAILED":
        _check_size(outcome)
        return outcome, None
    issue = _issue(plain.table(document.get("error")))
    outcome.issues.insert(0, issue)
    _check_size(outcome)
    return outcome, _failed(call, issue.code or "STAGE_CRASHED", issue.message, issue)


def _check_size(outcome: project_pb2.StageOutcome) -> None:
    if outcome.ByteSize() > MAX_OUTCOME_BYTES:
        raise ValueError(f"its choices, issues and files take more than {MAX_OUTCOME_BYTES} bytes to tell")


def _actions(given: Iterable[Mapping[str, Any]]) -> list[project_pb2.StageAction]:
    """Reads what a person may do; of two that offer the same field, the first."""
    actions: list[project_pb2.StageAction] = []
    offered: set[str] = set()
    for action in map(_action, given):
        if action.kind not in (edits.CHOOSE, edits.EDIT) or action.field not in offered:
            actions.append(action)
            offered.add(action.field)
    return actions


def no_result(call: event_pb2.StageCall, why: str) -> error_pb2.TypedError:
    """Returns what to say of a program that ended well and left nothing that can be used."""
    return _failed(call, "STAGE_CRASHED", f"The program of {_name(call)} left no result that can be used: {why}.")


def artifact(
    call: event_pb2.StageCall, task_id: str, name: str, title: str, media_type: str
) -> project_pb2.RunArtifact:
    """Returns a file of a stage; its size and SHA-256 come when it is stored."""
    return project_pb2.RunArtifact(
        stage_id=call.stage_id,
        task_id=task_id,
        name=name,
        title=title,
        media_type=media_type if media_type in MEDIA_TYPES else BINARY,
        attempt=call.attempt,
    )


def _artifact(call: event_pb2.StageCall, task_id: str, given: Mapping[str, Any]) -> project_pb2.RunArtifact:
    name, sha256 = str(given.get("name")), str(given.get("sha256"))
    if not NAME.fullmatch(name) or not SHA256.fullmatch(sha256) or name in (RESULT, STDERR):
        raise ValueError("it names a file that none may have, or without its SHA-256")
    made = artifact(call, task_id, name, plain.text(given.get("title"), SHORT), str(given.get("media_type")))
    made.sha256, made.size_bytes = sha256, int(plain.number(given.get("bytes"), 0, MAX_COUNT) or 0)
    return made


def _action(given: Mapping[str, Any]) -> project_pb2.StageAction:
    kind = f"STAGE_ACTION_KIND_{given.get('kind')}"
    if kind not in ACTION_KINDS:
        raise ValueError("it offers an action of a kind that there is not")
    action = project_pb2.StageAction(
        id=plain.text(given.get("id"), SHORT),
        label=plain.text(given.get("label"), TEXT),
        kind=project_pb2.StageActionKind.Value(kind),
        field=plain.exact(given.get("field"), EXACT),
        options=[plain.exact(one, EXACT) for one in plain.sequence(given.get("options"), MAX_OPTIONS)],
        many=given.get("many") is True,
        required=given.get("required") is True,
    )
    for bound in ("minimum", "maximum"):
        if (number := plain.number(given.get(bound))) is not None:
            setattr(action, bound, number)
    if (default := _default(given.get("default"))) is not None:
        json_format.ParseDict(default, action.default_value)
    return action


def _default(value: Any) -> Any:
    """Returns a default that can be shown: a text, number, truth value, or list of such. None when it is none."""
    if isinstance(value, list):
        return [one for one in map(_default, value[:MAX_OPTIONS]) if one is not None and not isinstance(one, list)]
    if isinstance(value, bool):
        return value
    return plain.exact(value, EXACT) if isinstance(value, str) else plain.number(value)


def _issue(given: Mapping[str, Any]) -> project_pb2.StageIssue:
    severity = f"ISSUE_SEVERITY_{given.get('severity')}"
    known = severity in SEVERITIES
    issue = project_pb2.StageIssue(
        code=plain.text(given.get("code"), 64),
        severity=project_pb2.IssueSeverity.Value(severity) if known else project_pb2.ISSUE_SEVERITY_WARN,
        message=plain.text(given.get("message"), TEXT),
        column=plain.text(given.get("column"), SHORT),
        value=plain.text(given.get("value"), SHORT),
        suggestion=plain.text(given.get("suggestion"), TEXT),
    )
    for name in ("row", "count"):
        if (number := plain.number(given.get(name), 0, MAX_COUNT)) is not None:
            setattr(issue, name, int(number))
    return issue


def _failed(
    call: event_pb2.StageCall, code: str, message: str, issue: project_pb2.StageIssue | None = None
) -> error_pb2.TypedError:
    details: dict[str, object] = {"code": code, "stage_id": project_pb2.Stage.Name(call.stage_id)}
    text = message or f"{_name(call)} failed with {code}."
    if issue is not None:
        details |= {name: getattr(issue, name) for name in ("column", "value") if getattr(issue, name)}
        details |= {name: getattr(issue, name) for name in ("row", "count") if issue.HasField(name)}
        text = f"{text} {issue.suggestion}".strip()
    return typed(Reason.ERROR_REASON_STAGE_FAILED, text, **details)


def _name(call: event_pb2.StageCall) -> str:
    return project_pb2.Stage.Name(call.stage_id).removeprefix("STAGE_")


def path_of(file: project_pb2.RunArtifact) -> str:
    """Returns where a stage's file lies in the folder of the run."""
    return f"{folder_of(file.stage_id)}/{file.name}"


def notes(call: event_pb2.StageCall) -> Sequence[project_pb2.RunArtifact]:
    """Returns what earlier attempts at the stage noted for later ones: the newest of each JSON file but its result."""
    files = {
        file.name: file
        for file in call.run.artifacts
        if file.stage_id == call.stage_id and file.media_type == NOTES and file.name != RESULT
    }
    return [file for file in files.values() if file.size_bytes <= MAX_RESULT_BYTES]


def chosen_data(call: event_pb2.StageCall) -> Sequence[project_pb2.DataUpload]:
    """Returns the uploaded data that a stage may read: while data is chosen, all that the run or a person named."""
    named = {call.run.data, *(_string(decision.edits, edits.DATA_FIELD) for decision in call.run.decisions)}
    named.add(_string(call.edits, edits.DATA_FIELD))
    return [upload for upload in call.run.uploads if f"{edits.UPLOADS}{upload.name}" in named]


def _string(values: struct_pb2.Struct, key: str) -> str:
    # To look up what is not there would put it there (protobuf's maps), and the call would be another one.
    return values.fields[key].string_value if key in values.fields else ""
