"""The folders commands run in: what is made, kept, handed on and removed, whatever a hostile program left there."""

import contextlib
import errno
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.terminal import folders, usage, workspace
from services.terminal.users import UIDS
from tests.hostile import canary, chain, few_files, fill, listed, needs_root, place, root, swapping
from tests.workspaces_at_hand import DEEP, KEPT, A, B, owners, top

__all__ = ["canary", "place", "root", "top"]


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


# ---- the layout ----


def test_a_fresh_workspace_is_empty_private_and_where_it_says(root: int, top: Path) -> None:
    name = workspace.own_name()
    with workspace.create(root, name, 0) as made:
        work, inputs = top / made.work_path, top / made.inputs_path
        assert (work, inputs) == (top / name / "work", top / name / "inputs")
        assert [mode(path) for path in (top / name, work, inputs)] == [0o700, 0o700, 0o555]
        assert os.path.samestat(os.fstat(made.work), work.stat())
        assert os.path.samestat(os.fstat(made.inputs), inputs.stat())
        assert not listed(made.work) and not listed(made.inputs)
        made.close()  # and again at the end of the block


@needs_root
@pytest.mark.parametrize("place", [False], indirect=True)
def test_another_user_has_work_and_passes_through_to_inputs(root: int, top: Path) -> None:
    with workspace.create(root, workspace.own_name(), A) as made:
        assert [mode(top / made.name), mode(top / made.work_path)] == [0o711, 0o700]
        assert owners(top / made.work_path) == {A} and owners(top / made.inputs_path) == {0}
        workspace.put_inputs(made, [("data.csv", b"1,2")])
        top.parent.chmod(0o711)
        script = 'cat "$1/data.csv" && touch "$2/mine" && ! touch "$1/new" && ! echo x >> "$1/data.csv"'
        paths = [str(top / path) for path in (made.inputs_path, made.work_path)]
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *paths], user=A, group=A, extra_groups=[], capture_output=True
        )
        assert (done.returncode, done.stdout) == (0, b"1,2"), done.stderr


def test_a_umask_changes_nothing(root: int, top: Path) -> None:
    before = os.umask(0o777)
    try:
        with workspace.create(root, workspace.own_name(), 0) as made:
            workspace.put_inputs(made, [("a", b"")])
            assert [mode(top / p) for p in (made.work_path, made.inputs_path)] == [0o700, 0o555]
            assert mode(top / made.inputs_path / "a") == 0o444
    finally:
        os.umask(before)


