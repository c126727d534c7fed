"""The promises by name, each a pure function over a run's history and the state read back when all was healed.

A promise returns what it checked and every way in which it was broken, one sentence each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from conductor.v1 import event_pb2, project_pb2, task_pb2

from services.conductor.events import CHECKPOINT, TERMINAL_TYPES
from tests.chaos.history import Call, Happened, Heard, Opened, Record, answer_of, calls_in, heard_by

# Replies that say for certain that nothing was done, and why.
REFUSALS = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS", "OUT_OF_RANGE"})
OF_TASKS = frozenset({"Execute", "GetTask", "CancelTask"})
OF_PROJECTS = frozenset({"TransitionTo", "WaitForConfirmation", "ProposePlan", "Confirm"})


@dataclass(frozen=True)
class Report:
    """A completed task's report: as GetReport gives it, and as it lies on disk (None: it does not)."""

    served: bytes
    on_disk: bytes | None


@dataclass(frozen=True)
class Run:
    """One execution of a command, from the Terminal's own ledger."""

    call_id: str
    token: str


@dataclass(frozen=True)
class Evidence:
    """What there is to judge: the clients' history, and the state read back through the API at the end.

    Attributes:
        log: every event, read by a subscriber from the beginning.
        ledger: every command the Terminal began, in order.
        stuck: what did not end in time although everything was healed, one sentence each.
    """

    records: Sequence[Record]
    log: Sequence[event_pb2.Event]
    tasks: Mapping[str, task_pb2.Task] = field(default_factory=dict)
    projects: Mapping[str, project_pb2.ProjectState] = field(default_factory=dict)
    reports: Mapping[str, Report] = field(default_factory=dict)
    ledger: Sequence[Run] = ()
    stuck: Sequence[str] = ()

    def of_tasks(self) -> dict[str, list[event_pb2.Event]]:
        """Events by task."""
        streams: dict[str, list[event_pb2.Event]] = {}
        for event in self.log:
            if event.task_id:
                streams.setdefault(event.task_id, []).append(event)
        return streams

    def of_projects(self) -> dict[str, list[event_pb2.Event]]:
        """Events by project, those of its tasks left out."""
        streams: dict[str, list[event_pb2.Event]] = {}
        for event in self.log:
            if not event.task_id:
                streams.setdefault(event.project_id, []).append(event)
        return streams


@dataclass(frozen=True)
class Verdict:
    """How many things were looked at, and what was wrong with them."""

    checked: int
    violations: tuple[str, ...] = ()


def answered(call: Call) -> bool:
    """Whether the caller got what it asked for."""
    return call.code == "OK"


def nothing_acknowledged_is_lost(evidence: Evidence) -> Verdict:
    """What was answered, and what any subscriber saw, is in the log for good."""
    wrong: list[str] = []
    streams = evidence.of_tasks()
    by_sequence = {event.sequence: event for event in evidence.log}
    acknowledged = [
        call for call in calls_in(evidence.records) if answered(call) and call.method in OF_TASKS | OF_PROJECTS
    ]
    for call in acknowledged:
        if call.method in OF_TASKS:
            own = streams.get(call.answer.task_id, [])
            if not own or own[0].type != "conductor.task.started":
                wrong.append(f"task {call.answer.task_id}, acknowledged to {call.who}, is not in the log")
            elif call.method == "Execute" and own[0].task_started.objective != call.request.objective:
                wrong.append(f"task {call.answer.task_id} has another objective than was acknowledged")
        else:
            event = by_sequence.get(call.answer.as_of_sequence)
            if event is None or event.project_id != call.request.project_id:
                wrong.append(f"{call.method} of {call.who} as of {call.answer.as_of_sequence} is not in the log")
    heard = [record for record in evidence.records if isinstance(record, Heard) and record.event.type != CHECKPOINT]
    for record in heard:
        if by_sequence.get(record.event.sequence) != record.event:
            wrong.append(f"event {record.event.sequence} that {record.who} received is not the one in the log")
    return Verdict(len(acknowledged) + len(heard), tuple(wrong))


def started_means_ended(evidence: Evidence) -> Verdict:
    """Each task begins with `started` and has exactly one terminal event, the last of its stream."""
    wrong: list[str] = []
    streams = evidence.of_tasks()
    for task_id, own in streams.items():
        ends = [event.type in TERMINAL_TYPES for event in own]
        if own[0].type != "conductor.task.started" or [e.type for e in own].count("conductor.task.started") != 1:
            wrong.append(f"task {task_id} does not begin with its one started event")
        if ends.count(True) != 1:
            wrong.append(f"task {task_id} has {ends.count(True)} terminal events")
        elif not ends[-1]:
            wrong.append(f"task {task_id} goes on after its terminal event")
    return Verdict(len(streams), tuple(wrong))


