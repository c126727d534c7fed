"""Folders that the operator adds: programs that commands may run, and data that they may read, in both tiers."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import terminal_pb2

from services.common.config import ConfigError, TerminalSettings, load
from services.terminal import programs
from tests.terminals import KINDS, PYTHON, Process, open_folder, refusal, run, serving

TIERS = ["strong", "standard"]
HAS_PYTHON = Path(PYTHON).exists()
SHELL_AND_CAT = [os.path.realpath(path) for path in ("/bin/sh", "/bin/cat")]
SCRIPT = "#!/bin/sh\necho ran $#\n"


def lay(folder: Path) -> None:
    """Makes `programs` with a program and what it imports, `data` with a table, and `other` beside them."""
    for name in ("programs/bin", "data/deep", "other"):
        (folder / name).mkdir(parents=True)
    program = folder / "programs/bin/greet"
    program.write_text(SCRIPT)
    (folder / "programs/words.py").write_text("WORD = 'hello'\n")
    (folder / "data/deep/table.csv").write_text("a,b\n1,2\n")
    (folder / "data/tool").write_text(SCRIPT)
    (folder / "other/secret").write_text("hunter2\n")
    (folder / "data/way-out").symlink_to(folder / "other")
    for each in (folder, *folder.rglob("*")):
        if not each.is_symlink():
            each.chmod(0o755 if each.is_dir() or each.name in ("greet", "tool") else 0o644)


@pytest.fixture(
    scope="module",
    params=[(kind, tier) for kind in KINDS for tier in TIERS],
    ids=lambda each: f"{each[0].id}-{each[1]}",
)
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Process, Path]]:
    kind, tier = request.param
    if any(mark.args[0] for mark in kind.marks):
        pytest.skip("needs root")
    with open_folder() as own, open_folder() as folder:
        lay(folder)
        settings = {
            "folders": f"{folder / 'programs'}:{folder / 'missing'}",
            "data": f"{folder / 'data'}:{folder / 'nothing'}",
            "path": f"{folder / 'programs/bin'}:/usr/bin:/bin",
            "tier": tier,
        }
        with serving(own, kind.values[0], **settings) as process:
            yield process, folder


@pytest.fixture
async def stub(made: tuple[Process, Path]) -> AsyncIterator[Any]:
    async with made[0].stub() as stub:
        if not (await stub.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())).available:
            pytest.skip("this machine cannot have the tier")
        yield stub


async def test_data_is_read_and_not_written(stub: Any, made: tuple[Process, Path]) -> None:
    data = made[1] / "data"
    story = await run(stub, "cat", str(data / "deep/table.csv"))
    assert (story.stdout, story.stderr) == (b"a,b\n1,2\n", b"")
    before = sorted(data.rglob("*"))
    attempts = (
        "echo x > {0}/new", "echo x >> {0}/deep/table.csv", "rm {0}/deep/table.csv", "mkdir {0}/new", "ln -s x {0}/new",
        "mv {0}/deep {0}/gone", "chmod 777 {0}/deep/table.csv", "touch {0}/deep/table.csv", "ln {0}/deep/table.csv .",
    )  # fmt: skip
    for attempt in attempts:
        story = await run(stub, script=attempt.format(data))
        if "chmod" not in attempt and "touch" not in attempt:  # of one's own files, a named gap of the standard tier
            assert story.result.exit_code != 0, attempt
    assert sorted(data.rglob("*")) == before
    assert (data / "deep/table.csv").read_text() == "a,b\n1,2\n"


async def test_data_is_not_run_and_leads_to_nothing_else(stub: Any, made: tuple[Process, Path]) -> None:
    folder = made[1]
    with pytest.raises(grpc.aio.AioRpcError):
        await run(stub, str(folder / "data/tool"))
    for script in (f"{folder}/data/tool", f"cat {folder}/other/secret", f"cat {folder}/data/way-out/secret"):
        story = await run(stub, script=script)
        assert story.result.exit_code != 0 and b"hunter2" not in story.stdout


async def test_a_folder_of_programs_may_lie_in_one_of_data() -> None:
    for tier in TIERS:
        with open_folder() as own, open_folder() as folder:
            lay(folder)
            settings = {"folders": str(folder / "programs"), "data": str(folder), "tier": tier}
            with serving(own, **settings) as process:
                async with process.stub() as stub:
                    assert (await run(stub, str(folder / "programs/bin/greet"))).stdout == b"ran 0\n"
                    assert (await run(stub, "cat", str(folder / "data/deep/table.csv"))).stdout == b"a,b\n1,2\n"


async def test_a_program_is_run_by_name_by_path_and_by_its_imports(stub: Any, made: tuple[Process, Path]) -> None:
    programs_folder = made[1] / "programs"
    for argv in (["greet"], [str(programs_folder / "bin/greet")], ["sh", "-c", "greet"]):
        assert (await run(stub, *argv)).stdout == b"ran 0\n"
    env = {"PYTHONPATH": str(programs_folder), "PYTHONDONTWRITEBYTECODE": "1"}
    if HAS_PYTHON:
        assert (await run(stub, PYTHON, "-c", "import words; print(words.WORD)", env=env)).stdout == b"hello\n"
    story = await run(stub, script=f"echo x > {programs_folder}/bin/evil; echo x >> {programs_folder}/bin/greet")
    assert story.result.exit_code != 0
    assert (programs_folder / "bin/greet").read_text() == SCRIPT
    assert not (programs_folder / "bin/evil").exists()


async def test_what_is_missing_is_no_error_and_what_there_is_is_told(stub: Any, made: tuple[Process, Path]) -> None:
    folder = made[1]
    told = await stub.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())
    assert list(told.data_folders) == [str(folder / "data"), str(folder / "nothing")]
    story = await run(stub, "ls", str(folder / "missing"))
    assert story.result.exit_code != 0


async def test_a_folder_below_tmp_does_not_open_tmp(stub: Any, made: tuple[Process, Path]) -> None:
    """The folders here are below the temporary directory, where other users' files are too."""
    folder = made[1]
    story = await run(stub, script=f"ls -A {folder}; ls {folder.parent} | wc -l; cat {folder}/other/secret; id -u")
    assert b"hunter2" not in story.stdout
    if story.started.isolation.tier == terminal_pb2.ISOLATION_TIER_STRONG:
        assert b"other" not in story.stdout.split()  # it is not even seen


