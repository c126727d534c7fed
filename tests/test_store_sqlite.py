"""What SQLite adds to the promises of a Store: its disk, its file, its process."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from services.common.config import ConfigError
from services.conductor.store import migrations, sqlite
from services.conductor.store.base import Answer, Append, Appended, Listing, StoreUnavailable
from services.conductor.store.sqlite import SqliteStore
from tests.stores import LONG, a_key, an_append, check_gapless, log_of, picture

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
WRITERS = """
import asyncio, os, sys
from pathlib import Path
from services.conductor.store.sqlite import SqliteStore
from tests.stores import an_append

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    async def write(name):
        version = (await store.stream(("task", name))).version
        while True:
            version = (await store.append(an_append(name, version, count=3))).version
            os.write(1, f"{name} {version}\\n".encode())
    await asyncio.gather(*(write(f"w-{i}") for i in range(16)))

asyncio.run(main())
"""


FIRST_LOG = """
INSERT INTO meta VALUES (1, 'id');
INSERT INTO log_head VALUES (1, 3, 0);
INSERT INTO aggregates VALUES ('task', 't-1', 1, 1, 0, '', '', 'gone', 7, 10, x'01');
INSERT INTO aggregates VALUES ('task', 't-2', 1, 4, 1, '', '', 'gone', 1, 20, x'02');
INSERT INTO aggregates VALUES ('project', 'p', 1, 0, 0, 'p', '', NULL, 0, 30, x'03');
INSERT INTO events VALUES (1, 'task', 't-1', 1, '', x'EVENT'), (2, 'task', 't-2', 1, '', x'EVENT');
INSERT INTO events VALUES (3, 'project', 'p', 1, 'p', x'EVENT');
INSERT INTO replicas VALUES ('gone', 5);
"""


async def check_whole(path: Path) -> dict[str, int]:
    """Opens a file anew, checks all that must hold of it, and returns each task's version."""
    store = SqliteStore(path)
    assert store._connection.pragma("integrity_check") == "ok"
    events = await log_of(store)
    check_gapless(events)
    assert await store.bounds() == (0, len(events))
    versions: dict[str, int] = {}
    for event in events:
        versions[event.event_id.partition("/")[0]] = event.stream_sequence
    rows = await store.list(Listing("task", limit=10_000))
    assert {row.id: row.state for row in rows} == {name: f"{name}@{v}".encode() for name, v in versions.items()}
    await store.close()
    return versions


@pytest.fixture
async def lite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "log.db")
    yield store
    await store.close()


async def test_the_writing_connection_has_wal_and_full_synchronous_in_force(lite: SqliteStore) -> None:
    pragma = lite._connection.pragma
    assert (pragma("journal_mode"), pragma("synchronous"), pragma("foreign_keys")) == ("wal", 2, 1)


async def test_readers_cannot_write(lite: SqliteStore) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        await lite._read(lambda db: db.execute("DELETE FROM events"))
    assert refused.value.cause.startswith("ReadOnlyError")


