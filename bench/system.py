"""The system that is measured: one Conductor, two trivial workers as separate processes, and what Conductor needs."""

import asyncio
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import asyncpg
import grpc
from conductor.v1 import conductor_pb2_grpc

from bench import processes
from bench.client import Client
from bench.driver import CHANNEL_OPTIONS
from ops.postgres import Postgres
from ops.stack import Stack

Engine: TypeAlias = Literal["sqlite", "postgres"]

WORKERS = ("researcher", "report_writer")
PARTS = ("conductor", *WORKERS)  # in the order in which they stop
CONDUCTOR_CORE, OTHERS_CORE = {0}, {1}


class System:
    """Conductor on one store, with its workers.

    Args:
        folder: holds everything the system writes but the store's own, which is in `data`.
        engine: the store.
        data: the store's folder; it may hold a log already.
        environ: variables for Conductor on top of its defaults.
        ledger: makes the workers take the time of the crash test and keep this ledger.
        edge: whether Envoy runs too.
        pinned: whether Conductor has a core to itself and everything else the other.
        replicas: how many Conductors; PostgreSQL only.
        trace: file for the syncs of Conductor, which then runs under strace.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        *,
        data: Path | None = None,
        environ: Mapping[str, str] | None = None,
        ledger: Path | None = None,
        edge: bool = False,
        pinned: bool = False,
        replicas: int = 1,
        trace: Path | None = None,
    ) -> None:
        self.engine = engine
        self.data = data or folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._environ = dict(environ or {})
        self._pinned = pinned
        self._replicas = replicas
        self._edge = edge
        extra = [str(ledger)] if ledger is not None else []
        self._commands: dict[str, Sequence[str]] = {
            name: [sys.executable, "-m", "bench.workers", name, *extra] for name in WORKERS
        }
        conductor = [sys.executable, "-m", "services.conductor"]
        traced = processes.traced(conductor, trace) if trace is not None else None
        self._commands["conductor"] = traced or conductor
        self._postgres: Postgres | None = None

    @property
    def _kinds(self) -> Collection[str]:
        return (*WORKERS, "conductor", *(["envoy"] if self._edge else []))

    @property
    def names(self) -> Collection[str]:
        """The processes of ops.stack that run."""
        return (*self._kinds, *(f"conductor-{number}" for number in range(2, self._replicas + 1)))

    async def __aenter__(self) -> "System":
        self._channels: list[grpc.aio.Channel] = []
        self._clients: list[Client] = []
        try:
            await self._start_postgres()
            environ = {**self._environ, "CONDUCTOR_STORE": self.store}
            self.stack = Stack(
                self._folder, environ=environ, only=self._kinds, commands=self._commands, replicas=self._replicas
            )
            await self.stack.start()
        except BaseException:  # also when cancelled: no server may outlive a failed start
            await self._stop_postgres()
            raise
        self._pin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            await client.close()
        for channel in self._channels:
            await channel.close()
        await self.stack.stop()
        await self._stop_postgres()

    @property
    def store(self) -> str:
        """Where Conductor finds its log: a path or a URL."""
        return self._postgres.url if self._postgres is not None else str(self.data / "conductor.db")

    @property
    def address(self) -> str:
        """Conductor's own address."""
        return self.stack.addresses["conductor"]

    def stub(self, address: str | None = None) -> Any:
        """Returns a Conductor stub on a connection of its own, straight to Conductor unless told otherwise."""
        channel = grpc.aio.insecure_channel(address or self.address, CHANNEL_OPTIONS)
        self._channels.append(channel)
        return conductor_pb2_grpc.ConductorStub(channel)

    async def client(self, address: str | None = None) -> Client:
        """Starts a client process, which has one connection: straight to Conductor unless told otherwise."""
        client = await Client.start(address or self.address)
        self._clients.append(client)
        if self._pinned:
            processes.pin([client.pid], OTHERS_CORE)
        return client

    @property
    def groups(self) -> dict[str, list[int]]:
        """Process ids by name."""
        found = {name: [self.stack.pid(name)] for name in self.names}
        return found | ({"postgres": [self._postgres.pid]} if self._postgres is not None else {})

    async def kill_all(self) -> None:
        """Sends SIGKILL to every process at once."""
        postgres = [self._postgres.kill()] if self._postgres is not None else []
        await asyncio.gather(*(self.stack.kill(name) for name in self.names), *postgres)

    async def stop(self, names: Sequence[str]) -> None:
        """Stops processes in order. PostgreSQL goes on."""
        for name in names:
            await self.stack.kill(name, signal.SIGTERM)

    async def start(self, names: Sequence[str]) -> None:
        """Starts processes again, all at once: nobody waits for another to serve. PostgreSQL first, if it is down."""
        if self._postgres is not None and not self._postgres.running:
            await self._postgres.start()
        await asyncio.gather(*(self.stack.start_one(name) for name in names))
        self._pin()

    async def empty(self) -> None:
        """Removes the log. Conductor must not be running."""
        if self._postgres is None:
            for file in self.data.glob("conductor.db*"):
                file.unlink()
            return
        server, _, name = self.store.rpartition("/")
        connection = await asyncpg.connect(f"{server}/postgres")
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    def _pin(self) -> None:
        if self._pinned:
            for name, roots in self.groups.items():
                processes.pin(roots, CONDUCTOR_CORE if name == "conductor" else OTHERS_CORE)

    async def _start_postgres(self) -> None:
        if self.engine == "postgres":
            self._postgres = Postgres(self.data)
            await self._postgres.start()

    async def _stop_postgres(self) -> None:
        if self._postgres is not None:
            await self._postgres.stop()
