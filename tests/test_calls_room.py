"""What is remembered of commands keeps within its room, also on a disk that is full."""

import asyncio
import contextlib
import os
import resource
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from conductor.v1 import terminal_pb2

from services.terminal.calls import Calls
from services.terminal.stories import State
from services.terminal.telling import WINDOW_BYTES
from tests.calls_at_hand import (
    ERR,
    MIB,
    STARTED,
    WHOLE,
    Big,
    Open,
    Scripted,
    calls,
    chunk,
    descriptors,
    never,
    opened,
    output,
    refused,
    rest,
    result,
    settled,
    tell,
    written,
)
from tests.conftest import until

__all__ = ["calls", "opened"]


# Room


def disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (folder / "calls").iterdir())


async def test_the_oldest_lose_their_output_first(opened: Open, tmp_path: Path) -> None:
    calls = await opened(max_bytes=8 * MIB)
    said = [STARTED, chunk(b"x" * 65_536), *[chunk(b"y" * 65_536, ERR)] * 15, result(stderr_dropped_bytes=5)]
    for number in range(30):
        assert await tell(calls, f"c-{number}", Scripted(*said)) == said
        assert disk(tmp_path) <= 8 * MIB
    stripped = [STARTED, result(stdout_dropped_bytes=65_536, stderr_dropped_bytes=15 * 65_536 + 5)]
    for _ in range(2):
        told = [await never(calls, f"c-{number}") for number in range(30)]
        assert told[-6:] == [said] * 6
        assert told[:-6] == [stripped] * 24
        calls = await opened(max_bytes=8 * MIB)


