"""Thousands of commands through one Terminal, fifty at a time: no byte lost, and nothing left behind.

`python -m tests.chaos.soak [--runs N] [--tier T] [--flood BYTES]` prints what it saw and exits with 1 when something
was lost or left. A flood is one command's output, read slowly; the service's memory is watched meanwhile.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conductor.v1 import terminal_pb2

from tests.conftest import until
from tests.terminals import Process, children, held, open_folder, request, serving

AT_ONCE = 50
RUNS = 2_000
MIB = 1024 * 1024
FLOOD = 1024 * MIB
PAUSE_S = 0.001  # of the slow reader, after each piece
MAY_GROW = 48 * MIB  # of the service's memory during a flood: gRPC's windows, the pieces under way
MAY_GROW_FDS = 8
# Writes so many bytes from a seed to each stream, in pieces; the other side knows their digest.
SCRIPT = """
import random, sys
rng = random.Random(int(sys.argv[1]))
for stream in (sys.stdout.buffer, sys.stderr.buffer):
    for _ in range(rng.randrange(1, 20)):
        stream.write(rng.randbytes(rng.randrange(1, 9000))); stream.flush()
"""


def expected(seed: int) -> tuple[str, str]:
    """Returns the digests of what the script writes."""
    rng = random.Random(seed)  # noqa: S311 - the same bytes on both sides
    streams = []
    for _ in range(2):
        digest = hashlib.sha256()
        for _ in range(rng.randrange(1, 20)):
            digest.update(rng.randbytes(rng.randrange(1, 9000)))
        streams.append(digest.hexdigest())
    return streams[0], streams[1]


@dataclass
class Seen:
    """What a soak has seen."""

    runs: int = 0
    wrong: list[str] = field(default_factory=list)


async def one(stub: Any, seed: int, seen: Seen) -> None:
    """Runs the script once and compares what comes."""
    digests = {terminal_pb2.OUTPUT_STREAM_STDOUT: hashlib.sha256(), terminal_pb2.OUTPUT_STREAM_STDERR: hashlib.sha256()}
    last = None
    async for last in stub.Run(request("/usr/bin/python3", "-c", SCRIPT, str(seed), wall_time=60)):
        if last.HasField("chunk"):
            digests[last.chunk.stream].update(last.chunk.data)
    seen.runs += 1
    found = tuple(digest.hexdigest() for digest in digests.values())
    if last is None or last.result.end != terminal_pb2.COMMAND_END_EXITED or last.result.exit_code:
        seen.wrong.append(f"seed {seed} ended with {last}")
    elif found != expected(seed):
        seen.wrong.append(f"seed {seed} lost bytes")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


async def soak(process: Process, runs: int, first: int) -> list[str]:
    """Runs commands and returns what went wrong or was left."""
    seen, seeds = Seen(), iter(range(first, first + runs))
    [spawner] = children(process.process.pid)
    async with process.stub() as stub:
        await one(stub, first - 1, seen)
        before = {pid: descriptors(pid) for pid in (process.process.pid, spawner)}

        async def lane() -> None:
            for seed in seeds:
                await one(stub, seed, seen)

        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
        with contextlib.suppress(AssertionError):
            await until(lambda: not held(process.process.pid) and not process.left())
    wrong = seen.wrong
    wrong += [f"process {pid} is left" for pid in held(process.process.pid)]
    wrong += [f"workspace {path.name} is left" for path in process.left()]
    for pid, count in before.items():
        if descriptors(pid) > count + MAY_GROW_FDS:
            wrong.append(f"descriptors of process {pid} grew from {count} to {descriptors(pid)}")
    return wrong


async def flood(process: Process, size: int) -> list[str]:
    """Reads one command's output slowly. Returns what went wrong."""
    got, highest = 0, 0
    async with process.stub() as stub:
        before = resident(process.process.pid)
        call = stub.Run(request("head", "-c", str(size), "/dev/zero", output_bytes=size, wall_time=3600))
        async for response in call:
            if response.HasField("chunk"):
                got += len(response.chunk.data)
                await asyncio.sleep(PAUSE_S)
                highest = max(highest, resident(process.process.pid))
            elif response.HasField("result") and response.result.end != terminal_pb2.COMMAND_END_EXITED:
                return [f"the flood ended with {response.result}"]
    say(f"flood of {size // MIB} MiB: memory {before // MIB} MiB before, {highest // MIB} MiB at most")
    wrong = [] if got == size else [f"{got} of {size} bytes came"]
    return wrong if highest < before + MAY_GROW else [*wrong, f"memory grew from {before} to {highest} bytes"]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--tier", default="best")
    parser.add_argument("--flood", type=int, default=FLOOD, help="bytes; 0 leaves it out")
    arguments = parser.parse_args()
    settings = {
        "tier": arguments.tier,
        "max_commands": str(AT_ONCE),
        "max_output_bytes": str(max(FLOOD, arguments.flood)),
    }
    with open_folder() as folder, serving(folder, **settings) as process:
        begun = time.monotonic()
        wrong = await soak(process, arguments.runs, int.from_bytes(os.urandom(4)))
        say(f"{arguments.runs} commands, {AT_ONCE} at once, {time.monotonic() - begun:.0f} s")
        if arguments.flood:
            wrong += await flood(process, arguments.flood)
    for each in wrong[:20]:
        say(f"BROKEN  {each}")
    say("nothing lost, nothing left" if not wrong else f"{len(wrong)} faults")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
