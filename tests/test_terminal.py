"""The Terminal does ordinary work, refuses what it cannot do, and starts only as strong as it says."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import terminal_pb2
from google.protobuf import duration_pb2

from services.common.config import ConfigError, TerminalSettings, load
from services.terminal import policy, programs
from services.terminal.sandbox import Sandbox
from tests.conftest import until
from tests.terminals import KINDS, PYTHON, Process, open_folder, refusal, request, rest_of, run, served, serving

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


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


# Ordinary work


async def test_argv_runs_without_a_shell(terminal: Any) -> None:
    story = await run(terminal, "echo", "$HOME", "a  b", "*")
    assert story.stdout == b"$HOME a  b *\n"
    assert story.stderr == b""
    assert story.end == "EXITED"
    assert story.result.exit_code == 0
    assert not story.result.HasField("signal")


async def test_script_runs_in_the_shell(terminal: Any) -> None:
    story = await run(terminal, script="for i in 1 2 3; do echo $i; done | wc -l; false || exit 7")
    assert story.stdout.strip() == b"3"
    assert (story.end, story.result.exit_code) == ("EXITED", 7)


async def test_streams_are_told_apart(terminal: Any) -> None:
    story = await run(terminal, script="echo out; echo err >&2; echo again > /dev/stdout")
    assert (story.stdout, story.stderr) == (b"out\nagain\n", b"err\n")


@pytest.mark.parametrize("content", [b"", b"one\ntwo", bytes(range(256)) * 4096], ids=["empty", "text", "1 MiB"])
async def test_stdin_arrives_bit_exact(terminal: Any, content: bytes) -> None:
    story = await run(terminal, "sha256sum", stdin=content)
    assert story.stdout.split()[0].decode() == hashlib.sha256(content).hexdigest()


async def test_stdin_cannot_be_grown(terminal: Any) -> None:
    story = await run(terminal, script="echo more >> /dev/stdin; cat", stdin=b"given")
    assert story.stdout == b"given"


async def test_environment_holds_only_what_was_built_and_asked_for(terminal: Any, process: Process) -> None:
    story = await run(terminal, "env", env={"GREETING": "hello wörld", "PATH": "/usr/bin:/bin"})
    found = dict(line.split("=", 1) for line in story.stdout.decode().splitlines())
    home = found.pop("HOME")
    assert Path(home).parent.parent == process.workspaces
    assert Path(found.pop("INPUTS")) == Path(home).parent / "inputs"
    assert found == {"GREETING": "hello wörld", "PATH": "/usr/bin:/bin", "TMPDIR": home, "LANG": "C.UTF-8"}


async def test_workspace_is_empty_private_and_writable_by_its_path(terminal: Any) -> None:
    story = await run(terminal, script='ls -A; stat -c %a .; cd /; echo x > "$HOME/f"; cat "$TMPDIR/f"; cd; pwd; umask')
    mode, content, where, mask = story.stdout.decode().split()
    assert (mode, content, mask) == ("700", "x", "0077")
    assert "command-" in where


@pytest.mark.parametrize(("number", "name"), [(9, "KILL"), (15, "TERM"), (11, "SEGV")])
async def test_own_signal_is_told_from_a_limit(terminal: Any, number: int, name: str) -> None:
    story = await run(terminal, script=f"kill -{name} $$")
    assert (story.end, story.result.signal) == ("SIGNALED", number)
    assert not story.result.HasField("exit_code")


async def test_a_broken_pipe_ends_the_writer(terminal: Any) -> None:
    """Python ignores SIGPIPE, and what is ignored stays ignored across exec."""
    story = await run(terminal, script="(yes; echo survived $? >&2) | head -1; exit 0", wall_time=5)
    assert (story.end, story.stdout) == ("EXITED", b"y\n")
    assert b"Broken pipe" not in story.stderr


@needs_python
async def test_python_and_git_work(terminal: Any) -> None:
    script = f"""
    git init -q . && git config user.email a@b && git config user.name n
    echo a > a && git add a && git commit -qm first && git log --format=%s
    {PYTHON} -c 'import hashlib, json, ssl, subprocess, threading, tempfile
t = threading.Thread(target=lambda: print("thread", flush=True)); t.start(); t.join()
tempfile.TemporaryFile().write(b"x")
subprocess.run(["echo", "child"], check=True)'"""
    story = await run(terminal, script=script)
    assert story.stdout.split() == [b"first", b"thread", b"child"], story.stderr
    assert story.stderr == b""


async def test_times_cpu_and_memory_are_measured(terminal: Any) -> None:
    before = time.time()
    story = await run(terminal, script="i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done & wait; sleep 0.2")
    started, ended = story.result.started_at.ToNanoseconds() / 1e9, story.result.ended_at.ToNanoseconds() / 1e9
    assert before - 1 < started < ended < time.time() + 1
    assert ended - started > 0.2
    assert story.result.started_at == story.started.started_at
    assert 0.01 < story.result.cpu_time.ToNanoseconds() / 1e9 < 5  # of a grandchild
    assert MIB < story.result.peak_memory_bytes < 512 * MIB


