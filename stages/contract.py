"""What every stage program shares: the envelope it is given, the result it leaves, and how it fails.

A stage is a program: `python -m stages.<name> ENVELOPE.json`, run in the folder of the run. It reads what earlier
stages left there, writes its own files into its own folder (`train/…`), and last `result.json` beside them. Its
standard output is one JSON object a line, each an event of its progress. Exit code 0: there is a result, status OK or
NEEDS_INPUT; 2: there is a result, status FAILED; anything else is a crash. docs/stages.md has the whole contract.
"""

import contextlib
import hashlib
import json
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

CONTRACT = "stage/1"
STAGES = (
    "PARSE_INTENT",
    "DATA_SOURCE",
    "PROFILE_DATA",
    "PREPROCESS",
    "MODEL_SELECT",
    "TRAIN",
    "REVIEW_EDIT",
    "EXPORT",
)
MAX_RESULT_BYTES = 1024 * 1024
MAX_SUMMARY = 600  # characters
MAX_ISSUES = 200  # in one result; what is more is counted in the last one
RESULT = "result.json"
FAILED_EXIT = 2
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")  # of an artefact's file
MIB = 1024 * 1024
PROGRESS_S = 0.2  # between two events of progress, at least

Json: TypeAlias = Any
Severity = Literal["INFO", "WARN", "ERROR"]
Kind = Literal["CONFIRM", "CHOOSE", "EDIT", "BACK", "ABORT"]


@dataclass(frozen=True, slots=True)
class Issue:
    """Something a person should know: what is odd or wrong, where, and what to do about it.

    Attributes:
        code: one of docs/stages.md, for example TARGET_NOT_FOUND.
        message: one or two sentences for somebody who does not program. No path of this machine, no traceback.
        row: line of the file, counted from 1, the header included.
        suggestion: what to do next.
    """

    code: str
    severity: Severity
    message: str
    column: str | None = None
    row: int | None = None
    value: str | None = None
    count: int | None = None
    suggestion: str = ""

    def to_json(self) -> dict[str, Json]:
        """Returns it as JSON, without what is absent."""
        pairs = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: value for name, value in pairs if value is not None and value != ""}


class Failed(Exception):
    """The stage cannot do its work. Ends the program with exit code 2 and a result that says why.

    Args:
        actions: what a person may choose so that another attempt goes better.
        details: of the Issue.
    """

    def __init__(self, code: str, message: str, *, actions: "Sequence[Action]" = (), **details: Any) -> None:
        super().__init__(message)
        self.issue = Issue(code, "ERROR", message, **details)
        self.actions = tuple(actions)


@dataclass(frozen=True, slots=True)
class Action:
    """Something a person may do at the gate.

    Attributes:
        id: unique within the result.
        kind: CONFIRM goes on; CHOOSE takes one or, with `many`, several of `options`; EDIT takes a text or number; BACK
            goes back to the stage that `field` names; ABORT ends the run.
        field: the name under which the choice comes back in `Envelope.edits`, dots allowed ("actions.age").
        options: what may be chosen, with CHOOSE.
        default: what holds when nothing is chosen.
        minimum, maximum: bounds of a number, with EDIT. Both absent: the edit is a text of at most 4,000 characters.
        required: nothing goes on without it; the result's status is NEEDS_INPUT then.
    """

    id: str
    label: str
    kind: Kind
    field: str = ""
    options: tuple[str, ...] = ()
    default: Json = None
    minimum: float | None = None
    maximum: float | None = None
    many: bool = False
    required: bool = False

    def to_json(self) -> dict[str, Json]:
        """Returns it as JSON, without what is absent."""
        pairs = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: value for name, value in pairs if value not in (None, "", ()) and value is not False}


