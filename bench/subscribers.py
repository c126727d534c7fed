"""Subscribers for `make bench`, in a process of their own so that receiving does not slow down what is measured.

Usage: python -m bench.subscribers ADDRESS PROJECT COUNT EVENTS

Opens COUNT streams on a project, prints `ready`, and after EVENTS events on every stream prints one JSON list: for each
event and stream the milliseconds from the event's own time (when it was decided, before it was durable) to its arrival.
"""

import asyncio
import json
import sys
import time
from typing import Any

import grpc
from conductor.v1 import conductor_pb2, conductor_pb2_grpc

STREAMS_PER_CHANNEL = 50  # stays below Envoy's and gRPC's limit of 100 streams for each connection


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
    delays = [delay for each in await asyncio.gather(*tasks) for delay in each]
    print(json.dumps(delays), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
