"""The running system: the five processes, started in order, watched, and stopped in order.

async with Stack(tmp_path) as stack:                  # free ports, all files below tmp_path
    stack.addresses["envoy"], stack.addresses["conductor"]
    await stack.kill("conductor")                     # SIGKILL; others go on
    await stack.restart("conductor")                  # same ports, same files
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
from ops.health import SETTINGS, dial, is_serving
from ops.process import Process, Tell
from services.common.config import load

START_TIMEOUT_S = 30.0
# Conductor before Envoy, the rest backwards: the edge lets nobody new in, and Conductor's streams still end through
# it with their closing event. Stopping Envoy first would cut them.
STOP_ORDER = ("conductor", "envoy", "report_writer", "terminal", "researcher")
ENVOY_GRACE_S = 5.0
GRACE_MARGIN_S = 5.0  # what a service gets beyond its own grace before it is killed
POLL_S = 0.05


class StartError(Exception):
    """The system could not be started. The message is one sentence saying what to do."""


def silence(name: str, line: str) -> None:
    """Tells nobody; the log file has the line."""


class Stack:
    """The five processes, or some of them.

    Args:
        run_dir: holds log files and Envoy's configuration and, with free ports, database and reports.
        free_ports: True for a system that shares nothing with others; False for the addresses and folders that
            environment variables name, or their defaults.
        environ: variables on top of this process's own.
        only: names of the processes to run, see `layout.NAMES`.
        commands: argument list to run for a service in place of its own.
        tell: gets every line of output with the name of its process.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        free_ports: bool = True,
        environ: Mapping[str, str] | None = None,
        only: Collection[str] = layout.NAMES,
        commands: Mapping[str, Sequence[str]] | None = None,
        tell: Tell = silence,
    ) -> None:
        self.run_dir = run_dir.absolute()
        self._isolated = free_ports
        overrides = dict(environ or {})
        if free_ports:
            self.layout = layout.isolated(self.run_dir, os.environ, overrides)
        else:
            self.layout = layout.from_environment({**os.environ, **overrides})
        self.names = tuple(name for name in layout.NAMES if name in only)
        self._commands = dict(commands or {})
        self._tell = tell
        self._running: dict[str, Process] = {}

    @property
    def addresses(self) -> Mapping[str, str]:
        """host:port by name; `envoy` is the edge and `admin` its admin interface."""
        return self.layout.addresses

    @property
    def url(self) -> str:
        """The edge's base URL."""
        return f"http://{dial(self.addresses['envoy'])}"

    def log(self, name: str) -> Path:
        """The file with everything the process wrote; the one of the run before has `.1` behind its name."""
        return self.run_dir / "logs" / f"{name}.log"

    def pid(self, name: str) -> int:
        """The process id of a running process."""
        return self._running[name].pid

    async def __aenter__(self) -> "Stack":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts all: workers, then Conductor, then Envoy, each wave when the one before serves.

        Raises StartError or ConfigError; then nothing is left running.
        """
        self._prepare()
        try:
            for wave in layout.START_ORDER:
                starts = (self.start_one(name) for name in wave if name in self.names)
                for outcome in await asyncio.gather(*starts, return_exceptions=True):
                    if outcome is not None:
                        raise outcome
        except BaseException:  # also when cancelled: no process may outlive a failed start
            await self.stop()
            raise

    async def start_one(self, name: str) -> None:
        """Starts one process and waits until it serves. Raises StartError."""
        process = await Process.start(name, self._command(name), self.layout.environ, self.log(name), self._tell)
        self._running[name] = process
        serving = asyncio.create_task(self._serving(name))
        ended = asyncio.create_task(process.wait())
        if serving not in await _first({serving, ended}, START_TIMEOUT_S):
            raise StartError(f"{name} did not start: {await self._why(process)}")

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a process group the signal and waits for its end; returns the exit code, negative for a signal."""
        code = await self._running[name].stop(number, self._grace(name))
        del self._running[name]
        return code

    async def restart(self, name: str) -> None:
        """Starts a process again where it was, after stopping it with SIGTERM if it runs."""
        if name in self._running:
            await self.kill(name, signal.SIGTERM)
        await self.start_one(name)

    async def died(self) -> str:
        """Waits until a process ends by itself; returns a sentence saying which and how."""
        ends = {asyncio.create_task(process.wait()): process for process in self._running.values()}
        done = await _first(set(ends), None)
        process = ends[done.pop()]
        return f"{process.name} ended by itself with {describe(process.exit_code)}; see {self.log(process.name)}"

    async def stop(self) -> None:
        """Stops what runs, in order, each with its grace and then SIGKILL."""
        if "envoy" in self._running:
            await envoy.drain(dial(self.addresses["admin"]))
        for name in STOP_ORDER:
            if name in self._running:
                await self.kill(name, signal.SIGTERM)
        if self._isolated:
            shutil.rmtree(self.layout.folders["TERMINAL_WORKSPACES"], ignore_errors=True)

    def kill_all(self) -> None:
        """Sends SIGKILL to every process group at once, for a stop that takes too long."""
        for process in self._running.values():
            process.send(signal.SIGKILL)

    def _prepare(self) -> None:
        listeners = [*self.names, *(["admin"] if "envoy" in self.names else [])]
        layout.check_ports(self.layout, listeners)
        layout.check_folders(self.layout)
        for name in self.names:
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
                    conductor=dial(self.addresses["conductor"]),
                )
            )

    @property
    def _config(self) -> Path:
        return self.run_dir / "envoy.yaml"

    def _command(self, name: str) -> Sequence[str]:
        own = envoy.command(self._config) if name == "envoy" else [sys.executable, "-m", f"services.{name}"]
        return self._commands.get(name, own)

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
        return float(load(SETTINGS[name], self.layout.environ).grace) + GRACE_MARGIN_S


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
