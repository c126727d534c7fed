"""What is held when the machine gives no more threads or processes, when a layer hangs, and when a holder dies."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import terminal_pb2_grpc

from services.common.status import from_rpc_error
from services.terminal import spawn
from services.terminal.sandbox import Sandbox
from tests.attacks.settings import Missing, Setting, Terminal, started
from tests.conftest import until
from tests.terminals import (
    NOBODY,
    PYTHON,
    REPOSITORY,
    Reason,
    alive,
    children,
    open_folder,
    refusal,
    request,
    rest_of,
    run,
    served,
    serving,
)

AT_ONCE = 20
ANSWER_S = 15
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives commands users of their own")


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


# ---- no more threads, no more processes ----

LIMIT = """
import resource, sys
for pid in map(int, sys.argv[2:]):
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NPROC)
        soft = min(int(sys.argv[1]), hard) if hard >= 0 else int(sys.argv[1])
        resource.prlimit(pid, resource.RLIMIT_NPROC, (soft, hard))
    except ProcessLookupError: pass  # it has ended meanwhile
"""


@pytest.fixture
def crowded() -> Iterator[Terminal]:
    """A Terminal of an ordinary user: the kernel does not count root's processes."""
    try:
        with started(Setting("user"), "standard") as terminal:
            yield terminal
    except Missing as missing:
        pytest.skip(str(missing))


def allow(terminal: Terminal, processes: int, pids: list[int]) -> None:
    """Says how many processes and threads the user of some processes may have when these ask for one more."""
    user: dict[str, Any] = {"user": terminal.uid, "group": terminal.uid, "extra_groups": []}
    command = [PYTHON, "-c", LIMIT, str(processes), *map(str, pids)]
    subprocess.run(command, check=True, **(user if os.geteuid() == 0 else {}))


async def told(stub: Any) -> str:
    """Runs a command and returns what it wrote, or the reason of the refusal."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return (await run(stub, "echo", "ran")).stdout.decode()
    except grpc.aio.AioRpcError as caught:
        error = from_rpc_error(caught)
        return Reason.Name(error.reason) if error else str(caught)


async def many(terminal: Terminal, at_once: int = AT_ONCE) -> set[str]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{terminal.port}") as channel:
        stub = terminal_pb2_grpc.TerminalStub(channel)
        return set(await asyncio.gather(*(told(stub) for _ in range(at_once))))


async def test_a_launch_needs_no_new_thread(crowded: Terminal) -> None:
    allow(crowded, 1, [crowded.process.pid])
    assert await many(crowded) == {"ran\n"}


async def test_without_a_process_to_spare_commands_are_refused_and_none_hangs(crowded: Terminal) -> None:
    everyone = below(crowded.process.pid)
    allow(crowded, 1, everyone)
    answers = await many(crowded)
    assert "ERROR_REASON_SANDBOX_UNAVAILABLE" in answers
    assert answers <= {"ERROR_REASON_SANDBOX_UNAVAILABLE", "ran\n"}
    allow(crowded, 100_000, [pid for pid in below(crowded.process.pid) if alive(pid)])
    assert await many(crowded, 3) == {"ran\n"}


def below(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        found += children(each)
    return found


def test_threads_that_cannot_be_had_end_the_start_with_a_sentence() -> None:
    code = f"""
import os, resource, sys
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "gen")!r}]
from services.common.config import ConfigError
from services.terminal import threads
import concurrent.futures.thread
if os.geteuid() == 0: os.setresuid(*[{NOBODY}] * 3)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try: threads.started()
except ConfigError as error: sys.exit(str(error))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=False)
    assert b"needs 16 threads" in ended.stderr
    assert b"Traceback" not in ended.stderr


# ---- layers that hang or lie ----

IMPORT = "from services.terminal.spawner"