@pytest.mark.parametrize("tier", TIERS)
async def test_a_list_of_programs_may_name_those_of_the_operators_folders(tier: str) -> None:
    with open_folder() as own, open_folder() as folder:
        lay(folder)
        listed = folder / "policy.toml"
        names = [str(folder / "programs/bin/greet"), *SHELL_AND_CAT]
        listed.write_text("".join(f"[[program]]\npath = '{name}'\n" for name in names))
        settings = {"folders": str(folder / "programs"), "data": str(folder / "data"), "policy": str(listed)}
        with serving(own, tier=tier, path=f"{folder}/programs/bin:/usr/bin:/bin", **settings) as process:
            async with process.stub() as stub:
                assert (await run(stub, "greet")).stdout == b"ran 0\n"
                assert (await run(stub, "cat", str(folder / "data/deep/table.csv"))).stdout == b"a,b\n1,2\n"
                async with refusal("PROGRAM_REFUSED"):
                    await run(stub, "ls")


def test_a_list_may_not_name_programs_of_other_folders(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(f"[[program]]\npath = '{tmp_path}/else/run'\n")
    environ = {"TERMINAL_POLICY": str(tmp_path / "policy.toml"), "TERMINAL_FOLDERS": str(tmp_path / "programs")}
    with pytest.raises(ConfigError, match="programs"):
        programs.load(load(TerminalSettings, environ))
    (tmp_path / "policy.toml").write_text(f"[[program]]\npath = '{tmp_path}/programs/run'\n")
    programs.load(load(TerminalSettings, environ))
