"""Events: stable names, one payload and one fold each, complete envelopes, and logs of earlier versions that replay.

`python -m tests.test_events` records the runs below as golden logs of this version, see golden/README.md.
"""

import asyncio
import itertools
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import (
    conductor_pb2,
    event_pb2,
    project_pb2,
    report_writer_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)
from google.protobuf import json_format

from services.common.errors import Reason, Refusal
from services.conductor import events
from services.conductor.actor import Caller
from services.conductor.machines import MACHINES
from services.conductor.protocol import SECOND, Given, Proceed, Resume, Submit
from services.conductor.state import project, task, task_state
from services.conductor.state.requests import VERSION
from tests.conftest import MARKDOWN, Clock, Running, numbered, start_conductor, until
from tests.fakes import Workers, command_result, finding, finds, finds_nothing, hangs, research_result, runs
from tests.test_state import COMPLETED, FAILED, IN_PROGRESS, PENDING, SKIPPED, WAITING, frozen

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"

# The names clients rely on, each with its one payload.
NAMES = {
    "conductor.task.started": "task_started",
    "conductor.task.progress": "task_progress",
    "conductor.worker.call": "worker_call",
    "conductor.worker.result": "worker_result",
    "conductor.task.completed": "task_completed",
    "conductor.task.failed": "task_failed",
    "conductor.task.cancelled": "task_cancelled",
    "STAGE_STATUS": "stage_status",
    "WAITING_CONFIRMATION": "waiting_confirmation",
    "PLAN_PROPOSED": "plan_proposed",
    "PLAN_APPROVED": "plan_approved",
    "CONFIRMATION_ANSWERED": "confirmation_answered",
    "RUN_STARTED": "run_started",
    "STAGE_RESULT": "stage_result",
    "RUN_ENDED": "run_ended",
    "DATA_UPLOADED": "data_uploaded",
}
SCOPE = task_pb2.Scope(desktop_id="desk-1", session_id="session-1", thread_id="thread-1", user_id="user-1")
TERMINAL_TYPES = ("conductor.task.completed", "conductor.task.failed", "conductor.task.cancelled")
PHASES = {"intake", "routing", "research", "terminal", "report", "done"}

# ---- laws of logs ----

TASK_ARROWS = {
    "": {"QUEUED"},
    "QUEUED": {"RUNNING", "FAILED", "CANCELLED"},
    "RUNNING": {"RUNNING", "WAITING_WORKER", "COMPLETED", "FAILED", "CANCELLED"},
    "WAITING_WORKER": {"WAITING_WORKER", "RUNNING"},
    "COMPLETED": set(),
    "FAILED": set(),
    "CANCELLED": set(),
}
STAGE_ARROWS = {
    PENDING: {IN_PROGRESS},
    IN_PROGRESS: {IN_PROGRESS, WAITING, COMPLETED, FAILED, SKIPPED, PENDING},
    WAITING: {IN_PROGRESS, WAITING, COMPLETED, FAILED, PENDING},
    COMPLETED: {IN_PROGRESS, COMPLETED, PENDING},
    FAILED: {IN_PROGRESS, SKIPPED, PENDING},
    SKIPPED: {IN_PROGRESS, PENDING},
}


def check_task_log(events: Sequence[event_pb2.Event]) -> None:
    """Started first, ended at most once and last; every call answered once, before the end, one at a time."""
    types = [event.type for event in events]
    assert types.count("conductor.task.started") == 1 and types[0] == "conductor.task.started"
    assert not any(kind in TERMINAL_TYPES for kind in types[:-1])
    open_call, calls, status = "", set[str](), ""
    for event in events:
        after = event.status.removeprefix("TASK_STATUS_")
        assert after in TASK_ARROWS[status], f"{status} → {after}"
        status = after
        if event.type == "conductor.worker.call":
            assert not open_call and event.worker_call.call_id not in calls
            open_call = event.worker_call.call_id
            calls.add(open_call)
        elif event.type == "conductor.worker.result":
            assert event.worker_result.call_id == open_call != ""
            open_call = ""
        elif event.task_progress.call_id:
            assert event.task_progress.call_id == open_call
        assert (status == "WAITING_WORKER") == bool(open_call)
    assert not (open_call and types[-1] in TERMINAL_TYPES)


