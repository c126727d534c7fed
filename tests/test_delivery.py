"""A file brought into a workspace that hostile commands have used: whole in its place, or nothing is changed."""

import asyncio
import hashlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import terminal_pb2

from services.common.boundary import new_id
from services.common.config import TerminalSettings, load
from services.terminal.delivery import Delivery
from services.terminal.rooms import Rooms
from services.terminal.threads import to_its_end
from tests.conftest import until
from tests.terminals import KINDS, Process, Story, open_folder, refusal, serving

MIB = 1024 * 1024
Write = terminal_pb2.WriteFileRequest


@pytest.fixture(scope="module", params=KINDS)
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    limits = {"max_file_size_bytes": str(8 * MIB), "max_workspace_bytes": str(16 * MIB)}
    limits |= {"file_size_bytes": str(8 * MIB), "workspace_bytes": str(16 * MIB)}
    with open_folder() as folder, serving(folder, request.param, **limits) as process:
        yield process


@pytest.fixture
async def stub(process: Process) -> AsyncIterator[Any]:
    async with process.stub() as stub:
        yield stub


@pytest.fixture
def room() -> str:
    return f"w-{new_id()}"


def pieces(room: str, path: str, data: bytes, size: int = MIB, sha256: str = "") -> list[Write]:
    cut = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
    return [Write(workspace=room, path=path, sha256=sha256, data=cut[0]), *(Write(data=each) for each in cut[1:])]


async def write(stub: Any, room: str, path: str, data: bytes, **options: Any) -> terminal_pb2.OutputFile:
    written: terminal_pb2.OutputFile = await stub.WriteFile(iter(pieces(room, path, data, **options)))
    return written


async def stat(stub: Any, room: str, path: str) -> terminal_pb2.OutputFile:
    found: terminal_pb2.OutputFile = await stub.StatFile(terminal_pb2.ReadFileRequest(workspace=room, path=path))
    return found


async def sh(stub: Any, room: str, script: str) -> Story:
    """Runs a script in the workspace to its end, which must be a good one."""
    command = terminal_pb2.Command(script=script)
    story = None
    async for response in stub.Run(terminal_pb2.RunRequest(call_id=new_id(), command=command, workspace=room)):
        kind = response.WhichOneof("event")
        if kind == "started":
            story = Story(response.started)
        assert story is not None
        if kind == "chunk":
            story.chunks.append(response.chunk)
        if kind == "result":
            story.result = response.result
    assert story is not None and story.result is not None
    assert (story.end, story.result.exit_code) == ("EXITED", 0), story.stderr
    return story


def below(process: Process, room: str) -> dict[str, bytes]:
    """Returns every file of a workspace's own folder and of its inputs, by its path in the workspace."""
    top = process.workspaces / f"kept-{room}"
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3 * MIB + 7)], ids=["empty", "byte", "large"])
async def test_what_is_written_is_there_for_commands_and_for_who_asks(stub: Any, room: str, data: bytes) -> None:
    written = await write(stub, room, "in/deep er/data.csv", data, sha256=sha256(data))
    assert (written.path, written.size_bytes, written.sha256) == ("in/deep er/data.csv", len(data), sha256(data))
    assert await stat(stub, room, "in/deep er/data.csv") == written
    story = await sh(
        stub, room, 'sha256sum < "in/deep er/data.csv" && echo more >> "in/deep er/data.csv" && ls "$INPUTS"'
    )
    assert story.stdout.split() == [sha256(data).encode(), b"-"]
    assert (await stat(stub, room, "in/deep er/data.csv")).sha256 == sha256(data + b"more\n")


async def test_the_command_owns_what_was_written_also_between_its_own_files(
    process: Process, stub: Any, room: str
) -> None:
    """Hard links included: they were its own before, and must be after."""
    await sh(stub, room, "echo 1 > a; ln a b; mkdir mine; chmod 700 mine; echo 2 > mine/c; ln mine/c d; chmod 600 a d")
    await write(stub, room, "mine/given", b"3\n")
    await write(stub, room, "new/given", b"4\n")
    work = process.workspaces / f"kept-{room}" / "work"
    assert {path.lstat().st_uid for path in (work, *work.rglob("*"))} == {work.stat().st_uid}
    story = await sh(
        stub, room, "cat a b d mine/c mine/given new/given; rm -r mine new; echo 5 > a; stat -c %u . b | uniq"
    )
    assert story.stdout.split()[:6] == [b"1", b"1", b"2", b"2", b"3", b"4"]
    assert len(story.stdout.split()) == 7


