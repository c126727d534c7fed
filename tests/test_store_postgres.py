"""What PostgreSQL adds to the promises of a Store: several processes, a network, a server that comes and goes."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ops.layout import free_ports
from ops.postgres import Postgres
from services.common.config import ConfigError
from services.conductor.store import postgres_session
from services.conductor.store.base import Answer, Appended, Conflict
from services.conductor.store.engine import shown
from services.conductor.store.postgres import PostgresStore
from tests import databases
from tests.conftest import until
from tests.postgres_at_hand import Heard, connected, opened, own_server, server, stores, url, waiting
from tests.stores import LONG, a_key, an_append, check_gapless, log_of

__all__ = ["own_server", "server", "stores", "url"]


# ---- start ----


async def refuses(url: str) -> str:
    """Expects a database to be refused; returns the sentence."""
    with pytest.raises(ConfigError) as refused:
        await PostgresStore.open(url)
    text = str(refused.value)
    assert "\n" not in text and text.endswith(".") and "secret" not in text and text.count(". ") == 0, text
    return text


async def test_an_address_where_no_server_is_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "START_S", 0.2)
    port = free_ports(1)[0]
    assert f"me@127.0.0.1:{port}/db cannot be reached: start it" in await refuses(
        f"postgresql://me:secret@127.0.0.1:{port}/db"
    )
    assert "host of postgresql://nowhere.invalid/db is not known" in await refuses("postgresql://nowhere.invalid/db")
    assert "CONDUCTOR_STORE cannot be read" in await refuses("postgresql://me:secret@host:port/db")


async def test_a_wrong_user_password_or_database_is_refused_with_what_to_do(url: str) -> None:
    base, _, place = url.partition("?")[0].partition("@")
    assert "refuses the user or the password" in await refuses(f"postgresql://conductor:secret@{place}")
    assert "refuses the user or the password" in await refuses(f"postgresql://nobody:secret@{place}")
    assert "has no such database: create it" in await refuses(f"{base}@{place.partition('/')[0]}/other")
    assert "no schema to write to: create the one" in await refuses(f"{base}@{place}?search_path=none_such")


async def test_a_server_that_starts_late_is_waited_for(server: Postgres) -> None:
    url = await databases.fresh(server)
    await server.stop(immediate=True)
    opening = asyncio.create_task(PostgresStore.open(url))
    await server.start()
    store = await opening
    assert await store.append(an_append()) == Appended(1, 1)
    await store.close()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("fsync", "fsync=off, so that a power cut loses"),
        ("full_page_writes", "full_page_writes=off, so that a power cut"),
    ],
)
async def test_a_server_that_a_power_cut_would_break_is_refused(server: Postgres, setting: str, says: str) -> None:
    url = await databases.fresh(server)
    await databases.ask(url, f"ALTER SYSTEM SET {setting} = off")
    await databases.ask(url, "SELECT pg_reload_conf()")

    async def off() -> bool:
        return await databases.ask(url, f"SHOW {setting}") == "off"

    await until(off)
    assert says in await refuses(url)
    await databases.ask(url, f"ALTER SYSTEM RESET {setting}")
    await databases.ask(url, "SELECT pg_reload_conf()")


async def test_a_server_that_only_reads_is_refused(url: str) -> None:
    assert "only lets its data be read: name the primary" in await refuses(f"{url}&default_transaction_read_only=on")


async def test_a_server_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "OLDEST_SERVER", 990000)
    assert "too old: upgrade it" in await refuses(url)


async def test_a_database_that_cannot_hold_every_text_is_refused(url: str) -> None:
    with contextlib.suppress(asyncpg.DuplicateDatabaseError):
        await databases.ask(url, "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    assert "encoding SQL_ASCII: create it" in await refuses(f"{url.partition('?')[0].rpartition('/')[0]}/ascii")


async def test_commits_wait_for_the_disk_whatever_the_database_has_as_its_default(url: str) -> None:
    async with opened(f"{url}&synchronous_commit=off") as store:
        for database in (store._writer._connection, store._pool):
            assert await database.fetchval("SHOW synchronous_commit") == "on"


async def test_tables_of_something_else_are_refused_and_left_alone(url: str) -> None:
    await databases.ask(url, "CREATE TABLE meta(something text)")
    assert "give it a schema of its own" in await refuses(url)
    await databases.ask(url, "DROP TABLE meta")
    await databases.ask(url, "CREATE TABLE events(something text)")
    assert "give it a schema of its own" in await refuses(url)
    assert await databases.ask(url, "SELECT to_regclass('meta')") is None  # all of a schema file, or nothing


async def test_a_newer_schema_is_used_when_it_allows_it_and_refused_when_not(url: str) -> None:
    async with opened(url) as old:
        await databases.ask(url, "UPDATE meta SET schema_version = 99")
        await databases.ask(url, "ALTER TABLE events ADD COLUMN later text")
        async with opened(url) as beside:
            assert await beside.append(an_append()) == Appended(1, 1)
        await databases.ask(url, "UPDATE meta SET oldest = 98")
        assert "schema 99" in await refuses(url)
        assert await old.append(an_append("t-2")) == Appended(2, 1)
    assert await databases.ask(url, "SELECT schema_version FROM meta") == 99


def test_a_store_is_shown_without_its_password() -> None:
    assert shown("postgresql://me:s3@cret@db:5/x?password=s3cret") == "postgresql://me@db:5/x"
    assert shown("postgres://db/x") == "postgres://db/x" and shown(Path("/a/b.db")) == "/a/b.db"


# ---- several replicas ----


async def test_three_replicas_append_at_once_and_a_reader_misses_nothing(stores: Sequence[PostgresStore]) -> None:
    read: list[int] = []
    done = asyncio.Event()

    async def write(store: PostgresStore, writer: int) -> None:
        for _ in range(6):
            name = f"shared-{writer % 4}" if writer % 2 else f"own-{id(store)}-{writer}"
            outcome: Any = Conflict()
            while isinstance(outcome, Conflict):
                version = (await store.stream(("task", name))).version
                outcome = await store.append(an_append(name, version, count=1 + writer % 3))

    async def follow() -> None:
        cursor = 0
        while not done.is_set() or cursor < (await stores[0].bounds())[1]:
            page = await stores[0].read(cursor, 7)
            read.extend(event.sequence for event in page.events)
            cursor = page.through

    follower = asyncio.create_task(follow())
    await asyncio.gather(*(write(store, writer) for store in stores for writer in range(16)))
    done.set()
    await follower
    events = await log_of(stores[1])
    check_gapless(events)
    assert read == [event.sequence for event in events]


@pytest.mark.parametrize("beside", [0, 3], ids=["alone", "in a batch"])
async def test_a_request_key_used_by_two_replicas_at_once_is_used_once(
    url: str, stores: Sequence[PostgresStore], beside: int
) -> None:
    async with connected(url) as other:
        held = other.transaction()
        await held.start()
        await other.execute("SELECT FROM log_head FOR UPDATE")  # so that both have looked before either writes
        appends = [
            asyncio.create_task(store.append(an_append(f"t-{i}", count=2, request=a_key("r-1"))))
            for i, store in enumerate(stores[:2])
        ]
        others = [
            asyncio.create_task(store.append(an_append(f"{i}-{n}", request=a_key(f"{i}-{n}"))))
            for i, store in enumerate(stores[:2])
            for n in range(beside)
        ]
        await waiting(url, 2)
        await held.commit()
    outcomes = await asyncio.gather(*appends)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Answer", "Appended"]
    first = next(outcome.pos for outcome in outcomes if isinstance(outcome, Appended))
    assert next(outcome for outcome in outcomes if isinstance(outcome, Answer)).pos == first - 1
    assert all(isinstance(outcome, Appended) for outcome in await asyncio.gather(*others))
    assert await stores[0].bounds() == (0, 2 + 2 * beside)
    check_gapless(await log_of(stores[0]))


@pytest.mark.parametrize("count", [1, 3], ids=["alone", "in a batch"])
async def test_an_expired_request_key_is_used_anew_and_forgotten_in_time(
    url: str, stores: Sequence[PostgresStore], count: int
) -> None:
    store = stores[0]
    for i in range(9):
        await databases.ask(url, "INSERT INTO requests VALUES ($1, 'f', 1, 'r', $2)", f"old-{i}", 1 + i)
    assert await store.answer("old-7") is None
    appends = [an_append(f"t-{i}", request=a_key(f"old-{i}")) for i in range(count)]
    assert all(isinstance(outcome, Appended) for outcome in await asyncio.gather(*map(store.append, appends)))
    assert await store.answer("old-0") == Answer(b"body", 1, b"first answer")
    assert await databases.ask(url, "SELECT count(*) FROM requests") == 9
    await stores[1].claim("me", LONG, 1)
    assert await databases.ask(url, "SELECT count(*) FROM requests") == count


async def test_a_paused_replica_writes_nothing_after_its_tasks_were_taken(stores: Sequence[PostgresStore]) -> None:
    paused, other, third = stores
    for replica, store in (("paused", paused), ("other", other)):
        await store.join(replica)
    await paused.append(an_append(owner="paused"))

    async def taken() -> Sequence[str]:
        assert await other.beat("other")
        return await other.claim("other", 0.3, 9)

    assert await until(taken, 5) == ["t-1"]
    assert await paused.append(an_append("t-1", 1)) == Conflict()
    assert not await paused.beat("paused")
    assert await other.append(an_append("t-1", 1, epoch=2)) == Appended(2, 2)
    assert list(await third.claim("third", LONG, 9)) == []


async def test_a_claim_among_many_open_tasks_looks_at_those_of_the_dead_only(
    url: str, stores: Sequence[PostgresStore]
) -> None:
    await stores[0].join("alive")
    await asyncio.gather(*(stores[0].append(an_append(f"t-{i}", owner="alive")) for i in range(500)))
    await asyncio.gather(*(stores[0].append(an_append(f"of-dead-{i}", owner=f"dead-{i}")) for i in range(3)))
    await stores[1].join("me")
    assert list(await stores[1].claim("me", LONG, 500)) == ["of-dead-0", "of-dead-1", "of-dead-2"]


async def test_a_commit_rings_here_with_its_events_and_elsewhere_without(stores: Sequence[PostgresStore]) -> None:
    heard = [Heard(store) for store in stores]
    async with asyncio.timeout(0.9):  # sooner than anybody looks without a bell
        await stores[0].append(an_append(count=2))
        await until(lambda: heard[1].rings and heard[2].rings)
    assert heard[0].rings == [[1, 2]] and heard[1].rings == heard[2].rings == [[]]
    await stores[1].append(an_append("t-2"))
    await until(lambda: heard[0].rings == [[1, 2], []] and heard[1].rings == [[], [3]])


async def test_a_bell_that_did_not_ring_is_made_up_for_within_two_seconds(
    url: str, stores: Sequence[PostgresStore]
) -> None:
    heard = Heard(stores[1])
    await databases.ask(url, "UPDATE log_head SET pos = 7")  # as if it had been written to, silently
    await until(lambda: heard.rings == [[]], 2)
    await databases.ask(url, "SELECT pg_terminate_backend($1)", stores[1]._bell._connection.get_server_pid())
    await stores[0].append(an_append())
    await until(lambda: len(heard.rings) > 1, 3)
