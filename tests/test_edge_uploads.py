"""Data uploaded to a project through a real Envoy, with a real ReportWriter behind it."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from conductor.v1 import conductor_pb2

from ops import envoy
from ops.stack import Stack
from tests import conftest
from tests.conftest import Running, until
from tests.fakes import Workers
from tests.test_output_kept import conducting
from tests.test_report_writer import running

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
LIMIT = 24 * MIB
PENGUINS = b"species,mass\nAdelie,3750\n"


@dataclass(frozen=True)
class Edge:
    conductor: Running
    address: str
    reports: Path
    project: str = "p"

    def ask(
        self,
        name: str,
        body: bytes | Iterable[bytes],
        method: str = "PUT",
        **headers: str,
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            path = f"/api/projects/{self.project}/data/{name}"
            connection.request(method, path, body, named, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    async def upload(self, name: str, body: bytes | Iterable[bytes] = PENGUINS, **options: str) -> tuple[int, Any]:
        return await asyncio.to_thread(lambda: self.ask(name, body, **options))

    async def listed(self) -> dict[str, tuple[int, str]]:
        state = await self.conductor.stub.GetState(conductor_pb2.GetStateRequest(project_id=self.project))
        return {each.name: (each.size_bytes, each.sha256) for each in state.uploads}

    def kept(self) -> list[bytes]:
        return [path.read_bytes() for path in self.reports.glob("*/data")]

    def parts(self) -> list[Path]:
        return list(self.reports.glob(".parts/*"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    folder, workers = tmp_path_factory.mktemp("uploads"), await Workers().start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "MAX_UPLOAD", LIMIT)
        async with serving(folder, workers) as edge:
            yield edge
    await workers.stop()


@contextlib.asynccontextmanager
async def serving(folder: Path, workers: Workers) -> AsyncIterator[Edge]:
    with running(folder / "reports") as writer:
        async with conducting(folder, workers, writer.target) as conductor:
            environ = {"CONDUCTOR_LISTEN": f"127.0.0.1:{conductor.service.port}"}
            async with Stack(folder / "edge", only=["envoy"], environ=environ) as stack:
                yield Edge(conductor, stack.addresses["envoy"], folder / "reports")


@pytest.fixture
def edge(shared: Edge, request: pytest.FixtureRequest) -> Edge:
    """The shared one, with a project of the test's own and nothing kept."""
    for folder in shared.reports.glob("[!.]*"):
        shutil.rmtree(folder)
    return replace(shared, project=f"p-{sha256(request.node.name.encode())[:16]}")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def in_pieces(data: bytes, size: int, pause: float = 0) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        time.sleep(pause)  # what is tested is a caller who is slow
        yield data[start : start + size]


async def test_a_file_is_taken_as_it_is_whatever_its_type(edge: Edge) -> None:
    for number, kind in enumerate(("", "text/csv", "application/json", "application/x-www-form-urlencoded", "x/y;z=1")):
        method = ("PUT", "POST")[number % 2]
        status, answer = await edge.upload(
            f"f{number}.csv", PENGUINS, method=method, **({"content_type": kind} if kind else {})
        )
        assert status == 200, answer
        assert (answer["name"], answer["size_bytes"], answer["sha256"]) == (
            f"f{number}.csv",
            str(len(PENGUINS)),
            sha256(PENGUINS),
        )
    assert await edge.listed() == {f"f{number}.csv": (len(PENGUINS), sha256(PENGUINS)) for number in range(5)}
    told = [
        event.data_uploaded.name
        for event in await edge.conductor.events(project_id=edge.project)
        if event.HasField("data_uploaded")
    ]
    assert told == [f"f{number}.csv" for number in range(5)]
    assert edge.kept() == [PENGUINS] * 5
    assert (await edge.upload("f.csv?scope.user_id=ada&scope.desktop_id=desk&correlation_id=c-7", PENGUINS))[0] == 200
    [*_, event] = await edge.conductor.events(project_id=edge.project)
    assert (event.scope.user_id, event.scope.desktop_id, event.correlation_id) == ("ada", "desk", "c-7")


