"""The stream's refusals, its Server-Sent Events, and how it ends."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, event_pb2
from google.protobuf import json_format

from services.common.errors import Reason
from tests.conftest import Running
from tests.test_actor import ROOT, Start, free_port, start
from tests.test_subscribe import CHECKPOINT, SNAPSHOT, head_of, refusal_of, stream, subscribe, take

__all__ = ["start"]  # a fixture


# ---- what cannot be subscribed to ----


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"after_sequence": 8}, "OUT_OF_RANGE", "CURSOR_OUT_OF_RANGE"),
        ({"after_sequence": 2**63 - 1, "project_id": "p"}, "OUT_OF_RANGE", "CURSOR_OUT_OF_RANGE"),
        ({"after_sequence": -1}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"task_id": "nobody"}, "NOT_FOUND", "TASK_NOT_FOUND"),
        ({"task_id": "nobody", "after_sequence": 0}, "NOT_FOUND", "TASK_NOT_FOUND"),
        ({"project_id": "../x"}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"types": ["no such type!"]}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"scope": {"user_id": " "}}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
    ],
)
async def test_what_cannot_be_streamed_is_refused_before_the_first_message(
    conductor: Running, fields: dict[str, Any], code: str, reason: str
) -> None:
    await conductor.ended((await conductor.execute()).task_id)
    assert await head_of(conductor) == 7
    for call in (subscribe(conductor, **fields), stream(conductor, **fields)):
        assert await refusal_of(call) == (grpc.StatusCode[code], Reason.Value(f"ERROR_REASON_{reason}"))
    at_the_end = subscribe(conductor, after_sequence=7)
    await conductor.execute()
    assert (await take(at_the_end, 1))[0].sequence == 8


# ---- Server-Sent Events ----


async def frames(call: Any, count: int) -> list[dict[str, str]]:
    """Returns the next blocks of an SSE stream, field by field; comments under the empty name."""
    text = ""
    async with asyncio.timeout(5):
        while text.count("\n\n") < count:
            body = await call.read()
            assert body is not grpc.aio.EOF and body.content_type == "text/event-stream"
            text += body.data.decode()
    blocks = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n")]
    assert all(len({line.split(": ")[0] for line in block}) == len(block) for block in blocks)
    return [dict(line.split(": ", 1) for line in block) for block in blocks]


async def test_sse_frames_carry_sequence_type_and_the_event_as_one_line_of_json(start: Start) -> None:
    running = await start(heartbeat=0.2)
    evil = "one\ntwo\r\ndata: forged\n\nid: 99\u2028 🜍"
    await running.ended((await running.execute(evil)).task_id)
    opening, *blocks, quiet = await frames(stream(running, after_sequence=0), 9)
    assert list(opening) == ["retry"] and int(opening["retry"]) > 0
    events = [json_format.Parse(block["data"], event_pb2.Event()) for block in blocks]
    assert events == await running.events() and events[0].task_started.objective == evil
    assert all(list(block) == ["id", "event", "data"] for block in blocks)
    assert [(block["id"], block["event"]) for block in blocks] == [(str(e.sequence), e.type) for e in events]
    assert {"task_id", "stream_sequence", "occurred_at"} <= json.loads(blocks[0]["data"]).keys()
    assert quiet == {"": CHECKPOINT, "id": "7"}
    hydrated = (await frames(stream(running, project_id="p"), 2))[1]
    assert hydrated["event"] == SNAPSHOT and json.loads(hydrated["data"])["snapshot"]["project"]["project_id"] == "p"


async def test_last_event_id_wins_over_after_sequence_and_must_be_a_sequence(conductor: Running) -> None:
    await conductor.ended((await conductor.execute()).task_id)
    for header, first in (("5", "6"), ("0", "1"), ("", "3")):
        (_, block) = await frames(stream(conductor, [("last-event-id", header)], after_sequence=2), 2)
        assert block["id"] == first
    invalid = grpc.StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_INVALID_REQUEST
    for garbage in ("x", "-1", "1.5", "1e3", "0x5", "5,6", "1 2", "9" * 30, str(2**63)):
        assert await refusal_of(stream(conductor, [("last-event-id", garbage)], after_sequence=0)) == invalid
    beyond = grpc.StatusCode.OUT_OF_RANGE, Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE
    assert await refusal_of(stream(conductor, [("last-event-id", "8")])) == beyond


# ---- the end ----


async def test_a_stopping_service_tells_every_stream_and_ends_in_time(tmp_path: Path) -> None:
    port = await free_port()
    names = {"LISTEN": f"127.0.0.1:{port}", "STORE": str(tmp_path / "log.db"), "GRACE": "3"}
    environment = {**os.environ, **{f"CONDUCTOR_{k}": v for k, v in names.items()}, "PYTHONPATH": f"{ROOT}:{ROOT}/gen"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.conductor", cwd=ROOT, env=environment
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
        stub: Any = conductor_pb2_grpc.ConductorStub(channel)
        typed = stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(project_id="p"))
        sse = stub.StreamEvents(conductor_pb2.StreamEventsRequest(project_id="p"))
        await take(typed, 1), await frames(sse, 2)
        process.send_signal(signal.SIGTERM)
        assert await refusal_of(typed) == (grpc.StatusCode.UNAVAILABLE, Reason.ERROR_REASON_SHUTTING_DOWN)
        assert (await frames(sse, 1)) == [{"event": "conductor.closing", "data": "{}"}]
        assert await sse.read() is grpc.aio.EOF and await sse.code() == grpc.StatusCode.OK
        assert await asyncio.wait_for(process.wait(), 5) == 0
