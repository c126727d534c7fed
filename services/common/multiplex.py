"""Serves the calls that come over one stream (multiplex.proto) with the same handlers as calls of their own."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import grpc
from conductor.v1 import multiplex_pb2, multiplex_pb2_grpc

from services.common.boundary import CORRELATION_HEADER, Context, refuse, validate
from services.common.errors import Reason, Refusal
from services.common.status import Status, as_message

log = logging.getLogger(__name__)

Handlers = Callable[[str], Any]

# A message carries what is ready, up to so many bytes of messages and so many items; one that is larger goes alone.
BATCH_BYTES = 1024 * 1024
BATCH_ITEMS = 1024
# What wraps a message on a stream, beyond the largest that a call of its own may have.
FRAME_BYTES = 64 * 1024
WAITING_BYTES = BATCH_BYTES  # of answers that the caller has not taken yet, before their calls wait
ANSWER_BYTES = 128  # what an answer takes beyond its message, so that empty ones count too


def batch(waiting: deque[Any], size: Callable[[Any], int]) -> list[Any]:
    """Takes from the front of a queue what fits into one message: at least one item, if there is one."""
    taken: list[Any] = []
    room = BATCH_BYTES
    while waiting and len(taken) < BATCH_ITEMS and (not taken or size(waiting[0]) <= room):
        room -= size(waiting[0])
        taken.append(waiting.popleft())
    return taken


class Multiplex(multiplex_pb2_grpc.MultiplexServicer):
    """Implements the contract of the same name.

    Args:
        server: names this process.
        handlers: finds the handler of a method's path, None when there is none.
        max_message_bytes: of one answer; a larger one is refused with RESOURCE_EXHAUSTED, as a call of its own would.
    """

    def __init__(self, server: str, handlers: Handlers, max_message_bytes: int) -> None:
        self._server = server
        self._handlers = handlers
        self._max = max_message_bytes
        self._streams: set[_Stream] = set()
        self._leaving = False

    def leave(self) -> None:
        """Asks every caller to go elsewhere with new calls; streams end when their last call has."""
        self._leaving = True
        for stream in self._streams:
            stream.leave()

    # It writes to the context instead of yielding: a generator that is left at a yield ends at some later time.
    async def Carry(self, _: object, context: Context) -> None:  # type: ignore[override]
        stream = _Stream(context, self._handlers, self._max)
        self._streams.add(stream)
        if self._leaving:
            stream.leave()
        try:
            await stream.serve(self._server)
        except Exception as error:  # the last stop before the wire, for the stream itself
            await refuse(context, error)
        finally:
            self._streams.discard(stream)


class _Stream:
    """One caller's stream: reads calls, runs each as a task, and writes what they answer."""

    def __init__(self, context: Context, handlers: Handlers, most: int) -> None:
        self._context = context
        self._handlers = handlers
        self._max = most
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._answers: deque[multiplex_pb2.CarriedAnswer] = deque()
        self._bytes = 0
        self._bell = asyncio.Event()  # something to write, or to end for
        self._room = asyncio.Event()
        self._room.set()
        self._leave = False

    def leave(self) -> None:
        self._leave = True
        self._bell.set()

    async def serve(self, server: str) -> None:
        await self._context.write(multiplex_pb2.CarryResponse(server=server))
        reader = asyncio.create_task(self._read())
        reader.add_done_callback(lambda _: self._bell.set())
        told = False
        try:
            while True:
                if reader.done():
                    reader.result()  # raises what was wrong with the stream
                    if not self._calls and not self._answers:
                        return
                if self._answers or (self._leave and not told):
                    told, leaving = told or self._leave, self._leave and not told
                    await self._context.write(multiplex_pb2.CarryResponse(answers=self._taken(), leaving=leaving))
                else:
                    await self._bell.wait()
                    self._bell.clear()
        finally:  # also when the caller is gone: nobody waits for its calls any more
            left = [reader, *self._calls.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _taken(self) -> list[multiplex_pb2.CarriedAnswer]:
        taken = batch(self._answers, _size)
        self._bytes -= sum(map(_size, taken))
        if self._bytes < WAITING_BYTES:
            self._room.set()
        return taken

    async def _read(self) -> None:
        while (request := await self._context.read()) is not grpc.aio.EOF:
            validate(request)
            for call in request.calls:
                self._begin(call)
            for number in request.cancelled:
                if number in self._calls:
                    self._calls[number].cancel()

    def _begin(self, call: multiplex_pb2.CarriedCall) -> None:
        if call.number in self._calls:
            text = f"calls.number: {call.number} is a call under way."
            raise Refusal(Reason.ERROR_REASON_INVALID_REQUEST, text, field="calls.number")
        task = self._calls[call.number] = asyncio.create_task(self._call(call))
        task.add_done_callback(lambda _: self._over(call.number))

    def _over(self, number: int) -> None:
        del self._calls[number]
        self._bell.set()

    async def _call(self, call: multiplex_pb2.CarriedCall) -> None:
        timeout = call.timeout.ToNanoseconds() / 1e9 if call.HasField("timeout") else None
        try:
            async with asyncio.timeout(timeout) as limit:
                await self._answer(call, CarriedContext(call.correlation_id, limit))
            ended = Status()
        except _Aborted as aborted:
            ended = aborted.status
        except TimeoutError:
            ended = Status(code=grpc.StatusCode.DEADLINE_EXCEEDED.value[0], message="Deadline Exceeded")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # nobody wants to know
                raise
            ended = Status(code=grpc.StatusCode.CANCELLED.value[0], message="Cancelled by the server.")
        except Exception as error:  # handlers map their errors themselves; what is left is a fault of this stream
            log.exception("a carried call of %s failed", call.method)
            ended = Status(code=grpc.StatusCode.UNKNOWN.value[0], message=type(error).__name__)
        self._say(multiplex_pb2.CarriedAnswer(number=call.number, ended=ended))

    async def _answer(self, call: multiplex_pb2.CarriedCall, context: "CarriedContext") -> None:
        handler = self._handlers(call.method)
        if handler is None:
            raise _Aborted(Status(code=grpc.StatusCode.UNIMPLEMENTED.value[0], message="Method not found!"))
        request = handler.request_deserializer(call.request)
        if not handler.response_streaming:
            await self._message(call.number, handler.response_serializer(await handler.unary_unary(request, context)))
            return
        async with contextlib.aclosing(handler.unary_stream(request, context)) as responses:
            async for response in responses:
                await self._message(call.number, handler.response_serializer(response))

    async def _message(self, number: int, message: bytes) -> None:
        if len(message) > self._max:
            text = f"Sent message larger than max ({len(message)} vs. {self._max})"
            raise _Aborted(Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=text))
        if self._bytes >= WAITING_BYTES:
            self._room.clear()
            await self._room.wait()
        self._say(multiplex_pb2.CarriedAnswer(number=number, message=message))

    def _say(self, answer: multiplex_pb2.CarriedAnswer) -> None:
        self._answers.append(answer)
        self._bytes += _size(answer)
        self._bell.set()


def _size(answer: multiplex_pb2.CarriedAnswer) -> int:
    return ANSWER_BYTES + (len(answer.message) if answer.HasField("message") else answer.ended.ByteSize())


class _Aborted(Exception):
    """Ends a call with a status."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.code)
        self.status = status


class CarriedContext:
    """What a servicer may ask of the context of a carried call, see grpc.aio.ServicerContext."""

    def __init__(self, correlation_id: str, limit: asyncio.Timeout) -> None:
        self._correlation_id = correlation_id
        self._limit = limit

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        """Returns the headers that a carried call can have: the correlation id."""
        return ((CORRELATION_HEADER, self._correlation_id),) if self._correlation_id else ()

    def time_remaining(self) -> float | None:
        """Returns seconds until the deadline, None without one."""
        end = self._limit.when()
        return None if end is None else max(0.0, end - asyncio.get_running_loop().time())

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """Ends the call with a status and its details. Raises."""
        raise _Aborted(as_message(status))
