"""The Terminal holds every limit, and leaves nothing behind however a command ends."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import terminal_pb2

from tests.conftest import until
from tests.terminals import (
    KINDS,
    PYTHON,
    Process,
    alive,
    children,
    held,
    open_folder,
    refusal,
    request,
    rest_of,
    run,
    serving,
)

MIB = 1024 * 1024
needs_python = pytest.mark.skipif(not Path(PYTHON).exists(), reason="no system Python")


@pytest.fixture(scope="module", params=KINDS)
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    small = {"workspace_bytes": str(32 * MIB), "workspace_entries": "2000"}
    with open_folder() as folder, serving(folder, request.param, **small) as process:
        yield process


@pytest.fixture
async def terminal(process: Process) -> AsyncIterator[Any]:
    async with process.stub() as stub:
        yield stub
    await until(lambda: not process.left())


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


# Limits


@pytest.mark.parametrize("script", ["sleep 60", "trap '' TERM INT; while :; do sleep 1; done", "kill -STOP $$"])
async def test_wall_time(terminal: Any, script: str) -> None:
    begin = time.monotonic()
    story = await run(terminal, script=script, wall_time=0.3)
    assert (story.end, story.result.signal) == ("WALL_TIME", 9)
    assert 0.3 < time.monotonic() - begin < 5


@pytest.mark.parametrize("script", ["while :; do :; done", "(while :; do :; done); echo next"], ids=["one", "child"])
async def test_cpu_time(terminal: Any, script: str) -> None:
    story = await run(terminal, script=script, cpu_time=1, wall_time=10)
    assert story.end == "CPU_TIME"
    assert story.stdout == b""
    assert 0.9 < story.result.cpu_time.ToNanoseconds() / 1e9 < 2


HOG = "import time; a = bytearray(300 << 20); time.sleep(30)"
SHARED_HOG = "import mmap, time; a = mmap.mmap(-1, 300 << 20); a.write(bytes(300 << 20)); time.sleep(30)"
TREE_HOG = "import os, time\nfor _ in range(5): os.fork() or (bytearray(60 << 20), time.sleep(30))\ntime.sleep(30)"
SHARING = "import mmap, os, time\na = mmap.mmap(-1, 100 << 20); a.write(bytes(100 << 20))\n\
for _ in range(6):\n  os.fork() or (a[::4096], time.sleep(1), os._exit(0))\nos.waitpid(-1, 0)"


@needs_python
@pytest.mark.parametrize("code", [HOG, SHARED_HOG, TREE_HOG], ids=["one", "shared", "tree"])
async def test_memory(terminal: Any, code: str) -> None:
    if code is TREE_HOG:
        code = code.replace("bytearray(60 << 20), ", "globals().update(a=bytearray(60 << 20)), ")
    story = await run(terminal, PYTHON, "-c", code, memory_bytes=200 * MIB, wall_time=20)
    assert (story.end, story.result.signal) == ("MEMORY", 9)


@needs_python
async def test_shared_pages_count_once(terminal: Any) -> None:
    story = await run(terminal, PYTHON, "-c", SHARING, memory_bytes=256 * MIB, wall_time=20)
    assert story.end == "EXITED", story.stderr


FORK = "import os\nwhile True: os.fork()"
# Each process ends at once, in a session of its own, after it has started the next: nothing to follow.
HOP = "import os\nwhile True:\n  if not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)"
BOMBS = {
    "many": ["/bin/sh", "-c", "for i in $(seq 40); do sleep 30 & done; wait"],
    "shell": ["/bin/sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 30"],
    "fork": [PYTHON, "-c", FORK],
    "hop": [PYTHON, "-c", HOP],
}


@needs_python
@pytest.mark.parametrize("argv", BOMBS.values(), ids=BOMBS)
async def test_processes(terminal: Any, process: Process, argv: list[str]) -> None:
    story = await run(terminal, *argv, processes=20, wall_time=20)
    assert story.end == "PROCESSES"
    assert story.result.ended_at.ToNanoseconds() - story.result.started_at.ToNanoseconds() < 5e9
    assert not held(process.process.pid)


@needs_python
async def test_threads_count_as_processes(terminal: Any) -> None:
    code = "import threading, time\nfor _ in range(40): threading.Thread(target=time.sleep, args=(30,)).start()"
    story = await run(terminal, PYTHON, "-c", code, processes=20, wall_time=20)
    assert story.end == "PROCESSES"


@pytest.mark.parametrize(
    "script",
    ["exec head -c 3000000 /dev/zero > f", "head -c 3000000 /dev/zero > f; echo next", "exec truncate -s 3M f"],
    ids=["one", "child", "sparse"],
)
async def test_file_size(terminal: Any, script: str) -> None:
    story = await run(terminal, script=script, file_size_bytes=2 * MIB)
    assert story.end == "FILE_SIZE"


async def test_a_file_of_exactly_the_limit_is_allowed(terminal: Any) -> None:
    script = "head -c 1048576 /dev/zero > f; stat -c %s f"
    story = await run(terminal, script=script, file_size_bytes=MIB)
    assert (story.end, story.stdout) == ("EXITED", b"1048576\n")


FILL = "i=0; while :; do head -c 4000000 /dev/zero > f$i; i=$((i+1)); done"
OPEN_DELETED = "import os, time\nfor i in range(20):\n f = open(str(i), 'wb', 0); globals()[f'k{i}'] = f\n\
 f.write(bytes(4 << 20)); os.unlink(str(i))\ntime.sleep(20)"
FLOOD = "import os\nfor i in range(3000): os.close(os.open(str(i), os.O_CREAT))\nimport time; time.sleep(20)"
DEEP = "import os, time\nfor i in range(3000): os.mkdir('d'); os.chdir('d')\ntime.sleep(20)"


@needs_python
@pytest.mark.parametrize("code", [OPEN_DELETED, FLOOD, DEEP], ids=["deleted", "entries", "deep"])
async def test_workspace_by_python(terminal: Any, code: str) -> None:
    story = await run(terminal, PYTHON, "-c", code, wall_time=15)
    assert story.end == "WORKSPACE"


async def test_workspace_bytes(terminal: Any) -> None:
    assert (await run(terminal, script=FILL, wall_time=15)).end == "WORKSPACE"


# Nothing is left behind

DAEMON = "setsid sh -c 'trap \"\" TERM HUP INT; (setsid sleep 300 & echo $!); echo $$; exec sleep 300' &\n"


async def pids(call: Any, count: int) -> list[int]:
    """Reads pids from a command's output until there are enough."""
    text = b""
    while len(text.split()) < count or not text.endswith(b"\n"):
        text += (await call.read()).chunk.data
    return [int(word) for word in text.split()]


