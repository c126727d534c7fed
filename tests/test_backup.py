# ruff: noqa: S608, ASYNC240 - statements are built from constants, and nothing else waits for the loop of a test
"""Backup and restore, on both engines, also beside a Conductor that writes, and on a full disk."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.conductor.store import postgres_programs, sqlite_admin
from services.conductor.store.base import Appended
from services.conductor.store.sqlite_admin import SqliteAdministration
from tests import databases
from tests.administered import NOW, ROOT, busy, events_of, execute, fill, opened, run, value, where
from tests.conftest import every_event, until
from tests.lives import life, live

__all__ = ["run", "where"]  # fixtures


# ---- backup and restore ----


async def empty_again(where: Any) -> Any:
    """Takes everything away, as if the disk were new; returns where it was."""
    if isinstance(where, Path):
        for file in where.parent.glob(f"{where.name}*"):
            file.unlink()
    else:
        name = where.rpartition("=")[2]
        await databases.ask(where, f"DROP SCHEMA {name} CASCADE")
        await databases.ask(where, f"CREATE SCHEMA {name}")
    return where


async def test_a_backup_made_under_load_is_one_moment_and_all_of_it(
    where: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_admin, "PAGES", 1)  # so that much is written meanwhile
    await fill(where)
    file = tmp_path / "folder" / "backup"
    file.parent.mkdir()
    async with opened(where) as store, busy(store, 20) as acknowledged:
        before = max(outcome.pos for outcome in acknowledged)
        assert (await run(where, "backup", file))[0] == 0
        await until(lambda: acknowledged[-1].pos > before)
        log = await every_event(store)
    if isinstance(where, Path):
        assert file.read_bytes()[18:20] == b"\x01\x01"  # no WAL: one file is all (https://sqlite.org/fileformat.html)
    first = await value(where, "SELECT store_id FROM meta")
    assert [entry.name for entry in file.parent.iterdir()] == ["backup"] and file.stat().st_mode & 0o777 == 0o600

    code, said = await run(await empty_again(where), "restore", file)
    assert code == 0 and "is in" in said
    assert (await run(where, "check", "--full"))[0] == 0
    restored = await events_of(where)
    assert before <= len(restored) < len(log) and restored == log[: len(restored)]
    assert await value(where, "SELECT store_id FROM meta") != first
    async with opened(where) as store:
        outcome = await store.append(next(life("afterwards", ends=NOW)))
        assert isinstance(outcome, Appended) and outcome.pos == len(restored) + 3
    assert [entry.name for entry in file.parent.iterdir()] == ["backup"]


async def test_a_backup_of_sqlite_does_not_begin_anew_at_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_admin, "PAGES", 1)
    path = tmp_path / "log.db"
    await fill(path)
    backup = asyncio.create_task(SqliteAdministration(path).backup(tmp_path / "backup.db", force=False))
    pages = path.stat().st_size // 4096
    async with opened(path):  # so that the writes go to a WAL
        for turn in range(pages + 20):
            await execute(path, f"UPDATE meta SET store_id = '{turn}'")
            await asyncio.sleep(0)
            if backup.done():
                break
        assert backup.done() and turn > pages // 2
    await backup


async def test_a_backup_replaces_nothing_unless_told_to(where: Any, run: Any, tmp_path: Path) -> None:
    await fill(where)
    file = tmp_path / "precious"
    file.write_text("precious")
    code, said = await run(where, "backup", file)
    assert code == 2 and "--force" in said and file.read_text() == "precious"
    for unfit in (tmp_path / "no" / "folder" / "backup", tmp_path):
        assert (await run(where, "backup", unfit, "--force"))[0] == 2
    assert (await run(where, "backup", file, "--force"))[0] == 0
    assert (await run(await empty_again(where), "restore", file))[0] == 0


async def test_a_restore_loses_nothing_unless_told_to(where: Any, run: Any, tmp_path: Path) -> None:
    await fill(where)
    file = tmp_path / "backup"
    await run(where, "backup", file)
    async with opened(where) as store:
        await live(store, life("later", ends=NOW))
    log = await events_of(where)
    code, said = await run(where, "restore", file)
    assert code == 2 and ("--force" in said or "not empty" in said)
    if isinstance(where, str):  # a database that is not empty is nobody's to empty
        assert (await run(where, "restore", file, "--force"))[0] == 2
    for unfit in ("nowhere", "garbage", "empty"):
        if unfit != "nowhere":
            (tmp_path / unfit).write_bytes(b"garbage!" * 1000 if unfit == "garbage" else b"")
        assert (await run(where, "restore", tmp_path / unfit, "--force"))[0] == 2
    assert await events_of(where) == log
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix == ".part"]


async def test_what_cannot_be_restored_leaves_the_place_empty(where: Any, run: Any, tmp_path: Path) -> None:
    await fill(where, 20)
    file = tmp_path / "backup"
    await run(where, "backup", file)
    with file.open("r+b") as broken:
        broken.truncate(file.stat().st_size * 2 // 3)
    code, _ = await run(await empty_again(where), "restore", file)
    assert code == 2 and (await run(where, "migrate", "--check"))[0] == 1  # there is no schema
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix == ".part"]


async def test_sqlite_is_not_restored_under_a_running_conductor_nor_from_itself(tmp_path: Path, run: Any) -> None:
    path, file, link = tmp_path / "log.db", tmp_path / "backup.db", tmp_path / "link.db"
    await fill(path)
    link.symlink_to(path)
    for arguments in (["backup", path], ["backup", link], ["restore", path], ["restore", link]):
        code, said = await run(path, *arguments, "--force")
        assert code == 2 and "the store itself" in said
    assert (await run(path, "backup", file))[0] == 0
    async with opened(path) as store, busy(store):
        code, said = await run(path, "restore", file, "--force")
        assert code == 2 and "stop it first" in said
    assert (await run(path, "check", "--full"))[0] == 0


async def test_nothing_of_a_crashed_sqlite_store_comes_through_a_restore(tmp_path: Path, run: Any) -> None:
    path, crashed, file = tmp_path / "log.db", tmp_path / "crashed.db", tmp_path / "backup.db"
    await fill(path)
    await run(path, "backup", file)
    log = await events_of(path)
    for broken in (False, True):
        async with opened(path) as store:
            await live(store, *(life(f"later-{broken}-{i}", ends=NOW) for i in range(20)))
            for end in ("", "-wal"):  # as a crash leaves them: the newest commits in the WAL alone
                shutil.copy(f"{path}{end}", f"{crashed}{end}")
        assert Path(f"{crashed}-wal").stat().st_size > 10_000
        if broken:
            crashed.write_bytes(b"\x00" * 8192)
        assert (await run(crashed, "restore", file, "--force"))[0] == 0
        assert await events_of(crashed) == log and (await run(crashed, "check", "--full"))[0] == 0


FULL_DISK = """
import resource, sys
from services.conductor.admin import main
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


