"""What is measured on one running system, one function a figure; each returns what the JSON has under its name."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from bench import driver, floor, processes
from bench.client import Client
from bench.conditions import percentiles
from bench.subscribers import watching
from bench.system import System

IN_FLIGHT = 64
SUBSCRIBERS = (1, 100, 1000)
CROWD = SUBSCRIBERS[-1]
PACE_S = 0.02  # between events that subscribers time …
PACE_OF_ONE_S = 0.0002  # … and for each of them: the next event comes when the last one is long delivered
DELIVERED_S = 60.0  # by then whatever was written has arrived

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each thing is done."""

    warm_up: int = 500
    tasks: int = 6000  # of the throughput run
    alone: int = 500  # tasks one at a time
    gates: int = 350
    events: int = 100  # seen by every subscriber
    writes: int = 100  # of a writer under a crowd, in each situation
    synced: tuple[int, int] = (100, 2000)  # tasks whose syncs are counted: one at a time, 64 in flight
    starts: int = 3
    lost: int = 100  # tasks in flight at the crash


QUICK = Counts(40, 300, 30, 14, 10, 10, (10, 200), 1, 100)


async def throughput(system: System, counts: Counts, address: str | None = None) -> Figures:
    """Tasks in closed loops, and the CPU of every process for one of them."""
    client = await system.client(address)
    await client.call("tasks", counts.warm_up, IN_FLIGHT)
    before, own = processes.cpu_by_name(system.groups), client.cpu_seconds
    start = time.perf_counter()
    taken = await client.call("tasks", counts.tasks, IN_FLIGHT)
    elapsed = time.perf_counter() - start
    after, own = processes.cpu_by_name(system.groups), client.cpu_seconds - own
    used = {name: (after[name] - before[name]) * 1e3 / len(taken) for name in before}
    return {
        "in_flight": IN_FLIGHT,
        "tasks_per_s": round(len(taken) / elapsed, 1),
        "latency_ms": percentiles(taken),
        "cpu_ms_per_task": {name: round(value, 3) for name, value in used.items()},
        "cpu_ms_per_task_all_but_client": round(sum(used.values()), 3),
        "cpu_ms_per_task_client": round(own * 1e3 / len(taken), 3),
        "cores_busy": round((sum(used.values()) * len(taken) / 1e3 + own) / elapsed, 2),
    }


