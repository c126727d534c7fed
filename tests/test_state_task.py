"""The task machine, pair by pair, against tables written from the contract. Time and ids are given, nothing runs."""

import itertools
from typing import Any

import pytest
from conductor.v1 import conductor_pb2, error_pb2, event_pb2, researcher_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2

from services.common.errors import Reason, typed
from services.conductor.machines import MACHINES
from services.conductor.protocol import (
    SECOND,
    Answered,
    CallWorker,
    CancelCall,
    Expire,
    ExpireLater,
    Given,
    Proceed,
    ProceedLater,
    Progressed,
    Resume,
    Submit,
)
from services.conductor.state import task_state
from tests.conftest import MARKDOWN
from tests.fakes import finding
from tests.test_state import T0, Outcome, attempt, frozen

Status, End = task_pb2.TaskStatus, terminal_pb2.CommandEnd
R, T, W = task_pb2.CAPABILITY_RESEARCHER, task_pb2.CAPABILITY_TERMINAL, task_pb2.CAPABILITY_REPORT_WRITER
UNAVAILABLE = Reason.ERROR_REASON_WORKER_UNAVAILABLE
UNKNOWN = Reason.ERROR_REASON_OUTCOME_UNKNOWN

ONE = [terminal_pb2.Command(argv=["date"])]
TWO = [*ONE, terminal_pb2.Command(script="ls -l")]
IDEMPOTENT = [terminal_pb2.Command(argv=["date"], idempotent=True)]
FREE = [terminal_pb2.Command(argv=["false"], allow_failure=True)]

# What a worker may answer, as fields of its WorkerResult.
FOUND: dict[str, Any] = {"research": researcher_pb2.ResearchResult(findings=[finding()])}
NOTHING: dict[str, Any] = {"research": researcher_pb2.ResearchResult()}
WROTE: dict[str, Any] = {"report": {"path": "reports/task-1.md", "sha256": "0" * 64}}


def ended(end: int = End.COMMAND_END_EXITED, **fields: Any) -> dict[str, Any]:
    result = terminal_pb2.CommandResult(end=end, **fields)
    return {"command": {"command": ONE[0], "result": result, "stdout": b"out"}}


RAN = ended(exit_code=0)


def broke(reason: int) -> dict[str, Any]:
    # The text says the opposite of every reason it is given to: no decision may read it.
    return {"error": typed(reason, "completed; timeout, unavailable: retry or cancel; no findings", exit_code=0)}