def every_call_has_its_result(evidence: Evidence) -> Verdict:
    """Calls and results of a task come in pairs with the same id, one at a time."""
    wrong: list[str] = []
    checked = 0
    for task_id, own in evidence.of_tasks().items():
        open_call = ""
        for event in own:
            if event.HasField("worker_call"):
                checked += 1
                if open_call:
                    wrong.append(f"task {task_id} makes call {event.worker_call.call_id} while {open_call} is open")
                open_call = event.worker_call.call_id
            elif event.HasField("worker_result"):
                if event.worker_result.call_id != open_call:
                    wrong.append(f"task {task_id} has a result of {event.worker_result.call_id}, which is not open")
                open_call = ""
        if open_call:
            wrong.append(f"call {open_call} of task {task_id} has no result")
    return Verdict(checked, tuple(wrong))


def sequences_are_gapless(evidence: Evidence) -> Verdict:
    """Globally and in each stream the numbers run from 1 without a gap."""
    wrong: list[str] = []
    for place, event in enumerate(evidence.log, 1):
        if event.sequence != place:
            wrong.append(f"place {place} of the log holds sequence {event.sequence}")
            break
    for name, own in [*evidence.of_tasks().items(), *evidence.of_projects().items()]:
        if [event.stream_sequence for event in own] != list(range(1, len(own) + 1)):
            wrong.append(f"the stream of {name} has a gap or a repeat")
    if len({event.event_id for event in evidence.log}) != len(evidence.log):
        wrong.append("two events have the same id")
    return Verdict(len(evidence.log), tuple(wrong))


def subscribers_see_the_log(evidence: Evidence) -> Verdict:
    """Each subscriber's own history, across its reconnects, is the log: ordered, gapless, without repeats."""
    wrong: list[str] = []
    checked = 0
    for who, own in heard_by(evidence.records).items():
        project_id = next((record.project_id for record in own if isinstance(record, Opened)), "")
        wanted = [event.sequence for event in evidence.log if not project_id or event.project_id == project_id]
        cursor, got = 0, []
        for record in own:
            checked += 1
            if isinstance(record, Opened):
                if record.after != cursor:
                    wrong.append(f"{who} resumed after {record.after} and not after {cursor}")
            elif record.event.type == CHECKPOINT:
                missed = [sequence for sequence in wanted if cursor < sequence <= record.event.sequence]
                if missed:
                    wrong.append(f"{who} got a checkpoint at {record.event.sequence} without {missed[:5]}")
                cursor = max(cursor, record.event.sequence)
            elif record.event.sequence <= cursor:
                wrong.append(f"{who} received {record.event.sequence} after {cursor}")
            else:
                cursor = record.event.sequence
                got.append(cursor)
        missed = sorted({sequence for sequence in wanted if sequence <= cursor} - set(got))
        if missed:
            wrong.append(f"{who} missed {missed[:5]}, {len(missed)} in all")
        if set(got) - set(wanted):
            wrong.append(f"{who} received what its filter leaves out: {sorted(set(got) - set(wanted))[:5]}")
    return Verdict(checked, tuple(wrong))


def no_command_runs_twice(evidence: Evidence) -> Verdict:
    """By the Terminal's ledger, a command not marked idempotent was begun at most once."""
    idempotent = {
        command.env["TOKEN"]
        for event in evidence.log
        if event.HasField("task_started")
        for command in event.task_started.hints.commands
        if command.idempotent
    }
    runs: dict[str, list[str]] = {}
    for run in evidence.ledger:
        runs.setdefault(run.token, []).append(run.call_id)
    wrong = [
        f"command {token} was run {len(calls)} times, by calls {calls}"
        for token, calls in runs.items()
        if token not in idempotent and len(calls) > 1
    ]
    return Verdict(len(runs), tuple(wrong))


def same_request_same_answer(evidence: Evidence) -> Verdict:
    """Tries with one request_id have one answer and one effect; the same id with another body is refused."""
    wrong: list[str] = []
    tries: dict[tuple[str, str], list[Call]] = {}
    for call in calls_in(evidence.records):
        if call.request_id and call.expects != "REFUSED" and answered(call):
            tries.setdefault((call.method, call.request_id), []).append(call)
    for (method, request_id), calls in tries.items():
        if method == "Execute" and len({call.answer.task_id for call in calls}) > 1:
            wrong.append(f"{request_id} was answered with several tasks")
        elif method != "Execute" and any(call.answer != calls[0].answer for call in calls):
            wrong.append(f"{method} {request_id} was answered in different ways")
    made: dict[str, set[str]] = {}
    for event in evidence.log:
        if event.HasField("task_started"):
            made.setdefault(event.task_started.objective, set()).add(event.task_id)
    wrong += [f"{objective!r} became {len(ids)} tasks" for objective, ids in made.items() if len(ids) > 1]
    return Verdict(len(tries) + len(made), tuple(wrong))


