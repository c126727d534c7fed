"""`python -m services.terminal`: composes and serves the Terminal."""

import asyncio
import logging

from conductor.v1 import terminal_pb2_grpc

from services.common.config import TerminalSettings, load
from services.common.server import Service, run
from services.terminal import policy, programs, threads
from services.terminal.calls import Calls
from services.terminal.sandbox import Sandbox
from services.terminal.service import FULL_NAME, TerminalService

log = logging.getLogger(__name__)


async def serve(stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then kills what runs and lets its callers have their results."""
    settings = load(TerminalSettings)
    asyncio.get_running_loop().set_default_executor(threads.started())
    service = Service(settings.listen, [FULL_NAME])
    rules = programs.load(settings)
    folders = policy.Folders(tuple(map(str, settings.folders)), tuple(map(str, settings.data)))
    sandbox = Sandbox(settings, policy.allowed(settings.tier, rules.execute_paths(), folders), rules)
    await sandbox.start()
    calls = Calls(settings.workspaces / "calls", settings.keep_calls, settings.calls_bytes)
    await calls.start()
    terminal_pb2_grpc.add_TerminalServicer_to_server(TerminalService(sandbox, calls, settings), service.server)
    await service.start()
    log.info("listening on %s, port %d", settings.listen, service.port)
    await stop.wait()
    await service.drain()
    await sandbox.close()
    await service.stop(settings.grace)
    sandbox.rooms.close()
    await calls.close()


def main() -> None:
    """Runs the service."""
    run("terminal", serve)


if __name__ == "__main__":
    main()
