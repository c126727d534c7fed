"""What a command costs in the Terminal: `python -m bench.commands [--runs N]`, JSON on standard output.

Runs /bin/true in every tier that this machine allows, over gRPC, and as a bare subprocess, in turn, with a pause
between so that nobody pays for another's end. `over_bare_ms` is the difference of the medians: all that the sandbox,
the workspace, the record of the call and the rpc add. `cpu_ms` is user and system time a command, of all processes of
the Terminal, those made ready for the next command among them; the load of other programs hardly touches it. Of the
bare subprocess it is the program's alone.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import terminal_pb2, terminal_pb2_grpc

from bench.conditions import conditions, percentiles
from bench.processes import cpu_seconds
from ops.envoy import ROOT
from ops.layout import free_ports
from services.common.boundary import new_id

PROGRAM = "/bin/true"
RUNS = 200
PAUSE_S = 0.05
START_S = 20.0
BARE = "bare subprocess"
TIERS = ("strong", "standard", "none-i-understand")

Run = Callable[[], Awaitable[None]]
Clock = Callable[[], float]


@contextlib.asynccontextmanager
async def terminal(tier: str, folder: Path) -> AsyncIterator[tuple[Any, int]]:
    """Serves a Terminal of a tier; gives its stub and the id of its process."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    environ = {
        **os.environ,
        "TERMINAL_LISTEN": address,
        "TERMINAL_TIER": tier,
        "TERMINAL_WORKSPACES": str(folder / "workspaces"),
    }
    command = [sys.executable, "-m", "services.terminal"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environ, stderr=subprocess.DEVNULL)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            async with asyncio.timeout(START_S):
                await channel.channel_ready()
            yield terminal_pb2_grpc.TerminalStub(channel), process.pid
    finally:
        process.terminate()
        await process.wait()


def through(stub: Any) -> Run:
    """Returns what runs the program in a Terminal."""

    async def run() -> None:
        request = terminal_pb2.RunRequest(call_id=new_id(), command=terminal_pb2.Command(argv=[PROGRAM]))
        responses = [response async for response in stub.Run(request)]
        if responses[-1].result.end != terminal_pb2.COMMAND_END_EXITED:
            raise RuntimeError(f"the command did not run: {responses}")

    return run


@contextlib.contextmanager
def passable() -> Iterator[Path]:
    """Makes a folder that a command's own user can pass through."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


async def bare() -> None:
    """Runs the program as a subprocess."""
    await asyncio.to_thread(subprocess.run, [PROGRAM], check=True)


async def measure(runs: int) -> dict[str, Any]:
    """Returns the figures of every tier that can be had."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(passable())
        ways: dict[str, Run] = {BARE: bare}
        clocks: dict[str, Clock] = {BARE: _children_cpu_s}
        refused: dict[str, str] = {}
        for tier in TIERS:
            (folder / tier).mkdir()
            stub, process = await stack.enter_async_context(terminal(tier, folder / tier))
            told = await stub.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())
            if told.available:
                ways[tier], clocks[tier] = through(stub), partial(cpu_seconds, (process,))
            else:
                refused[tier] = told.unavailable_reason
        found = conditions(folder)
        before = {name: clock() for name, clock in clocks.items()}
        taken = await in_turn(ways, runs)
        used = {name: clock() - before[name] for name, clock in clocks.items()}
    middle = {name: statistics.median(times) for name, times in taken.items()}
    return {
        "conditions": {**found, "user": "root" if os.geteuid() == 0 else "ordinary"},
        "ms": {name: percentiles(times) for name, times in taken.items()},
        "over_bare_ms": {name: round(each - middle[BARE], 3) for name, each in middle.items() if name != BARE},
        "cpu_ms": {name: round(each * 1000 / (runs + 1), 2) for name, each in used.items()},
        "refused": refused,
    }


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def in_turn(ways: dict[str, Run], runs: int) -> dict[str, list[float]]:
    """Returns the milliseconds of each run, after one of each that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for counts in [False] + [True] * runs:
        for name, run in ways.items():
            begun = time.perf_counter()
            await run()
            if counts:
                taken[name].append((time.perf_counter() - begun) * 1000)
            await asyncio.sleep(PAUSE_S)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="of each way")
    print(json.dumps(asyncio.run(measure(parser.parse_args().runs)), indent=2))


if __name__ == "__main__":
    main()
