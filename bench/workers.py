"""Trivial workers for `make bench`, a process each: `python -m bench.workers researcher|report_writer [LEDGER]`.

The Researcher gives one 2 KB finding; the ReportWriter writes a file (temporary name, then rename, no fsync), as the
job of the durable-orchestration peers does. Address and folder come from the settings of the service each stands for.

With a LEDGER the steps take the time of the peers' crash test, and each says there when it starts and when it is done,
under the task's correlation id. What a process has written there outlives its kill -9.
"""

import asyncio
import os
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from conductor.v1 import report_writer_pb2, report_writer_pb2_grpc, researcher_pb2, researcher_pb2_grpc

from services.common.boundary import Context
from services.common.config import ReportWriterSettings, ResearcherSettings, load
from services.common.server import Service, run

FINDING_BYTES = 2048
RESEARCH_S = (0.1, 0.6)  # of the crash test; the same correlation id always takes the same time
REPORT_S = 0.3


class Ledger:
    """Which steps began and ended, one line each, in one file for all processes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *words: str) -> None:
        os.write(self._file, (" ".join(words) + "\n").encode())


def seconds_of(correlation_id: str) -> float:
    """Returns how long research for a task takes in the crash test."""
    low, high = RESEARCH_S
    return low + (high - low) * (zlib.crc32(correlation_id.encode()) % 1000) / 1000


def finding(size: int = FINDING_BYTES) -> researcher_pb2.ResearchResult:
    """Returns what the research of every task finds."""
    citation = researcher_pb2.Citation(uri="bench.md", title="bench", quote="x" * size)
    return researcher_pb2.ResearchResult(
        findings=[researcher_pb2.Finding(statement="x", citations=[citation], score=1.0)]
    )


class Researcher(researcher_pb2_grpc.ResearcherServicer):
    """Answers at once, or after the time of the crash test."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger
        self._answer = researcher_pb2.ResearchResponse(result=finding())

    async def Research(
        self, request: researcher_pb2.ResearchRequest, context: Context
    ) -> AsyncIterator[researcher_pb2.ResearchResponse]:
        if self._ledger is not None:
            self._ledger.note("research", request.correlation_id, "started")
            await asyncio.sleep(seconds_of(request.correlation_id))
            self._ledger.note("research", request.correlation_id, "done")
        yield self._answer


class ReportWriter(report_writer_pb2_grpc.ReportWriterServicer):
    """Writes the finding's text into a file, at once or after the time of the crash test."""

    def __init__(self, folder: Path, ledger: Ledger | None) -> None:
        self._folder = folder
        self._ledger = ledger
        folder.mkdir(parents=True, exist_ok=True)

    async def WriteReport(
        self, request: report_writer_pb2.WriteReportRequest, context: Context
    ) -> report_writer_pb2.WriteReportResponse:
        task = request.provenance.correlation_id
        if self._ledger is not None:
            self._ledger.note("report", task, "started")
            await asyncio.sleep(REPORT_S)
        temporary = self._folder / f"{request.task_id}.tmp"
        temporary.write_text(request.findings[0].citations[0].quote)
        temporary.rename(self._folder / f"{request.task_id}.md")
        if self._ledger is not None:
            self._ledger.note("report", task, "done")
        return report_writer_pb2.WriteReportResponse(path=f"reports/{request.task_id}.md")

    async def GetReport(
        self, request: report_writer_pb2.GetReportRequest, context: Context
    ) -> report_writer_pb2.GetReportResponse:
        content = (self._folder / Path(request.path).name).read_bytes()
        return report_writer_pb2.GetReportResponse(path=request.path, content=content)

    async def WriteArtifact(
        self, request: report_writer_pb2.WriteArtifactRequest, context: Context
    ) -> report_writer_pb2.WriteArtifactResponse:
        raise AssertionError("no task of a benchmark runs a command, so none has an artefact")

    def GetArtifact(
        self, request: report_writer_pb2.GetArtifactRequest, context: Context
    ) -> AsyncIterator[report_writer_pb2.GetArtifactResponse]:
        raise AssertionError("no task of a benchmark runs a command, so none has an artefact")


def _researcher(ledger: Ledger | None) -> Service:
    service = Service(load(ResearcherSettings).listen, ["conductor.v1.Researcher"], multiplexed=True)
    worker = Researcher(ledger)  # type: ignore[abstract]  # the benchmark calls nothing but Research
    researcher_pb2_grpc.add_ResearcherServicer_to_server(worker, service.server)
    return service


def _report_writer(ledger: Ledger | None) -> Service:
    settings = load(ReportWriterSettings)
    service = Service(settings.listen, ["conductor.v1.ReportWriter"], multiplexed=True)
    writer = ReportWriter(settings.root, ledger)  # type: ignore[abstract]  # nor a run of a project
    report_writer_pb2_grpc.add_ReportWriterServicer_to_server(writer, service.server)
    return service


ROLES: dict[str, Callable[[Ledger | None], Service]] = {"researcher": _researcher, "report_writer": _report_writer}


async def serve(stop: asyncio.Event) -> None:
    role, *ledger = sys.argv[1:]
    service = ROLES[role](Ledger(Path(ledger[0])) if ledger else None)
    await service.start()
    await stop.wait()
    await service.stop(0)


if __name__ == "__main__":
    run(f"bench-{sys.argv[1]}", serve)