def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    for lines in (1, 200, 1500):
        command = [sys.executable, "-c", WRITERS, str(tmp_path / "log.db")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT) as process:
            assert process.stdout is not None
            printed = [process.stdout.readline() for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            printed += process.stdout.readlines()
        acknowledged = dict(line.split() for line in printed if line.endswith("\n"))  # the newest of each task
        kept = asyncio.run(check_whole(tmp_path / "log.db"))
        assert acknowledged and all(kept[name] >= int(version) for name, version in acknowledged.items())


async def test_reopening_goes_on_where_the_log_ended(tmp_path: Path) -> None:
    for turn in range(3):
        store = SqliteStore(tmp_path / "log.db")
        outcome = await store.append(an_append(f"t-{turn}", count=2, request=a_key(f"r-{turn}", covers=2)))
        assert outcome == Appended(2 * turn + 2, 2)
        assert await store.answer("r-0") == Answer(b"body", 2, b"first answer")
        # Who owned them went with the process: nobody has to wait for a lease to run out.
        assert list(await store.claim(f"run-{turn}", LONG, 9)) == [f"t-{i}" for i in range(turn + 1)]
        await store.close()
    assert not (tmp_path / "log.db-wal").exists()  # folded into the file: it can be copied now


async def test_a_second_process_on_the_same_file_is_refused_with_one_sentence(
    lite: SqliteStore, tmp_path: Path
) -> None:
    environment = {**ENVIRONMENT, "CONDUCTOR_STORE": str(tmp_path / "log.db"), "CONDUCTOR_LISTEN": "127.0.0.1:0"}
    command = [sys.executable, "-m", "services.conductor"]
    ended = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("conductor: Another process uses the store") and ended.stderr.endswith(".\n")
    assert isinstance(await lite.append(an_append()), Appended)


@contextlib.contextmanager
def no_longer_root() -> Iterator[None]:
    """Gives up root's right to write everywhere, for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_store_that_cannot_be_opened_is_refused_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "garbage.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    (tmp_path / "locked").mkdir(mode=0o500)
    for path in ("file/log.db", "folder.db", "garbage.db", "locked/log.db"):
        with pytest.raises(ConfigError) as refused, no_longer_root() if "locked" in path else contextlib.nullcontext():
            SqliteStore(tmp_path / path)
        text = str(refused.value)
        assert text.count("\n") == 0 and text.endswith(".") and str((tmp_path / path).parent) in text
    assert (tmp_path / "file").read_text() == "a file"


def write(path: Path, sql: str) -> None:
    with contextlib.closing(apsw.Connection(str(path))) as other:
        other.execute(sql)
        other.pragma("wal_checkpoint(TRUNCATE)")


async def test_a_schema_for_newer_conductors_only_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await SqliteStore(path).close()
    write(path, "UPDATE meta SET schema_version = 99, oldest = 98")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"schema 99.*knows schema 98.*upgrade"):
        SqliteStore(path)
    assert path.read_bytes() == before


async def test_a_newer_schema_that_this_conductor_can_live_with_is_used_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await SqliteStore(path).close()
    write(path, "UPDATE meta SET schema_version = 99; ALTER TABLE events ADD COLUMN later TEXT")
    store = SqliteStore(path)
    assert await store.append(an_append()) == Appended(1, 1)
    assert store._connection.execute("SELECT schema_version FROM meta").fetchall() == [(99,)]
    await store.close()


async def test_a_file_of_the_first_schema_is_brought_up_to_date_with_all_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    event = an_append(count=1).events[0].SerializeToString().hex()
    write(path, migrations.files("sqlite")[0].read_text() + FIRST_LOG.replace("EVENT", event))
    store = SqliteStore(path)
    assert [row.id for row in await store.list(Listing("task"))] == ["t-2", "t-1"]
    assert await store.ended_before(0) == 20 and len(await log_of(store)) == 3
    assert list(await store.claim("me", LONG, 9)) == ["t-1"]
    assert (await store.stream(("task", "t-1"))).epoch == 8
    assert await store.prune(21, 9) == 1 and await store.bounds() == (2, 3)
    await store.close()
    assert await SqliteStore(path).close() is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def check_full(store: SqliteStore, make_room: Callable[[], Any]) -> None:
    """Fills a store that has room for about 2 MB, and goes on when there is more."""

    def large(name: str) -> Append:
        append = an_append(name, count=3, request=a_key(name))
        append.events[1].task_progress.message = "x" * 60_000
        return append

    outcomes: list[Any] = []
    for batch in range(30):
        names = [f"t-{batch}-{i}" for i in range(4)]
        appends = [store.append(large(name)) for name in names]
        outcomes += zip(names, await asyncio.gather(*appends, return_exceptions=True), strict=True)
    kept = {name for name, outcome in outcomes if isinstance(outcome, Appended)}
    failed = {name for name, outcome in outcomes if isinstance(outcome, StoreUnavailable)}
    assert kept and len(failed) > 4 and len(kept) + len(failed) == len(outcomes)
    events = await log_of(store)
    check_gapless(events)
    assert {event.event_id.partition("/")[0] for event in events} == kept
    assert [await store.answer(name) for name in failed] == [None] * len(failed)
    make_room()
    again = sorted(failed)[:5]
    assert {type(await store.append(large(name))) for name in again} == {Appended}
    await store.close()
    assert await check_whole(store._path) == dict.fromkeys(kept | set(again), 3)


async def test_a_full_disk_refuses_whole_appends_and_serves_again_when_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(3_000_000))
    await check_full(SqliteStore(small_disk / "log.db"), filler.unlink)


async def test_a_full_database_refuses_whole_appends_and_serves_again_when_there_is_room(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    pragma = store._connection.pragma
    pragma("max_page_count", 400)
    await check_full(store, lambda: pragma("max_page_count", 10_000))


async def test_a_file_locked_for_too_long_refuses_and_serves_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    store = SqliteStore(tmp_path / "log.db")
    await store.append(an_append())
    with contextlib.closing(apsw.Connection(str(tmp_path / "log.db"))) as other:
        other.execute("BEGIN IMMEDIATE")
        before = await picture(store)
        for write in (store.append(an_append("t-2")), store.claim("other", LONG, 9)):
            with pytest.raises(StoreUnavailable) as refused:
                await write
            assert refused.value.error.metadata["cause"] == "BusyError"
        assert await picture(store) == before  # reading goes on
        other.execute("ROLLBACK")
    assert await store.append(an_append("t-2")) == Appended(2, 1)
    await store.close()


async def test_an_append_the_engine_cannot_take_stops_nobody_else(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    with pytest.raises((OverflowError, StoreUnavailable)):
        await asyncio.wait_for(store.append(an_append("t-1", created_at=2**70)), 1)
    assert await asyncio.wait_for(store.append(an_append("t-2")), 1) == Appended(1, 1)
    await store.close()


def test_a_store_that_was_refused_is_not_kept_locked(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(ConfigError):
        SqliteStore(path)
    path.unlink()
    SqliteStore(path)


async def test_a_page_is_bounded_in_bytes_and_goes_on_behind_its_last_event(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    append = an_append("t-1", count=40)
    for event in append.events:
        event.task_progress.message = "x" * 100_000
    await store.append(append)
    page = await store.read(0, 1000)
    assert 1 < len(page.events) < 40 and page.through == page.events[-1].sequence
    assert [event.sequence for event in await log_of(store)] == list(range(1, 41))
    await store.close()


async def test_an_expired_request_key_is_forgotten(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    await store.append(an_append("t-1", request=replace(a_key("r-1"), expires_at=1)))
    assert await store.answer("r-1") is None
    assert isinstance(await store.append(an_append("t-2", request=a_key("r-1"))), Appended)
    assert await store.answer("r-1") is not None
    for i in range(20):
        await store.append(an_append(f"old-{i}", request=replace(a_key(f"old-{i}"), expires_at=1)))
    with apsw.Connection(str(tmp_path / "log.db")) as log:  # they do not pile up
        assert log.execute("SELECT count(*) FROM requests").fetchall()[0][0] <= 2
    await store.close()


async def test_who_asks_for_tasks_is_alive_and_is_never_given_its_own_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    await store.join("me")
    await store.append(an_append("t-1", owner="me"))
    for _ in range(3):
        time.sleep(0.002)  # noqa: ASYNC251  longer than the lease below, as a claim on a disk that hangs
        assert list(await store.claim("me", 0.001, 10)) == []
    assert (await store.stream(("task", "t-1"))).epoch == 1
    await store.close()
