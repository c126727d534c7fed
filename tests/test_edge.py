"""envoy.yaml in a real Envoy, in front of a scripted Conductor on loopback."""

import asyncio
import json
import re
import subprocess
from typing import Any

import pytest
import yaml
from conductor.v1 import conductor_pb2, task_pb2
from google.api import annotations_pb2

from ops import envoy
from ops.layout import DRAIN_S
from services.common.config import ConductorSettings, load
from tests.edge_at_hand import DEADLINE_S, EXECUTE, MIB, OTHER_ORIGIN, Edge, edge, shared
from tests.scripted import MISSING

__all__ = ["edge", "shared"]


pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}

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


@pytest.mark.parametrize(
    "host",
    ["10.1.2.3", "[::1]:8080", "LocalHost:8080", "conductor", "envoy:8080", "a.localhost", "host.docker.internal:1"],
)
async def test_reads_are_served_under_names_that_no_other_site_can_have(edge: Edge, host: str) -> None:
    assert (await edge.ask("GET", "/conductor/tasks/t-9", headers={"host": host})).status == 200


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
    ("GET", "/conductor/tasks/a", None, {"host": "evil.example:8080"}, 403, 7, "ORIGIN_REFUSED"),
    ("GET", "/conductor/events", None, {"host": "127.0.0.1.evil.example"}, 403, 7, "ORIGIN_REFUSED"),
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
