"""The errors of all services, and the one table: reason → google.rpc.Code, kind, retryable.

Pure: knows the contract's messages and nothing of gRPC. `status.py` carries errors over the wire and back.
"""

from collections.abc import Iterable
from typing import NamedTuple

from conductor.v1 import error_pb2
from google.rpc import code_pb2

Reason = error_pb2.ErrorReason
Kind = error_pb2.ErrorKind


class Row(NamedTuple):
    """How a reason reaches the wire. `code` is a number of google.rpc.Code."""

    code: int
    kind: error_pb2.ErrorKind.ValueType
    retryable: bool


TABLE: dict[error_pb2.ErrorReason.ValueType, Row] = {
    Reason.ERROR_REASON_INVALID_REQUEST: Row(code_pb2.INVALID_ARGUMENT, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_TASK_NOT_FOUND: Row(code_pb2.NOT_FOUND, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_ILLEGAL_TRANSITION: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_STALE_CONFIRMATION: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_NOTHING_TO_CONFIRM: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_REQUEST_ID_REUSED: Row(code_pb2.ALREADY_EXISTS, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_REPORT_NOT_READY: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE: Row(code_pb2.OUT_OF_RANGE, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_WRITE_CONFLICT: Row(code_pb2.ABORTED, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_OVER_CAPACITY: Row(code_pb2.RESOURCE_EXHAUSTED, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_SHUTTING_DOWN: Row(code_pb2.UNAVAILABLE, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_STORE_UNAVAILABLE: Row(code_pb2.UNAVAILABLE, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_INTERNAL: Row(code_pb2.INTERNAL, Kind.ERROR_KIND_INTERNAL, False),
    Reason.ERROR_REASON_WORKER_UNAVAILABLE: Row(code_pb2.UNAVAILABLE, Kind.ERROR_KIND_UNAVAILABLE, True),
    Reason.ERROR_REASON_WORKER_TIMEOUT: Row(code_pb2.DEADLINE_EXCEEDED, Kind.ERROR_KIND_TIMEOUT, True),
    Reason.ERROR_REASON_WORKER_FAILED: Row(code_pb2.INTERNAL, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_WORKER_PROTOCOL: Row(code_pb2.INTERNAL, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_OUTCOME_UNKNOWN: Row(code_pb2.ABORTED, Kind.ERROR_KIND_WORKER, True),
    Reason.ERROR_REASON_TASK_DEADLINE_EXCEEDED: Row(code_pb2.DEADLINE_EXCEEDED, Kind.ERROR_KIND_TIMEOUT, False),
    Reason.ERROR_REASON_TASK_CANCELLED: Row(code_pb2.CANCELLED, Kind.ERROR_KIND_CANCELLED, False),
    Reason.ERROR_REASON_SOURCE_REFUSED: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_NO_SOURCES: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_COMMAND_FAILED: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_COMMAND_LIMIT_EXCEEDED: Row(code_pb2.RESOURCE_EXHAUSTED, Kind.ERROR_KIND_SANDBOX, False),
    Reason.ERROR_REASON_COMMAND_NOT_STARTED: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_SANDBOX_UNAVAILABLE: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_SANDBOX, False),
    Reason.ERROR_REASON_PROGRAM_REFUSED: Row(code_pb2.PERMISSION_DENIED, Kind.ERROR_KIND_SANDBOX, False),
    Reason.ERROR_REASON_FILE_NOT_FOUND: Row(code_pb2.NOT_FOUND, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_SOURCE_NOT_FOUND: Row(code_pb2.NOT_FOUND, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_RESEARCH_NOT_FOUND: Row(code_pb2.NOT_FOUND, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_REPORT_WRITE_FAILED: Row(code_pb2.UNAVAILABLE, Kind.ERROR_KIND_REPORT_WRITE, True),
    Reason.ERROR_REASON_REPORT_NAME_REFUSED: Row(code_pb2.INVALID_ARGUMENT, Kind.ERROR_KIND_REPORT_WRITE, False),
    Reason.ERROR_REASON_REPORT_CONFLICT: Row(code_pb2.ALREADY_EXISTS, Kind.ERROR_KIND_REPORT_WRITE, False),
    Reason.ERROR_REASON_REPORT_NOT_FOUND: Row(code_pb2.NOT_FOUND, Kind.ERROR_KIND_REPORT_WRITE, False),
    Reason.ERROR_REASON_REPORT_TOO_LARGE: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_REPORT_WRITE, False),
    Reason.ERROR_REASON_RUN_ACTIVE: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_NO_RUN: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_EDIT_REFUSED: Row(code_pb2.INVALID_ARGUMENT, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_STAGE_FAILED: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_WORKER, False),
    Reason.ERROR_REASON_DATA_NOT_FOUND: Row(code_pb2.NOT_FOUND, Kind.ERROR_KIND_VALIDATION, False),
    Reason.ERROR_REASON_UPLOAD_REFUSED: Row(code_pb2.FAILED_PRECONDITION, Kind.ERROR_KIND_VALIDATION, False),
}


# What a reason of a newer version is treated as.
UNKNOWN = Row(code_pb2.UNKNOWN, Kind.ERROR_KIND_UNSPECIFIED, False)


def row_of(reason: error_pb2.ErrorReason.ValueType) -> Row:
    """Returns how a reason reaches the wire, also one that this version does not know."""
    return TABLE.get(reason, UNKNOWN)


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

    @classmethod
    def passing_on(cls, error: error_pb2.TypedError) -> "Refusal":
        """Makes a refusal of what another service answered, unflattened."""
        refusal = cls(error.reason, error.message)
        refusal.error = error
        return refusal


def typed(reason: error_pb2.ErrorReason.ValueType, message: str, /, **metadata: object) -> error_pb2.TypedError:
    """Builds a TypedError; kind and retryable come from the table."""
    row = row_of(reason)
    return error_pb2.TypedError(
        reason=reason,
        kind=row.kind,
        message=message,
        retryable=row.retryable,
        metadata={key: str(value) for key, value in metadata.items()},
    )
