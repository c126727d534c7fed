"""A task's state machine run command by command."""

import itertools
from typing import Any

from conductor.v1 import conductor_pb2, event_pb2, researcher_pb2, task_pb2, terminal_pb2

from services.common.errors import Reason, typed
from services.conductor.machines import MACHINES
from services.conductor.protocol import (
    SECOND,
    Answered,
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
from tests.fakes import finding
from tests.test_state import T0, Outcome, attempt

Status, End = task_pb2.TaskStatus, terminal_pb2.CommandEnd
R, T, W = task_pb2.CAPABILITY_RESEARCHER, task_pb2.CAPABILITY_TERMINAL, task_pb2.CAPABILITY_REPORT_WRITER
UNAVAILABLE = Reason.ERROR_REASON_WORKER_UNAVAILABLE

ONE = [terminal_pb2.Command(argv=["date"])]
TWO = [*ONE, terminal_pb2.Command(script="ls -l")]
IDEMPOTENT = [terminal_pb2.Command(argv=["date"], idempotent=True)]

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


# ---- routes ----

GONE, LATE, BAD = map(broke, (UNAVAILABLE, Reason.ERROR_REASON_WORKER_TIMEOUT, Reason.ERROR_REASON_WORKER_FAILED))