async def test_more_than_the_edge_buffers_comes_whole_with_and_without_a_length(edge: Edge) -> None:
    data = os.urandom(20 * MIB + 1)
    assert (await edge.upload("length.bin", data))[0] == 200
    assert (await edge.upload("chunks.bin", in_pieces(data, 300_001)))[0] == 200
    assert (await edge.upload(f"right.bin?sha256={sha256(data)}", data))[0] == 200
    assert await edge.listed() == dict.fromkeys(("length.bin", "chunks.bin", "right.bin"), (len(data), sha256(data)))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
@pytest.mark.parametrize("how", [["-T"], ["--data-binary"], ["--http2-prior-knowledge", "-T"], ["-X", "POST", "-T"]])
async def test_the_forms_of_curl(edge: Edge, tmp_path: Path, how: list[str]) -> None:
    data = os.urandom(3 * MIB)
    (tmp_path / "data.csv").write_bytes(data)
    source = f"{'@' if how[-1] == '--data-binary' else ''}{tmp_path / 'data.csv'}"
    command = ["curl", "-sS", *how, source, f"http://{edge.address}/api/projects/{edge.project}/data/data.csv"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20, check=False)
    assert json.loads(done.stdout)["sha256"] == sha256(data), done.stderr
    assert await edge.listed() == {"data.csv": (len(data), sha256(data))}


BAD = "0" * 64


@pytest.mark.parametrize(
    ("name", "body", "reason", "word"),
    [
        ("x", b"", "UPLOAD_REFUSED", "empty"),
        (f"x?sha256={BAD}", PENGUINS, "UPLOAD_REFUSED", sha256(PENGUINS)),
        (f"x?sha256={BAD}", b"x" * 5 * MIB, "UPLOAD_REFUSED", sha256(b"x" * 5 * MIB)),
        ("x?sha256=short", PENGUINS, "INVALID_REQUEST", "sha256"),
        ("x", bytes(LIMIT + 1), "UPLOAD_REFUSED", "CONDUCTOR_MAX_UPLOAD"),
        ("x?nobody=knows", PENGUINS, "MALFORMED_REQUEST", "nobody"),
        ("a%20b", PENGUINS, "INVALID_REQUEST", "name"),
        (".hidden", PENGUINS, "INVALID_REQUEST", "name"),
        ("%C3%A4", PENGUINS, "INVALID_REQUEST", "name"),
        ("a%0Ab", PENGUINS, "INVALID_REQUEST", "name"),
        ("n" * 129, PENGUINS, "INVALID_REQUEST", "name"),
        ("..%2f..%2fetc", PENGUINS, "MALFORMED_REQUEST", ""),
        ("a%00b", PENGUINS, "MALFORMED_REQUEST", ""),
    ],
)
async def test_what_is_refused_is_refused_as_json_and_leaves_nothing(
    edge: Edge, name: str, body: bytes, reason: str, word: str
) -> None:
    status, answer = await edge.upload(name, body)
    assert (status, answer["details"][0]["reason"]) == (400, reason)
    assert word in answer["message"]
    assert not edge.kept() and not edge.parts() and not await edge.listed()


