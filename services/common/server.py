"""Builds and serves a gRPC service: its boundary, health, reflection, graceful stop."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import grpc
import uvloop
from conductor.v1 import multiplex_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import _async as aio_reflection
from grpc_reflection.v1alpha import reflection, reflection_pb2

from services.common.boundary import Boundary, new_id
from services.common.config import ConfigError
from services.common.multiplex import FRAME_BYTES, Multiplex

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_CALLS = 8192  # of a service that bounds its own work
MAX_PENDING = 16_384  # calls that arrived while the event loop was busy
MAX_METADATA_BYTES = 128 * 1024
GC_THRESHOLD = 20_000  # new objects before a collection: what a few hundred calls under way are made of
# A port already served by another process must be an error, not a share of its traffic.
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + FRAME_BYTES),
    # Twice what Envoy lets through (60 KiB), because it repeats the path: an absurd id shall meet our validation.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # gRPC answers CANCELLED, without a reason, to what waits beyond these; what is too much is for us to refuse.
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_http_proxy", 0),  # workers are reached directly, whatever the environment says about the web
    # A worker that comes back must be found within a second, not after the default backoff of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class Service:
    """A gRPC server with its health, started and stopped in order.

    Args:
        address: host:port to listen on; port 0 picks a free one, see `port`.
        names: full names of the services, for health and reflection.
        max_request_bytes: larger requests are refused with INVALID_REQUEST; well above 16 MiB gRPC itself refuses.
        max_calls: unary calls, and streams, answered at once; more are refused with OVER_CAPACITY.
        multiplexed: whether calls may also come over one stream, see multiplex.proto. It has no flow control of its own
            for each call, so it is nothing for a service that streams much.
    """

    def __init__(
        self,
        address: str,
        names: Sequence[str],
        max_request_bytes: int = MAX_MESSAGE_BYTES,
        max_calls: int = MAX_CALLS,
        multiplexed: bool = False,
    ) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        # What the generated add_…_to_server wants of a server is what Boundary has.
        boundary = Boundary(self._server, max_request_bytes, max_calls)
        self.server = cast(grpc.aio.Server, boundary)
        self._multiplex = Multiplex(new_id(), boundary.method, MAX_MESSAGE_BYTES)
        if multiplexed:
            names = (*names, "conductor.v1.Multiplex")
            multiplex_pb2_grpc.add_MultiplexServicer_to_server(self._multiplex, self._server)
        self._health = HealthServicer()
        self._names = names
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_reflection(self._server, (*names, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"))
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise ConfigError(f"Cannot listen on {address}: the port is in use or the address is not ours.") from None

    async def start(self) -> None:
        """Begins to serve; health says SERVING from here."""
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tells health watchers NOT_SERVING, and callers with a stream to go elsewhere. Calls are still served."""
        self._multiplex.leave()
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Stops listening and waits up to `grace` seconds for calls under way."""
        await self.drain()
        await self._server.stop(grace)


def _add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Serves reflection under v1alpha and v1; the messages are the same on the wire, and clients ask for either."""
    reflection.enable_server_reflection(names, server)
    servicer = aio_reflection.ReflectionServicer(service_names=names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.reflection.v1.ServerReflection", methods),)
    )


def run(name: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs a service until SIGTERM or SIGINT; both set the event that `main` is given, and main then stops in order.

    A ConfigError is printed as one sentence and ends the process with exit code 2.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s %(levelname)s {name} %(name)s: %(message)s"
    )

    # What was imported lives as long as the process; looking through it again and again costs a call dearly.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)

    async def guarded() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    try:
        uvloop.run(guarded())
    except ConfigError as error:
        sys.stderr.write(f"{name}: {error}\n")
        raise SystemExit(2) from None
