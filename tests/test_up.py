"""The supervisor: scripted stand-ins for what can go wrong, the real services for the command line."""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import asyncpg
import pytest

from ops import layout, stack
from ops.envoy import ROOT, split
from ops.health import is_serving
from ops.keeper import MOST_ENDS
from ops.layout import SERVICES, WORKERS
from ops.stack import Stack, StartError
from services.common.config import ConfigError
from tests.scripted import stand_ins

DEADLINE_S = 20
ELSEWHERE = "postgresql://nobody@127.0.0.1:1/none"  # the stand-ins do not open it


def alive(folder: Path) -> list[int]:
    """The processes that were told of the folder by their environment or arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(") ")[2][0]
        except OSError:
            continue
        if os.fsencode(folder) in told and state != "Z":
            found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def get(address: str, path: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


# The library


async def test_all_serve_and_nothing_is_left_after_stop(tmp_path: Path) -> None:
    lines: list[tuple[str, str]] = []
    async with Stack(tmp_path, commands=stand_ins(), tell=lambda name, line: lines.append((name, line))) as running:
        assert [await is_serving(running.addresses[name]) for name in SERVICES] == [True] * 4
        assert await asyncio.to_thread(get, running.addresses["envoy"], "/conductor/tasks/a") == 200
        assert running.url == f"http://{running.addresses['envoy']}"
    assert alive(tmp_path) == []
    stops = [name for name, line in lines if line.endswith(" stops")]
    assert stops == ["conductor", "report_writer", "terminal", "researcher"]  # callers before the called
    serves = [name for name, line in lines if " serves as process " in line]
    assert sorted(serves[:3]) == ["report_writer", "researcher", "terminal"]
    assert serves[3:] == ["conductor"]
    layout.check_ports(running.layout, layout.LISTEN)  # all free again


async def test_open_streams_end_properly_through_the_edge(tmp_path: Path) -> None:
    """Conductor stops before Envoy, so a stream ends with the last chunk, not with a cut connection."""
    running = Stack(tmp_path, only=["conductor", "envoy"], commands=stand_ins())
    await running.start()
    reader, writer = await asyncio.open_connection(*split(running.addresses["envoy"]))
    writer.write(b"GET /conductor/events HTTP/1.1\r\nhost: a\r\n\r\n")
    async with asyncio.timeout(DEADLINE_S):
        await reader.readuntil(b"data: {}\n\n")
        rest, _ = await asyncio.gather(reader.read(), running.stop())
    writer.close()
    assert rest.endswith(b"0\r\n\r\n")


async def test_two_systems_run_side_by_side(tmp_path: Path) -> None:
    one, two = (Stack(tmp_path / name, only=["conductor", "envoy"], commands=stand_ins()) for name in ("one", "two"))
    assert not set(one.addresses.values()) & set(two.addresses.values())
    async with one, two:
        statuses = [await asyncio.to_thread(get, s.addresses["envoy"], "/conductor/tasks/a") for s in (one, two)]
    assert statuses == [200, 200]


async def test_one_can_be_killed_and_started_again_where_it_was(tmp_path: Path) -> None:
    async with Stack(tmp_path, only=["conductor", "terminal"], commands=stand_ins()) as running:
        before, bystander = running.pid("conductor"), running.pid("terminal")
        assert await running.kill("conductor") == -signal.SIGKILL
        assert await is_serving(running.addresses["terminal"])
        await running.restart("conductor")
        assert running.pid("conductor") != before
        assert await is_serving(running.addresses["conductor"])
        await running.restart("conductor")  # also when it runs
        assert running.pid("terminal") == bystander
    assert running.log("conductor").read_text().count("serves as process") == 3


async def test_an_end_is_told_with_its_cause(tmp_path: Path) -> None:
    async with Stack(tmp_path, only=["conductor", "terminal"], commands=stand_ins()) as running:
        end = asyncio.create_task(running.ended("terminal"))
        os.kill(running.pid("terminal"), signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_S):
            told = await end
        assert told == f"terminal ended by itself with signal SIGKILL; see {running.log('terminal')}."


async def test_several_of_each_run_side_by_side_and_are_killed_one_by_one(tmp_path: Path) -> None:
    several = {"replicas": 3, "workers": 2, "environ": {"CONDUCTOR_STORE": ELSEWHERE}}
    async with Stack(tmp_path, only=["conductor", "terminal"], commands=stand_ins(), **several) as running:
        assert running.names == ("terminal", "terminal-2", "conductor", "conductor-2", "conductor-3")
        assert len({running.addresses[name] for name in running.names}) == 5
        assert await running.kill("conductor-2") == -signal.SIGKILL
        running.send("conductor-3", signal.SIGSTOP)
        wait_until(lambda: state_of(running.pid("conductor-3")) == "T")
        assert await is_serving(running.addresses["conductor"])
        await running.restart("conductor-2")
        assert running.log("conductor-2").read_text().count("serves as process") == 2
    # One that was paused stops like the others.
    assert running.log("conductor-3").read_text().endswith("conductor stops\n")


async def test_a_postgresql_of_its_own_is_started_killed_and_found_again(tmp_path: Path) -> None:
    async with Stack(tmp_path, only=["postgres"], postgres=True) as running:
        connection = await asyncpg.connect(running.store)
        await connection.execute("CREATE TABLE kept (a int)")
        end = asyncio.create_task(running.ended("postgres"))
        running.send("postgres", signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncpg.connect(running.store, timeout=0.3)
        await running.kill("postgres")
        assert (await end).startswith("postgres ended by itself; see ")
        await connection.close()
        await running.restart("postgres")
        assert await running.kill("postgres", signal.SIGQUIT) == 0
        await running.start_one("postgres")
        connection = await asyncpg.connect(running.store)
        assert await connection.fetch("TABLE kept") == []
        await connection.close()
    assert alive(tmp_path) == []


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


async def test_a_start_that_fails_says_what_the_service_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"terminal did not start: terminal: The script says so\. \(exit code 2;"):
        await Stack(tmp_path, commands=stand_ins(terminal="broken")).start()
    assert alive(tmp_path) == []


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    start = asyncio.create_task(Stack(tmp_path, commands=stand_ins()).start())
    async with asyncio.timeout(DEADLINE_S):
        while not alive(tmp_path):  # noqa: ASYNC110 - what changes is another process
            await asyncio.sleep(0.01)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert alive(tmp_path) == []


async def test_one_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "GRACE_MARGIN_S", 0.3)
    running = Stack(
        tmp_path, only=["conductor"], commands=stand_ins(conductor="stubborn"), environ={"CONDUCTOR_GRACE": "0.1"}
    )
    await running.start()
    async with asyncio.timeout(DEADLINE_S):
        await running.stop()
    assert alive(tmp_path) == []


async def test_long_lines_and_bytes_that_are_no_text_are_relayed(tmp_path: Path) -> None:
    program = "import sys; sys.stdout.buffer.write(b'a' * 300_000 + b'\\n\\xff\\n' + b'unfinished'); sys.exit(3)"
    lines: list[str] = []
    running = Stack(
        tmp_path,
        only=["terminal"],
        commands={"terminal": [sys.executable, "-c", program]},
        tell=lambda _, line: lines.append(line),
    )
    with pytest.raises(StartError, match=r"unfinished \(exit code 3;"):
        await running.start()
    assert "".join(lines[:-2]) == "a" * 300_000
    assert lines[-2:] == ["\ufffd", "unfinished"]
    assert running.log("terminal").stat().st_size == 300_000 + 1 + 2 + 10


async def test_the_log_of_the_run_before_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        async with Stack(tmp_path, only=["terminal"], commands=stand_ins()) as running:
            log = running.log("terminal")
    assert log.read_text().count("serves as process") == 1
    assert log.with_name("terminal.log.1").read_text().count("serves as process") == 1


async def test_a_busy_port_is_named_with_the_variable_to_change(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert len(layout.LISTEN) == 6
        for variable in layout.LISTEN.values():
            with pytest.raises(ConfigError, match=rf"^{address} is in use: .* {variable}\.$"):
                await Stack(tmp_path, environ={variable: address}, commands=stand_ins()).start()
    assert alive(tmp_path) == []


async def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot listen on 192\.0\.2\.1:5000: .* TERMINAL_LISTEN\."):
        await Stack(tmp_path, environ={"TERMINAL_LISTEN": "192.0.2.1:5000"}).start()


@pytest.mark.parametrize("value", ["8080", "localhost:8080", "127.0.0.1:0", "127.0.0.1:x", "127.0.0.1:70000", ""])
def test_an_edge_address_that_cannot_be_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"EDGE_LISTEN=.* cannot be used: give IP:port"):
        Stack(tmp_path, environ={"EDGE_LISTEN": value})


@pytest.mark.parametrize(
    ("variable", "value"),
    [("REPORT_WRITER_ROOT", "a-file/reports"), ("CONDUCTOR_STORE", "a-file/x.db"), ("TERMINAL_WORKSPACES", "a-file")],
)
async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, variable: str, value: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(ConfigError, match=rf"^Cannot write to {tmp_path}/a-file.*choose another by {variable}\.$"):
        await Stack(tmp_path / "run", environ={variable: str(tmp_path / value)}).start()


async def test_a_missing_envoy_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="Envoy is not installed: run `make setup`"):
        await Stack(tmp_path).start()
    assert alive(tmp_path) == []


def test_variables_of_the_developer_do_not_leak_into_an_isolated_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDUCTOR_STORE", "/precious.db")
    monkeypatch.setenv("EDGE_LISTEN", "127.0.0.1:8080")
    monkeypatch.setenv("TERMINAL_GRACE", "77")
    isolated = Stack(tmp_path).layout
    assert isolated.environ["CONDUCTOR_STORE"] == str(tmp_path / "conductor.db")
    assert isolated.addresses["envoy"] != "127.0.0.1:8080"
    assert "TERMINAL_GRACE" not in isolated.environ


def test_conductor_finds_workers_where_they_listen() -> None:
    moved = layout.from_environment({"RESEARCHER_LISTEN": "0.0.0.0:6000", "CONDUCTOR_TERMINAL": "dns:///elsewhere:1"})
    assert moved.environ["CONDUCTOR_RESEARCHER"] == "127.0.0.1:6000"
    assert moved.environ["CONDUCTOR_TERMINAL"] == "dns:///elsewhere:1"
    assert moved.environ["CONDUCTOR_REPORT_WRITER"] == "127.0.0.1:50054"


# Several of each


def test_one_of_each_is_told_nothing_new() -> None:
    own = layout.from_environment({}).own
    assert own.keys() == set(SERVICES)
    assert [list(environ) for environ in own.values()] == [[layout.LISTEN[name]] for name in own]


def test_several_listen_beside_the_first_and_share_no_workspaces() -> None:
    environ = {"CONDUCTOR_STORE": ELSEWHERE, "TERMINAL_LISTEN": "0.0.0.0:6000", "TERMINAL_WORKSPACES": "/w"}
    several = layout.from_environment(environ, layout.Size(replicas=3, workers=2))
    addresses = {name: several.addresses[name].rpartition(":")[2] for name in several.own}
    assert addresses == {
        "researcher": "50052",
        "researcher-2": "50062",
        "terminal": "6000",
        "terminal-2": "6010",
        "report_writer": "50054",
        "report_writer-2": "50064",
        "conductor": "50051",
        "conductor-2": "50061",
        "conductor-3": "50071",
    }
    assert several.environ["CONDUCTOR_TERMINAL"] == "ipv4:127.0.0.1:6000,127.0.0.1:6010"
    told = several.environ_of("terminal-2")
    assert (told["TERMINAL_LISTEN"], told["TERMINAL_WORKSPACES"]) == ("0.0.0.0:6010", "/w-2")
    assert ("TERMINAL_WORKSPACES", Path("/w-2")) in several.folders
    assert several.environ_of("conductor-3")["CONDUCTOR_INSTANCE"] == "conductor-3"
    assert all(float(several.environ_of(name)["CONDUCTOR_DRAIN"]) > 0 for name in ("conductor", "conductor-2"))
    assert "CONDUCTOR_STORE" not in dict(several.folders)  # nothing of it is on this machine


def test_replicas_take_the_name_and_the_drain_they_are_given() -> None:
    environ = {"CONDUCTOR_STORE": ELSEWHERE, "CONDUCTOR_INSTANCE": "blue", "CONDUCTOR_DRAIN": "9"}
    told = layout.from_environment(environ, layout.Size(replicas=2)).environ_of("conductor-2")
    assert (told["CONDUCTOR_INSTANCE"], told["CONDUCTOR_DRAIN"]) == ("blue-2", "9")


@pytest.mark.parametrize("environ", [{}, {"CONDUCTOR_STORE": "var/a.db"}])
def test_several_conductors_on_one_file_are_refused(environ: Mapping[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^2 Conductors cannot share the SQLite file .*: set CONDUCTOR_STORE to a"):
        layout.from_environment(environ, layout.Size(replicas=2))


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"RESEARCHER_LISTEN": "localhost:6000"}, "Several of a service need an IP address in RESEARCHER_LISTEN"),
        ({"TERMINAL_LISTEN": "127.0.0.1:65530"}, "There is no port for number 2 above 127.0.0.1:65530: .*TERMINAL_"),
    ],
)
def test_workers_that_cannot_be_several_are_named_with_their_variable(environ: Mapping[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        layout.from_environment(environ, layout.Size(workers=2))


async def test_two_of_ours_on_one_address_are_told_before_they_start(tmp_path: Path) -> None:
    environ = {"RESEARCHER_LISTEN": "127.0.0.1:29060", "TERMINAL_LISTEN": "127.0.0.1:29050"}
    both = Stack(tmp_path, free_ports=False, environ=environ, only=WORKERS, workers=2)
    with pytest.raises(ConfigError, match=r"terminal-2 and researcher would both listen on 127\.0\.0\.1:29060"):
        await both.start()


# The supervisor in the foreground, with stand-ins

FOREGROUND = """
import asyncio, sys
from pathlib import Path
from ops.stack import Stack
from ops.up import lock, relay, supervise
from tests.scripted import stand_ins
var = Path(sys.argv[1])
with lock(var):
    several = {"replicas": 2, "environ": {"CONDUCTOR_STORE": sys.argv[2]}}
    stack = Stack(var, only=["terminal", "conductor", "envoy"], commands=stand_ins(), tell=relay, **several)
    sys.exit(asyncio.run(supervise(stack, sys.stdout)))