async def test_pages_of_other_sites_and_other_verbs_upload_nothing(edge: Edge) -> None:
    for method in ("PUT", "POST"):
        status, answer = await edge.upload("x", PENGUINS, method=method, origin="http://evil.example")
        assert (status, answer["details"][0]["reason"]) == (403, "ORIGIN_REFUSED")
    for method, expected in (("GET", 404), ("DELETE", 404), ("PATCH", 404)):
        assert (await edge.upload("x", PENGUINS, method=method))[0] == expected
    assert (await edge.upload("x", PENGUINS, method="PUT", origin="http://localhost:3000"))[0] == 200
    assert len(edge.kept()) == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_what_is_cut_off_half_way_leaves_nothing(edge: Edge, chunked: bool) -> None:
    piece = b"x" * 3 * MIB
    head = "transfer-encoding: chunked" if chunked else f"content-length: {10 * MIB}"
    request = f"PUT /api/projects/{edge.project}/data/half.csv HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n".encode()
    body = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece

    def begin() -> socket.socket:
        connection = socket.create_connection(envoy.split(edge.address), timeout=10)
        connection.sendall(request + body)
        return connection

    connection = await asyncio.to_thread(begin)
    await until(lambda: edge.parts())
    connection.close()
    await until(lambda: not edge.parts())
    assert not edge.kept() and not await edge.listed()
    assert (await edge.upload("half.csv"))[0] == 200  # and it can be sent again


async def test_uploads_of_one_name_at_once_are_each_whole_and_one_of_them_is_listed(edge: Edge) -> None:
    several = [bytes([65 + number]) * (MIB + number) for number in range(6)]
    answers = await asyncio.gather(*(edge.upload("one.csv", data) for data in several))
    assert [status for status, _ in answers] == [200] * 6
    assert [answer["sha256"] for _, answer in answers] == [sha256(data) for data in several]
    assert sorted(edge.kept()) == several
    assert (await edge.listed())["one.csv"] in [(len(data), sha256(data)) for data in several]
    last = (await edge.conductor.events(project_id=edge.project))[-1].data_uploaded
    assert await edge.listed() == {"one.csv": (last.size_bytes, last.sha256)}


async def test_an_upload_has_hours_and_all_else_minutes() -> None:
    config = yaml.safe_load(envoy.TEMPLATE.read_text())
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert "request_timeout" not in manager, "it would hold for uploads too"
    longest = float(manager["common_http_protocol_options"]["max_stream_duration"].rstrip("s"))
    assert 60 + 75 <= longest < 300
    routes = [each for each in manager["route_config"]["virtual_hosts"][0]["routes"] if "route" in each]
    uploads = [each for each in routes if "data" in str(each["match"]) or "UploadData" in str(each["match"])]
    assert len(uploads) == 2
    for each in uploads:
        assert float(each["route"]["max_stream_duration"]["max_stream_duration"].rstrip("s")) >= 3600
        assert each["typed_per_filter_config"]["envoy.filters.http.buffer"]["disabled"] is True
        # Nothing of it is sent again once a replica may have begun with it.
        assert set(each["route"]["retry_policy"]["retry_on"].split(",")) == {
            *("connect-failure", "refused-stream", "reset-before-request")
        }
    endless = [each["route"] for each in routes if each["route"]["timeout"] == "0s"]
    assert all(each["max_stream_duration"] == {"max_stream_duration": "0s"} for each in endless)


async def test_an_upload_may_take_longer_than_any_other_request(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.yaml"
    text = envoy.TEMPLATE.read_text()
    assert text.count("max_stream_duration: 135s") == 1
    short.write_text(text.replace("max_stream_duration: 135s", "max_stream_duration: 1s"))
    monkeypatch.setattr(envoy, "TEMPLATE", short)
    async with serving(tmp_path, workers) as slow:
        status, answer = await slow.upload("slow.csv", in_pieces(PENGUINS * 3, 25, 0.7))
        assert (status, answer["size_bytes"]) == (200, str(len(PENGUINS) * 3))
        status, answer = await asyncio.to_thread(_drip, slow.address)
        assert (status, answer["details"][0]["reason"]) == (408, "SLOW_REQUEST")


def _drip(address: str) -> tuple[int, Any]:
    """Begins a request that is one message, and never ends it."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.putrequest("POST", "/api/projects/p/confirm")
        connection.putheader("content-length", "100")
        connection.putheader("content-type", "application/json")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
