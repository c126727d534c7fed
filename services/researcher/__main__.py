"""Starts the Researcher service: `python -m services.researcher`."""

import asyncio
import logging

from conductor.v1 import researcher_pb2_grpc

from services.common.config import ResearcherSettings, load
from services.common.server import Service, run
from services.researcher.corpus import Corpus
from services.researcher.html import HtmlParser
from services.researcher.research import Research
from services.researcher.service import FULL_NAME, Researcher
from services.researcher.sources import label_roots

log = logging.getLogger(__name__)


async def serve(stop: asyncio.Event) -> None:
    """Serves until told to stop. Calls under way get the grace to end; those that do not are cancelled."""
    settings = load(ResearcherSettings)
    html = HtmlParser()
    research = Research(label_roots(settings.roots), Corpus(html, settings.max_file_bytes, settings.max_bytes))
    service = Service(settings.listen, [FULL_NAME], max_calls=settings.max_calls, multiplexed=True)
    researcher_pb2_grpc.add_ResearcherServicer_to_server(Researcher(settings, research), service.server)
    await service.start()
    roots = ", ".join(map(str, settings.roots))
    log.info("listening on %s, reading below %s", settings.listen.rpartition(":")[0] + f":{service.port}", roots)
    await stop.wait()
    await service.stop(settings.grace)
    await asyncio.to_thread(html.close)


def main() -> None:
    """Runs the service until SIGTERM or SIGINT."""
    run("researcher", serve)


if __name__ == "__main__":
    main()
