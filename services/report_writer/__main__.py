"""Starts the ReportWriter service: `python -m services.report_writer`."""

import asyncio
import logging

from conductor.v1 import report_writer_pb2_grpc

from services.common.config import ReportWriterSettings, load
from services.common.server import Service, run
from services.report_writer.files import Folder
from services.report_writer.service import FULL_NAME, ReportWriter

log = logging.getLogger(__name__)


async def serve(stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then finishes the calls under way."""
    settings = load(ReportWriterSettings)
    folder = await asyncio.to_thread(Folder.open, settings.root)
    service = Service(settings.listen, [FULL_NAME], max_calls=settings.max_calls, multiplexed=True)
    writer = ReportWriter(folder, settings.max_bytes, settings.keep_files)
    report_writer_pb2_grpc.add_ReportWriterServicer_to_server(writer, service.server)
    await service.start()
    log.info("listening on %s, port %d, reports in %s", settings.listen, service.port, settings.root)
    await stop.wait()
    await service.stop(settings.grace)


def main() -> None:
    """Runs the service until SIGTERM or SIGINT."""
    run("report_writer", serve)


if __name__ == "__main__":
    main()