class Run:
    """One task, command by command. `at` is the time in seconds since T0 and stands still unless moved."""

    def __init__(self, capabilities: Any = (), commands: Any = (), *, submit: bool = True, **hints: Any) -> None:
        self.state, self.at, self.ids = task_state.initial("task-1"), 0.0, itertools.count(1)
        self.log, self.effects, self.last = list[event_pb2.Event](), list[Any](), list[Any]()
        steers = task_pb2.Hints(capabilities=capabilities, commands=commands, **hints)
        self.request = conductor_pb2.ExecuteRequest(objective="Why?", output_mode=MARKDOWN, hints=steers)
        if submit:
            self.tell(Submit(self.request))

    def tell(self, command: Any) -> Outcome:
        given = Given(T0 * SECOND + int(self.at * SECOND), f"id-{next(self.ids)}", "corr-1")
        outcome = attempt(MACHINES["task"], self.state, command, given)
        self.state, self.last = outcome.state, list(outcome.effects)
        self.log += outcome.events
        self.effects += outcome.effects
        return outcome

    def answer(self, **result: Any) -> Outcome:
        call = self.open
        assert call is not None, self.types
        copy = event_pb2.WorkerResult(call_id=call.call_id, capability=call.capability, **result)
        if copy.HasField("command"):  # the Router repeats the command it sent
            copy.command.command.CopyFrom(self.request.hints.commands[call.command_index])
        return self.tell(Answered(copy))

    def play(self, *answers: dict[str, Any]) -> "Run":
        """Gives the answers to one call after another; between them only what is due is done."""
        for answer in answers:
            self.go_on()
            self.answer(**answer)
        return self.go_on()

    def go_on(self) -> "Run":
        while self.open is None and not self.over:
            due = [effect for effect in self.last if isinstance(effect, ProceedLater)]
            assert len(due) == 1, "neither a call, nor an end, nor anything to come: the task is stuck"
            self.at += due[0].after
            self.tell(Proceed())
        return self

    @property
    def calls(self) -> str:
        """Every call made: worker, index of the command, attempt."""
        made = [e.worker_call for e in self.log if e.type == "conductor.worker.call"]
        names = {R: lambda c: "R", T: lambda c: f"T{c.command_index}", W: lambda c: "W"}
        return " ".join(f"{names[c.capability](c)}#{c.attempt}" for c in made)

    @property
    def open(self) -> event_pb2.WorkerCall | None:
        answered = {e.worker_result.call_id for e in self.log if e.type == "conductor.worker.result"}
        still = [e.worker_call for e in self.log if e.type == "conductor.worker.call"]
        return next((call for call in still if call.call_id not in answered), None)

    @property
    def types(self) -> str:
        return " ".join(event.type.removeprefix("conductor.") for event in self.log)

    @property
    def over(self) -> bool:
        return self.state.task.status in (4, 5, 6)

    @property
    def end(self) -> str:
        """COMPLETED, the reason of a failure, or the status so far."""
        shown = self.state.task
        named = Reason.Name(shown.error.reason) if shown.HasField("error") else Status.Name(shown.status)
        return named.removeprefix("ERROR_REASON_").removeprefix("TASK_STATUS_")


# ---- every status and every command ----


def in_status(status: str, commands: Any = ()) -> Run:
    run = Run([T] if commands else [], commands, submit=status != "NONE")
    if status in ("NONE", "QUEUED"):
        return run
    run.go_on()
    if status == "RUNNING":
        run.answer(**broke(UNAVAILABLE))
    elif status == "COMPLETED":
        run.play(RAN if commands else FOUND, WROTE)
    elif status == "FAILED":
        run.answer(**broke(Reason.ERROR_REASON_WORKER_FAILED))
    elif status == "CANCELLED":
        run.tell(conductor_pb2.CancelTaskRequest(task_id="task-1"))
    return run


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


def command_of(name: str, run: Run) -> Any:
    """`answer` and `progress` are of the latest call: where it has its result, they come late or again."""
    made = [e.worker_call.call_id for e in run.log if e.type == "conductor.worker.call"]
    latest = "call-0" if name.startswith("other") or not made else made[-1]
    return {
        "submit": lambda: Submit(run.request),
        "proceed": Proceed,
        "progress": lambda: Progressed(latest, event_pb2.TaskProgress(message="half", call_id=latest)),
        "answer": lambda: Answered(event_pb2.WorkerResult(call_id=latest, capability=R, **FOUND)),
        "resume": Resume,
        "expire": Expire,
        "cancel": lambda: conductor_pb2.CancelTaskRequest(task_id="task-1", reason="enough"),
    }[name.removeprefix("other ")]()


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


# ---- routes ----

GONE, LATE, BAD = map(broke, (UNAVAILABLE, Reason.ERROR_REASON_WORKER_TIMEOUT, Reason.ERROR_REASON_WORKER_FAILED))
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
    waits = [effect.after for effect in run.effects if isinstance(effect, ProceedLater) and not effect.needs_slot]
    assert len(waits) == attempts - 1 and waits == sorted(set(waits)) and all(0 < wait <= 5 for wait in waits)


def test_a_full_worker_is_waited_for_until_the_deadline_and_costs_no_attempt() -> None:
    full = broke(Reason.ERROR_REASON_OVER_CAPACITY)
    run = Run([T], ONE, max_attempts=1).play(*[full] * 30)
    assert run.calls.endswith("T0#31") and not run.end.startswith("OVER")
    waits = [effect.after for effect in run.effects if isinstance(effect, ProceedLater) and not effect.needs_slot]
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
