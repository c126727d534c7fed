"""The running system: its processes, started in order, watched, and stopped in order.

async with Stack(tmp_path) as stack:                  # free ports, all files below tmp_path
    stack.addresses["envoy"], stack.addresses["conductor"]
    await stack.kill("conductor")                     # SIGKILL; others go on
    await stack.restart("conductor")                  # same ports, same files

async with Stack(tmp_path, replicas=3, workers=2, postgres=True) as stack:
    stack.names                                       # postgres, researcher, researcher-2, …, conductor-3, envoy
    stack.send("conductor-2", signal.SIGSTOP)         # and SIGCONT
"""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ops import envoy, layout
from ops.database import Database
from ops.health import SETTINGS, dial, is_serving
from ops.postgres import Postgres
from ops.process import Process, Tell
from services.common.config import ConductorSettings, ConfigError, load

START_TIMEOUT_S = 30.0
# Conductor before Envoy, the rest backwards: the edge lets nobody new in, and Conductor's streams still end through
# it with their closing event. Stopping Envoy first would cut them.
STOP_ORDER = ("conductor", "envoy", "report_writer", "terminal", "researcher", "postgres")
ENVOY_GRACE_S = 5.0
POSTGRES_GRACE_S = 30.0  # it writes what it has in memory to its files
GRACE_MARGIN_S = 5.0  # what a service gets beyond its own grace before it is killed
POLL_S = 0.05


class StartError(Exception):
    """The system could not be started. The message is one sentence saying what to do."""


def silence(name: str, line: str) -> None:
    """Tells nobody; the log file has the line."""


