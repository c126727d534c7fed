"""The tiers: what holds in the strong one beyond the attacks, and that none is ever lowered in silence."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

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
    served,
    serving,
)

MIB = 1024 * 1024
LOOPBACK = '[[program]]\npath = "/usr/bin/*"\nloopback = true\n[script]\nallowed = true\n'
STRONG, STANDARD, NONE = (
    terminal_pb2.ISOLATION_TIER_STRONG,
    terminal_pb2.ISOLATION_TIER_STANDARD,
    terminal_pb2.ISOLATION_TIER_NONE,
)


async def capabilities(stub: Any) -> terminal_pb2.GetCapabilitiesResponse:
    return await stub.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())


@pytest.fixture(scope="module", params=KINDS)
def strong(request: pytest.FixtureRequest) -> Iterator[Process]:
    with open_folder() as folder:
        policy = folder / "policy.toml"
        policy.write_text(LOOPBACK + "[workspace]\nexecute = true\n")
        policy.chmod(0o644)
        with serving(folder, request.param, tier="strong", policy=str(policy)) as process:
            yield process


@pytest.fixture
async def terminal(strong: Process) -> AsyncIterator[Any]:
    async with strong.stub() as stub:
        told = await capabilities(stub)
        if not told.available:
            pytest.skip(told.unavailable_reason)
        yield stub
        await until(lambda: not strong.left() and not held(strong.process.pid))


# ---- the strong tier ----


async def test_results_say_what_held(terminal: Any) -> None:
    story = await run(terminal, "true")
    assert story.result.isolation == story.started.isolation
    assert story.result.isolation.tier == STRONG
    assert {"namespaces", "mounts", "capabilities", "seccomp"} <= set(story.result.isolation.layers)
    assert "stat" not in " ".join(story.result.isolation.not_enforced)


@pytest.mark.parametrize(
    ("script", "end", "limits"),
    [
        ("exit 7", "EXITED", {}),
        ("kill -9 $$", "SIGNALED", {}),
        ("kill -TERM $$", "SIGNALED", {}),
        ("sleep 30", "WALL_TIME", {"wall_time": 0.5}),
        ("while :; do :; done", "CPU_TIME", {"cpu_time": 1}),
        ("for i in $(seq 40); do sleep 30 & done; wait", "PROCESSES", {"processes": 20}),
        (f"{PYTHON} -c 'x = bytearray(300 << 20); input()' < /dev/zero", "MEMORY", {"memory_bytes": 100 * MIB}),
        ("exec head -c 3000000 /dev/zero > f", "FILE_SIZE", {"file_size_bytes": 2 * MIB}),
        ("for i in $(seq 300); do : > $i; done; sleep 30", "WORKSPACE", {"workspace_entries": 100}),
        ("head -c 5000000 /dev/zero > f; sleep 30", "WORKSPACE", {"workspace_bytes": 2 * MIB}),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isupper() else "",
)
async def test_ends_are_those_of_the_standard_tier(
    terminal: Any, script: str, end: str, limits: dict[str, Any]
) -> None:
    story = await run(terminal, script=script, **{"wall_time": 20, **limits})
    assert story.end == end
    if end == "EXITED":
        assert story.result.exit_code == 7
    if end == "SIGNALED":
        assert story.result.signal == (9 if "-9" in script else 15)


async def test_the_processes_above_the_command_do_not_count(terminal: Any) -> None:
    story = await run(terminal, script="sleep 0.3 & sleep 0.3 & wait; echo all", processes=3)
    assert (story.end, story.stdout) == ("EXITED", b"all\n")


async def test_a_program_that_cannot_be_executed_is_no_exit_code(terminal: Any) -> None:
    async with refusal("COMMAND_NOT_STARTED") as told:
        await run(terminal, "no-such-program")
    assert told["errno"] == "ENOENT"


async def test_it_sees_a_world_of_its_own(terminal: Any) -> None:
    code = (
        "import os, multiprocessing as m; m.Lock(); open('/tmp/x','w').close(); open('/dev/shm/y','w').close();"
        "print(os.getpid() < 10, sorted(p for p in os.listdir('/proc') if p.isdigit())[:2], os.uname().nodename,"
        " len(open('/proc/net/dev').readlines()) - 2)"
    )
    story = await run(terminal, PYTHON, "-c", code)
    assert story.stdout.split() == [b"True", b"['1',", b"'2']", b"sandbox", b"1"], story.stderr


async def test_scratch_is_bounded_and_gone(terminal: Any) -> None:
    story = await run(terminal, script="head -c 40000000 /dev/zero > /tmp/x; ls -l /tmp/x | cut -d' ' -f5")
    assert 0 < int(story.stdout) <= 16 * MIB
    assert (await run(terminal, script="test ! -e /tmp/x && ls -A /dev/shm && echo gone")).stdout == b"gone\n"


async def test_its_loopback_is_its_own(terminal: Any) -> None:
    code = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
client.sendall(b"ping"); print(server.accept()[0].recv(4).decode())
try: socket.create_connection(("192.0.2.1", 80), timeout=2)
except OSError as error: print(type(error).__name__)
try: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
except OSError as error: print(error.errno)
"""
    story = await run(terminal, PYTHON, "-c", code, network=terminal_pb2.NETWORK_LOOPBACK)
    assert story.stdout.split()[0] == b"ping", story.stderr
    assert story.stdout.split()[2] == b"97"
    assert "loopback" in story.result.isolation.layers
    async with refusal("PROGRAM_REFUSED"):
        await run(terminal, script="true", network=terminal_pb2.NETWORK_LOOPBACK, env={"PATH": "/nowhere"})


