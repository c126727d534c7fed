"""Carries a Refusal over the wire as google.rpc.Status with details (AIP-193), and a callee's error back."""

from typing import TypeAlias

import grpc
from conductor.v1 import error_pb2
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common.errors import Reason, Refusal, row_of

Status: TypeAlias = status_pb2.Status
DOMAIN = "conductor.v1"
DETAILS = "grpc-status-details-bin"  # google.rpc.Status in a call's trailers (gRPC, richer error model)
CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
# Trailers hold 8 KiB with most clients; the message travels three times, once percent-encoded.
MAX_TEXT = 500  # bytes of a message
MAX_METADATA = 1000  # bytes of all metadata, keys and values
MAX_VALUE = 120  # bytes of a violation's field, and of its description
MAX_VIOLATIONS = 5
RETRY_AFTER_S = 1  # what RetryInfo asks a caller to wait when a service is over capacity


def to_status(refusal: Refusal, correlation_id: str) -> grpc.Status:
    """Turns a refusal into the status a gRPC server ends its call with.

    Details: ErrorInfo (reason without prefix, domain, metadata with the correlation id), the TypedError itself, and
    BadRequest or RetryInfo where they apply. Texts are cut to what fits into trailers, which gRPC bounds.
    """
    error = _cut(refusal.error)
    info = error_details_pb2.ErrorInfo(
        reason=_name(error.reason),
        domain=DOMAIN,
        metadata={**error.metadata, "correlation_id": correlation_id},
    )
    details: list[message.Message] = [info, error]
    if refusal.violations:
        bad = error_details_pb2.BadRequest()
        for name, description in refusal.violations[:MAX_VIOLATIONS]:
            bad.field_violations.add(field=_first(name, MAX_VALUE), description=_first(description, MAX_VALUE))
        details.append(bad)
    if error.reason == Reason.ERROR_REASON_OVER_CAPACITY:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = RETRY_AFTER_S
        details.append(retry)
    packed = [_pack(detail) for detail in details]
    status = status_pb2.Status(code=row_of(error.reason).code, message=error.message, details=packed)
    wire: grpc.Status = rpc_status.to_status(status)
    return wire


def _cut(error: error_pb2.TypedError) -> error_pb2.TypedError:
    short = error_pb2.TypedError(
        reason=error.reason, kind=error.kind, message=_first(error.message, MAX_TEXT), retryable=error.retryable
    )
    room = MAX_METADATA
    for key, value in sorted(error.metadata.items()):
        if len(key) < room:
            short.metadata[key] = _first(value, room - len(key))
            room -= len(key) + len(short.metadata[key].encode())
    return short


def _first(text: str, size: int) -> str:
    """Returns as much of a text as fits into so many bytes of UTF-8."""
    return text if len(text.encode()) <= size else text.encode()[:size].decode(errors="ignore")


def _name(reason: error_pb2.ErrorReason.ValueType) -> str:
    known = error_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(reason)
    return known.name.removeprefix("ERROR_REASON_") if known else str(reason)


def from_rpc_error(error: grpc.RpcError) -> error_pb2.TypedError | None:
    """Returns the TypedError in a failed call's details, None when the callee gave none."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        found = error_pb2.TypedError()
        if detail.Unpack(found):
            return found
    return None


def as_message(wire: grpc.Status) -> Status:
    """Returns as a message what a call would end with."""
    details = dict(wire.trailing_metadata or ()).get(DETAILS, b"")
    whole = Status.FromString(details) if isinstance(details, bytes) else Status()
    whole.code, whole.message = wire.code.value[0], wire.details or ""
    return whole


def as_error(status: Status) -> grpc.aio.AioRpcError:
    """Returns what a call that ends with this status raises."""
    trailers = ((DETAILS, status.SerializeToString()),) if status.details else ()
    return rpc_error(CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, *trailers)


def rpc_error(code: grpc.StatusCode, text: str, *trailers: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    """Returns what a call raises that ends with a code and a text."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=text)


def _pack(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
