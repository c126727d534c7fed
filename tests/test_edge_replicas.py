"""envoy.yaml in a real Envoy, in front of three Conductors that are killed, stopped and paused."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, task_pb2

from ops import envoy
from ops.stack import Stack
from tests.conftest import until
from tests.scripted import stand_ins

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPLICAS = ("conductor", "conductor-2", "conductor-3")
STORE = "postgresql://nobody@127.0.0.1:1/none"  # the stand-ins do not open it
DEADLINE_S = 20
CALLERS = 16
CLUSTERS = ("conductor", "conductor_streams")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
CALL_TIMEOUT_S = 15


@dataclass(frozen=True)
class Edge:
    stack: Stack
    stub: conductor_pb2_grpc.ConductorStub

    async def who(self, task_id: str = "t") -> str:
        """Asks for a task; returns which replica answered."""
        request = conductor_pb2.GetTaskRequest(task_id=task_id)
        return (await self.stub.GetTask(request, timeout=CALL_TIMEOUT_S)).correlation_id

    async def execute(self, objective: str) -> None:
        request = conductor_pb2.ExecuteRequest(
            objective=objective, output_mode=task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER
        )
        await self.stub.Execute(request, timeout=CALL_TIMEOUT_S)

    def executed(self) -> Counter[str]:
        """Returns how often each objective reached a Conductor."""
        lines = [line for name in REPLICAS for line in self.stack.log(name).read_text().splitlines()]
        return Counter(line.partition(" ")[2] for line in lines if line.startswith("executes "))

    async def host(self, cluster: str, name: str, what: str) -> str:
        """Returns one fact of Envoy's about a replica."""
        start = f"{cluster}::{self.stack.addresses[name]}::{what}::"
        _, text = await envoy.ask_admin(self.stack.addresses["admin"], "GET", "/clusters")
        return next(line.removeprefix(start) for line in text.splitlines() if line.startswith(start))

    async def healthy(self, *names: str) -> None:
        """Waits until Envoy holds these replicas, and no others, to be well."""

        async def agreed() -> bool:
            flags = {name: [await self.host(c, name, "health_flags") for c in CLUSTERS] for name in REPLICAS}
            return all((name in names) == (found == ["healthy"] * 2) for name, found in flags.items())

        await until(agreed, DEADLINE_S)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    folder = tmp_path_factory.mktemp("replicas")
    environ = {"CONDUCTOR_STORE": STORE}
    stack = Stack(folder, only=["conductor", "envoy"], replicas=3, environ=environ, commands=stand_ins())
    async with stack, grpc.aio.insecure_channel(stack.addresses["envoy"]) as channel:
        yield Edge(stack, conductor_pb2_grpc.ConductorStub(channel))


@pytest_asyncio.fixture(loop_scope="module")
async def edge(shared: Edge) -> AsyncIterator[Edge]:
    await shared.healthy(*REPLICAS)
    yield shared
    for name in REPLICAS:  # also after a failure, so that the next test begins with all
        if shared.stack.running(name):
            shared.stack.send(name, signal.SIGCONT)
        else:
            await shared.stack.start_one(name)


async def streams_of(edge: Edge) -> dict[str, int]:
    return {name: int(await edge.host("conductor_streams", name, "rq_active")) for name in REPLICAS}


async def opened(edge: Edge, count: int) -> list[grpc.aio.UnaryStreamCall]:
    """Opens streams one after the other: those of one burst may all be sent before Envoy counts the first."""
    calls = []
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(count):
            calls.append(edge.stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest()))
            await calls[-1].read()
    return calls


async def test_calls_are_spread_over_the_replicas(edge: Edge) -> None:
    answers = Counter([await edge.who() for _ in range(150)])
    assert answers.keys() == set(REPLICAS)
    assert min(answers.values()) > 15, answers


