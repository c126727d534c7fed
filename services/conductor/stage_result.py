"""What goes into a stage's program and what comes out of it, between its JSON contract and ours. Pure.

The contract is that of `stages/contract.py`; docs/stages.md explains it. A program may be anybody's: nothing it says is
trusted further than its type and size.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from conductor.v1 import error_pb2, event_pb2, project_pb2, terminal_pb2
from google.protobuf import json_format, struct_pb2

from services.common.errors import Reason, typed
from services.conductor.pieces import GROWTH
from services.conductor.protocol import MAX_OUTPUT_PROGRESS
from services.conductor.state import edits
from services.conductor.state.run import folder_of

CONTRACT = "stage/1"
RESULT = "result.json"
MAX_RESULT_BYTES = 1024 * 1024
MAX_ARTIFACTS = 64
MAX_ACTIONS = 600  # a wide table has a choice for each column
MAX_ISSUES = 200
MAX_OPTIONS = 1000
TEXT = 600  # characters of a summary, message or suggestion
SHORT = 200  # of names, labels and values
LINE_BYTES = 64 * 1024  # of a line of progress; a longer one is none
ACTION_KINDS = frozenset(project_pb2.StageActionKind.keys())
SEVERITIES = frozenset(project_pb2.IssueSeverity.keys())
EXIT_CODES = (0, 2)  # with a result: it did its work, or says why not
MIB = 1024 * 1024
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
SHA256 = re.compile(r"[0-9a-f]{64}")
BINARY = "application/octet-stream"
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


def envelope(call: event_pb2.StageCall, project_id: str, folders: Sequence[str]) -> bytes:
    """Returns what a program is asked, as JSON."""
    run, program = call.run, call.program
    hints = edits.as_dict(run.options.hints)
    if run.options.HasField("budget"):
        hints.setdefault("budget_s", run.options.budget.ToNanoseconds() / 1e9)
    document = {
        "contract": CONTRACT,
        "project_id": project_id,
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
    if result.end == terminal_pb2.COMMAND_END_EXITED and result.exit_code in EXIT_CODES:
        return None
    if result.end == terminal_pb2.COMMAND_END_CANCELLED:
        text = "The stage's program was killed because the Terminal stopped. It is begun again."
        return typed(Reason.ERROR_REASON_OUTCOME_UNKNOWN, text)
    code, what = ENDS.get(result.end, ("STAGE_CRASHED", "crashed"))
    detail = f"exit code {result.exit_code}" if result.HasField("exit_code") else f"signal {result.signal}"
    hint = "program.stderr among the stage's files has its last words" if code == "STAGE_CRASHED" else "raise the limit"
    return _failed(call, code, f"The program of {_name(call)} {what} ({detail}); {hint}. TransitionTo tries again.")


def read(
    call: event_pb2.StageCall, task_id: str, text: bytes
) -> tuple[project_pb2.StageOutcome, error_pb2.TypedError | None]:
    """Returns what a program found, and why it failed when it did. Raises ValueError when it left no result.

    Args:
        text: of its result.json.
    """
    document = json.loads(text)
    stage = project_pb2.Stage.Name(call.stage_id).removeprefix("STAGE_")
    asked = (CONTRACT, stage, call.run.run_id, call.attempt)
    if not isinstance(document, dict) or asked != tuple(
        document.get(key) for key in ("contract", "stage", "run_id", "attempt")
    ):
        raise ValueError("it is not of this contract, stage and attempt")
    metrics = _table(document.get("metrics"))
    outcome = project_pb2.StageOutcome(
        summary=_text(document.get("summary"), TEXT),
        needs_input=document.get("status") == "NEEDS_INPUT",
        actions=[_action(one) for one in _rows(document.get("next_actions"), MAX_ACTIONS)],
        issues=[_issue(one) for one in _rows(document.get("warnings"), MAX_ISSUES)],
        peak_memory_bytes=int(_number(metrics.get("peak_mb")) * MIB),
    )
    outcome.cpu_time.FromNanoseconds(int(_number(metrics.get("cpu_s")) * 1e9))
    outcome.wall_time.FromNanoseconds(int(_number(metrics.get("wall_s")) * 1e9))
    outcome.artifacts.extend(_artifact(call, task_id, one) for one in _rows(document.get("artifacts"), MAX_ARTIFACTS))
    if document.get("status") in ("OK", "NEEDS_INPUT"):
        return outcome, None
    if document.get("status") != "FAILED":
        raise ValueError("it has no status")
    issue = _issue(_table(document.get("error")))
    outcome.issues.insert(0, issue)
    return outcome, _failed(call, issue.code or "STAGE_CRASHED", issue.message, issue)


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
    if not NAME.fullmatch(name) or not SHA256.fullmatch(sha256) or name == RESULT:
        raise ValueError("it names a file that none may have, or without its SHA-256")
    made = artifact(call, task_id, name, _text(given.get("title"), SHORT), str(given.get("media_type")))
    made.sha256, made.size_bytes = sha256, int(_number(given.get("bytes")))
    return made


def _action(given: Mapping[str, Any]) -> project_pb2.StageAction:
    kind = f"STAGE_ACTION_KIND_{given.get('kind')}"
    if kind not in ACTION_KINDS:
        raise ValueError("it offers an action of a kind that there is not")
    action = project_pb2.StageAction(
        id=_text(given.get("id"), SHORT),
        label=_text(given.get("label"), TEXT),
        kind=project_pb2.StageActionKind.Value(kind),
        field=str(given.get("field", ""))[:1024],
        options=[str(one)[:1024] for one in _list(given.get("options"))[:MAX_OPTIONS]],
        many=given.get("many") is True,
        required=given.get("required") is True,
    )
    for bound in ("minimum", "maximum"):
        if bound in given:
            setattr(action, bound, _number(given[bound]))
    if given.get("default") is not None:
        json_format.ParseDict(given["default"], action.default_value)
    return action


def _issue(given: Mapping[str, Any]) -> project_pb2.StageIssue:
    severity = f"ISSUE_SEVERITY_{given.get('severity')}"
    known = severity in SEVERITIES
    issue = project_pb2.StageIssue(
        code=_text(given.get("code"), 64),
        severity=project_pb2.IssueSeverity.Value(severity) if known else project_pb2.ISSUE_SEVERITY_WARN,
        message=_text(given.get("message"), TEXT),
        column=_text(given.get("column"), SHORT),
        value=_text(given.get("value"), SHORT),
        suggestion=_text(given.get("suggestion"), TEXT),
    )
    for name in ("row", "count"):
        if name in given:
            setattr(issue, name, int(_number(given[name])))
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


def _text(value: Any, most: int) -> str:
    """Returns a text without control characters but tab and line ends, at most so many characters."""
    kept = "".join(c for c in str(value or "") if c in "\t\n" or (c.isprintable() and c != "\x7f"))
    return kept[:most]


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
    return max(0.0, float(value)) if good else 0.0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(value: Any, most: int) -> list[Mapping[str, Any]]:
    return [_table(one) for one in _list(value)[:most]]


class Lines:
    """Reads what a program says of its progress, one JSON object a line; keeps the newest until it is told.

    Args:
        interval: seconds the first piece lasts.
    """

    def __init__(self, call_id: str, interval: float) -> None:
        self._call_id = call_id
        self._interval = interval
        self._told = 0
        self._rest = b""
        self._newest: project_pb2.StageProgress | None = None

    @property
    def pause(self) -> float | None:
        """Seconds until the next piece; None when there is nothing to tell before the end."""
        if self._newest is None or self._told >= MAX_OUTPUT_PROGRESS - 1:
            return None
        return float(self._interval * GROWTH**self._told)

    def add(self, data: bytes) -> None:
        """Takes what was written to standard output."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest if len(rest) <= LINE_BYTES else b""
        for line in lines:
            if (progress := _progress(line)) is not None:
                self._newest = progress

    def take(self, last: bool = False) -> event_pb2.TaskProgress | None:
        """Returns the next piece, None when there is none. `last` changes nothing: no line is half a one."""
        newest, self._newest = self._newest, None
        if newest is None:
            return None
        self._told += 1
        message = newest.detail or f"{newest.percent:.0f} %: {newest.phase}"
        return event_pb2.TaskProgress(message=message, call_id=self._call_id, stage=newest)