def check_project_log(events: Sequence[event_pb2.Event]) -> None:
    """Stages follow the arrows only."""
    found = {stage: IN_PROGRESS if stage == 1 else PENDING for stage in range(1, 9)}
    for event in events:
        if event.type == "STAGE_STATUS":
            changed = event.stage_status
            assert changed.status in STAGE_ARROWS[found[changed.stage_id]], changed
            found[changed.stage_id] = changed.status


def replayed(machine: Any, identity: str, events: Sequence[event_pb2.Event]) -> Any:
    """Folds events as they come out of a store."""
    state = machine.initial(identity)
    for event in events:
        state = machine.evolve(state, event_pb2.Event.FromString(event.SerializeToString()))
    return state


# ---- runs to look at, on a real Conductor with workers that follow a script ----


Ask, Plan = conductor_pb2.WaitForConfirmationRequest, conductor_pb2.ProposePlanRequest
Move, Answer = conductor_pb2.TransitionToRequest, conductor_pb2.ConfirmRequest
# Through all eight stages: asked, rejected, planned, failed, skipped, sent back, and to the end.
WALK = [
    Ask(stage_id=1, summary="A regression on price.", next_actions=["approve", "edit"]),
    Answer(approved=False, reason="Classify it instead."),
    Plan(stage_id=1, summary="Classify by colour.", steps=["read", "count"]),
    Ask(stage_id=1, summary="A classification."),
    Answer(stage_id=1),
    Move(stage_id=2, status=FAILED, message="No such file."),
    Move(stage_id=2, message="Once more."),
    Plan(stage_id=2, summary="Use the other file."),
    Answer(approved=False, reason="Neither."),
    Answer(),
    Move(stage_id=3, status=COMPLETED, message="4 columns."),
    Move(stage_id=4),
    Ask(stage_id=4, summary="Two rows dropped."),
    Move(stage_id=1, message="Begin again."),
    *(Answer(stage_id=stage) for stage in range(1, 7)),
    Move(stage_id=7, status=SKIPPED, message="Nothing to edit."),
    Move(stage_id=8),
    Ask(stage_id=8, summary="One archive."),
    Answer(stage_id=8),
]


@dataclass
class StageWorkers(Workers):
    """Workers that do stages too: every program ends at once and has left what `found` says."""

    found: dict[str, Any] = field(default_factory=dict)
    left: str = ""

    async def GetCapabilities(self, request: Any, context: Any) -> terminal_pb2.GetCapabilitiesResponse:
        return terminal_pb2.GetCapabilitiesResponse()

    async def StatFile(self, request: Any, context: Any) -> terminal_pb2.OutputFile:
        raise Refusal(Reason.ERROR_REASON_FILE_NOT_FOUND, "There is no such file.")

    async def WriteFile(self, requests: Any, context: Any) -> terminal_pb2.OutputFile:
        asked = [request async for request in requests]
        if asked[0].path != "envelope.json":
            return terminal_pb2.OutputFile()
        told = json.loads(b"".join(request.data for request in asked))
        self.left = json.dumps(
            {
                **{key: told[key] for key in ("contract", "stage", "run_id", "attempt")},
                **{"status": "OK", "summary": f"{told['stage']} is done."},
                "next_actions": [
                    {"id": "a", "label": "Colour?", "kind": "CHOOSE", "field": "colour", "options": ["red"]}
                ],
                **self.found,
            }
        )
        return terminal_pb2.OutputFile()

    async def GetArtifact(self, request: Any, context: Any) -> Any:
        [kept, *_] = [piece for piece in self.pieces if piece.sha256 == request.sha256]
        yield report_writer_pb2.GetArtifactResponse(data=kept.data)

    async def ReadFile(self, request: Any, context: Any) -> Any:
        yield terminal_pb2.ReadFileResponse(data=self.left.encode())

    async def Run(self, request: Any, context: Any) -> Any:
        if not request.workspace:
            async for message in super().Run(request, context):
                yield message
            return
        result = terminal_pb2.CommandResult(end=terminal_pb2.COMMAND_END_EXITED, exit_code=2 if self.found else 0)
        yield terminal_pb2.RunResponse(result=result)


