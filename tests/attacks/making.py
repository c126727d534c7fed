"""Makes one attack on a Terminal: lays out its ground, runs it through the contract, keeps what came back."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import terminal_pb2
from google.protobuf import duration_pb2

from tests.attacks.attack import BATCH_WALL_S, BEGUN, LIMITS, Attack, command, outputs
from tests.attacks.ground import State, laid_out, state_of
from tests.attacks.scene import Scene, with_argument
from tests.attacks.settings import Terminal

SIBLING = "echo {secret} > s; echo $$; exec sleep 300.{secret}"
GONE_S = 5.0
BUSY_S = 0.3  # what an attack gets before its caller goes away


@contextlib.asynccontextmanager
async def made(terminal: Terminal, stub: Any, *attacks: Attack) -> AsyncIterator[list[Scene]]:
    """Makes attacks by one command. Within the block their grounds are still there to be looked at."""
    service = {"SERVICE": terminal.process.pid, "SERVICE_PORT": terminal.port, "DISKS_OUTSIDE": " ".join(_disks())}
    with contextlib.ExitStack() as stack:
        scenes = []
        for attack in attacks:
            ground = stack.enter_context(laid_out(terminal.uid, attack.victim))
            scenes.append(Scene(terminal, attack, ground, {**ground.told(), **service}))
        async with _sibling(scenes[0], stub) if attacks[0].sibling else contextlib.nullcontext():
            await _run(scenes, stub)
        yield scenes


def _disks() -> list[str]:
    return [f"/dev/{line.split()[3]}" for line in Path("/proc/partitions").read_text().splitlines()[2:]]


async def _run(scenes: list[Scene], stub: Any) -> None:
    first = scenes[0]
    told = [scene.told for scene in scenes]
    order = command([scene.attack for scene in scenes], told)
    wall = {"wall_time": BATCH_WALL_S} if first.attack.batched else {}
    order.limits.CopyFrom(_limits(LIMITS | first.attack.limits | wall))
    request = terminal_pb2.RunRequest(call_id=f"attack-{uuid.uuid4().hex}", command=order)
    watch = asyncio.ensure_future(first.attack.meanwhile(first)) if first.attack.meanwhile else None
    begin = time.monotonic()
    try:
        await _follow(first, stub.Run(request))
    except grpc.aio.AioRpcError as error:
        first.refusal = f"{error.code().name}: {error.details()}"
    if watch:
        watch.cancel()
        await asyncio.wait([watch])
        if not watch.cancelled() and watch.exception():
            raise AssertionError("the watch outside broke") from watch.exception()
    seconds = time.monotonic() - begin
    if not first.attack.argv:
        streams = zip(outputs(first.stdout, told), outputs(first.stderr, told), strict=True)
        for scene, (stdout, stderr) in zip(scenes, streams, strict=True):
            scene.stdout, scene.stderr = stdout, stderr
            scene.seconds, scene.result, scene.refusal = seconds, first.result, first.refusal


async def _follow(scene: Scene, call: Any) -> None:
    while (response := await call.read()) is not grpc.aio.EOF:
        kind = response.WhichOneof("event")
        if kind == "result":
            scene.result = response.result
        elif kind == "chunk" and response.chunk.stream == terminal_pb2.OUTPUT_STREAM_STDERR:
            scene.stderr += response.chunk.data
        elif kind == "chunk":
            scene.stdout += response.chunk.data
        if scene.attack.cancel and BEGUN.encode() in scene.stdout:
            await asyncio.sleep(BUSY_S)  # nothing outside shows how far it is
            call.cancel()
            await _gone(scene)
            return


async def _gone(scene: Scene) -> None:
    deadline = time.monotonic() + GONE_S
    while scene.marked() and time.monotonic() < deadline:  # noqa: ASYNC110 - other processes set no event
        await asyncio.sleep(0.02)


def _limits(wanted: dict[str, Any]) -> terminal_pb2.Limits:
    times = {name: value for name, value in wanted.items() if name.endswith("_time")}
    exact = {name: duration_pb2.Duration(seconds=int(s), nanos=int(s % 1 * 1e9)) for name, s in times.items()}
    return terminal_pb2.Limits(**wanted | exact)


@contextlib.asynccontextmanager
async def _sibling(scene: Scene, stub: Any) -> AsyncIterator[None]:
    """Runs another command meanwhile, tells the attack about it, and looks at what became of it."""
    secret = scene.ground.secret
    order = terminal_pb2.Command(script=SIBLING.format(secret=secret), env={"SIBLING_SECRET": secret})
    call = stub.Run(terminal_pb2.RunRequest(call_id=f"sibling-{uuid.uuid4().hex}", command=order))
    text = b""
    while not text.endswith(b"\n"):
        response = await call.read()
        text += response.chunk.data
    workspaces = scene.terminal.workspaces
    before = await _until_sleeping(secret)
    homes = _homes(workspaces, secret)
    pid = next(iter(before))
    scene.told.update(SIBLING=pid, SIBLING_INNER=int(text), SIBLING_HOME=next(iter(homes), "unknown"))
    yield
    for what, then, now in (("process", before, _processes(secret)), ("files", homes, _homes(workspaces, secret))):
        if then != now:
            scene.seen.append(f"the sibling's {what} changed from {then} to {now}")
    # Which other workspaces there are is not a command's business either.
    if any(name.encode() in scene.stdout for name in homes):
        scene.seen.append("the sibling's workspace was listed")
    call.cancel()


async def _until_sleeping(secret: str) -> dict[int, State]:
    deadline = time.monotonic() + GONE_S
    while not (found := _processes(secret)):
        assert time.monotonic() < deadline, "the sibling did not start"
        await asyncio.sleep(0.01)
    return found


def _processes(secret: str) -> dict[int, State]:
    """Returns the processes of the sibling: only those that run `sleep`, and not the victim, which does too."""
    found = {}
    for pid in with_argument(f"300.{secret}"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if words[0] == b"sleep":  # the victim's is /bin/sleep
                found[pid] = {"stopped": fields[0] in "Tt", "nice": fields[16]}
    return found


def _homes(workspaces: Path, secret: str) -> State:
    """Returns the state of the workspaces that hold the sibling's file, as far as the outside sees them."""
    homes = [path.parent for path in workspaces.glob("*/s") if path.read_text() == f"{secret}\n"]
    return {home.name: state_of(home) for home in homes}
