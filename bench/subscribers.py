"""Subscribers for `make bench`, in a process of their own so that receiving does not slow down what is measured.

Usage: python -m bench.subscribers ADDRESS PROJECT COUNT EVENTS

Opens COUNT streams on a project, prints `ready`, and after EVENTS events on every stream prints one JSON object:
`each`, for each event and stream the milliseconds from the event's own time (when it was decided, before it was
durable) to its arrival, and `last`, for each event the milliseconds until every stream had it.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from conductor.v1 import conductor_pb2, conductor_pb2_grpc

STREAMS_PER_CHANNEL = 50  # stays below Envoy's and gRPC's limit of 100 streams for each connection
FOR_EVER = 10**9
READY_S = 60.0


async def receive(stub: Any, project: str, events: int, opened: asyncio.Semaphore) -> list[float]:
    """Returns the delays of `events` events on one stream, in milliseconds."""
    request = conductor_pb2.SubscribeEventsRequest(project_id=project)
    stream = stub.SubscribeEvents(request)
    delays: list[float] = []
    async for event in stream:
        if event.HasField("snapshot"):
            opened.release()
        elif event.WhichOneof("payload"):
            delays.append((time.time_ns() - event.occurred_at.ToNanoseconds()) / 1e6)
        if len(delays) == events:
            stream.cancel()
            return delays
    raise SystemExit("the stream ended early")


async def main(address: str, project: str, count: int, events: int) -> None:
    opened = asyncio.Semaphore(0)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(-(-count // STREAMS_PER_CHANNEL))]
    stubs = [conductor_pb2_grpc.ConductorStub(channel) for channel in channels]
    tasks = [asyncio.create_task(receive(stubs[i % len(stubs)], project, events, opened)) for i in range(count)]
    for _ in range(count):
        await opened.acquire()
    print("ready", flush=True)
    streams = await asyncio.gather(*tasks)
    each = [delay for stream in streams for delay in stream]
    print(json.dumps({"each": each, "last": [max(delays) for delays in zip(*streams, strict=True)]}), flush=True)


@contextlib.asynccontextmanager
async def watching(
    address: str, project: str, count: int, events: int = FOR_EVER
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs subscribers; entered when every stream stands. They are killed at the end."""
    command = [sys.executable, "-m", "bench.subscribers", address, project, str(count), str(events)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**28)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            ready = await process.stdout.readline()
        assert ready.strip() == b"ready", "the subscribers could not subscribe"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
