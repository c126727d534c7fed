"""Starts the Researcher service: `python -m services.researcher`."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from conductor.v1 import researcher_pb2_grpc

from services.common.config import ResearcherSettings, load
from services.common.server import Service, run
from services.researcher.extract.parsers import Parsers
from services.researcher.extras import chosen
from services.researcher.model.configure import configured
from services.researcher.records import Records
from services.researcher.registry import Registry, read_file
from services.researcher.research import Tools
from services.researcher.runs import Runs
from services.researcher.service import FULL_NAME, Researcher
from services.researcher.terms import Analyzer

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def assembled(settings: ResearcherSettings) -> AsyncIterator[Researcher]:
    """Gives the servicer with all that belongs to it; stops its researches at the end. Raises ConfigError."""
    tables = read_file(settings.sources)
    encoder, reranker = chosen(settings.extras)
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        parsers = Parsers()
        stack.push_async_callback(asyncio.to_thread, parsers.close)
        registry = Registry(settings, tables, parsers, encoder)
        stack.push_async_callback(asyncio.to_thread, registry.close)
        model = configured(tables["model"]) if "model" in tables else None
        records = Records(settings.home, settings.keep)
        stack.callback(records.close)
        runs = Runs(records, settings.max_researches)
        stack.push_async_callback(runs.close, settings.grace)
        log.info("sources: %s", ", ".join(source.name for source in registry.all()))
        yield Researcher(settings, registry, Tools(registry, Analyzer(), reranker, model), runs)


async def serve(stop: asyncio.Event) -> None:
    """Serves until told to stop. Calls under way get the grace to end; those that do not are cancelled."""
    settings = load(ResearcherSettings)
    async with assembled(settings) as researcher:
        service = Service(settings.listen, [FULL_NAME], max_calls=settings.max_calls, multiplexed=True)
        researcher_pb2_grpc.add_ResearcherServicer_to_server(researcher, service.server)
        await service.start()
        log.info("listening on %s", settings.listen.rpartition(":")[0] + f":{service.port}")
        await stop.wait()
        await service.stop(settings.grace)


def main() -> None:
    """Runs the service until SIGTERM or SIGINT."""
    run("researcher", serve)


if __name__ == "__main__":
    main()
