"""Complete Conductors that share one PostgreSQL, each with workers of its own and a cable that can be cut."""

import asyncio
import inspect
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from conductor.v1 import (
    conductor_pb2,
    conductor_pb2_grpc,
    event_pb2,
    project_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)

from services.common.boundary import new_id
from services.common.server import Service
from services.conductor.__main__ import FULL_NAME, MAX_REQUEST_BYTES
from services.conductor.actor import Actor
from services.conductor.api import ConductorApi
from services.conductor.intake import Intake
from services.conductor.lease import Lease
from services.conductor.programs import load as load_programs
from services.conductor.router import GrpcRouter
from services.conductor.store.base import Append, Outcome, Store
from services.conductor.store.engine import open_store
from services.conductor.subscribe import Subscriptions, Tail
from services.conductor.views import Views
from tests import databases
from tests.conftest import MAX_UPLOAD, Running, until
from tests.fakes import Workers, hangs
from tests.test_actor import submit

LEASE = 1.0  # seconds
CANCELLED = task_pb2.TASK_STATUS_CANCELLED
IN_PROGRESS = project_pb2.STAGE_STATUS_IN_PROGRESS
TERMINAL = task_pb2.CAPABILITY_TERMINAL
STARTED = "conductor.task.started"
Research = researcher_pb2.ResearchRequest


class Cable:
    """The way to a store: it can be cut, so that nothing is answered any more, or hold appends back."""

    def __init__(self, real: Store) -> None:
        self._real = real
        self.whole, self.open = asyncio.Event(), asyncio.Event()
        self.whole.set()
        self.open.set()
        self.held = 0
        self.outcomes: list[Outcome] = []

    async def append(self, append: Append) -> Outcome:
        self.held += not self.open.is_set()
        await self.open.wait()
        await self.whole.wait()
        outcome = await self._real.append(append)
        self.outcomes.append(outcome)
        return outcome

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not inspect.iscoroutinefunction(found) or name == "close":
            return found

        async def through(*args: Any) -> Any:
            await self.whole.wait()
            return await found(*args)

        return through


@dataclass
class Replica(Running):
    """A Conductor with workers of its own, so that it can be told who called which."""

    workers: Workers
    cable: Cable
    dead: bool = False

    async def die(self) -> None:
        """Ends as under kill -9: nothing is renewed, written or said any more."""
        self.dead = True
        await self.kill()
        await self.workers.stop()

    def freeze(self) -> None:
        """Stands still between looking at its lease and writing: what it then writes, it believes it may."""
        lease = self.actor._lease
        lease._keeper.cancel()
        lease._end.cancel()
        lease._until = float("inf")
        self.cable.open.clear()


async def start_replica(url: str, name: str, lease: float = LEASE, **options: Any) -> Replica:
    """Starts a Conductor, as its composition root does."""
    programs = options.pop("programs", None) or load_programs(None)
    workers = await Workers().start()
    cable = Cable(await open_store(url))
    router = GrpcRouter(workers.targets())
    settings = {"clock": time.time_ns, "new_id": new_id, "max_in_flight": 64, "max_queued": 1000, **options}
    actor = Actor(cable, router, Lease(cable, lease, new_id, lambda _: False), instance=name, **settings)
    tail = Tail(cable)
    tail.on_read(actor.saw)
    await tail.start()
    service = Service("127.0.0.1:0", [FULL_NAME], MAX_REQUEST_BYTES)
    intake = Intake(router.keep_for, MAX_UPLOAD, new_id)
    api = ConductorApi(actor, Views(cable), Subscriptions(cable, tail, 30.0, 100), router, programs, intake)
    conductor_pb2_grpc.add_ConductorServicer_to_server(api, service.server)
    await actor.start()
    await service.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{service.port}")
    stub = conductor_pb2_grpc.ConductorStub(channel)
    return Replica(cable, actor, tail, router, service, channel, stub, workers, cable)


Several = Callable[..., Awaitable[Sequence[Replica]]]


@pytest.fixture
async def several() -> AsyncIterator[Several]:
    """Starts replicas called a, b, c … on a database of their own."""
    url, started, names = await databases.fresh(), list[Replica](), itertools.chain("abcdef")

    async def more(count: int = 1, **options: Any) -> Sequence[Replica]:
        new = [await start_replica(url, next(names), **options) for _ in range(count)]
        started.extend(new)
        return new

    yield more
    for replica in started:
        replica.cable.whole.set()
        replica.cable.open.set()
        if not replica.dead:
            await replica.die()


async def task_of(replica: Running, task_id: str) -> task_pb2.Task:
    return await replica.stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id))


async def state_of(replica: Running, project: str = "p") -> project_pb2.ProjectState:
    return await replica.stub.GetState(conductor_pb2.GetStateRequest(project_id=project))


async def at_work(replica: Replica, count: int, **fields: Any) -> list[str]:
    """Submits tasks whose first call hangs at this replica's workers; returns their ids."""
    replica.workers.research = replica.workers.run = hangs
    answers = await asyncio.gather(*(submit(replica, objective=f"Why {n}?", **fields) for n in range(count)))
    await until(lambda: len(replica.workers.seen) == count)
    return [answer.task_id for answer in answers]


def commands(**fields: Any) -> task_pb2.Hints:
    return task_pb2.Hints(capabilities=[TERMINAL], commands=[terminal_pb2.Command(argv=["pay"], **fields)])


def check_gapless(log: Sequence[event_pb2.Event]) -> None:
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
