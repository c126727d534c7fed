"""A server that does nothing but gRPC: what delivering an event costs when nothing is decided, stored or looked up.

`python -m bench.floor ADDRESS` serves TransitionTo and SubscribeEvents of one Conductor that forgets everything: an
event goes to every open stream at once.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from conductor.v1 import conductor_pb2, event_pb2, project_pb2

from bench.driver import fresh
from ops.layout import free_ports
from services.common.boundary import Context

READY_S = 10.0


class Floor:
    """Passes events from callers to subscribers."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[event_pb2.Event]] = set()

    async def TransitionTo(
        self, request: conductor_pb2.TransitionToRequest, context: Context
    ) -> project_pb2.ProjectState:
        changed = event_pb2.StageStatusChanged(stage_id=request.stage_id, status=project_pb2.STAGE_STATUS_IN_PROGRESS)
        event = event_pb2.Event(sequence=1, type="STAGE_STATUS", stage_status=changed, project_id=request.project_id)
        event.event_id, event.correlation_id = fresh("event"), fresh("correlation")
        event.occurred_at.FromNanoseconds(time.time_ns())
        for queue in self._queues:
            queue.put_nowait(event)
        return project_pb2.ProjectState(project_id=request.project_id)

    async def SubscribeEvents(
        self, request: conductor_pb2.SubscribeEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.Event]:
        queue: asyncio.Queue[event_pb2.Event] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield event_pb2.Event(snapshot=event_pb2.Snapshot())
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)


async def main(address: str) -> None:
    server, floor = grpc.aio.server(), Floor()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "TransitionTo": grpc.unary_unary_rpc_method_handler(
            floor.TransitionTo,
            conductor_pb2.TransitionToRequest.FromString,
            project_pb2.ProjectState.SerializeToString,
        ),
        "SubscribeEvents": grpc.unary_stream_rpc_method_handler(
            floor.SubscribeEvents,
            conductor_pb2.SubscribeEventsRequest.FromString,
            event_pb2.Event.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("conductor.v1.Conductor", handlers),))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, int]]:
    """Runs the server; gives its address and process id."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-m", "bench.floor", address]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            await process.stdout.readline()
        yield address, process.pid
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
