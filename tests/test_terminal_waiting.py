"""Processes that wait for a command: what they hold, and what becomes of commands when they are killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.terminal.supervisor import WAITING
from tests.conftest import until
from tests.terminals import KINDS, REPOSITORY, Process, alive, children, open_folder, run, serving

TIERS = ("strong", "standard")


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def name(pid: int) -> bytes:
    return Path(f"/proc/{pid}/comm").read_bytes().strip() if alive(pid) else b""


def supervisors(service: int) -> list[int]:
    """Returns the supervisors that wait."""
    [spawner] = children(service)
    return [each for guard in children(spawner) for each in children(guard) if name(each) == WAITING]


def waiting(service: int) -> list[int]:
    """Returns the processes directly below the supervisors that wait."""
    return [process for each in supervisors(service) for process in children(each)]


async def ready(process: Process) -> list[int]:
    """Waits until several processes wait, and returns them."""
    await until(lambda: len(waiting(process.process.pid)) >= 3)
    return waiting(process.process.pid)


@pytest.mark.parametrize("as_nobody", KINDS)
@pytest.mark.parametrize("tier", TIERS)
async def test_commands_run_after_those_who_wait_were_killed(folder: Path, as_nobody: bool, tier: str) -> None:
    with serving(folder, as_nobody, tier=tier) as process:
        async with process.stub() as stub:
            for victims in ("commands", "supervisors", "guards", "spawner"):
                assert (await run(stub, "echo", "ran")).stdout == b"ran\n"
                commands = await ready(process)
                [spawner] = children(process.process.pid)
                above = supervisors(process.process.pid)
                chosen = {"commands": commands, "supervisors": above, "guards": children(spawner), "spawner": [spawner]}
                held = [pid for top in above for pid in below(top)]
                gone = chosen[victims] + commands + held  # they do not outlive those above, nor keepers their command
                for pid in chosen[victims]:
                    os.kill(pid, signal.SIGKILL)
                await until(lambda gone=gone: not any(map(alive, gone)))  # type: ignore[misc]
                for _ in range(5):
                    assert (await run(stub, "echo", "ran")).stdout == b"ran\n", victims


@pytest.mark.skipif(os.geteuid() != 0, reason="root sees what they hold")
@pytest.mark.parametrize("tier", TIERS)
async def test_who_waits_holds_one_channel_and_a_user_of_its_own(folder: Path, tier: str) -> None:
    with serving(folder, tier=tier) as process:
        async with process.stub() as stub:
            await run(stub, "true")
            found = [process for top in await ready(process) for process in (top, *below(top))]
            last = [pid for pid in found if not children(pid)]
            users = [user(pid) for pid in last]
            assert len(set(users)) == len(users)
            assert 0 not in users
            for pid in found:
                assert sum(each.startswith("socket:") for each in held(pid)) <= (pid in last), (pid, held(pid))
                assert not [each for each in held(pid) if "workspaces" in each]


def user(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:")]
    return int(line.split()[1])


def held(pid: int) -> list[str]:
    return [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]


def below(pid: int) -> list[int]:
    found = children(pid)
    for each in found:
        found += children(each)
    return found


def test_a_process_is_out_of_date_when_a_path_of_its_layers_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("old")
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from services.terminal import waiting
path = sys.argv[2]
setting = {"tier": "standard", "separate_uid": False, "minimum_abi": 0, "paths": [(path, 4)], "workspace_execute": True}
made = waiting.make(setting, 0)
def show(): print(made.fresh(setting), flush=True)
show()
os.rename(path, path + ".old")
show()
open(path, "w").close()
show()
os.rename(path + ".old", path)
show()
made.discard()
print(os.waitpid(made.pid, 0)[1])
"""
    command = [sys.executable, "-I", "-S", "-c", code, str(REPOSITORY), str(tmp_path / "cache")]
    ended = subprocess.run(command, capture_output=True, timeout=20, check=True)
    assert ended.stdout.split() == [b"True", b"False", b"False", b"True", b"9"]
