"""Files of tasks through a real Envoy, over HTTP, gRPC and the command line."""

import asyncio
import base64
import hashlib
import http.client
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

from client.api import ConductorClient
from client.errors import ConductorError
from ops.stack import Stack
from tests.conftest import Running
from tests.fakes import Workers
from tests.report_writers import running
from tests.scripted_conductor import COMMAND
from tests.test_output_kept import OUT, chunks, commands, conducting, ends, writes

MIB = 1024 * 1024
# HTML that would run if a browser took it for a page.
HOSTILE = b"<script>alert(1)</script>\n\x1b[31mred\n"


@pytest.fixture
async def edge(tmp_path: Path, workers: Workers) -> AsyncIterator[tuple[Running, str]]:
    with running(tmp_path / "reports") as writer:
        async with conducting(tmp_path, workers, writer.target) as conductor:
            environ = {"CONDUCTOR_LISTEN": f"127.0.0.1:{conductor.service.port}"}
            async with Stack(tmp_path / "edge", only=["envoy"], environ=environ) as stack:
                yield conductor, stack.addresses["envoy"]


async def ran(conductor: Running, workers: Workers, output: bytes) -> str:
    workers.run = writes(*chunks(OUT, output), ends(exit_code=0))
    answer = await conductor.execute(hints=commands(), wait=duration_pb2.Duration(seconds=20))
    return str(answer.task_id)


def get(address: str, path: str, slowly: bool = False) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        if not slowly:
            return answer.status, headers, answer.read()
        body = bytearray()
        while piece := answer.read(1000):
            body += piece
        return answer.status, headers, bytes(body)
    finally:
        connection.close()


async def test_a_file_comes_whole_over_http_and_grpc(edge: tuple[Running, str], workers: Workers) -> None:
    conductor, address = edge
    output = os.urandom(20 * MIB)
    task_id = await ran(conductor, workers, output)
    path = f"/conductor/tasks/{task_id}/artifacts/command-1.stdout"
    for slowly in (False, True):
        status, headers, body = await asyncio.to_thread(get, address, path, slowly)
        assert (status, headers["content-type"]) == (200, "application/octet-stream")
        assert hashlib.sha256(body).digest() == hashlib.sha256(output).digest()
    with ConductorClient(address) as client:
        assert await asyncio.to_thread(lambda: b"".join(client.artifact(task_id, "command-1.stdout"))) == output


async def test_a_large_report_and_its_events_come_whole_over_http(edge: tuple[Running, str], workers: Workers) -> None:
    conductor, address = edge
    task_id = await ran(conductor, workers, b"0123456789abcde\n" * 100_000)
    status, headers, body = await asyncio.to_thread(get, address, f"/conductor/tasks/{task_id}/report")
    assert (status, headers["content-type"]) == (200, "text/markdown; charset=utf-8")
    assert len(body) > 65_536 and b"conductor-report request-sha256=" in body[-200:]
    last = (await conductor.events(task_id))[-1].sequence

    def follow() -> bytes:
        connection = http.client.HTTPConnection(address, timeout=20)
        connection.request("GET", f"/conductor/tasks/{task_id}/events?after_sequence=0")
        answer, seen = connection.getresponse(), b""
        while b"\nid: %d\n" % last not in seen:
            seen += answer.readline()
        connection.close()
        return seen

    seen = await asyncio.to_thread(follow)
    data = [json.loads(line[6:]) for line in seen.splitlines() if line.startswith(b"data: ")]
    record = next(event for event in data if "worker_result" in event)["worker_result"]["command"]
    assert len(base64.b64decode(record["stdout"])) == 256 * 1024 and record["stdout_cut_bytes"] == "1337856"


async def test_a_browser_takes_no_output_for_a_page(edge: tuple[Running, str], workers: Workers) -> None:
    conductor, address = edge
    task_id = await ran(conductor, workers, HOSTILE)
    path = f"/conductor/tasks/{task_id}/artifacts/command-1.stdout"
    status, headers, body = await asyncio.to_thread(get, address, path)
    assert (status, body) == (200, HOSTILE)
    assert headers["content-type"] == "text/plain; charset=utf-8" and headers["x-content-type-options"] == "nosniff"
    task = json.loads((await asyncio.to_thread(get, address, f"/conductor/tasks/{task_id}"))[2])
    assert [(file["name"], file["size_bytes"]) for file in task["artifacts"]] == [
        ("command-1.stdout", str(len(HOSTILE)))
    ]
    for name, wanted, reason in (("command-1.stderr", 404, "REPORT_NOT_FOUND"), ("UPPER", 400, "INVALID_REQUEST")):
        status, headers, body = await asyncio.to_thread(get, address, path.replace("command-1.stdout", name))
        assert (status, json.loads(body)["details"][0]["reason"]) == (wanted, reason)
        assert headers["content-type"] == "application/json"
    await check_the_command_line(address, task_id)


async def check_the_command_line(address: str, task_id: str) -> None:
    def conductor(*words: str) -> "subprocess.CompletedProcess[bytes]":
        command = [*COMMAND, *words, "--target", address]
        return subprocess.run(command, capture_output=True, timeout=20, check=False)

    async def told(*words: str) -> Any:
        return await asyncio.to_thread(conductor, *words)

    assert (await told("artifact", task_id, "command-1.stdout")).stdout == HOSTILE
    assert f"  command-1.stdout, {len(HOSTILE)} bytes" in (await told("task", task_id)).stdout.decode()
    watched = (await told("watch", task_id)).stdout.decode()
    assert "    | <script>alert(1)</script>\n    | ␛[31mred\n" in watched and "\x1b" not in watched
    missing = await told("artifact", task_id, "command-9.stdout")
    assert missing.returncode == 3 and b"REPORT_NOT_FOUND" in missing.stderr and not missing.stdout
    with ConductorClient(address) as client, pytest.raises(ConductorError, match="no artefact"):
        await asyncio.to_thread(next, client.artifact(task_id, "command-9.stdout"))
