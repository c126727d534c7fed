"""Workspaces are removed, swept and forgotten whole, whatever was left in them and whenever it is killed."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from services.common.errors import Reason, Refusal
from services.terminal import folders, workspace
from services.terminal.rooms import Rooms
from tests.hostile import as_root, canary, chain, few_files, fill, listed, needs_root, place, root, swapping
from tests.terminals import REPOSITORY
from tests.workspaces_at_hand import DEEP, KEPT, A, B, owners, top

__all__ = ["canary", "place", "root", "top"]


# ---- removing ----


def test_whatever_was_left_is_removed(root: int, top: Path, canary: Path) -> None:
    with workspace.create(root, workspace.own_name(), 0) as made:
        fill(top / made.work_path, canary)
        workspace.put_inputs(made, [("a", b"1")])
        (top / made.work_path).chmod(0)
    with few_files():
        workspace.remove(root, made.name)
    assert listed(root) == []


def test_deep_and_wide_is_removed_with_few_files(root: int) -> None:
    with workspace.create(root, workspace.own_name(), 0) as made:
        chain(made.work, DEEP)
        for n in range(folders.BATCH + 100):
            os.mkdir(f"wide-{n}", 0, dir_fd=made.work)
    with few_files():
        workspace.remove(root, made.name)
    assert listed(root) == []


def test_nothing_outside_is_removed_while_folders_turn_into_links(root: int, top: Path, canary: Path) -> None:
    busy = rounds = 0
    give_up = time.monotonic() + 60  # on a busy machine a race takes many rounds
    pairs = [(f"folder-{n}", f"link-{n}") for n in range(20)]
    while rounds < 10 or not busy:
        assert time.monotonic() < give_up, "no race was met"
        with workspace.create(root, workspace.own_name(), 0) as made:
            work = top / made.work_path
            for one, other in pairs:
                (work / one / "inner" / "folder").mkdir(parents=True)
                (work / other).symlink_to(canary)
            try:
                with swapping(work, *pairs):
                    workspace.remove(root, made.name)
            except OSError as error:
                assert error.errno == errno.EBUSY
                busy += 1
                workspace.remove(root, made.name)
        rounds += 1
    assert listed(root) == []


# ---- sweeping ----


def test_own_ones_go_and_what_is_not_ours_stays(root: int, top: Path, canary: Path) -> None:
    for name in (workspace.own_name(), "removed-1", KEPT):
        workspace.create(root, name, 0).close()
    (top / "command-link").symlink_to(canary)
    (top / "command-file").write_text("")
    (top / "calls").mkdir()
    (top / "calls" / "one").write_text("kept")
    swept = workspace.sweep(root, None, time.time() + 1e9)
    assert (swept.own, swept.kept, swept.stuck) == (3, 1, ())
    assert listed(root) == ["calls", KEPT]
    assert (top / "calls" / "one").read_text() == "kept"


def test_a_named_one_goes_when_nobody_used_it_for_long(root: int, top: Path) -> None:
    now = time.time()
    for name in ("a", "b"):
        workspace.adopt(root, workspace.kept_name(name), 0).close()
    assert [each.folder for each in workspace.kept(root)] == ["kept-a", "kept-b"]
    workspace.touch(root, "kept-a")
    assert [each.folder for each in workspace.kept(root)] == ["kept-b", "kept-a"]
    assert all(now - 1 < each.used_at < now + 60 for each in workspace.kept(root))
    assert workspace.sweep(root, 3600, now + 3500) == workspace.Swept(0, 0, ())
    assert workspace.sweep(root, 3600, now + 4000, lambda f: contextlib.nullcontext(f != "kept-a")) == workspace.Swept(
        0, 1, ()
    )
    assert listed(root) == ["kept-a"]
    assert workspace.sweep(root, 3600, now + 4000) == workspace.Swept(0, 1, ())


def test_a_command_cannot_make_a_named_one_look_unused(root: int, top: Path) -> None:
    workspace.adopt(root, KEPT, 0).close()
    os.utime(top / KEPT, (1, 1))
    assert workspace.sweep(root, 3600, time.time()).kept == 0


def test_a_named_one_that_is_used_now_and_then_is_not_removed_in_between(root: int, top: Path) -> None:
    rooms = Rooms(3600)
    rooms._root = root
    rooms.remove("none", 60)
    rooms.give_back(rooms.take("a", 0))
    for _ in range(2):  # to ask is no use
        with pytest.raises(Refusal) as caught:
            rooms.remove("a", 60)
        assert caught.value.error.reason == Reason.ERROR_REASON_OVER_CAPACITY
    pass_time(workspace.kept(root)[0].used_at)
    rooms.remove("a", 0.01)
    assert listed(root) == []


def pass_time(since: float) -> None:
    """Waits until the clock shows a time that files can tell from an earlier one."""
    while time.time() <= since + 0.02:
        time.sleep(0.001)


def test_a_clock_set_back_removes_nothing_and_time_goes_on_from_there(root: int) -> None:
    workspace.adopt(root, KEPT, 0).close()
    used = workspace.kept(root)[0].used_at
    pass_time(used)
    assert workspace.sweep(root, 1, used - 1e6) == workspace.Swept(0, 0, ())
    assert workspace.kept(root)[0].used_at > used


@pytest.mark.parametrize("name", ["command-1", KEPT, "removed-1"])
def test_what_is_held_by_another_stays(root: int, name: str) -> None:
    workspace.create(root, name, 0).close()
    asked = []

    def hold(folder: str) -> AbstractContextManager[bool]:
        asked.append(folder)
        return contextlib.nullcontext(False)

    assert workspace.sweep(root, 0, time.time() + 1e6, hold) == workspace.Swept(0, 0, ())
    assert listed(root) == asked == [name]


def test_one_that_is_used_before_it_can_be_held_stays(root: int) -> None:
    workspace.adopt(root, KEPT, 0).close()
    workspace.create(root, "command-1", 0).close()

    def hold(folder: str) -> AbstractContextManager[bool]:
        if folder == KEPT:
            workspace.touch(root, KEPT)
        else:
            workspace.remove(root, folder)  # its command ended just now
        return contextlib.nullcontext(True)

    pass_time(workspace.kept(root)[0].used_at)
    assert workspace.sweep(root, 0.01, time.time(), hold) == workspace.Swept(0, 0, ())
    assert listed(root) == [KEPT]


@needs_root
@pytest.mark.parametrize("place", [True], indirect=True)
def test_one_that_cannot_be_removed_is_named_and_the_others_go(root: int, top: Path) -> None:
    for name in ("kept-a", KEPT, "command-1"):
        workspace.create(root, name, 0).close()
    with as_root():
        (top / KEPT / "work" / "foreign" / "inner").mkdir(parents=True)
    for _ in range(2):
        swept = workspace.sweep(root, 10, time.time() + 100)
        ((folder, error),) = swept.stuck
        assert isinstance(error, PermissionError)
    assert (top / KEPT).exists() or folder.startswith("removed-")
    assert len(listed(root)) == 1
    with workspace.adopt(root, KEPT, 0) as again:
        assert not listed(again.work)


# ---- killed half-way ----

# For each number it reads, does the action in a process that kills itself before that many of its steps with files, as
# the interpreter's audit events tell them. Answers how that process ended.
KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from services.terminal import workspace
os.setresgid(*[int(sys.argv[3])] * 3)
os.setresuid(*[int(sys.argv[3])] * 3)
left = 0
def count(event, _):
    global left
    if event == "open" or event.startswith("os."):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
def act():
    root = workspace.open_root(Path(sys.argv[2]), 0o711)
    sys.addaudithook(count)
    exec(sys.argv[4])
for line in sys.stdin:
    left = int(line)
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def killed_at_each_step(top: Path, action: str) -> Iterator[int]:
    """Does an action again and again, each time killed one step later, until it ends by itself."""
    with as_root():
        command = [sys.executable, "-I", "-S", "-c", KILLED, REPOSITORY, top, str(top.stat().st_uid), action]
        killer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert killer.stdin and killer.stdout
    with killer:
        for step in range(1, 500):
            print(step, file=killer.stdin, flush=True)
            status = int(killer.stdout.readline())
            if status == 0:
                killer.stdin.close()
                return
            assert status == signal.SIGKILL
            yield step
    raise AssertionError("it does not end")


def lone(root: int) -> list[str]:
    """Sweeps as a start does and returns what is left."""
    swept = workspace.sweep(root, None, time.time())
    assert not swept.stuck
    return listed(root)


@pytest.fixture
def shared(top: Path) -> Callable[[], int]:
    """Opens the root anew, as each process holds it alone."""
    return lambda: workspace.open_root(top, 0o711)


def test_a_command_killed_while_its_workspace_is_made_leaves_what_is_swept(
    shared: Callable[[], int], top: Path
) -> None:
    os.close(shared())
    steps = 0
    for _ in killed_at_each_step(top, "workspace.put_inputs(workspace.create(root, 'command-1', 0), [('a', b'1')])"):
        root = shared()
        assert lone(root) == []
        os.close(root)
        steps += 1
    assert steps > 8


def test_killed_while_a_named_one_is_made(shared: Callable[[], int], top: Path) -> None:
    os.close(shared())
    for _ in killed_at_each_step(top, "workspace.put_inputs(workspace.adopt(root, 'kept-1', 0), [('a', b'1')])"):
        root = shared()
        assert lone(root) in ([], ["kept-1"])
        with workspace.adopt(root, "kept-1", 0) as made:
            assert not listed(made.inputs) and not listed(made.work)
            workspace.put_inputs(made, [("a", b"1")])
        workspace.remove(root, "kept-1")
        os.close(root)


def test_killed_while_a_named_one_is_removed_it_is_whole_or_gone(shared: Callable[[], int], top: Path) -> None:
    def fill_in(root: int) -> None:
        with workspace.adopt(root, "kept-1", 0) as made:
            if not listed(made.work):
                (top / made.work_path / "a" / "b").mkdir(parents=True)
                (top / made.work_path / "file").write_text("whole")

    root = shared()
    fill_in(root)
    os.close(root)
    whole = 0
    for _ in killed_at_each_step(top, "workspace.remove(root, 'kept-1')"):
        root = shared()
        if lone(root):
            whole += 1
            assert listed(top / "kept-1" / "work") == ["a", "file"]
            assert (top / "kept-1" / "work" / "a" / "b").is_dir()
        fill_in(root)
        os.close(root)
    assert 0 < whole < 5


@needs_root
@pytest.mark.parametrize("place", [False], indirect=True)
def test_killed_while_it_is_handed_over_it_is_handed_over_the_next_time(shared: Callable[[], int], top: Path) -> None:
    root = shared()
    with workspace.adopt(root, "kept-1", A) as made:
        (top / made.work_path / "a" / "b").mkdir(parents=True)
        (top / made.work_path / "file").write_text("whole")
        os.chown(top / made.work_path / "file", A, A)
        os.link(top / made.work_path / "file", top / made.work_path / "a" / "again")
    workspace.adopt(root, "kept-1", B).close()  # root made what is in it
    workspace.adopt(root, "kept-1", A).close()
    os.close(root)
    for _ in killed_at_each_step(top, f"workspace.adopt(root, 'kept-1', {B})"):
        root = shared()
        for uid in (B, A):
            workspace.adopt(root, "kept-1", uid).close()
            assert owners(top / "kept-1" / "work") == {uid}
        assert (top / "kept-1" / "work" / "a" / "again").read_text() == "whole"
        os.close(root)
    assert owners(top / "kept-1" / "work") == {B}
