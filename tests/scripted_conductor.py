"""A Conductor that answers as a script says, for tests of its clients."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, event_pb2, task_pb2
from typer.testing import CliRunner

from client.cli import app
from services.common.errors import Refusal
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


def event(sequence: int, kind: str = "conductor.task.progress", **payload: Any) -> event_pb2.Event:
    return event_pb2.Event(sequence=sequence, type=kind, task_id=TASK, status="TASK_STATUS_RUNNING", **payload)


def checkpoint(sequence: int) -> event_pb2.Event:
    return event_pb2.Event(sequence=sequence, type="conductor.checkpoint")


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