"""


@pytest.fixture
def foreground(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FOREGROUND, str(tmp_path), ELSEWHERE]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert any(line.startswith("Conductor is up: ") for line in child.stdout)
    yield child
    child.kill()
    child.wait()
    child.stdout.close()
    for pid in alive(tmp_path):  # only after a failure
        os.kill(pid, signal.SIGKILL)


def test_ctrl_c_stops_all_in_order(tmp_path: Path, foreground: subprocess.Popen[str]) -> None:
    foreground.send_signal(signal.SIGINT)
    output, _ = foreground.communicate(timeout=DEADLINE_S)
    assert foreground.returncode == 0
    assert "stopping\n" in output
    assert alive(tmp_path) == []


def pid_of(tmp_path: Path, name: str) -> int:
    """The process that says so in its log, and lives."""
    log = tmp_path / "logs" / f"{name}.log"
    said = [int(line.rpartition(" ")[2]) for line in log.read_text().splitlines() if " serves as process " in line]
    return next((pid for pid in said if Path(f"/proc/{pid}").exists()), 0)


def kill_again(tmp_path: Path, name: str) -> None:
    wait_until(lambda: pid_of(tmp_path, name))
    os.kill(pid_of(tmp_path, name), signal.SIGKILL)


def test_whatever_ends_is_started_again_and_nothing_else_is_touched(
    tmp_path: Path, foreground: subprocess.Popen[str]
) -> None:
    names = ("terminal", "conductor", "conductor-2")
    before = {name: pid_of(tmp_path, name) for name in names}
    assert foreground.stdout is not None
    for name in names[::2]:
        os.kill(before[name], signal.SIGKILL)
        wait_until(lambda name=name: pid_of(tmp_path, name) not in (0, before[name]))
        assert any(f"{name} ended by itself with signal SIGKILL; see " in line for line in foreground.stdout)
        assert any(f"{name} serves again, as process {pid_of(tmp_path, name)}." in line for line in foreground.stdout)
    (envoy,) = (pid for pid in alive(tmp_path) if f"{tmp_path}/envoy.yaml" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(envoy, signal.SIGKILL)
    assert any("envoy serves again, as process " in line for line in foreground.stdout)
    assert pid_of(tmp_path, "conductor") == before["conductor"]
    foreground.send_signal(signal.SIGTERM)
    foreground.communicate(timeout=DEADLINE_S)
    assert foreground.returncode == 0
    assert alive(tmp_path) == []


def test_when_one_ends_again_and_again_all_stop_and_the_exit_code_tells(
    tmp_path: Path, foreground: subprocess.Popen[str]
) -> None:
    log = tmp_path / "logs" / "terminal.log"
    for count in range(1, MOST_ENDS + 1):
        wait_until(lambda count=count: log.read_text().count("serves as process") == count)
        kill_again(tmp_path, "terminal")
    output, _ = foreground.communicate(timeout=2 * DEADLINE_S)
    assert foreground.returncode == 1
    assert f"It ended {MOST_ENDS} times within 60 s. Stopping the others." in output
    assert alive(tmp_path) == []


def test_kill_9_of_the_supervisor_leaves_no_orphan(tmp_path: Path, foreground: subprocess.Popen[str]) -> None:
    assert len(alive(tmp_path)) >= 5
    foreground.kill()
    wait_until(lambda: alive(tmp_path) == [])
    second = subprocess.run(  # and the lock is free again
        [sys.executable, "-m", "ops.up", "--var", str(tmp_path), "down"], cwd=ROOT, capture_output=True, text=True
    )
    assert second.stdout == "Conductor is not running.\n"


# The command line, with the real services


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    chosen = layout.isolated(tmp_path, os.environ, {}).environ
    yield chosen
    for pid in alive(tmp_path):  # only after a failure
        os.kill(pid, signal.SIGKILL)


def up(tmp_path: Path, environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ops.up", "--var", str(tmp_path), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)


def test_up_down_and_up_twice(tmp_path: Path, environ: Mapping[str, str]) -> None:
    assert up(tmp_path, environ, "down").stdout == "Conductor is not running.\n"
    first = up(tmp_path, environ, "--detach")
    assert (first.returncode, first.stdout.startswith("Conductor is up: http://127.0.0.1:")) == (0, True), first
    assert get(environ["EDGE_LISTEN"], "/conductor/tasks") == 200
    second = up(tmp_path, environ, "--detach")
    assert (second.returncode, second.stderr) == (1, "")
    assert second.stdout.startswith("Conductor is running already (process ")
    assert get(environ["EDGE_LISTEN"], "/conductor/tasks") == 200
    last = up(tmp_path, environ, "down")
    assert (last.returncode, last.stdout) == (0, "Conductor is stopped.\n")
    assert alive(tmp_path) == []


def test_several_conductors_come_up_with_a_postgresql_of_their_own(tmp_path: Path, environ: Mapping[str, str]) -> None:
    several = ("--detach", "--replicas", "2")
    refused = up(tmp_path, environ, *several)
    assert (refused.returncode, refused.stderr) == (1, "")
    assert refused.stdout.startswith("2 Conductors cannot share the SQLite file ")
    mine = {name: value for name, value in environ.items() if name != "CONDUCTOR_STORE"}
    mine |= {"CONDUCTOR_LISTEN": pair_of_ports(), "CONDUCTOR_DRAIN": "0.1"}
    first = up(tmp_path, mine, *several)
    assert (first.returncode, first.stdout.startswith("Conductor is up: http://127.0.0.1:")) == (0, True), first
    status, body = post(mine["EDGE_LISTEN"], "/api/projects/p/transition", '{"stage_id": 1}')
    assert status == 200, body
    assert "conductor-2 is process " in (tmp_path / "logs" / "up.log").read_text()
    assert up(tmp_path, mine, "down").stdout == "Conductor is stopped.\n"
    assert alive(tmp_path) == []
    assert list(tmp_path.glob("*.db*")) == [], "something was written to a file of SQLite's"
    logs = [(tmp_path / "logs" / f"{name}.log").read_text() for name in ("conductor", "conductor-2")]
    assert all("store postgresql://conductor@127.0.0.1:" in log for log in logs)


def pair_of_ports() -> str:
    """An address of which the one where a second of its kind listens is free too."""
    for port in layout.free_ports(100):
        second = layout.Layout({"conductor": f"127.0.0.1:{port + layout.PORT_STEP}"}, [], {})
        with contextlib.suppress(ConfigError):
            layout.check_ports(second, ["conductor"])
            return f"127.0.0.1:{port}"
    raise AssertionError("no free ports")


def post(address: str, path: str, body: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_detached_start_that_fails_says_why(tmp_path: Path, environ: Mapping[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        failed = up(tmp_path, {**environ, "TERMINAL_LISTEN": address}, "--detach")
    assert (failed.returncode, failed.stderr) == (1, "")
    assert failed.stdout.startswith(f"{address} is in use: ")
    assert failed.stdout.count("\n") == 1
