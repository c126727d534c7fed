"""What is measured by stopping and killing: syncs, cold start, and recovery. Each runs systems of its own."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import conductor_pb2

from bench import driver, processes
from bench.conditions import percentiles
from bench.figures import IN_FLIGHT, Counts, Figures
from bench.system import PARTS, Engine, System
from services.common.config import ConductorSettings, load

NOT_MEASURED = "not measured: strace is not installed"
KILL_AFTER = 15  # tasks done when everything is killed
DOWN_S = 1.0  # between the kill and the start, as in the peers' test
SECOND = "conductor-2"
AGAIN_S = 0.02  # pause before a subscriber tries again
RECOVERED_S = 60.0
CRASH_ENVIRON = {"CONDUCTOR_MAX_IN_FLIGHT": "256"}  # so that all tasks are in flight at once, as the peers' were


async def syncs(folder: Path, engine: Engine, counts: Counts) -> Figures:
    """Syncs of Conductor and PostgreSQL for one task. Conductor runs under strace, which is attached to PostgreSQL."""
    if processes.traced([], folder) is None:
        return dict.fromkeys(("per_task_1_in_flight", "per_task_64_in_flight"), NOT_MEASURED)
    own, server = folder / "conductor.strace", folder / "postgres.strace"
    async with contextlib.AsyncExitStack() as stack:
        system = await stack.enter_async_context(System(folder / "system", engine, trace=own))
        if engine == "postgres":
            await stack.enter_async_context(processes.attached(system.groups["postgres"], server))
        stub = system.stub()
        await driver.tasks(stub, IN_FLIGHT * 2, IN_FLIGHT)
        found = {}
        for count, in_flight in zip(counts.synced, (1, IN_FLIGHT), strict=True):
            before = processes.syncs(own) + processes.syncs(server)
            await driver.tasks(stub, count, in_flight)
            done = processes.syncs(own) + processes.syncs(server) - before
            found[f"per_task_{in_flight}_in_flight"] = round(done / count, 3)
        return found


async def start(folder: Path, engine: Engine, counts: Counts, data: Path | None = None) -> Figures:
    """Seconds from the start command to the first COMPLETED: everything at once, and Conductor alone with the workers
    running. PostgreSQL runs all the time. `data` holds a log already; it is kept."""
    taken: dict[str, list[float]] = {"everything_s": [], "conductor_s": []}
    async with System(folder / "system", engine, data=data) as system:
        stub = system.stub()
        await driver.tasks(stub, IN_FLIGHT, IN_FLIGHT)
        for _ in range(counts.starts):
            await system.stop(PARTS)
            taken["everything_s"].append(await _first(system, stub, PARTS))
            await system.stop(PARTS[:1])
            taken["conductor_s"].append(await _first(system, stub, PARTS[:1]))
        for _ in range(counts.starts if data is None else 0):
            await system.stop(PARTS)
            await system.empty()
            taken.setdefault("everything_fresh_s", []).append(await _first(system, stub, PARTS))
    return {name: percentiles(values) for name, values in taken.items()}


async def _first(system: System, stub: Any, names: Sequence[str]) -> float:
    begun = time.perf_counter()
    starting = asyncio.create_task(system.start(names))
    await driver.task(stub)
    taken = time.perf_counter() - begun
    await starting
    return taken


async def recovery(folder: Path, engine: Engine, counts: Counts) -> Figures:
    """kill -9 of everything with 100 tasks in flight; times count from the start command."""
    ledger = folder / "ledger"
    async with System(folder / "system", engine, environ=CRASH_ENVIRON, ledger=ledger) as system:
        stub = system.stub()
        await asyncio.gather(*(driver.task(stub) for _ in range(2)))  # no code runs for the first time at the crash
        ledger.write_bytes(b"")
        begin = await driver.head(stub)
        follower = Follower(stub, begin)
        following = asyncio.create_task(follower.run())
        acknowledged = await asyncio.gather(*(_submit(stub, f"crash-{i}") for i in range(counts.lost)))
        await follower.until(min(KILL_AFTER, counts.lost // 2))
        await system.kill_all()
        killed, before = len(follower.done), _steps(ledger)
        await asyncio.sleep(DOWN_S)
        begun = time.monotonic()
        starting = asyncio.create_task(system.start(PARTS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECOVERED_S):
                await follower.until(counts.lost)
        await starting
        following.cancel()
    after = _steps(ledger)
    finished = [at - begun for at in follower.done.values() if at > begun]
    ids = set(acknowledged)
    return {
        "in_flight": counts.lost,
        "acknowledged": len(ids),
        "done_when_killed": killed,
        "lost": len(ids - follower.done.keys()),
        "started_twice": sum(count > 1 for (_, _, what), count in after.items() if what == "started"),
        "done_before_kill": sum(what == "done" for _, _, what in before),
        "done_twice": sum(count > 1 for (_, _, what), count in after.items() if what == "done"),
        "done_again_though_recorded": sum(count > 1 for count in follower.results.values()),
        "first_finished_s": round(min(finished, default=0.0), 3),
        "last_finished_s": round(max(finished, default=0.0), 3),
    }


async def takeover(folder: Path, engine: Engine, counts: Counts) -> Figures:
    """kill -9 of one of two Conductors with 100 tasks in flight on it; times count from the kill."""
    if engine == "sqlite":
        return {"last_taken_s": "not measured: SQLite has one Conductor"}
    ledger = folder / "ledger"
    async with System(folder / "system", engine, environ=CRASH_ENVIRON, ledger=ledger, replicas=2) as system:
        survivor, victim = system.stub(), system.stub(system.stack.addresses[SECOND])
        follower = Follower(survivor, await driver.head(survivor))
        following = asyncio.create_task(follower.run())
        acknowledged = await asyncio.gather(*(_submit(victim, driver.fresh("crash")) for _ in range(counts.lost)))
        await follower.until(min(KILL_AFTER, counts.lost // 2))
        killed, begun = len(follower.done), time.monotonic()
        await system.stack.kill(SECOND)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECOVERED_S):
                await follower.until(counts.lost)
        following.cancel()
    lease = load(ConductorSettings).lease
    last = max((at - begun for at in follower.taken.values()), default=0.0)
    return {
        "in_flight": counts.lost,
        "done_when_killed": killed,
        "taken_over": len(follower.taken),
        "lost": len(set(acknowledged) - follower.done.keys()),
        "done_again_though_recorded": sum(count > 1 for count in follower.results.values()),
        "lease_s": lease,
        "last_taken_s": round(last, 3),
        "beyond_lease_s": round(last - lease, 3),
        "last_finished_s": round(max(follower.done.values(), default=begun) - begun, 3),
    }


class Follower:
    """A subscriber that comes back with its cursor, and notes what it sees from then on.

    Attributes:
        done: when each task was seen to be completed, seconds of the monotonic clock.
        results: how many good results each step of each task has in the log.
        taken: when each task was first seen to be worked on by another replica than the one that accepted it.
    """

    def __init__(self, stub: Any, cursor: int) -> None:
        self._stub = stub
        self._cursor = cursor
        self._changed = asyncio.Event()
        self.done: dict[str, float] = {}
        self.results: Counter[tuple[str, int]] = Counter()
        self.taken: dict[str, float] = {}
        self._accepted_by: dict[str, str] = {}

    async def run(self) -> None:
        while True:
            request = conductor_pb2.SubscribeEventsRequest(after_sequence=self._cursor)
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for event in driver.payloads(self._stub.SubscribeEvents(request, wait_for_ready=True)):
                    self._note(event)
            await asyncio.sleep(AGAIN_S)

    async def until(self, count: int) -> None:
        """Waits until so many tasks are completed."""
        while len(self.done) < count:
            self._changed.clear()
            await self._changed.wait()

    def _note(self, event: Any) -> None:
        self._cursor = event.sequence
        if event.task_id and self._accepted_by.setdefault(event.task_id, event.actor.instance) != event.actor.instance:
            self.taken.setdefault(event.task_id, time.monotonic())
        if event.type == driver.COMPLETED:
            self.done[event.task_id] = time.monotonic()
            self._changed.set()
        elif event.HasField("worker_result") and not event.worker_result.HasField("error"):
            self.results[event.task_id, event.worker_result.capability] += 1


async def _submit(stub: Any, name: str) -> str:
    request = conductor_pb2.ExecuteRequest(
        objective=driver.OBJECTIVE, output_mode=driver.MODE, request_id=name, correlation_id=name
    )
    return str((await stub.Execute(request)).task_id)


def _steps(ledger: Path) -> Counter[tuple[str, ...]]:
    return Counter(tuple(line.split()) for line in ledger.read_text().splitlines())