def on_a_full_disk(*arguments: Any) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    command = [sys.executable, "-c", FULL_DISK, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


async def test_a_full_disk_leaves_neither_half_a_backup_nor_half_a_store(where: Any, run: Any, tmp_path: Path) -> None:
    file, small = tmp_path / "backup", tmp_path / "small"
    await fill(where, 60)
    log = await events_of(where)
    assert (await run(where, "backup", file))[0] == 0
    limit = 100_000 if isinstance(where, Path) else 8_000  # PostgreSQL's are compressed
    places = [("backup", small)] + ([("restore", file, "--force")] if isinstance(where, Path) else [])
    for arguments in places:
        before = sorted(tmp_path.iterdir())
        code, said = await asyncio.to_thread(on_a_full_disk, limit, "--store", where, *arguments)
        assert code == 2 and said.startswith("conductor admin: ") and said.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
    assert await events_of(where) == log


# ---- PostgreSQL's programs ----


async def test_missing_programs_are_named_with_what_to_install(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await databases.fresh()
    await fill(url, 1)
    monkeypatch.setattr(postgres_programs, "_programs", lambda name: iter(()))
    code, said = await run(url, "backup", tmp_path / "backup")
    assert code == 2 and "install postgresql-client-" in said and list(tmp_path.iterdir()) == []
    old = tmp_path / "pg_dump"
    old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n")
    old.chmod(0o755)
    monkeypatch.setattr(postgres_programs, "_programs", lambda name: iter((old,)))
    code, said = await run(url, "backup", tmp_path / "backup")
    assert code == 2 and "here is 9" in said


@pytest.fixture
async def difficult(tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """Gives the URL, with and without its parameters, of a database whose owner has a difficult password."""
    server = await databases.server()
    name, password = "difficult", r"p:a\s s'%w*rd"
    plain = server.url.replace(server.url.partition("://")[2].partition("@")[0], f"{name}:" + quoted(password))
    database = await asyncpg.connect(server.url)
    await database.execute(f"CREATE ROLE {name} LOGIN PASSWORD $${password}$$")
    await database.execute(f"CREATE DATABASE {name} OWNER {name}")
    plain = plain.rpartition("/")[0] + f"/{name}"
    owner = await asyncpg.connect(plain)
    await owner.execute('CREATE SCHEMA "my schema"')
    await owner.close()
    yield plain, f"{plain}?search_path=%22my%20schema%22"
    await database.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await database.execute(f"DROP ROLE {name}")
    await database.close()


def quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


async def test_difficult_passwords_and_schemas_reach_the_programs_and_nobody_else(
    difficult: tuple[str, str], run: Any, tmp_path: Path
) -> None:
    plain, within = difficult
    for number, url in enumerate((plain, within)):
        await fill(url, 2)
        log, file = await events_of(url), tmp_path / str(number)
        assert (await run(url, "backup", file))[0] == 0
        schema = '"my schema"' if url == within else "public"
        await databases.ask(plain, f"DROP SCHEMA {schema} CASCADE")
        await databases.ask(plain, f"CREATE SCHEMA {schema}")
        code, said = await run(url, "restore", file)
        assert code == 0, said
        assert await events_of(url) == log
        with postgres_programs._target(url) as arguments:
            assert not any(word in " ".join(arguments) for word in ("p:a", quoted("p:a")))
    assert await databases.ask(within, "SELECT count(*) FROM replicas") == 0
