"""The Python client and the command line against a scripted Conductor on a real port."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, event_pb2, project_pb2, task_pb2, terminal_pb2
from google.api import httpbody_pb2
from typer.testing import CliRunner

from client.api import ConductorClient
from client.cli import app
from client.errors import ConductorError
from services.common.errors import Reason, Refusal
from services.common.status import to_status

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-c", "from client.cli import main; main()")
TASK = "0192f0c1-0000-7000-8000-000000000001"

Act = Callable[[Any, grpc.ServicerContext], Any]


class Scripted(conductor_pb2_grpc.ConductorServicer):
    """Answers each rpc by the next act of its script; the last one stays. Records every request."""

    def __init__(self) -> None:
        self.acts: dict[str, list[Act]] = {}
        self.requests: list[Any] = []
        self.left = threading.Event()  # a stream was left by its caller

    def on(self, rpc: str, *acts: Act) -> None:
        self.acts[rpc] = list(acts)

    def seen(self, kind: type) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    def act(self, rpc: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        acts = self.acts[rpc]
        return (acts.pop(0) if len(acts) > 1 else acts[0])(request, context)


def _unary(rpc: str) -> Any:
    return lambda self, request, context: self.act(rpc, request, context)


def _stream(self: Scripted, request: Any, context: grpc.ServicerContext) -> Any:
    context.add_callback(self.left.set)
    yield from self.act("SubscribeEvents", request, context)


for _rpc in ("Execute", "GetTask", "ListTasks", "CancelTask", "GetReport", "GetState", "ListProjects", "TransitionTo"):
    setattr(Scripted, _rpc, _unary(_rpc))
for _rpc in ("WaitForConfirmation", "ProposePlan", "Confirm"):
    setattr(Scripted, _rpc, _unary(_rpc))
Scripted.SubscribeEvents = _stream  # type: ignore[method-assign]


def serve(script: Scripted, port: int = 0) -> tuple[grpc.Server, int]:
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    conductor_pb2_grpc.add_ConductorServicer_to_server(script, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


@pytest.fixture
def script() -> Scripted:
    return Scripted()


@pytest.fixture
def target(script: Scripted) -> Iterator[str]:
    server, port = serve(script)
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def client(target: str) -> Iterator[ConductorClient]:
    with ConductorClient(target, timeout=10, retry_for=1, resume_for=1) as made:
        yield made


def give(answer: Any) -> Act:
    return lambda request, context: answer


def refuse(reason: Any, message: str = "No.", violations: Any = (), **metadata: object) -> Act:
    def act(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort_with_status(to_status(Refusal(reason, message, violations, **metadata), "c-1"))

    return act


def cut(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Act:
    return lambda request, context: context.abort(code, "cut on the way")


def stream(*messages: event_pb2.Event, then: Act | None = None) -> Act:
    """Sends the messages; then acts, or stays open until the caller leaves."""

    def act(request: Any, context: grpc.ServicerContext) -> Iterator[event_pb2.Event]:
        yield from messages
        if then is not None:
            then(request, context)
            return
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(20)

    return act


def ended(request: Any, context: grpc.ServicerContext) -> None:
    """Ends a stream with status OK."""


def event(sequence: int, kind: str = "conductor.task.progress", **payload: Any) -> event_pb2.Event:
    return event_pb2.Event(sequence=sequence, type=kind, task_id=TASK, status="TASK_STATUS_RUNNING", **payload)


def checkpoint(sequence: int) -> event_pb2.Event:
    return event_pb2.Event(sequence=sequence, type="conductor.checkpoint")


def snapshot(sequence: int) -> event_pb2.Event:
    return event(sequence, "conductor.snapshot", snapshot=event_pb2.Snapshot(task=task_pb2.Task(task_id=TASK)))


def take(events: Iterator[event_pb2.Event], count: int) -> list[int]:
    return [next(events).sequence for _ in range(count)]


def cursors(script: Scripted) -> list[int | None]:
    asked = script.seen(conductor_pb2.SubscribeEventsRequest)
    return [request.after_sequence if request.HasField("after_sequence") else None for request in asked]


# Calls


def test_execute_asks_for_a_report_under_a_new_request_id(client: ConductorClient, script: Scripted) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    assert client.execute("why?", wait=1.5, project_id="p").task_id == TASK
    client.execute("why?")
    client.execute("why?", request_id="mine")
    first, second, third = script.seen(conductor_pb2.ExecuteRequest)
    assert first.output_mode == task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER
    assert (first.objective, first.project_id, first.wait.ToMilliseconds()) == ("why?", "p", 1500)
    assert not first.HasField("desktop_id")
    assert first.request_id
    assert first.request_id != second.request_id
    assert third.request_id == "mine"


MOVES: dict[str, Callable[[ConductorClient], Any]] = {
    "Execute": lambda client: client.execute("x"),
    "TransitionTo": lambda client: client.transition("p", project_pb2.STAGE_TRAIN),
    "WaitForConfirmation": lambda client: client.wait_for_confirmation("p", project_pb2.STAGE_TRAIN, summary="s"),
    "ProposePlan": lambda client: client.propose_plan("p", project_pb2.STAGE_TRAIN, "s", steps=["a", "b"]),
    "Confirm": lambda client: client.confirm("p", approved=False, reason="r"),
}
READS: dict[str, Callable[[ConductorClient], Any]] = {
    "GetTask": lambda client: client.get_task(TASK),
    "ListTasks": lambda client: client.list_tasks(status=task_pb2.TASK_STATUS_FAILED, page_size=2),
    "GetReport": lambda client: client.report(TASK),
    "GetState": lambda client: client.state("p"),
    "ListProjects": lambda client: client.list_projects(page_token="t"),
}
ANSWERS: dict[str, Any] = {
    "Execute": conductor_pb2.ExecuteResponse(task_id=TASK),
    "GetTask": task_pb2.Task(task_id=TASK),
    "ListTasks": conductor_pb2.ListTasksResponse(next_page_token="n"),
    "GetReport": httpbody_pb2.HttpBody(data=b"# r"),
    "ListProjects": conductor_pb2.ListProjectsResponse(next_page_token="n"),
}


@pytest.mark.parametrize("rpc", [*MOVES, *READS])
def test_a_safe_call_is_repeated_while_unavailable(client: ConductorClient, script: Scripted, rpc: str) -> None:
    answer = ANSWERS.get(rpc, project_pb2.ProjectState(project_id="p"))
    script.on(rpc, cut(), refuse(Reason.ERROR_REASON_SHUTTING_DOWN), give(answer))
    assert (MOVES | READS)[rpc](client) == answer
    assert len(script.requests) == 3
    assert script.requests[0] == script.requests[1] == script.requests[2]  # the request_id too
    assert rpc in READS or script.requests[0].request_id


def test_cancel_is_tried_once(client: ConductorClient, script: Scripted) -> None:
    script.on("CancelTask", cut(), give(task_pb2.Task(task_id=TASK)))
    with pytest.raises(ConductorError) as raised:
        client.cancel(TASK, "enough")
    assert raised.value.retryable
    assert client.cancel(TASK, "enough").task_id == TASK
    assert [request.reason for request in script.requests] == ["enough", "enough"]


def test_a_refusal_is_not_repeated_and_arrives_whole(client: ConductorClient, script: Scripted) -> None:
    script.on("GetTask", refuse(Reason.ERROR_REASON_TASK_NOT_FOUND, "No such task.", task_id=TASK))
    with pytest.raises(ConductorError, match="TASK_NOT_FOUND: No such task") as raised:
        client.get_task(TASK)
    error = raised.value
    assert (error.reason, error.message, error.code) == ("TASK_NOT_FOUND", "No such task.", grpc.StatusCode.NOT_FOUND)
    assert error.metadata == {"task_id": TASK, "correlation_id": "c-1"}
    assert not error.retryable
    assert len(script.requests) == 1


def test_violations_of_an_invalid_request_arrive_by_field(client: ConductorClient, script: Scripted) -> None:
    violations = [("objective", "must not be blank"), ("wait", "must be short")]
    script.on("Execute", refuse(Reason.ERROR_REASON_INVALID_REQUEST, "Bad.", violations, field="objective"))
    with pytest.raises(ConductorError) as raised:
        client.execute("")
    assert raised.value.violations == dict(violations)


def test_an_answer_without_details_is_named_by_its_code(client: ConductorClient, script: Scripted) -> None:
    script.on("GetState", cut(grpc.StatusCode.PERMISSION_DENIED))
    with pytest.raises(ConductorError) as raised:
        client.state("p")
    assert (raised.value.reason, raised.value.message) == ("PERMISSION_DENIED", "cut on the way")


def test_repeating_ends_in_time(client: ConductorClient, script: Scripted) -> None:
    script.on("GetState", cut())
    begun = time.monotonic()
    with pytest.raises(ConductorError, match="UNAVAILABLE"):
        client.state("p")
    assert 1 <= time.monotonic() - begun < 5
    assert len(script.requests) < 10  # the pauses grow


def test_a_call_without_an_answer_ends_at_its_deadline(script: Scripted, target: str) -> None:
    free = threading.Event()
    script.on("GetState", lambda request, context: free.wait(20))
    with ConductorClient(target, timeout=0.2) as client, pytest.raises(ConductorError, match="DEADLINE_EXCEEDED"):
        client.state("p")
    free.set()


# Streams


@pytest.mark.parametrize(
    "how", [cut(), cut(grpc.StatusCode.INTERNAL), refuse(Reason.ERROR_REASON_SHUTTING_DOWN), ended]
)
def test_a_broken_stream_goes_on_behind_its_last_event(client: ConductorClient, script: Scripted, how: Act) -> None:
    script.on(
        "SubscribeEvents",
        stream(event(1), event(2), then=how),
        cut(),
        stream(event(2), event(3), checkpoint(7), then=how),  # an event that comes again is not yielded again
        stream(event(8)),
    )
    assert take(client.events(after_sequence=0), 4) == [1, 2, 3, 8]
    assert cursors(script) == [0, 2, 2, 7]


def test_the_snapshot_comes_once_and_is_the_cursor(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", cut(), stream(snapshot(5), then=cut()), stream(event(6)))
    events = client.events(task_id=TASK)
    assert next(events).snapshot.task.task_id == TASK
    assert next(events).sequence == 6
    assert cursors(script) == [None, None, 5]
    assert {request.task_id for request in script.requests} == {TASK}


def test_filters_are_kept_when_a_stream_is_resumed(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(event(1), then=cut()), stream(event(2)))
    scope = task_pb2.Scope(user_id="u")
    assert take(client.events(after_sequence=0, project_id="p", types=["a", "b"], correlation_id="c", scope=scope), 2)
    for request in script.requests:
        assert (request.project_id, list(request.types), request.correlation_id) == ("p", ["a", "b"], "c")
        assert request.scope == scope


def test_a_refused_stream_raises_at_once(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", refuse(Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE, head=4))
    with pytest.raises(ConductorError, match="CURSOR_OUT_OF_RANGE") as raised:
        next(client.events(after_sequence=9))
    assert raised.value.metadata["head"] == "4"
    assert len(script.requests) == 1


def test_a_fault_of_conductor_is_not_taken_for_a_cut(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(event(1), then=refuse(Reason.ERROR_REASON_INTERNAL)))
    events = client.events(after_sequence=0)
    assert next(events).sequence == 1
    with pytest.raises(ConductorError, match="INTERNAL"):
        next(events)
    assert len(script.requests) == 1


@pytest.mark.parametrize("how", [cut(), stream(then=ended)])
def test_resuming_ends_when_nothing_comes_for_long(client: ConductorClient, script: Scripted, how: Act) -> None:
    script.on("SubscribeEvents", how)
    with pytest.raises(ConductorError, match="UNAVAILABLE"):
        next(client.events(after_sequence=0))
    assert 1 < len(script.requests) < 10


def test_patience_begins_anew_with_each_event(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", *(stream(event(number), then=cut()) for number in range(1, 10)))
    assert take(client.events(after_sequence=0), 9) == list(range(1, 10))


def test_without_follow_a_stream_ends_at_the_present(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(checkpoint(3)), stream(event(1), event(2), event(3), event(4)))
    assert [found.sequence for found in client.events(after_sequence=0, follow=False)] == [1, 2, 3]
    script.on("SubscribeEvents", stream(checkpoint(9)), stream(event(1), checkpoint(9)))
    assert [found.sequence for found in client.events(after_sequence=0, types=["a"], follow=False)] == [1]


def test_an_empty_log_is_read_at_once(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(checkpoint(0)))
    assert list(client.events(after_sequence=0, follow=False)) == []
    assert len(script.requests) == 1  # a second stream would be silent until the service's heartbeat


def test_leaving_a_stream_ends_it_at_the_server(client: ConductorClient, script: Scripted) -> None:
    script.on("SubscribeEvents", stream(event(1)))
    events = client.events(after_sequence=0)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert script.left.wait(5)


def test_a_stream_survives_a_restart_of_the_server(script: Scripted) -> None:
    server, port = serve(script)
    script.on("SubscribeEvents", stream(event(1)), stream(event(2)))
    with ConductorClient(f"127.0.0.1:{port}", resume_for=10) as client:
        events = client.events(after_sequence=0)
        assert next(events).sequence == 1
        server.stop(None).wait()
        server, _ = serve(script, port)
        assert next(events).sequence == 2
    server.stop(None).wait()


# The command line, as a process where exit, signals, bytes or terminals matter


def process(*arguments: str, target: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments, *(["--target", target] if target else [])]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, **options)


def conductor(*arguments: str, target: str = "") -> Any:
    """Runs a command line inside of this process, which saves the start of an interpreter."""
    return CliRunner().invoke(app, [*arguments, *(["--target", target] if target else [])], prog_name="conductor")


def the_story(script: Scripted, last: event_pb2.Event, task: task_pb2.Task) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    started = event(1, "conductor.task.started", task_started=event_pb2.TaskStarted(objective="why?"))
    called = event_pb2.WorkerCall(capability=task_pb2.CAPABILITY_TERMINAL, summary="ls -l", attempt=2)
    script.on("SubscribeEvents", stream(started, event(2, "conductor.worker.call", worker_call=called), then=cut()))
    script.acts["SubscribeEvents"].append(stream(last))
    script.on("GetTask", give(task))


def completed(script: Scripted) -> None:
    path = f"reports/{TASK}.md"
    fact = event_pb2.TaskCompleted(report_path=path)
    task = task_pb2.Task(task_id=TASK, status=task_pb2.TASK_STATUS_COMPLETED, report_path=path)
    the_story(script, event(3, "conductor.task.completed", task_completed=fact), task)


def failed(script: Scripted) -> None:
    error = Refusal(Reason.ERROR_REASON_COMMAND_FAILED, "It exited with 3.").error
    task = task_pb2.Task(task_id=TASK, status=task_pb2.TASK_STATUS_FAILED, error=error)
    the_story(script, event(3, "conductor.task.failed", task_failed=event_pb2.TaskFailed(error=error)), task)


def test_execute_shows_the_story_and_the_report(script: Scripted, target: str) -> None:
    completed(script)
    done = process("execute", "why?", target=target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "task.started    why?",
        "worker.call     TERMINAL: ls -l (attempt 2)",
        f"task.completed  reports/{TASK}.md",
        f"Completed: reports/{TASK}.md",
        f"Read it: conductor report {TASK}",
    ]
    assert done.stderr == f"Task {TASK}\n"


def test_execute_ends_with_1_when_the_task_fails(script: Scripted, target: str) -> None:
    failed(script)
    done = process("execute", "why?", target=target)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "COMMAND_FAILED: It exited with 3."


def test_watch_gives_scripts_json_lines_and_the_task_last(script: Scripted, target: str) -> None:
    completed(script)
    done = process("watch", TASK, "--json", target=target)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [line["sequence"] for line in lines[:3]] == ["1", "2", "3"]
    assert lines[1]["worker_call"]["capability"] == "CAPABILITY_TERMINAL"
    assert lines[3] == {"task_id": TASK, "status": "TASK_STATUS_COMPLETED", "report_path": f"reports/{TASK}.md"}
    assert done.stderr == ""


def test_execute_without_waiting_writes_the_id(script: Scripted, target: str) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    arguments = ("--source", "docs", "--command", "grep -r 'a b' .", "--script", "ls|wc", "--deadline", "5m")
    done = conductor("execute", "why?", "--no-wait", *arguments, "--project", "p", "--request-id", "r-1", target=target)
    assert (done.exit_code, done.stdout) == (0, f"{TASK}\n")
    (request,) = script.requests
    assert (request.project_id, request.request_id) == ("p", "r-1")
    assert list(request.hints.capabilities) == [task_pb2.CAPABILITY_RESEARCHER, task_pb2.CAPABILITY_TERMINAL]
    assert list(request.hints.research.sources) == ["docs"]
    argv, shell = request.hints.commands
    assert (list(argv.argv), shell.script) == (["grep", "-r", "a b", "."], "ls|wc")
    assert request.hints.deadline.seconds == 300


@pytest.mark.parametrize(
    ("arguments", "capabilities"), [([], []), (["--source", "docs"], []), (["--command", "ls"], [2])]
)
def test_only_commands_choose_their_worker(
    script: Scripted, target: str, arguments: list[str], capabilities: list[int]
) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    assert conductor("execute", "why?", "--no-wait", "--json", *arguments, target=target).stdout == (
        f'{{"task_id": "{TASK}"}}\n'
    )
    assert list(script.requests[0].hints.capabilities) == capabilities


def test_an_interrupted_watch_leaves_the_task_running_and_says_so(script: Scripted, target: str) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    script.on("SubscribeEvents", stream(event(1)))
    command = [*COMMAND, "execute", "why?", "--target", target]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as started:
        assert "task.progress" in (started.stdout or sys.stdin).readline()
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=20)
    assert started.returncode == 130
    assert f"The task goes on: conductor watch {TASK}" in errors
    assert "Traceback" not in errors
    assert script.seen(conductor_pb2.CancelTaskRequest) == []


def test_an_interrupted_execute_says_how_to_learn_more(script: Scripted, target: str) -> None:
    asked, free = threading.Event(), threading.Event()

    def hang(request: Any, context: grpc.ServicerContext) -> Any:
        asked.set()
        free.wait(20)
        return conductor_pb2.ExecuteResponse()

    script.on("Execute", hang)
    command = [*COMMAND, "execute", "why?", "--request-id", "r-7", "--target", target]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as started:
        assert asked.wait(20)
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=20)
        free.set()
    assert started.returncode == 130
    assert "repeat with --request-id r-7" in errors


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (refuse(Reason.ERROR_REASON_INVALID_REQUEST, "Bad id.", [("task_id", "must be an id")]), 2),
        (refuse(Reason.ERROR_REASON_TASK_NOT_FOUND, "No such task.", task_id=TASK), 3),
        (refuse(Reason.ERROR_REASON_REQUEST_ID_REUSED), 3),
        (refuse(Reason.ERROR_REASON_OVER_CAPACITY), 4),
        (refuse(Reason.ERROR_REASON_INTERNAL), 1),
    ],
)
def test_exit_codes_tell_refusals_apart(script: Scripted, target: str, act: Act, code: int) -> None:
    script.on("GetTask", act)
    done = conductor("task", TASK, "--json", target=target)
    assert done.exit_code == code
    assert done.stdout == ""
    error = json.loads(done.stderr)
    assert error["metadata"]["correlation_id"] == "c-1"
    assert set(error) == {"reason", "code", "message", "metadata", "violations"}


def test_the_process_ends_with_the_code_of_the_refusal(script: Scripted, target: str) -> None:
    script.on("CancelTask", refuse(Reason.ERROR_REASON_ILLEGAL_TRANSITION, "It has ended.", found="COMPLETED"))
    refused = process("cancel", TASK, target=target)
    assert (refused.returncode, refused.stderr) == (3, "ILLEGAL_TRANSITION: It has ended.\n")
    script.on("Execute", refuse(Reason.ERROR_REASON_INVALID_REQUEST, "Bad.", [("objective", "must not be blank")]))
    invalid = process("execute", " ", target=target)
    assert (invalid.returncode, invalid.stderr) == (2, "INVALID_REQUEST: Bad.\n  objective: must not be blank\n")


def test_an_unreachable_conductor_is_4_and_the_target_comes_from_the_environment(script: Scripted) -> None:
    server, port = serve(script)
    server.stop(None).wait()
    done = process("state", "p", env={**os.environ, "CONDUCTOR_TARGET": f"127.0.0.1:{port}"})
    assert done.returncode == 4
    assert f"Tried 127.0.0.1:{port}. Start Conductor, or name another one with --target." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["transition", "p", "nowhere"], "parse_intent"),
        (["tasks", "--status", "odd"], "queued"),
        (["execute", "x", "--deadline", "soon"], "5m"),
        (["execute", "x", "--command", "echo 'a"], "quotation"),
        (["events", "--after", "-1"], "--after"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_wrong_command_line_is_2_before_anything_is_asked(arguments: list[str], says: str) -> None:
    done = conductor(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_help_tells_the_exit_codes() -> None:
    done = conductor("--help")
    assert done.exit_code == 0
    for code in ("0: done", "1: the task failed", "2: the command", "3: refused", "4: unavailable", "130: interrupted"):
        assert code in done.stdout


def a_state() -> project_pb2.ProjectState:
    state = project_pb2.ProjectState(project_id="p", current_stage=project_pb2.STAGE_TRAIN, as_of_sequence=9)
    state.stages.add(stage_id=project_pb2.STAGE_MODEL_SELECT, status=project_pb2.STAGE_STATUS_COMPLETED)
    state.stages.add(stage_id=project_pb2.STAGE_TRAIN, status=project_pb2.STAGE_STATUS_WAITING_CONFIRMATION)
    waiting = state.waiting_confirmation
    waiting.stage_id, waiting.confirmation_id, waiting.summary = project_pb2.STAGE_TRAIN, "c-9", "Trained."
    waiting.next_actions.append("look at it")
    return state


def test_state_shows_the_stages_and_what_waits(script: Scripted, target: str) -> None:
    script.on("GetState", give(a_state()))
    assert conductor("state", "p", target=target).stdout.splitlines() == [
        "p  TRAIN  as of 9",
        "  MODEL_SELECT  COMPLETED",
        "> TRAIN         WAITING_CONFIRMATION",
        "TRAIN waits, confirmation c-9: Trained. Next: look at it",
    ]


def test_confirm_names_what_was_seen(script: Scripted, target: str) -> None:
    script.on("Confirm", give(a_state()))
    named = ("--stage", "Train", "--confirmation", "c-9", "--plan", "pl-1")
    assert conductor("confirm", "p", *named, target=target).exit_code == 0
    assert conductor("reject", "p", "too slow", target=target).exit_code == 0
    approved, rejected = script.requests
    assert (approved.stage_id, approved.confirmation_id, approved.plan_id) == (project_pb2.STAGE_TRAIN, "c-9", "pl-1")
    assert approved.approved
    assert approved.request_id
    assert (rejected.stage_id, rejected.HasField("approved"), rejected.approved) == (0, True, False)
    assert rejected.reason == "too slow"


def test_transition_takes_short_and_whole_names(script: Scripted, target: str) -> None:
    script.on("TransitionTo", give(a_state()))
    assert conductor("transition", "p", "review-edit", target=target).exit_code == 0
    whole = ("STAGE_TRAIN", "--status", "completed", "--message", "done")
    assert (
        json.loads(conductor("transition", "p", *whole, "--json", target=target).stdout)["current_stage"]
        == "STAGE_TRAIN"
    )
    first, second = script.requests
    assert (first.stage_id, first.status) == (project_pb2.STAGE_REVIEW_EDIT, 0)
    assert (second.stage_id, second.status) == (project_pb2.STAGE_TRAIN, project_pb2.STAGE_STATUS_COMPLETED)
    assert second.message == "done"


def test_a_report_is_written_byte_by_byte(script: Scripted, target: str) -> None:
    data = "# Réport\r\n\x00[red]x[/red]".encode()
    script.on("GetReport", give(httpbody_pb2.HttpBody(content_type="text/markdown", data=data)))
    done = subprocess.run([*COMMAND, "report", TASK, "--target", target], cwd=ROOT, capture_output=True, timeout=30)
    assert done.stdout == data


def test_tasks_and_cancel_show_a_line_a_task(script: Scripted, target: str) -> None:
    task = task_pb2.Task(task_id=TASK, status=task_pb2.TASK_STATUS_CANCELLED, objective="why?\nnot")
    task.created_at.seconds = 1_800_000_000
    script.on("ListTasks", give(conductor_pb2.ListTasksResponse(tasks=[task, task])))
    script.on("CancelTask", give(task))
    line = f"{TASK}  CANCELLED  2027-01-15T08:00:00Z  why? not\n"
    assert conductor("tasks", "--status", "cancelled", "--limit", "7", target=target).stdout == 2 * line
    assert conductor("cancel", TASK, "--reason", "enough", target=target).stdout == line
    listed, cancelled = script.requests
    assert (listed.status, listed.page_size) == (task_pb2.TASK_STATUS_CANCELLED, 7)
    assert cancelled.reason == "enough"


def test_events_shows_all_there_is_and_ends(script: Scripted, target: str) -> None:
    script.on("SubscribeEvents", stream(checkpoint(2)), stream(event(1), event(2)))
    done = conductor("events", "--no-follow", "--project", "p", "--type", "a", target=target)
    assert done.stdout.splitlines() == [f"{number}  conductor.task.progress  {TASK}  RUNNING" for number in (1, 2)]
    request = script.requests[1]
    assert (request.after_sequence, request.project_id, list(request.types)) == (0, "p", ["a"])


def test_every_payload_has_a_line(script: Scripted, target: str) -> None:
    facts = [name.name for name in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]
    messages = []
    for number, name in enumerate(facts, 1):
        made = event(number, "t")
        getattr(made, name).SetInParent()
        messages.append(made)
    messages[-1].snapshot.project.project_id = "p"
    script.on("SubscribeEvents", stream(checkpoint(len(facts))), stream(*messages))
    done = conductor("events", "--no-follow", target=target)
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(facts)


def test_text_of_workers_cannot_steer_the_terminal(script: Scripted, target: str) -> None:
    text = "a\x1b[2Jb\x1b]0;title\x07\x9bc\r\nforged line\u202eevil [red]markup[/red] :smile:"
    progress = event_pb2.TaskProgress(message=text)
    result = event_pb2.WorkerResult(error=Refusal(Reason.ERROR_REASON_WORKER_FAILED, text).error)
    result.command.result.end = terminal_pb2.COMMAND_END_MEMORY
    second = event(2, text, worker_result=result)
    script.on("SubscribeEvents", stream(checkpoint(2)), stream(event(1, task_progress=progress), second))
    done = conductor("events", "--no-follow", target=target)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "a [2Jb ]0;title c forged line evil [red]markup[/red] :smile:" in lines[0]
    assert "MEMORY; WORKER_FAILED: a [2Jb" in lines[1]
    assert not {char for char in done.stdout if char < " " and char != "\n"}


def test_a_terminal_sees_that_something_is_under_way(script: Scripted, target: str) -> None:
    completed(script)
    leader, follower = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [*COMMAND, "watch", TASK, "--target", target]
    with subprocess.Popen(command, cwd=ROOT, stdout=follower, stderr=follower, env=environ) as started:
        os.close(follower)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the process is
            while piece := os.read(leader, 4096):
                seen += piece
    os.close(leader)
    assert started.returncode == 0
    assert b"working" in seen
    assert f"Completed: reports/{TASK}.md".encode() in seen
