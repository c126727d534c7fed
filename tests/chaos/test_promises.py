"""Each checker of a promise catches a small history in which it is broken, and finds nothing in a whole one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from conductor.v1 import (
    conductor_pb2,
    error_pb2,
    event_pb2,
    project_pb2,
    report_writer_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)

from ops.layout import kind_of
from services.conductor.events import CHECKPOINT, TYPES
from tests.chaos.faults import KINDS, plan
from tests.chaos.history import Call, Happened, Heard, History, Opened, Record, answer_of
from tests.chaos.judge import PROMISES, verdicts
from tests.chaos.promises import Evidence, Report, Run

OBJECTIVE, TOKEN = "What is the answer to t1?", "t1"
TEXT = f"# {OBJECTIVE}\n{answer_of('t1')} {answer_of('t1c0')}\n".encode()
RESEARCHER, TERMINAL, WRITER = 1, 2, 3
IN_PROGRESS, COMPLETED = project_pb2.STAGE_STATUS_IN_PROGRESS, project_pb2.STAGE_STATUS_COMPLETED
WAITING = project_pb2.STAGE_STATUS_WAITING_CONFIRMATION


def a_log(*payloads: tuple[str, Any]) -> list[event_pb2.Event]:
    """Numbers payloads of task `t` (those of tasks) and project `p` as a log does."""
    log: list[event_pb2.Event] = []
    streams = {"t": 0, "p": 0}
    for field, payload in payloads:
        of_task = field.startswith(("task", "worker"))
        streams["t" if of_task else "p"] += 1
        event = event_pb2.Event(
            sequence=len(log) + 1,
            stream_sequence=streams["t" if of_task else "p"],
            event_id=f"e{len(log) + 1}",
            type=TYPES[field],
            task_id="t" if of_task else "",
            project_id="" if of_task else "p",
            correlation_id=TOKEN if of_task else "",
            status="TASK_STATUS_COMPLETED" if field == "task_completed" else "",
        )
        getattr(event, field).CopyFrom(payload)
        log.append(event)
    return log


FOUND = researcher_pb2.ResearchResult(findings=[researcher_pb2.Finding(statement="x")])
COMMAND = terminal_pb2.Command(script="x", env={"TOKEN": "t1c0"})
HINTS = task_pb2.Hints(capabilities=[RESEARCHER, TERMINAL], commands=[COMMAND])
REPORTED = report_writer_pb2.WriteReportResponse(path="reports/t.md", size_bytes=len(TEXT))
TASK = (
    ("task_started", event_pb2.TaskStarted(objective=OBJECTIVE, hints=HINTS)),
    ("worker_call", event_pb2.WorkerCall(call_id="c1")),
    ("worker_result", event_pb2.WorkerResult(call_id="c1", research=FOUND)),
    ("worker_call", event_pb2.WorkerCall(call_id="c2")),
    (
        "worker_result",
        event_pb2.WorkerResult(call_id="c2", command=report_writer_pb2.CommandRecord(command=COMMAND)),
    ),
    ("worker_call", event_pb2.WorkerCall(call_id="c3")),
    ("worker_result", event_pb2.WorkerResult(call_id="c3", report=REPORTED)),
    ("task_completed", event_pb2.TaskCompleted(report_path="reports/t.md")),
)
PROJECT = (
    ("stage_status", event_pb2.StageStatusChanged(stage_id=1, status=WAITING)),
    ("waiting_confirmation", project_pb2.WaitingConfirmation(confirmation_id="g1", stage_id=1)),
    ("confirmation_answered", event_pb2.ConfirmationAnswered(stage_id=1, confirmation_id="g1", approved=True)),
    ("stage_status", event_pb2.StageStatusChanged(stage_id=1, status=COMPLETED)),
    ("stage_status", event_pb2.StageStatusChanged(stage_id=2, status=IN_PROGRESS)),
)
LOG = a_log(*TASK, *PROJECT)
EXECUTE = conductor_pb2.ExecuteRequest(objective=OBJECTIVE, request_id="t1")
CONFIRM = conductor_pb2.ConfirmRequest(project_id="p", confirmation_id="g1")


def a_call(request: Any, answer: Any, request_id: str = "r", **fields: Any) -> Call:
    method = type(request).__name__.removesuffix("Request")
    return replace(Call("me", "gRPC", method, request, request_id, 0, 1, answer, "OK"), **fields)


EXECUTED = a_call(EXECUTE, conductor_pb2.ExecuteResponse(task_id="t"), "t1")
CONFIRMED = a_call(CONFIRM, project_pb2.ProjectState(project_id="p", as_of_sequence=13), "r1")
STALE = a_call(CONFIRM, None, "r2", code="FAILED_PRECONDITION", reason="STALE_CONFIRMATION", expects="REFUSED")


def heard(events: Sequence[event_pb2.Event], who: str = "sub", after: int = 0) -> list[Record]:
    return [Opened(who, 0, after), *(Heard(who, 0, event) for event in events)]


def a_checkpoint(sequence: int) -> Heard:
    return Heard("sub", 0, event_pb2.Event(type=CHECKPOINT, sequence=sequence))


RECORDS: Sequence[Record] = (
    EXECUTED,
    EXECUTED,
    CONFIRMED,
    STALE,
    *heard(LOG[:5]),
    a_checkpoint(5),
    *heard(LOG[5:], after=5),
)
STATE = project_pb2.ProjectState(
    project_id="p",
    stages=[
        project_pb2.StageState(stage_id=stage, status=status)
        for stage, status in zip(
            range(1, 9), (COMPLETED, IN_PROGRESS, *[project_pb2.STAGE_STATUS_PENDING] * 6), strict=True
        )
    ],
)
WHOLE = Evidence(
    records=RECORDS,
    log=LOG,
    tasks={"t": task_pb2.Task(task_id="t", status=task_pb2.TASK_STATUS_COMPLETED)},
    projects={"p": STATE},
    reports={"t": Report(TEXT, TEXT)},
    ledger=[Run("c2", "t1c0")],
)


def without(*places: int) -> Evidence:
    """The whole evidence with events left out of the log, by their sequence."""
    return replace(WHOLE, log=[event for event in LOG if event.sequence not in places])


def renumbered(*payloads: tuple[str, Any]) -> Evidence:
    return replace(WHOLE, log=a_log(*payloads), records=())


def and_then(*records: Record) -> Evidence:
    return replace(WHOLE, records=[*RECORDS, *records])


def changed(place: int, **fields: Any) -> Evidence:
    log = [event_pb2.Event.FromString(event.SerializeToString()) for event in LOG]
    for name, value in fields.items():
        setattr(log[place - 1], name, value)
    return replace(WHOLE, log=log)


AGAIN = a_call(EXECUTE, conductor_pb2.ExecuteResponse(task_id="t"), "t1")
OTHER_TASK = a_call(EXECUTE, conductor_pb2.ExecuteResponse(task_id="u"), "t1")
FAILED = ("task_failed", event_pb2.TaskFailed(error=error_pb2.TypedError()))
SKIPPING = ("stage_status", event_pb2.StageStatusChanged(stage_id=4, status=IN_PROGRESS))

NOTHING_FOUND = event_pb2.WorkerResult(call_id="c1", research=researcher_pb2.ResearchResult())

BROKEN: Sequence[tuple[str, str, Evidence]] = (
    ("nothing acknowledged is lost", "a task", and_then(OTHER_TASK)),
    ("nothing acknowledged is lost", "a confirmation", without(13)),
    (
        "nothing acknowledged is lost",
        "another objective",
        and_then(replace(AGAIN, request=conductor_pb2.ExecuteRequest())),
    ),
    ("nothing acknowledged is lost", "what was seen changed", changed(3, correlation_id="x")),
    ("started means ended, once and last", "no end", renumbered(*TASK[:-1])),
    ("started means ended, once and last", "two ends", renumbered(*TASK, FAILED)),
    ("started means ended, once and last", "not last", renumbered(*TASK, TASK[1])),
    ("started means ended, once and last", "no beginning", renumbered(*TASK[1:])),
    ("every call has its one result", "no result", renumbered(TASK[0], TASK[1], FAILED)),
    ("every call has its one result", "two results", renumbered(TASK[0], TASK[1], TASK[2], TASK[2], TASK[-1])),
    ("every call has its one result", "a result of nothing", renumbered(TASK[0], TASK[2], TASK[-1])),
    ("every call has its one result", "two at once", renumbered(TASK[0], TASK[1], TASK[3], TASK[2], TASK[-1])),
    ("sequences are gapless", "a hole", without(4)),
    ("sequences are gapless", "a hole in a stream", changed(13, stream_sequence=6)),
    ("sequences are gapless", "one event twice", changed(12, event_id="e11")),
    ("subscribers see the log, across reconnects", "missed", and_then(*heard(LOG[1:], "late"))),
    ("subscribers see the log, across reconnects", "twice", and_then(*heard([*LOG, LOG[-1]], "late"))),
    ("subscribers see the log, across reconnects", "backwards", and_then(*heard([LOG[1], LOG[0]], "late"))),
    ("subscribers see the log, across reconnects", "other cursor", and_then(Opened("sub", 0, 2))),
    (
        "subscribers see the log, across reconnects",
        "a checkpoint ahead of its events",
        replace(WHOLE, records=[*heard(LOG[:4]), a_checkpoint(6), *heard(LOG[6:], after=6)]),
    ),
    (
        "subscribers see the log, across reconnects",
        "not of the project",
        and_then(Opened("p-sub", 0, 0, "p"), Heard("p-sub", 0, LOG[0])),
    ),
    ("no stage is skipped", "forward", renumbered(*PROJECT, SKIPPING)),
    ("each Confirm moves one stage", "none", renumbered(*PROJECT[:3])),
    ("each Confirm moves one stage", "half", renumbered(*PROJECT[:4])),
    ("each Confirm moves one stage", "the wrong one", renumbered(*PROJECT[:4], SKIPPING)),
    ("each Confirm moves one stage", "answered twice", renumbered(*PROJECT, *PROJECT[2:])),
    ("each Confirm moves one stage", "acknowledged, not done", and_then(replace(CONFIRMED, request_id="r3"))),
    ("each Confirm moves one stage", "done, not asked for", replace(WHOLE, records=[STALE])),
    ("each Confirm moves one stage", "not together", renumbered(*PROJECT[:4], TASK[0], TASK[1], PROJECT[4])),
    ("no command runs twice", "by two calls", replace(WHOLE, ledger=[Run("c2", "t1c0"), Run("c9", "t1c0")])),
    ("no command runs twice", "by one call", replace(WHOLE, ledger=[Run("c2", "t1c0")] * 2)),
    ("same request, same answer", "two tasks", and_then(OTHER_TASK)),
    (
        "same request, same answer",
        "two states",
        and_then(replace(CONFIRMED, answer=project_pb2.ProjectState(project_id="p", as_of_sequence=12))),
    ),
    (
        "same request, same answer",
        "two tasks of one objective",
        replace(
            WHOLE, log=[*LOG, event_pb2.Event(task_id="u", task_started=event_pb2.TaskStarted(objective=OBJECTIVE))]
        ),
    ),
    ("reports are whole", "not on disk", replace(WHOLE, reports={"t": Report(TEXT, None)})),
    ("reports are whole", "cut", replace(WHOLE, reports={"t": Report(TEXT, TEXT[:-1])})),
    ("reports are whole", "not the one described", replace(WHOLE, reports={"t": Report(TEXT + b"x", TEXT + b"x")})),
    ("reports are whole", "without an answer", replace(WHOLE, reports={"t": Report(TEXT[:-10], TEXT[:-10])})),
    (
        "reports are whole",
        "findings that research did not have",
        renumbered(TASK[0], TASK[1], ("worker_result", NOTHING_FOUND), *TASK[3:]),
    ),
    ("reports are whole", "a step left out", renumbered(*TASK[:3], *TASK[5:])),
    ("reports are whole", "missing", replace(WHOLE, reports={})),
    ("states agree with the log", "a task", replace(WHOLE, tasks={"t": task_pb2.Task(status=3)})),
    ("states agree with the log", "no task", replace(WHOLE, tasks={})),
    ("states agree with the log", "a project", replace(WHOLE, projects={"p": project_pb2.ProjectState()})),
    ("replies are as expected", "a stale answer taken", and_then(replace(CONFIRMED, expects="REFUSED"))),
    ("replies are as expected", "a good one refused", and_then(replace(STALE, expects="OK"))),
    ("replies are as expected", "a fault of ours", and_then(replace(STALE, code="INTERNAL", reason="INTERNAL"))),
    ("replies are as expected", "a process ended by itself", and_then(Happened(1, "BUG: conductor ended by itself"))),
    ("what is healed works", "stuck", replace(WHOLE, stuck=["s0 still waits for an answer"])),
)


@pytest.mark.parametrize(("promise", "_", "evidence"), BROKEN, ids=[f"{name}: {how}" for name, how, _ in BROKEN])
def test_a_broken_promise_is_caught(promise: str, _: str, evidence: Evidence) -> None:
    assert PROMISES[promise](evidence).violations


def test_every_promise_is_kept_by_a_whole_history_and_looked_at() -> None:
    found = verdicts(WHOLE)
    assert {name: verdict.violations for name, verdict in found.items()} == dict.fromkeys(PROMISES, ())
    assert all(verdict.checked for verdict in found.values())
    assert {name for name, _, _ in BROKEN} == set(PROMISES)


def test_an_idempotent_command_may_run_twice() -> None:
    hints = task_pb2.Hints(commands=[terminal_pb2.Command(script="x", env={"TOKEN": "t1c0"}, idempotent=True)])
    started = ("task_started", event_pb2.TaskStarted(objective=OBJECTIVE, hints=hints))
    evidence = replace(renumbered(started, FAILED), ledger=[Run("c1", "t1c0"), Run("c2", "t1c0")])
    assert not PROMISES["no command runs twice"](evidence).violations


def test_a_try_without_a_reply_may_have_been_carried_out_or_not() -> None:
    silent = replace(CONFIRMED, answer=None, code="UNAVAILABLE")
    for records in ([silent], [silent, replace(silent, request_id="r9")]):
        assert not PROMISES["each Confirm moves one stage"](replace(WHOLE, records=records)).violations
    refused = replace(STALE, request_id=silent.request_id)
    assert PROMISES["each Confirm moves one stage"](replace(WHOLE, records=[silent, refused])).violations


def test_a_history_is_one_json_object_a_line(tmp_path: Any) -> None:
    history = History()
    for record in (*RECORDS, Happened(1.5, "begin")):
        history.add(record)
    history.write(tmp_path / "history.jsonl")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == len(RECORDS) + 1 and '"what": "begin"' in lines[-1] and '"task_id": "t"' in lines[0]


def test_a_plan_repeats_itself_and_leaves_out_no_kind_of_fault() -> None:
    targets = ["conductor", "conductor-2", "terminal", "report_writer", "envoy", "postgres", "store-2"]
    faults = plan(7, targets, 300, 3)
    assert faults == plan(7, targets, 300, 3) != plan(8, targets, 300, 3)
    done = {(fault.kind, fault.target) for fault in faults}
    wanted = {(kind, target) for target in targets for kind in KINDS[kind_of(target)]}
    # With a PostgreSQL there are no files of a Conductor that could fill a disk.
    assert wanted - done == {("disk", "conductor"), ("disk", "conductor-2")} and done < wanted
    assert any(fault.kind == "pause" and fault.seconds > 3 for fault in faults)
