"""Composition root of the Conductor: the only file that knows every concrete class."""

import asyncio
import logging
import time

from conductor.v1 import conductor_pb2_grpc, task_pb2

from services.common.boundary import new_id
from services.common.config import ConductorSettings, load
from services.common.server import Service, run
from services.conductor.actor import Actor
from services.conductor.api import ConductorApi
from services.conductor.cleaning import Cleaning
from services.conductor.driving import Driving
from services.conductor.intake import Intake
from services.conductor.lease import Lease
from services.conductor.programs import load as load_programs
from services.conductor.retention import Keep, Retention
from services.conductor.router import GrpcRouter
from services.conductor.store.engine import open_store, shown
from services.conductor.subscribe import Subscriptions, Tail
from services.conductor.views import Views
from services.conductor.whereabouts import is_gone, name_here

log = logging.getLogger(__name__)

FULL_NAME = "conductor.v1.Conductor"
# A request becomes an event, and gRPC clients take 4 MiB by default. As large as what the edge lets through.
MAX_REQUEST_BYTES = 2 * 1024 * 1024


async def serve(stop: asyncio.Event) -> None:
    """Serves until the event is set: opens the store, recovers, listens; stops in the opposite order."""
    settings = load(ConductorSettings)
    service = Service(settings.listen, [FULL_NAME], MAX_REQUEST_BYTES, settings.max_calls)
    store = await open_store(settings.store)
    router = GrpcRouter(
        {
            task_pb2.CAPABILITY_RESEARCHER: settings.researcher,
            task_pb2.CAPABILITY_TERMINAL: settings.terminal,
            task_pb2.CAPABILITY_REPORT_WRITER: settings.report_writer,
        }
    )
    actor = Actor(
        store,
        router,
        Lease(store, settings.lease, lambda: name_here(new_id()), is_gone),
        clock=time.time_ns,
        new_id=new_id,
        instance=settings.instance,
        max_in_flight=settings.max_in_flight,
        max_queued=settings.max_queued,
    )
    tail = Tail(store)
    tail.on_read(actor.saw)
    cleaning = Cleaning(store, router.clear_run, router.keep_for)
    store.on_commit(cleaning.saw)
    tail.on_read(cleaning.saw)
    await tail.start()
    subscriptions = Subscriptions(store, tail, settings.heartbeat, settings.max_streams)
    conductor_pb2_grpc.add_ConductorServicer_to_server(
        ConductorApi(
            actor,
            Views(store),
            subscriptions,
            router,
            load_programs(settings.stages),
            Intake(router.keep_for, settings.max_upload, new_id),
        ),
        service.server,
    )
    resumed = await actor.start()
    driving = Driving(store, actor)
    driving.start()
    cleaning.start()
    retention = Retention(store, Keep(settings.keep_for, settings.keep_tasks), time.time_ns)
    retention.start()
    await service.start()
    log.info("listening on %s, store %s, %d unfinished tasks resumed", settings.listen, shown(settings.store), resumed)
    await stop.wait()
    log.info("stopping")
    await service.drain()
    await asyncio.sleep(settings.drain)
    await driving.close()
    await cleaning.close()
    await retention.close()
    await tail.close()
    await actor.stop()
    await service.stop(settings.grace)
    await router.close()
    await store.close()


def main() -> None:
    run("conductor", serve)


if __name__ == "__main__":
    main()
