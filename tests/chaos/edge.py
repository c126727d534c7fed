"""The edge as a client sees it: gRPC with generated stubs, JSON over HTTP/1.1, and Server-Sent Events. Every try of a
request is recorded."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, error_pb2, event_pb2, project_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from services.common.status import from_rpc_error
from services.conductor.events import CHECKPOINT
from tests.chaos.history import Call, History, luck_of
from tests.chaos.promises import REFUSALS

CALL_S = 12.0  # time one try has, beyond the wait it asks for
PAUSE_S = (0.05, 0.4)  # between tries
QUIET_S = 10.0  # without a word, not even a checkpoint, a stream is taken for dead; the heartbeat is shorter
LINE_BYTES = 8 * 1024 * 1024
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
# method → HTTP method, path, type of the answer. The path's fields leave the body.
PATHS: dict[str, tuple[str, str, Any]] = {
    "Execute": ("POST", "/conductor/execute", conductor_pb2.ExecuteResponse),
    "WaitForConfirmation": ("POST", "/api/projects/{project_id}/waiting-confirmation", project_pb2.ProjectState),
    "ProposePlan": ("POST", "/api/projects/{project_id}/plans", project_pb2.ProjectState),
    "TransitionTo": ("POST", "/api/projects/{project_id}/transition", project_pb2.ProjectState),
    "Confirm": ("POST", "/api/projects/{project_id}/confirm", project_pb2.ProjectState),
}
BROKEN = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError)  # of a connection


class Edge:
    """One client's connection to the edge, under a name of its own."""

    def __init__(self, who: str, address: str, history: History, seed: object) -> None:
        self.who, self.address, self.history = who, address, history
        self.luck = luck_of(seed, who)
        self._channel = grpc.aio.insecure_channel(address, OPTIONS)
        self.stub: Any = conductor_pb2_grpc.ConductorStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def once(self, request: Any, *, expects: str = "OK", over_json: bool = False) -> Call:
        """Makes one try and records it."""
        method = _method(request)
        began = self.history.now()
        wait = request.wait.seconds if method == "Execute" else 0
        ask = self._over_json if over_json else self._over_grpc
        answer, code, reason = await ask(method, request, CALL_S + wait)
        via, ended = "JSON" if over_json else "gRPC", self.history.now()
        request_id = getattr(request, "request_id", "")
        call = Call(self.who, via, method, request, request_id, began, ended, answer, code, reason, expects)
        self.history.add(call)
        return call

    async def settle(self, request: Any, *, expects: str = "OK") -> Call:
        """Tries with the same request_id until the reply is definite."""
        over_json = _method(request) in PATHS and self.luck.random() < 0.25
        while True:
            call = await self.once(request, expects=expects, over_json=over_json)
            if call.code == "OK" or call.code in REFUSALS:
                return call
            await asyncio.sleep(self.luck.uniform(*PAUSE_S))

    async def _over_grpc(self, method: str, request: Message, seconds: float) -> tuple[Message | None, str, str]:
        try:
            return await getattr(self.stub, method)(request, timeout=seconds), "OK", ""
        except grpc.aio.AioRpcError as error:
            cause = from_rpc_error(error)
            reason = "" if cause is None else error_pb2.ErrorReason.Name(cause.reason).removeprefix("ERROR_REASON_")
            return None, error.code().name, reason

    async def _over_json(self, method: str, request: Message, seconds: float) -> tuple[Message | None, str, str]:
        verb, path, kind = PATHS[method]
        body = json_format.MessageToDict(request, preserving_proto_field_name=True)
        path = path.format(project_id=body.get("project_id", ""))
        if "/projects/" in path:
            body.pop("project_id")
        try:
            async with asyncio.timeout(seconds), exchange(self.address, verb, path, json.dumps(body)) as (status, said):
                text = b"".join([piece async for piece in said])
        except (TimeoutError, *BROKEN):
            return None, "UNAVAILABLE", ""
        if status == 200:
            return json_format.Parse(text, kind()), "OK", ""
        refusal = json.loads(text)
        reasons = [detail["reason"] for detail in refusal.get("details", []) if "reason" in detail]
        return None, CODES[refusal["code"]], reasons[0] if reasons else ""

    async def events(self, after: int, project_id: str = "") -> AsyncGenerator[event_pb2.Event, None]:
        """Yields what SubscribeEvents sends, until it breaks."""
        request = conductor_pb2.SubscribeEventsRequest(after_sequence=after)
        if project_id:
            request.project_id = project_id
        stream = self.stub.SubscribeEvents(request)
        try:
            while True:
                async with asyncio.timeout(QUIET_S):
                    event = await stream.read()
                if event is grpc.aio.EOF:
                    return
                yield event
        except (grpc.aio.AioRpcError, TimeoutError):
            return
        finally:
            stream.cancel()

    async def sse(self, after: int) -> AsyncGenerator[event_pb2.Event, None]:
        """Yields what GET /conductor/events sends, until it breaks."""
        headers = {"Last-Event-ID": str(after)}
        try:
            async with exchange(self.address, "GET", "/conductor/events", "", headers) as (status, said):
                if status != 200:
                    return
                text = b""
                while True:
                    async with asyncio.timeout(QUIET_S):
                        piece = await anext(said, b"")
                    if not piece:
                        return
                    *whole, text = (text + piece).split(b"\n\n")
                    for block in whole:
                        event = _event_of(block.decode())
                        if event is not None:
                            yield event
        except (TimeoutError, *BROKEN):
            return


def _method(request: Message) -> str:
    name = type(request).__name__.removesuffix("Request")
    return "GetReport" if name == "GetTaskReport" else name


def _event_of(block: str) -> event_pb2.Event | None:
    """Reads one Server-Sent Event; None for what is none."""
    fields = dict(line.partition(": ")[::2] for line in block.split("\n") if line)
    if fields.get("data", "{}") != "{}":
        return json_format.Parse(fields["data"], event_pb2.Event())
    if "id" in fields and CHECKPOINT in block:
        return event_pb2.Event(type=CHECKPOINT, sequence=int(fields["id"]))
    return None


@asynccontextmanager
async def exchange(
    address: str, verb: str, path: str, body: str, headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """Makes one HTTP/1.1 request; gives the status and the body as it comes. Raises what is in BROKEN."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=LINE_BYTES)
    try:
        data = body.encode()
        own = {"host": address, "content-type": "application/json", "content-length": str(len(data))}
        lines = [f"{name}: {value}" for name, value in {**own, **(headers or {})}.items()]
        writer.write("\r\n".join([f"{verb} {path} HTTP/1.1", *lines, "", ""]).encode() + data)
        await writer.drain()
        status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        given = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        yield int(status.split()[1]), _body(reader, given)
    finally:
        writer.close()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding") != "chunked":
        yield await reader.readexactly(int(headers.get("content-length", "0")))
        return
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