class Stack:
    """The processes of the system, or some of them.

    Args:
        run_dir: holds log files and Envoy's configuration and, with free ports, database and reports.
        free_ports: True for a system that shares nothing with others; False for the addresses and folders that
            environment variables name, or their defaults.
        environ: variables on top of this process's own.
        only: kinds of processes to run, see `layout.KINDS`.
        commands: argument list to run in place of its own, by name of the process or by kind.
        tell: gets every line of output with the name of its process.
        replicas: number of Conductors; several need PostgreSQL.
        workers: number of each of the workers.
        postgres: True to run a PostgreSQL below run_dir for the Conductors.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        free_ports: bool = True,
        environ: Mapping[str, str] | None = None,
        only: Collection[str] = layout.KINDS,
        commands: Mapping[str, Sequence[str]] | None = None,
        tell: Tell = silence,
        replicas: int = 1,
        workers: int = 1,
        postgres: bool = False,
    ) -> None:
        self.run_dir = run_dir.absolute()
        self._isolated = free_ports
        size = layout.Size(replicas, workers, postgres)
        overrides = dict(environ or {})
        if free_ports:
            self.layout = layout.isolated(self.run_dir, os.environ, overrides, size)
        else:
            self.layout = layout.from_environment({**os.environ, **overrides}, size)
        self.names = tuple(name for kind in layout.KINDS if kind in only for name in size.names(kind))
        self._size = size
        self._commands = dict(commands or {})
        self._tell = tell
        self._running: dict[str, Process | Database] = {}
        self._postgres: Postgres | None = None
        if postgres:
            port = envoy.split(self.addresses["postgres"])[1]
            self._postgres = Postgres(self.run_dir / "postgres", port=port)

    @property
    def addresses(self) -> Mapping[str, str]:
        """host:port by name; `envoy` is the edge and `admin` its admin interface."""
        return self.layout.addresses

    @property
    def url(self) -> str:
        """The edge's base URL."""
        return f"http://{dial(self.addresses['envoy'])}"

    @property
    def store(self) -> str:
        """Path or URL of the log, as Conductor is told; that of a PostgreSQL of ours is known once it runs."""
        return self._postgres.url if self._postgres else str(load(ConductorSettings, self.layout.environ).store)

    def log(self, name: str) -> Path:
        """The file with everything the process wrote; the one of the run before has `.1` behind its name.

        PostgreSQL's is in its own folder, and goes on from run to run.
        """
        if name == "postgres" and self._postgres:
            return self._postgres.log
        return self.run_dir / "logs" / f"{name}.log"

    def pid(self, name: str) -> int:
        """The process id of a running process."""
        return self._running[name].pid

    def running(self, name: str) -> bool:
        """Says whether a process was started and has not been killed or stopped since."""
        return name in self._running

    async def __aenter__(self) -> "Stack":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts all: PostgreSQL and workers, then Conductors, then Envoy, each wave when the one before serves.

        Raises StartError or ConfigError; then nothing is left running.
        """
        self._prepare()
        try:
            for wave in layout.START_ORDER:
                starts = (self.start_one(name) for name in self.names if layout.kind_of(name) in wave)
                for outcome in await asyncio.gather(*starts, return_exceptions=True):
                    if outcome is not None:
                        raise outcome
        except BaseException:  # also when cancelled: no process may outlive a failed start
            await self.stop()
            raise

    async def start_one(self, name: str) -> None:
        """Starts one process and waits until it serves. Raises StartError."""
        if name == "postgres":
            await self._start_postgres()
            return
        process = await Process.start(name, self._command(name), self._environ(name), self.log(name), self._tell)
        self._running[name] = process
        serving = asyncio.create_task(self._serving(name))
        ended = asyncio.create_task(process.wait())
        if serving not in await _first({serving, ended}, START_TIMEOUT_S):
            raise StartError(f"{name} did not start: {await self._why(process)}")

    def send(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process with all that belong to it, SIGSTOP and SIGCONT for instance."""
        self._running[name].send(number)

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a process group the signal and waits for its end; returns the exit code, negative for a signal.

        PostgreSQL: SIGQUIT is its immediate stop, which leaves recovery to the next start; SIGTERM a clean one.
        """
        code = await self._running[name].stop(number, self._grace(name))
        del self._running[name]
        return code

    async def restart(self, name: str) -> None:
        """Starts a process again where it was, after stopping it with SIGTERM if it runs."""
        if name in self._running:
            await self.kill(name, signal.SIGTERM)
        await self.start_one(name)

    async def ended(self, name: str) -> str:
        """Waits until a running process ends; returns a sentence saying how."""
        process = self._running[name]
        code = await process.wait()
        how = "" if isinstance(process, Database) else f" with {describe(code)}"
        return f"{name} ended by itself{how}; see {self.log(name)}."

    async def stop(self) -> None:
        """Stops what runs, in order, each with its grace and then SIGKILL."""
        if "envoy" in self._running:
            await envoy.drain(dial(self.addresses["admin"]))
        for kind in STOP_ORDER:
            running = [name for name in self._running if layout.kind_of(name) == kind]
            for name in running:
                self.send(name, signal.SIGCONT)  # one that is paused would only be killed
            await asyncio.gather(*(self.kill(name, signal.SIGTERM) for name in running))
        if self._postgres:
            await self._postgres.stop()  # one whose start was cut short
        if self._isolated:
            for variable, folder in self.layout.folders:
                if variable == "TERMINAL_WORKSPACES":
                    shutil.rmtree(folder, ignore_errors=True)

    def kill_all(self) -> None:
        """Sends SIGKILL to every process group at once, for a stop that takes too long."""
        for process in self._running.values():
            process.send(signal.SIGKILL)

    def _prepare(self) -> None:
        listeners = [name for name in self.names if name != "postgres"]
        if "envoy" in self.names:
            listeners.append("admin")
        layout.check_ports(self.layout, listeners)
        layout.check_folders(self.layout)
        for name in self.names:
            if name == "postgres":
                continue
            log = self.log(name)
            log.parent.mkdir(parents=True, exist_ok=True)
            if log.exists():
                log.replace(log.with_name(f"{log.name}.1"))
        if "envoy" in self.names:
            envoy.binary()  # said now rather than when everything else runs
            self._config.write_text(
                envoy.render(
                    envoy.TEMPLATE.read_text(),
                    edge=self.addresses["envoy"],
                    admin=self.addresses["admin"],
                    conductors=[dial(self.addresses[name]) for name in self._size.names("conductor")],
                )
            )

    @property
    def _config(self) -> Path:
        return self.run_dir / "envoy.yaml"

    async def _start_postgres(self) -> None:
        assert self._postgres is not None  # noqa: S101 - it has a name only when there is one
        try:
            self._running["postgres"] = await Database.start(self._postgres)
        except ConfigError as error:
            raise StartError(f"postgres did not start: {error}") from error

    def _command(self, name: str) -> Sequence[str]:
        kind = layout.kind_of(name)
        own = envoy.command(self._config) if name == "envoy" else [sys.executable, "-m", f"services.{kind}"]
        return self._commands.get(name, self._commands.get(kind, own))

    def _environ(self, name: str) -> Mapping[str, str]:
        environ = self.layout.environ_of(name)
        # Only who needs the password is told.
        if self._postgres and layout.kind_of(name) == "conductor":
            environ["CONDUCTOR_STORE"] = self._postgres.url
        return environ

    async def _serving(self, name: str) -> None:
        while not await self._is_serving(name):  # noqa: ASYNC110 - what changes is another process
            await asyncio.sleep(POLL_S)

    async def _is_serving(self, name: str) -> bool:
        if name == "envoy":
            return await envoy.is_ready(dial(self.addresses["admin"]))
        return await is_serving(dial(self.addresses[name]))

    async def _why(self, process: Process) -> str:
        if process.exit_code is None:
            return f"it does not serve after {START_TIMEOUT_S:.0f} s; see {self.log(process.name)}"
        await process.stop(signal.SIGKILL, 0)  # gathers the last of its output
        return f"{process.last_line()} ({describe(process.exit_code)}; see {self.log(process.name)})"

    def _grace(self, name: str) -> float:
        if name == "envoy":
            return ENVOY_GRACE_S
        if name == "postgres":
            return POSTGRES_GRACE_S
        settings: Any = load(SETTINGS[layout.kind_of(name)], self.layout.environ_of(name))
        return float(settings.grace) + float(getattr(settings, "drain", 0)) + GRACE_MARGIN_S


async def _first(tasks: set[asyncio.Task[Any]], limit: float | None) -> set[asyncio.Task[Any]]:
    """Waits for one of the tasks, at most `limit` seconds; returns those done. The others are cancelled."""
    try:
        done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        return done
    finally:
        for task in tasks:
            task.cancel()


def describe(code: int | None) -> str:
    """Says an exit code in words."""
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
