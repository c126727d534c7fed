"""What a hostile program leaves in its folder, an ordinary user to meet it with, and a canary that must survive."""

import contextlib
import ctypes
import os
import resource
import socket
import stat
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import kernel
from services.terminal import folders, workspace

NOBODY = 65_534
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root: an ordinary user cannot give files away")
MEMORY = "/dev/shm"  # a tmpfs, as workspaces have it in a container; thousands of folders take seconds on a disk
RENAME_EXCHANGE = 2  # of <linux/fs.h>


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Runs the block as an ordinary user without privileges, though root started the tests."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # the change of user cleared it


@pytest.fixture(
    params=[
        pytest.param(False, id="this_user"),
        pytest.param(True, id="ordinary_user", marks=pytest.mark.skipif(not ROOT, reason="needs root")),
    ]
)
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for the test, which runs as this user and as an ordinary one. No descriptor may be left open."""
    path = Path(tempfile.mkdtemp(prefix="hostile-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["sh", "-c", 'chmod -R u+rwX "$0"; rm -rf "$0"', path], check=True)
        if request.param:
            os.chown(path, NOBODY, NOBODY)
            stack.enter_context(ordinary_user())
        before = open_files()
        yield path
        assert not open_files() - before


@pytest.fixture
def root(place: Path) -> Iterator[int]:
    """An open folder of workspaces."""
    descriptor = workspace.open_root(place / "workspaces", 0o711)
    yield descriptor
    os.close(descriptor)


def listed(folder: int | Path) -> list[str]:
    """Returns the names in a folder, given by its path or its descriptor, sorted."""
    return sorted(os.listdir(folder))  # noqa: PTH208


def open_files() -> Counter[str]:
    """Counts what this process has open by what it is, without what a collection of garbage may close meanwhile."""
    return Counter(
        what for fd in Path("/proc/self/fd").iterdir() if (what := _target(fd)) and not what.startswith("socket:")
    )


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except FileNotFoundError:  # the one that listed
        return ""


@contextlib.contextmanager
def few_files() -> Iterator[None]:
    """Lets this process open no more than sixteen files beyond those it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, listed(Path("/proc/self/fd")))) + 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def chain(folder: int, depth: int) -> None:
    """Nests folders named `d`, with a file named `f` in each."""
    here = os.dup(folder)
    for _ in range(depth):
        os.mkdir("d", 0o700, dir_fd=here)
        inner = os.open("d", folders.FOLDER, dir_fd=here)
        os.close(here)
        here = inner
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
    os.close(here)


def fill(folder: Path, canary: Path) -> None:
    """Leaves an entry of every kind in a folder: names of any bytes, links of every kind, locked folders."""
    here = os.fsencode(folder)
    for name in (b"plain", b"\xff\xfe", b"-rf", b"a\nb", b" ", b"*", b"\x01", b"n" * 255, "é".encode()):
        Path(os.fsdecode(here + b"/" + name)).write_bytes(b"")
    for mode in (0, 0o100, 0o200, 0o400):
        locked = folder / f"locked-{mode}"
        (locked / "inner").mkdir(parents=True)
        (locked / "file").write_text("locked in")
        locked.chmod(mode)
    (folder / "locked-file").write_text("locked")
    (folder / "locked-file").chmod(0)
    os.mkfifo(folder / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    there = os.open(folder, folders.FOLDER)
    listener.bind(f"/proc/self/fd/{there}/socket")
    os.close(there)
    listener.close()
    (folder / "link").symlink_to(canary / "file")
    (folder / "folder-link").symlink_to(canary)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "up").symlink_to("..")
    os.link(canary / "file", folder / "hard")
    (folder / "one").write_text("two names")
    os.link(folder / "one", folder / "two")
    if os.geteuid() == 0:
        os.mknod(folder / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


@pytest.fixture
def canary(place: Path) -> Iterator[Path]:
    """A folder outside, with a file; nothing of it may change."""
    path = place / "canary"
    path.mkdir()
    (path / "file").write_text("the canary sings")
    before = _look_of(path)
    yield path
    assert _look_of(path) == before


def _look_of(path: Path) -> list[object]:
    look: list[object] = []
    for each in (path, *sorted(path.iterdir())):
        found = each.lstat()
        look.append((each.name, found.st_mode, found.st_uid, found.st_gid, found.st_size))
    return [*look, (path / "file").read_text()]


@contextlib.contextmanager
def as_root() -> Iterator[None]:
    """Runs the block as root again, where root started the tests."""
    user = os.geteuid()
    if ROOT:
        os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(user)


@contextlib.contextmanager
def swapping(folder: Path, *pairs: tuple[str, str]) -> Iterator[None]:
    """Exchanges pairs of names in a folder, in one step each time, as fast as can be, until the block ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = os.open(folder, folders.FOLDER)
    begun, stop = threading.Event(), threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for one, other in pairs:
                if libc.renameat2(there, one.encode(), there, other.encode(), RENAME_EXCHANGE) == 0:
                    begun.set()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        assert begun.wait(10), "this machine does not swap"
        yield
    finally:
        stop.set()
        thread.join()
        os.close(there)
