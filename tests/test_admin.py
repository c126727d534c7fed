# ruff: noqa: S608, ASYNC240 - statements are built from constants, and nothing else waits for the loop of a test
"""Administration: what an operator may do to a store, on both engines, with and without a Conductor on it."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest

from services.conductor import admin, audit
from services.conductor.store import migrations
from services.conductor.store.postgres_admin import PostgresReader
from tests import databases
from tests.administered import NOW, POSTGRES, ROOT, SQLITE, busy, execute, fill, opened, run, value, where

__all__ = ["run", "where"]  # fixtures


# ---- migrate ----


async def test_migrate_says_what_is_pending_and_applies_it_once(where: Any, run: Any) -> None:
    known = len(migrations.files(SQLITE if isinstance(where, Path) else POSTGRES))
    code, said = await run(where, "migrate", "--check")
    assert code == 1 and f"pending: up to {known}" in said
    assert (await run(where, "check"))[0] == 2  # it made nothing
    code, said = await run(where, "migrate")
    assert code == 0 and f"schema 0 → {known}" in said
    for arguments in (["migrate", "--check"], ["migrate"]):
        code, said = await run(where, *arguments)
        assert code == 0 and "nothing is pending" in said
    assert (await run(where, "check"))[0] == 0


async def test_a_store_of_an_earlier_release_must_be_migrated_first_and_keeps_what_it_has(
    tmp_path: Path, run: Any
) -> None:
    path = tmp_path / "log.db"
    with contextlib.closing(apsw.Connection(str(path))) as database:
        database.execute(migrations.files(SQLITE)[0].read_text())
        database.execute("INSERT INTO meta VALUES (1, 'first'); INSERT INTO log_head VALUES (1, 0, 0)")
    for arguments in (["check"], ["prune", "--keep", "1"], ["prune", "--keep", "1", "--dry-run"]):
        code, said = await run(path, *arguments)
        assert code == 2 and "run conductor admin migrate first" in said
    assert (await run(path, "migrate", "--check"))[0] == 1 and await value(path, "SELECT schema_version FROM meta") == 1
    assert (await run(path, "migrate"))[0] == 0 and await value(path, "SELECT store_id FROM meta") == "first"
    assert (await run(path, "check", "--full"))[0] == 0


async def test_a_store_for_newer_releases_only_is_left_alone(where: Any, run: Any, tmp_path: Path) -> None:
    await fill(where, 1)
    await execute(where, "UPDATE meta SET schema_version = 99, oldest = 99")
    for arguments in (["migrate"], ["migrate", "--check"], ["check"], ["prune", "--keep", "1"]):
        code, said = await run(where, *arguments)
        assert code == 2 and "upgrade" in said
    await execute(where, "UPDATE meta SET oldest = 1")  # it has grown in ways this release can live with
    assert (await run(where, "check", "--full"))[0] == 0 and (await run(where, "migrate", "--check"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "COMMAND"),
        (["explode"], "explode"),
        (["prune"], "--older-than"),
        (["prune", "--older-than", "soon"], "30d"),
        (["prune", "--older-than", "-1d"], "--older-than"),
        (["prune", "--keep", "0"], "above 0"),
        (["prune", "--keep", "1", "--older-than", "1d"], "not allowed"),
        (["backup"], "FILE"),
        (["check", "--fast"], "--fast"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        admin.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and word in said and said.count("\n") == 1 and said.endswith("--help.\n")


async def test_a_store_that_is_not_there_is_not_made_by_looking_at_it(where: Any, run: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for arguments in (["check"], ["prune", "--keep", "1"], ["backup", tmp_path / "b"]):
        code, said = await run(where, *arguments)
        assert code == 2 and "There is no" in said
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["", "no log, but long enough to be taken for one" * 100])
async def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path, run: Any, text: str) -> None:
    path = tmp_path / "other.txt"
    path.write_text(text)
    for arguments in (["check"], ["prune", "--keep", "1"], ["backup", tmp_path / "b"]):
        assert (await run(path, *arguments))[0] == 2
    assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


async def test_a_server_that_is_not_reached_is_told_without_the_password(run: Any) -> None:
    url = await databases.fresh()
    wrong = url.replace("://conductor:", "://conductor:secret")
    for arguments in (["check"], ["migrate"], ["backup", "b"], ["restore", "b"]):
        code, said = await run(wrong, *arguments)
        assert code == 2 and "password" in said and "secret" not in said


# ---- prune ----


async def test_prune_counts_first_and_removes_just_that(where: Any, run: Any) -> None:
    await fill(where)
    for arguments, goes in ((["--keep", "5"], 3), (["--older-than", "30d"], 5), (["--older-than", "0"], 0)):
        code, said = await run(where, "prune", *arguments, "--dry-run")
        assert code == 0 and f"would be removed: {goes}." in said
        code, said = await run(where, "prune", *arguments)
        assert code == 0 and f"ended tasks removed: {goes}." in said
        assert (await run(where, "check", "--full"))[0] == 0
    assert await value(where, "SELECT count(*) FROM aggregates") == 2


async def test_prune_beside_a_conductor_goes_where_several_may_write_and_is_explained_where_not(
    where: Any, run: Any
) -> None:
    await fill(where)
    async with opened(where) as store, busy(store):
        code, said = await run(where, "prune", "--older-than", "30d", "--dry-run")
        assert code == 0 and "would be removed" in said
        code, said = await run(where, "prune", "--keep", "3")
        if isinstance(where, Path):
            assert code == 2 and "CONDUCTOR_KEEP_FOR" in said and "stop it" in said
        else:
            assert code == 0
    assert (await run(where, "check", "--full"))[0] == 0


# ---- check ----


async def test_check_finds_nothing_in_what_was_really_written_and_pruned(where: Any, run: Any) -> None:
    await fill(where, 30)
    assert (await run(where, "check"))[0] == 0
    async with opened(where) as store:
        assert await store.prune(NOW + 10, 100) == 10
    for arguments in ([], ["--full"]):
        code, said = await run(where, "check", *arguments)
        assert code == 0 and "21 tasks, 1 projects" in said and said.endswith("No findings.\n")
    async with opened(where) as store, busy(store):
        for _ in range(3):
            assert (await run(where, "check", "--full"))[0] == 0  # one moment, whatever is written meanwhile


LAST = "(SELECT max(pos) FROM events)"
OTHER = "(SELECT state FROM aggregates WHERE id = 't-6')"
DAMAGES = {
    "an event is gone": ("DELETE FROM events WHERE pos = 5", ["positions: no event at 5", "streams: "]),
    "several are gone": ("DELETE FROM events WHERE pos BETWEEN 5 AND 9", ["positions: no events at 5 to 9"]),
    "the newest is gone": (f"DELETE FROM events WHERE pos = {LAST}", ["head: the head is"]),
    "the head is ahead": ("UPDATE log_head SET pos = pos + 1", ["head: the head is"]),
    "the head is behind": ("UPDATE log_head SET pos = pos - 1", ["head: the head is"]),
    "low is no position": ("UPDATE log_head SET low = -1", ["head: the head says", "positions: no event at 0"]),
    "low is above the head": ("UPDATE log_head SET low = pos + 1", ["head: the head says"]),
    "a request is ahead": ("UPDATE requests SET pos = 99999 WHERE key = 'r-t-0'", ["head: request r-t-0"]),
    "a version is ahead": (
        "UPDATE aggregates SET version = 99 WHERE id = 't-0'",
        ["streams: task t-0 is at version 99"],
    ),
    "a row is gone": ("DELETE FROM aggregates WHERE id = 'p'", ["owners: there is no project p"]),
    "a status is another": ("UPDATE aggregates SET status = 1 WHERE id = 't-0'", ["states: task t-0", "in status"]),
    "a state is another's": (
        f"UPDATE aggregates SET state = {OTHER} WHERE id = 't-0'",
        ["states: task t-0", "in state"],
    ),
    "an end is forgotten": (
        "UPDATE aggregates SET ended_at = NULL WHERE id = 't-0'",
        ["states: task t-0", "in ended_at"],
    ),
    "an end is invented": (
        "UPDATE aggregates SET ended_at = 5 WHERE id = 'running'",
        ["states: task running", "ended_at"],
    ),
    "a row is another project's": ("UPDATE aggregates SET project_id = 'q' WHERE id = 'running'", ["in project_id"]),
    "an event is another project's": ("UPDATE events SET project_id = 'q' WHERE id = 'p'", ["project p", "elsewhere"]),
    "an event is another task's": (
        "UPDATE events SET data = (SELECT data FROM events WHERE id = 't-6' AND seq = 2) WHERE id = 't-0' AND seq = 2",
        ["states: task t-0", "belongs elsewhere"],
    ),
    "events changed places": (
        "UPDATE events SET seq = CASE seq WHEN 4 THEN -5 ELSE -4 END WHERE id = 't-0' AND seq IN (4, 5);"
        " UPDATE events SET seq = -seq WHERE seq < 0",
        ["states: task t-0", "comes before"],
    ),
    "something follows the end": (
        f"INSERT INTO events SELECT {LAST} + 1, kind, id, seq + 1, project_id, data FROM events"
        " WHERE id = 't-0' AND seq = (SELECT version FROM aggregates WHERE id = 't-0');"
        " UPDATE aggregates SET version = version + 1 WHERE id = 't-0'; UPDATE log_head SET pos = pos + 1",
        ["states: task t-0", "follows its end"],
    ),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a filled SQLite store to be copied."""
    path = tmp_path_factory.mktemp("template") / "log.db"
    asyncio.run(fill(path))
    return path