class Ticking(Clock):
    """A clock on which every look takes an eighth of a second."""

    def __call__(self) -> int:
        self.advance(0.125)
        return self.now


class Recorder:
    """Runs tasks and a project whose ids and times are the same in every run; `logs` has what was written."""

    def __init__(self, folder: Path, workers: StageWorkers) -> None:
        self.file, self.workers = folder / "conductor.db", workers
        self.clock, self.ids = Ticking(), numbered("id")
        self.logs: dict[str, list[event_pb2.Event]] = {}

    async def start(self) -> Running:
        fixed = {"clock": self.clock, "new_id": self.ids, "instance": "conductor-golden"}
        return await start_conductor(self.file, self.workers, **fixed)

    async def submit(self, running: Running, task_id: str, **hints: Any) -> None:
        request = conductor_pb2.ExecuteRequest(
            objective="At what temperature does water boil?",
            output_mode=MARKDOWN,
            desktop_id="desk-1",
            project_id="project-1",
            hints=task_pb2.Hints(**hints),
            scope=task_pb2.Scope(session_id="session-1", thread_id="thread-1", user_id="user-1"),
        )
        await running.actor.ask(("task", task_id), Submit(request), Caller(f"corr-{task_id}", request.scope))

    async def run(self) -> dict[str, list[event_pb2.Event]]:
        running = await self.start()
        try:
            await self.all_tasks(running)
            await self.cancelled(running)
            running = await self.recovered(running)
            await self.walk_project(running)
            await self.walk_run(running)
        finally:
            await running.kill()
        return self.logs

    async def all_tasks(self, running: Running) -> None:
        date = terminal_pb2.Command(argv=["date", "-u"])
        tolerant = terminal_pb2.Command(script="exit 3", allow_failure=True)
        both = [task_pb2.CAPABILITY_RESEARCHER, task_pb2.CAPABILITY_TERMINAL]
        await self.task(running, "completed", {"research": talks}, capabilities=both, commands=[date, tolerant])
        await self.task(running, "fallback", {"research": unavailable}, commands=[date])
        await self.task(running, "nothing", {"research": finds_nothing})
        terminal = [task_pb2.CAPABILITY_TERMINAL]
        await self.task(running, "failed", {"run": exits_3}, capabilities=terminal, commands=[date])

    async def task(self, running: Running, name: str, scripts: dict[str, Any], **hints: Any) -> None:
        self.workers.research, self.workers.run = scripts.get("research", finds), scripts.get("run", runs)
        await self.submit(running, f"task-{name}", **hints)
        await running.ended(f"task-{name}")
        self.logs[f"task_{name}"] = await running.events(f"task-{name}")

    async def cancelled(self, running: Running) -> None:
        await self.hanging(running, "task-cancelled")
        request = conductor_pb2.CancelTaskRequest(task_id="task-cancelled", reason="no longer needed")
        await running.stub.CancelTask(request)
        self.logs["task_cancelled"] = await running.events("task-cancelled")

    async def recovered(self, running: Running) -> Running:
        await self.hanging(running, "task-recovered")
        await running.kill()
        self.workers.research = finds
        running = await self.start()
        await running.ended("task-recovered")
        self.logs["task_recovered"] = await running.events("task-recovered")
        return running

    async def hanging(self, running: Running, task_id: str) -> None:
        self.workers.research = hangs
        seen = self.workers.count(researcher_pb2.ResearchRequest)
        await self.submit(running, task_id)
        await until(lambda: self.workers.count(researcher_pb2.ResearchRequest) > seen)

    async def walk_project(self, running: Running) -> None:
        for number, move in enumerate(WALK):
            request = type(move)(project_id="project-1", correlation_id=f"corr-{number}", scope={"user_id": "user-1"})
            request.MergeFrom(move)
            await getattr(running.stub, type(move).__name__.removesuffix("Request"))(request)
        self.logs["project"] = [e for e in await running.events(project_id="project-1") if not e.task_id]

    async def walk_run(self, running: Running) -> None:
        """A run that is rejected, edited, failed, tried again, and cancelled."""
        mine = {"project_id": "project-run", "correlation_id": "corr-run", "scope": SCOPE}
        upload = conductor_pb2.UploadDataRequest(project_id="project-run", name="a.csv")
        upload.content.data = b"a,b\n1,2\n"
        await running.stub.UploadData(iter([upload]), metadata=(("x-correlation-id", "corr-run"),))
        options = project_pb2.RunOptions(pass_gates=[2], seed=7)
        await running.stub.StartProject(
            conductor_pb2.StartProjectRequest(objective="Why?", data="uploads/a.csv", options=options, **mine)
        )
        stub, asked = running.stub, project_pb2.RUN_STATUS_WAITING_CONFIRMATION
        await self.stands(running, asked, 1)
        await stub.Confirm(Answer(approved=False, reason="Not like this.", **mine))
        await self.stands(running, asked, 1)
        edited = Answer(**mine)
        edited.edits.update({"colour": "red"})
        await stub.Confirm(edited)
        await self.stands(running, asked, 3)
        error = {"code": "TARGET_NOT_FOUND", "severity": "ERROR", "message": "No column colour."}
        self.workers.found = {"status": "FAILED", "error": error}
        await stub.TransitionTo(Move(stage_id=2, message="Once more.", **mine))
        await self.stands(running, project_pb2.RUN_STATUS_FAILED, 2)
        self.workers.found = {}
        await stub.TransitionTo(Move(stage_id=2, **mine))
        await self.stands(running, asked, 3)
        await stub.CancelRun(conductor_pb2.CancelRunRequest(reason="Enough.", **mine))
        log = await running.events(project_id="project-run")
        self.logs["run"] = [event for event in log if not event.task_id]
        tasks = dict.fromkeys(event.task_id for event in log if event.task_id)
        self.logs |= {f"task_stage_{n}": [e for e in log if e.task_id == task_id] for n, task_id in enumerate(tasks, 1)}

    async def stands(self, running: Running, status: int, stage: int) -> None:
        async def look() -> bool:
            state = await running.stub.GetState(conductor_pb2.GetStateRequest(project_id="project-run"))
            return (state.run.status, state.current_stage) == (status, stage)

        await until(look)