async def gone(found: list[int]) -> None:
    await until(lambda: not any(map(alive, found)))


async def test_exit_ends_what_was_left_running(terminal: Any) -> None:
    begin = time.monotonic()
    story = await run(terminal, script=DAEMON + "sleep 0.2; echo $$")
    found = [int(word) for word in story.stdout.split()]
    assert len(found) == 3
    assert story.end == "EXITED"
    assert not any(map(alive, found)), "all are gone when the result arrives"
    assert time.monotonic() - begin < 5


async def test_time_out_ends_the_whole_tree(terminal: Any) -> None:
    story = await run(terminal, script=DAEMON + "echo $$; sleep 300", wall_time=0.5)
    assert story.end == "WALL_TIME"
    assert len(story.stdout.split()) == 3
    assert not any(map(alive, map(int, story.stdout.split())))


async def test_cancel_ends_the_whole_tree(terminal: Any) -> None:
    call = terminal.Run(request(script=DAEMON + "echo $$; sleep 300"))
    await call.read()
    found = await pids(call, 3)
    assert all(map(alive, found))
    call.cancel()
    await gone(found)


async def test_cancel_at_any_moment_leaves_nothing(terminal: Any, process: Process) -> None:
    for delay in range(0, 60, 4):
        call = terminal.Run(request(script=DAEMON + "sleep 300"))
        with contextlib.suppress(asyncio.TimeoutError, grpc.aio.AioRpcError):
            await asyncio.wait_for(call.read(), delay / 1000)
        call.cancel()
    await until(lambda: not process.left())
    assert not held(process.process.pid)


