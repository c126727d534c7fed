"""The Python that commands of the Terminal run: ours where they can reach it, else one that borrows what ours has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops import interpreter, layout
from services.common.config import TerminalSettings, load
from tests.terminals import NOBODY, open_folder, run, serving

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
ANOTHER = any(interpreter._others())
as_root = pytest.mark.skipif(os.geteuid() != 0 or not ANOTHER, reason=f"needs root, and {VERSION} of the machine")


def pretend(monkeypatch: pytest.MonkeyPatch, user: int, prefix: Path, base: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "base_prefix", str(base))


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that only its owner enters, as home folders are."""
    (tmp_path / "home" / "python").mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    return tmp_path / "home" / "python"


def test_an_ordinary_user_runs_ours_wherever_it_lies(
    tmp_path: Path, closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 1000, closed, closed)
    assert interpreter.environment(tmp_path / "own") == (closed, closed)
    assert not (tmp_path / "own").exists()


def test_root_runs_ours_where_others_can_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as folder:
        pretend(monkeypatch, 0, folder, Path("/usr"))
        assert interpreter.environment(folder / "own") == (folder, Path("/usr"))
        assert not (folder / "own").exists()


@pytest.mark.parametrize("both", [True, False])
def test_where_there_is_no_other_python_it_is_ours_and_stages_are_refused(
    tmp_path: Path, closed: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    pretend(monkeypatch, 0, closed if both else Path("/usr"), closed)
    monkeypatch.setattr(interpreter, "PLACES", (str(tmp_path / "nowhere"),))
    assert interpreter.environment(tmp_path / "own")[1] == closed
    assert not (tmp_path / "own").exists()


def test_a_python_that_makes_no_environment_is_passed_by(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as folder:
        broken = folder / VERSION
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        pretend(monkeypatch, 0, closed, closed)
        monkeypatch.setattr(interpreter, "PLACES", (str(folder),))
        assert interpreter.environment(folder / "own") == (closed, closed)


@as_root
def test_root_with_a_closed_python_gets_one_that_others_can_run(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as folder:
        with monkeypatch.context() as patch:
            pretend(patch, 0, closed, closed)
            for _ in range(2):  # a second start finds what the first has made
                prefix, base = interpreter.environment(folder / "own")
        assert prefix == folder / "own" and interpreter._open_to_others(base)
        python = prefix / "bin" / "python"
        asked = "import sys; print(sys.prefix, *sys.version_info[:2])"
        told = subprocess.run([python, "-c", asked], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True)
        assert told.stdout.decode().split() == [str(prefix), *map(str, sys.version_info[:2])], told.stderr


@as_root
async def test_what_is_installed_for_ours_is_found_by_a_command(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lent = closed / "site-packages"
    with open_folder() as own, open_folder() as folder:
        packages = folder / "packages"
        packages.mkdir(mode=0o755)
        (packages / "lent.py").write_text("WORD = 'lent'\n")
        with monkeypatch.context() as patch:
            pretend(patch, 0, closed, closed)
            patch.setattr(interpreter.sysconfig, "get_paths", lambda: {"purelib": str(packages)})
            prefix, _ = interpreter.environment(folder / "own")
        folders = f"{prefix}:{packages}:{lent}"
        for tier in ("strong", "standard"):
            with serving(own, folders=folders, path=f"{prefix}/bin:/usr/bin:/bin", tier=tier) as process:
                async with process.stub() as stub:
                    story = await run(stub, "python", "-c", "import lent, sys; print(lent.WORD, sys.prefix)")
                    assert story.stdout.decode().split() == ["lent", str(prefix)], story.stderr


def test_the_layout_tells_the_terminal_where_everything_is(tmp_path: Path) -> None:
    told = load(TerminalSettings, layout.isolated(tmp_path, os.environ, {}).environ)
    assert layout.ROOT / "stages" in told.folders and told.data == (layout.ROOT / "data",)
    python = shutil.which("python", path=told.path)
    assert python is not None and Path(python).parents[1] in told.folders
    assert Path(sys.prefix) in told.folders and Path("/usr") not in told.folders
    mine = {"TERMINAL_FOLDERS": "", "TERMINAL_DATA": "/srv/tables", "TERMINAL_PATH": "/bin"}
    told = load(TerminalSettings, layout.isolated(tmp_path, os.environ, mine).environ)
    assert (told.folders, told.data, told.path) == ((), (Path("/srv/tables"),), "/bin")