async def talks(_: Any) -> Sequence[Any]:
    said = researcher_pb2.ResearchProgress(message="Read one document.", step=1, total_steps=2)
    return [researcher_pb2.ResearchResponse(progress=said), research_result(finding())]


async def unavailable(_: Any) -> Sequence[Any]:
    raise Refusal(Reason.ERROR_REASON_WORKER_UNAVAILABLE, "The index is being built.", capability="RESEARCHER")


async def exits_3(_: Any) -> Sequence[Any]:
    return command_result(3, b"partly\n")


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[dict[str, list[event_pb2.Event]]]:
    workers = await StageWorkers().start()
    try:
        yield await Recorder(tmp_path, workers).run()
    finally:
        await workers.stop()


# ---- names and folds ----


def test_the_names_are_the_contracts_and_never_change() -> None:
    assert {name: field for field, name in events.TYPES.items()} == NAMES
    assert set(events.TERMINAL_TYPES) == set(TERMINAL_TYPES)
    text = (ROOT / "protos/conductor/v1/event.proto").read_text(encoding="utf-8")
    assert dict(re.findall(r"^//   (\S+) +([a-z_]+)(?: .*)?$", text, re.MULTILINE)) == NAMES


def test_each_type_has_a_payload_of_its_own_shape_and_every_payload_but_the_snapshot_is_stored() -> None:
    payloads = {field.name: field.message_type.full_name for field in event_pb2.Event.DESCRIPTOR.oneofs[0].fields}
    assert set(payloads) == {*NAMES.values(), "snapshot"}
    assert len(set(payloads.values())) == len(payloads)
    assert not {events.SNAPSHOT, events.CHECKPOINT} & set(NAMES)


