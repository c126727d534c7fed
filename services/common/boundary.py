"""Stands between the wire and every servicer: validation, errors, correlation id, and how many calls at once."""

import contextvars
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import grpc
import protovalidate
import uuid_utils
from google.protobuf.message import DecodeError, Message

from services.common.errors import Reason, Refusal
from services.common.status import to_status

log = logging.getLogger(__name__)

CORRELATION_HEADER = "x-correlation-id"
CORRELATION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

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
        self._services: list[_Wrapped] = []

    def method(self, path: str) -> Any:
        """Returns the handler of a method, wrapped; None when there is none."""
        details = _Path(path, None)
        return next((found for service in self._services if (found := service.service(details)) is not None), None)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Is called by the generated add_…_to_server with a service's methods."""
        services = [_Wrapped(handler, self._wrap) for handler in handlers]
        self._services += services
        self._server.add_generic_rpc_handlers(services)

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
        if handler.request_streaming:
            collecting = _collecting(handler.stream_unary, self._enter, self._check, self._streams)
            return grpc.stream_unary_rpc_method_handler(collecting, **codec)
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary, self._enter, self._unary), **codec)

    def _enter(self, request: Message | None, context: Context) -> None:
        given = getattr(request, "correlation_id", "")
        if not CORRELATION_PATTERN.fullmatch(given):
            header = str(dict(context.invocation_metadata() or ()).get(CORRELATION_HEADER, ""))
            given = header if CORRELATION_PATTERN.fullmatch(header) else new_id()
        correlation_id.set(given)
        self._check(request)

    def _check(self, request: Message | None) -> None:
        if request is None:
            raise _invalid("must be a message of this method, with text in UTF-8")
        validate(request)
        if request.ByteSize() > self._max_request_bytes:
            raise _invalid(f"must be at most {self._max_request_bytes} bytes")


class _Path(NamedTuple):
    """What a service is asked for a handler with (grpc.HandlerCallDetails)."""

    method: str
    invocation_metadata: None


class _Wrapped(grpc.GenericRpcHandler):
    """A service whose every method was wrapped at its first call."""

    def __init__(self, inner: grpc.GenericRpcHandler, wrap: Callable[[Any], Any]) -> None:
        self._inner = inner
        self._wrap = wrap
        self._known: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
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
            await refuse(context, error)
            raise AssertionError("refuse raises") from error

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
            await refuse(context, error)

    return call


def _collecting(
    inner: Callable[..., Awaitable[Message]],
    enter: Callable[..., None],
    check: Callable[[Message | None], None],
    limit: _Limit,
) -> Callable[..., Awaitable[Message]]:
    async def checked(requests: AsyncIterator[Message | None], context: Context) -> AsyncIterator[Message | None]:
        entered = False
        async for request in requests:
            if entered:
                check(request)
            else:
                enter(request, context)
            entered = True
            yield request
        if not entered:
            enter(None, context)  # a stream of nothing is refused like what is no message
        # The messages of a caller who is gone end like those of one who has sent all. To one who is gone nothing can be
        # sent: this is cancelled then, before half of something is taken for the whole.
        await context.send_initial_metadata(())

    async def call(requests: AsyncIterator[Message | None], context: Context) -> Message:
        try:
            with limit:
                return await inner(checked(requests, context), context)
        except Exception as error:  # the last stop before the wire: everything must become a status
            await refuse(context, error)
            raise AssertionError("refuse raises") from error

    return call


async def refuse(context: Context, error: Exception) -> None:
    """Ends a call with the status of what was raised: a Refusal's own, INTERNAL for all else."""
    if not isinstance(error, Refusal):
        log.error("call failed, correlation_id=%s", correlation_id.get(), exc_info=error)
        error = Refusal(
            Reason.ERROR_REASON_INTERNAL,
            "Something went wrong inside the service. Its log has the cause under the correlation id.",
        )
    await context.abort_with_status(to_status(error, correlation_id.get()))
