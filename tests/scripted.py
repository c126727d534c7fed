"""A Conductor that follows a script, for tests of what stands in front of it or runs it.

Run as `python -m tests.scripted SERVICE [stubborn | broken]` it stands in for any service: it serves health on the
service's own address, and says which objectives it was asked to execute. A stubborn one ignores SIGTERM; a broken one
ends at once with a sentence. SIGTERM lets it drain as Conductor does.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from conductor.v1 import conductor_pb2, conductor_pb2_grpc, event_pb2, project_pb2, task_pb2
from google.api import httpbody_pb2
from google.protobuf.message import Message

from ops.health import SETTINGS
from services.common.boundary import Context
from services.common.config import ConfigError, load
from services.common.errors import Reason, Refusal
from services.common.server import Service, run

NAME = "conductor.v1.Conductor"
MISSING = "missing"  # the task id that is not found


@dataclass
class Script(conductor_pb2_grpc.ConductorServicer):
    """Records what it is asked. `release` lets the second half of a stream go; `ended` says that one was left.

    A task's correlation id is the script's name, so that a caller sees who answered.
    """

    name: str = ""
    requests: list[Message] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    remaining: list[float | None] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def _record(self, request: Message, context: Context) -> None:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        self.remaining.append(context.time_remaining())

    async def Execute(  # names are the contract's
        self, request: conductor_pb2.ExecuteRequest, context: Context
    ) -> conductor_pb2.ExecuteResponse:
        self._record(request, context)
        if self.name:
            sys.stderr.write(f"executes {request.objective}\n")
        if request.objective == "boom":
            raise RuntimeError("a secret")
        if request.objective == "wait":
            await self.release.wait()
        if request.objective == "full":
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, "Too many tasks are queued.", limit=1)
        return conductor_pb2.ExecuteResponse(task_id="t-1", status=task_pb2.TASK_STATUS_QUEUED, as_of_sequence=7)

    async def GetTask(self, request: conductor_pb2.GetTaskRequest, context: Context) -> task_pb2.Task:
        self._record(request, context)
        if request.task_id == MISSING:
            raise Refusal(Reason.ERROR_REASON_TASK_NOT_FOUND, "There is no such task.", task_id=request.task_id)
        return task_pb2.Task(task_id=request.task_id, status=task_pb2.TASK_STATUS_RUNNING, correlation_id=self.name)

    async def ListTasks(
        self, request: conductor_pb2.ListTasksRequest, context: Context
    ) -> conductor_pb2.ListTasksResponse:
        self._record(request, context)
        return conductor_pb2.ListTasksResponse()

    async def GetReport(self, request: conductor_pb2.GetTaskReportRequest, context: Context) -> httpbody_pb2.HttpBody:
        self._record(request, context)
        return httpbody_pb2.HttpBody(content_type="text/markdown; charset=utf-8", data=b"# Answer\n")

    async def GetState(self, request: conductor_pb2.GetStateRequest, context: Context) -> project_pb2.ProjectState:
        self._record(request, context)
        return project_pb2.ProjectState(project_id=request.project_id)

    async def Confirm(self, request: conductor_pb2.ConfirmRequest, context: Context) -> project_pb2.ProjectState:
        self._record(request, context)
        return project_pb2.ProjectState(project_id=request.project_id, current_stage=project_pb2.STAGE_DATA_SOURCE)

    async def SubscribeEvents(
        self, request: conductor_pb2.SubscribeEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.Event]:
        self._record(request, context)
        yield event_pb2.Event(sequence=1, type="conductor.task.started")
        try:
            await self.release.wait()
        finally:
            self.ended.set()
        yield event_pb2.Event(sequence=2, type="conductor.task.completed")

    async def StreamEvents(
        self, request: conductor_pb2.StreamEventsRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        self._record(request, context)
        if request.task_id == MISSING:
            raise Refusal(Reason.ERROR_REASON_TASK_NOT_FOUND, "There is no such task.", task_id=request.task_id)
        first = b"retry: 1000\n\nid: 1\nevent: conductor.task.started\ndata: {}\n\n"
        yield httpbody_pb2.HttpBody(content_type="text/event-stream", data=first)
        try:
            await self.release.wait()
        finally:
            self.ended.set()
        yield httpbody_pb2.HttpBody(data=b"id: 2\nevent: conductor.task.completed\ndata: {}\n\n")


def stand_ins(**manners: str) -> dict[str, Sequence[str]]:
    """Commands for stand-ins of all four services; a keyword gives one its manner."""
    return {name: [sys.executable, "-m", "tests.scripted", name, *manners.get(name, "").split()] for name in SETTINGS}


async def serve_script(script: Script, address: str = "127.0.0.1:0") -> Service:
    """Starts a Conductor that follows the script."""
    service = Service(address, [NAME])
    conductor_pb2_grpc.add_ConductorServicer_to_server(script, service.server)
    await service.start()
    return service


async def _stand_in(stop: asyncio.Event) -> None:
    name, *manners = sys.argv[1:]
    if "broken" in manners:
        raise ConfigError("The script says so.")
    settings: Any = load(SETTINGS[name])
    service = await serve_script(Script(name=getattr(settings, "instance", name)), settings.listen)
    sys.stderr.write(f"{name} serves as process {os.getpid()}\n")
    if "stubborn" in manners:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        await asyncio.Event().wait()
    await stop.wait()
    sys.stderr.write(f"{name} stops\n")
    await service.drain()
    await asyncio.sleep(getattr(settings, "drain", 0))
    await service.stop(0.5)


if __name__ == "__main__":
    run(sys.argv[1], _stand_in)