def test_every_payload_has_exactly_one_fold() -> None:
    assert sorted([*task_state.FOLDS, *project.FOLDS]) == sorted(NAMES.values())
    of_tasks = {field for name, field in NAMES.items() if name.startswith("conductor.")}
    assert set(task_state.FOLDS) == of_tasks


# ---- what a real run writes ----


async def test_a_real_run_writes_every_type_whole_ordered_and_paired(logs: dict[str, list[event_pb2.Event]]) -> None:
    written = list(itertools.chain(*logs.values()))
    assert {event.type for event in written} == set(NAMES)
    for event in written:
        check_envelope(event)
    assert len({event.event_id for event in written}) == len(written)
    streams = defaultdict(list)
    for event in sorted(written, key=lambda each: each.sequence):
        streams[event.task_id or event.project_id].append(event.stream_sequence)
    assert all(found == list(range(1, len(found) + 1)) for found in streams.values())
    sequences = sorted(event.sequence for event in written)
    assert sequences == list(range(1, len(written) + 1))


async def test_every_task_of_a_real_run_ends_once_with_all_its_calls_answered(
    logs: dict[str, list[event_pb2.Event]],
) -> None:
    stages = [name for name in logs if name.startswith("task_stage")]
    for name in stages:
        check_task_log(logs[name])
    assert [logs[name][-1].type.rpartition(".")[2] for name in stages] == [
        *["completed"] * 5,
        "failed",
        "completed",
        "completed",
    ]
    ends = {
        name.removeprefix("task_"): log[-1]
        for name, log in logs.items()
        if name.startswith("task") and name not in stages
    }
    for name in ends:
        check_task_log(logs[f"task_{name}"])
    check_project_log(logs["project"])
    check_project_log(logs["run"])
    assert {name: end.type.removeprefix("conductor.task.") for name, end in ends.items()} == {
        "completed": "completed",
        "fallback": "completed",
        "nothing": "completed",
        "recovered": "completed",
        "failed": "failed",
        "cancelled": "cancelled",
    }
    assert ends["failed"].task_failed.error.reason == Reason.ERROR_REASON_COMMAND_FAILED
    assert ends["completed"].task_completed.report_path == "reports/task-completed.md"


async def test_a_real_project_log_tells_the_way_it_went(logs: dict[str, list[event_pb2.Event]]) -> None:
    state = replayed(MACHINES["project"], "project-1", logs["project"])
    assert [s.status for s in state.stages] == [COMPLETED] * 6 + [SKIPPED, COMPLETED] and state.current_stage == 8
    answers = [e.confirmation_answered for e in logs["project"] if e.type == "CONFIRMATION_ANSWERED"]
    assert [answer.approved for answer in answers].count(False) == 2
    assert any(answer.plan_id and answer.confirmation_id and answer.approved for answer in answers)


def check_envelope(event: event_pb2.Event) -> None:
    """Nothing is empty that applies, and the payload is the one of the type."""
    assert event.WhichOneof("payload") == NAMES[event.type]
    assert event.event_id and event.correlation_id.startswith("corr-") and event.occurred_at.seconds
    assert (event.actor.service, event.actor.instance) == ("conductor", "conductor-golden")
    if event.type == "DATA_UPLOADED":  # its request has no scope
        return
    in_run = event.project_id == "project-run"
    assert (in_run or event.project_id == "project-1") and event.scope.user_id == "user-1"
    if event.type.startswith("conductor."):
        assert event.task_id and event.status in task_pb2.TaskStatus.keys() and event.phase in PHASES  # noqa: SIM118
        scope = event.scope
        assert (scope.desktop_id, scope.session_id, scope.thread_id) == ("desk-1", "session-1", "thread-1")
        assert event.correlation_id == ("corr-run" if in_run else f"corr-{event.task_id}")
    else:
        assert not event.task_id and event.scope.desktop_id == ("desk-1" if in_run else "default")
        assert event.status.startswith("STAGE_STATUS_") and event.phase.startswith("STAGE_")


