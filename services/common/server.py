"""Builds and serves a gRPC service: validation, error mapping, correlation id, health, reflection, graceful stop."""

import asyncio
import contextvars
import gc
import logging
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import grpc
import protovalidate
import uuid_utils
import uvloop
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import _async as aio_reflection
from grpc_reflection.v1alpha import reflection, reflection_pb2

from services.common.config import ConfigError
from services.common.errors import Reason, Refusal
from services.common.status import to_status

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_CALLS = 8192  # of a service that bounds its own work
MAX_PENDING = 16_384  # calls that arrived while the event loop was busy
MAX_METADATA_BYTES = 128 * 1024
GC_THRESHOLD = 20_000  # new objects before a collection: what a few hundred calls under way are made of
CORRELATION_HEADER = "x-correlation-id"
CORRELATION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
# A port already served by another process must be an error, not a share of its traffic.
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
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

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

correlation_id: contextvars.ContextVar[str] = contextvars.ContextVar("correlation_id", default="")
"""The correlation id of the call being served: the request's, else the header's, else a new one."""

_validator = protovalidate.Validator()


def new_id() -> str:
    """Returns a new UUID version 7 (RFC 9562): unique, and sorting by time."""
    return str(uuid_utils.uuid7())


def validate(request: Message) -> None:
    """Checks a request against the rules in its proto. Raises INVALID_REQUEST naming every field that breaks one."""
    violations = [
        (_field_name(violation.proto), violation.proto.message) for violation in _validator.collect_violations(request)
    ]
    if violations:
        name, description = violations[0]
        text = f"{name}: {description}."
        raise Refusal(Reason.ERROR_REASON_INVALID_REQUEST, text, violations, field=name)


def _field_name(violation: Any) -> str:
    """Returns the path of the field at fault, such as `hints.commands[1].argv` (google.rpc.BadRequest).

    A rule over a whole message has no field of its own; by our convention its id begins with the field it is about.
    """
    parts = []
    for element in violation.field.elements if violation.field is not None else ():
        index = "" if element.subscript is None else f"[{element.subscript.value}]"
        parts.append(f"{element.field_name}{index}")
    if violation.rule is None:
        parts.append(violation.rule_id.partition(".")[0])
    return ".".join(parts)


class Boundary:
    """Stands between the wire and every servicer: sets the correlation id, validates, and maps what is raised.

    A Refusal becomes its status; anything else becomes INTERNAL with no text of the exception, which goes to the log
    under the correlation id. Servicers are registered here instead of at the server, so that each method is wrapped
    once; an interceptor would do it at every call.
    """

    def __init__(self, server: grpc.aio.Server, max_request_bytes: int, max_calls: int) -> None:
        self._server = server
        self._max_request_bytes = max_request_bytes
        self._unary = _Limit(max_calls)
        self._streams = _Limit(max_calls)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Is called by the generated add_…_to_server with a service's methods."""
        self._server.add_generic_rpc_handlers([_Wrapped(handler, self._wrap) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Is called by the generated code too; the server has no use for it (grpc.aio.Server)."""

    def _wrap(self, handler: Any) -> Any:
        codec = {
            "request_deserializer": _decoder(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            streaming = _streaming(handler.unary_stream, self._enter, self._streams)
            return grpc.unary_stream_rpc_method_handler(streaming, **codec)
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary, self._enter, self._unary), **codec)

    def _enter(self, request: Message | None, context: Context) -> None:
        given = getattr(request, "correlation_id", "")
        if not CORRELATION_PATTERN.fullmatch(given):
            header = str(dict(context.invocation_metadata() or ()).get(CORRELATION_HEADER, ""))
            given = header if CORRELATION_PATTERN.fullmatch(header) else new_id()
        correlation_id.set(given)
        if request is None:
            raise _invalid("must be a message of this method, with text in UTF-8")
        validate(request)
        if request.ByteSize() > self._max_request_bytes:
            raise _invalid(f"must be at most {self._max_request_bytes} bytes")


class _Wrapped(grpc.GenericRpcHandler):
    """A service whose every method was wrapped at its first call."""

    def __init__(self, inner: grpc.GenericRpcHandler, wrap: Callable[[Any], Any]) -> None:
        self._inner = inner
        self._wrap = wrap
        self._known: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = self._known.get(handler_call_details.method)
        if handler is None:
            inner = self._inner.service(handler_call_details)
            if inner is None:
                return None
            handler = self._known[handler_call_details.method] = self._wrap(inner)
        return handler


def _invalid(what: str) -> Refusal:
    return Refusal(Reason.ERROR_REASON_INVALID_REQUEST, f"request: {what}.", [("request", what)], field="request")


def _decoder(parse: Callable[[bytes], Message]) -> Callable[[bytes], Message | None]:
    """Gives None for bytes that are no message, for example text that is not UTF-8; gRPC would answer UNKNOWN."""

    def decode(data: bytes) -> Message | None:
        try:
            return parse(data)
        except DecodeError:
            return None

    return decode


class _Limit:
    """Bounds how many calls are answered at once, so that overload costs a refusal and no memory."""

    __slots__ = ("_max", "_now")

    def __init__(self, most: int) -> None:
        self._max = most
        self._now = 0

    def __enter__(self) -> None:
        if self._now >= self._max:
            text = f"{self._max} calls are being answered already; ask again in a moment."
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=self._max)
        self._now += 1

    def __exit__(self, *_: object) -> None:
        self._now -= 1


def _unary(
    inner: Callable[..., Awaitable[Message]], enter: Callable[..., None], limit: _Limit
) -> Callable[..., Awaitable[Message]]:
    async def call(request: Message | None, context: Context) -> Message:
        try:
            enter(request, context)
            with limit:
                return await inner(request, context)
        except Exception as error:  # the last stop before the wire: everything must become a status
            await _abort(context, error)
            raise AssertionError("abort raises") from error

    return call


def _streaming(
    inner: Callable[..., AsyncIterator[Message]], enter: Callable[..., None], limit: _Limit
) -> Callable[..., AsyncIterator[Message]]:
    async def call(request: Message | None, context: Context) -> AsyncIterator[Message]:
        try:
            enter(request, context)
            with limit:
                async for response in inner(request, context):
                    yield response
        except Exception as error:  # the last stop before the wire: everything must become a status
            await _abort(context, error)

    return call


async def _abort(context: Context, error: Exception) -> None:
    if not isinstance(error, Refusal):
        log.error("call failed, correlation_id=%s", correlation_id.get(), exc_info=error)
        error = Refusal(
            Reason.ERROR_REASON_INTERNAL,
            "Something went wrong inside the service. Its log has the cause under the correlation id.",
        )
    await context.abort_with_status(to_status(error, correlation_id.get()))


class Service:
    """A gRPC server with its health, started and stopped in order.

    Args:
        address: host:port to listen on; port 0 picks a free one, see `port`.
        names: full names of the services, for health and reflection.
        max_request_bytes: larger requests are refused with INVALID_REQUEST; above 16 MiB gRPC itself refuses.
        max_calls: unary calls, and streams, answered at once; more are refused with OVER_CAPACITY.
    """

    def __init__(
        self,
        address: str,
        names: Sequence[str],
        max_request_bytes: int = MAX_MESSAGE_BYTES,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        # What the generated add_…_to_server wants of a server is what Boundary has.
        self.server = cast(grpc.aio.Server, Boundary(self._server, max_request_bytes, max_calls))
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
        """Tells health watchers NOT_SERVING. Calls are still served."""
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
