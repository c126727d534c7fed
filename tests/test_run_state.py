"""The machine of a run, pair by pair against a table written from the contract, and against a naive model."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conductor.v1 import conductor_pb2, error_pb2, event_pb2, project_pb2, task_pb2
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from services.common.errors import Reason, typed
from services.conductor.machines import MACHINES
from services.conductor.protocol import (
    SECOND,
    BeginStage,
    CancelStage,
    Given,
    RecordUpload,
    StageEnded,
    StartRun,
    SubmitStage,
)
from services.conductor.stage_result import MAX_OUTCOME_BYTES
from services.conductor.state import project
from tests.test_events import check_project_log, replayed
from tests.test_state import T0, Outcome, attempt, frozen
from tests.test_state_model import Machine, runs

Stage, Status, RunStatus = project_pb2.Stage, project_pb2.StageStatus, project_pb2.RunStatus
PENDING, IN_PROGRESS, WAITING, COMPLETED, FAILED = 1, 2, 3, 4, 5
ACTIONS = [
    project_pb2.StageAction(kind=project_pb2.STAGE_ACTION_KIND_CHOOSE, field="colour", options=["red", "green"]),
    project_pb2.StageAction(kind=project_pb2.STAGE_ACTION_KIND_EDIT, field="depth", minimum=1, maximum=9),
]
CRASH = typed(Reason.ERROR_REASON_STAGE_FAILED, "It crashed.", code="STAGE_CRASHED")
CANCELLED = typed(Reason.ERROR_REASON_TASK_CANCELLED, "Cancelled.")


def programs(gate: bool = True) -> list[project_pb2.StageProgram]:
    made = [project_pb2.StageProgram(stage_id=stage, argv=["p"], gate=gate) for stage in range(1, 9)]
    for program in made:
        program.cpu_time.FromSeconds(600)
        program.wall_time.FromSeconds(1800)
    return made


def start(gate: bool = True, pass_gates: Sequence[int] = (), **fields: Any) -> StartRun:
    options = project_pb2.RunOptions(pass_gates=pass_gates)
    request = conductor_pb2.StartProjectRequest(project_id="p", objective="why", options=options, **fields)
    return StartRun(request, programs(gate))


def outcome(needs: bool = False, actions: Sequence[Any] = ACTIONS, name: str = "a") -> project_pb2.StageOutcome:
    made = project_pb2.StageOutcome(summary="Done.", needs_input=needs, actions=actions)
    made.artifacts.add(name=name, sha256="0" * 64)
    if needs:
        made.actions[0].required = True
    return made


def confirm(edits: Any = None, **fields: Any) -> conductor_pb2.ConfirmRequest:
    request = conductor_pb2.ConfirmRequest(project_id="p", **fields)
    request.edits.update(edits or {})
    return request


def move(stage: int, edits: Any = None, **fields: Any) -> conductor_pb2.TransitionToRequest:
    request = conductor_pb2.TransitionToRequest(project_id="p", stage_id=stage, **fields)
    request.edits.update(edits or {})
    return request


CANCEL = conductor_pb2.CancelRunRequest(project_id="p", reason="Enough.")


class Walk:
    """A project that goes from command to command."""

    def __init__(self) -> None:
        self.state = project.initial("p")
        self.log: list[event_pb2.Event] = []
        self.last = Outcome(self.state)
        self._ids = 0

    def do(self, command: Any) -> "Walk":
        self._ids += 1
        given = Given((T0 + self._ids) * SECOND, f"id-{self._ids}", "c")
        self.last = attempt(project, self.state, command, given)
        self.state = self.last.state
        self.log += self.last.events
        return self

    @property
    def stage(self) -> project_pb2.StageState:
        return self.state.stages[self.state.current_stage - 1]

    @property
    def reason(self) -> str:
        error = self.last.error
        return "" if error is None else Reason.Name(error.reason).removeprefix("ERROR_REASON_")

    def ended(self, found: Any = None, error: error_pb2.TypedError | None = None, task_id: str = "") -> "Walk":
        for file in [] if found is None else found.artifacts:
            file.stage_id = self.state.current_stage
        report = "reports/r.md" if error is None else ""
        return self.do(StageEnded(task_id or self.stage.task_id, found, error, report))

    def to(self, stage: int) -> "Walk":
        """Goes to where a stage is at work."""
        self.do(start())
        while self.state.current_stage < stage:
            self.ended(outcome(name=f"a{self.state.current_stage}")).do(confirm())
        return self


def situation(name: str, stage: int) -> Walk:
    walk = Walk()
    if name == "none":
        return walk
    walk.to(stage)
    if name == "waiting":
        walk.ended(outcome())
    elif name == "needs":
        walk.ended(outcome(needs=True))
    elif name == "failed":
        walk.ended(outcome(), CRASH)
    elif name == "cancelled":
        walk.do(CANCEL)
    elif name == "completed":
        walk.to(8).ended(outcome()).do(confirm())
    return walk


# What becomes of a command in a situation: "" it is done, else the reason why not.
#              running at work          waiting        needs input     failed          cancelled       completed
TABLE: dict[str, tuple[str, str, str, str, str, str]] = {
    "start": ("RUN_ACTIVE", "RUN_ACTIVE", "RUN_ACTIVE", "", "", ""),
    "cancel": ("", "", "", "NO_RUN", "NO_RUN", "NO_RUN"),
    "confirm": ("NOTHING_TO_CONFIRM", "", "EDIT_REFUSED", *["NOTHING_TO_CONFIRM"] * 3),
    "confirm edits": ("NOTHING_TO_CONFIRM", "", "", *["NOTHING_TO_CONFIRM"] * 3),
    "confirm odd": ("NOTHING_TO_CONFIRM", "EDIT_REFUSED", "EDIT_REFUSED", *["NOTHING_TO_CONFIRM"] * 3),
    "reject": ("NOTHING_TO_CONFIRM", "", "", *["NOTHING_TO_CONFIRM"] * 3),
    "other stage": ("STALE_CONFIRMATION",) * 6,
    "other id": ("STALE_CONFIRMATION",) * 6,
    "again": ("ILLEGAL_TRANSITION", "", "", "", "", ""),
    "again edits": ("ILLEGAL_TRANSITION", "", "", "", "EDIT_REFUSED", ""),
    "again odd": ("ILLEGAL_TRANSITION", *["EDIT_REFUSED"] * 5),
    "back": ("",) * 6,
    "back edits": ("",) * 6,
    "forward": (*["ILLEGAL_TRANSITION"] * 6,),
    "complete": ("RUN_ACTIVE",) * 6,
    "skip": ("RUN_ACTIVE",) * 6,
    "fail": ("RUN_ACTIVE",) * 6,
    "wait": ("RUN_ACTIVE",) * 6,
    "plan": ("RUN_ACTIVE",) * 6,
    "upload": ("",) * 6,
}
SITUATIONS = ("running", "waiting", "needs", "failed", "cancelled", "completed")
COMMANDS: dict[str, Callable[[int], Any]] = {
    "start": lambda _: start(),
    "cancel": lambda _: CANCEL,
    "confirm": lambda stage: confirm(stage_id=stage),
    "confirm edits": lambda _: confirm({"colour": "red"}),
    "confirm odd": lambda _: confirm({"colour": "blue"}),
    "reject": lambda _: confirm(approved=False, reason="no"),
    "other stage": lambda stage: confirm(stage_id=stage - 1),
    "other id": lambda _: confirm(confirmation_id="other"),
    "again": lambda stage: move(stage),
    "again edits": lambda stage: move(stage, {"depth": 2}),
    "again odd": lambda stage: move(stage, {"size": 2}),
    "back": lambda stage: move(stage - 1),
    "back edits": lambda stage: move(stage - 1, {"colour": "green"}),
    "forward": lambda stage: move(stage + 1),
    "complete": lambda stage: move(stage, status=COMPLETED),
    "skip": lambda stage: move(stage, status=6),
    "fail": lambda stage: move(stage, status=FAILED),
    "wait": lambda stage: conductor_pb2.WaitForConfirmationRequest(project_id="p", stage_id=stage),
    "plan": lambda stage: conductor_pb2.ProposePlanRequest(project_id="p", stage_id=stage, summary="s"),
    "upload": lambda _: RecordUpload(project_pb2.DataUpload(name="a.csv", sha256="0" * 64)),
}


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_pair(name: str, command: str) -> None:
    stage = 8 if name == "completed" else 6
    walk = situation(name, stage)
    if (command, stage) == ("forward", 8):
        return  # there is none
    before = frozen(walk.state)
    walk.do(COMMANDS[command](stage))
    assert walk.reason == TABLE[command][SITUATIONS.index(name)]
    if walk.reason:
        assert frozen(walk.state) == before and not walk.last.events and not walk.last.effects
        assert walk.last.error is not None and walk.last.error.metadata
    else:
        assert walk.last.events
    assert frozen(replayed(MACHINES["project"], "p", walk.log)) == frozen(walk.state)
    check_project_log(walk.log)


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_refusal_names_only_what_may_be_done(name: str) -> None:
    """`allowed` of a refusal in a run never names a move by hand."""
    stage = 8 if name == "completed" else 6
    for command in ("other stage", "confirm", "forward", "again"):
        if (command, stage) != ("forward", 8):
            walk = situation(name, stage).do(COMMANDS[command](stage))
            if walk.last.error is not None and "allowed" in walk.last.error.metadata:
                allowed = walk.last.error.metadata["allowed"]
                assert not {"WaitForConfirmation", "ProposePlan"} & set(allowed.split(", ")), allowed
                assert "COMPLETED" not in allowed and "SKIPPED" not in allowed and "FAILED" not in allowed
                assert ("Confirm" in allowed.split(", ")) == (name in ("waiting", "needs"))
                assert ("CancelRun" in allowed.split(", ")) == (name in ("running", "waiting", "needs"))


def submits(walk: Walk) -> list[str]:
    return [effect.task_id for effect in walk.last.effects if isinstance(effect, SubmitStage)]


def cancels(walk: Walk) -> list[str]:
    return [effect.task_id for effect in walk.last.effects if isinstance(effect, CancelStage)]


def test_a_start_resets_what_was_there() -> None:
    walk = Walk()
    walk.do(move(1, status=COMPLETED)).do(move(2))
    walk.do(conductor_pb2.ProposePlanRequest(project_id="p", stage_id=2, summary="s"))
    walk.do(start(data="some.csv"))
    assert [stage.status for stage in walk.state.stages] == [IN_PROGRESS] + [PENDING] * 7
    assert not walk.state.HasField("plan") and not walk.state.plan_pending and walk.state.current_stage == 1
    assert walk.state.run.data == "some.csv" and walk.state.run.status == RunStatus.RUN_STATUS_RUNNING
    assert submits(walk) == [walk.stage.task_id] and [e.type for e in walk.last.events] == [
        "RUN_STARTED",
        "STAGE_STATUS",
    ]


def test_the_call_of_a_stage_has_all_it_needs() -> None:
    walk = Walk().do(RecordUpload(project_pb2.DataUpload(name="a.csv", upload_id="u")))
    walk.do(start(data="uploads/a.csv")).ended(outcome()).do(confirm())
    [effect] = walk.last.effects
    assert isinstance(effect, SubmitStage)
    call = effect.stage
    assert (call.stage_id, call.attempt, call.project_id, call.run.data) == (2, 1, "p", "uploads/a.csv")
    assert call.program.argv == ["p"] and len(call.run.programs) == 8 and call.run.uploads[0].upload_id == "u"
    assert [file.name for file in call.run.artifacts] == ["a"] and len(call.run.decisions) == 1
    assert effect.request.output_mode == task_pb2.OUTPUT_MODE_STAGE and effect.request.project_id == "p"


def test_data_stays_what_it_was_when_the_run_was_told_of_it() -> None:
    walk = Walk()
    for name in ("a.csv", "b.csv"):
        walk.do(RecordUpload(project_pb2.DataUpload(name=name, upload_id=f"{name}-1")))
    choice = project_pb2.StageAction(kind=project_pb2.STAGE_ACTION_KIND_CHOOSE, field="data", options=["x"])
    walk.do(start(data="uploads/a.csv"))
    found = outcome()
    found.actions.append(choice)
    walk.ended(found)
    walk.do(RecordUpload(project_pb2.DataUpload(name="a.csv", upload_id="a.csv-2")))
    answer = confirm()
    answer.edits.update({"data": "uploads/b.csv"})
    walk.do(answer)
    for number in range(30):
        walk.do(RecordUpload(project_pb2.DataUpload(name=f"{number}.csv", upload_id="later")))
    assert [upload.upload_id for upload in walk.state.run.uploads] == ["a.csv-1", "b.csv-1"]
    assert len(walk.state.uploads) == 20


def test_to_begin_a_stage_again_is_a_decision_on_record() -> None:
    walk = Walk().do(start())
    found = outcome()
    found.actions.add(kind=project_pb2.STAGE_ACTION_KIND_EDIT, field="depth", minimum=1, maximum=9)
    walk.ended(found).do(confirm())
    back = move(1, message="deeper")
    back.edits.update({"depth": 3})
    back.scope.user_id = "ann"
    walk.do(back)
    decision = walk.state.run.decisions[-1]
    assert (decision.stage_id, decision.begun_again, decision.reason, decision.user_id) == (1, True, "deeper", "ann")
    assert decision.edits.fields["depth"].number_value == 3 and not decision.approved


def test_what_is_chosen_again_and_again_does_not_grow_without_end() -> None:
    walk = Walk().do(start())
    found = outcome()
    for number in range(40):
        found.actions.add(kind=project_pb2.STAGE_ACTION_KIND_EDIT, field=f"f{number}")
    for number in range(40):
        walk.ended(found)
        answer = conductor_pb2.ConfirmRequest(project_id="p", approved=False, reason="again")
        answer.edits.update({f"f{number % 12}": "x" * 4000})
        walk.do(answer)
    assert walk.state.ByteSize() < 1024 * 1024
    assert sum(decision.edits.ByteSize() for decision in walk.state.run.decisions) <= 256 * 1024
    walk.ended(found)
    for number in range(12, 20):
        answer.edits.update({f"f{number}": "x" * 4000})
    refused = walk.do(answer).last.error
    assert refused is not None and "all together" in refused.message


def test_unknown_uploads_are_no_data() -> None:
    walk = Walk().do(start(data="uploads/a.csv"))
    assert walk.reason == "DATA_NOT_FOUND"
    walk.do(RecordUpload(project_pb2.DataUpload(name="a.csv"))).do(start(data="uploads/a.csv"))
    assert not walk.reason


@pytest.mark.parametrize("budget", [1, 100, 3600])
def test_a_budget_gives_training_the_time_it_needs(budget: int) -> None:
    command = start()
    command.request.options.budget.FromSeconds(budget)
    before = frozen(command.programs[0])
    run = Walk().do(command).state.run
    train = run.programs[5]
    assert budget <= train.cpu_time.seconds <= 3600 and train.cpu_time.seconds <= train.wall_time.seconds <= 3600
    assert train.cpu_time.seconds >= 600
    assert frozen(run.programs[0]) == before


@pytest.mark.parametrize("stage", [1, 6, 8])
def test_late_repeated_and_unknown_ends_change_nothing(stage: int) -> None:
    walk = Walk().to(stage)
    task_id = walk.stage.task_id
    for other in ("", "x", task_id + "0", task_id.replace("-1", "-2")):
        assert not walk.ended(outcome(), task_id=other or "-").last.events
    walk.ended(outcome())
    before = frozen(walk.state)
    assert not walk.ended(outcome(), task_id=task_id).last.events
    assert not walk.ended(None, CRASH, task_id=task_id).last.events and frozen(walk.state) == before
    walk.do(confirm({"depth": 2}))
    assert not walk.ended(outcome(), task_id=task_id).last.events
    assert walk.stage.attempt == 2 and submits(walk) == []
    walk.do(CANCEL)
    assert not walk.ended(outcome()).last.events


def test_a_stage_that_leaves_nothing_fails() -> None:
    walk = Walk().to(3).ended(None, None)
    assert walk.stage.status == FAILED and walk.stage.error.reason == Reason.ERROR_REASON_WORKER_PROTOCOL
    assert walk.state.run.status == RunStatus.RUN_STATUS_FAILED and walk.state.run.HasField("ended_at")


def test_cancelling_says_why_and_stops_what_is_at_work() -> None:
    walk = Walk().to(6)
    task_id = walk.stage.task_id
    walk.do(CANCEL)
    assert cancels(walk) == [task_id] and not submits(walk)
    assert walk.stage.status == FAILED and "Enough." in walk.stage.error.message
    assert walk.state.run.status == RunStatus.RUN_STATUS_CANCELLED
    waiting = situation("waiting", 6).do(CANCEL)
    assert not cancels(waiting) and not waiting.state.HasField("waiting_confirmation")
    again = walk.do(move(6))
    assert submits(again) == [walk.stage.task_id] and walk.stage.attempt == 2
    assert not walk.state.run.HasField("ended_at") and not walk.stage.HasField("error")


def test_a_cancelled_task_cancels_the_run() -> None:
    walk = Walk().to(6).ended(None, CANCELLED)
    assert walk.state.run.status == RunStatus.RUN_STATUS_CANCELLED and walk.stage.status == FAILED


def test_going_back_resets_and_marks_stale() -> None:
    walk = Walk().to(4)
    old = walk.stage.task_id
    walk.do(move(2, {"colour": "red"}, message="Other data."))
    assert cancels(walk) == [old] and submits(walk) == [walk.stage.task_id]
    assert [stage.status for stage in walk.state.stages] == [COMPLETED, IN_PROGRESS] + [PENDING] * 6
    for stage in walk.state.stages[2:]:
        assert stage == project_pb2.StageState(stage_id=stage.stage_id, status=PENDING, attempt=stage.attempt)
    assert [(file.name, file.stale) for file in walk.state.run.artifacts] == [("a1", False), ("a2", True), ("a3", True)]
    assert walk.stage.message == "Other data." and dict(walk.stage.edits) == {"colour": "red"}
    walk.ended(outcome()).do(confirm()).ended(outcome()).do(confirm())
    assert walk.stage.attempt == 2 and walk.stage.task_id != old


def test_what_is_kept_is_bounded() -> None:
    walk = Walk().to(1)
    for number in range(210):
        walk.ended(outcome(name=f"n{number}")).do(confirm(approved=False, reason="no"))
    stale = [file for file in walk.state.run.artifacts if file.stale]
    assert len(stale) == len(walk.state.run.artifacts) == 200 and stale[-1].name == "n209"
    assert len(walk.state.run.decisions) == 200
    for number in range(30):
        walk.do(RecordUpload(project_pb2.DataUpload(name=f"u{number % 25}", upload_id=str(number))))
    assert len(walk.state.uploads) == 20 and walk.state.uploads[-1].upload_id == "29"
    assert len({upload.name for upload in walk.state.uploads}) == 20


def large(number: int) -> project_pb2.StageOutcome:
    """Returns as much as one stage may tell."""
    made = project_pb2.StageOutcome(summary="\U0001f40d" * 600)
    made.actions.add(kind=project_pb2.STAGE_ACTION_KIND_EDIT, field="text", label="x" * 600)
    file = project_pb2.RunArtifact(stage_id=project_pb2.Stage.ValueType(number), task_id="t" * 60, name="n" * 64)
    file.title, file.sha256 = "\U0001f40d" * 200, "0" * 64
    made.artifacts.extend([file] * 64)
    issue = project_pb2.StageIssue(code="C" * 64, message="\U0001f40d" * 600, suggestion="x" * 600)
    made.issues.extend([issue] * ((MAX_OUTCOME_BYTES - made.ByteSize()) // (issue.ByteSize() + 4)))
    return made


def test_a_state_with_the_most_of_everything_still_fits_into_a_message() -> None:
    """gRPC clients take 4 MiB by default, and would not even see what to do about it."""
    begin = start()
    begin.request.objective = "\U0001f40d" * 16384
    begin.request.options.hints.update({"hint": "x" * 65_000})
    walk = Walk()
    for number in range(20):
        walk.do(RecordUpload(project_pb2.DataUpload(name=f"{number:0128}", upload_id="u" * 36, sha256="0" * 64)))
    walk.do(begin)
    reason = "\U0001f40d" * 4000
    sizes = []
    for number in range(1, 9):
        found = large(number)
        for _ in range(4 if number == 1 else 1):
            walk.ended(found).do(confirm({"text": reason}, approved=False, reason=reason))
        walk.ended(found)
        assert walk.stage.outcome == found, "what waits for an answer is whole"
        sizes.append(walk.state.ByteSize())
        walk.do(confirm(reason=reason))
        assert not walk.reason
    assert walk.state.run.status == RunStatus.RUN_STATUS_COMPLETED
    assert 3 * 2**20 < max(sizes) < 4 * 2**20 - 65_536
    offering = [bool(stage.outcome.actions) for stage in walk.state.stages]
    assert offering[-1] and 1 < sum(offering) < 8
    assert all(stage.outcome.artifacts and stage.outcome.summary for stage in walk.state.stages)


def test_resume_begins_what_is_in_progress_and_nothing_else() -> None:
    walk = Walk().to(3)
    assert submits(walk.do(BeginStage())) == [walk.stage.task_id] and not walk.last.events
    assert not walk.ended(outcome()).do(BeginStage()).last.effects
    assert not walk.do(CANCEL).do(BeginStage()).last.effects
    assert not Walk().do(BeginStage()).last.effects


# ---- the model ----


class RunMachine(Machine):
    """A naive account of one run: where it stands, how often each stage was begun, what is offered, who has what."""

    machine, identity = MACHINES["project"], "p"
    moves = ("end", "end", "end", "end", "answer", "answer", "again", "back", "stop", "begin", "crash", "noise", "late")

    @initialize(data=st.data())
    def start_one(self, data: Any) -> None:
        self.run, self.current, self.status = "", 1, "none"
        self.attempts: list[int] = [0] * 8
        self.ahead, self.needs, self.offered = False, False, [False] * 8
        self.passing: list[int] = []
        self.live: dict[str, int] = {}  # artefact → stage
        self.tasks: list[str] = []
        self.begin(lambda *options: data.draw(st.sampled_from(options)))

    @property
    def open(self) -> bool:
        return self.status in ("running", "waiting")

    def expect(self, accepted: bool, command: Any) -> str:
        before = frozen(self.state)
        found, identity = self.tell(command)
        assert (found.error is None) == accepted, (self.status, command, found.error)
        assert accepted or frozen(self.state) == before
        made = [effect.task_id for effect in found.effects if isinstance(effect, SubmitStage)]
        assert len(set(made)) == len(made) <= 1 and not set(made) & set(self.tasks)
        self.tasks += made
        return identity

    def started(self, stage: int, ahead: bool = False) -> None:
        """The model's: a stage is begun."""
        self.current, self.status, self.ahead, self.needs = stage, "running", ahead, False
        self.attempts[stage - 1] += 1
        self.live = {name: left for name, left in self.live.items() if left < stage}
        self.offered[stage:] = [False] * (8 - stage)

    def onward(self) -> None:
        if self.current == 8:
            self.status = "completed"
        else:
            self.started(self.current + 1)

    def begin(self, pick: Any) -> None:
        passing = pick([], [], [1, 2, 3, 4, 5, 6, 7, 8], [3, 6])
        accepted = not self.open
        identity = self.expect(accepted, start(pass_gates=passing))
        if accepted:
            self.run, self.passing, self.live = identity, passing, {}
            self.attempts, self.offered = [0] * 8, [False] * 8
            self.started(1)

    def end(self, pick: Any) -> None:
        how = pick("well", "well", "well", "needs", "fails", "crashes", "nothing", "cancelled")
        if self.status != "running":
            return
        name, stage = f"file-{len(self.log)}", self.current
        found = None if how in ("crashes", "nothing", "cancelled") else outcome(how == "needs", name=name)
        if found is not None:
            found.artifacts[0].stage_id = stage
        error = {"fails": CRASH, "crashes": CRASH, "cancelled": CANCELLED}.get(how)
        self.expect(True, StageEnded(self.tasks[-1], found, error))
        if found is not None:
            self.live[name], self.offered[stage - 1] = stage, True
        if how in ("well", "needs"):
            if how == "needs" or not (self.ahead or stage in self.passing):
                self.status, self.needs = "waiting", how == "needs"
            else:
                self.onward()
        else:
            self.status = "cancelled" if how == "cancelled" else "failed"

    def answer(self, pick: Any) -> None:
        chosen = pick(None, None, {"colour": "red"}, {"depth": 4}, {"depth": 10}, {"size": 1})
        yes = pick(True, True, None, False)
        valid = chosen is None or chosen in ({"colour": "red"}, {"depth": 4})
        goes_on = chosen is None and yes is not False
        accepted = self.status == "waiting" and valid and not (goes_on and self.needs)
        self.expect(accepted, confirm(chosen, approved=yes, reason="" if yes is not False else "no"))
        if accepted and goes_on:
            self.onward()
        elif accepted:
            self.started(self.current, ahead=yes is not False)

    def again(self, pick: Any) -> None:
        self.moved(self.current, pick(None, None, {"colour": "green"}, {"colour": "blue"}))

    def back(self, pick: Any) -> None:
        stage = self.current + pick(-1, -2, -5, 1)
        if 1 <= stage <= 8:
            self.moved(stage, pick(None, {"depth": 1}))

    def moved(self, stage: int, chosen: Any) -> None:
        offered = chosen is None or (chosen != {"colour": "blue"} and self.offered[stage - 1])
        accepted = (stage < self.current or (stage == self.current and self.status != "running")) and offered
        self.expect(accepted, move(stage, chosen))
        if accepted:
            self.started(stage)

    def stop(self, pick: Any) -> None:
        if pick(True, False, False):
            accepted = self.open
            self.expect(accepted, CANCEL)
            self.status = "cancelled" if accepted else self.status

    def crash(self, _: Any) -> None:
        found, _identity = self.tell(BeginStage())
        again = [effect.task_id for effect in found.effects if isinstance(effect, SubmitStage)]
        assert again == (self.tasks[-1:] if self.status == "running" else []) and not found.events

    def noise(self, pick: Any) -> None:
        how = pick("wait", "plan", "complete", "skip", "upload")
        command = COMMANDS[how](self.current)
        self.expect(how == "upload", command)

    def late(self, pick: Any) -> None:
        past = self.tasks[:-1] if self.status == "running" else self.tasks
        task_id, before = (past[-pick(1, 2, 3) :] or ["unknown"])[0], frozen(self.state)
        found, _ = self.tell(StageEnded(task_id, *pick((outcome(), None), (None, CRASH), (None, CANCELLED))))
        assert not found.events and not found.effects and frozen(self.state) == before

    @invariant()
    def is_as_the_model_says(self) -> None:
        if not self.log:
            return
        state, names = self.state, {4: "completed", 1: "running", 2: "waiting", 3: "failed", 5: "cancelled"}
        assert (names[state.run.status], state.current_stage) == (self.status, self.current)
        assert state.run.run_id == self.run
        now = {"running": IN_PROGRESS, "waiting": WAITING, "completed": COMPLETED}.get(self.status, FAILED)
        assert [stage.status for stage in state.stages] == [COMPLETED] * (self.current - 1) + [now] + [PENDING] * (
            8 - self.current
        )
        assert [stage.attempt for stage in state.stages] == self.attempts
        assert {file.name for file in state.run.artifacts if not file.stale} == set(self.live)
        assert [len(stage.outcome.actions) > 0 for stage in state.stages] == self.offered
        assert state.HasField("waiting_confirmation") == (self.status == "waiting")
        assert state.run.HasField("ended_at") == (not self.open)
        assert state.stages[self.current - 1].task_id == self.tasks[-1]
        assert state.stages[self.current - 1].HasField("error") == (self.status in ("failed", "cancelled"))

    def teardown(self) -> None:
        if self.log:
            check_project_log(self.log)
        super().teardown()


TestRunsDoAsTheNaiveModelSays = RunMachine.TestCase
TestRunsDoAsTheNaiveModelSays.settings = runs(25)