# ---- golden logs ----


def read_golden(file: Path) -> tuple[list[event_pb2.Event], event_pb2.Snapshot]:
    lines = [json_format.Parse(line, event_pb2.Event()) for line in file.read_text(encoding="utf-8").splitlines()]
    return lines[:-1], lines[-1].snapshot


def final_state(log: Sequence[event_pb2.Event]) -> event_pb2.Snapshot:
    first = log[0]
    if first.task_id:
        return event_pb2.Snapshot(task=replayed(MACHINES["task"], first.task_id, log).task)
    return event_pb2.Snapshot(project=replayed(MACHINES["project"], first.project_id, log))


GOLDEN_LOGS = sorted(GOLDEN.glob("*.jsonl"))


def test_there_is_a_golden_log_of_every_kind_of_run_and_of_every_type() -> None:
    kinds = {file.stem.partition("-")[2] for file in GOLDEN_LOGS}
    assert kinds >= {"project"} | {f"task_{name}" for name in ("completed", "fallback", "failed", "cancelled")}
    assert {event.type for file in GOLDEN_LOGS for event in read_golden(file)[0]} == set(NAMES)


@pytest.mark.parametrize("file", GOLDEN_LOGS, ids=lambda file: file.stem)
def test_a_golden_log_replays_to_the_state_stored_with_it(file: Path) -> None:
    log, stored = read_golden(file)
    assert frozen(final_state(log)) == frozen(stored)


@pytest.mark.parametrize("file", [f for f in GOLDEN_LOGS if "-task_" in f.stem], ids=lambda file: file.stem)
def test_a_task_can_be_taken_up_and_ended_wherever_its_golden_log_is_cut(file: Path) -> None:
    log, _ = read_golden(file)
    # What was written in one transaction has one time, and is there as a whole or not at all.
    for at in sorted({event.occurred_at.ToNanoseconds() for event in log}):
        begun = [event for event in log if event.occurred_at.ToNanoseconds() <= at]
        state = replayed(MACHINES["task"], log[0].task_id, begun)
        more: list[event_pb2.Event] = []
        for step, command in enumerate((Resume(), Proceed(), conductor_pb2.CancelTaskRequest())):
            if state.task.status in task_state.TERMINAL:
                break
            for event in task.decide(state, command, Given(at, f"new-{step}", "corr-1")).events:
                event.occurred_at.FromNanoseconds(at + SECOND)
                state = task_state.evolve(state, event)
                more.append(event)
        check_task_log([*begun, *more])
        assert [*begun, *more][-1].type in TERMINAL_TYPES and bool(more) == (begun != log)


async def record() -> None:
    """Writes the logs of today's version beside the earlier ones, which stay as they are."""
    workers = await StageWorkers().start()
    with tempfile.TemporaryDirectory() as folder:
        logs = await Recorder(Path(folder), workers).run()
    await workers.stop()
    for name, log in logs.items():
        file = GOLDEN / f"{VERSION}-{name}.jsonl"
        if file.exists():
            sys.stderr.write(f"{file.name} stays as it is: a golden log is never written again\n")
            continue
        lines = [*log, event_pb2.Event(type=events.SNAPSHOT, snapshot=final_state(log))]
        shown = [json_format.MessageToJson(line, preserving_proto_field_name=True, indent=None) for line in lines]
        file.write_text("\n".join(shown) + "\n", encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(record())