async def test_isolation_is_told(terminal: Any, process: Process) -> None:
    story = await run(terminal, "true")
    told = await terminal.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())
    separate = "uid" in told.isolation.layers
    assert story.started.isolation == story.result.isolation == told.isolation
    assert told.available
    assert told.unavailable_reason == ""
    assert told.isolation.tier == terminal_pb2.ISOLATION_TIER_STANDARD
    assert told.isolation.landlock_abi >= 3
    assert told.isolation.separate_uid == separate
    assert [layer for layer in told.isolation.layers if layer != "uid"] == [
        "supervisor", "session", "no_new_privs", "seccomp", "rlimits", "landlock",
    ]  # fmt: skip
    assert any("own user" in sentence for sentence in told.isolation.not_enforced) == (not separate)
    log = process.log.read_text()
    assert "standard tier" in log
    assert all(sentence in log for sentence in told.isolation.not_enforced)


# Output


async def test_binary_output_is_bit_exact(terminal: Any) -> None:
    content = bytes(range(256)) * 20_000  # 5 MB, not UTF-8, with NUL
    script = 'cat > f; for i in 1 2 3 4 5; do cat f; done; printf "\\377\\000\\303" >&2'
    story = await run(terminal, script=script, stdin=content[:MIB], output_bytes=8 * MIB)
    assert story.stdout == content[:MIB] * 5
    assert story.stderr == b"\xff\x00\xc3"
    assert story.result.stdout_dropped_bytes == 0


async def test_output_beyond_the_limit_is_counted_and_dropped(terminal: Any) -> None:
    size = 50_000_000
    script = f"head -c {size} /dev/zero; head -c 2000 /dev/zero >&2; echo end >&2"
    story = await run(terminal, script=script, output_bytes=1000)
    assert story.end == "EXITED"
    assert (len(story.stdout), story.result.stdout_dropped_bytes) == (1000, size - 1000)
    assert (len(story.stderr), story.result.stderr_dropped_bytes) == (1000, 1004)


async def test_output_is_streamed_while_the_command_runs(terminal: Any) -> None:
    call = terminal.Run(request(script="echo first; sleep 30"))
    async for response in call:
        if response.chunk.data:
            assert response.chunk.data == b"first\n"
            break
    call.cancel()


async def test_a_slow_reader_makes_the_command_wait(process: Process) -> None:
    """What is not read is not buffered: the writer stops, and the wall time ends it."""
    async with process.stub() as stub:
        before = resident_bytes(process.process.pid)
        call = stub.Run(request("yes", wall_time=1, output_bytes=64 * MIB))
        await call.read()
        first = await call.read()
        await until(lambda: not process.left(), 10)  # the end did not wait for the reader
        grown = resident_bytes(process.process.pid) - before
        rest = await rest_of(call)
    written = len(first.chunk.data) + sum(len(response.chunk.data) for response in rest)
    assert rest[-1].result.end == terminal_pb2.COMMAND_END_WALL_TIME
    assert written < 32 * MIB
    assert grown < 48 * MIB


# Requests


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wall_time", 3601),
        ("cpu_time", 3601),
        ("memory_bytes", 9 * 1024 * MIB),
        ("processes", 513),
        ("file_size_bytes", 2**63),
        ("output_bytes", 64 * MIB + 1),
    ],
)
async def test_above_the_ceiling_is_refused_by_name(folder: Path, name: str, value: int) -> None:
    settings = {"max_wall_time": 60, "max_cpu_time": 60} if value == 3601 else {}
    asked = 61 if value == 3601 else value
    async with served(folder, **settings) as (stub, _), refusal("INVALID_REQUEST") as told:
        await run(stub, "true", **{name: asked})
    assert told["field"] == f"command.limits.{name}"
    assert told["ceiling"] in told["message"]


async def test_defaults_never_pass_the_ceilings(folder: Path) -> None:
    async with served(folder, memory_bytes=2 * MIB, max_memory_bytes=MIB) as (stub, _):
        told = await stub.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())
    assert told.default_limits.memory_bytes == told.max_limits.memory_bytes == MIB
    assert told.max_limits.wall_time == duration_pb2.Duration(seconds=3600)


# Refusals


@pytest.mark.parametrize(
    ("program", "errno"),
    [
        ("no-such-program", "ENOENT"),
        ("./missing", "ENOENT"),
        ("/etc/passwd", "EACCES"),
        ("/", "EACCES"),
        ("../../../usr", "EACCES"),
        ("x" * 5000, "ENAMETOOLONG"),
    ],
)
async def test_a_missing_program_is_not_an_exit_code(terminal: Any, program: str, errno: str) -> None:
    async with refusal("COMMAND_NOT_STARTED") as told:
        await run(terminal, program, "argument")
    assert told["errno"] == errno or (program.startswith("..") and told["errno"] == "ENOENT")
    assert told["program"] == program[:200]


