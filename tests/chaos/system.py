"""The system that a run is done to: its processes, with wires that can be cut and clocks that can be moved."""

import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.layout import Size
from ops.stack import Stack
from tests.chaos.conductor import set_offset
from tests.chaos.history import answer_of, luck_of
from tests.chaos.people import token_of
from tests.chaos.wire import Wire

LEASE_S = 3
HEARTBEAT_S = 2
DOCUMENTS, TASKS_A_DOCUMENT = 4, 40  # known answers of each submitter, for the real Researcher
REAL = 0.3  # share of runs with the real Researcher and Terminal instead of the scripted ones
SCRIPTED = ("researcher", "terminal")
WIRED = (*SCRIPTED, "report_writer")


@dataclass(frozen=True)
class Setting:
    """Which system a run is done to. `deadline` is what each task has, in seconds."""

    name: str
    size: Size
    deadline: int = 15

    @property
    def heals_within(self) -> float:
        """Seconds after the last fault in which all must be answered and ended."""
        return LEASE_S + self.deadline + 15


SETTINGS = {
    "sqlite": Setting("sqlite", Size()),
    "postgres": Setting("postgres", Size(replicas=3, workers=2, postgres=True)),
}


@dataclass(frozen=True)
class System:
    """What can be used and harmed.

    Attributes:
        wires: by the name of the worker behind them, and `store`, `store-2` … between each Conductor and PostgreSQL.
        clocks: the files that move the Conductors' clocks, by name.
        real_workers: whether Researcher and Terminal are the real ones.
    """

    stack: Stack
    wires: Mapping[str, Wire]
    clocks: Mapping[str, Path]
    real_workers: bool

    @property
    def targets(self) -> list[str]:
        """Everything a fault can be done to."""
        return [*self.stack.names, *(name for name in self.wires if name not in self.stack.names)]


@contextlib.asynccontextmanager
async def running(seed: int, setting: Setting, folder: Path, submitters: Sequence[str]) -> AsyncIterator[System]:
    """Runs a system in an empty folder, and stops all of it."""
    size, real = setting.size, luck_of(seed, "workers").random() < REAL
    _prepare(folder, submitters)
    conductors = size.names("conductor")
    clocks = {name: folder / f"{name}.clock" for name in conductors}
    for file in clocks.values():
        set_offset(file, 0)
    stores = [name.replace("conductor", "store") for name in conductors] if size.postgres else []
    wires = {name: Wire() for name in [*(name for kind in WIRED for name in size.names(kind)), *stores]}
    for wire in wires.values():
        await wire.start()
    try:
        stack = Stack(
            folder,
            environ=_environment(folder, size, wires),
            commands=_commands(folder, seed, clocks, wires, real=real),
            replicas=size.replicas,
            workers=size.workers,
            postgres=size.postgres,
        )
        for name, wire in wires.items():
            wire.target = stack.addresses["postgres" if name in stores else name]
        async with stack:
            yield System(stack, wires, clocks, real)
    finally:
        for wire in wires.values():
            await wire.stop()


def _environment(folder: Path, size: Size, wires: Mapping[str, Wire]) -> dict[str, str]:
    targets = {kind: [wires[name].address for name in size.names(kind)] for kind in WIRED}
    return {
        "CONDUCTOR_LEASE": str(LEASE_S),
        "CONDUCTOR_HEARTBEAT": str(HEARTBEAT_S),
        "RESEARCHER_ROOTS": str(folder / "documents"),
        **{
            f"CONDUCTOR_{kind.upper()}": found[0] if len(found) == 1 else f"ipv4:{','.join(found)}"
            for kind, found in targets.items()
        },
    }


def _commands(
    folder: Path, seed: int, clocks: Mapping[str, Path], wires: Mapping[str, Wire], *, real: bool
) -> dict[str, Sequence[str]]:
    commands: dict[str, Sequence[str]] = {}
    for name, clock in clocks.items():
        store = name.replace("conductor", "store")
        way = [wires[store].address] if store in wires else []
        commands[name] = [sys.executable, "-m", "tests.chaos.conductor", str(clock), *way]
    if not real:
        for kind in SCRIPTED:
            ledger = str(folder / "ledger.jsonl")
            commands[kind] = [sys.executable, "-m", "tests.chaos.workers", kind, ledger, str(seed)]
    return commands


def _prepare(folder: Path, submitters: Sequence[str]) -> None:
    """Makes the folder, with what the real Researcher finds the known answers in."""
    folder = folder / "documents"
    folder.mkdir(parents=True)
    for who in submitters:
        for part in range(DOCUMENTS):
            first = part * TASKS_A_DOCUMENT + 1
            tokens = [token_of(who, count) for count in range(first, first + TASKS_A_DOCUMENT)]
            lines = [f"## {token}\n\nThe answer to {token} is {answer_of(token)}.\n" for token in tokens]
            (folder / f"{who}-{part}.md").write_text(f"# Answers of {who}\n\n" + "\n".join(lines))
