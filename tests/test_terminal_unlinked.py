"""Deleted files that processes hold: how they are found, and that honest programs are not taken for hiding some.

What gets out and what does not is tried in tests/attacks; here are the cases that need a view from outside, or leave.
"""

import contextlib
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import terminal_pb2

from services.terminal import scan, tree, unlinked
from tests.conftest import until
from tests.terminals import KINDS, PYTHON, Process, open_folder, run, serving

MIB = 1024 * 1024
LARGEST = 64 * MIB  # what a file counts whose size cannot be seen
BIG = 3 * MIB


@pytest.fixture
def device(tmp_path: Path) -> Iterator[unlinked.Device]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield unlinked.Device(fd)
    os.close(fd)


@contextlib.contextmanager
def holding(folder: Path, code: str) -> Iterator[int]:
    """Runs a program in a folder until the block ends; the code has a `made(name)` that gives a file of BIG bytes."""
    begin = f"import ctypes, mmap, os, sys, threading, time\nos.chdir({str(folder)!r})\n"
    begin += f"def made(name):\n    file = open(name, 'w+b', 0); file.write(bytes({BIG})); return file\n"
    end = "\nprint(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", begin + code + end], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


def looked(pid: int, device: unlinked.Device, sockets: bool = False) -> tuple[int, bool]:
    return unlinked.look(lambda: [pid], device, LARGEST, sockets)


MAPPED = (
    "libc = ctypes.CDLL(None)\ndef keep(f, n, kind=1): libc.mmap(None, ctypes.c_size_t(n), 1, kind, f.fileno(), 0)\n"
)


@pytest.mark.parametrize(
    ("code", "exact"),
    [
        ("f = made('a')", 0),
        ("f = made('a'); os.link('a', 'b'); os.unlink('a')", 0),
        ("f = made('a'); os.unlink('a')", BIG),
        ("f = made('a'); g = os.dup(f.fileno()); os.unlink('a')", BIG),
        ("f = made('a'); os.unlink('a'); m = mmap.mmap(f.fileno(), 4096)", BIG),
        ("f, g = made('a'), made('b'); os.unlink('a'); os.unlink('b')", 2 * BIG),
    ],
)
def test_open_files_count_once_and_only_when_deleted(
    tmp_path: Path, device: unlinked.Device, code: str, exact: int
) -> None:
    with holding(tmp_path, code) as pid:
        assert looked(pid, device) == (exact, False)


@pytest.mark.parametrize("how", ["BIG", "4096", "BIG, 2"])
def test_files_that_are_only_mapped_count(tmp_path: Path, device: unlinked.Device, how: str) -> None:
    code = MAPPED + f"f = made('a'); os.unlink('a'); keep(f, {how.replace('BIG', str(BIG))}); f.close()"
    with holding(tmp_path, code) as pid:
        found, unknown = looked(pid, device)
    assert found in (BIG, LARGEST)  # only root sees the size
    assert found == BIG or not _sees_mapped_files()
    assert not unknown


def _sees_mapped_files() -> bool:
    """Whether this process may follow the links in map_files, as root with all capabilities may."""
    with mmap.mmap(-1, 4096), contextlib.suppress(PermissionError):
        return next(Path("/proc/self/map_files").iterdir()).exists()
    return False


def test_names_that_only_look_deleted_do_not_count(tmp_path: Path, device: unlinked.Device) -> None:
    with holding(tmp_path, MAPPED + "f = made('a (deleted)'); keep(f, 4096); f.close()") as pid:
        found, _ = looked(pid, device)
    assert found == (0 if _sees_mapped_files() else LARGEST)


def test_memory_and_files_of_other_devices_do_not_count(tmp_path: Path) -> None:
    fd = os.open("/proc", os.O_RDONLY)
    code = "m = mmap.mmap(-1, 1 << 20); f = made('a'); os.unlink('a'); m = mmap.mmap(f.fileno(), 4096)"
    with holding(tmp_path, code) as pid:
        assert looked(pid, unlinked.Device(fd)) == (0, False)
    os.close(fd)