@pytest.mark.parametrize("damage", DAMAGES)
async def test_check_finds(template: Path, tmp_path: Path, run: Any, damage: str) -> None:
    sql, words = DAMAGES[damage]
    path = Path(shutil.copy(template, tmp_path))
    await execute(path, sql)
    for arguments in ([], ["--full"]):
        code, said = await run(path, "check", *arguments)
        assert code == 1 and all(word in said for word in words), said
        assert said.splitlines()[-1].startswith("Findings: ")


async def test_check_finds_the_same_on_postgresql() -> None:
    url = await databases.fresh()
    await fill(url)
    database = await asyncpg.connect(url)
    checks = [*audit.CHECKS.values(), audit.states, audit.sample]
    for damage, (sql, words) in {"nothing": ("SELECT 1", []), **DAMAGES}.items():
        transaction = database.transaction()
        await transaction.start()
        await database.execute(sql)
        found = [finding for check in checks async for finding in check(PostgresReader(database, ""))]
        missing = [word for word in words if word.partition(": ")[2] not in " ".join(found)]
        assert bool(found) == bool(words) and not missing, (damage, found)
        await transaction.rollback()
    await database.close()


@pytest.mark.parametrize("data", ["", "ff", "0a03", "00" * 40, "62ff" * 20])
async def test_check_names_events_and_rows_that_cannot_be_read(
    template: Path, tmp_path: Path, run: Any, data: str
) -> None:
    path = Path(shutil.copy(template, tmp_path))
    await execute(path, f"UPDATE events SET data = x'{data}' WHERE id = 't-0' AND seq = 3")
    await execute(path, f"UPDATE aggregates SET state = x'{data}' WHERE id = 'p'")
    code, said = await run(path, "check")
    assert code == 1 and "states: task t-0" in said and "states: project p" in said