@dataclass(frozen=True, slots=True)
class Limits:
    """How far the stage may go: CPU and wall time in seconds, memory in MiB, threads."""

    cpu_s: float = 600.0
    wall_s: float = 1200.0
    mem_mb: int = 2048
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a stage is asked to do.

    Attributes:
        attempt: counted from 1; grows each time the stage is done again.
        seed: for everything random.
        objective: what the person wrote.
        hints: what the person said beforehand, by field: target, task, metric, budget_s, goal, ...
        data: path of the data as the person named it; "" when they named none. Below one of `data_folders`, or
            `uploads/<name>` in the run's folder.
        data_folders: folders that hold data to choose from.
        edits: what the person chose at this stage's gate, by field; all that was chosen so far.
    """

    stage: str
    project_id: str = "by-hand"
    run_id: str = "by-hand"
    attempt: int = 1
    correlation_id: str = ""
    seed: int = 0
    objective: str = ""
    hints: Mapping[str, Json] = field(default_factory=dict)
    data: str = ""
    data_folders: tuple[str, ...] = ()
    edits: Mapping[str, Json] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def from_json(cls, given: Mapping[str, Json]) -> "Envelope":
        """Reads an envelope. Raises Failed with BAD_ENVELOPE when it is none of this contract."""
        if given.get("contract") != CONTRACT or given.get("stage") not in STAGES:
            text = f'The envelope must say "contract": "{CONTRACT}" and name one of the eight stages.'
            raise Failed("BAD_ENVELOPE", text)
        known = {name: given[name] for name in cls.__slots__ if name in given}
        known["limits"] = Limits(**given.get("limits", {}))
        known["data_folders"] = tuple(given.get("data_folders", ()))
        return cls(**known)


@dataclass(slots=True)
class Result:
    """What a stage leaves: for the person who confirms it, and, in `result`, for the stages after it."""

    summary: str
    result: dict[str, Json]
    actions: Sequence[Action] = ()
    warnings: Sequence[Issue] = ()
    artifacts: Sequence["Artifact"] = ()

    @property
    def status(self) -> str:
        """OK, or NEEDS_INPUT when something required was not chosen."""
        return "NEEDS_INPUT" if any(action.required for action in self.actions) else "OK"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file in the stage's folder that is worth keeping: its name there, what it is, a title for people."""

    name: str
    media_type: str
    title: str


