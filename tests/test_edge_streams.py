"""The edge's streams: Server-Sent Events, gRPC and gRPC-web, browsers, and Conductor away."""

import asyncio
import http.client
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, task_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from ops import envoy
from ops.stack import Stack
from services.common.server import Service
from services.common.status import from_rpc_error
from tests.edge_at_hand import DEADLINE_S, EXECUTE, MIB, OTHER_ORIGIN, Answer, Edge, edge, shared
from tests.scripted import MISSING, Script, serve_script

__all__ = ["edge", "shared"]


pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN_ORIGIN = "http://localhost:3000"


@pytest_asyncio.fixture(loop_scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.address) as channel:
        yield channel


# Server-Sent Events


async def _open(edge: Edge, path: str, **headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    """Opens a stream by hand; returns after the response head."""
    reader, writer = await asyncio.open_connection(*envoy.split(edge.address))
    lines = [f"GET {path} HTTP/1.1", "host: edge", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    async with asyncio.timeout(DEADLINE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return reader, writer, head


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/conductor/events?after_sequence=0", "after_sequence", 0),
        ("/conductor/tasks/t-5/events", "task_id", "t-5"),
        ("/api/projects/p-5/events?types=STAGE_STATUS&types=PLAN_PROPOSED", "project_id", "p-5"),
    ],
)
async def test_events_arrive_one_by_one_with_ids(edge: Edge, path: str, field: str, value: object) -> None:
    reader, writer, head = await _open(edge, path, last_event_id="41")
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream\r\n" in head
    async with asyncio.timeout(DEADLINE_S):
        first = await reader.readuntil(b"data: {}\n\n")  # nothing after it was sent yet, so nothing buffers
        assert b"id: 1\nevent: conductor.task.started\n" in first
        edge.script.release.set()
        assert b"id: 2\n" in await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    (request,) = edge.script.requests
    assert request.HasField(field)
    assert getattr(request, field) == value
    assert edge.script.metadata[0]["last-event-id"] == "41"


async def test_repeated_query_parameters_become_a_list(edge: Edge) -> None:
    _, writer, _ = await _open(edge, "/conductor/events?types=STAGE_STATUS&types=PLAN_PROPOSED")
    writer.close()
    (request,) = edge.script.requests
    assert isinstance(request, conductor_pb2.StreamEventsRequest)
    assert list(request.types) == ["STAGE_STATUS", "PLAN_PROPOSED"]


async def test_a_stream_that_cannot_begin_has_a_status_and_json(edge: Edge) -> None:
    answer = await edge.ask("GET", f"/conductor/tasks/{MISSING}/events")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert answer.reason == "TASK_NOT_FOUND"


async def test_a_reader_who_leaves_ends_the_stream_in_conductor(edge: Edge) -> None:
    reader, writer, _ = await _open(edge, "/conductor/events")
    async with asyncio.timeout(DEADLINE_S):
        await reader.readuntil(b"data: {}\n\n")
        writer.close()
        await edge.script.ended.wait()


# gRPC and gRPC-web


async def test_grpc_unary_and_its_errors(edge: Edge, channel: grpc.aio.Channel) -> None:
    stub = conductor_pb2_grpc.ConductorStub(channel)
    assert (await stub.GetTask(conductor_pb2.GetTaskRequest(task_id="a"))).task_id == "a"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetTask(conductor_pb2.GetTaskRequest(task_id=MISSING))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    error = from_rpc_error(refused.value)
    assert error is not None
    assert error.metadata["task_id"] == MISSING


async def test_grpc_streams_arrive_one_by_one(edge: Edge, channel: grpc.aio.Channel) -> None:
    call = conductor_pb2_grpc.ConductorStub(channel).SubscribeEvents(conductor_pb2.SubscribeEventsRequest())
    async with asyncio.timeout(DEADLINE_S):
        assert (await call.read()).sequence == 1
        edge.script.release.set()
        assert (await call.read()).sequence == 2
        assert await call.read() is grpc.aio.EOF


async def test_one_connection_carries_more_streams_than_the_usual_hundred(
    edge: Edge, channel: grpc.aio.Channel
) -> None:
    stub = conductor_pb2_grpc.ConductorStub(channel)
    calls = [stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest()) for _ in range(150)]
    async with asyncio.timeout(3 * DEADLINE_S):
        first = await asyncio.gather(*(call.read() for call in calls))
    assert [event.sequence for event in first] == [1] * 150
    for call in calls:
        call.cancel()


async def test_grpc_deadlines_shrink_but_survive(edge: Edge, channel: grpc.aio.Channel) -> None:
    await conductor_pb2_grpc.ConductorStub(channel).GetTask(conductor_pb2.GetTaskRequest(task_id="a"), timeout=3)
    (remaining,) = edge.script.remaining
    assert remaining is not None
    assert 1 < remaining <= 3


