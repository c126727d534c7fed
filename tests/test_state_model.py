"""Both machines against naive models: random commands, and after each the laws that must hold whatever was asked.

`make fuzz` looks further, and makes a failing example as short as it can be.
"""

import itertools
from collections.abc import Callable
from typing import Any

from conductor.v1 import conductor_pb2, event_pb2, project_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.common.errors import TABLE, Reason
from services.conductor.machines import MACHINES
from services.conductor.protocol import (
    SECOND,
    Answered,
    CallWorker,
    CancelCall,
    Expire,
    Given,
    Proceed,
    ProceedLater,
    Progressed,
    Resume,
    Submit,
)
from services.conductor.state import task_state
from tests.conftest import MARKDOWN
from tests.properties import examples, phases
from tests.task_runs import FOUND, NOTHING, WROTE, R, T, W, broke, ended
from tests.test_events import check_project_log, check_task_log, replayed
from tests.test_state import COMPLETED, ENDED, FAILED, IN_PROGRESS, PENDING, SKIPPED, T0, WAITING, attempt, frozen


def runs(count: int) -> settings:
    """Returns settings for that many runs of a machine."""
    return examples(count, stateful_step_count=40, phases=phases(), suppress_health_check=list(HealthCheck))


Pick = Callable[..., Any]  # picks one of the options it is given


class Machine(RuleBasedStateMachine):
    """What both have: a real state, everything written, ids and a clock.

    There is one rule that picks a move: of many rules Hypothesis leaves out most in most examples, and what takes three
    of them in a row hardly ever happens.
    """

    machine: Any
    identity: str
    moves: tuple[str, ...]  # names of methods; the more often, the likelier

    @rule(data=st.data())
    def move(self, data: Any) -> None:
        getattr(self, data.draw(st.sampled_from(self.moves)))(lambda *options: data.draw(st.sampled_from(options)))

    def __init__(self) -> None:
        super().__init__()
        self.state: Any = self.machine.initial(self.identity)
        self.log: list[event_pb2.Event] = []
        self.ids, self.at = itertools.count(1), 0

    def tell(self, command: Any) -> tuple[Any, str]:
        """Returns the outcome, and the id that was given."""
        identity = f"id-{next(self.ids)}"
        outcome = attempt(self.machine, self.state, command, Given((T0 + self.at) * SECOND, identity, "corr-1"))
        self.state = outcome.state
        self.log += outcome.events
        return outcome, identity

    def teardown(self) -> None:
        assert frozen(replayed(self.machine, self.identity, self.log)) == frozen(self.state)


# ---- projects ----