class Room:
    """The folder of a run, as one stage sees it."""

    def __init__(self, stage: str, root: Path) -> None:
        self.root = root
        self.own = root / folder_of(stage)
        self.own.mkdir(exist_ok=True)

    def path(self, name: str) -> Path:
        """Returns where the stage's own file of this name is. Raises ValueError for a name no artefact may have."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} must be lower-case letters, digits, dots and hyphens, at most 64")
        return self.own / name

    def of(self, stage: str, name: str) -> Path:
        """Returns where a file of an earlier stage is. Raises Failed with INPUT_MISSING when it is not there."""
        path = self.root / folder_of(stage) / name
        if not path.is_file():
            text = f"{stage} has not left {name}. Do that stage again."
            raise Failed("INPUT_MISSING", text, value=f"{folder_of(stage)}/{name}")
        return path

    def result_of(self, stage: str) -> dict[str, Json]:
        """Returns what an earlier stage found. Raises Failed with INPUT_MISSING."""
        found: dict[str, Json] = json.loads(self.of(stage, RESULT).read_text())["result"]
        return found


class Progress:
    """Tells how far the stage is, on standard output, one JSON object a line; not more often than PROGRESS_S."""

    def __init__(self) -> None:
        self._told = 0.0

    def tell(self, percent: float, phase: str, detail: str = "", *, always: bool = False, **figures: Json) -> None:
        """Tells it.

        Args:
            percent: 0 to 100, of the whole stage.
            phase: one short word or two: "reading", "fold 3 of 5".
            detail: one sentence.
            always: also when the last one is not PROGRESS_S ago.
            figures: `done`, `total`, `best` (score so far), `candidate`, `budget_share` (0 to 1 of the time budget).
        """
        now = time.monotonic()
        if always or now - self._told >= PROGRESS_S:
            self._told = now
            line = {"event": "progress", "pct": round(min(100.0, max(0.0, percent)), 1), "phase": phase}
            print(json.dumps({**line, "detail": detail, **figures}), flush=True)


Work: TypeAlias = Callable[[Envelope, Room, Progress], Result]


def folder_of(stage: str) -> str:
    """Returns the name of a stage's folder in the run's: `profile-data` for PROFILE_DATA."""
    return stage.lower().replace("_", "-")


def main(work: Work) -> NoReturn:
    """Runs a stage program: reads the envelope that the command line names, works, leaves the result, exits."""
    started = time.monotonic()
    try:
        envelope = Envelope.from_json(json.loads(Path(sys.argv[1]).read_text()))
    except (IndexError, OSError, ValueError, TypeError, Failed) as error:
        print(f"usage: python -m stages.<name> ENVELOPE.json ({error})", file=sys.stderr)
        sys.exit(1)
    room = Room(envelope.stage, Path.cwd())
    (room.own / RESULT).unlink(missing_ok=True)  # one of an earlier attempt must not pass for this one's
    try:
        _hold(envelope.limits)
        outcome = _document(envelope, room, work(envelope, room, Progress()), started)
    except Failed as failed:
        outcome = _failure(envelope, failed.issue, started, failed.actions)
    except MemoryError:
        text = f"The stage needs more than the {envelope.limits.mem_mb} MB it may use."
        advice = "Give the run more memory, or fewer rows or columns."
        outcome = _failure(envelope, Issue("MEMORY_LIMIT", "ERROR", text, suggestion=advice), started)
    _leave(room, outcome)
    sys.exit(FAILED_EXIT if outcome["status"] == "FAILED" else 0)


def _hold(limits: Limits) -> None:
    """Makes the limits felt from inside, a little before the sandbox ends the program without a word."""

    def late(_signal: int, _frame: object) -> NoReturn:
        text = f"The stage did not end within {limits.cpu_s:g} s of processor time or {limits.wall_s:g} s."
        raise Failed("STAGE_TIMEOUT", text, suggestion="Give the run a larger budget, or fewer rows or candidates.")

    def cancelled(_signal: int, _frame: object) -> NoReturn:
        raise Failed("CANCELLED", "The stage was cancelled.")

    signal.signal(signal.SIGXCPU, late)
    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGTERM, cancelled)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, limits.wall_s))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = max(1, round(limits.cpu_s))
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def cpu_seconds() -> float:
    """Returns the processor time of this process and its ended children, in seconds."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _document(envelope: Envelope, room: Room, result: Result, started: float) -> dict[str, Json]:
    warnings = list(result.warnings)
    if len(warnings) > MAX_ISSUES:
        rest = len(warnings) - MAX_ISSUES + 1
        warnings = [*warnings[: MAX_ISSUES - 1], Issue("MORE_ISSUES", "INFO", f"There are {rest} more.", count=rest)]
    return {
        **_head(envelope, result.status, result.summary[:MAX_SUMMARY], started),
        "next_actions": [action.to_json() for action in result.actions],
        "artifacts": [_described(room, artifact) for artifact in result.artifacts],
        "warnings": [issue.to_json() for issue in warnings],
        "result": result.result,
    }


def _failure(envelope: Envelope, issue: Issue, started: float, actions: Sequence[Action] = ()) -> dict[str, Json]:
    head = _head(envelope, "FAILED", issue.message[:MAX_SUMMARY], started)
    offered = [action.to_json() for action in actions]
    return {**head, "next_actions": offered, "artifacts": [], "warnings": [], "error": issue.to_json(), "result": {}}


def _head(envelope: Envelope, status: str, summary: str, started: float) -> dict[str, Json]:
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, see getrusage(2)
    spent = {"cpu_s": round(cpu_seconds(), 3), "wall_s": round(time.monotonic() - started, 3)}
    metrics = {**spent, "peak_mb": round(peak_kib / 1024, 1)}
    head = {"contract": CONTRACT, "stage": envelope.stage, "run_id": envelope.run_id, "attempt": envelope.attempt}
    return {**head, "status": status, "summary": summary, "metrics": metrics}


def _described(room: Room, artifact: Artifact) -> dict[str, Json]:
    path = room.path(artifact.name)
    described = {"name": artifact.name, "media_type": artifact.media_type, "title": artifact.title}
    return {**described, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _leave(room: Room, outcome: dict[str, Json]) -> None:
    text = json.dumps(outcome, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MAX_RESULT_BYTES:
        raise ValueError(f"{RESULT} is larger than {MAX_RESULT_BYTES} bytes: leave less in it")
    with replacing(room.own / RESULT) as path:
        path.write_text(text)
    print(json.dumps({"event": "result", "path": f"{room.own.name}/{RESULT}"}), flush=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside to write to; what is written there takes the file's place at the end, or is removed."""
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