async def test_what_stood_there_is_replaced_and_nothing_else_touched(stub: Any, room: str) -> None:
    await sh(
        stub, room, "echo old > f; ln f twin; mkfifo p; ln -s twin link; ln -s /etc/passwd out; echo x > ro; chmod 0 ro"
    )
    for name in ("f", "p", "link", "out", "ro"):
        await write(stub, room, name, b"new")
    story = await sh(
        stub, room, "for each in f p link out ro; do test -f $each -a ! -L $each && cat $each; done; cat twin"
    )
    assert story.stdout == b"new" * 5 + b"old\n"
    assert (await sh(stub, room, "test ! -L out && cat out")).stdout == b"new"


def outside() -> bool:
    """Whether something was written where a link leads."""
    return Path("/tmp/f").exists()


PLANTED = {
    "a link to a folder inside": ("mkdir inner; ln -s inner way", "way/f"),
    "a link to the outside": ("ln -s /tmp way", "way/f"),
    "a link upwards": ("ln -s .. way", "way/f"),
    "a link to itself": ("ln -s way way", "way/f"),
    "a link further down": ("mkdir -p a/b; ln -s /tmp a/b/way", "a/b/way/c/f"),
    "a FIFO on the way": ("mkfifo way", "way/f"),
    "a file on the way": ("echo > way", "way/f"),
    "a folder in its place": ("mkdir way", "way"),
    "a full folder in its place": ("mkdir way; echo > way/f", "way"),
    "a link to a folder in its place, with more behind": ("ln -s /tmp way", "way/.."),
}


@pytest.mark.parametrize("case", PLANTED)
async def test_what_a_command_planted_leads_nowhere(process: Process, stub: Any, room: str, case: str) -> None:
    script, path = PLANTED[case]
    await sh(stub, room, script)
    before = below(process, room)
    async with refusal("FILE_NOT_FOUND"):
        await write(stub, room, path, b"evil")
    assert below(process, room) == before and not outside()
    await sh(stub, room, "ls")  # it can be used again


@pytest.mark.parametrize(
    "path",
    ["/f", "/etc/passwd", "../f", "a/../f", "a/./f", "./f", ".", "..", "a//f", "f/", "/", "a\0b", "\0", "n" * 256,
     "n" * 256 + "/f"],
)  # fmt: skip
async def test_a_path_that_is_none_is_refused(process: Process, stub: Any, room: str, path: str) -> None:
    async with refusal("FILE_NOT_FOUND") as told:
        await write(stub, room, path, b"evil")
    assert "name a path" in told["message"]
    found = below(process, room) if (process.workspaces / f"kept-{room}").exists() else {}
    assert found == {}
    async with refusal("FILE_NOT_FOUND"):
        await stat(stub, room, path)


async def test_a_path_may_have_1024_bytes_and_no_more(stub: Any, room: str) -> None:
    longest = "/".join(["n" * 127] * 8)
    await write(stub, room, longest + "f", b"x")
    assert (await stat(stub, room, longest + "f")).size_bytes == 1
    async with refusal("INVALID_REQUEST"):
        await write(stub, room, longest + "ff", b"x")


@pytest.mark.parametrize(
    ("requests", "word"),
    [
        ([], "request"),
        ([Write(path="f", data=b"x")], "workspace"),
        ([Write(workspace="w", data=b"x")], "path"),
        ([Write(workspace="../w", path="f")], "workspace"),
        ([Write(workspace="w", path="f", sha256="no")], "sha256"),
        ([Write(workspace="w", path="f", data=bytes(MIB + 1))], "data"),
    ],
)
async def test_what_the_contract_does_not_have_is_refused(stub: Any, requests: Iterable[Write], word: str) -> None:
    async with refusal("INVALID_REQUEST") as told:
        await stub.WriteFile(iter(requests))
    assert word in told["message"]


async def test_another_sha256_changes_nothing(process: Process, stub: Any, room: str) -> None:
    await write(stub, room, "f", b"old")
    for data in (b"new", bytes(2 * MIB)):
        async with refusal("UPLOAD_REFUSED") as told:
            await write(stub, room, "f", data, sha256="0" * 64)
        assert told["sha256"] == sha256(data)
    assert below(process, room) == {"work/f": b"old"}


async def test_what_is_too_large_changes_nothing(process: Process, stub: Any, room: str) -> None:
    await write(stub, room, "f", b"old")
    async with refusal("COMMAND_LIMIT_EXCEEDED"):
        await write(stub, room, "f", bytes(8 * MIB + 1))
    await write(stub, room, "one", os.urandom(8 * MIB))
    async with refusal("COMMAND_LIMIT_EXCEEDED"):
        await write(stub, room, "two", os.urandom(8 * MIB))  # as the workspace would be too large
    assert sorted(below(process, room)) == ["work/f", "work/one"]


