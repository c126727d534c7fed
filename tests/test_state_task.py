"""The task machine, pair by pair, against tables written from the contract. Time and ids are given, nothing runs."""

from typing import Any

import pytest
from conductor.v1 import error_pb2, event_pb2

from services.common.errors import Reason
from services.conductor.protocol import (
    Answered,
    CancelCall,
    ExpireLater,
    ProceedLater,
    Resume,
)
from tests.fakes import finding
from tests.task_runs import (
    BAD,
    FOUND,
    GONE,
    IDEMPOTENT,
    LATE,
    NOTHING,
    ONE,
    RAN,
    TWO,
    UNAVAILABLE,
    WROTE,
    R,
    Run,
    Status,
    T,
    broke,
    command_of,
    ended,
    in_status,
)
from tests.test_state import frozen

UNKNOWN = Reason.ERROR_REASON_OUTCOME_UNKNOWN

# What each command writes, as event types without their first word. "-": nothing changes, nothing is written.
# "slot": nothing is written either, but the task is put in line for a slot and its deadline is kept in mind.
STATUSES = ("NONE", "QUEUED", "RUNNING", "WAITING_WORKER", "COMPLETED", "FAILED", "CANCELLED")
TASK_TABLE = {
    # command         NONE      QUEUED           RUNNING    WAITING_WORKER           COMPLETED FAILED   CANCELLED
    "submit": "       started   -                -          -                        -         -        -",
    "proceed": "      -         progress+call    call       -                        -         -        -",
    "progress": "     -         -                -          progress                 -         -        -",
    "answer": "       -         -                -          result+call              -         -        -",
    "other progress": "-        -                -          -                        -         -        -",
    "other answer": " -         -                -          -                        -         -        -",
    "resume": "       -         slot             slot       result                   -         -        -",
    "expire": "       -         failed           failed     result+failed            -         -        -",
    "cancel": "       refused   cancelled        cancelled  result+cancelled         refused   refused  refused",
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("name", TASK_TABLE)
def test_every_command_does_in_every_status_what_the_table_says(name: str, status: str) -> None:
    run = in_status(status)
    assert Status.Name(run.state.task.status).removeprefix("TASK_STATUS_") in (status, "UNSPECIFIED")
    expected = TASK_TABLE[name].split()[STATUSES.index(status)]
    before = frozen(run.state)
    outcome = run.tell(command_of(name, run))
    written = [event.type.removeprefix("conductor.").partition(".")[2] for event in outcome.events]
    assert written == ([] if expected in ("-", "slot", "refused") else expected.split("+"))
    if not written:
        assert frozen(run.state) == before
        assert {type(effect) for effect in outcome.effects} == (
            {ProceedLater, ExpireLater} if expected == "slot" else set()
        )
    assert (outcome.error is not None) == (expected == "refused")
    if outcome.error is not None:
        assert outcome.error.reason == Reason.ERROR_REASON_ILLEGAL_TRANSITION and not outcome.error.retryable
        found = "TASK_STATUS_UNSPECIFIED" if status == "NONE" else f"TASK_STATUS_{status}"
        assert dict(outcome.error.metadata) == {"found": found, "allowed": ""} and found in outcome.error.message


@pytest.mark.parametrize("commands", [(), ONE, IDEMPOTENT], ids=["research", "command", "idempotent command"])
@pytest.mark.parametrize("status", STATUSES[1:5])
def test_cancelling_ends_the_task_at_once_stops_the_call_and_gives_it_its_result(status: str, commands: Any) -> None:
    run = in_status(status, commands)
    call, before = run.open, len(run.log)
    outcome = run.tell(command_of("cancel", run))
    if status == "COMPLETED":
        assert outcome.error is not None
        return
    assert run.end == "TASK_CANCELLED" and run.log[-1].task_cancelled.reason == "enough"
    assert run.state.task.error.kind == error_pb2.ERROR_KIND_CANCELLED and run.state.task.HasField("completed_at")
    stopped = [e.worker_result for e in run.log[before:] if e.type == "conductor.worker.result"]
    found = [(result.call_id, result.error.reason) for result in stopped]
    assert found == ([(call.call_id, Reason.ERROR_REASON_TASK_CANCELLED)] if call else [])
    assert outcome.effects == ((CancelCall(call.call_id),) if call else ())


@pytest.mark.parametrize(
    ("commands", "answers", "repeated"),
    [((), [], True), (ONE, [], False), (IDEMPOTENT, [], True), (ONE, [RAN], True)],
    ids=["research", "command", "idempotent command", "report"],
)
def test_after_a_crash_an_open_call_is_made_again_unless_it_was_a_command_that_must_not_be(
    commands: Any, answers: Any, repeated: bool
) -> None:
    run = Run([T] if commands else [], commands, max_attempts=1).play(*answers)
    lost, before = run.open, len(run.log)
    assert lost is not None
    run.tell(Resume())
    result = run.log[before].worker_result
    assert (result.call_id, result.capability) == (lost.call_id, lost.capability)
    assert result.error.reason == UNKNOWN and result.error.retryable and result.error.metadata["call_id"]
    if not repeated:
        assert run.end == "OUTCOME_UNKNOWN" and run.state.task.error.retryable and not run.last
        return
    assert ProceedLater(0, needs_slot=True) in run.last and not run.over
    run.go_on()
    again = run.open
    assert again is not None and again.call_id != lost.call_id and again.attempt == lost.attempt + 1
    late = event_pb2.WorkerResult(call_id=lost.call_id, capability=lost.capability, **broke(UNAVAILABLE))
    assert not run.tell(Answered(late)).events and run.open == again


ROUTES = [
    # capabilities, commands, answers → calls, end
    ([], [], [FOUND, WROTE], "R#1 W#1", "COMPLETED"),
    ([], TWO, [FOUND, WROTE], "R#1 W#1", "COMPLETED"),
    ([], [], [NOTHING, WROTE], "R#1 W#1", "COMPLETED"),
    ([], TWO, [NOTHING, RAN, RAN, WROTE], "R#1 T0#1 T1#1 W#1", "COMPLETED"),
    ([], TWO, [GONE, GONE, RAN, RAN, WROTE], "R#1 R#2 T0#1 T1#1 W#1", "COMPLETED"),
    ([], ONE, [LATE, LATE, RAN, WROTE], "R#1 R#2 T0#1 W#1", "COMPLETED"),
    ([], ONE, [GONE, FOUND, WROTE], "R#1 R#2 W#1", "COMPLETED"),
    ([], ONE, [BAD], "R#1", "WORKER_FAILED"),
    ([], [], [GONE, GONE], "R#1 R#2", "WORKER_UNAVAILABLE"),
    ([], ONE, [GONE, GONE, GONE, GONE], "R#1 R#2 T0#1 T0#2", "WORKER_UNAVAILABLE"),
    ([R], ONE, [GONE, GONE], "R#1 R#2", "WORKER_UNAVAILABLE"),
    ([R], ONE, [LATE, LATE], "R#1 R#2", "WORKER_TIMEOUT"),
    ([R], ONE, [NOTHING, WROTE], "R#1 W#1", "COMPLETED"),
    ([T], TWO, [RAN, RAN, WROTE], "T0#1 T1#1 W#1", "COMPLETED"),
    ([T, R], TWO, [RAN, RAN, FOUND, WROTE], "T0#1 T1#1 R#1 W#1", "COMPLETED"),
    ([R, T], TWO, [NOTHING, RAN, RAN, WROTE], "R#1 T0#1 T1#1 W#1", "COMPLETED"),
    ([R, T], ONE, [GONE, GONE], "R#1 R#2", "WORKER_UNAVAILABLE"),
    ([T], TWO, [RAN, GONE, RAN, WROTE], "T0#1 T1#1 T1#2 W#1", "COMPLETED"),
    ([T, R], TWO, [ended(exit_code=3)], "T0#1", "COMMAND_FAILED"),
]


@pytest.mark.parametrize("case", ROUTES)
def test_a_task_goes_to_the_workers_its_hints_and_their_answers_ask_for(case: Any) -> None:
    capabilities, commands, answers, calls, end = case
    run = Run(capabilities, commands).play(*answers)
    assert (run.calls, run.end) == (calls, end)
    routes = [e.task_progress.route for e in run.log if e.task_progress.HasField("route")]
    first = event_pb2.ROUTE_REASON_HINTS if capabilities else event_pb2.ROUTE_REASON_DEFAULT
    assert (routes[0].reason, list(routes[0].capabilities)) == (first, capabilities or [R])
    why = event_pb2.ROUTE_REASON_NO_FINDINGS if answers[0] is NOTHING else event_pb2.ROUTE_REASON_RESEARCHER_UNAVAILABLE
    second = [(why, [T])] if not capabilities and "T" in calls else []
    assert [(route.reason, list(route.capabilities)) for route in routes[1:]] == second


def test_the_report_is_given_what_was_found_what_was_run_and_that_the_researcher_was_missed() -> None:
    both = Run([R, T], TWO).play(FOUND, RAN, RAN).last[-1].request
    assert [f.statement for f in both.findings] == [finding().statement] and len(both.commands) == 2
    assert (both.task_id, both.objective) == ("task-1", "Why?") and len(both.provenance.workers) == 3
    missed = Run([], ONE).play(GONE, GONE, RAN).last[-1].request
    assert not missed.findings and len(missed.commands) == 1 and len(missed.gaps) == 1