def reports_are_whole(evidence: Evidence) -> Verdict:
    """A completed task's report is served as it lies on disk and was described, with objective and known answers."""
    wrong: list[str] = []
    streams = evidence.of_tasks()
    completed = [task_id for task_id, own in streams.items() if own[-1].HasField("task_completed")]
    for task_id in completed:
        report = evidence.reports.get(task_id)
        if report is None or report.on_disk != report.served:
            wrong.append(f"the report of task {task_id} is not served as it lies on disk")
            continue
        text = report.served.decode(errors="replace")
        wanted = [streams[task_id][0].task_started.objective, *_answers(streams[task_id])]
        wrong += [f"the report of task {task_id} does not say {what!r}" for what in wanted if what not in text]
        sizes = [e.worker_result.report.size_bytes for e in streams[task_id] if e.worker_result.HasField("report")]
        if sizes[-1:] != [len(report.served)]:
            wrong.append(f"the report of task {task_id} has {len(report.served)} bytes and was described with {sizes}")
    return Verdict(len(completed), tuple(wrong))


def _answers(own: Sequence[event_pb2.Event]) -> list[str]:
    """Returns the known answers that a task's successful steps must have brought."""
    started = own[0].task_started
    answers: list[str] = []
    for event in own:
        result = event.worker_result
        if not event.HasField("worker_result") or result.HasField("error"):
            continue
        if result.HasField("research"):  # the real one may run out of time, and then says so
            gap = "No evidence was found in the sources searched."
            answers.append(answer_of(own[0].correlation_id) if result.research.findings else gap)
        elif result.HasField("command"):
            answers.append(answer_of(result.command.command.env["TOKEN"]))
    wanted = started.hints.capabilities
    asked = (task_pb2.CAPABILITY_RESEARCHER in wanted) + len(started.hints.commands) * (
        task_pb2.CAPABILITY_TERMINAL in wanted
    )
    if len(answers) < max(1, asked):
        answers.append("an answer for each step that was asked for")
    return answers


def states_agree_with_the_log(evidence: Evidence) -> Verdict:
    """A task read back shows what its last event says, and a project what its events add up to."""
    wrong = [
        f"task {task_id} is shown as {task_pb2.TaskStatus.Name(task.status)}, its last event says {own[-1].status}"
        for task_id, own in evidence.of_tasks().items()
        for task in [evidence.tasks.get(task_id, task_pb2.Task())]
        if task_pb2.TaskStatus.Name(task.status) != own[-1].status
    ]
    for project_id, state in evidence.projects.items():
        shown = {stage.stage_id: stage.status for stage in state.stages}
        if shown != stages_of(evidence.of_projects().get(project_id, [])):
            wrong.append(f"project {project_id} does not show what its events add up to")
    return Verdict(len(evidence.tasks) + len(evidence.projects), tuple(wrong))


def stages_of(events: Sequence[event_pb2.Event]) -> dict[int, int]:
    """Returns the stages' statuses after a project's events, in the plainest way."""
    stages: dict[int, int] = dict.fromkeys(project_pb2.Stage.values()[1:], project_pb2.STAGE_STATUS_PENDING)
    stages[project_pb2.STAGE_PARSE_INTENT] = project_pb2.STAGE_STATUS_IN_PROGRESS
    for event in events:
        if event.HasField("stage_status"):
            stages[event.stage_status.stage_id] = event.stage_status.status
    return stages


def what_is_healed_works(evidence: Evidence) -> Verdict:
    """After the last fault every call is answered and every accepted task ends, within the bound."""
    ended = sum(own[-1].type in TERMINAL_TYPES for own in evidence.of_tasks().values())
    return Verdict(ended + len(evidence.stuck), tuple(evidence.stuck))


def replies_are_as_expected(evidence: Evidence) -> Verdict:
    """A definite reply is the one the situation calls for, and no fault is answered as a bug (INTERNAL, UNKNOWN)."""
    definite = [call for call in calls_in(evidence.records) if answered(call) or call.code in REFUSALS]
    wrong = [
        f"{call.method} {call.request_id} of {call.who} was answered {call.code} {call.reason}, expected {call.expects}"
        for call in definite
        if call.expects != "EITHER" and answered(call) != (call.expects == "OK")
    ]
    wrong += [
        f"{call.method} of {call.who} was answered {call.code} {call.reason}"
        for call in calls_in(evidence.records)
        if call.reason == "INTERNAL"
    ]
    wrong += [record.what for record in evidence.records if isinstance(record, Happened) and "BUG" in record.what]
    return Verdict(len(definite), tuple(wrong))


Promise = Callable[[Evidence], Verdict]
