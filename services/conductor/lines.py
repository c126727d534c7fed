"""Calls to the servers behind a channel: many share one stream to each server (multiplex.proto).

gRPC picks the server of each new stream (round robin) and finds servers that come and go; here is only kept which
servers were met, and which has the fewest calls under way. A server without Multiplex is called rpc by rpc.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from conductor.v1 import multiplex_pb2, multiplex_pb2_grpc
from google.protobuf.message import DecodeError, Message

from services.common.boundary import CORRELATION_HEADER
from services.common.multiplex import batch
from services.common.status import as_error, rpc_error

Answer = TypeVar("Answer", bound=Message)
LOOK_S = 1.0  # between two looks for servers that were not there before
HELLO_S = 2.0  # how long a server may take to name itself


@dataclass(frozen=True)
class Method(Generic[Answer]):
    """A method of a worker: its path, the messages it answers with, and how large one may be.

    A unary answer is a stream of one, as it is on the wire.
    """

    path: str
    answer: type[Answer]
    max_bytes: int


@asynccontextmanager
async def single(
    channel: grpc.aio.Channel, method: Method[Answer], request: Message, seconds: float, correlation_id: str
) -> AsyncIterator[AsyncIterator[Answer]]:
    """Makes a call as an rpc of its own; as `Lines.call` otherwise."""
    rpc: Any = channel.unary_stream(method.path)
    call = rpc(request.SerializeToString(), timeout=seconds, metadata=((CORRELATION_HEADER, correlation_id),))
    try:
        yield _parsed(call, method)
    finally:
        call.cancel()


async def sending(
    channel: grpc.aio.Channel,
    method: Method[Answer],
    requests: AsyncIterator[Message],
    seconds: float,
    correlation_id: str,
) -> Answer:
    """Makes a call that sends many messages and gets one. Raises AioRpcError, and what the requests raise."""
    rpc: Any = channel.stream_unary(method.path)
    call = rpc(timeout=seconds, metadata=((CORRELATION_HEADER, correlation_id),))
    try:
        async for request in requests:
            await call.write(request.SerializeToString())
        await call.done_writing()
    except asyncio.InvalidStateError:
        pass  # the call is over already, and its answer says why
    except BaseException:  # whatever went wrong here, the other side must not wait for more; it is raised on
        call.cancel()
        raise
    return method.answer.FromString(await call)


class Lines:
    """Makes calls over a channel, each on the stream of the server with the fewest calls under way.

    Args:
        max_request_bytes: of one request; a larger one is refused with RESOURCE_EXHAUSTED, as gRPC does, because on a
            stream it would end every other call too.

    Servers are looked for while there are calls: at the first one, then every LOOK_S. A look opens a stream; one that
    meets a server for the first time is followed by another at once.
    """

    def __init__(self, channel: grpc.aio.Channel, max_request_bytes: int) -> None:
        self._channel = channel
        self._max = max_request_bytes
        self._closed = False
        self._stub = multiplex_pb2_grpc.MultiplexStub(channel)
        self._lines: dict[str, _Line] = {}  # by the server's name
        self._singly = False  # the last server that was met has no Multiplex
        self._look: asyncio.Task[bool] | None = None
        self._next_look = float("-inf")

    @asynccontextmanager
    async def call(
        self, method: Method[Answer], request: Message, seconds: float, correlation_id: str
    ) -> AsyncIterator[AsyncIterator[Answer]]:
        """Begins a call and gives its answers. Leaving it early cancels it.

        Args:
            seconds: it may take, for the server to know; the caller keeps time itself.

        Raises AioRpcError when the call ends with anything but OK, or when its stream breaks.
        """
        if (size := request.ByteSize()) > self._max:
            text = f"Sent message larger than max ({size} vs. {self._max})"
            raise rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        line = await self._line()
        if line is None:
            async with single(self._channel, method, request, seconds, correlation_id) as answers:
                yield answers
            return
        carried = line.begin(method.path, request, seconds, correlation_id)
        try:
            yield _parsed(carried, method)
        finally:
            line.end(carried)

    async def close(self) -> None:
        """Ends all streams, and with them their calls."""
        self._closed = True
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])
        await asyncio.gather(*(line.close() for line in list(self._lines.values())))

    async def _line(self) -> "_Line | None":
        """Returns the line for a call, None when it has to go singly. Raises AioRpcError when nobody is there."""
        if self._closed:
            raise rpc_error(grpc.StatusCode.CANCELLED, "The channel is closed.")
        free = self._free()
        if self._look is None and (asyncio.get_running_loop().time() >= self._next_look or not (free or self._singly)):
            self._begin_look()
        if not free and not self._singly and self._look is not None:
            await asyncio.wait([look := self._look])
            if look.cancelled():
                raise rpc_error(grpc.StatusCode.CANCELLED, "The channel was closed.")
            look.result()
            free = self._free()
        return min(free, key=lambda line: line.load, default=None)

    def _free(self) -> "list[_Line]":
        return [line for line in self._lines.values() if not line.leaving]

    def _begin_look(self) -> None:
        self._look = asyncio.create_task(self._meet())
        self._look.add_done_callback(self._looked)

    def _looked(self, look: asyncio.Task[bool]) -> None:
        self._look = None
        self._next_look = asyncio.get_running_loop().time() + LOOK_S
        # Whoever waits for the look is told of its error; when nobody does, the next call finds out for itself.
        if not look.cancelled() and look.exception() is None and look.result() and not self._closed:
            self._begin_look()

    async def _meet(self) -> bool:
        """Opens a stream, and keeps it if its server was not met before. Returns whether it was kept."""
        stream = self._stub.Carry()
        kept = False
        try:
            async with asyncio.timeout(HELLO_S):
                hello: Any = await stream.read()
            self._singly = False
            if hello is None:
                raise rpc_error(grpc.StatusCode.INTERNAL, "The server began with what is no message.")
            if hello is not grpc.aio.EOF and not hello.leaving and hello.server not in self._lines:
                self._lines[hello.server] = _Line(stream, lost=lambda: self._lines.pop(hello.server))
                kept = True
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._singly = True
        except TimeoutError:
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, "The server did not name itself.") from None
        finally:
            if not kept:
                stream.cancel()
        return kept


class _Line:
    """One stream to one server: writes calls as they come, several in a message, and hands out the answers."""

    def __init__(self, stream: Any, lost: Callable[[], object]) -> None:
        self.leaving = False  # the server is about to stop, and wants no more calls
        self._stream = stream
        self._lost = lost
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Carried] = {}
        self._beginning: deque[multiplex_pb2.CarriedCall] = deque()
        self._cancelled: deque[int] = deque()
        self._bell = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    @property
    def load(self) -> int:
        return len(self._calls)

    def begin(self, path: str, request: Message, seconds: float, correlation_id: str) -> "_Carried":
        carried = _Carried(next(self._numbers))
        call = multiplex_pb2.CarriedCall(
            number=carried.number, method=path, request=request.SerializeToString(), correlation_id=correlation_id
        )
        call.timeout.FromNanoseconds(int(seconds * 1e9))
        self._calls[carried.number] = carried
        self._beginning.append(call)
        self._bell.set()
        return carried

    def end(self, carried: "_Carried") -> None:
        """Forgets a call, and cancels it if it is not over."""
        if self._calls.pop(carried.number, None) is not None:
            self._cancelled.append(carried.number)
            self._bell.set()

    async def close(self) -> None:
        self._stream.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while not (self.leaving and not self._calls):
                await self._bell.wait()
                self._bell.clear()
                while self._beginning or self._cancelled:
                    calls = batch(self._beginning, lambda call: len(call.request))
                    # A cancelled call may be one that is still to begin, so nothing overtakes.
                    cancelled = () if self._beginning else batch(self._cancelled, lambda _: 1)
                    await self._stream.write(multiplex_pb2.CarryRequest(calls=calls, cancelled=cancelled))
            await self._stream.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream is over, and its reader says why

    async def _read(self) -> None:
        error = rpc_error(grpc.StatusCode.UNAVAILABLE, "The server ended the stream.")
        try:
            while (response := await self._stream.read()) is not grpc.aio.EOF:
                if response is None:  # what grpc.aio makes of bytes that cannot be parsed
                    self._stream.cancel()
                    error = rpc_error(grpc.StatusCode.INTERNAL, "The server sent what is no message.")
                    break
                for answer in response.answers:
                    self._hear(answer)
                if response.leaving:
                    self.leaving = True
                if self.leaving:
                    self._bell.set()
        except grpc.aio.AioRpcError as broken:
            # A write that meets the end of the connection is INTERNAL in grpc.aio; the server is gone all the same.
            internal = broken.code() == grpc.StatusCode.INTERNAL
            error = rpc_error(grpc.StatusCode.UNAVAILABLE, "The stream broke.") if internal else broken
        finally:
            self.leaving = True
            self._lost()
            self._tasks[0].cancel()
            for carried in self._calls.values():
                carried.end(error)
            self._calls.clear()

    def _hear(self, answer: multiplex_pb2.CarriedAnswer) -> None:
        carried = self._calls.get(answer.number)
        if carried is None:
            return
        if answer.HasField("ended"):
            del self._calls[answer.number]
            carried.end(as_error(answer.ended) if answer.ended.code else None)
        else:
            carried.answer(answer.message)


class _Carried:
    """The answers of one call as they come: serialized messages, then the end or an error."""

    __slots__ = ("_answers", "_error", "_over", "_waiter", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._answers: deque[bytes] = deque()
        self._over = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def answer(self, message: bytes) -> None:
        self._answers.append(message)
        self._wake()

    def end(self, error: Exception | None) -> None:
        self._over, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> "_Carried":
        return self

    async def __anext__(self) -> bytes:
        while not self._answers:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._answers.popleft()


async def _parsed(answers: Any, method: Method[Answer]) -> AsyncIterator[Answer]:
    async for message in answers:
        if len(message) > method.max_bytes:
            text = f"Received message larger than max ({len(message)} vs. {method.max_bytes})"
            raise rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        try:
            yield method.answer.FromString(message)
        except DecodeError:
            raise rpc_error(grpc.StatusCode.INTERNAL, "The answer is no message of the method.") from None
