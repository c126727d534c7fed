"""Runs commands in the sandbox: tries the tiers out at start, admits commands, and sees to their end."""

import asyncio
import logging
import sys
from collections.abc import Sequence

from services.common.config import ConfigError, TerminalSettings
from services.common.errors import Refusal
from services.terminal import limits, refusals
from services.terminal.orders import Launched, Launcher, setting
from services.terminal.policy import Isolation, Order, Policy
from services.terminal.programs import Programs
from services.terminal.rooms import Rooms
from services.terminal.running import Lost, NotStarted, Running, Started
from services.terminal.spawn import Spawner
from services.terminal.users import UIDS

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 600.0
CLOSE_S, POLL_S = 10.0, 0.01


class Sandbox:
    """Where commands run. `start` first; then `isolation` says what holds, or `unavailable` why nothing runs.

    Args:
        settings: workspaces, ceilings and capacity.
        policies: the tiers that will do, best first.
        programs: which programs may run.
        interpreter: runs the spawner; needs nothing but the standard library.
    """

    def __init__(
        self,
        settings: TerminalSettings,
        policies: Sequence[Policy],
        programs: Programs,
        interpreter: str = sys.executable,
    ) -> None:
        if policies[0].separate_uid and settings.max_commands > len(UIDS):
            raise ConfigError(f"TERMINAL_MAX_COMMANDS={settings.max_commands} is too many: give at most {len(UIDS)}.")
        self.isolation: Isolation | None = None
        self.unavailable: Refusal | None = None
        self.tried: dict[str, Refusal | None] = {}  # why a tier cannot be had, None when it can
        self.programs = programs
        self.rooms = Rooms(settings.keep_workspaces)
        self._settings = settings
        self._policies = policies
        self._policy = policies[0]  # the one in force
        self._spawners = {each.tier: Spawner(interpreter, setting(each, programs)) for each in policies}
        self._launcher = Launcher(self.rooms, programs, self._spawners, settings.path, settings.folders)
        self._taken = 0  # slots
        self._running: set[Running] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def loopback(self) -> bool:
        """Whether a command may have a loopback of its own."""
        return self._policy.tier == "strong" and self.programs.loopback

    async def start(self) -> None:
        """Takes the folder of workspaces, removes what an earlier process left, and tries the tiers out.

        Raises ConfigError when the folder cannot be used. A tier that cannot be had is no error: commands are refused.
        """
        await asyncio.to_thread(self.rooms.open, self._settings.workspaces, self._policy.separate_uid)
        for policy in self._policies:
            await self._try(policy)
        for tier, spawner in self._spawners.items():
            if tier != self._policy.tier:
                await asyncio.to_thread(spawner.close)
        self._sweeper = asyncio.create_task(self._sweep())
        self._tell()

    async def _try(self, policy: Policy) -> None:
        """Tries a tier by setting it up; the first that holds is the one in force."""
        self.tried[policy.tier] = None
        try:
            begun = await self._probe(policy)
        except Refusal as refusal:
            self.tried[policy.tier] = refusal
            self.unavailable = None if self.isolation else refusal
            return
        if self.isolation is None:
            self._policy, self.unavailable = policy, None
            self.isolation = self.describe(begun)

    async def _probe(self, policy: Policy) -> Started:
        test = Order(argv=(), script=False, stdin=b"", env={}, bounds=limits.defaults(self._settings))
        probe = self._follow(await asyncio.to_thread(self._launcher.launch, test, policy))
        begun = await probe.begun()
        await probe.done
        probe.close()
        if isinstance(begun, NotStarted):
            raise refusals.unavailable(begun.layer, begun.errno)
        if isinstance(begun, Lost):
            raise refusals.unavailable("spawner", None)
        return begun

    def _tell(self) -> None:
        for tier, refusal in self.tried.items():
            if refusal is not None:
                log.warning("the %s tier cannot be had: %s", tier, refusal)
        if self.isolation is None:
            log.error("every command will be refused: %s", self.unavailable)
            return
        log.info(
            "sandbox: %s tier, Landlock ABI %d, separate uid: %s, layers: %s",
            self.isolation.tier,
            self.isolation.landlock_abi,
            self.isolation.separate_uid,
            ", ".join(self.isolation.layers),
        )
        for sentence in self.isolation.not_enforced:
            log.info("not enforced: %s", sentence)

    def describe(self, begun: Started) -> Isolation:
        """Returns what holds a command that has begun."""
        policy, abi = self._policy, begun.landlock_abi
        return Isolation(policy.tier, abi, policy.separate_uid, begun.layers, policy.not_enforced(abi))

    async def run(self, order: Order) -> Running:
        """Starts a command.

        Raises SHUTTING_DOWN, SANDBOX_UNAVAILABLE, OVER_CAPACITY, PROGRAM_REFUSED or COMMAND_NOT_STARTED; then nothing
        ran.
        """
        if self._closing:
            raise refusals.stopping()
        if self.unavailable is not None:
            raise self.unavailable.with_traceback(None)  # else each call would make the traceback longer
        if order.loopback and self._policy.tier != "strong":
            raise refusals.no_loopback(self._policy.tier)
        if self._taken >= self._settings.max_commands:
            raise refusals.over_capacity(self._settings.max_commands)
        self._taken += 1
        # A task of its own: a caller that goes away meanwhile leaves nothing half-started behind.
        starting = asyncio.create_task(self._start(order))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_abandon)
            raise

    async def _start(self, order: Order) -> Running:
        try:
            launched = await asyncio.to_thread(self._launcher.launch, order, self._policy)
        except BaseException:  # the slot is given back, whatever went wrong; it is raised on
            self._taken -= 1
            raise
        running = self._follow(launched)
        self._running.add(running)
        if self._closing:
            running.cancel()
        return running

    def _follow(self, launched: Launched) -> Running:
        return Running(launched.pipes, launched.bounds, launched.conclude, self._over)

    def _over(self, running: Running) -> None:
        if running in self._running:  # a self-test takes no slot
            self._running.discard(running)
            self._taken -= 1

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                await asyncio.to_thread(self.rooms.sweep)
            except OSError as error:
                log.error("workspaces could not be swept: %s", error)

    async def close(self) -> None:
        """Kills all commands and waits until nothing is left of them. Later ones are refused."""
        self._closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        patience = asyncio.get_running_loop().time() + CLOSE_S
        while self._taken:
            for each in self._running:
                each.cancel()
            await asyncio.sleep(POLL_S)
            if asyncio.get_running_loop().time() > patience:
                break  # a spawner hangs, and with it who waits in its socket
        for spawner in self._spawners.values():
            await asyncio.to_thread(spawner.close)
        await asyncio.gather(*(each.done for each in tuple(self._running)))


def _abandon(starting: "asyncio.Task[Running]") -> None:
    """Ends a command that was started for somebody who is gone."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().close()
