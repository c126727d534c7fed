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
AT_ONCE, SLOW_AT_ONCE = 4, 6
BATCH = 12
QUIET_S = 5.0
SETTLED = 6  # looks that agree
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
        await _settle(terminal, stub)
        before = _remains(terminal)
        verdicts = await make_all(terminal, stub, [attack for attack in attacks if not attack.alone])
        verdicts |= {name: verdict async for name, verdict in _after(terminal, before)}
        for attack in attacks:
            if attack.alone:
                verdicts |= await _verdicts(terminal, stub, [attack])
        return verdicts


async def make_all(terminal: Terminal, stub: Any, attacks: Sequence[Attack]) -> Verdicts:
    """Makes attacks that do not disturb each other, as many at once as the machine bears."""
    turns, slow = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(SLOW_AT_ONCE)

    async def one(batch: Sequence[Attack]) -> Verdicts:
        async with slow if batch[0].slow else turns:
            return await _verdicts(terminal, stub, batch)

    return {
        name: verdict for found in await asyncio.gather(*map(one, _batches(attacks))) for name, verdict in found.items()
    }


def _batches(attacks: Sequence[Attack]) -> Iterator[Sequence[Attack]]:
    """Returns what is made at once, at last the batches."""
    yield from ([attack] for attack in attacks if not attack.batched)
    batched = [attack for attack in attacks if attack.batched]
    yield from (batched[at : at + BATCH] for at in range(0, len(batched), BATCH))


async def _verdicts(terminal: Terminal, stub: Any, attacks: Sequence[Attack]) -> Verdicts:
    async with made(terminal, stub, *attacks) as scenes:
        left = scenes[0].marked()
        verdicts = {scene.attack.name: _verdict(scene, left) for scene in scenes}
        if left:
            scenes[0].end_what_is_left()
        return verdicts


def _verdict(scene: Scene, left: list[int]) -> Verdict:
    if broken := _broken(scene):
        return Verdict(BROKE, broken)
    evidence = list(scene.evidence(left))
    return Verdict(OPEN, "; ".join(evidence)) if evidence else Verdict(CONTAINED)


def _broken(scene: Scene) -> str:
    """Tells why the attack was not made as written, or ""."""
    _, broken, why = scene.stdout.partition(f"{BROKEN} {scene.ground.proof}".encode())
    if broken:
        return why[:300].decode(errors="replace")
    if not scene.attack.argv and BEGUN.encode() not in scene.stdout:
        return f"it never began: {scene.refusal or scene.end} {scene.stderr[:300]!r}"
    return ""


async def _settle(terminal: Terminal, stub: Any) -> None:
    """Waits until the Terminal has started what it starts for itself."""
    await _verdicts(terminal, stub, [Attack("settle", "pass")])
    seen: list[int] = []
    deadline = time.monotonic() + QUIET_S
    while len(seen) < SETTLED or len(set(seen[-SETTLED:])) > 1:
        assert time.monotonic() < deadline, f"the Terminal does not come to rest: {seen}"
        await asyncio.sleep(0.05)
        seen.append(len(_remains(terminal)["after_processes"]))


async def _after(terminal: Terminal, before: dict[str, set[Any]]) -> AsyncIterator[tuple[str, Verdict]]:
    """Waits until there is no more of anything than before the campaign; tells what there is."""
    deadline = time.monotonic() + QUIET_S
    found = _remains(terminal)
    while any(len(now) > len(before[name]) for name, now in found.items()) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        found = _remains(terminal)
    for name, now in found.items():
        more = len(now) > len(before[name])
        yield name, Verdict(OPEN, f"left: {sorted(now - before[name])}") if more else Verdict(CONTAINED)


def _remains(terminal: Terminal) -> dict[str, set[Any]]:
    """Returns what commands could leave: processes below the service, dead ones too, folders, descriptors."""
    pid = terminal.process.pid
    return {
        "after_processes": set(below(pid)),
        "after_workspaces": {path.name for path in terminal.workspaces.iterdir()},
        "after_descriptors": {target for target in _descriptors(pid) if target.startswith(OF_COMMANDS)},
    }


def _descriptors(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(path.readlink())
