"""The errors of all services, and the one table: reason → gRPC code, kind, retryable.

    Refusal              carries a TypedError; the only exception a service raises on purpose
      → to_status        Refusal → google.rpc.Status with its details (AIP-193)
      ← from_rpc_error   what a called service answered → TypedError, unflattened
"""

from collections.abc import Iterable
from typing import NamedTuple

import grpc
from conductor.v1 import error_pb2
from google.protobuf import any_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "conductor.v1"
RETRY_AFTER_S = 1  # what RetryInfo asks a caller to wait when a service is over capacity

Reason = error_pb2.ErrorReason
Kind = error_pb2.ErrorKind


class Row(NamedTuple):
    """How a reason reaches the wire."""

    code: grpc.StatusCode
    kind: error_pb2.ErrorKind.ValueType
    retryable: bool


_CODE = grpc.StatusCode

TABLE: dict[error_pb2.ErrorReason.ValueType, Row] = {
    Reason.ERROR_REASON_INVALID_REQUEST: Row(_CODE.INVALID_ARGUMENT, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_TASK_NOT_FOUND: Row(_CODE.NOT_FOUND, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_ILLEGAL_TRANSITION: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_STALE_CONFIRMATION: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_NOTHING_TO_CONFIRM: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_REQUEST_ID_REUSED: Row(_CODE.ALREADY_EXISTS, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_REPORT_NOT_READY: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE: Row(_CODE.OUT_OF_RANGE, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_WRITE_CONFLICT: Row(_CODE.ABORTED, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_OVER_CAPACITY: Row(_CODE.RESOURCE_EXHAUSTED, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_SHUTTING_DOWN: Row(_CODE.UNAVAILABLE, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_STORE_UNAVAILABLE: Row(_CODE.UNAVAILABLE, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_INTERNAL: Row(_CODE.INTERNAL, Kind.ERROR_KIND_INTERNAL, False),
    Reason.ERROR_REASON_WORKER_UNAVAILABLE: Row(_CODE.UNAVAILABLE, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_WORKER_TIMEOUT: Row(_CODE.DEADLINE_EXCEEDED, Kind.ERROR_KIND_TIMEOUT, True),
    Reason.ERROR_REASON_WORKER_FAILED: Row(_CODE.INTERNAL, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_WORKER_PROTOCOL: Row(_CODE.INTERNAL, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_OUTCOME_UNKNOWN: Row(_CODE.ABORTED, Kind.ERROR_KIND_WORKER, True),
    Reason.ERROR_REASON_TASK_DEADLINE_EXCEEDED: Row(_CODE.DEADLINE_EXCEEDED, Kind.ERROR_KIND_TIMEOUT, False),
    Reason.ERROR_REASON_TASK_CANCELLED: Row(_CODE.CANCELLED, Kind.ERROR_KIND_CANCELLED, False),
    Reason.ERROR_REASON_SOURCE_REFUSED: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_NO_SOURCES: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_COMMAND_FAILED: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_COMMAND_LIMIT_EXCEEDED: Row(_CODE.RESOURCE_EXHAUSTED, Kind.ERROR_KIND_SANDBOX, False),
    Reason.ERROR_REASON_COMMAND_NOT_STARTED: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_SANDBOX_UNAVAILABLE: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_SANDBOX, False),
    Reason.ERROR_REASON_REPORT_WRITE_FAILED: Row(_CODE.UNAVAILABLE, Kind.ERROR_KIND_REPORT_WRITE, True),
    Reason.ERROR_REASON_REPORT_NAME_REFUSED: Row(_CODE.INVALID_ARGUMENT, Kind.ERROR_KIND_REPORT_WRITE, False),
    Reason.ERROR_REASON_REPORT_CONFLICT: Row(_CODE.ALREADY_EXISTS, Kind.ERROR_KIND_REPORT_WRITE, False),
    Reason.ERROR_REASON_REPORT_NOT_FOUND: Row(_CODE.NOT_FOUND, Kind.ERROR_KIND_REPORT_WRITE, False),
    Reason.ERROR_REASON_REPORT_TOO_LARGE: Row(_CODE.FAILED_PRECONDITION, Kind.ERROR_KIND_REPORT_WRITE, False),
}


class Refusal(Exception):
    """A typed refusal or failure. `error` is complete: code, kind and retryable follow from its reason."""

    def __init__(
        self,
        reason: error_pb2.ErrorReason.ValueType,
        message: str,
        violations: Iterable[tuple[str, str]] = (),
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.error = typed(reason, message, **metadata)
        self.violations = tuple(violations)  # (field, what it must be) for BadRequest


def typed(reason: error_pb2.ErrorReason.ValueType, message: str, **metadata: object) -> error_pb2.TypedError:
    """Builds a TypedError; kind and retryable come from the table."""
    row = TABLE[reason]
    return error_pb2.TypedError(
        reason=reason,
        kind=row.kind,
        message=message,
        retryable=row.retryable,
        metadata={key: str(value) for key, value in metadata.items()},
    )


def to_status(refusal: Refusal, correlation_id: str) -> grpc.Status:
    """Turns a refusal into the status a gRPC server ends its call with.

    Details: ErrorInfo (reason without prefix, domain, metadata with the correlation id), the TypedError itself, and
    BadRequest or RetryInfo where they apply.
    """
    error = refusal.error
    info = error_details_pb2.ErrorInfo(
        reason=Reason.Name(error.reason).removeprefix("ERROR_REASON_"),
        domain=DOMAIN,
        metadata={**error.metadata, "correlation_id": correlation_id},
    )
    details: list[message.Message] = [info, error]
    if refusal.violations:
        bad = error_details_pb2.BadRequest()
        for name, description in refusal.violations:
            bad.field_violations.add(field=name, description=description)
        details.append(bad)
    if error.reason == Reason.ERROR_REASON_OVER_CAPACITY:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = RETRY_AFTER_S
        details.append(retry)
    code: int = TABLE[error.reason].code.value[0]
    status = status_pb2.Status(code=code, message=error.message, details=[_pack(d) for d in details])
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.RpcError) -> error_pb2.TypedError | None:
    """Returns the TypedError in a failed call's details, None when the callee gave none."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        found = error_pb2.TypedError()
        if detail.Unpack(found):
            return found
    return None


def _pack(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def http_status(code: grpc.StatusCode) -> int:
    """Returns the HTTP status Envoy gives a gRPC code (google/rpc/code.proto)."""
    return _HTTP[code_pb2.Code.Name(code.value[0])]


_HTTP = {
    "OK": 200,
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
}