def test_a_deleted_program_counts(tmp_path: Path, device: unlinked.Device) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    size = program.stat().st_blocks * 512
    with subprocess.Popen([program, "60"]) as process:
        program.unlink()
        assert looked(process.pid, device) == (size, False)
        process.kill()


def test_the_first_thread_s_end_hides_nothing(tmp_path: Path, device: unlinked.Device) -> None:
    code = """
held = []
def go():
    held.append(made('a')); os.unlink('a'); held.append(bytearray(50 << 20))
    time.sleep(0.1)
    print(flush=True); time.sleep(60)
threading.Thread(target=go).start()
ctypes.CDLL(None).syscall({'x86_64': 60}.get(os.uname().machine, 93), 0)"""
    with holding(tmp_path, code) as pid:
        assert tree.living(pid) != pid
        assert looked(pid, device) == (BIG, False)
        threads, memory, _ = tree.measure(pid)
        assert threads == 2
        assert memory > 50 * MIB
        exact = tree.proportional_bytes(pid)
        assert exact is not None
        assert exact > 50 * MIB


@pytest.mark.parametrize("state", ["gone", "zombie"])
def test_who_has_ended_holds_nothing(device: unlinked.Device, state: str) -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if state == "gone":
            process.wait()
        assert looked(process.pid, device) == (0, False)
        assert tree.measure(process.pid)[1] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root sees through it")
def test_who_hides_is_unknown(tmp_path: Path, device: unlinked.Device) -> None:
    with holding(tmp_path, "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)") as pid:
        assert looked(pid, device) == (0, True)


IN_TRANSIT = """
import socket
one, other = socket.socketpair()
f = made('a'); os.unlink('a')
socket.send_fds(one, [b'x'], [f.fileno()]); f.close()"""
NOT_ACCEPTED = """
import socket
server = socket.socket(socket.AF_UNIX); server.bind('s'); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect('s')
f = made('a'); os.unlink('a')
socket.send_fds(client, [b'x'], [f.fileno()]); f.close(); client.close()"""
WRAPPED = (
    IN_TRANSIT
    + "\nthird, fourth = socket.socketpair(); socket.send_fds(third, [b'x'], [other.fileno()]); other.close()"
)


@pytest.mark.parametrize("code", [IN_TRANSIT, NOT_ACCEPTED, WRAPPED], ids=["pair", "not_accepted", "wrapped"])
def test_descriptors_on_their_way_are_unknown(tmp_path: Path, device: unlinked.Device, code: str) -> None:
    with holding(tmp_path, code) as pid:
        assert looked(pid, device, sockets=True) == (0, True)
    received = code + "\nheld = socket.recv_fds(other if 'third' not in globals() else fourth, 1, 1)"
    if code == IN_TRANSIT:
        with holding(tmp_path, received) as pid:
            assert looked(pid, device, sockets=True) == (BIG, False)


def test_a_tree_that_comes_and_goes_is_looked_at_again(tmp_path: Path, device: unlinked.Device) -> None:
    seen: list[int] = []
    with holding(tmp_path, "f = made('a'); os.unlink('a')") as pid:

        def processes() -> list[int]:
            seen.append(1)
            return [1 << 22] if len(seen) == 1 else [pid]  # at first one that is gone

        assert unlinked.look(processes, device, LARGEST, False) == (BIG, False)
    assert len(seen) == 2


# ---- in a Terminal ----


@pytest.fixture(scope="module", params=KINDS)
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    with open_folder() as folder:
        policy = folder / "policy.toml"
        policy.write_text('[[program]]\npath = "/usr/bin/*"\nloopback = true\n[script]\nallowed = true\n')
        policy.chmod(0o644)
        with serving(folder, request.param, tier="best", policy=str(policy)) as process:
            yield process


@pytest.fixture
async def terminal(process: Process) -> AsyncIterator[Any]:
    async with process.stub() as stub:
        yield stub
        await until(lambda: not process.left())


SENT = """
import os, socket, time
one, other = socket.socketpair()
for n in range(16):
    with open(str(n), 'w+b', 0) as file:
        file.write(bytes(1 << 20)); socket.send_fds(one, [b'x'], [file.fileno()]); os.unlink(str(n))
time.sleep(20)"""


