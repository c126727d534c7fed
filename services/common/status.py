"""Carries a Refusal over the wire as google.rpc.Status with details (AIP-193), and a callee's error back."""

import grpc
from conductor.v1 import error_pb2
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common.errors import TABLE, Reason, Refusal

DOMAIN = "conductor.v1"
RETRY_AFTER_S = 1  # what RetryInfo asks a caller to wait when a service is over capacity


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
    status = status_pb2.Status(
        code=TABLE[error.reason].code, message=error.message, details=[_pack(d) for d in details]
    )
    wire: grpc.Status = rpc_status.to_status(status)
    return wire


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