async def test_output_is_taken_out_once(opened: Open) -> None:
    calls = await opened(max_bytes=4 * MIB)
    files = [terminal_pb2.OutputFile(path=f"{n:0100}") for n in range(100)]
    await tell(calls, "c", Scripted(STARTED, chunk(b"x" * 65_536), result(files=files)))
    for part in "ab":
        for number in range(8):
            await tell(calls, f"{part}-{number}", Big(MIB // 2))
        assert await never(calls, "c") == [STARTED, result(files=files, stdout_dropped_bytes=65_536)]
        calls = await opened(max_bytes=4 * MIB)


async def test_a_story_that_outgrows_its_share(opened: Open, tmp_path: Path) -> None:
    calls = await opened(max_bytes=8 * MIB)
    command = Big(24 * MIB, hold=True)
    first = calls.run("c", b"print", command.begin)
    second = calls.run("c", b"print", command.begin)
    heard, also = 0, 0
    while heard < 16 * MIB:
        heard += len((await anext(first)).chunk.data)
        also += len((await anext(second)).chunk.data)
    late = calls.run("c", b"print", command.begin)
    assert await settled(command) <= 16 * MIB + WINDOW_BYTES + 2 * 65_536  # who comes late does not hold it up
    command.go_on.set()
    for story in await asyncio.gather(rest(first), rest(second)):
        assert (heard + len(output(story)), story[-1]) == (24 * MIB, result())
    kept = await rest(late)
    assert kept[0] == STARTED
    assert MIB < len(output(kept)) < 2 * MIB
    assert kept[-1] == result(stdout_dropped_bytes=24 * MIB - len(output(kept)))
    assert await never(calls) == kept
    assert await never(await opened(max_bytes=8 * MIB)) == kept
    assert disk(tmp_path) <= 2 * MIB


async def test_a_long_story_takes_little_memory_and_disk(opened: Open, tmp_path: Path) -> None:
    """Of 256 MiB, no more than the window is ever in memory, and no more than the share on the disk."""
    calls = await opened(max_bytes=8 * MIB)
    command = Big(256 * MIB)
    follower, heard = calls.run("c", b"print", command.begin), 0
    tracemalloc.start()
    try:
        async for response in follower:
            heard += len(response.chunk.data)
            assert heard % (16 * MIB) or disk(tmp_path) <= 2 * MIB
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        follower.leave()
    assert heard == 256 * MIB
    assert peak < 6 * MIB


async def test_room_that_running_stories_have_is_not_taken(opened: Open, tmp_path: Path) -> None:
    calls = await opened(max_bytes=4 * MIB)
    commands = [Big(MIB - 65_536, hold=True) for _ in range(8)]
    followers = [calls.run(f"c-{number}", b"print", each.begin) for number, each in enumerate(commands)]
    for command in commands:
        await settled(command)
    assert disk(tmp_path) <= 4 * MIB
    for command in commands:
        command.go_on.set()
    for follower in followers:
        story = await rest(follower)
        assert (len(output(story)), story[-1]) == (MIB - 65_536, result())
    for number in range(8):
        story = await never(calls, f"c-{number}")
        assert len(output(story)) + story[-1].result.stdout_dropped_bytes == MIB - 65_536


async def test_beyond_the_count_the_oldest_are_forgotten(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = await opened(max_stories=10, keep_s=3600)
    held = Scripted(hold=True)
    running = calls.run("running", b"print", held.begin)
    for number in range(25):
        await tell(calls, f"c-{number}")
    left = {path.name for path in (tmp_path / "calls").iterdir()}
    assert left == {"running.story", *(f"c-{number}.story" for number in range(16, 25))}
    held.go_on.set()
    await rest(running)
    calls = await opened(max_stories=3)
    await until(lambda: len(list((tmp_path / "calls").iterdir())) == 3)
    assert "forgotten before their time" in caplog.text
    assert await never(calls, "c-24")


async def test_a_restart_keeps_the_order_of_ends(calls: Calls, opened: Open, tmp_path: Path) -> None:
    for name in ("m", "z", "a", "y", "b"):
        await tell(calls, name)
    await opened(max_stories=3)
    await until(lambda: {path.stem for path in (tmp_path / "calls").iterdir()} == {"a", "y", "b"})


async def test_output_does_not_cost_other_ids_their_place(opened: Open) -> None:
    """Commands that fill all the room meanwhile make nobody forget what has ended."""
    calls = await opened(max_bytes=4 * MIB)
    for number in range(50):
        await tell(calls, f"small-{number}")
    commands = [Big(MIB - 65_536, hold=True) for _ in range(6)]
    followers = [calls.run(f"big-{number}", b"print", each.begin) for number, each in enumerate(commands)]
    for command in commands:
        await settled(command)
    for number in range(50, 100):
        await tell(calls, f"small-{number}")
    for number in range(100):
        assert await never(calls, f"small-{number}") == list(Scripted().said)
    for follower in followers:
        follower.leave()


async def test_when_all_that_is_remembered_runs(opened: Open) -> None:
    calls = await opened(max_stories=2)
    commands = [Scripted(hold=True) for _ in range(2)]
    followers = [calls.run(f"c-{number}", b"print", each.begin) for number, each in enumerate(commands)]
    with refused("OVER_CAPACITY") as told:
        await tell(calls, "c-2")
    assert told["limit"] == "2"
    for follower in followers:
        follower.leave()


async def test_smaller_settings_after_a_restart(calls: Calls, opened: Open, tmp_path: Path) -> None:
    for number in range(40):
        await tell(calls, f"c-{number}", Big(MIB // 4))
    calls = await opened(max_bytes=2 * MIB)
    await until(lambda: disk(tmp_path) <= 2 * MIB)
    for number in range(40):
        story = await never(calls, f"c-{number}")
        assert len(output(story)) + story[-1].result.stdout_dropped_bytes == MIB // 4


async def test_thousands_of_calls(calls: Calls, tmp_path: Path) -> None:
    async def some(part: int) -> None:
        for number in range(250):
            name = f"c-{part}-{number}"
            command = Scripted(STARTED, chunk(name.encode()), result())
            assert output(await tell(calls, name, command)) == output(await never(calls, name)) == name.encode()

    await asyncio.gather(*(some(part) for part in range(10)))
    assert descriptors(tmp_path) == [str(tmp_path / "calls")]
    assert len(list((tmp_path / "calls").iterdir())) == 2500


# A disk that is full


@contextlib.contextmanager
def file_size(most: int) -> Iterator[None]:
    """Lets this process write no file beyond a size: EFBIG, as ENOSPC would come."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 50])
async def test_no_room_for_the_record(calls: Calls, tmp_path: Path, room: int) -> None:
    command = Scripted()
    with file_size(room), refused("SANDBOX_UNAVAILABLE") as told:
        await tell(calls, command=command)
    assert (told["layer"], told["errno"], command.begun) == ("calls", "EFBIG", 0)
    assert "nothing ran" in told["message"] and "space" in told["message"]
    assert not list((tmp_path / "calls").iterdir())
    assert await tell(calls, command=command) == list(command.said)


async def test_no_room_for_the_output(calls: Calls, opened: Open) -> None:
    """The command goes on, its readers are told everything, and who comes later what is there."""
    command = Big(4 * MIB)
    with file_size(MIB + 30_000):
        story = await tell(calls, command=command)
    assert (len(output(story)), story[-1], command.cancelled) == (4 * MIB, result(), 0)
    kept = await never(calls)
    assert len(output(kept)) == MIB
    assert kept[-1] == result(stdout_dropped_bytes=3 * MIB)
    assert await never(await opened()) == kept


async def test_no_room_for_the_result(calls: Calls, opened: Open) -> None:
    command = Scripted(STARTED, chunk(b"x" * 1000), result())
    with file_size(len(written(State.RUNNING, *WHOLE)) - 1):
        assert await tell(calls, command=command) == list(command.said)
    for _ in range(2):
        with refused("OUTCOME_UNKNOWN"):
            await never(calls)
        calls = await opened()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    (path := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


async def test_a_disk_that_is_full_indeed(small_disk: Path) -> None:
    calls = Calls(small_disk / "calls", 60, 64 * MIB)
    await calls.start()
    story = await tell(calls, "big", Big(2 * MIB))
    assert (len(output(story)), story[-1]) == (2 * MIB, result())
    kept = await never(calls, "big")
    assert len(output(kept)) + kept[-1].result.stdout_dropped_bytes == 2 * MIB
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(b"x" * MIB)
    command = Scripted()
    with refused("SANDBOX_UNAVAILABLE") as told:
        await tell(calls, "next", command)
    assert (told["errno"], command.begun) == ("ENOSPC", 0)
    assert await never(calls, "big") == kept
    await calls.close()


async def test_no_descriptors_left(calls: Calls) -> None:
    await tell(calls, "ended")
    command = Scripted()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with refused("OVER_CAPACITY"):
            calls.run("c", b"print", command.begin)
        with refused("OVER_CAPACITY"):
            calls.run("ended", b"print", command.begin)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await never(calls, "ended")
    assert await tell(calls, command=command)


# The end of the service


async def test_close_cancels_and_remembers(calls: Calls, opened: Open) -> None:
    commands = [Scripted(hold=True), Big(8 * MIB, hold=True), Scripted(hold=True)]
    followers = [calls.run(f"c-{number}", b"print", each.begin) for number, each in enumerate(commands[:2])]
    waiting = asyncio.create_task(rest(followers[0]))
    for command in commands[:2]:
        await settled(command)
    calls.run("c-2", b"print", commands[2].begin)  # never begun
    again = await opened()
    for reader in (waiting, rest(followers[1])):
        with refused("SHUTTING_DOWN"):
            await reader
    assert [command.begun for command in commands] == [1, 1, 0]
    for number in range(2):
        assert (await never(again, f"c-{number}"))[-1] == result("CANCELLED")
    commands[2].go_on.set()
    assert await tell(again, "c-2", commands[2])
