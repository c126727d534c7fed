"""Shared by all tests: a clean environment, a whole Conductor on a free port, and waiting with a deadline."""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, event_pb2, task_pb2

from services.common.boundary import new_id
from services.common.server import Service
from services.conductor.__main__ import FULL_NAME, MAX_REQUEST_BYTES
from services.conductor.actor import Actor
from services.conductor.api import ConductorApi
from services.conductor.intake import Intake
from services.conductor.lease import Lease
from services.conductor.programs import load as load_programs
from services.conductor.router import GrpcRouter
from services.conductor.state.task_state import TERMINAL
from services.conductor.store.sqlite import SqliteStore
from services.conductor.subscribe import Subscriptions, Tail
from services.conductor.views import Views
from tests import properties
from tests.fakes import Workers

# Before NumPy is loaded: several threads learn no faster from small tables, and spin while they wait for each other.
# Stages have one too, unless given more.
os.environ["OMP_NUM_THREADS"] = "1"

# Held for the whole session: when the last channel or server of a process is collected, grpc.aio joins its poller
# thread, and the join never ends if a call of an ended event loop is still open (seen with grpcio 1.85).
grpc.aio.init_grpc_aio()

properties.register()

# Files that take half a minute and more, the longest first: begun last, one would leave the other workers idle.
LONG = (
    "tests/test_attacks.py",
    "tests/system/test_export_fresh.py",
    "tests/test_stage_export.py",
    "tests/test_stage_train.py",
    "tests/test_stage_codes.py",
    "tests/system/test_run_kills.py",
    "tests/system/test_stopping_replicas.py",
    "tests/system/test_chaos.py",
    "tests/test_up.py",
)
PREFIXES = ("CONDUCTOR_", "RESEARCHER_", "TERMINAL_", "REPORT_WRITER_", "EDGE_")
MAX_UPLOAD = 1024 * 1024  # bytes
MARKDOWN = task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of LONG files first; otherwise the order stays."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONG)))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)


async def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Waits until a condition, sync or async, is true, and returns its value. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(0.01)


async def every_event(store: Any, key: Any = None) -> list[event_pb2.Event]:
    """Returns the whole log, or all of a task or project, page by page."""
    events: list[event_pb2.Event] = []
    through, (_, head) = 0, await store.bounds()
    while through < head:
        page = await store.read(through, 100_000, key)
        events += page.events
        through = page.through
    return events


@dataclass
class Clock:
    """A clock that tests move. Nanoseconds."""

    now: int = 1_800_000_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


@dataclass
class Running:
    """A whole Conductor on a free port, with its parts in reach."""

    store: Any
    actor: Actor
    tail: Tail
    router: GrpcRouter
    service: Service
    channel: grpc.aio.Channel
    stub: Any

    async def execute(self, objective: str = "At what temperature does water boil?", **fields: Any) -> Any:
        request = conductor_pb2.ExecuteRequest(objective=objective, output_mode=MARKDOWN, **fields)
        return await self.stub.Execute(request)

    async def ended(self, task_id: str, seconds: float = 10) -> task_pb2.Task:
        """Waits until a task has ended and returns it."""

        async def look() -> task_pb2.Task | None:
            task = await self.stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id))
            return task if task.status in TERMINAL else None

        return await until(look, seconds)

    async def events(self, task_id: str = "", project_id: str = "") -> list[event_pb2.Event]:
        """Returns all events of a task, of a project, or of the log, as stored."""
        return await every_event(
            self.store, ("task", task_id) if task_id else ("project", project_id) if project_id else None
        )

    async def kill(self) -> None:
        """Ends everything at once, as a crash would; the store's file stays as the last commit left it."""
        self.actor._stopping = True
        self.actor._lease.abandon()
        await self.tail.close()
        await self.router.close()
        await self.channel.close()
        await self.service.stop(0)
        await self.store.close()


async def start_conductor(path: Path, workers: Workers, **options: Any) -> Running:
    """Starts a Conductor on a store file, as its composition root does."""
    store = options.pop("wrap", lambda real: real)(SqliteStore(path))
    programs = options.pop("programs", None) or load_programs(None)
    heartbeat, max_streams = options.pop("heartbeat", 30.0), options.pop("max_streams", 100)
    router = GrpcRouter(workers.targets())
    defaults = {"clock": time.time_ns, "new_id": new_id, "instance": "test", "max_in_flight": 64, "max_queued": 1000}
    lease = Lease(store, options.pop("lease", 5.0), new_id, lambda _: False)
    actor = Actor(store, router, lease, **{**defaults, **options})
    tail = Tail(store)
    tail.on_read(actor.saw)
    await tail.start()
    service = Service("127.0.0.1:0", [FULL_NAME], MAX_REQUEST_BYTES)
    intake = Intake(router.keep_for, MAX_UPLOAD, new_id)
    api = ConductorApi(
        actor, Views(store), Subscriptions(store, tail, heartbeat, max_streams), router, programs, intake
    )
    conductor_pb2_grpc.add_ConductorServicer_to_server(api, service.server)
    await actor.start()
    await service.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{service.port}")
    return Running(store, actor, tail, router, service, channel, conductor_pb2_grpc.ConductorStub(channel))


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    workers = await Workers().start()
    yield workers
    await workers.stop()


@pytest.fixture
async def conductor(tmp_path: Path, workers: Workers) -> AsyncIterator[Running]:
    running = await start_conductor(tmp_path / "conductor.db", workers)
    yield running
    await running.kill()


@contextlib.contextmanager
def refused(code: grpc.StatusCode) -> Iterator[list[grpc.aio.AioRpcError]]:
    """Expects a call to be refused with a code; the list then holds the error."""
    caught: list[grpc.aio.AioRpcError] = []
    with pytest.raises(grpc.aio.AioRpcError) as info:
        yield caught
    caught.append(info.value)
    assert info.value.code() == code, info.value.details()


def numbered(prefix: str) -> Callable[[], str]:
    """Returns an id maker that counts: prefix-1, prefix-2, …"""
    counter = itertools.count(1)
    return lambda: f"{prefix}-{next(counter)}"
