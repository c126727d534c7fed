"""The project machine, pair by pair, against a table written from the contract. Time and ids are given, nothing runs.

The task machine has its table in test_state_task.py, which uses `attempt` and `frozen` from here, as the models do.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
from conductor.v1 import conductor_pb2, error_pb2, event_pb2, project_pb2
from google.protobuf.message import Message

from services.common.errors import Reason, Refusal, typed
from services.conductor.protocol import SECOND, Given
from services.conductor.state import project

T0 = 1_800_000_000  # seconds since the epoch


@dataclass
class Outcome:
    """What a command came to: a new state with events and effects, or an error."""

    state: Any
    events: Sequence[event_pb2.Event] = ()
    effects: Sequence[Any] = ()
    error: error_pb2.TypedError | None = None


def frozen(value: Any) -> Any:
    """Returns everything a state holds as something comparable byte for byte."""
    if isinstance(value, Message):
        return value.SerializeToString(deterministic=True)
    if is_dataclass(value):
        return tuple(frozen(getattr(value, each.name)) for each in fields(value))
    return tuple(map(frozen, value)) if isinstance(value, tuple) else value


def attempt(machine: Any, state: Any, command: Any, given: Given) -> Outcome:
    """Decides and evolves, and makes sure that neither touches what it was given."""
    before, asked = frozen(state), frozen(command)
    try:
        decision = machine.decide(state, command, given)
    except Refusal as refusal:
        assert (frozen(state), frozen(command)) == (before, asked)
        return Outcome(state, error=refusal.error)
    assert (frozen(state), frozen(command)) == (before, asked)
    for event in decision.events:
        assert event.occurred_at.ToNanoseconds() == given.at
        before, told = frozen(state), frozen(event)
        after = machine.evolve(state, event)
        assert (frozen(state), frozen(event)) == (before, told)
        state = after
    assert not decision.events or frozen(decision.after) == frozen(state)
    return Outcome(state, decision.events, decision.effects)


# ---- projects ----

Stage, Status = project_pb2.Stage, project_pb2.StageStatus
UNSPECIFIED, PENDING, IN_PROGRESS, WAITING, COMPLETED, FAILED, SKIPPED = Status.values()
STAGES = range(1, 9)
FIRST, LAST = 1, 8
ENDED = (COMPLETED, FAILED, SKIPPED)

# May it be done in this status of the current stage? "x" yes, "." no; "u" unless a plan is pending, which is a gate
# of its own; "n" where there is a next stage. What is not in the table is refused: skipping forward, an earlier or a
# later stage made anything else than IN_PROGRESS, PENDING or WAITING_CONFIRMATION as a reported status.
#               on the current stage:  IN_PROGRESS COMPLETED FAILED SKIPPED  next earlier  ask plan approve reject
PROJECT_TABLE = {
    IN_PROGRESS: "                     x           u         x      u        .    x        x   x    x       x",
    WAITING: "                         x           .         x      .        .    x        x   x    x       x",
    COMPLETED: "                       x           .         .      .        n    x        .   .    n       .",
    FAILED: "                          x           .         .      x        .    x        .   .    .       .",
    SKIPPED: "                         x           .         .      .        n    x        .   .    .       .",
}
COLUMNS = (IN_PROGRESS, COMPLETED, FAILED, SKIPPED, "next", "earlier", "ask", "plan", "approve", "reject")
GATES: dict[str, Any] = {
    "ask": lambda stage: conductor_pb2.WaitForConfirmationRequest(stage_id=stage, summary="look", next_actions=["a"]),
    "plan": lambda stage: conductor_pb2.ProposePlanRequest(stage_id=stage, summary="thus", steps=["one", "two"]),
    "approve": lambda _: conductor_pb2.ConfirmRequest(),
    "reject": lambda _: conductor_pb2.ConfirmRequest(approved=False, reason="not yet"),
}


@dataclass(frozen=True)
class Situation:
    """Where a project stands. `plan` is "", "pending", or "earlier": approved in the stage before."""

    stage: int
    status: int
    plan: str = ""

    def may(self, column: Any) -> bool:
        cell = PROJECT_TABLE[self.status].split()[COLUMNS.index(column)]
        return {"x": True, ".": False, "u": self.plan != "pending", "n": self.stage != LAST}[cell]

    def may_move(self, target: int, wanted: int) -> bool:
        if target == self.stage:
            return wanted in COLUMNS and self.may(wanted)
        column = "earlier" if target < self.stage else "next"
        return wanted == IN_PROGRESS and target <= self.stage + 1 and self.may(column)

    def state(self) -> project_pb2.ProjectState:
        state = project_pb2.ProjectState(project_id="p", current_stage=self.stage)
        for number in STAGES:
            shown = state.stages.add(stage_id=number, status=COMPLETED if number < self.stage else PENDING)
            if number <= self.stage:
                shown.message = "so far"
                shown.started_at.seconds = T0 + number
        current = state.stages[self.stage - 1]
        current.status = self.status
        for shown in state.stages:
            if shown.status in ENDED:
                shown.completed_at.seconds = T0 + shown.stage_id + 1
        if self.status == FAILED:
            current.error.reason = Reason.ERROR_REASON_WORKER_FAILED
        if self.status == WAITING:
            waiting = state.waiting_confirmation
            waiting.confirmation_id, waiting.stage_id = "conf-1", self.stage
        if self.plan:
            pending = self.plan == "pending"
            state.plan.plan_id, state.plan.stage_id = "plan-1", self.stage if pending else self.stage - 1
            state.plan_pending, state.plan_approved = pending, not pending
            current.plan_pending = pending
        state.created_at.seconds = state.updated_at.seconds = T0
        return state


def situations(*statuses: int) -> Iterator[Situation]:
    for stage, status, plan in itertools.product(STAGES, statuses, ("", "pending", "earlier")):
        if (plan != "pending" or status in (IN_PROGRESS, WAITING)) and (plan != "earlier" or stage > FIRST):
            yield Situation(stage, status, plan)


def ask_project(state: project_pb2.ProjectState, command: Any, identity: str = "new-1", at: int = T0 + 60) -> Outcome:
    command.project_id = state.project_id
    return attempt(project, state, command, Given(at * SECOND, identity, "corr-1"))


def move(stage: int, status: int = UNSPECIFIED, message: str = "", **fields: Any) -> Any:
    return conductor_pb2.TransitionToRequest(stage_id=stage, status=status, message=message, **fields)


def stage_events(outcome: Outcome) -> list[tuple[int, int]]:
    return [(e.stage_status.stage_id, e.stage_status.status) for e in outcome.events if e.type == "STAGE_STATUS"]


def check_refused(outcome: Outcome, where: Situation, reason: int = Reason.ERROR_REASON_ILLEGAL_TRANSITION) -> None:
    error = outcome.error
    assert error is not None and not outcome.events, where
    assert (error.reason, error.kind, error.retryable) == (reason, error_pb2.ERROR_KIND_VALIDATION, False)
    assert error.metadata["found"] == Status.Name(where.status) in error.message or "finished" in error.message
    assert error.metadata["stage_id"] == Stage.Name(where.stage)
    assert set(error.metadata["allowed"].split(", ")) == set(allowed_texts(where))


def allowed_texts(where: Situation) -> Iterator[str]:
    for status in (IN_PROGRESS, COMPLETED, FAILED, SKIPPED):
        if where.may(status):
            yield f"{Stage.Name(where.stage)}→{Status.Name(status)}"
    if where.may("next"):
        yield f"{Stage.Name(where.stage + 1)}→STAGE_STATUS_IN_PROGRESS"
    if where.stage > FIRST:
        yield "any earlier stage→STAGE_STATUS_IN_PROGRESS"
    names = {"ask": "WaitForConfirmation", "plan": "ProposePlan", "approve": "Confirm"}
    yield from (name for column, name in names.items() if where.may(column))


def check_moved(where: Situation, outcome: Outcome, target: int, wanted: int) -> None:
    before, after, stage = where.state(), outcome.state, outcome.state.stages[target - 1]
    resets = [(later, PENDING) for later in range(target + 1, where.stage + 1)]
    assert sorted(stage_events(outcome)) == sorted([*resets, (target, wanted)])
    assert after.current_stage == target
    assert after.stages[: target - 1] == before.stages[: target - 1]
    assert after.stages[target:] == [project_pb2.StageState(stage_id=s, status=PENDING) for s in STAGES[target:]]
    assert (stage.status, stage.message) == (wanted, "said")
    assert stage.HasField("started_at")
    assert stage.HasField("completed_at") == (wanted in ENDED)
    assert stage.HasField("error") == (wanted == FAILED)
    assert not after.HasField("waiting_confirmation")
    goes_on = target == where.stage and where.status in (IN_PROGRESS, WAITING)
    kept = bool(where.plan) and (before.plan.stage_id < target or goes_on)
    assert after.HasField("plan") == kept
    assert after.plan_approved == (kept and where.plan == "earlier")
    assert after.plan_pending == stage.plan_pending == (kept and where.plan == "pending" and wanted == IN_PROGRESS)


@pytest.mark.parametrize("status", PROJECT_TABLE, ids=Status.Name)
def test_every_transition_is_done_or_refused_as_the_table_says(status: int) -> None:
    for where, target, wanted in itertools.product(list(situations(status)), STAGES, Status.values()):
        outcome = ask_project(where.state(), move(target, wanted, "said"))
        if not where.may_move(target, wanted or IN_PROGRESS):
            check_refused(outcome, where)
            continue
        assert outcome.error is None, (where, target, wanted)
        check_moved(where, outcome, target, wanted or IN_PROGRESS)


@pytest.mark.parametrize("column", ["ask", "plan"])
def test_a_gate_can_be_put_on_the_current_stage_only_and_only_while_it_is_worked_on(column: str) -> None:
    for where, target in itertools.product(list(situations(*PROJECT_TABLE)), STAGES):
        outcome = ask_project(where.state(), GATES[column](target))
        if target != where.stage or not where.may(column):
            check_refused(outcome, where)
            continue
        after, stage = outcome.state, outcome.state.stages[target - 1]
        assert after.current_stage == target and not stage.HasField("completed_at")
        if column == "ask":
            asked = after.waiting_confirmation
            assert (asked.confirmation_id, asked.stage_id, asked.summary) == ("new-1", target, "look")
            assert list(asked.next_actions) == ["a"] and asked.requested_at.seconds == T0 + 60
            assert stage.status == WAITING and after.plan_pending == (where.plan == "pending")
        else:
            assert (after.plan.plan_id, after.plan.stage_id, after.plan.summary) == ("new-1", target, "thus")
            assert list(after.plan.steps) == ["one", "two"] and after.plan.proposed_at.seconds == T0 + 60
            assert after.plan_pending and stage.plan_pending and not after.plan_approved
            assert after.waiting_confirmation == where.state().waiting_confirmation and stage.status == where.status


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "naming all that waits"])
def test_approving_completes_one_stage_and_starts_the_next_with_two_stage_events(named: bool) -> None:
    for where in situations(*PROJECT_TABLE):
        before = where.state()
        pending = where.plan == "pending"
        seen = {"stage_id": where.stage, "confirmation_id": before.waiting_confirmation.confirmation_id}
        seen |= {"plan_id": "plan-1"} if pending else {}
        outcome = ask_project(before, conductor_pb2.ConfirmRequest(**seen if named else {}))
        if not where.may("approve"):
            check_refused(outcome, where, Reason.ERROR_REASON_NOTHING_TO_CONFIRM)
            continue
        last = where.stage == LAST
        assert stage_events(outcome) == [(where.stage, COMPLETED), (where.stage + 1, IN_PROGRESS)][: 1 if last else 2]
        types = [event.type for event in outcome.events]
        assert (types.count("CONFIRMATION_ANSWERED"), types.count("PLAN_APPROVED")) == (1, pending)
        after = outcome.state
        assert after.current_stage == where.stage + (not last)
        assert [s.status for s in after.stages] == [
            COMPLETED if s <= where.stage else IN_PROGRESS if s == where.stage + 1 else PENDING for s in STAGES
        ]
        assert not after.HasField("waiting_confirmation") and not after.plan_pending
        assert after.plan_approved == bool(where.plan) and not any(s.plan_pending for s in after.stages)


def test_rejecting_sends_the_stage_back_to_work_with_the_reason() -> None:
    for where in situations(*PROJECT_TABLE):
        outcome = ask_project(where.state(), GATES["reject"](where.stage))
        if not where.may("reject"):
            check_refused(outcome, where, Reason.ERROR_REASON_NOTHING_TO_CONFIRM)
            continue
        after, stage = outcome.state, outcome.state.stages[where.stage - 1]
        assert stage_events(outcome) == [(where.stage, IN_PROGRESS)] and after.current_stage == where.stage
        assert (stage.status, stage.message) == (IN_PROGRESS, "not yet") and not stage.HasField("completed_at")
        answered = outcome.events[0].confirmation_answered
        assert (answered.approved, answered.reason, answered.stage_id) == (False, "not yet", where.stage)
        assert not after.HasField("waiting_confirmation") and not after.plan_pending and not stage.plan_pending
        assert after.plan_approved == (where.plan == "earlier")


def test_an_answer_that_names_anything_but_what_waits_is_stale_in_every_state() -> None:
    for where, approved in itertools.product(list(situations(*PROJECT_TABLE)), (None, True, False)):
        before = where.state()
        wrong = [{"stage_id": stage} for stage in STAGES if stage != where.stage] + [{"confirmation_id": "conf-0"}]
        wrong += [{"plan_id": "plan-0"}, {"stage_id": where.stage, "confirmation_id": "conf-1", "plan_id": "plan-0"}]
        wrong += [{"confirmation_id": "conf-1"}] if where.status != WAITING else []
        wrong += [{"plan_id": "plan-1"}] if where.plan != "pending" else []
        for named in wrong:
            outcome = ask_project(before, conductor_pb2.ConfirmRequest(approved=approved, reason="no", **named))
            error = outcome.error
            assert error and error.reason == Reason.ERROR_REASON_STALE_CONFIRMATION, (where, named)
            assert {"named", "found"} <= set(error.metadata) and not outcome.events
            assert error.metadata["stage_id"] == Stage.Name(where.stage)
            assert set(error.metadata["allowed"].split(", ")) == set(allowed_texts(where))


# ---- projects, step by step ----


class Walk:
    """One project, command by command, one second after another."""

    def __init__(self) -> None:
        self.state, self.at, self.events = project.initial("p"), T0, list[event_pb2.Event]()

    def does(self, command: Any, identity: str = "new-1") -> Outcome:
        self.at += 1
        outcome = ask_project(self.state, command, identity, self.at)
        self.state = outcome.state
        self.events += outcome.events
        return outcome

    def stage(self, number: int) -> project_pb2.StageState:
        return self.state.stages[number - 1]


def test_a_project_nobody_wrote_to_has_its_first_stage_in_progress_and_all_others_pending() -> None:
    state = project.initial("p")
    assert [s.stage_id for s in state.stages] == list(STAGES) and state.current_stage == FIRST
    assert [s.status for s in state.stages] == [IN_PROGRESS] + [PENDING] * 7
    shown = {field.name for part in (state, *state.stages) for field, _ in part.ListFields()}
    assert shown == {"project_id", "stages", "current_stage", "stage_id", "status"}


def test_eight_answers_end_a_project_and_the_ninth_is_told_that_nothing_waits() -> None:
    walk = Walk()
    for stage in STAGES:
        assert walk.state.current_stage == stage
        walk.does(conductor_pb2.ConfirmRequest(stage_id=stage))
    assert {s.status for s in walk.state.stages} == {COMPLETED} and walk.state.current_stage == LAST
    for column in ("approve", "reject"):
        error = walk.does(GATES[column](LAST)).error
        assert error and error.reason == Reason.ERROR_REASON_NOTHING_TO_CONFIRM


@pytest.mark.parametrize("seen", ["stage_id", "confirmation_id", "plan_id"])
def test_a_repeated_answer_skips_nothing(seen: str) -> None:
    walk = Walk()
    walk.does(GATES["plan"](1), "plan-1")
    walk.does(GATES["ask"](1), "conf-1")
    names = {"stage_id": 1, "confirmation_id": "conf-1", "plan_id": "plan-1"}
    answer = conductor_pb2.ConfirmRequest(**{seen: names[seen]})
    assert walk.does(answer).error is None and walk.state.current_stage == 2 and walk.state.plan_approved
    for prepare in ("", "ask", "plan"):  # whatever waits now, the old answer is not for it
        if prepare:
            walk.does(GATES[prepare](2), "other-" + prepare)
        error = walk.does(answer).error
        assert error and error.reason == Reason.ERROR_REASON_STALE_CONFIRMATION
        assert walk.state.current_stage == 2


@pytest.mark.parametrize("column", ["ask", "plan"])
def test_asking_again_replaces_what_was_asked_and_the_old_answer_is_stale(column: str) -> None:
    walk, name = Walk(), {"ask": "confirmation_id", "plan": "plan_id"}[column]
    walk.does(GATES[column](1), "old")
    walk.does(GATES[column](1), "new")
    error = walk.does(conductor_pb2.ConfirmRequest(**{name: "old"})).error
    assert error and error.reason == Reason.ERROR_REASON_STALE_CONFIRMATION
    assert {"named": "old", "found": "new"}.items() <= dict(error.metadata).items()
    assert walk.does(conductor_pb2.ConfirmRequest(**{name: "new"})).error is None and walk.state.current_stage == 2


def test_going_back_voids_the_confirmation_and_the_plan_that_waited() -> None:
    walk = Walk()
    for _ in range(4):
        walk.does(GATES["approve"](0))
    walk.does(GATES["plan"](5), "plan-1")
    walk.does(GATES["ask"](5), "conf-1")
    walk.does(move(3, message="other columns"))
    assert not walk.state.HasField("plan") and not walk.state.HasField("waiting_confirmation")
    for named in ({"confirmation_id": "conf-1"}, {"plan_id": "plan-1"}, {"stage_id": 5}):
        error = walk.does(conductor_pb2.ConfirmRequest(**named)).error
        assert error and error.reason == Reason.ERROR_REASON_STALE_CONFIRMATION
    assert walk.stage(3).message == "other columns" and walk.state.current_stage == 3


def test_a_failed_stage_carries_the_runners_error_or_one_made_from_its_message_until_it_is_tried_again() -> None:
    error = typed(Reason.ERROR_REASON_COMMAND_FAILED, "It exited with 3.", exit_code=3)
    for given in ({"error": error, "message": "no"}, {"message": "no data"}, {}):
        walk = Walk()
        outcome = walk.does(move(1, FAILED, **given))
        found = walk.stage(1).error
        assert found == outcome.events[-1].stage_status.error and found.reason and found.kind and found.message
        assert found == error if "error" in given else given.get("message", "") in found.message
        walk.does(move(1))
        assert walk.stage(1).status == IN_PROGRESS and not walk.stage(1).HasField("error")


def test_a_stage_started_when_its_work_began_and_completed_when_it_ended() -> None:
    walk = Walk()
    walk.does(GATES["approve"](0))
    started = walk.at
    for command in (GATES["ask"](2), GATES["reject"](2), move(2), move(2, FAILED)):
        walk.does(command)
        assert walk.stage(2).started_at.seconds == started
    assert walk.stage(2).completed_at.seconds == walk.at
    shown = walk.does(move(2)).state
    assert (shown.stages[1].started_at.seconds, shown.updated_at.seconds) == (walk.at, walk.at)
    assert shown.created_at.seconds == T0 + 1


@pytest.mark.parametrize("first", [move(1), move(1, COMPLETED), *(GATES[name](1) for name in GATES)])
def test_the_first_stage_of_a_written_project_has_a_start(first: Any) -> None:
    assert Walk().does(first).state.stages[0].HasField("started_at")


def test_confirming_what_a_runner_completed_does_not_move_its_end() -> None:
    walk = Walk()
    ended = walk.does(move(1, COMPLETED)).state.stages[0].completed_at
    assert walk.does(GATES["approve"](1)).state.stages[0].completed_at == ended