async def test_a_busy_workspace_is_refused_and_another_one_is_not(stub: Any, room: str) -> None:
    command = terminal_pb2.Command(script="echo begun; exec sleep 60")
    call = stub.Run(terminal_pb2.RunRequest(call_id=new_id(), command=command, workspace=room))
    await call.read()
    async with refusal("OVER_CAPACITY"):
        await write(stub, room, "f", b"x")
    await write(stub, f"{room}-2", "f", b"x")
    call.cancel()


async def begun(stub: Any, room: str, path: str = "f") -> Any:
    """Begins a file and does not end it."""
    call = stub.WriteFile()
    await call.write(Write(workspace=room, path=path, data=b"half"))
    return call


async def test_while_a_file_is_written_no_command_runs_and_no_other_file(
    process: Process, stub: Any, room: str
) -> None:
    call = await begun(stub, room)
    await until(lambda: (process.workspaces / f"kept-{room}" / "inputs" / "delivery").exists())
    for other in (write(stub, room, "g", b"x"), sh(stub, room, "ls")):
        async with refusal("OVER_CAPACITY"):
            await other
    await call.write(Write(data=b" and half"))
    await call.done_writing()
    assert (await call).size_bytes == 13
    assert (await sh(stub, room, "ls -A; ls -A $INPUTS; cat f")).stdout == b"f\nhalf and half"


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
async def test_a_caller_who_leaves_leaves_nothing(process: Process, room: str, how: str) -> None:
    async with process.stub() as stub:
        await write(stub, room, "f", b"old")
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{process.port}")
    half = channel.stream_unary(
        "/conductor.v1.Terminal/WriteFile", request_serializer=Write.SerializeToString,
        response_deserializer=terminal_pb2.OutputFile.FromString,
    )()  # fmt: skip
    await half.write(Write(workspace=room, path="f", data=b"half"))
    part = process.workspaces / f"kept-{room}" / "inputs" / "delivery"
    await until(part.exists)
    half.cancel() if how == "cancel" else await channel.close()
    await until(lambda: not part.exists())
    await channel.close()
    assert below(process, room) == {"work/f": b"old"}
    async with process.stub() as stub:

        async def free() -> bool:
            try:
                await write(stub, room, "f", b"new")
            except grpc.aio.AioRpcError:
                return False
            return True

        await until(free)
    assert below(process, room) == {"work/f": b"new"}


@pytest.mark.parametrize("tier", ["strong", "standard"])
async def test_a_kill_leaves_nothing_that_a_command_sees(room: str, tier: str) -> None:
    with open_folder() as folder:
        with serving(folder, tier=tier) as process:
            async with process.stub() as stub:
                await write(stub, room, "f", b"old")
                await begun(stub, room)
                await until(lambda: (process.workspaces / f"kept-{room}" / "inputs" / "delivery").exists())
                process.process.send_signal(signal.SIGKILL)
                process.process.wait(10)
        assert {path: data for path, data in below(process, room).items() if path.startswith("work/")} == {
            "work/f": b"old"
        }
        with serving(folder, tier=tier) as process:
            async with process.stub() as stub:
                assert (await sh(stub, room, "ls -A . $INPUTS | wc -w; cat f")).stdout.split()[-1] == b"old"
                await write(stub, room, "f", b"new")
                assert below(process, room) == {"work/f": b"new"}


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder whose workspaces lie on a disk of 2 MiB."""
    with open_folder() as folder:
        disk = folder / "workspaces"
        disk.mkdir(mode=0o711)
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0711", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a small disk, and not on every machine")
        yield folder
        subprocess.run(["umount", "-l", str(disk)], check=False)


async def test_a_full_disk_is_told_and_changes_nothing(small_disk: Path, room: str) -> None:
    with serving(small_disk, calls_bytes=str(64 * 1024)) as process:
        async with process.stub() as stub:
            await write(stub, room, "f", b"old")
            async with refusal("SANDBOX_UNAVAILABLE") as told:
                await write(stub, room, "f", bytes(4 * MIB))
            assert told["errno"] == "ENOSPC" and "space" in told["message"]
            assert below(process, room) == {"work/f": b"old"}
            await write(stub, room, "f", b"new")


async def test_one_who_is_cancelled_waits_for_the_disk() -> None:
    """A step of another thread must be over before what it uses is closed."""
    gate, over = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def step() -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(10)
        over.append(True)

    waiting = asyncio.create_task(to_its_end(step))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    assert not waiting.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert over == [True]


def test_a_delivery_that_was_never_opened_closes(tmp_path: Path) -> None:
    rooms = Rooms(60)
    rooms.open(tmp_path / "rooms", for_others=False)
    delivery = Delivery(rooms, "w", "f", load(TerminalSettings, {}))
    delivery.close()
    delivery.open()
    delivery.close()
    delivery.close()
    rooms.remove("w")
    rooms.close()