async def test_with_a_loopback_descriptors_may_be_sent_and_not_left_on_their_way(
    terminal: Any, process: Process
) -> None:
    told = await terminal.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())
    if not told.loopback:
        pytest.skip("a loopback needs the strong tier")
    limits = {"workspace_bytes": 4 * MIB, "wall_time": 15, "network": terminal_pb2.NETWORK_LOOPBACK}
    story = await run(terminal, PYTHON, "-c", SENT, **limits)
    assert story.end == "WORKSPACE"
    received = "import os, socket, time\none, other = socket.socketpair()\nsocket.send_fds(one, [b'x'], [0])\n"
    story = await run(terminal, PYTHON, "-c", received + "print(len(socket.recv_fds(other, 1, 1)[1]))", **limits)
    assert story.stdout == b"1\n"


async def test_without_one_none_can_be_sent(terminal: Any) -> None:
    story = await run(terminal, PYTHON, "-c", SENT, wall_time=15)
    assert b"Permission denied" in story.stderr


HONEST = """
import asyncio, ctypes, multiprocessing, os, socket, subprocess, tempfile, threading, time
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # as an ssh-agent does
one, other = socket.socketpair()
threading.Thread(target=one.sendall, args=(bytes(1 << 20),)).start()
got = 0
while got < 1 << 20: got += len(other.recv(1 << 16))
async def main():
    made = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    print(len((await made.communicate(bytes(1 << 20)))[0]))
asyncio.run(main())
here, there = multiprocessing.Pipe()
child = multiprocessing.Process(target=there.send, args=("sent",)); child.start(); print(here.recv()); child.join()
held = [tempfile.TemporaryFile() for _ in range(20)]
for each in held: each.write(b"x" * 10000); each.flush()
for _ in range(60): subprocess.run(["true"])
time.sleep(1)
print("done")
"""
BUILD = """
for i in 1 2 3 4 5 6 7 8; do printf 'a%s:\\n\\tsleep 0.1; sh -c "exit 0"; echo made > $@\\n' $i; done > Makefile
command -v make > /dev/null && { make -s -j4 a1 a2 a3 a4 a5 a6 a7 a8 && ls a? | wc -l; } || echo 8
cp /bin/sleep s; ./s 1 & rm s; wait $!; echo ended
"""


async def test_honest_programs_are_not_hurt(terminal: Any) -> None:
    story = await run(terminal, PYTHON, "-c", HONEST, wall_time=15)
    assert (story.end, story.stdout.split()) == ("EXITED", [b"1048576", b"sent", b"done"]), story.stderr
    story = await run(terminal, script=BUILD, wall_time=15)
    assert (story.end, story.stdout.split()) == ("EXITED", [b"8", b"ended"]), story.stderr


@pytest.mark.parametrize("rush", ["entries", "bytes", "none"])
def test_a_disk_that_fills_fast_is_looked_at_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rush: str
) -> None:
    monkeypatch.setattr(scan, "EVERY_S", 3600)
    monkeypatch.setattr(scan, "SHARE", 0)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    limits = {"workspace_entries": 1000, "workspace_bytes": 64 * MIB, "file_size_bytes": 64 * MIB}
    job: Any = {"workspace_fd": fd, "loopback": False, "tier": "standard", **limits}
    if rush == "entries" and not os.fstatvfs(fd).f_files:
        pytest.skip("this file system does not count its entries")
    for attempt in range(20):  # others use the disk too, and may free as much meanwhile
        looks = scan.Scan(job, list)
        assert looks.due()
        assert looks.passed() == ""
        for number in range(600 if rush == "entries" else 1):
            (tmp_path / f"{attempt}-{number}").write_bytes(bytes(40 * MIB if rush == "bytes" else 0))
        due = looks.due()
        for path in tmp_path.iterdir():
            path.unlink()
        if due == (rush != "none"):
            break
    else:
        pytest.fail("it was never due at the right time")
    os.close(fd)