async def test_many_findings_are_counted_and_a_few_written(where: Any, run: Any) -> None:
    await fill(where, 25)
    await execute(where, "UPDATE aggregates SET status = 77 WHERE kind = 'task'")
    code, said = await run(where, "check", "--full")
    assert code == 1 and said.count("in status") == admin.SHOWN and "states: 6 more" in said and "Findings: 26." in said


async def test_a_sample_is_spread_over_the_log_and_full_means_all(
    where: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SAMPLE", 4)
    await fill(where, 25)
    await execute(where, "UPDATE aggregates SET status = 77 WHERE kind = 'task'")
    _, said = await run(where, "check")
    assert 2 <= said.count("in status") <= 4
    assert "states: 6 more" in (await run(where, "check", "--full"))[1]


async def test_broken_pages_are_found_and_no_backup_is_made_of_them(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "log.db"
    await fill(path, 20)
    size = path.stat().st_size
    for place in range(size // 2, size, 4096):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(os.urandom(512))
    code, said = await run(path, "check")
    assert code in (1, 2) and ("files:" in said or "malformed" in said)
    code, said = await run(path, "backup", tmp_path / "backup.db")
    assert code == 2 and sorted(file.name for file in tmp_path.iterdir()) == ["log.db", "log.db.lock"]


# ---- conductor admin ----


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Gives a folder that has, by chance, a package called services."""
    folder = tmp_path / "elsewhere"
    (folder / "services").mkdir(parents=True)
    (folder / "services" / "__init__.py").write_text("raise RuntimeError('taken for ours')")
    yield folder


def conductor(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "from client.cli import main; main()", "admin", *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", **environ}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


async def test_conductor_admin_reaches_the_store_from_anywhere_with_its_own_exit_codes(
    elsewhere: Path, tmp_path: Path
) -> None:
    path = tmp_path / "log.db"
    await fill(path, 1)
    await execute(path, "UPDATE log_head SET pos = pos + 1")
    broken = conductor(elsewhere, "check", CONDUCTOR_STORE=str(path))
    assert (broken.returncode, broken.stderr) == (1, "") and broken.stdout.endswith("Findings: 1.\n")
    nowhere = conductor(elsewhere, "--store", "nowhere", "check", CONDUCTOR_STORE=str(path))
    assert nowhere.returncode == 2 and str(elsewhere / "nowhere") in nowhere.stderr and nowhere.stdout == ""
