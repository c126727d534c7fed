"""Workers that follow a script, on real loopback servers, and a store that fails around its commit."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from conductor.v1 import (
    report_writer_pb2,
    report_writer_pb2_grpc,
    researcher_pb2,
    researcher_pb2_grpc,
    task_pb2,
    terminal_pb2,
    terminal_pb2_grpc,
)

from services.common.server import Service
from services.conductor.store.base import Append, Outcome, StoreUnavailable

# What a script does with one request: returns the messages of the answer, if need be one by one, or raises Refusal.
Script = Callable[[Any], Awaitable[Sequence[Any] | AsyncIterator[Any]]]


def finding(text: str = "Water boils at 100 °C.") -> researcher_pb2.Finding:
    citation = researcher_pb2.Citation(uri="docs/water.md", title="Water", quote=text, source_sha256="0" * 64)
    return researcher_pb2.Finding(statement=text, citations=[citation], score=1.0)


def research_result(*findings: researcher_pb2.Finding) -> researcher_pb2.ResearchResponse:
    return researcher_pb2.ResearchResponse(result=researcher_pb2.ResearchResult(findings=findings))


def command_result(exit_code: int = 0, stdout: bytes = b"") -> list[terminal_pb2.RunResponse]:
    chunk = terminal_pb2.OutputChunk(stream=terminal_pb2.OUTPUT_STREAM_STDOUT, data=stdout)
    result = terminal_pb2.CommandResult(end=terminal_pb2.COMMAND_END_EXITED, exit_code=exit_code)
    return [terminal_pb2.RunResponse(chunk=chunk), terminal_pb2.RunResponse(result=result)]


async def finds(_: Any) -> Sequence[Any]:
    return [research_result(finding())]


async def finds_nothing(_: Any) -> Sequence[Any]:
    return [research_result()]


async def runs(_: Any) -> Sequence[Any]:
    return command_result(stdout=b"hello\n")


async def writes(request: Any) -> Sequence[Any]:
    return [report_writer_pb2.WriteReportResponse(path=f"reports/{request.task_id}.md", sha256="0" * 64, size_bytes=1)]


async def takes(request: Any) -> Sequence[Any]:
    """Takes a piece of a file and keeps nothing; right for files in one piece."""
    if not request.sha256:
        return [report_writer_pb2.WriteArtifactResponse()]
    file = {"name": request.name, "size_bytes": len(request.data), "sha256": hashlib.sha256(request.data).hexdigest()}
    return [report_writer_pb2.WriteArtifactResponse(artifact=report_writer_pb2.Artifact(**file))]


async def hangs(_: Any) -> Sequence[Any]:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets the event")


@dataclass
class Workers(
    researcher_pb2_grpc.ResearcherServicer,
    terminal_pb2_grpc.TerminalServicer,
    report_writer_pb2_grpc.ReportWriterServicer,
):
    """The three workers on one port; scripts may be replaced at any time. `seen` holds every request, but for those
    that carry pieces of files: they are in `pieces`.

    Not multiplexed, they are called rpc by rpc, as somebody else's workers may have to be.
    """

    research: Script = finds
    run: Script = runs
    write: Script = writes
    store: Script = takes
    report: bytes = b"# A report\n"
    seen: list[Any] = field(default_factory=list)
    pieces: list[Any] = field(default_factory=list)
    cancelled: list[Any] = field(default_factory=list)
    port: int = 0
    multiplexed: bool = True

    async def Research(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._play(self.research, request):
            yield message

    async def Run(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._play(self.run, request):
            yield message

    async def WriteReport(self, request: Any, context: Any) -> Any:
        async for message in self._play(self.write, request):
            return message
        raise AssertionError("the script gave no answer")

    async def GetReport(self, request: Any, context: Any) -> Any:
        return report_writer_pb2.GetReportResponse(path=request.path, content=self.report)

    async def WriteArtifact(self, request: Any, context: Any) -> Any:
        self.pieces.append(request)
        said: Any = await self.store(request)
        return said[0]

    async def _play(self, script: Script, request: Any) -> AsyncIterator[Any]:
        self.seen.append(request)
        try:
            said = await script(request)
            if isinstance(said, AsyncIterator):
                async for message in said:
                    yield message
                return
            for message in said:
                yield message
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise

    def count(self, kind: type) -> int:
        """Returns how many requests of a type have come."""
        return sum(isinstance(request, kind) for request in self.seen)

    async def start(self, port: int = 0) -> "Workers":
        names = [f"conductor.v1.{name}" for name in ("Researcher", "Terminal", "ReportWriter")]
        self.service = Service(f"127.0.0.1:{port}", names, multiplexed=self.multiplexed)
        researcher_pb2_grpc.add_ResearcherServicer_to_server(self, self.service.server)
        terminal_pb2_grpc.add_TerminalServicer_to_server(self, self.service.server)
        report_writer_pb2_grpc.add_ReportWriterServicer_to_server(self, self.service.server)
        await self.service.start()
        self.port = self.service.port
        return self

    async def stop(self) -> None:
        await self.service.stop(0)

    def targets(self) -> dict[task_pb2.Capability.ValueType, str]:
        target = f"127.0.0.1:{self.port}"
        return dict.fromkeys(
            (task_pb2.CAPABILITY_RESEARCHER, task_pb2.CAPABILITY_TERMINAL, task_pb2.CAPABILITY_REPORT_WRITER), target
        )


class FailingStore:
    """A store that fails on command, before or after its commit; otherwise the real one it stands before."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.fail_before = False
        self.fail_after = False

    async def append(self, append: Append) -> Outcome:
        if self.fail_before:
            raise StoreUnavailable("FullError: database or disk is full")
        outcome = await self._real.append(append)
        if self.fail_after:
            raise StoreUnavailable("ConnectionDoesNotExistError: connection was closed")
        return outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