async def test_losing_the_caller_ends_the_command(process: Process) -> None:
    async with process.stub() as stub:
        call = stub.Run(request(script=DAEMON + "echo $$; sleep 300"))
        await call.read()
        found = await pids(call, 3)
    await gone(found)


async def test_a_deadline_ends_the_command(terminal: Any) -> None:
    call = terminal.Run(request(script="echo $$; sleep 300"), timeout=1)
    await call.read()
    found = await pids(call, 1)
    with pytest.raises(grpc.aio.AioRpcError):
        await rest_of(call)
    await gone(found)


@pytest.mark.parametrize("as_nobody", KINDS)
async def test_kill_9_of_the_service_leaves_nothing(folder: Path, as_nobody: bool) -> None:
    with serving(folder, as_nobody) as process:
        async with process.stub() as stub:
            call = stub.Run(request(script=DAEMON + "echo $$; sleep 300"))
            await call.read()
            found = await pids(call, 3)
            [spawner] = children(process.process.pid)
            holders = [spawner, *children(spawner)]
            process.process.kill()
            process.process.wait()
            await gone(found + holders)
    left = process.left()
    assert len(left) == 1
    with serving(folder, as_nobody) as process:
        assert not process.left()
        async with process.stub() as stub:
            assert (await run(stub, "true")).end == "EXITED"


def holders(service: int, command: int) -> tuple[int, int]:
    """Returns guard and supervisor of a command: the second and third below the service on the way to it."""
    way = [command]
    while way[-1] != service:
        way.append(int(Path(f"/proc/{way[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    return way[-3], way[-4]


@pytest.mark.parametrize("victim", ["guard", "supervisor"])
async def test_kill_9_of_who_holds_the_command_leaves_nothing(process: Process, victim: str) -> None:
    async with process.stub() as stub:
        call = stub.Run(request(script=DAEMON + "echo $$; sleep 300", wall_time=1.5))
        await call.read()
        found = await pids(call, 3)
        guard, supervisor = holders(process.process.pid, found[0])
        os.kill(guard if victim == "guard" else supervisor, signal.SIGKILL)
        if victim == "guard":  # the other half goes on
            responses = await rest_of(call)
            assert responses[-1].result.end == terminal_pb2.COMMAND_END_WALL_TIME
        else:
            async with refusal("INTERNAL"):
                await rest_of(call)
        await gone([*found, guard, supervisor])
        await until(lambda: not process.left())
        assert (await run(stub, "true")).end == "EXITED"


async def test_stopping_ends_commands_and_tells_their_callers(folder: Path) -> None:
    with serving(folder) as process:
        async with process.stub() as stub:
            call = stub.Run(request(script=DAEMON + "echo $$; sleep 300"))
            await call.read()
            found = await pids(call, 3)
            process.process.send_signal(signal.SIGTERM)
            responses = await rest_of(call)
        assert responses[-1].result.end == terminal_pb2.COMMAND_END_CANCELLED
        assert not any(map(alive, found))
        assert process.process.wait(10) == 0
    assert not process.left()


@needs_python
async def test_a_hostile_workspace_is_removed(terminal: Any, process: Process) -> None:
    code = r"""
import os
for mode in (0, 0o100, 0o200, 0o400):
    os.mkdir(f"m{mode}"); open(f"m{mode}/f", "w").close(); os.mkdir(f"m{mode}/d"); os.chmod(f"m{mode}", mode)
open(b"\xff\n-rf", "w").close(); os.symlink("/etc", "link"); os.symlink("nowhere", "dangling"); os.mkfifo("fifo")
os.link("fifo", "hard"); os.chmod(".", 0)
"""
    story = await run(terminal, PYTHON, "-c", code)
    assert (story.end, story.stderr) == ("EXITED", b"")
    assert not process.left()