async def test_health_is_served_and_watched(edge: Edge, channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="conductor.v1.Conductor")
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(request)
    async with asyncio.timeout(DEADLINE_S):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_talks_both_ways(edge: Edge, channel: grpc.aio.Channel, version: str) -> None:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(2):  # the second question comes after the first answer: nothing waits for the end
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            names = {service.name for service in answer.list_services_response.service}
            assert "conductor.v1.Conductor" in names
        await call.done_writing()


async def test_the_workers_are_not_reachable(edge: Edge, channel: grpc.aio.Channel) -> None:
    for service in ("Researcher/Research", "Terminal/Run", "ReportWriter/WriteReport", "Conductor/Nothing"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/conductor.v1.{service}")(b"")
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_grpc_message_over_the_limit_is_refused(edge: Edge, channel: grpc.aio.Channel) -> None:
    request = conductor_pb2.ExecuteRequest(objective="x" * (3 * MIB))
    with pytest.raises(grpc.aio.AioRpcError):
        await conductor_pb2_grpc.ConductorStub(channel).Execute(request)
    assert edge.script.requests == []


async def test_grpc_web_carries_messages_and_trailers_in_the_body(edge: Edge) -> None:
    message = conductor_pb2.GetTaskRequest(task_id="web").SerializeToString()
    frame = b"\0" + struct.pack(">I", len(message)) + message
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": OWN_ORIGIN}
    answer = await edge.ask("POST", "/conductor.v1.Conductor/GetTask", frame, headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto")
    assert answer.headers["access-control-allow-origin"] == OWN_ORIGIN
    length = struct.unpack(">I", answer.body[1:5])[0]
    assert task_pb2.Task.FromString(answer.body[5 : 5 + length]).task_id == "web"
    assert answer.body[5 + length] == 0x80  # the frame of trailers
    assert b"grpc-status:0" in answer.body[5 + length :].replace(b" ", b"")


# Browsers


async def test_a_page_of_this_machine_may_ask_before_it_sends(edge: Edge) -> None:
    asks = {"origin": OWN_ORIGIN, "access-control-request-method": "POST"}
    answer = await edge.ask("OPTIONS", EXECUTE, headers=asks)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == OWN_ORIGIN
    assert "content-type" in answer.headers["access-control-allow-headers"]
    assert "POST" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    "path",
    ["/conductor/tasks/a", f"/conductor/tasks/{MISSING}", "/conductor/tasks/a?nope=1", "/api/projects/p-1/state"],
)
async def test_a_page_of_this_machine_reads_answers_and_errors(edge: Edge, path: str) -> None:
    answer = await edge.ask("GET", path, headers={"origin": OWN_ORIGIN})
    assert answer.headers["access-control-allow-origin"] == OWN_ORIGIN
    assert "grpc-status" in answer.headers["access-control-expose-headers"]


async def test_a_page_of_another_site_reads_nothing(edge: Edge) -> None:
    answer = await edge.ask("GET", "/conductor/tasks/a", headers={"origin": OTHER_ORIGIN})
    assert "access-control-allow-origin" not in answer.headers
    asks = {"origin": OTHER_ORIGIN, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in (await edge.ask("OPTIONS", EXECUTE, headers=asks)).headers


# Conductor away


async def _restarted(script: Script, address: str, after: float) -> Service:
    await asyncio.sleep(after)
    return await serve_script(script, address)


async def test_without_conductor_the_answer_is_503_and_a_short_restart_is_bridged(tmp_path: Path) -> None:
    script = Script()
    service = await serve_script(script)
    address = f"127.0.0.1:{service.port}"
    async with Stack(tmp_path, only=["envoy"], environ={"CONDUCTOR_LISTEN": address}) as stack:
        edge = Edge(stack, script)
        assert (await edge.ask("GET", "/conductor/tasks/a")).status == 200
        await service.stop(0)
        request = asyncio.create_task(edge.ask("GET", "/conductor/tasks/b"))
        service = await _restarted(script, address, after=0.5)
        assert (await request).status == 200  # sent while nobody listened
        await service.stop(0)
        script.requests.clear()
        async with asyncio.timeout(4 * DEADLINE_S):
            answer = await asyncio.to_thread(_patient, edge)
        assert (answer.status, answer.json["code"], answer.reason) == (503, 14, "CONDUCTOR_UNAVAILABLE")
        assert script.requests == []


def _patient(edge: Edge) -> Answer:
    """Asks once with time for all of Envoy's tries."""
    connection = http.client.HTTPConnection(edge.address, timeout=4 * DEADLINE_S)
    try:
        connection.request("GET", "/conductor/tasks/c")
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()
