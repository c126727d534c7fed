"""Ways to see what a started system has left, and to wait for it."""

import http.client
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ops import layout

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


# The command line, with the real services


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    chosen = layout.isolated(tmp_path, os.environ, {}).environ
    yield chosen
    for pid in alive(tmp_path):  # only after a failure
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(chosen["TERMINAL_WORKSPACES"], ignore_errors=True)  # not below tmp_path; perhaps never made