async def test_arguments_beyond_what_exec_takes_are_refused(terminal: Any) -> None:
    async with refusal("COMMAND_NOT_STARTED") as told:
        await run(terminal, "true", *["x" * 32_000] * 100)
    assert told["errno"] == "E2BIG"


async def test_a_program_of_the_command_s_own_making_runs(terminal: Any) -> None:
    script = "printf '#!/bin/sh\\necho made\\n' > p; ./p 2>/dev/null || echo refused; chmod +x p; ./p"
    assert (await run(terminal, script=script)).stdout == b"refused\nmade\n"


@pytest.mark.parametrize(
    "command", [{}, {"script": "a\0b"}, {"script": "x" * 65_537}, {"stdin": b"x" * (MIB + 1), "script": "true"}]
)
async def test_malformed_requests_are_refused(terminal: Any, command: dict[str, Any]) -> None:
    async with refusal("INVALID_REQUEST"):
        await run(terminal, **command)


async def test_over_capacity(folder: Path) -> None:
    async with served(folder, max_commands=2) as (stub, _):
        calls = [stub.Run(request("sleep", "30")) for _ in range(2)]
        for call in calls:
            await call.read()
        async with refusal("OVER_CAPACITY") as told:
            await run(stub, "true")
        assert told["limit"] == "2"
        calls[0].cancel()
        await until(lambda: len(list((folder / "workspaces").glob("command-*"))) == 1)
        for _ in range(3):  # a result means that the slot is free again
            assert (await run(stub, "true")).end == "EXITED"


async def test_eight_at_once(terminal: Any) -> None:
    stories = await asyncio.gather(*(run(terminal, script=f"echo {i}; id -u; sleep 0.5; ls -A") for i in range(8)))
    assert [story.stdout.split()[0] for story in stories] == [str(i).encode() for i in range(8)]
    assert all(len(story.stdout.split()) == 2 for story in stories)
    users = {story.stdout.split()[1] for story in stories}
    assert len(users) == (8 if stories[0].result.isolation.separate_uid else 1)
    assert b"0" not in users


# Starting


async def test_a_missing_layer_refuses_every_command(folder: Path) -> None:
    rules = replace(policy.of_tier("standard", None), minimum_abi=99)
    async with served(folder, policies=[rules]) as (stub, sandbox):
        told = await stub.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())
        assert (told.available, told.HasField("isolation")) == (False, False)
        assert "landlock" in told.unavailable_reason
        for _ in range(2):
            async with refusal("SANDBOX_UNAVAILABLE") as said:
                await run(stub, script="touch ran")
            assert (said["layer"], said["errno"]) == ("landlock", "ENOTSUP")
        assert sandbox.isolation is None
    assert [left.name for left in (folder / "workspaces").iterdir()] == ["calls"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
async def test_a_sandbox_that_does_not_hold_is_found_out(folder: Path) -> None:
    """Root without a user of its own for commands is no sandbox, whatever the layers say."""
    rules = replace(policy.of_tier("standard", None), separate_uid=False, minimum_abi=1)
    async with served(folder, policies=[rules]) as (stub, _), refusal("SANDBOX_UNAVAILABLE") as said:
        await run(stub, "true")
    assert (said["layer"], said["errno"]) == ("self_test", "EUCLEAN")


async def test_a_policy_that_opens_too_much_is_found_out(folder: Path) -> None:
    rules = policy.of_tier("standard", None)
    wide = replace(rules, paths=(*rules.paths, ("/etc", 12)))
    async with served(folder, policies=[wide]) as (stub, _), refusal("SANDBOX_UNAVAILABLE") as said:
        await run(stub, "true")
    assert said["layer"] == "self_test"


async def test_workspaces_that_cannot_be_made_end_the_start_with_a_sentence(folder: Path) -> None:
    (folder / "workspaces").write_text("a file")
    with pytest.raises(ConfigError, match=r"TERMINAL_WORKSPACES=.* cannot be used: File exists\. Name a folder"):
        async with served(folder):
            pass


async def test_two_terminals_do_not_share_a_folder(folder: Path) -> None:
    async with served(folder):
        settings = load(TerminalSettings, {"TERMINAL_WORKSPACES": str(folder / "workspaces")})
        with pytest.raises(ConfigError, match="in use by another Terminal"):
            await Sandbox(settings, [policy.of_tier("standard", None)], programs.load(settings)).start()


async def test_only_leftovers_are_swept(folder: Path) -> None:
    left = folder / "workspaces" / "command-1"
    left.mkdir(parents=True)
    (folder / "workspaces").chmod(0o711)
    (left / "file").write_text("old")
    (folder / "workspaces" / "command-2").symlink_to("/etc")
    other = folder / "workspaces" / "not-ours"
    other.write_text("kept")
    async with served(folder) as (stub, _):
        assert {left.name for left in (folder / "workspaces").iterdir()} == {other.name, "calls"}
        assert (await run(stub, "true")).end == "EXITED"
