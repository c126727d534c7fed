"""All attacks on one Terminal: at once where they do not disturb each other, and what became of each."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import terminal_pb2_grpc

from tests.attacks import files, kernel, life, network, processes, resources, work
from tests.attacks.attack import BEGUN, BROKEN, Attack
from tests.attacks.making import made
from tests.attacks.scene import Scene, below
from tests.attacks.settings import Setting, Terminal, started

GROUPS: dict[str, tuple[Attack, ...]] = {
    "files": files.ATTACKS,
    "processes": processes.ATTACKS,
    "network": network.ATTACKS,
    "resources": resources.ATTACKS,
    "life": life.ATTACKS,
    "kernel": kernel.ATTACKS,
    "work": work.ATTACKS,
}
AFTER = ("after_processes", "after_workspaces", "after_descriptors")  # what the whole campaign must not leave
AT_ONCE, HEAVY_AT_ONCE = 8, 3
QUIET_S = 5.0
OF_COMMANDS = ("pipe:", "/memfd:", "anon_inode:[pidfd]")  # descriptors the service holds for a command
CONTAINED, OPEN, BROKE = "contained", "open", "broken"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an attack: contained, open with the evidence, or broken, when it was not made as written."""

    state: str
    evidence: str = ""


Verdicts = dict[str, Verdict]


def everything() -> list[Attack]:
    """Returns all attacks, in the order of their groups."""
    return [attack for group in GROUPS.values() for attack in group]


def chosen(tier: str) -> list[Attack]:
    """Returns the attacks to make in a tier. Bombs, and what touches everybody, are made only where something holds."""
    return [attack for attack in everything() if tier != "none" or not (attack.heavy or attack.alone or attack.work)]


def run(setting: Setting, tier: str, attacks: Sequence[Attack] | None = None) -> Verdicts:
    """Starts a Terminal and makes attacks on it, all by default. Raises Missing when it cannot be had."""
    with started(setting, tier) as terminal:
        return asyncio.run(_run(terminal, chosen(tier) if attacks is None else attacks))


async def _run(terminal: Terminal, attacks: Sequence[Attack]) -> Verdicts:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{terminal.port}") as channel:
        stub = terminal_pb2_grpc.TerminalStub(channel)
        before = _remains(terminal)
        turns, heavy = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(HEAVY_AT_ONCE)

        async def one(attack: Attack) -> tuple[str, Verdict]:
            if not attack.heavy:
                async with turns:
                    return attack.name, await _verdict(terminal, stub, attack)
            async with heavy, turns:
                return attack.name, await _verdict(terminal, stub, attack)

        # The bombs first: they sleep most of their time.
        together = sorted((attack for attack in attacks if not attack.alone), key=lambda attack: not attack.heavy)
        verdicts = dict(await asyncio.gather(*map(one, together)))
        verdicts.update({name: verdict async for name, verdict in _after(terminal, before)})
        for attack in attacks:
            if attack.alone:
                verdicts[attack.name] = await _verdict(terminal, stub, attack)
        return verdicts


async def _verdict(terminal: Terminal, stub: Any, attack: Attack) -> Verdict:
    async with made(terminal, stub, attack) as scene:
        evidence = list(scene.evidence())
        if broken := _broken(scene):
            return Verdict(BROKE, broken)
        return Verdict(OPEN, "; ".join(evidence)) if evidence else Verdict(CONTAINED)


def _broken(scene: Scene) -> str:
    """Tells why the attack was not made as written, or ""."""
    if BROKEN.encode() in scene.stdout:
        return scene.stdout[scene.stdout.index(BROKEN.encode()) :][:300].decode(errors="replace")
    if not scene.attack.argv and BEGUN.encode() not in scene.stdout:
        return f"it never began: {scene.refusal or scene.end} {scene.stderr[:300]!r}"
    return ""


async def _after(terminal: Terminal, before: dict[str, set[Any]]) -> AsyncIterator[tuple[str, Verdict]]:
    """Waits until the Terminal is as it was before the campaign; tells what is not."""
    deadline = time.monotonic() + QUIET_S
    while (left := {name: _remains(terminal)[name] - had for name, had in before.items()}) and any(left.values()):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.05)
    for name, found in left.items():
        yield name, Verdict(OPEN, f"left: {sorted(found)}") if found else Verdict(CONTAINED)


def _remains(terminal: Terminal) -> dict[str, set[Any]]:
    """Returns what commands could leave: processes below the service, zombies too, folders, descriptors."""
    pid = terminal.process.pid
    return {
        "after_processes": {process for process, _ in below(pid)},
        "after_workspaces": {path.name for path in terminal.workspaces.iterdir()},
        "after_descriptors": {target for target in _descriptors(pid) if target.startswith(OF_COMMANDS)},
    }


def _descriptors(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(path.readlink())
