"""Same request, same answer: what makes two requests the same, and what a repeat is given (AIP-155). Pure."""

import hashlib

from conductor.v1 import project_pb2, task_pb2
from google.protobuf.message import Message

from services.common.errors import Reason, Refusal
from services.conductor.protocol import SECOND, Command, StartRun, Submit
from services.conductor.store.base import Answer, RequestKey

KEPT_NS = 24 * 3600 * SECOND  # how long a request_id is remembered
NOT_IDENTITY = ("wait", "correlation_id", "request_id")  # how long to wait and how to trace make no other request


def request_key(command: Command, request_id: str, answer: bytes, at: int, covers: int) -> RequestKey:
    """Returns what is stored with a command, so that its repeat gets `answer`.

    Args:
        at: nanoseconds since the epoch.
        covers: how many of the command's events the answer includes.
    """
    return RequestKey(key_of(command, request_id), _fingerprint(command), answer, at + KEPT_NS, covers)


def key_of(command: Command, request_id: str) -> str:
    """Returns the name a request is remembered by: an id is unique among requests of one kind."""
    return f"{type(command).__name__}/{request_id}"


def repeat(command: Command, request_id: str, earlier: Answer) -> Message:
    """Returns the first answer again. Raises REQUEST_ID_REUSED when the earlier request was another one."""
    if earlier.fingerprint != _fingerprint(command):
        raise Refusal(
            Reason.ERROR_REASON_REQUEST_ID_REUSED,
            "This request_id was used for another request. Give every new request an id of its own.",
            request_id=request_id,
        )
    answer = task_pb2.Task() if isinstance(command, Submit) else project_pb2.ProjectState()
    answer.ParseFromString(earlier.response)
    answer.as_of_sequence = earlier.pos
    return answer


def _fingerprint(command: Command) -> bytes:
    request = command.request if isinstance(command, Submit | StartRun) else command
    assert isinstance(request, Message)  # noqa: S101  only requests of the contract carry a request_id
    same: Message = type(request)()
    same.CopyFrom(request)
    for name in NOT_IDENTITY:
        if name in same.DESCRIPTOR.fields_by_name:
            same.ClearField(name)
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()
