"""envoy.yaml in a real Envoy, in front of a scripted Conductor on loopback."""

import asyncio
import http.client
import json
import re
import struct
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import yaml
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, task_pb2
from google.api import annotations_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from ops import envoy
from ops.layout import DRAIN_S
from ops.stack import Stack
from services.common.config import ConductorSettings, load
from services.common.server import Service
from services.common.status import from_rpc_error
from tests.scripted import MISSING, Script, serve_script

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}
MIB = 1024 * 1024
OWN_ORIGIN = "http://localhost:3000"
OTHER_ORIGIN = "http://evil.example"
DEADLINE_S = 5


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The reason of the ErrorInfo that must lead the details."""
        first: dict[str, str] = self.json["details"][0]
        assert first["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
        return first["reason"]


@dataclass(frozen=True)
class Edge:
    stack: Stack
    script: Script

    @property
    def address(self) -> str:
        return self.stack.addresses["envoy"]

    async def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        return await asyncio.to_thread(self._ask, method, path, body, headers or {})

    def _ask(self, method: str, path: str, body: bytes | str | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=DEADLINE_S)
        try:
            connection.putrequest(method, path)
            for name, value in headers.items():
                connection.putheader(name, value)
            data = body.encode() if isinstance(body, str) else body
            if data is not None:
                connection.putheader("content-length", str(len(data)))
            connection.endheaders(data)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    async def raw(self, request: bytes) -> bytes:
        """Sends bytes as they are; returns the head of what comes back."""
        reader, writer = await asyncio.open_connection(*envoy.split(self.address))
        try:
            writer.write(request)
            async with asyncio.timeout(DEADLINE_S):
                return await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    script = Script()
    service = await serve_script(script)
    environ = {"CONDUCTOR_LISTEN": f"127.0.0.1:{service.port}"}
    async with Stack(tmp_path_factory.mktemp("edge"), only=["envoy"], environ=environ) as stack:
        yield Edge(stack, script)
    await service.stop(0)


@pytest.fixture
def edge(shared: Edge) -> Edge:
    script = shared.script
    for recorded in (script.requests, script.metadata, script.remaining):
        recorded.clear()
    script.release.clear()
    script.ended.clear()
    return shared


@pytest_asyncio.fixture(loop_scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.address) as channel:
        yield channel


# The file


async def test_the_file_as_it_stands_is_accepted_by_envoy() -> None:
    command = [envoy.binary(), "--mode", "validate", "-c", "envoy.yaml", "--log-level", "warning"]
    done = await asyncio.to_thread(subprocess.run, command, cwd=envoy.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[warning]" not in done.stderr  # nothing deprecated, nothing left unlimited


def _differences(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [_differences(one[key], other[key], f"{path}/{key}") for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [_differences(a, b, f"{path}/{i}") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return {} if one == other else {path: (one, other)}
    return {key: value for part in parts for key, value in part.items()}


async def test_running_locally_changes_addresses_and_nothing_else() -> None:
    template = envoy.TEMPLATE.read_text()
    local = envoy.render(template, edge="127.0.0.2:1111", admin="127.0.0.3:2222", conductors=["127.0.0.4:3333"])
    listener = "/static_resources/listeners/0/address/socket_address"
    admin = "/admin/address/socket_address"
    differences = {
        f"{listener}/address": ("0.0.0.0", "127.0.0.2"),  # noqa: S104 - in the container
        f"{listener}/port_value": (8080, 1111),
        f"{admin}/address": ("127.0.0.1", "127.0.0.3"),
        f"{admin}/port_value": (9901, 2222),
    }
    for cluster in range(2):
        place = f"/static_resources/clusters/{cluster}/load_assignment/endpoints/0/lb_endpoints/0"
        differences[f"{place}/endpoint/address/socket_address/address"] = ("conductor", "127.0.0.4")
        differences[f"{place}/endpoint/address/socket_address/port_value"] = (50051, 3333)
    assert _differences(yaml.safe_load(template), yaml.safe_load(local)) == differences


async def test_every_replica_is_an_endpoint_of_both_clusters() -> None:
    replicas = ["127.0.0.1:1", "127.0.0.1:2", "[::1]:3"]
    template = envoy.TEMPLATE.read_text()
    config = yaml.safe_load(envoy.render(template, edge="127.0.0.1:8", admin="127.0.0.1:9", conductors=replicas))
    clusters = config["static_resources"]["clusters"]
    assert [cluster["name"] for cluster in clusters] == ["conductor", "conductor_streams"]
    for cluster in clusters:
        (locality,) = cluster["load_assignment"]["endpoints"]
        places = [each["endpoint"]["address"]["socket_address"] for each in locality["lb_endpoints"]]
        assert [(place["address"], place["port_value"]) for place in places] == [
            ("127.0.0.1", 1),
            ("127.0.0.1", 2),
            ("::1", 3),
        ]


async def test_only_what_the_contract_reads_is_asked_again_after_it_was_sent() -> None:
    routes = _routes()
    reads = next(path for path in routes if "(Get|List)" in path)
    for method in conductor_pb2.DESCRIPTOR.services_by_name["Conductor"].methods:
        path = f"/conductor.v1.Conductor/{method.name}"
        route = routes.get(path) or routes[reads if re.fullmatch(reads, path) else "/conductor.v1.Conductor/"]
        only_reads = method.GetOptions().Extensions[annotations_pb2.http].HasField("get") or method.server_streaming
        asked_again = set(route["retry_policy"]["retry_on"].split(","))
        nothing_was_done = {"connect-failure", "refused-stream", "reset-before-request"}
        assert only_reads or asked_again <= nothing_was_done, method.name


async def test_a_replica_serves_for_longer_than_the_edge_takes_to_hear_that_it_stops() -> None:
    for cluster in yaml.safe_load(envoy.TEMPLATE.read_text())["static_resources"]["clusters"]:
        (check,) = cluster["health_checks"]
        heard_after = sum(float(check[name].rstrip("s")) for name in ("interval", "no_traffic_interval"))
        assert float(DRAIN_S) > heard_after
        assert cluster["common_lb_config"]["update_merge_window"] == "0s"  # and acts at once


def _routes() -> dict[str, Any]:
    """Returns the routes to Conductor by the path, prefix or pattern they match."""
    config = yaml.safe_load(envoy.TEMPLATE.read_text())
    (manager,) = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    found = {}
    for route in manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]:
        if "route" in route:
            match = route["match"]
            found[match.get("path") or match.get("prefix") or match["safe_regex"]["regex"]] = route["route"]
    return found


async def test_times_and_limits_agree_with_conductor() -> None:
    conductor = load(ConductorSettings, {})
    config = yaml.safe_load(envoy.TEMPLATE.read_text())
    routes = _routes()
    for name in ("SubscribeEvents", "StreamEvents"):
        stream = routes[f"/conductor.v1.Conductor/{name}"]
        assert stream["timeout"] == "0s"
        assert float(stream["idle_timeout"].rstrip("s")) > 2 * conductor.heartbeat
    longest_wait = 60  # ExecuteRequest.wait
    assert float(routes["/conductor.v1.Conductor/"]["timeout"].rstrip("s")) > longest_wait
    for cluster in config["static_resources"]["clusters"]:
        (limits,) = cluster["circuit_breakers"]["thresholds"]
        assert limits["max_requests"] > conductor.max_streams


# JSON


async def test_json_has_snake_case_enum_names_and_a_stable_shape(edge: Edge) -> None:
    answer = await edge.ask("GET", "/conductor/tasks/t-9")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["task_id"] == "t-9"
    assert answer.json["status"] == "TASK_STATUS_RUNNING"
    assert answer.json["as_of_sequence"] == "0"  # printed although it is 0, and a string as all int64
    assert answer.json["project_id"] == ""
    assert "error" not in answer.json  # what is absent stays absent


@pytest.mark.parametrize(
    "body",
    [
        '{"objective":"o","output_mode":"OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER"}',
        '{"objective":"o","outputMode":"output_mode_markdown_report_to_writer"}',
        '{"objective":"o","output_mode":1}',
    ],
)
async def test_json_input_takes_both_spellings_and_enums_by_name_or_number(edge: Edge, body: str) -> None:
    answer = await edge.ask("POST", "/conductor/execute", body, JSON)
    assert (answer.status, answer.json["task_id"]) == (200, "t-1")
    (request,) = edge.script.requests
    assert isinstance(request, conductor_pb2.ExecuteRequest)
    assert request.output_mode == task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER


async def test_what_conductor_refuses_passes_untouched(edge: Edge) -> None:
    answer = await edge.ask("GET", f"/conductor/tasks/{MISSING}", headers={"x-correlation-id": "c-1"})
    assert (answer.status, answer.json["code"], answer.reason) == (404, 5, "TASK_NOT_FOUND")
    info, typed = answer.json["details"]
    assert info["metadata"] == {"task_id": MISSING, "correlation_id": "c-1"}
    assert typed["@type"] == "type.googleapis.com/conductor.v1.TypedError"
    assert typed["retryable"] is False


async def test_a_field_that_breaks_a_rule_is_named(edge: Edge) -> None:
    answer = await edge.ask("POST", "/conductor/execute", "{}", JSON)
    assert answer.status == 400
    bad = next(d for d in answer.json["details"] if d["@type"].endswith("google.rpc.BadRequest"))
    assert {violation["field"] for violation in bad["field_violations"]} == {"objective", "output_mode"}


async def test_an_exception_inside_conductor_is_not_told(edge: Edge) -> None:
    answer = await edge.ask("POST", "/conductor/execute", '{"objective":"boom","output_mode":1}', JSON)
    assert (answer.status, answer.reason) == (500, "INTERNAL")
    assert b"secret" not in answer.body


async def test_over_capacity_says_when_to_come_back(edge: Edge) -> None:
    answer = await edge.ask("POST", "/conductor/execute", '{"objective":"full","output_mode":1}', JSON)
    assert (answer.status, answer.json["code"]) == (429, 8)
    assert {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": "1s"} in answer.json["details"]


async def test_a_report_is_markdown_not_json(edge: Edge) -> None:
    answer = await edge.ask("GET", "/conductor/tasks/t-1/report")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.body == b"# Answer\n"


EXECUTE = "/conductor/execute"
CONFIRM = "/api/projects/p1/confirm"
REFUSED: list[tuple[str, str, str | bytes | None, dict[str, str], int, int, str]] = [
    # method, path, body, headers → status, code, reason
    ("GET", "/", None, {}, 404, 5, "UNKNOWN_PATH"),
    ("GET", "/favicon.ico", None, {}, 404, 5, "UNKNOWN_PATH"),
    ("GET", "/conductor/nothing", None, {}, 404, 5, "UNKNOWN_PATH"),
    ("GET", "/conductor/tasks/a/b/c", None, {}, 404, 5, "UNKNOWN_PATH"),
    ("GET", EXECUTE, None, {}, 404, 5, "UNKNOWN_PATH"),
    ("DELETE", "/conductor/tasks/a", None, {}, 404, 5, "UNKNOWN_PATH"),
    ("PUT", EXECUTE, "{}", JSON, 404, 5, "UNKNOWN_PATH"),
    ("POST", "/conductor.v1.Conductor/GetTask", '{"task_id":"a"}', JSON, 404, 5, "UNKNOWN_PATH"),
    ("POST", "/conductor.v1.Terminal/Run", "{}", JSON, 404, 5, "UNKNOWN_PATH"),
    ("GET", "/ready", None, {}, 404, 5, "UNKNOWN_PATH"),
    ("GET", "/stats", None, {}, 404, 5, "UNKNOWN_PATH"),
    ("GET", "/conductor/tasks/a?nope=1", None, {}, 400, 3, "MALFORMED_REQUEST"),
    ("GET", "/conductor/tasks?status=running", None, {}, 400, 3, "MALFORMED_REQUEST"),
    ("GET", "/conductor/tasks?page_size=many", None, {}, 400, 3, "MALFORMED_REQUEST"),
    ("GET", "/conductor/tasks/a%2Fb", None, {}, 400, 3, "MALFORMED_REQUEST"),
    ("GET", "/conductor/tasks/a%5Cb", None, {}, 400, 3, "MALFORMED_REQUEST"),
    ("GET", "/conductor/tasks/a%00b", None, {}, 400, 3, "MALFORMED_REQUEST"),
    ("GET", "/conductor/tasks/a", None, {"x_correlation_id": "c"}, 400, 3, "MALFORMED_REQUEST"),
    ("POST", EXECUTE, '{"objective":"o"', JSON, 400, 3, "MALFORMED_REQUEST"),
    ("POST", EXECUTE, "[]", JSON, 400, 3, "MALFORMED_REQUEST"),
    ("POST", EXECUTE, '{"objective":{}}', JSON, 400, 3, "MALFORMED_REQUEST"),
    ("POST", EXECUTE, '{"objective":"o","output_mode":"nope"}', JSON, 400, 3, "MALFORMED_REQUEST"),
    ("POST", EXECUTE, '{"objective":"o","wait":"soon"}', JSON, 400, 3, "MALFORMED_REQUEST"),
    ("POST", EXECUTE, b'{"objective":"\xff\xfe"}', JSON, 400, 3, "MALFORMED_REQUEST"),
    ("POST", EXECUTE, '{"hints":' * 300 + "1" + "}" * 300, JSON, 400, 3, "MALFORMED_REQUEST"),
    ("POST", CONFIRM, '{"project_id":"other"}', JSON, 400, 3, "MALFORMED_REQUEST"),
    ("POST", CONFIRM, "{}", {"content-type": "application/x-www-form-urlencoded"}, 415, 3, "WRONG_CONTENT_TYPE"),
    ("POST", CONFIRM, "{}", {"content-type": "text/plain"}, 415, 3, "WRONG_CONTENT_TYPE"),
    ("POST", CONFIRM, "{}", {"content-type": "application/jsonx"}, 415, 3, "WRONG_CONTENT_TYPE"),
    ("POST", CONFIRM, "{}", {"content-type": "text/plain; application/json"}, 415, 3, "WRONG_CONTENT_TYPE"),
    ("POST", CONFIRM, "{}", {"content-type": ""}, 415, 3, "WRONG_CONTENT_TYPE"),
    ("POST", CONFIRM, "{}", {**JSON, "origin": OTHER_ORIGIN}, 403, 7, "ORIGIN_REFUSED"),
    ("POST", CONFIRM, None, {"origin": "null"}, 403, 7, "ORIGIN_REFUSED"),
    ("POST", CONFIRM, "{}", {**JSON, "origin": "http://localhost.evil.example"}, 403, 7, "ORIGIN_REFUSED"),
    ("POST", EXECUTE, b" " * (2 * MIB + 1), JSON, 413, 3, "BODY_TOO_LARGE"),
    ("GET", "/conductor/tasks/a", None, {"x-big": "x" * 40_000}, 431, 3, "HEADERS_TOO_LARGE"),
    ("GET", "/conductor/tasks/a", None, {f"x-{i}": "1" for i in range(120)}, 431, 3, "HEADERS_TOO_LARGE"),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "code", "reason"), REFUSED)
async def test_what_the_edge_refuses_is_a_json_status_and_reaches_nobody(
    edge: Edge,
    method: str,
    path: str,
    body: str | bytes | None,
    headers: dict[str, str],
    status: int,
    code: int,
    reason: str,
) -> None:
    answer = await edge.ask(method, path, body, headers)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert (answer.json["code"], answer.reason) == (code, reason)
    assert answer.json["message"].strip()
    assert answer.json.keys() == {"code", "message", "details"}
    assert edge.script.requests == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "application/json; charset=utf-8"}, {"content-type": "Application/JSON"}],
)
async def test_json_may_be_unnamed_or_named_in_any_spelling(edge: Edge, headers: dict[str, str]) -> None:
    assert (await edge.ask("POST", CONFIRM, "{}", headers)).status == 200


async def test_a_body_of_just_under_the_limit_passes(edge: Edge) -> None:
    body = b'{"approved":true}' + b" " * (2 * MIB - 1000)
    assert (await edge.ask("POST", CONFIRM, body, JSON)).status == 200


@pytest.mark.parametrize(
    "line",
    [
        b"GET /conductor/../../etc/passwd HTTP/1.1\r\nhost: a\r\n",
        b"GET /conductor/tasks/%2e%2e/%2e%2e/ready HTTP/1.1\r\nhost: a\r\n",
        b"GET /conductor/tasks/a\x00b HTTP/1.1\r\nhost: a\r\n",
        b"GET http://127.0.0.1:9901/ready HTTP/1.1\r\nhost: a\r\n",
        b"GET /conductor/tasks/a HTTP/1.1\r\n",
        b"GET /conductor/tasks/a HTTP/1.0\r\n",
        b"CONNECT 127.0.0.1:9901 HTTP/1.1\r\nhost: a\r\n",
        b"TRACE / HTTP/1.1\r\nhost: a\r\n",
        b"NONSENSE\r\n",
        b"GET /conductor/tasks/a HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n",
        b"GET /conductor/tasks/a HTTP/1.1\r\nhost: a\r\nx : a\r\n",
        b"POST /conductor/execute HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n",
        b"POST /conductor/execute HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n",
        b"POST /conductor/execute HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n",
        b"GET /conductor/tasks/a HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n",
    ],
)
async def test_hostile_requests_are_refused_and_the_edge_lives(edge: Edge, line: bytes) -> None:
    answer = await edge.raw(line + b"connection: close\r\n\r\n")
    status = int(answer.split(b" ", 2)[1])
    assert 400 <= status < 500, answer[:200]
    assert edge.script.requests == []
    assert (await edge.ask("GET", "/conductor/tasks/after")).status == 200


async def test_the_callers_headers_reach_conductor_but_do_not_steer_envoy(edge: Edge) -> None:
    steering = {"x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-max-retries": "9", "x-forwarded-for": "6.6.6.6"}
    given = {**steering, "x-correlation-id": "c-7", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    answer = await edge.ask("GET", "/conductor/tasks/a", headers=given)
    (seen,) = edge.script.metadata
    assert seen["x-correlation-id"] == "c-7"
    assert seen["traceparent"] == given["traceparent"]
    assert seen["x-request-id"] == answer.headers["x-request-id"]
    assert "x-envoy-upstream-rq-timeout-ms" not in seen


async def test_grpc_timeout_is_a_deadline_for_json_too(edge: Edge) -> None:
    body = '{"objective":"wait","output_mode":1}'
    answer = await edge.ask("POST", EXECUTE, body, {**JSON, "grpc-timeout": "200m"})
    assert (answer.status, answer.json["code"]) == (504, 4)
    (remaining,) = edge.script.remaining
    assert remaining is not None
    assert remaining < 0.2


async def test_the_access_log_is_json_and_names_the_request(edge: Edge) -> None:
    answer = await edge.ask("GET", "/conductor/tasks/logged?x=1", headers={"x-correlation-id": "c-8"})
    lines: list[dict[str, Any]] = []
    async with asyncio.timeout(DEADLINE_S):
        while not lines:
            text = edge.stack.log("envoy").read_text()
            lines = [json.loads(line) for line in text.splitlines() if answer.headers["x-request-id"] in line]
            await asyncio.sleep(0.02)
    (line,) = lines
    assert (line["method"], line["path"], line["status"]) == ("GET", "/conductor/tasks/logged?x=1", 400)
    assert line["correlation_id"] == "c-8"


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
