"""`ops.up`: in the foreground with stand-ins, on the command line with the real services."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ops import layout
from ops.envoy import ROOT
from ops.keeper import MOST_ENDS
from services.common.config import ConfigError
from tests.started_systems import DEADLINE_S, ELSEWHERE, alive, environ, get, wait_until

__all__ = ["environ"]


# The supervisor in the foreground, with stand-ins

FOREGROUND = """
import asyncio, sys
from pathlib import Path
from ops import keeper
from ops.stack import Stack
from ops.up import lock, relay, supervise
from tests.scripted import stand_ins
keeper.FIRST_PAUSE_S = 0.05  # doubled each time
var = Path(sys.argv[1])
with lock(var):
    several = {"replicas": 2, "environ": {"CONDUCTOR_STORE": sys.argv[2], "CONDUCTOR_DRAIN": "0.1"}}
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
