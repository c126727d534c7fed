"""Runs commands in the sandbox: checks at start that it holds, hands out slots and users, starts launchers."""

import asyncio
import logging
import math
import os
import secrets
import sys
from contextlib import ExitStack
from functools import partial

from services.common.config import ConfigError, TerminalSettings
from services.common.errors import Refusal
from services.terminal import limits, refusals, spawn, users, workspace
from services.terminal.job import Job
from services.terminal.policy import UIDS, Isolation, Order, Policy
from services.terminal.running import Lost, NotStarted, Running, Started

log = logging.getLogger(__name__)

PATH = "/usr/local/bin:/usr/bin:/bin"
LANG = "C.UTF-8"


class Sandbox:
    """Where commands run. `start` first; then `isolation` says what holds, or `unavailable` why nothing runs.

    Args:
        settings: workspaces, ceilings and capacity.
        policy: what must hold.
        interpreter: runs the launcher; needs nothing but the standard library.
    """

    def __init__(self, settings: TerminalSettings, policy: Policy, interpreter: str = sys.executable) -> None:
        if policy.separate_uid and settings.max_commands > len(UIDS):
            raise ConfigError(f"TERMINAL_MAX_COMMANDS={settings.max_commands} is too many: give at most {len(UIDS)}.")
        self.isolation: Isolation | None = None
        self.unavailable: Refusal | None = None
        self._settings = settings
        self._policy = policy
        self._interpreter = interpreter
        self._root = -1
        self._running: set[Running] = set()
        self._closing = False

    async def start(self) -> None:
        """Takes the folder of workspaces, removes what an earlier process left, and tries the sandbox out."""
        try:
            await asyncio.to_thread(self._take_root)
            await self._probe()
        except OSError as error:
            self.unavailable = refusals.unavailable("workspace", error.errno)
        except Refusal as refusal:
            self.unavailable = refusal
        self._tell()

    def _take_root(self) -> None:
        path = self._settings.workspaces
        try:
            # A command's own user must be able to pass through, and may not list.
            self._root = workspace.open_root(path, 0o711 if self._policy.separate_uid else 0o700)
        except BlockingIOError:
            raise ConfigError(
                f"TERMINAL_WORKSPACES={str(path)!r} is in use by another Terminal: give each its own folder."
            ) from None
        if swept := workspace.sweep(self._root):
            log.info("removed %d workspaces that an earlier process left", swept)

    async def _probe(self) -> None:
        probe = self._spawn(None)
        begun = await probe.begun()
        await probe.done
        probe.close()
        if isinstance(begun, NotStarted):
            raise refusals.unavailable(begun.layer, begun.errno)
        if isinstance(begun, Lost):
            raise refusals.unavailable("launcher", None)
        workspace.sweep(self._root)  # what the clean-up could not remove raises here
        self.isolation = self.describe(begun)

    def _tell(self) -> None:
        if self.isolation is None:
            log.error("every command will be refused: %s", self.unavailable)
            return
        log.info(
            "sandbox: standard tier, Landlock ABI %d, separate uid: %s, layers: %s",
            self.isolation.landlock_abi,
            self.isolation.separate_uid,
            ", ".join(self.isolation.layers),
        )
        for sentence in self.isolation.not_enforced:
            log.info("not enforced: %s", sentence)

    def describe(self, begun: Started) -> Isolation:
        """Returns what holds a command that has begun."""
        policy = self._policy
        return Isolation(begun.landlock_abi, policy.separate_uid, begun.layers, policy.not_enforced())

    def run(self, order: Order) -> Running:
        """Starts a command. Raises SHUTTING_DOWN, SANDBOX_UNAVAILABLE or OVER_CAPACITY."""
        if self._closing:
            raise refusals.stopping()
        if self.unavailable is not None:
            raise self.unavailable.with_traceback(None)  # else each call would make the traceback longer
        if len(self._running) >= self._settings.max_commands:
            raise refusals.over_capacity(self._settings.max_commands)
        running = self._spawn(order)
        self._running.add(running)
        return running

    async def close(self) -> None:
        """Kills all commands and waits until nothing is left of them. Later ones are refused."""
        self._closing = True
        running = tuple(self._running)
        for each in running:
            each.cancel()
        await asyncio.gather(*(each.done for each in running))
        if self._root >= 0:
            os.close(self._root)

    def _spawn(self, order: Order | None) -> Running:
        """Starts the launcher with a command, or with the self-test."""
        name = workspace.PREFIX + secrets.token_hex(8)
        layer = "uid"
        with ExitStack() as on_failure, ExitStack() as handed_over:
            try:
                uid, uid_fd = self._lend(handed_over)
                layer = "workspace"
                on_failure.callback(self._clean_up, name)
                workspace_fd = workspace.create(self._root, name, uid)
                handed_over.callback(os.close, workspace_fd)
                layer = "launcher"
                job = self._job(order, name, uid, uid_fd, workspace_fd)
                launcher, pipes = spawn.launch(self._interpreter, job, order.stdin if order else b"")
            except OSError as error:
                raise refusals.unavailable(layer, error.errno) from error
            on_failure.pop_all()
        output_bytes = order.bounds.output_bytes if order else 0
        return Running(launcher, pipes, output_bytes, partial(self._clean_up, name), self._running.discard)

    def _lend(self, handed_over: ExitStack) -> tuple[int, int]:
        """Returns a user for the command and the descriptor of its lease; 0 and -1 for the service's own user."""
        if not self._policy.separate_uid:
            return 0, -1
        lent = users.lend()
        if lent is None:
            raise refusals.over_capacity(len(UIDS))
        uid, lease = lent
        handed_over.callback(lease.close)
        return uid, lease.fileno()

    def _job(self, order: Order | None, name: str, uid: int, uid_fd: int, workspace_fd: int) -> Job:
        home = os.fsencode(self._settings.workspaces / name)
        bounds = order.bounds if order else limits.defaults(self._settings)
        return {
            "argv": [argument.encode() for argument in order.argv] if order else [],
            "env": _environment(home, order.env if order else {}),
            "home": home,
            "workspace_fd": workspace_fd,
            "stdin_fd": -1,
            "stdout_fd": -1,
            "stderr_fd": -1,
            "status_fd": -1,
            "uid": uid,
            "uid_fd": uid_fd,
            "minimum_abi": self._policy.minimum_abi,
            "paths": list(self._policy.paths),
            "wall_s": bounds.wall_time,
            "cpu_s": math.ceil(bounds.cpu_time),
            "memory_bytes": bounds.memory_bytes,
            "processes": bounds.processes,
            "file_size_bytes": bounds.file_size_bytes,
            "workspace_bytes": self._settings.workspace_bytes,
            "workspace_entries": self._settings.workspace_entries,
        }

    def _clean_up(self, name: str) -> None:
        try:
            workspace.remove(self._root, name)
        except FileNotFoundError:
            pass  # it could not be made
        except OSError as error:
            log.error("workspace %s could not be removed, the next start tries again: %s", name, error)


def _environment(home: bytes, asked: dict[str, str]) -> dict[bytes, bytes]:
    """Returns all a command's environment holds; the request's own values win."""
    built = {b"PATH": PATH.encode(), b"HOME": home, b"TMPDIR": home, b"LANG": LANG.encode()}
    return built | {name.encode(): value.encode() for name, value in asked.items()}