def test_a_name_that_is_taken_is_refused_and_left_alone(root: int, top: Path) -> None:
    name = workspace.own_name()
    workspace.create(root, name, 0).close()
    (top / name / "work" / "file").write_text("kept")
    with pytest.raises(FileExistsError):
        workspace.create(root, name, 0)
    assert (top / name / "work" / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-a", ".a", "a\0", "a\n", "é", "a" * 129])
def test_names_that_the_contract_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        workspace.kept_name(name)


# ---- inputs ----


def test_inputs_are_there_and_read_only(root: int, top: Path) -> None:
    files = [("a", b""), ("b.bin", bytes(range(256)) * 8192)]
    with workspace.create(root, workspace.own_name(), 0) as made:
        workspace.put_inputs(made, files)
        inputs = top / made.inputs_path
        assert {path.name: (path.read_bytes(), mode(path)) for path in inputs.iterdir()} == {
            name: (content, 0o444) for name, content in files
        }
        assert mode(inputs) == 0o555


@pytest.mark.parametrize("bad", ["../out", "a/b", "", ".", "first", "x" * 200])
def test_one_bad_input_and_there_are_none(root: int, top: Path, bad: str) -> None:
    with workspace.create(root, workspace.own_name(), 0) as made:
        with pytest.raises((ValueError, FileExistsError)):
            workspace.put_inputs(made, [("first", b"1"), (bad, b"2"), ("last", b"3")])
        assert not listed(made.inputs) and mode(top / made.inputs_path) == 0o555
        workspace.put_inputs(made, [("first", b"again")])
    assert not (top / "out").exists()


def test_an_input_that_does_not_fit_leaves_none(root: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with workspace.create(root, workspace.own_name(), 0) as made:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(OSError) as caught:
                workspace.put_inputs(made, [("small", b"1"), ("large", bytes(1_000_000))])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert not listed(made.inputs)


@pytest.fixture
def tiny_disk(place: Path) -> Iterator[Path]:
    """A folder on a disk of 16 KiB and 12 files."""
    disk = place / "disk"
    disk.mkdir()
    options = ["-o", "size=16k,nr_inodes=12,mode=0700"]
    if subprocess.run(["mount", "-t", "tmpfs", *options, "none", disk], capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small disk here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@needs_root
@pytest.mark.parametrize("place", [False], indirect=True)
def test_a_full_disk_leaves_nothing_half_made(tiny_disk: Path) -> None:
    root = workspace.open_root(tiny_disk / "workspaces", 0o711)
    top = tiny_disk / "workspaces"
    with workspace.adopt(root, KEPT, 0) as made:
        with pytest.raises(OSError) as caught:
            workspace.put_inputs(made, [("a", bytes(4096)), ("b", bytes(65536))])
        assert caught.value.errno == errno.ENOSPC and not listed(made.inputs)
        workspace.put_inputs(made, [("a", b"fits")])
        for n in range(20):
            with contextlib.suppress(OSError):
                (top / made.work_path / str(n)).touch()
    for room in range(3):  # files that there is room for; a workspace needs three
        for make in (lambda: workspace.create(root, "command-1", 0), lambda: workspace.adopt(root, "kept-2", 0)):
            with pytest.raises(OSError) as caught:
                make()
            assert caught.value.errno == errno.ENOSPC
            assert listed(root) == [KEPT]
        (top / KEPT / "work" / str(room)).unlink()
    workspace.adopt(root, KEPT, A).close()  # needs no space
    workspace.remove(root, KEPT)
    workspace.create(root, workspace.own_name(), 0).close()
    os.close(root)


# ---- named ones ----


def test_a_named_one_keeps_its_work_and_loses_its_inputs(root: int, top: Path) -> None:
    with workspace.adopt(root, KEPT, 0) as made:
        (top / made.work_path / "model.bin").write_text("weights")
        workspace.put_inputs(made, [("one", b"1")])
    with workspace.adopt(root, KEPT, 0) as again:
        assert listed(again.work) == ["model.bin"] and not listed(again.inputs)
        workspace.put_inputs(again, [("one", b"2")])
    assert (top / KEPT / "inputs" / "one").read_text() == "2"
    assert listed(root) == [KEPT]


def test_what_a_command_locked_is_opened_again(root: int, top: Path) -> None:
    with workspace.adopt(root, KEPT, 0) as made:
        workspace.put_inputs(made, [("one", b"1")])
        (top / made.work_path / "file").write_text("mine")
    for path in (top / KEPT / "work", top / KEPT / "inputs" / "one", top / KEPT / "inputs", top / KEPT, top):
        path.chmod(0)
    work = workspace.open_work(root, KEPT) if os.geteuid() == 0 else -1  # an ordinary user's root is mended below
    with workspace.adopt(root, KEPT, 0) as again:
        assert listed(again.work) == ["file"] and not listed(again.inputs)
        assert [mode(path) for path in (top / KEPT, top / again.work_path)] == [0o700, 0o700]
    if work >= 0:
        os.close(work)
    (top / KEPT / "work").chmod(0)
    (top / KEPT).chmod(0)
    os.close(workspace.open_work(root, KEPT))
    for path in (top / KEPT / "work", top / KEPT, top):
        path.chmod(0)
    workspace.remove(root, KEPT)
    assert listed(root) == []


def test_a_root_that_a_command_locked_is_opened_at_the_next_start(top: Path) -> None:
    os.close(workspace.open_root(top, 0o700))
    top.chmod(0)
    os.close(workspace.open_root(top, 0o700))


@pytest.mark.parametrize("missing", ["work", "inputs", "both"])
def test_a_missing_part_is_made_again(root: int, top: Path, missing: str) -> None:
    workspace.adopt(root, KEPT, 0).close()
    for part in ("work", "inputs") if missing == "both" else (missing,):
        (top / KEPT / part).rmdir()
    with workspace.adopt(root, KEPT, 0) as again:
        workspace.put_inputs(again, [("a", b"1")])
        assert mode(top / again.work_path) == 0o700


def test_links_in_place_of_folders_are_refused_and_can_be_removed(root: int, top: Path, canary: Path) -> None:
    workspace.adopt(root, KEPT, 0).close()
    (top / KEPT / "work").rmdir()
    (top / KEPT / "work").symlink_to(canary)
    (top / "kept-2").symlink_to(canary)
    for name in (KEPT, "kept-2"):
        with pytest.raises(NotADirectoryError):
            workspace.adopt(root, name, 0)
        with pytest.raises(OSError):
            workspace.open_work(root, name)
        workspace.remove(root, name)
        workspace.adopt(root, name, 0).close()


def test_a_workspace_that_does_not_exist(root: int) -> None:
    for act in (workspace.remove, workspace.touch, workspace.open_work):
        with pytest.raises(FileNotFoundError):
            act(root, KEPT)


# ---- handing over ----


@needs_root
@pytest.mark.parametrize("place", [False], indirect=True)
def test_all_is_handed_to_the_next_user_and_nothing_outside(root: int, top: Path, canary: Path) -> None:
    with workspace.adopt(root, KEPT, A) as made:
        work = top / made.work_path
        fill(work, canary)
        os.chown(work / "one", A, A)  # a command makes nothing that is not its own
        (work / "foreign").write_text("another user's")
        os.link(work / "foreign", work / "foreign-too")
        chain(made.work, 5)
    for uid in (B, A, B):
        with few_files(), workspace.adopt(root, KEPT, uid):
            pass
        assert work.stat().st_uid == uid
        others = {"hard", "foreign", "foreign-too"}  # several names, and not a command's or not all of them inside
        assert owners(work) == {0, uid}
        assert {path.name for path in work.rglob("*") if path.lstat().st_uid == 0} == others
        assert mode(work / "locked-0") == 0


@needs_root
@pytest.mark.parametrize("place", [False], indirect=True)
def test_deep_and_wide_is_handed_over_with_few_files(root: int, top: Path) -> None:
    with workspace.adopt(root, KEPT, A) as made:
        chain(made.work, DEEP)
        for n in range(20_000):
            os.close(os.open(f"wide-{n}", os.O_CREAT | os.O_WRONLY, dir_fd=made.work))
    begin = time.monotonic()
    with few_files(), workspace.adopt(root, KEPT, B) as again:
        here, depth = os.dup(again.work), 0
        while True:
            assert {os.stat(name, dir_fd=here).st_uid for name in listed(here)} <= {B}
            if depth == DEEP:
                break
            inner = os.open("d", folders.FOLDER, dir_fd=here)
            os.close(here)
            here, depth = inner, depth + 1
        os.close(here)
    with few_files():
        workspace.remove(root, KEPT)
    assert listed(root) == []
    assert time.monotonic() - begin < 20


@needs_root
@pytest.mark.parametrize("place", [False], indirect=True)
def test_too_much_to_hand_over_is_refused_and_not_forgotten(root: int, top: Path) -> None:
    with workspace.adopt(root, KEPT, A) as made:
        chain(made.work, 20)
        with pytest.raises(OSError) as caught:
            folders.hand_over(made.work, B, UIDS, 39)
        assert caught.value.errno == errno.EDQUOT
        folders.hand_over(made.work, A, UIDS, 40)  # half of it is the other's by now
    assert owners(top / made.work_path) == {A}


@needs_root
@pytest.mark.parametrize("place", [False], indirect=True)
def test_nothing_outside_is_given_away_while_folders_turn_into_links(root: int, top: Path, canary: Path) -> None:
    with workspace.adopt(root, KEPT, A) as made:
        work = top / made.work_path
        (work / "folder").mkdir()
        (work / "folder" / "file").write_text("mine")
        (work / "link").symlink_to(canary)
        (work / "plain").write_text("mine")
        os.link(canary / "file", work / "hard")
        with swapping(work, ("folder", "link"), ("plain", "hard")):
            for n in range(400):
                with contextlib.suppress(OSError):
                    folders.hand_over(made.work, (A, B)[n % 2], UIDS, 1000)
        folders.hand_over(made.work, A, UIDS, 1000)
        folders.hand_over(made.work, B, UIDS, 1000)
    assert (canary / "file").stat().st_uid == canary.stat().st_uid == 0
    assert (work / "folder").stat().st_uid in (B, 0)  # a name may be the link's now


# ---- measuring ----


def test_measure_counts_each_file_once_and_stops_in_time(root: int, top: Path, canary: Path) -> None:
    with workspace.create(root, workspace.own_name(), 0) as made:
        work = top / made.work_path
        (work / "big").write_bytes(bytes(1_000_000))
        os.link(work / "big", work / "again")
        (work / "link").symlink_to(canary / "file")
        found = usage.measure(made.work, 100)
        assert (found.entries, found.largest_bytes, found.unknown) == (3, 1_000_000, False)
        assert 1_000_000 <= found.used_bytes < 1_100_000
        chain(made.work, 150)
        assert usage.measure(made.work, 100_000).unknown
        with few_files_but(100):
            assert usage.measure(made.work, 100_000).unknown
        assert usage.measure(made.work, 50).entries == 51


@contextlib.contextmanager
def few_files_but(more: int) -> Iterator[None]:
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(more)]
    with few_files():
        for each in spare:
            os.close(each)
        yield