class ProjectMachine(Machine):
    machine, identity = MACHINES["project"], "p"
    moves = ("report", "report", "report", "onward", "back", "ask", "propose", "propose", "answer", "answer", "wait")

    def __init__(self) -> None:
        super().__init__()
        self.current = 1
        self.stages = [[IN_PROGRESS, ""]] + [[PENDING, ""] for _ in range(7)]  # status and message
        self.confirmation = self.plan = ""  # what waits
        self.last_plan: tuple[str, int, bool] | None = None  # id, stage, approved
        self.seen = ["id-0"]  # every id that was ever given to something

    @property
    def now(self) -> list[Any]:
        return self.stages[self.current - 1]

    def expect(self, accepted: bool, command: Any) -> str:
        outcome, identity = self.tell(command)
        assert (outcome.error is None) == accepted, (command, outcome.error)
        assert bool(outcome.events) == accepted
        self.seen.append(identity)
        return identity

    def forget_plan_from(self, stage: int) -> None:
        self.plan = ""
        if self.last_plan and self.last_plan[1] >= stage:
            self.last_plan = None

    def report(self, pick: Pick) -> None:
        self.transition(self.current, pick(0, IN_PROGRESS, COMPLETED, FAILED, SKIPPED), pick("", "so"))

    def onward(self, pick: Pick) -> None:
        self.transition(min(8, self.current + pick(1, 1, 2)), pick(0, 0, COMPLETED, SKIPPED), "next")

    def back(self, pick: Pick) -> None:
        self.transition(max(1, self.current - pick(1, 2, 4)), pick(0, 0, COMPLETED, FAILED), "again")

    def transition(self, target: int, status: int, text: str) -> None:
        wanted, found = status or IN_PROGRESS, self.now[0]
        if target < self.current:
            accepted = wanted == IN_PROGRESS
        elif target == self.current + 1:
            accepted = wanted == IN_PROGRESS and found in (COMPLETED, SKIPPED)
        elif target > self.current:
            accepted = False
        elif wanted == COMPLETED:
            accepted = found == IN_PROGRESS and not self.plan
        elif wanted == SKIPPED:
            accepted = found in (IN_PROGRESS, FAILED) and not self.plan
        else:
            accepted = wanted == IN_PROGRESS or found in (IN_PROGRESS, WAITING)
        self.expect(accepted, conductor_pb2.TransitionToRequest(stage_id=target, status=status, message=text))
        if not accepted:
            return
        self.confirmation = ""
        if target < self.current or (wanted == IN_PROGRESS and found not in (IN_PROGRESS, WAITING)):
            self.forget_plan_from(target)
        if wanted in ENDED:
            self.plan = ""
        self.stages[target:] = [[PENDING, ""] for _ in self.stages[target:]]
        self.current = target
        self.now[:] = [wanted, text]

    def gate(self, pick: Pick, make: Any) -> str:
        """Puts something before the person; returns its id if that may be done."""
        stage = min(8, max(1, self.current + pick(-1, 0, 0, 0, 1)))
        accepted = stage == self.current and self.now[0] in (IN_PROGRESS, WAITING)
        identity = self.expect(accepted, make(stage_id=stage, summary="look"))
        return identity if accepted else ""

    def ask(self, pick: Pick) -> None:
        if identity := self.gate(pick, conductor_pb2.WaitForConfirmationRequest):
            self.confirmation, self.now[:] = identity, [WAITING, "look"]

    def propose(self, pick: Pick) -> None:
        if identity := self.gate(pick, conductor_pb2.ProposePlanRequest):
            self.plan, self.last_plan = identity, (identity, self.current, False)

    def answer(self, pick: Pick) -> None:
        stage = pick(0, 0, self.current, self.current, max(1, self.current - 1), min(8, self.current + 1))
        some = pick("", *self.seen[-6:]), pick("", *self.seen[-6:])
        present = self.confirmation, self.plan
        (confirmation, plan), approved = pick(("", ""), ("", ""), present, present, some), pick(None, True, False)
        fresh = stage in (0, self.current) and confirmation in ("", self.confirmation) and plan in ("", self.plan)
        yes, found = approved is not False, self.now[0]
        open_ = found in (IN_PROGRESS, WAITING) or (yes and found == COMPLETED and self.current < 8)
        seen = {"stage_id": stage, "confirmation_id": confirmation, "plan_id": plan}
        self.expect(
            fresh and open_, conductor_pb2.ConfirmRequest(**seen, approved=approved, reason="" if yes else "no")
        )
        if not (fresh and open_):
            return
        if self.plan and self.last_plan:
            self.last_plan = (*self.last_plan[:2], yes)
        self.confirmation = self.plan = ""
        self.now[0] = COMPLETED if yes else IN_PROGRESS
        self.now[1] = None if yes else "no"  # what is said about an approved stage is the machine's own choice
        if yes and self.current < 8:
            self.current += 1
            self.now[:] = [IN_PROGRESS, ""]

    def wait(self, _: Pick) -> None:
        self.at += 1

    @invariant()
    def is_as_the_model_says(self) -> None:
        state = self.state
        assert state.current_stage == self.current
        assert [s.status for s in state.stages] == [status for status, _ in self.stages]
        assert all(said in (None, s.message) for s, (_, said) in zip(state.stages, self.stages, strict=True))
        assert state.waiting_confirmation.confirmation_id == self.confirmation
        assert state.plan_pending == bool(self.plan)
        shown = (state.plan.plan_id, state.plan.stage_id, state.plan_approved) if state.HasField("plan") else None
        assert shown == self.last_plan

    @invariant()
    def keeps_the_laws(self) -> None:
        state, here = self.state, self.state.current_stage
        assert {s.status for s in state.stages[: here - 1]} <= {COMPLETED, SKIPPED}
        assert all(s == project_pb2.StageState(stage_id=s.stage_id, status=PENDING) for s in state.stages[here:])
        current = state.stages[here - 1]
        assert current.status != PENDING
        assert (current.status == WAITING) == state.HasField("waiting_confirmation")
        assert [s.stage_id for s in state.stages if s.plan_pending] == ([here] if state.plan_pending else [])
        assert not state.plan_pending or (state.plan.stage_id == here and current.status in (IN_PROGRESS, WAITING))
        for stage in state.stages:
            assert stage.HasField("completed_at") == (stage.status in ENDED)
            assert stage.HasField("error") == (stage.status == FAILED)

    def teardown(self) -> None:
        super().teardown()
        check_project_log(self.log)


