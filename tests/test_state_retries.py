"""How a task goes on: retries, ends of commands, limits, deadlines."""

import itertools
from typing import Any

import pytest
from conductor.v1 import terminal_pb2
from google.protobuf import duration_pb2

from services.common.errors import Reason, typed
from services.conductor.protocol import (
    SECOND,
    CallWorker,
    CancelCall,
    ExpireLater,
    ProceedLater,
    Resume,
)
from tests.task_runs import (
    FOUND,
    GONE,
    IDEMPOTENT,
    ONE,
    RAN,
    UNAVAILABLE,
    WROTE,
    End,
    R,
    Run,
    T,
    broke,
    command_of,
    ended,
    in_status,
)
from tests.test_state import T0

FREE = [terminal_pb2.Command(argv=["false"], allow_failure=True)]

# ---- retries, ends of commands, limits ----


@pytest.mark.parametrize("reason", Reason.values()[1:], ids=Reason.Name)
def test_only_what_may_succeed_later_is_tried_again_and_no_command_that_may_have_run(reason: int) -> None:
    never_ran = reason in (UNAVAILABLE, Reason.ERROR_REASON_OVER_CAPACITY, Reason.ERROR_REASON_SHUTTING_DOWN)
    for capabilities, commands, answers in (([R], (), []), ([T], ONE, []), ([T], IDEMPOTENT, []), ([R], (), [FOUND])):
        run = Run(capabilities, commands).play(*answers, broke(reason))
        may = typed(reason, "").retryable and (commands is not ONE or never_ran)
        assert run.calls.endswith("#2") == may, (run.calls, commands)
        if not may:
            assert run.state.task.error == run.log[-1].task_failed.error == broke(reason)["error"]


@pytest.mark.parametrize("given", [0, 1, 2, 3, 4, 5])
def test_a_worker_is_tried_max_attempts_times_in_all_with_growing_pauses(given: int) -> None:
    attempts = given or 2
    run = Run([R], max_attempts=given).play(*[GONE] * attempts)
    assert run.calls == " ".join(f"R#{n}" for n in range(1, attempts + 1)) and run.end == "WORKER_UNAVAILABLE"
    waits = [effect.after for effect in run.effects if isinstance(effect, ProceedLater) and effect.after]
    assert len(waits) == attempts - 1 and waits == sorted(set(waits)) and all(0 < wait <= 5 for wait in waits)


def test_a_full_worker_is_waited_for_until_the_deadline_and_costs_no_attempt() -> None:
    full = broke(Reason.ERROR_REASON_OVER_CAPACITY)
    run = Run([T], ONE, max_attempts=1).play(*[full] * 30)
    assert run.calls.endswith("T0#31") and not run.end.startswith("OVER")
    waits = [effect.after for effect in run.effects if isinstance(effect, ProceedLater) and effect.after]
    assert len(waits) == 30 and waits == sorted(waits) and waits[-1] <= 5
    run = Run([R], max_attempts=2).play(full, full, GONE, GONE)
    assert (run.calls, run.end) == ("R#1 R#2 R#3 R#4", "WORKER_UNAVAILABLE")


LIMITS = ("WALL_TIME", "CPU_TIME", "MEMORY", "PROCESSES", "FILE_SIZE", "WORKSPACE")
ENDS = [
    (ONE, ended(exit_code=0), "WAITING_WORKER", {}),
    (ONE, ended(exit_code=3), "COMMAND_FAILED", {"exit_code": "3", "command": "1"}),
    (FREE, ended(exit_code=3), "WAITING_WORKER", {}),
    (ONE, ended(End.COMMAND_END_SIGNALED, signal=9), "COMMAND_FAILED", {"signal": "9", "command": "1"}),
]
for limit, command in itertools.product(LIMITS, (ONE, FREE)):
    end = f"COMMAND_END_{limit}"
    ENDS.append((command, ended(End.Value(end)), "COMMAND_LIMIT_EXCEEDED", {"limit": end, "command": "1"}))


