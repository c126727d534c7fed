"""What a call raises: the TypedError of the contract, read from the details of a google.rpc.Status (AIP-193)."""

from collections.abc import Mapping
from typing import cast

import grpc
from conductor.v1 import error_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


class ConductorError(Exception):
    """A call was refused or failed.

    Attributes:
        reason: name of the ErrorReason without its prefix, for example "TASK_NOT_FOUND"; the name of the code when the
            answer came from elsewhere, for example "UNAVAILABLE" when nothing could be reached.
        message: what happened and what to do next, for a person.
        metadata: the values the message shows, and the correlation id.
        code: the gRPC code.
        retryable: whether the same call may succeed later.
        violations: field → what it must be, for an invalid request.
        answered: whether Conductor gave this answer; False when it came from something between, or nobody answered.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        code: grpc.StatusCode,
        metadata: Mapping[str, str] | None = None,
        retryable: bool = False,
        violations: Mapping[str, str] | None = None,
        answered: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.code = code
        self.metadata = dict(metadata or {})
        self.retryable = retryable
        self.violations = dict(violations or {})
        self.answered = answered


def from_rpc_error(error: grpc.RpcError) -> ConductorError:
    """Returns the error a failed call stands for."""
    call = cast(grpc.Call, error)
    code = call.code()
    status = _status(call)
    typed, info, bad = error_pb2.TypedError(), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for kind in (typed, info, bad):
            detail.Unpack(kind)
    reason = info.reason or code.name
    if typed.reason:
        reason = _name(typed.reason)
    return ConductorError(
        reason,
        typed.message or status.message or call.details() or "No reason was given.",
        code,
        {**typed.metadata, **info.metadata},
        typed.retryable or (not typed.reason and code == grpc.StatusCode.UNAVAILABLE),
        {violation.field: violation.description for violation in bad.field_violations},
        answered=bool(typed.reason),
    )


def _name(reason: error_pb2.ErrorReason.ValueType) -> str:
    try:
        return error_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    except ValueError:  # a reason of a newer Conductor
        return f"REASON_{reason}"


def _status(call: grpc.Call) -> status_pb2.Status:
    try:
        return rpc_status.from_call(call) or status_pb2.Status()
    except ValueError:  # something between has changed the code or the message; then the details do not belong to it
        return status_pb2.Status()