# ---- tasks ----

REASONS = {
    "gone": Reason.ERROR_REASON_WORKER_UNAVAILABLE,
    "late": Reason.ERROR_REASON_WORKER_TIMEOUT,
    "lost": Reason.ERROR_REASON_OUTCOME_UNKNOWN,
    "full": Reason.ERROR_REASON_OVER_CAPACITY,
    "broken": Reason.ERROR_REASON_WORKER_FAILED,
}
ENDS = {"exit": Reason.ERROR_REASON_COMMAND_FAILED, "limit": Reason.ERROR_REASON_COMMAND_LIMIT_EXCEEDED}
GOOD = {"R": FOUND, "T": ended(exit_code=0), "W": WROTE}


class TaskMachine(Machine):
    machine, identity = MACHINES["task"], "task-1"

    moves = ("proceed", "proceed", *["answer"] * 6, "progress", "late", "crash", "stop", "wait", "submit", "submit")

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        self.status = ""
        self.submit(lambda *options: data.draw(st.sampled_from(options)))

    def submit(self, pick: Pick) -> None:
        """Begins another task when one has ended."""
        if self.status and not self.over:
            return
        super().teardown()
        self.state, self.log = task_state.initial(self.identity), []
        capabilities, deadline = pick([], [], [R], [T], [R, T], [T, R]), pick(None, None, 50)
        self.idempotent = pick([False], [True], [False, True], [True, False, False])
        if T not in capabilities:
            self.idempotent = pick([], self.idempotent, self.idempotent)
        attempts = pick(0, 1, 2, 3)
        self.capabilities, self.most, self.deadline = capabilities, attempts or 2, self.at + (deadline or 600)
        hints = task_pb2.Hints(capabilities=capabilities, max_attempts=attempts)
        hints.commands.extend(terminal_pb2.Command(argv=["a"], idempotent=each) for each in self.idempotent)
        if deadline:
            hints.deadline.CopyFrom(duration_pb2.Duration(seconds=deadline))
        self.todo: list[str] = []
        self.tries, self.full, self.due, self.open, self.calls = 0, 0, 0, "", ["call-0"]
        self.status, self.fallback = "QUEUED", not capabilities and bool(self.idempotent)
        self.do(Submit(conductor_pb2.ExecuteRequest(objective="Why?", output_mode=MARKDOWN, hints=hints)))

    def do(self, command: Any) -> Any:
        """Gives the command to the real machine, and keeps account of what it wants done."""
        outcome, _ = self.tell(command)
        made = [e.worker_call.call_id for e in outcome.events if e.type == "conductor.worker.call"]
        assert made == [e.call_id for e in outcome.effects if isinstance(e, CallWorker)]
        self.due += sum(isinstance(effect, ProceedLater) for effect in outcome.effects)
        self.calls += made
        return outcome

    def call_next(self) -> None:
        """The model's: what happens when the next step's turn has come."""
        if self.at >= self.deadline:
            self.status, self.open = "TASK_DEADLINE_EXCEEDED", ""
        else:
            self.status, self.open, self.tries = "WAITING_WORKER", self.todo[0], self.tries + 1

    def terminals(self) -> list[str]:
        return [f"T{index}" for index in range(len(self.idempotent))]

    @property
    def over(self) -> bool:
        return self.status not in ("QUEUED", "RUNNING", "WAITING_WORKER")

    def proceed(self, _: Pick) -> None:
        self.due = max(0, self.due - 1)
        if self.status == "QUEUED":
            steps = {R: ["R"], T: self.terminals()}
            self.todo = [step for capability in self.capabilities or [R] for step in steps[capability]] + ["W"]
        if self.status in ("QUEUED", "RUNNING"):
            self.call_next()
        self.do(Proceed())

    def answer(self, pick: Pick) -> None:
        if not self.open:
            return
        how = pick("good", "good", "good", "empty", "exit", "limit", "gone", "late", "late", *REASONS)
        kind, index = self.open[0], int(self.open[1:] or 0)
        fields = broke(REASONS[how]) if how in REASONS else GOOD[kind]
        if how == "empty" and kind == "R":
            fields = NOTHING
        if how in ENDS and kind == "T":
            fields = ended(exit_code=3) if how == "exit" else ended(terminal_pb2.COMMAND_END_MEMORY)
        result = event_pb2.WorkerResult(call_id=self.calls[-1], capability={"R": R, "T": T, "W": W}[kind], **fields)
        self.open, self.status = "", "RUNNING"
        if how in REASONS or (how in ENDS and kind == "T"):
            self.after_failure(how, kind, index)
        elif kind == "W":
            self.status = "COMPLETED"
        else:
            self.todo, self.tries, self.full = self.todo[1:], 0, 0
            if fields is NOTHING and self.fallback:
                self.todo, self.fallback = [*self.terminals(), "W"], False
            self.call_next()
        self.do(Answered(result))

    def after_failure(self, how: str, kind: str, index: int) -> None:
        reason = {**ENDS, **REASONS}[how]
        harmless = kind != "T" or how in ("gone", "full") or self.idempotent[index]
        self.full += how == "full"
        if self.at >= self.deadline:
            self.status = "TASK_DEADLINE_EXCEEDED"
        elif TABLE[reason].retryable and harmless and (how == "full" or self.tries - self.full < self.most):
            pass  # another attempt is due
        elif kind == "R" and how in ("gone", "late") and self.fallback:
            self.todo, self.tries, self.full, self.fallback = [*self.terminals(), "W"], 0, 0, False
            self.call_next()
        else:
            self.status = Reason.Name(reason).removeprefix("ERROR_REASON_")

    def late(self, pick: Pick) -> None:
        """Something comes late, once more, or from a call nobody made."""
        back, how = pick(1, 2, 3), pick("progress", "result", "submit")
        past, before = (self.calls[:-1] if self.open else self.calls)[-back:], frozen(self.state)
        if how == "submit":
            outcome = self.do(Submit(conductor_pb2.ExecuteRequest(objective="Another?", output_mode=MARKDOWN)))
        elif how == "result":
            outcome = self.do(Answered(event_pb2.WorkerResult(call_id=past[0], capability=R, **FOUND)))
        else:
            outcome = self.do(Progressed(past[0], event_pb2.TaskProgress(message="?", call_id=past[0])))
        assert not outcome.events and not outcome.effects and frozen(self.state) == before

    def progress(self, _: Pick) -> None:
        if self.open:
            said = event_pb2.TaskProgress(message="completed", step=1, total_steps=1, call_id=self.calls[-1])
            self.do(Progressed(self.calls[-1], said))

    def crash(self, _: Pick) -> None:
        self.due = 0  # timers die with the process
        if self.open:
            harmless = self.open[0] != "T" or self.idempotent[int(self.open[1:])]
            self.status, self.open = "RUNNING" if harmless else "OUTCOME_UNKNOWN", ""
        self.do(Resume())

    def stop(self, pick: Pick) -> None:
        how = pick("", "", "TASK_CANCELLED", "TASK_DEADLINE_EXCEEDED")
        if not how:
            return
        was_over, was_open, cancel = self.over, self.open, conductor_pb2.CancelTaskRequest(task_id="task-1")
        outcome = self.do(cancel if how == "TASK_CANCELLED" else Expire())
        assert (outcome.error is not None) == (was_over and how == "TASK_CANCELLED")
        assert outcome.effects == ((CancelCall(self.calls[-1]),) if was_open else ())
        if not was_over:
            self.status, self.open = how, ""

    def wait(self, pick: Pick) -> None:
        self.at += pick(1, 20)

    @invariant()
    def is_as_the_model_says(self) -> None:
        shown = self.state.task
        named = Reason.Name(shown.error.reason) if shown.HasField("error") else task_pb2.TaskStatus.Name(shown.status)
        assert named.removeprefix("ERROR_REASON_").removeprefix("TASK_STATUS_") == self.status
        assert shown.HasField("completed_at") == self.over
        assert shown.HasField("report_path") == shown.HasField("writer_window_props") == (self.status == "COMPLETED")
        assert shown.attempt == self.tries or not self.open

    @invariant()
    def keeps_the_laws(self) -> None:
        check_task_log(self.log)
        assert self.over or self.open or self.due, "the task is stuck"

    def teardown(self) -> None:
        while not self.over:  # whatever has happened, it can be brought to its end
            self.keeps_the_laws()
            (self.answer if self.open else self.proceed)(lambda *options: options[0])
        self.is_as_the_model_says()
        self.keeps_the_laws()
        super().teardown()


TestProjectsDoAsTheNaiveModelSaysAndKeepTheLaws = ProjectMachine.TestCase
TestProjectsDoAsTheNaiveModelSaysAndKeepTheLaws.settings = runs(100)
TestTasksDoAsTheNaiveModelSaysAndKeepTheLaws = TaskMachine.TestCase
TestTasksDoAsTheNaiveModelSaysAndKeepTheLaws.settings = runs(100)