def _progress(line: bytes) -> project_pb2.StageProgress | None:
    try:
        given = _table(json.loads(line))
    except ValueError:  # also of bytes that are no UTF-8: a library of the program may print what it likes
        return None
    if given.get("event") != "progress":
        return None
    progress = project_pb2.StageProgress(
        percent=min(100.0, _number(given.get("pct"))),
        phase=_text(given.get("phase"), SHORT),
        detail=_text(given.get("detail"), SHORT),
        candidate=_text(given.get("candidate"), SHORT),
    )
    for name in ("done", "total"):
        if name in given:
            setattr(progress, name, int(min(_number(given[name]), 2**31)))
    if isinstance(given.get("best"), int | float):
        progress.best = float(given["best"])
    if "budget_share" in given:
        progress.budget_share = _number(given["budget_share"])
    return progress


def path_of(file: project_pb2.RunArtifact) -> str:
    """Returns where a stage's file lies in the folder of the run."""
    return f"{folder_of(file.stage_id)}/{file.name}"


def chosen_data(call: event_pb2.StageCall) -> Sequence[project_pb2.DataUpload]:
    """Returns the uploaded data that a stage may read: while data is chosen, all that the run or a person named."""
    named = {call.run.data, *(str(decision.edits.fields["data"].string_value) for decision in call.run.decisions)}
    named.add(_string(call.edits, edits.DATA_FIELD))
    return [upload for upload in call.uploads if f"{edits.UPLOADS}{upload.name}" in named]


def _string(values: struct_pb2.Struct, key: str) -> str:
    return values.fields[key].string_value if key in values.fields else ""
