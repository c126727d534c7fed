"""Stories of commands on disk: of another process, killed, damaged, from another time."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.common.config import ConfigError
from services.common.errors import Reason, Refusal
from services.terminal.calls import Calls
from services.terminal.stories import HEADER, LENGTH, Moment, State
from tests.calls_at_hand import (
    MIB,
    WHOLE,
    Big,
    Open,
    Scripted,
    calls,
    never,
    opened,
    output,
    refused,
    rest,
    result,
    story_file,
    tell,
    written,
)
from tests.conftest import until

__all__ = ["calls", "opened"]


HOUR_NS = 3600 * 10**9

REPOSITORY = Path(__file__).resolve().parent.parent

CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from services.terminal.calls import Calls
from tests.calls_at_hand import Scripted, STARTED, chunk, result, tell, settled

async def main(folder, how):
    calls = Calls(Path(folder), 3600, 1 << 26)
    await calls.start()
    await tell(calls, "ended", Scripted(STARTED, chunk(b"x" * 100_000), result(exit_code=5)))
    if how == "begin":
        calls.run("killed", b"print", lambda: os.kill(os.getpid(), signal.SIGKILL))
    if how == "middle":
        command = Scripted(STARTED, *[chunk(b"x" * 65_536)] * 3, result(), hold=True)
        followers = [calls.run(name, b"print", command.begin) for name in ("killed", "killed-2")]
        await settled(command)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "storm":
        log = os.open(Path(folder).parent / "begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        ended = os.open(Path(folder).parent / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        class Logged(Scripted):
            def begin(self):
                os.write(log, self.name + b"\\n")
                return self
        async def one(number):
            command = Logged(STARTED, *[chunk(os.urandom(50_000))] * (number % 4), result())
            command.name = b"s-%d" % number
            await tell(calls, command.name.decode(), command)
            os.write(ended, command.name + b"\\n")
        for number in range(0, 1_000_000, 8):
            await asyncio.gather(*(one(number + more) for more in range(8)))
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def child(folder: Path, how: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", CHILD, str(folder / "calls"), how]
    return subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:gen"})


@pytest.mark.parametrize("how", ["begin", "middle"])
async def test_killed_in_the_middle(opened: Open, tmp_path: Path, how: str) -> None:
    with child(tmp_path, how) as process:
        assert await asyncio.to_thread(process.wait, 20) == -signal.SIGKILL
    calls = await opened()
    told = await never(calls, "ended")
    assert (len(output(told)), told[-1]) == (100_000, result(exit_code=5))
    for _ in range(2):
        for name in ("killed", "killed-2") if how == "middle" else ("killed",):
            with refused("OUTCOME_UNKNOWN"):
                await never(calls, name)
            with refused("REQUEST_ID_REUSED"):
                calls.run(name, b"something else", Scripted().begin)
            assert story_file(tmp_path, name).stat().st_size == HEADER.size
        calls = await opened()


async def test_killed_at_any_moment(opened: Open, tmp_path: Path) -> None:
    with child(tmp_path, "storm") as process:
        await until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").stat().st_size > 2000, 20)
        process.kill()
    begun = (tmp_path / "begun").read_text().splitlines()
    told = set((tmp_path / "told").read_text().splitlines())
    assert len(begun) == len(set(begun))
    calls = await opened()
    for name in begun:
        try:
            story = await never(calls, name)
            assert story[-1] == result() and len(output(story)) == int(name[2:]) % 4 * 50_000
        except Refusal as refusal:
            assert refusal.error.reason == Reason.ERROR_REASON_OUTCOME_UNKNOWN and name not in told, name


DAMAGED = {
    "empty": b"",
    "torn header": written(State.ENDED)[:50],
    "other format": b"story 9\n" + written(State.ENDED)[8:],
    "impossible state": written(State.ENDED)[:8] + b"\x09" + written(State.ENDED)[9:],
    "noise": bytes(range(256)) * 10,
    "torn frame": written(State.RUNNING, *WHOLE)[:-3],
    "torn length": written(State.RUNNING, *WHOLE[:2], b"\1\0"),
    "running, with a result": written(State.RUNNING, *WHOLE),
    "unknown": written(State.UNKNOWN, *WHOLE[:1]),
    "unknown, with a result": written(State.UNKNOWN, *WHOLE, result_at=HEADER.size),
}
ZEROS = b"\0" * 32
ENDED_DAMAGED = {
    "no result": written(State.ENDED, *WHOLE[:2]),
    "cut": written(State.ENDED, *WHOLE)[:-3],
    "cut in the length": written(State.ENDED, *WHOLE[:2], b"\1\0"),
    "nothing": written(State.ENDED),
    "no message": written(State.ENDED, WHOLE[0], LENGTH.pack(4) + b"\xff\xff\xff\xff", WHOLE[2]),
    "absurd length": written(State.ENDED, WHOLE[0], b"\xff\xff\xff\xff", WHOLE[2]),
    "zeros": written(State.ENDED, WHOLE[0], b"\0" * 4096),
}


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / "calls").mkdir(mode=0o700, exist_ok=True)
    path = story_file(folder, name)
    path.write_bytes(content)
    return path


def with_fingerprint(content: bytes) -> bytes:
    """Makes a story belong to what `tell` asks for."""
    return content.replace(ZEROS, hashlib.sha256(b"print").digest(), 1) if content.startswith(b"story 1") else content


@pytest.mark.parametrize("content", [*DAMAGED.values(), *ENDED_DAMAGED.values()], ids=[*DAMAGED, *ENDED_DAMAGED])
async def test_what_cannot_be_read_is_not_run(opened: Open, tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "c", with_fingerprint(content))
    put(tmp_path, "good", with_fingerprint(written(State.ENDED, *WHOLE, result_at=HEADER.size)))
    calls = await opened()
    assert (await never(calls, "good"))[-1] == result()
    for _ in range(2):
        with refused("OUTCOME_UNKNOWN"):
            await never(calls)


async def test_strange_entries(opened: Open, tmp_path: Path) -> None:
    half = put(tmp_path, "c", b"x").rename(tmp_path / "calls" / "c.new")
    (tmp_path / "calls" / "notes.txt").write_text("kept")
    os.mkfifo(story_file(tmp_path, "fifo"))
    calls = await opened()
    with refused("OUTCOME_UNKNOWN"):
        await never(calls, "fifo")
    assert not half.exists() and (tmp_path / "calls" / "notes.txt").exists()
    command = Scripted()
    put(tmp_path, "foreign", b"appeared meanwhile")
    with refused("SANDBOX_UNAVAILABLE") as told:
        await tell(calls, "foreign", command)
    assert (told["layer"], told["errno"], command.begun) == ("calls", "EEXIST", 0)
    await tell(calls)
    story_file(tmp_path).unlink()
    with refused("OUTCOME_UNKNOWN"):
        await never(calls)


async def test_one_process_at_a_time(calls: Calls, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in use by another"):
        await Calls(tmp_path / "calls", 60, MIB).start()
    assert (tmp_path / "calls").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link", "file/below"):
        with pytest.raises(ConfigError, match="cannot be used"):
            await Calls(tmp_path / name, 60, MIB).start()


# Time


async def test_a_story_is_forgotten_when_its_time_is_over(opened: Open, tmp_path: Path) -> None:
    calls = await opened(keep_s=0.3)
    held = Scripted(hold=True)
    running = calls.run("running", b"print", held.begin)
    await tell(calls, "ended")
    assert await never(calls, "ended")
    begin = time.monotonic()
    await until(lambda: not story_file(tmp_path, "ended").exists())
    assert time.monotonic() - begin > 0.2
    assert await tell(calls, "ended") == list(Scripted().said)
    assert story_file(tmp_path, "running").exists()
    held.go_on.set()
    assert (await rest(running))[-1] == result()


async def test_it_is_over_at_its_time_and_not_at_the_next_sweep(opened: Open) -> None:
    calls = await opened(keep_s=0.2)
    for _ in range(3):
        await tell(calls)
        over = time.monotonic() + 0.25
        assert await never(calls)
        await until(lambda over=over: time.monotonic() > over)  # type: ignore[misc]


async def test_who_is_being_told_is_told_to_the_end(opened: Open, tmp_path: Path) -> None:
    calls = await opened(keep_s=0.2)
    await tell(calls, command=Big(MIB))
    follower = calls.run("c", b"print", Scripted().begin)
    await anext(follower)
    await until(lambda: not story_file(tmp_path).exists())
    assert len(output(await rest(follower))) == MIB


NOW = Moment.now()
ANOTHER_BOOT = NOW._replace(boot_id=b"another")
MOVED = {
    "same boot, clock set back": (NOW._replace(wall_ns=NOW.wall_ns + 99 * HOUR_NS), True),
    "same boot, clock set on": (NOW._replace(wall_ns=0), True),
    "same boot, its time over": (NOW._replace(boot_ns=NOW.boot_ns - HOUR_NS, wall_ns=NOW.wall_ns), False),
    "other boot": (ANOTHER_BOOT._replace(wall_ns=NOW.wall_ns - HOUR_NS // 2), True),
    "other boot, its time over": (ANOTHER_BOOT._replace(wall_ns=NOW.wall_ns - HOUR_NS), False),
    "other boot, clock set back": (ANOTHER_BOOT._replace(wall_ns=NOW.wall_ns + 99 * HOUR_NS), True),
    "boot unknown": (NOW._replace(boot_id=b"", boot_ns=0), True),
}


@pytest.mark.parametrize(("ended", "kept"), MOVED.values(), ids=MOVED)
async def test_clocks_that_move(opened: Open, tmp_path: Path, ended: Moment, kept: bool) -> None:
    put(tmp_path, "c", with_fingerprint(written(State.ENDED, *WHOLE, ended=ended)))
    calls, command = await opened(), Scripted()
    await tell(calls, command=command)
    assert command.begun == (not kept)


def test_a_moment_of_an_unknown_boot_is_told_by_the_wall_clock() -> None:
    assert Moment(b"", 100, 7).until(Moment(b"", 900, 9)) == 2
    assert Moment(b"a", 100, 7).until(Moment(b"a", 900, 9)) == 800
    assert Moment(b"a", 100, 9).until(Moment(b"b", 900, 7)) == 0


async def test_a_story_from_the_future_is_not_kept_longer(opened: Open, tmp_path: Path) -> None:
    future = ANOTHER_BOOT._replace(wall_ns=NOW.wall_ns + 99 * HOUR_NS)
    put(tmp_path, "c", with_fingerprint(written(State.ENDED, *WHOLE, ended=future)))
    put(tmp_path, "a", with_fingerprint(written(State.ENDED, *WHOLE)))
    await opened(keep_s=0.3)
    await until(lambda: not list((tmp_path / "calls").iterdir()))
