"""What a command left, taken out: the files patterns ask for and nothing else, whatever it did to mislead."""

import errno
import fcntl
import hashlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from services.terminal import folders, outputs
from tests.hostile import canary, chain, few_files, fill, place, swapping
from tests.outputs_at_hand import leave, paths, work

__all__ = ["canary", "place", "work"]


TIB = 1024**4


@pytest.fixture(params=["this kernel", "old kernel"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with openat2, and with a number no kernel knows in its place."""
    if request.param == "old kernel":
        monkeypatch.setattr(outputs, "_OPENAT2", 100_000)


def read(work: int, path: str) -> bytes:
    descriptor, size = outputs.open_file(work, path)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read()
    assert len(content) == size
    return content


# ---- what is listed ----


def test_size_and_checksum_are_of_the_content(place: Path, work: int) -> None:
    contents = {"empty": b"", "small": b"abc", "a/large": bytes(range(256)) * 20_000}
    for path, content in contents.items():
        leave(place, path)
        (place / "work" / path).write_bytes(content)
    files, _ = outputs.listing(work, ["**"])
    assert files == [
        outputs.OutputFile(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in sorted(contents.items())
    ]
    assert all(read(work, file.path) == contents[file.path] for file in files)


@pytest.mark.usefixtures("kernels")
def test_only_files_with_a_single_name_are_listed_and_read(place: Path, work: int, canary: Path) -> None:
    fill(place / "work", canary)
    leave(place, "good/file")
    (place / "work" / "self").symlink_to(".")
    files, left_out = outputs.listing(work, ["**"])
    names = {"\ufffd\ufffd", "-rf", "a\nb", " ", "*", "\x01", "n" * 255, "é", "plain", "good/file"}
    locked = {"locked-file", *(f"locked-{mode}/file" for mode in (0, 0o100, 0o200, 0o400))}
    privileged = os.geteuid() == 0
    assert {file.path for file in files} == names | (locked if privileged else set())
    assert left_out == (0 if privileged else len(locked))
    for path in (
        "fifo",
        "socket",
        "link",
        "folder-link/file",
        "dangling",
        "loop",
        "up",
        "hard",
        "one",
        "two",
        "good",
        "self/good/file",
    ):
        with pytest.raises(FileNotFoundError):
            outputs.open_file(work, path)
    for path in locked if not privileged else {"device"}:
        with pytest.raises(FileNotFoundError):
            outputs.open_file(work, path)


def test_a_path_that_only_looks_like_a_listed_one_is_not_found(place: Path, work: int) -> None:
    Path(os.fsdecode(os.fsencode(place / "work") + b"/\xff")).write_text("")
    assert paths(work, "?") == ["\ufffd"]
    with pytest.raises(FileNotFoundError):
        outputs.open_file(work, "\ufffd")
    with pytest.raises(FileNotFoundError):
        outputs.open_file(work, "\udcff")


BAD_PATHS = ["", ".", "..", "/", "/f", "f/", "a//f", "./f", "a/./f", "a/../f", "../f", "f\0", "\0", "none", "a", "f/f"]


@pytest.mark.parametrize("path", [*BAD_PATHS, "x" * 256, "a/" * 3000 + "f"])
@pytest.mark.usefixtures("kernels")
def test_what_is_no_path_of_a_file_is_not_found(place: Path, work: int, path: str) -> None:
    leave(place, "f", "a/f")
    (place / "f").write_text("outside")
    with pytest.raises(FileNotFoundError):
        outputs.open_file(work, path)
    assert read(work, "a/f") == b"a/f"


@pytest.mark.usefixtures("kernels")
def test_a_failure_of_this_process_is_not_taken_for_a_missing_file(place: Path, work: int) -> None:
    leave(place, "a/f")
    with few_files():
        spare = []
        with pytest.raises(OSError) as caught:
            while True:
                spare.append(os.dup(work))
        assert caught.value.errno == errno.EMFILE
        with pytest.raises(OSError) as caught:
            outputs.open_file(work, "a/f")
        assert caught.value.errno == errno.EMFILE
        for each in spare:
            os.close(each)


def test_a_locked_folder_of_the_command_is_said_to_be_left_out(place: Path, work: int) -> None:
    leave(place, "f")
    (place / "work").chmod(0)
    files, left_out = outputs.listing(work, ["*"])
    assert len(files) + left_out == 1


# ---- bounds ----


def test_the_first_by_path_are_listed_and_the_others_counted(place: Path, work: int) -> None:
    everything = [f"{n:05}" for n in range(1_500)]
    for name in everything:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=work))
    files, left_out = outputs.listing(work, ["*"], most=10)
    assert ([file.path for file in files], left_out) == (everything[:10], 1_490)


@pytest.mark.parametrize("place", [False], indirect=True)
def test_many_entries_do_not_take_long(work: int) -> None:
    for n in range(20_000):
        os.mknod(f"{n:05}", dir_fd=work)
    begin = time.monotonic()
    files, left_out = outputs.listing(work, ["**/*", "*.txt", "a/b/c"])
    assert (len(files), left_out) == (1_000, 19_000)
    assert time.monotonic() - begin < 5
    _, left_out = outputs.listing(work, ["none"], entries=100)
    assert left_out == 1


def test_a_huge_sparse_file_is_left_out_at_once(place: Path, work: int) -> None:
    leave(place, "a", "z")
    try:
        os.truncate(place / "work" / "a", TIB)
    except OSError:
        pytest.skip("no file of 1 TiB on this disk")
    begin = time.monotonic()
    files, left_out = outputs.listing(work, ["*"])
    assert ([file.path for file in files], left_out) == (["z"], 1)
    assert time.monotonic() - begin < 5
    os.truncate(place / "work" / "a", 0)


def test_the_bytes_read_are_bounded_in_all(place: Path, work: int) -> None:
    for name in "abcd":
        leave(place, name)
        (place / "work" / name).write_bytes(bytes(1_000))
    leave(place, "tiny")
    files, left_out = outputs.listing(work, ["*"], read_bytes=2_500)
    assert ([file.path for file in files], left_out) == (["a", "b", "tiny"], 2)


@pytest.mark.parametrize("place", [False], indirect=True)
def test_depth_is_bounded_by_the_length_of_a_path_only(place: Path, work: int) -> None:
    chain(work, 2_100)
    begin = time.monotonic()
    with few_files():
        files, left_out = outputs.listing(work, ["**/f"], most=5_000)
        deepest = max((file.path for file in files), key=len)
        assert len(deepest) == 4_095
        assert read(work, deepest) == b""
        assert (len(files), left_out) == (2_047, 1)
    assert time.monotonic() - begin < 30


# ---- things that change ----


def test_a_fifo_and_a_lease_hold_nobody_up(place: Path, work: int) -> None:
    os.mkfifo(place / "work" / "fifo")
    leave(place, "leased", "free")
    os.chown(place / "work" / "leased", os.geteuid(), -1)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    holder = os.open(place / "work" / "leased", os.O_RDWR)
    begin = time.monotonic()
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        files, left_out = outputs.listing(work, ["*"])
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)
    assert ([file.path for file in files], left_out) == (["free"], 1)
    assert time.monotonic() - begin < 5


def test_who_waits_at_a_fifo_goes_on_waiting(place: Path, work: int) -> None:
    fifo = place / "work" / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: os.close(os.open(fifo, os.O_WRONLY)))
    writer.start()
    for _ in range(20):
        assert outputs.listing(work, ["*"]) == ([], 0)
        with pytest.raises(FileNotFoundError):
            outputs.open_file(work, "fifo")
        writer.join(0.01)
        assert writer.is_alive()
    os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
    writer.join()


def test_a_file_that_changes_while_it_is_read_is_left_out(place: Path, work: int) -> None:
    leave(place, "changing", "still")
    os.truncate(place / "work" / "changing", 64 * 1024**2)
    stop = threading.Event()

    def write() -> None:
        with (place / "work" / "changing").open("r+b", buffering=0) as file:
            for n in itertools.count():
                file.seek(63 * 1024**2)
                file.write(b"%d" % n)
                if stop.is_set():
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        files, left_out = outputs.listing(work, ["*"])
    finally:
        stop.set()
        thread.join()
    assert ([file.path for file in files], left_out) == (["still"], 1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("depth", [1, 3])
def test_nothing_outside_is_read_while_folders_turn_into_links(
    place: Path, work: int, canary: Path, depth: int
) -> None:
    inside = place.joinpath("work", *"xyz"[: depth - 1])
    (inside / "folder").mkdir(parents=True)
    (inside / "folder" / "file").write_text("mine")
    (inside / "link").symlink_to(canary)
    (inside / "plain").write_text("mine")
    (inside / "hard").symlink_to(canary / "file")
    (inside / "one").write_text("mine")
    os.link(canary / "file", inside / "two")
    prefix = "/".join([*"xyz"[: depth - 1], ""])
    mine = hashlib.sha256(b"mine").hexdigest()
    seen = 0
    with swapping(inside, ("folder", "link"), ("plain", "hard"), ("one", "two")):
        for _ in range(200):
            files, _ = outputs.listing(work, ["**"])
            seen += len(files)
            assert {file.sha256 for file in files} <= {mine}
            for path in ("folder/file", "link/file", "plain", "hard", *("one", "two") * 5):
                try:
                    assert read(work, prefix + path) == b"mine"
                except FileNotFoundError:
                    continue
                seen += 1
    assert seen > 100


def test_a_folder_that_is_moved_away_ends_the_walk_where_it_is(place: Path, work: int) -> None:
    (place / "work" / "a" / "b").mkdir(parents=True)
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "secret").write_text("outside")
    seen = []

    def visit(folder: int, name: str, _: bool) -> bool | None:
        seen.append(name)
        if name == "b":
            (place / "work" / "a").rename(place / "elsewhere" / "a")
            (place / "work" / "later").touch()
        return True if name in "ab" else None

    assert folders.walk(work, True, visit, 100) == 1
    assert seen == ["a", "b"]