@pytest.mark.parametrize(("commands", "answer", "end", "metadata"), ENDS)
def test_how_a_command_ended_decides_how_its_task_goes_on(commands: Any, answer: Any, end: str, metadata: Any) -> None:
    run = Run([T], commands).play(answer)
    assert run.end == end and dict(run.state.task.error.metadata) == metadata
    result = next(e.worker_result for e in run.log if e.type == "conductor.worker.result")
    assert result.command.stdout == b"out" and result.error == run.state.task.error


@pytest.mark.parametrize("answer", [ended(0), ended(99), ended()], ids=["unspecified", "unknown", "no exit code"])
def test_an_answer_that_breaks_the_terminals_contract_fails_the_task_as_such(answer: Any) -> None:
    assert Run([T], FREE).play(answer).end == "WORKER_PROTOCOL"


@pytest.mark.parametrize(("commands", "calls"), [(ONE, "T0#1"), (IDEMPOTENT, "T0#1 T0#2")])
def test_a_command_killed_because_the_terminal_stops_has_an_unknown_outcome(commands: Any, calls: str) -> None:
    run = Run([T], commands).play(ended(End.COMMAND_END_CANCELLED))
    assert run.calls == calls and run.end == ("OUTCOME_UNKNOWN" if commands is ONE else "WAITING_WORKER")


@pytest.mark.parametrize("by", ["its timer", "the next command"])
@pytest.mark.parametrize("deadline_s", [600, 7])
@pytest.mark.parametrize("status", ["QUEUED", "RUNNING", "WAITING_WORKER"])
def test_a_task_whose_deadline_passed_fails_with_that_and_calls_nobody(status: str, deadline_s: int, by: str) -> None:
    run = Run([R], **({} if deadline_s == 600 else {"deadline": duration_pb2.Duration(seconds=deadline_s)}))
    assert ExpireLater(deadline_s) in run.effects
    if status != "QUEUED":
        run.go_on()
    if status == "RUNNING":
        run.answer(**GONE)
    call, calls, run.at = run.open, run.calls, deadline_s
    run.tell(command_of("expire" if by == "its timer" else "answer" if call else "proceed", run))
    assert (run.end, run.calls, run.open) == ("TASK_DEADLINE_EXCEEDED", calls, None)
    assert run.last == ([CancelCall(call.call_id)] if call and by == "its timer" else [])
    assert run.state.task.error.metadata["deadline_s"] == str(deadline_s)


def test_after_a_crash_a_task_has_the_time_that_is_left_and_not_all_of_it_again() -> None:
    for run in map(in_status, ("QUEUED", "RUNNING", "WAITING_WORKER")):
        run.at = 250
        assert ExpireLater(350) in run.tell(Resume()).effects


def test_no_call_may_take_longer_than_its_task() -> None:
    timeout = duration_pb2.Duration(seconds=3600)
    slow = [terminal_pb2.Command(argv=["a"], limits=terminal_pb2.Limits(wall_time=timeout))]
    run = Run([T, R], slow, research={"timeout": timeout}, deadline=duration_pb2.Duration(seconds=9))
    for answer, left in ((RAN, 9.0), (FOUND, 7.0), (WROTE, 5.0)):
        run.go_on()
        (call,) = (effect for effect in run.last if isinstance(effect, CallWorker))
        assert run.open and call.call_id == run.open.call_id and 0 < call.timeout <= left
        assert run.open.deadline.ToNanoseconds() <= (T0 + 9) * SECOND
        run.at += 2
        run.answer(**answer)
    assert run.end == "COMPLETED"


def test_a_chatty_worker_floods_nothing_and_its_answer_still_counts() -> None:
    run = Run().go_on()
    for _ in range(1000):
        run.tell(command_of("progress", run))
    assert 1 < run.types.split().count("task.progress") <= 1 + 50 + 100  # the route, sentences, activity
    assert not run.tell(command_of("progress", run)).events
    assert run.play(FOUND, WROTE).end == "COMPLETED"
