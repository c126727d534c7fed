"""What is done to the system during a run: a seeded plan, and the hands that carry it out and make good again."""

import asyncio
import contextlib
import resource
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.layout import kind_of
from ops.stack import Stack, StartError
from services.common.config import ConfigError
from tests.chaos.conductor import set_offset
from tests.chaos.history import History, luck_of
from tests.chaos.system import System

FIRST_S = 0.5  # before the first fault
GAP_S = 1.3  # between two faults, on average
DOWN_S = (0.0, 1.5)  # how long a killed process stays away
JUMPS_S = (-3600.0, -60.0, 60.0, 3600.0)  # of the wall clock
FULL_BYTES = 4096  # no file may grow beyond it while the disk is "full"
START_AGAIN_S = 0.5

# What may be done to whom, by role. "disk" is a limit on the size of files, which a user can set for processes of his
# own; PostgreSQL runs as another user when the suite runs as root, so its disk is left alone.
KINDS: Mapping[str, Sequence[str]] = {
    "conductor": ("kill", "kill", "stop", "pause", "clock", "disk"),
    "researcher": ("kill", "pause", "cut", "reset"),
    "terminal": ("kill", "pause", "cut", "reset"),
    "report_writer": ("kill", "stop", "pause", "disk", "cut", "reset"),
    "envoy": ("kill", "pause"),
    "postgres": ("kill", "immediate", "stop", "pause"),
    "store": ("cut", "reset"),  # the wire between one Conductor and PostgreSQL
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing done to one target: `at` seconds after the start, for `seconds`."""

    at: float
    kind: str
    target: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.at:5.1f} s  {self.kind:<9} {self.target:<16} {self.seconds:7.1f} s"


def plan(seed: int, targets: Sequence[str], seconds: float, lease: float) -> list[Fault]:
    """Returns the faults of a run. Every pair of kind and target comes before one comes again."""
    luck = luck_of(seed, "faults")
    pairs = [
        (kind, target) for target in targets for kind in KINDS[kind_of(target)] if _possible(kind, target, targets)
    ]
    deck: list[tuple[str, str]] = []
    faults: list[Fault] = []
    at = FIRST_S
    while at < seconds:
        if not deck:
            deck = luck.sample(pairs, len(pairs))
        kind, target = deck.pop()
        faults.append(Fault(at, kind, target, _length(luck.random(), kind, lease)))
        at += luck.expovariate(1 / GAP_S)
    return faults


def _possible(kind: str, target: str, targets: Sequence[str]) -> bool:
    # A Conductor on PostgreSQL writes no file.
    return (kind, kind_of(target)) != ("disk", "conductor") or "postgres" not in targets


def _length(chance: float, kind: str, lease: float) -> float:
    """Pauses and cuts are short, or longer than the lease."""
    if kind in ("pause", "cut"):
        return lease + 1.5 if chance < 0.4 else 0.2 + chance
    if kind == "clock":
        return JUMPS_S[int(chance * len(JUMPS_S))]
    return DOWN_S[0] + chance * (DOWN_S[1] - DOWN_S[0])


class Hands:
    """Carries out faults. Never two at once on one target."""

    def __init__(self, system: System, history: History) -> None:
        self._stack, self._wires, self._clocks = system.stack, system.wires, system.clocks
        self._history = history
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.done: list[Fault] = []

    async def carry_out(self, faults: Sequence[Fault]) -> None:
        """Does all, each at its time; returns when the last one is made good."""
        await asyncio.gather(*(self._at_its_time(fault) for fault in faults))

    async def heal(self) -> None:
        """Makes sure that everything runs as it should. A process that ended by itself is a bug, and started again."""
        for file in self._clocks.values():
            set_offset(file, 0)
        for name in self._stack.names:
            if not is_alive(self._stack, name):
                self._history.happened(f"BUG: {name} ended by itself, see {self._stack.log(name)}")
                await self._start(name)

    async def _at_its_time(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, fault.at - self._history.now()))
        async with self._locks[fault.target]:
            self._history.happened(f"begin {fault}")
            self.done.append(fault)
            await getattr(self, f"_{fault.kind}")(fault)
            self._history.happened(f"end {fault}")

    async def _kill(self, fault: Fault) -> None:
        await self._away(fault, signal.SIGKILL)

    async def _stop(self, fault: Fault) -> None:
        await self._away(fault, signal.SIGTERM)

    async def _immediate(self, fault: Fault) -> None:
        await self._away(fault, signal.SIGQUIT)

    async def _away(self, fault: Fault, number: signal.Signals) -> None:
        await self._stack.kill(fault.target, number)
        await asyncio.sleep(fault.seconds)
        await self._start(fault.target)

    async def _pause(self, fault: Fault) -> None:
        self._stack.send(fault.target, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self._stack.send(fault.target, signal.SIGCONT)

    async def _cut(self, fault: Fault) -> None:
        wire = self._wires[fault.target]
        wire.cut(silently=True)
        await asyncio.sleep(fault.seconds)
        wire.mend()

    async def _reset(self, fault: Fault) -> None:
        wire = self._wires[fault.target]
        wire.cut(silently=False)
        await asyncio.sleep(fault.seconds)
        wire.mend()

    async def _clock(self, fault: Fault) -> None:
        set_offset(self._clocks[fault.target], fault.seconds)

    async def _disk(self, fault: Fault) -> None:
        process = self._stack.pid(fault.target)
        _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (FULL_BYTES, hard))
        await asyncio.sleep(fault.seconds)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (hard, hard))

    async def _start(self, name: str) -> None:
        """Starts it, again and again while what it needs is away."""
        while True:
            try:
                await self._stack.start_one(name)
            except (StartError, ConfigError) as error:
                self._history.happened(f"{name} does not start: {error}")
                with contextlib.suppress(KeyError):
                    await self._stack.kill(name, signal.SIGKILL)
                await asyncio.sleep(START_AGAIN_S)
            else:
                return


def is_alive(stack: Stack, name: str) -> bool:
    """Whether a process of the stack runs."""
    try:
        state = Path(f"/proc/{stack.pid(name)}/stat").read_text().rpartition(")")[2].split()[0]
    except (KeyError, OSError):
        return False
    return state not in "ZX"
