"""Trivial workers for `make bench`: all three services on one port, each answering at once.

The Researcher gives one 2 KB finding; the ReportWriter writes a file (temporary name, then rename, no fsync), as the
job of the durable-orchestration peers does. Usage: python -m bench.workers ADDRESS FOLDER
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from conductor.v1 import report_writer_pb2, report_writer_pb2_grpc, researcher_pb2, researcher_pb2_grpc

from services.common.server import Context, Service, run

FINDING_BYTES = 2048


class Trivial(researcher_pb2_grpc.ResearcherServicer, report_writer_pb2_grpc.ReportWriterServicer):
    """Answers everything at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        quote = "x" * FINDING_BYTES
        citation = researcher_pb2.Citation(uri="bench.md", title="bench", quote=quote)
        finding = researcher_pb2.Finding(statement="x", citations=[citation], score=1.0)
        self._result = researcher_pb2.ResearchResponse(result=researcher_pb2.ResearchResult(findings=[finding]))

    async def Research(
        self, request: researcher_pb2.ResearchRequest, context: Context
    ) -> AsyncIterator[researcher_pb2.ResearchResponse]:
        yield self._result

    async def WriteReport(
        self, request: report_writer_pb2.WriteReportRequest, context: Context
    ) -> report_writer_pb2.WriteReportResponse:
        temporary = self._folder / f"{request.task_id}.tmp"
        temporary.write_text(request.findings[0].citations[0].quote)
        temporary.rename(self._folder / f"{request.task_id}.md")
        return report_writer_pb2.WriteReportResponse(path=f"reports/{request.task_id}.md")

    async def GetReport(
        self, request: report_writer_pb2.GetReportRequest, context: Context
    ) -> report_writer_pb2.GetReportResponse:
        content = (self._folder / Path(request.path).name).read_bytes()
        return report_writer_pb2.GetReportResponse(path=request.path, content=content)


async def serve(stop: asyncio.Event) -> None:
    address, folder = sys.argv[1], Path(sys.argv[2])
    service = Service(address, ["conductor.v1.Researcher", "conductor.v1.ReportWriter"])
    workers = Trivial(folder)
    researcher_pb2_grpc.add_ResearcherServicer_to_server(workers, service.server)
    report_writer_pb2_grpc.add_ReportWriterServicer_to_server(workers, service.server)
    await service.start()
    await stop.wait()
    await service.stop(0)


if __name__ == "__main__":
    run("bench-workers", serve)