async def alone(system: System, counts: Counts, address: str | None = None) -> Figures:
    """Tasks one at a time, from Execute to COMPLETED."""
    client = await system.client(address)
    await client.call("tasks", max(5, counts.alone // 10), 1)
    return {"ms": percentiles(await client.call("tasks", counts.alone, 1))}


async def acknowledged(system: System, counts: Counts) -> Figures:
    """Execute without waiting, one at a time: its answer says that the task is durable."""
    return {"ms": percentiles(await (await system.client()).call("acknowledgements", counts.alone))}


async def gate(system: System, counts: Counts) -> Figures:
    """Confirm, until a subscriber has the next stage's event."""
    return {"ms": percentiles(await (await system.client()).call("gates", counts.gates))}


async def events(system: System, counts: Counts) -> Figures:
    """An event's own time, taken before it is durable, until subscribers have it: durable and resumable by then.

    The floor is the same with a server that stores nothing and does nothing else.
    """
    found: Figures = {}
    for count in SUBSCRIBERS:
        found[str(count)] = await _fan_out(
            await system.client(), system.address, system.groups["conductor"], counts, count
        )
    async with floor.serving() as (address, process):
        found["floor"] = await _fan_out(await system.client(address), address, [process], counts, CROWD)
    cost = "conductor_cpu_us_per_delivery"
    found["floor"]["server_cpu_us_per_delivery"] = floor_cost = found["floor"].pop(cost)
    found[str(CROWD)]["to_floor"] = round(found[str(CROWD)][cost] / floor_cost, 3) if floor_cost else None
    return found


async def _fan_out(client: Client, address: str, server: Collection[int], counts: Counts, subscribers: int) -> Figures:
    project, count = driver.fresh("watched"), counts.events
    async with watching(address, project, subscribers, count) as watcher:
        before = processes.cpu_seconds(server)
        for _ in range(count):
            await client.call("move", project)
            await asyncio.sleep(PACE_S + PACE_OF_ONE_S * subscribers)
        assert watcher.stdout is not None
        async with asyncio.timeout(DELIVERED_S):
            seen = json.loads(await watcher.stdout.readline())
        used = processes.cpu_seconds(server) - before
    return {
        "ms": percentiles(seen["each"]),
        "until_all_have_it_ms": percentiles(seen["last"]),
        "conductor_cpu_us_per_delivery": round(used * 1e6 / (count * subscribers), 1),
    }


async def writer(system: System, counts: Counts) -> Figures:
    """What a crowd of subscribers costs a writer: on its own events, and idle on another project.

    The writer's next event comes when the crowd has had the last one, as in `events`; `back_to_back` writes on.
    """
    client, watched = await system.client(), driver.fresh("crowd")
    moves: dict[str, list[float]] = {"nobody": [], "idle_crowd": [], "watched_by_crowd": []}
    together: dict[str, float] = {}

    async def write(name: str, project: str, count: int) -> None:
        for _ in range(count):
            moves[name].append(await client.call("move", project))
            await asyncio.sleep(PACE_S + PACE_OF_ONE_S * CROWD)

    await client.call("tasks", counts.warm_up, IN_FLIGHT)
    half = counts.writes // 2
    await write("nobody", driver.fresh("writer"), half)
    together["nobody"] = await _rate(client, counts)
    async with watching(system.address, watched, CROWD):
        for _ in range(counts.writes):  # in turn, so that what else goes on in the machine meets both
            await write("idle_crowd", driver.fresh("writer"), 1)
            await write("watched_by_crowd", watched, 1)
        together["idle_crowd"] = await _rate(client, counts)
    await write("nobody", driver.fresh("writer"), counts.writes - half)
    together["nobody"] = (together["nobody"] + await _rate(client, counts)) / 2
    ms = {name: percentiles(taken) for name, taken in moves.items()}
    return {
        "subscribers": CROWD,
        "ms": ms,
        "slower_when_watched": round(ms["watched_by_crowd"]["p50"] / ms["nobody"]["p50"], 3),
        "slower_beside_idle": round(ms["idle_crowd"]["p50"] / ms["nobody"]["p50"], 3),
        "tasks_per_s": {name: round(rate, 1) for name, rate in together.items()},
        "throughput_beside_idle": round(together["idle_crowd"] / together["nobody"], 3),
    }


async def _rate(client: Client, counts: Counts) -> float:
    count = counts.tasks // 4
    start = time.perf_counter()
    await client.call("tasks", count, IN_FLIGHT)
    return count / (time.perf_counter() - start)


async def reads(system: System, counts: Counts) -> Figures:
    """Reading and resuming, one at a time: what must cost the same on a long log as on a short one."""
    client = await system.client()
    await client.call("tasks", driver.PAGE, IN_FLIGHT)
    return {name: {"ms": percentiles(taken)} for name, taken in (await client.call("reads", counts.alone)).items()}


async def edge(system: System, counts: Counts) -> Figures:
    """The same through Envoy, gRPC to gRPC; its CPU is among the processes."""
    address = system.stack.addresses["envoy"]
    return {
        "throughput": await throughput(system, counts, address),
        "alone": await alone(system, counts, address),
    }


Figure: TypeAlias = Callable[[System, Counts], Awaitable[Figures]]
# In this order: those that need few subscribers first.
FIGURES: Mapping[str, Figure] = {
    "throughput": throughput,
    "alone": alone,
    "acknowledged": acknowledged,
    "gate": gate,
    "reads": reads,
    "events": events,
    "writer": writer,
}
