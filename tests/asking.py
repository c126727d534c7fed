"""Researchers over a real loopback port for tests, the small collection they are asked about, and what always holds."""

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import error_pb2, researcher_pb2, researcher_pb2_grpc

from services.common.config import ResearcherSettings, load
from services.common.server import Service
from services.common.status import from_rpc_error
from services.researcher import units
from services.researcher.__main__ import assembled
from services.researcher.documents import Text
from services.researcher.extract.parsers import Parsers
from services.researcher.extract.reading import document
from services.researcher.service import FULL_NAME
from services.researcher.watch import Watch

PROJECT = Path(__file__).parents[1]
Kind = researcher_pb2.GapKind

GUIDE = """\
# Pump station guide

The station has three pumps and one reserve.

## Starting a pump

Open the inlet valve before the motor is started, otherwise the impeller runs dry. The controller waits until the
pressure sensor reports at least two bar. Only then does it close the bypass and raise the frequency to fifty hertz.

## Maintenance

The bearings are greased every 2,000 hours with lithium grease. The mechanical seal is replaced after 16,000 hours of
operation or when leakage exceeds five drops a minute, whichever comes first.
"""

NOTES = "The gearbox of the conveyor belt uses synthetic oil. It is changed once a year in spring.\n"

PAGE = """\
<!doctype html><html><head><title>Cooling tower</title><style>.ghost { display: none }</style></head><body>
<nav>Home</nav><h1>Cooling tower</h1><h2>Water treatment</h2>
<p>Biocide is dosed twice a week to keep legionella below one hundred units in each millilitre of basin water.</p>
<p style="display:none">Biocide secretalpha dosing.</p><p hidden>Biocide secretbravo dosing.</p>
<p aria-hidden="true">Biocide secretcharlie dosing.</p><p class="ghost">Biocide secretdelta dosing.</p>
<div style="position:absolute;left:-9999px">Biocide secretjuliet dosing.</div>
<p style="height:0; overflow: hidden">Biocide secretkilo dosing.</p><p style="clip:rect(0,0,0,0)">Biocide secretlima</p>
<p style="color: transparent">Biocide secretmike dosing.</p><p style="text-indent:-999em">Biocide secretnovember</p>
<script>var biocide = "secretecho";</script><style>/* biocide secretfoxtrot */</style>
<template><p>Biocide secretgolf dosing.</p></template><!-- biocide secrethotel --><noscript>secretindia</noscript>
</body></html>
"""


@dataclass
class Client:
    """A stub and its roots."""

    stub: Any
    root: Path

    async def call(self, objective: str, **fields: Any) -> list[researcher_pb2.ResearchResponse]:
        request = researcher_pb2.ResearchRequest(objective=objective, **fields)
        return [response async for response in self.stub.Research(request, timeout=fields.get("timeout", 30))]

    async def ask(self, objective: str, **fields: Any) -> researcher_pb2.ResearchResult:
        responses = await self.call(objective, **fields)
        assert "result" not in {response.WhichOneof("event") for response in responses[:-1]}
        assert [response.sequence for response in responses] == list(range(1, len(responses) + 1))
        assert responses[-1].WhichOneof("event") == "result"
        check_result(responses[-1].result)
        return responses[-1].result

    async def refused(self, objective: str = "pump", **fields: Any) -> error_pb2.TypedError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(objective, **fields)
        error = from_rpc_error(caught.value)
        assert error is not None
        return error


Serve = Callable[..., Coroutine[Any, Any, Client]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts Researchers; by default below tmp_path/docs with the small corpus."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*roots: Path, **environ: str) -> Client:
            paths = roots or (small_corpus(tmp_path / "docs"),)
            names = {
                "RESEARCHER_LISTEN": "127.0.0.1:0",
                "RESEARCHER_ROOTS": os.pathsep.join(map(str, paths)),
                "RESEARCHER_HOME": str(tmp_path / "home"),
                "RESEARCHER_REPORTS": str(tmp_path / "reports"),
            }
            settings = load(ResearcherSettings, names | {f"RESEARCHER_{k.upper()}": v for k, v in environ.items()})
            servicer = await stack.enter_async_context(assembled(settings))
            service = Service(settings.listen, [FULL_NAME])
            researcher_pb2_grpc.add_ResearcherServicer_to_server(servicer, service.server)
            await service.start()
            stack.push_async_callback(service.stop, 0)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{service.port}"))
            return Client(researcher_pb2_grpc.ResearcherStub(channel), paths[0])

        yield start


def small_corpus(root: Path) -> Path:
    (root / "plant").mkdir(parents=True)
    (root / "guide.md").write_text(GUIDE)
    (root / "plant" / "notes.txt").write_text(NOTES)
    (root / "plant" / "tower.html").write_text(PAGE)
    return root


def check_result(result: researcher_pb2.ResearchResult) -> None:
    """What holds for every result whatever was asked."""
    for finding in result.findings:
        assert finding.citations
        assert finding.statement == " ".join(finding.citations[0].quote.split())
        for citation in finding.citations:
            assert citation.quote and len(citation.quote) <= 2_000
            assert len(citation.quote.split()) <= units.MAX_WORDS
            assert not citation.uri.startswith("/") and ".." not in citation.uri.split("/")
            assert citation.locator.char_end - citation.locator.char_start == len(citation.quote)
    if len(result.sub_questions) == 1:  # of several parts, the findings of each stand together
        scores = [finding.score for finding in result.findings]
        assert scores == sorted(scores, reverse=True)
    if not result.findings:
        assert kinds(result) & {Kind.GAP_KIND_NOT_FOUND}


def check_quotes(root: Path, result: researcher_pb2.ResearchResult) -> int:
    """Every quote stands in its file (as extracted, for HTML) at its characters and lines; returns how many."""
    citations = [citation for finding in result.findings for citation in finding.citations]
    for citation in citations:
        path = root.parent / citation.uri
        data = path.read_bytes()
        text = read_text(path)
        place = citation.locator
        assert citation.source_sha256 == hashlib.sha256(data).hexdigest()
        assert text[place.char_start : place.char_end] == citation.quote
        lines = text.split("\n")[place.line_start - 1 : place.line_end]
        assert citation.quote in "\n".join(lines)
        assert len(lines) == citation.quote.count("\n") + 1
    return len(citations)


def extracted(name: str, data: bytes) -> Text:
    parsers = Parsers()
    try:
        return document(name, "", data, parsers, Watch(30))
    finally:
        parsers.close()


def read_text(path: Path) -> str:
    return extracted(path.name, path.read_bytes()).text


def kinds(result: researcher_pb2.ResearchResult) -> set[int]:
    return {gap.kind for gap in result.gaps}


def gaps(result: researcher_pb2.ResearchResult, kind: Kind.ValueType) -> dict[str, str]:
    return {gap.subject: gap.detail for gap in result.gaps if gap.kind == kind}
