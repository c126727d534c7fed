"""PostgreSQL as one of the processes of a running system."""

import asyncio
import contextlib
import os
import signal

from ops.postgres import Postgres, children


class Database:
    """A running PostgreSQL server, to be watched, sent signals and stopped like any other process."""

    name = "postgres"

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self.pid = server.pid
        self._ended = asyncio.create_task(_ended(self.pid))

    @classmethod
    async def start(cls, server: Postgres) -> "Database":
        """Starts the server and waits until it answers. Raises ConfigError."""
        await server.start()
        return cls(server)

    async def wait(self) -> int:
        """Waits for its end; returns 0, for the exit code is its owner's."""
        await asyncio.shield(self._ended)
        return 0

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to every process of the server; each has a group of its own."""
        for pid in (self.pid, *children(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def stop(self, number: signal.Signals, grace: float) -> int:
        """Stops it: SIGKILL kills every process, SIGQUIT is an immediate stop, any other signal a clean one.

        One that has not stopped `grace` seconds later is killed.
        """
        try:
            async with asyncio.timeout(grace):
                if number != signal.SIGKILL:
                    await self._server.stop(immediate=number == signal.SIGQUIT)
        except TimeoutError:
            pass
        await self._server.kill()
        return await self.wait()


async def _ended(pid: int) -> None:
    """Waits for the end of a process, without taking its exit code from whoever waits for that (pidfd_open(2))."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