async def test_streams_are_spread_and_do_not_draw_calls_to_a_replica_without_any(edge: Edge) -> None:
    await edge.stack.kill("conductor-3")
    await edge.healthy("conductor", "conductor-2")
    calls = await opened(edge, 40)
    open_streams = await streams_of(edge)
    assert open_streams["conductor-3"] == 0 and sorted(open_streams.values())[1] > 10, open_streams
    await edge.stack.restart("conductor-3")
    await edge.healthy(*REPLICAS)
    answers = Counter([await edge.who() for _ in range(300)])
    assert 60 < answers["conductor-3"] < 140, answers  # a third; counted together it would be more than half
    more = await opened(edge, 20)
    assert (await streams_of(edge))["conductor-3"] > 3  # new streams go where few are
    for call in (*calls, *more):
        call.cancel()


async def test_after_kill_9_of_a_replica_every_call_succeeds_and_none_is_made_twice(edge: Edge) -> None:
    await edge.stack.kill("conductor-2")
    objectives = [f"after-kill-{i}" for i in range(120)]
    await asyncio.gather(*(edge.execute(objective) for objective in objectives))
    assert {await edge.who() for _ in range(30)} == {"conductor", "conductor-3"}
    executed = edge.executed()
    assert [executed[objective] for objective in objectives] == [1] * len(objectives)
    await edge.stack.restart("conductor-2")


async def test_a_replica_stopped_under_load_fails_no_call(edge: Edge) -> None:
    done: list[str] = []
    stopped = asyncio.Event()

    async def load(caller: int) -> None:
        while not stopped.is_set():
            objective = f"under-load-{caller}-{len(done)}"
            await edge.execute(objective)
            await edge.who()
            done.append(objective)

    async with asyncio.TaskGroup() as callers:  # any error of a caller is raised here
        for caller in range(CALLERS):
            callers.create_task(load(caller))
        await until(lambda: len(done) > 50, DEADLINE_S)
        assert await edge.stack.kill("conductor", signal.SIGTERM) == 0
        count = len(done)
        await until(lambda: len(done) > count + 50, DEADLINE_S)
        stopped.set()
    executed = edge.executed()
    assert {executed[objective] for objective in done} == {1}
    await edge.stack.restart("conductor")


async def test_paused_replicas_are_left_out_although_they_are_most(edge: Edge) -> None:
    for name in REPLICAS[:2]:
        edge.stack.send(name, signal.SIGSTOP)
    await edge.healthy("conductor-3")
    start = time.monotonic()
    assert {await edge.who() for _ in range(50)} == {"conductor-3"}
    assert time.monotonic() - start < 5, "some waited for a replica that does not answer"
    for name in REPLICAS[:2]:
        edge.stack.send(name, signal.SIGCONT)
    await edge.healthy(*REPLICAS)


async def test_when_a_replica_dies_over_calls_reads_go_on_and_writes_are_not_sent_again(edge: Edge) -> None:
    edge.stack.send("conductor-2", signal.SIGSTOP)
    objectives = [f"cut-{i}" for i in range(30)]
    writes = [asyncio.create_task(edge.execute(objective)) for objective in objectives]
    reads = [asyncio.create_task(edge.who()) for _ in range(30)]
    await until(lambda: sum(task.done() for task in (*writes, *reads)) > 30, DEADLINE_S)
    pending = [task for task in (*writes, *reads) if not task.done()]
    assert pending, "none was sent to the paused replica"
    await edge.stack.kill("conductor-2")
    assert set(await asyncio.gather(*reads)) == {"conductor", "conductor-3"}
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    failed = [error for error in outcomes if error is not None]
    assert failed
    assert all(isinstance(error, grpc.aio.AioRpcError) and error.code() == UNAVAILABLE for error in failed), failed
    executed = edge.executed()
    for objective, outcome in zip(objectives, outcomes, strict=True):
        assert executed[objective] == (1 if outcome is None else 0), objective
    await edge.stack.restart("conductor-2")