@pytest.mark.parametrize("victim", ["guard", "supervisor", "keeper", "spawner"])
async def test_no_single_death_leaves_anything(terminal: Any, strong: Process, victim: str) -> None:
    call = terminal.Run(request(script="sleep 300 & sleep 300", wall_time=1))
    await call.read()
    [spawner] = children(strong.process.pid)
    [keeper] = held(strong.process.pid)
    supervisor = parent(keeper)
    below = [keeper, *descendants(keeper)]
    os.kill({"guard": parent(supervisor), "supervisor": supervisor, "keeper": keeper, "spawner": spawner}[victim], 9)
    if victim == "supervisor":
        async with refusal("INTERNAL"):
            await rest_of(call)
    else:
        result = (await rest_of(call))[-1].result
        expected = "COMMAND_END_SIGNALED" if victim == "keeper" else "COMMAND_END_WALL_TIME"
        assert terminal_pb2.CommandEnd.Name(result.end) == expected
    await until(lambda: not any(map(alive, below)))
    assert (await run(terminal, script="echo on")).stdout == b"on\n"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    below = children(pid)
    return [*below, *(each for child in below for each in descendants(child))]


async def test_cancel_at_any_moment_leaves_nothing(terminal: Any) -> None:
    for delay in range(0, 60, 4):
        call = terminal.Run(request(script="setsid sleep 300 & sleep 300"))
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait([reading], timeout=delay / 1000)
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_kill_9_of_the_service_takes_everything_along(folder: Path) -> None:
    with serving(folder, tier="strong") as process:
        async with process.stub() as stub:
            if not (await capabilities(stub)).available:
                pytest.skip("no strong tier on this machine")
            call = stub.Run(request(script="setsid sleep 300 & sleep 300"))
            await call.read()
            [spawner] = children(process.process.pid)
            everything = [spawner, *descendants(spawner)]
            process.process.send_signal(signal.SIGKILL)
            process.process.wait()
            await until(lambda: not any(map(alive, everything)))


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


# ---- never lowered in silence ----


async def test_no_sandbox_only_where_the_operator_wrote_it(folder: Path) -> None:
    with serving(folder, tier="none-i-understand") as process:
        async with process.stub() as stub:
            told = await capabilities(stub)
            assert [(state.tier, state.available) for state in told.tiers] == [(NONE, True)]
            story = await run(stub, script="cat /proc/self/status > f && echo free; setsid sleep 300 & sleep 0.1")
            assert story.stdout == b"free\n"
            assert story.result.isolation.tier == NONE
            assert "turned the sandbox off" in story.result.isolation.not_enforced[0]
        await until(lambda: not held(process.process.pid))


async def test_a_network_needs_the_strong_tier(folder: Path) -> None:
    policy = folder / "policy.toml"
    policy.write_text(LOOPBACK)
    with serving(folder, tier="standard", policy=str(policy)) as process:
        async with process.stub() as stub:
            assert not (await capabilities(stub)).loopback
            async with refusal("PROGRAM_REFUSED") as said:
                await run(stub, "true", network=terminal_pb2.NETWORK_LOOPBACK)
            assert said["tier"] == "standard"


# ---- both tiers, held to a list of programs ----

LISTED = """
[[program]]
path = "/usr/bin/c*"
[[program]]
path = "/usr/bin/dash"
[script]
allowed = true
"""


@pytest.mark.parametrize("tier", ["standard", "strong"])
async def test_what_comes_by_stdin_cannot_be_executed(folder: Path, tier: str) -> None:
    policy = folder / "policy.toml"
    policy.write_text(LISTED)
    policy.chmod(0o644)
    with serving(folder, tier=tier, policy=str(policy)) as process:
        async with process.stub() as stub:
            if not (await capabilities(stub)).available:
                pytest.skip(f"no {tier} tier on this machine")
            program = await asyncio.to_thread(Path("/usr/bin/id").read_bytes)
            script = "exec /proc/self/fd/0 -u || exec /dev/stdin -u"
            assert b"0" not in (await run(stub, script=script, stdin=program)).stdout
            copied = "cat > /tmp/x; chmod 700 /tmp/x; /tmp/x -u; for l in /lib64/ld-*; do $l /tmp/x -u; done"
            assert not (await run(stub, script=copied, stdin=program)).stdout


async def test_a_command_that_reads_its_own_output_cannot_stop_the_service(folder: Path) -> None:
    """It can open the pipe, take what it wrote between the service's look and its read, and leave that read waiting."""
    async with served(folder) as (stub, sandbox):
        call = stub.Run(request("sleep", "30"))
        await call.read()
        [running] = sandbox._running
        assert not any(map(os.get_blocking, (running._pipes.stdout, running._pipes.stderr, running._pipes.status)))
        call.cancel()
