"""The supervisor: scripted stand-ins for what can go wrong, the real services for the command line."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import pytest

from ops import layout, stack
from ops.envoy import split
from ops.health import is_serving
from ops.layout import SERVICES, WORKERS
from ops.stack import Stack, StartError
from services.common.config import ConfigError
from tests.scripted import stand_ins
from tests.started_systems import DEADLINE_S, ELSEWHERE, alive, environ, get, wait_until

__all__ = ["environ"]


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
    several = {"replicas": 3, "workers": 2, "environ": {"CONDUCTOR_STORE": ELSEWHERE, "CONDUCTOR_DRAIN": "0.1"}}
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
