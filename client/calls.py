"""How calls are made: with a deadline, again while nothing can be reached, and streams as if they never broke."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from client.errors import ConductorError, from_rpc_error

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
# What a stream ends with when it was cut on its way and not by Conductor's decision.
CUT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A peer that vanished without a word is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

Answer = TypeVar("Answer", bound=Message)


class Connection:
    """A channel, and how patient its calls are. Arguments as in ConductorClient."""

    def __init__(self, target: str, timeout: float, retry_for: float, resume_for: float) -> None:
        self.channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._timeout = timeout
        self._retry_for = retry_for
        self._resume_for = resume_for

    def once(
        self, method: Callable[..., Answer], request: Message | Iterator[Message], timeout: float | None = None
    ) -> Answer:
        """Makes a call; of several messages where its method takes a stream. Raises ConductorError."""
        try:
            return method(request, timeout=timeout or self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def repeated(self, method: Callable[..., Answer], request: Message, timeout: float | None = None) -> Answer:
        """Makes a call that is safe to repeat, again while Conductor is unavailable. Raises ConductorError."""
        pauses = _pauses(self._retry_for)
        while True:
            try:
                return self.once(method, request, timeout)
            except ConductorError as error:
                if error.code != grpc.StatusCode.UNAVAILABLE:
                    raise
                _pause_or_raise(pauses, error)

    def streamed(self, method: Callable[..., Iterator[Answer]], request: Message) -> Iterator[Answer]:
        """Yields the messages of one stream, once. Raises ConductorError when it is refused or breaks."""
        stream = method(request)
        try:
            yield from stream
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            cast(grpc.Call, stream).cancel()

    def resumed(self, method: Callable[..., Iterator[Answer]], request: Any) -> Iterator[Answer]:
        """Yields the messages of one subscription after the other, each beginning behind the last message.

        Args:
            request: with after_sequence, and log_id where the messages have one.

        Raises ConductorError when it is refused, or when nothing has come for too long.
        """
        pauses = _pauses(self._resume_for)
        while True:
            stream = method(request)
            cut = ConductorError("UNAVAILABLE", "The stream ended early.", grpc.StatusCode.UNAVAILABLE, retryable=True)
            try:
                for event in stream:
                    yield event
                    _go_on_behind(request, event)
                    pauses = _pauses(self._resume_for)
            except grpc.RpcError as error:
                cut = from_rpc_error(error)
                if not _may_resume(cut):
                    raise cut from error
            finally:
                cast(grpc.Call, stream).cancel()
            _pause_or_raise(pauses, cut)


def _go_on_behind(request: Any, event: Any) -> None:
    request.after_sequence = max(event.sequence, request.after_sequence)
    if getattr(event, "log_id", ""):
        request.log_id = event.log_id


def _may_resume(error: ConductorError) -> bool:
    return error.retryable or (error.code in CUT and not error.answered)


def _pauses(seconds: float) -> Iterator[float]:
    """Yields growing pauses until `seconds` have passed since the first was asked for."""
    end = time.monotonic() + seconds
    pause = FIRST_PAUSE_S
    while time.monotonic() < end:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _pause_or_raise(pauses: Iterator[float], error: ConductorError) -> None:
    pause = next(pauses, None)
    if pause is None:
        raise error
    time.sleep(pause)
