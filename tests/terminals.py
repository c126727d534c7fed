"""Real Terminals for tests: a process as this user, a process as an ordinary user, or a sandbox in this process."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import error_pb2, terminal_pb2, terminal_pb2_grpc
from google.protobuf import duration_pb2

from services.common.boundary import new_id
from services.common.config import TerminalSettings, load
from services.common.server import Service
from services.common.status import from_rpc_error
from services.terminal import policy, programs
from services.terminal.calls import Calls
from services.terminal.sandbox import Sandbox
from services.terminal.service import FULL_NAME, TerminalService
from services.terminal.supervisor import WAITING

REPOSITORY = Path(__file__).parents[1]
NOBODY = 65534
# Loads everything as root, then gives root up: the project's folder may be closed to others.
AS_NOBODY = f"""
import os, sys
sys.executable = "/usr/bin/python3"
from services.terminal.__main__ import main
import concurrent.futures.thread
os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)
main()
"""
End = terminal_pb2.CommandEnd
Reason = error_pb2.ErrorReason
PYTHON = "/usr/bin/python3"  # one that commands may run


@dataclass
class Story:
    """What one call answered."""

    started: terminal_pb2.CommandStarted
    chunks: list[terminal_pb2.OutputChunk] = field(default_factory=list)
    result: terminal_pb2.CommandResult | None = None

    def text(self, stream: int) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks if chunk.stream == stream)

    @property
    def stdout(self) -> bytes:
        return self.text(terminal_pb2.OUTPUT_STREAM_STDOUT)

    @property
    def stderr(self) -> bytes:
        return self.text(terminal_pb2.OUTPUT_STREAM_STDERR)

    @property
    def end(self) -> str:
        assert self.result is not None
        return End.Name(self.result.end).removeprefix("COMMAND_END_")


def request(*argv: str, **command: Any) -> terminal_pb2.RunRequest:
    """Builds a request; limits may be given by name, times in seconds."""
    limits = {name: command.pop(name) for name in terminal_pb2.Limits.DESCRIPTOR.fields_by_name if name in command}
    for name in ("wall_time", "cpu_time"):
        if name in limits:
            limits[name] = duration_pb2.Duration(seconds=int(limits[name]), nanos=int(limits[name] % 1 * 1_000_000_000))
    made = terminal_pb2.Command(argv=argv, limits=terminal_pb2.Limits(**limits), **command)
    return terminal_pb2.RunRequest(call_id=new_id(), command=made)


async def run(stub: Any, *argv: str, **command: Any) -> Story:
    """Runs a command to its end and checks the order of what comes: started, chunks, one result."""
    story = None
    async for response in stub.Run(request(*argv, **command)):
        kind = response.WhichOneof("event")
        if story is None:
            assert kind == "started"
            story = Story(response.started)
            continue
        assert story.result is None, "nothing may follow the result"
        if kind == "chunk":
            assert 0 < len(response.chunk.data) <= 65_536
            story.chunks.append(response.chunk)
        else:
            assert kind == "result"
            story.result = response.result
    assert story is not None
    assert story.result is not None
    return story


@dataclass
class Process:
    """A Terminal in a process of its own."""

    process: "subprocess.Popen[bytes]"
    port: int
    workspaces: Path
    log: Path

    def left(self) -> list[Path]:
        """Returns the workspaces that there are."""
        return [path for path in self.workspaces.iterdir() if path.name != "calls"]

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            yield terminal_pb2_grpc.TerminalStub(channel)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Makes a folder that every user can pass through; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="terminal-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def serving(folder: Path, as_nobody: bool = False, **settings: str) -> Iterator[Process]:
    """Serves from a process until the block ends, in the standard tier unless told otherwise."""
    if as_nobody:
        os.chown(folder, NOBODY, NOBODY)
    how = ["-c", AS_NOBODY] if as_nobody else ["-m", "services.terminal"]
    environment = {
        "PATH": os.environ["PATH"],
        "SECRET_OF_THE_SERVICE": "hunter2",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'gen'}",
        "TERMINAL_LISTEN": "127.0.0.1:0",
        "TERMINAL_WORKSPACES": str(folder / "workspaces"),
        "TERMINAL_TIER": "standard",
        **{f"TERMINAL_{name.upper()}": value for name, value in settings.items()},
    }
    log = folder / f"log-{len(list(folder.iterdir())) if not as_nobody else 'nobody'}"
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, *how], env=environment, stderr=stderr, cwd=REPOSITORY)
    try:
        yield Process(process, _port(process, log), folder / "workspaces", log)
    finally:
        process.terminate()
        process.wait(20)


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    for _ in range(1000):
        if found := re.search(rb"listening on .*port (\d+)", log.read_bytes()):
            return int(found[1])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
            break
    raise AssertionError(log.read_text())


@contextlib.asynccontextmanager
async def served(folder: Path, **options: Any) -> AsyncIterator[tuple[Any, Sandbox]]:
    """Serves from this process. `policies` replace those of the settings, other options are settings."""
    policies = options.pop("policies", None)
    environment = {f"TERMINAL_{name.upper()}": str(value) for name, value in options.items()}
    settings = load(TerminalSettings, {"TERMINAL_WORKSPACES": str(folder / "workspaces"), **environment})
    rules = programs.load(settings)
    sandbox = Sandbox(settings, policies or policy.allowed(settings.tier, rules.execute_paths()), rules)
    await sandbox.start()
    calls = Calls(settings.workspaces / "calls", settings.keep_calls, settings.calls_bytes)
    await calls.start()
    service = Service("127.0.0.1:0", [FULL_NAME])
    terminal_pb2_grpc.add_TerminalServicer_to_server(TerminalService(sandbox, calls, settings), service.server)
    await service.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        yield terminal_pb2_grpc.TerminalStub(channel), sandbox
    await sandbox.close()
    await service.stop(1)
    sandbox.rooms.close()
    await calls.close()


def nobody_can_serve() -> bool:
    """Whether this process may become an ordinary user, and that user can read the spawner and an interpreter."""
    if os.geteuid() != 0 or not Path("/usr/bin/python3").exists():
        return False
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import services.terminal.spawner"
    command = ["/usr/bin/python3", "-I", "-S", "-c", probe, str(REPOSITORY)]
    return subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], check=False).returncode == 0


KINDS = [
    pytest.param(False, id="this_user"),
    pytest.param(True, id="ordinary_user", marks=pytest.mark.skipif(not nobody_can_serve(), reason="needs root")),
]


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children(pid: int) -> list[int]:
    try:
        below = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _below(task)]
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return []
    return [child for child in below if alive(child)]


def _below(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def held(service: int) -> list[int]:
    """Returns the processes directly below the supervisors of a Terminal that have a command."""
    [spawner] = children(service)
    supervisors = [supervisor for guard in children(spawner) for supervisor in children(guard)]
    return [process for each in supervisors if not _waits(each) for process in children(each)]


def _waits(supervisor: int) -> bool:
    try:
        return Path(f"/proc/{supervisor}/comm").read_bytes().strip() == WAITING
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.asynccontextmanager
async def refusal(reason: str) -> AsyncIterator[dict[str, str]]:
    """Expects a call to be refused for a reason; the dictionary then holds its metadata and message."""
    told: dict[str, str] = {}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield told
    error = from_rpc_error(caught.value)
    assert error is not None, caught.value
    assert Reason.Name(error.reason) == f"ERROR_REASON_{reason}", error
    told.update(error.metadata, message=error.message)


async def rest_of(call: Any) -> list[terminal_pb2.RunResponse]:
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses
