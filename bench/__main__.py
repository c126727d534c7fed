"""`make bench`: what one Conductor on SQLite does, as JSON on standard output.

The job: Execute → durable task → Researcher (trivial) → ReportWriter (trivial) → COMPLETED, four commits to the log,
each durable before what follows from it. Conductor, workers, and this driver share the machine. Figures compare only
within one run: see `conditions`.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, project_pb2, task_pb2
from google.protobuf import duration_pb2

from bench.conditions import conditions, cpu_seconds, percentiles, resident_mib
from ops.layout import free_ports
from ops.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
IN_FLIGHT = 64
TASKS = 3000  # of the throughput run
WARM_UP = 200
ALONE = 300  # tasks one at a time
GATES = 200
SUBSCRIBERS = (1, 100, 1000)
EVENTS = 40  # seen by every subscriber
OBJECTIVE = "Compare the durable orchestration engines on the job of submit, research, report. " * 2  # about 200 bytes


class Driver:
    """Calls one Conductor as a client would."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def task(self) -> float:
        """Runs one task to its end; returns the milliseconds from Execute to COMPLETED."""
        request = conductor_pb2.ExecuteRequest(
            objective=OBJECTIVE,
            output_mode=task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER,
            wait=duration_pb2.Duration(seconds=60),
        )
        start = time.perf_counter()
        answer = await self._stub.Execute(request)
        assert answer.status == task_pb2.TASK_STATUS_COMPLETED, answer
        return (time.perf_counter() - start) * 1e3

    async def tasks(self, count: int, in_flight: int) -> list[float]:
        """Runs tasks in closed loops; returns their milliseconds."""
        taken: list[float] = []

        async def loop() -> None:
            for _ in range(count // in_flight):
                taken.append(await self.task())

        await asyncio.gather(*(loop() for _ in range(in_flight)))
        return taken

    async def acknowledgements(self, count: int) -> list[float]:
        """Submits tasks one at a time without waiting for their end; returns the milliseconds to the answer."""
        mode = task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER
        taken: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            answer = await self._stub.Execute(conductor_pb2.ExecuteRequest(objective=OBJECTIVE, output_mode=mode))
            taken.append((time.perf_counter() - start) * 1e3)
            await self._ended(answer.task_id)
        return taken

    async def _ended(self, task_id: str) -> None:
        types = ["conductor.task.completed"]
        request = conductor_pb2.SubscribeEventsRequest(task_id=task_id, after_sequence=0, types=types)
        stream = self._stub.SubscribeEvents(request)
        async for _ in stream:
            break
        stream.cancel()

    async def gates(self, count: int) -> list[float]:
        """Confirms gates by hand; returns the milliseconds until a subscriber sees the next stage in progress."""
        taken: list[float] = []
        while len(taken) < count:
            project = f"gates-{len(taken)}"
            stream = self._stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(project_id=project))
            events = stream.__aiter__()
            await events.__anext__()  # the snapshot: the subscription stands
            for stage in range(project_pb2.STAGE_PARSE_INTENT, project_pb2.STAGE_EXPORT):
                start = time.perf_counter()
                call = self._stub.Confirm(conductor_pb2.ConfirmRequest(project_id=project))
                await _started(events, stage + 1)
                taken.append((time.perf_counter() - start) * 1e3)
                await call
            stream.cancel()
        return taken

    async def fan_out(self, address: str, count: int) -> dict[str, float]:
        """Moves a project while `count` subscribers watch; returns the delays they saw, in milliseconds."""
        project = f"watched-by-{count}"
        command = [sys.executable, "-m", "bench.subscribers", address, project, str(count), str(EVENTS)]
        watcher = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**26)
        assert watcher.stdout is not None
        assert (await watcher.stdout.readline()).strip() == b"ready"
        for _ in range(EVENTS):
            await self._stub.TransitionTo(
                conductor_pb2.TransitionToRequest(project_id=project, stage_id=project_pb2.STAGE_PARSE_INTENT)
            )
        delays = json.loads(await watcher.stdout.readline())
        await watcher.wait()
        return percentiles(delays)


async def _started(events: Any, stage: int) -> None:
    async for event in events:
        changed = event.stage_status
        if changed.stage_id == stage and changed.status == project_pb2.STAGE_STATUS_IN_PROGRESS:
            return


async def measure(driver: Driver, stack: Stack, workers: int) -> dict[str, Any]:
    """Runs all measurements, one after another; `workers` is the process id of the trivial workers."""
    conductor, address = stack.pid("conductor"), stack.addresses["conductor"]
    idle = resident_mib(conductor)
    await driver.tasks(WARM_UP, IN_FLIGHT)
    before = {"conductor": cpu_seconds(conductor), "workers": cpu_seconds(workers), "driver": time.process_time()}
    start = time.perf_counter()
    taken = await driver.tasks(TASKS, IN_FLIGHT)
    elapsed = time.perf_counter() - start
    after = {"conductor": cpu_seconds(conductor), "workers": cpu_seconds(workers), "driver": time.process_time()}
    return {
        "throughput": {
            "in_flight": IN_FLIGHT,
            "tasks_per_s": round(len(taken) / elapsed, 1),
            "latency_ms": percentiles(taken),
            "cpu_ms_per_task": {name: round((after[name] - before[name]) * 1e3 / len(taken), 3) for name in before},
        },
        "one_at_a_time_ms": percentiles([await driver.task() for _ in range(ALONE)]),
        "acknowledged_ms": percentiles(await driver.acknowledgements(ALONE)),
        "confirm_to_next_stage_seen_ms": percentiles(await driver.gates(GATES)),
        "event_to_subscriber_ms": {str(n): await driver.fan_out(address, n) for n in SUBSCRIBERS},
        "conductor_memory_mib": {"idle": idle, "after": resident_mib(conductor)},
    }


async def run(folder: Path) -> dict[str, Any]:
    target = f"127.0.0.1:{free_ports(1)[0]}"
    workers = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.workers", target, str(folder / "reports"), cwd=ROOT
    )
    environ = {"CONDUCTOR_RESEARCHER": target, "CONDUCTOR_REPORT_WRITER": target}
    found = conditions(folder)
    try:
        async with (
            Stack(folder, environ=environ, only=["conductor"]) as stack,
            grpc.aio.insecure_channel(stack.addresses["conductor"]) as channel,
        ):
            driver = Driver(conductor_pb2_grpc.ConductorStub(channel))
            return {"conditions": found, "store": "sqlite", **await measure(driver, stack, workers.pid)}
    finally:
        workers.terminate()
        await workers.wait()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Waits until no other benchmark runs on this machine."""
    with Path(tempfile.gettempdir(), "conductor-bench.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), False)
        yield


def main() -> None:
    with alone(), tempfile.TemporaryDirectory(dir=ROOT / "var", prefix="bench-") as folder:
        print(json.dumps(asyncio.run(run(Path(folder))), indent=2))


if __name__ == "__main__":
    (ROOT / "var").mkdir(exist_ok=True)
    main()