def patched(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Has spawners run some code before they begin: what the machine would have to do wrong."""
    assert IMPORT in spawn.BOOT
    monkeypatch.setattr(spawn, "BOOT", spawn.BOOT.replace(IMPORT, f"exec({code!r}); {IMPORT}"))


def must_be_had(sandbox: Sandbox, tier: str) -> None:
    """Skips where the machine has no strong tier. The standard tier is had wherever these tests run."""
    if sandbox.isolation is None and tier == "strong":
        pytest.skip(str(sandbox.unavailable))
    assert sandbox.isolation is not None, sandbox.unavailable


@pytest.mark.parametrize("tier", ["strong", "standard"])
async def test_a_layer_that_hangs_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, tier: str) -> None:
    code = """
import time
from services.terminal import child, supervisor
supervisor.SET_UP_S = 0.5
true = child._rlimits
child._rlimits = lambda job: time.sleep(600) if b"hang" in job["argv"] else true(job)
"""
    patched(monkeypatch, code)
    async with served(folder, tier=tier) as (stub, sandbox):
        must_be_had(sandbox, tier)
        begin = time.monotonic()
        async with refusal("SANDBOX_UNAVAILABLE") as said:
            await run(stub, "echo", "hang", wall_time=60)
        assert time.monotonic() - begin < 10
        assert (said["layer"], said["errno"]) == ("rlimits", "ETIMEDOUT")
        assert (await run(stub, "echo", "next")).stdout == b"next\n"
    assert [left.name for left in (folder / "workspaces").iterdir()] == ["calls"]


async def test_an_exec_that_hangs_is_not_taken_for_one_that_did_not_begin(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import time
from services.terminal import child, supervisor
supervisor.SET_UP_S = 0.5
true = child._execute
child._execute = lambda job: time.sleep(600) if b"hang" in job["argv"] else true(job)
"""
    patched(monkeypatch, code)
    async with served(folder, tier="standard") as (stub, sandbox):
        must_be_had(sandbox, "standard")
        async with refusal("INTERNAL"):
            await run(stub, "echo", "hang", wall_time=60)


async def test_a_child_whose_supervisor_is_gone_runs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have gone before the kernel was told to end the child with it."""
    code = """
from services.terminal import child
true = child._Layers.__init__
def late(self, *rest): true(self, *rest); self._supervisor = -1
child._Layers.__init__ = late
"""
    patched(monkeypatch, code)
    async with served(folder, tier="standard") as (stub, sandbox):
        assert sandbox.isolation is None
        async with refusal("SANDBOX_UNAVAILABLE"):
            await run(stub, "true")


# ---- ends ----

LEAVES = "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; echo $$; while :; do sleep 60; done' & done; sleep 0.3"


@as_root
@pytest.mark.parametrize("tier", ["strong", "standard"])
async def test_a_tree_is_killed_without_a_process_to_spare(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    code = """
from services.terminal import tree
def full(uid): raise BlockingIOError(11, "no process to spare")
tree._kill_user = full
"""
    patched(monkeypatch, code)
    async with served(folder, tier=tier) as (stub, sandbox):
        must_be_had(sandbox, tier)
        async with asyncio.timeout(ANSWER_S):
            story = await run(stub, script=LEAVES)
        assert story.end == "EXITED"
        if tier == "standard":  # else the numbers are those of another world
            assert [pid for pid in story.stdout.split() if alive(int(pid))] == []


@as_root
async def test_a_user_is_not_lent_again_while_anything_of_it_lives(folder: Path) -> None:
    """The supervisor, which holds the lease, may be lost before the guard has ended what it left."""
    with serving(folder) as process:
        async with process.stub() as stub:
            call = stub.Run(request(script="setsid sleep 300 & echo $! $$ $(id -u); wait"))
            text = b""
            while not text.endswith(b"\n"):
                text += (await call.read()).chunk.data
            left, shell, uid = map(int, text.split())
            supervisor = parent(shell)
            guard = parent(supervisor)
            os.kill(guard, signal.SIGSTOP)
            try:
                os.kill(supervisor, signal.SIGKILL)
                await until(lambda: not alive(supervisor) and not alive(shell))
                assert alive(left)
                assert leased(uid)
            finally:
                os.kill(guard, signal.SIGCONT)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await rest_of(call)
            assert not alive(left)
            await until(lambda: not leased(uid))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def leased(uid: int) -> bool:
    return f"@conductor-terminal-uid-{uid}\n" in Path("/proc/net/unix").read_text()


async def test_a_crash_dumps_no_core(folder: Path) -> None:
    """Not even into a pipe: a limit of 0 would still start the helper that core_pattern may name (core(5))."""
    code = "import resource, os; print(*resource.getrlimit(resource.RLIMIT_CORE), flush=True); os.kill(os.getpid(), 11)"
    async with served(folder, tier="best") as (stub, _):
        story = await run(stub, PYTHON, "-c", code, outputs=["**"])
    assert (story.end, story.result.signal, story.stdout) == ("SIGNALED", 11, b"1 1\n")
    assert list(story.result.files) == []


async def test_where_programs_may_not_be_made_no_folder_lets_them_run(folder: Path) -> None:
    policy = folder / "policy.toml"
    policy.write_text('[[program]]\npath = "/usr/bin/*"\n[script]\nallowed = true\n[workspace]\nexecute = false\n')
    policy.chmod(0o644)
    async with served(folder, tier="strong", policy=policy) as (stub, sandbox):
        must_be_had(sandbox, "strong")
        tried = "for d in /tmp /dev/shm .; do cp /usr/bin/true $d/x; $d/x; echo $?; done 2> /dev/null"
        shown = "; while read a b c d e; do case $b in /tmp|/dev/shm|$HOME) echo $d;; esac; done < /proc/self/mounts"
        story = await run(stub, script=tried + shown)
    *codes, first, second, third = story.stdout.split()
    assert codes == [b"126"] * 3
    assert all(b"noexec" in options for options in (first, second, third))
