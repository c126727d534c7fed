"""The real Envoy in front of a scripted Conductor."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from ops import envoy
from ops.stack import Stack
from tests.scripted import Script, serve_script

MIB = 1024 * 1024

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
            connection.putrequest(method, path, skip_host="host" in headers)
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


EXECUTE = "/conductor/execute"
