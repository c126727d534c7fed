"""What PostgreSQL adds to the promises of a Store: several processes, a network, a server that comes and goes."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ops.layout import free_ports
from ops.postgres import Postgres, children
from services.common.config import ConfigError
from services.conductor.store import postgres_session, postgres_writer
from services.conductor.store.base import Answer, Append, Appended, Conflict, Listing, StoreUnavailable
from services.conductor.store.engine import shown
from services.conductor.store.postgres import READERS, PostgresStore
from tests import databases
from tests.conftest import until
from tests.test_store import DONE, LONG, a_key, an_append, check_gapless, log_of

FAST = 0.5  # seconds, in place of what a person would wait


@pytest.fixture
async def url() -> str:
    return await databases.fresh()


@pytest.fixture
async def stores(url: str) -> AsyncIterator[Sequence[PostgresStore]]:
    """Three replicas' stores on one database."""
    opened = await asyncio.gather(*(PostgresStore.open(url) for _ in range(3)))  # which make its schema together
    yield opened
    await asyncio.gather(*(store.close() for store in opened))


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that a test may break. It is started anew for each that asks."""
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    asyncio.run(server.kill())


@pytest.fixture
async def server(own_server: Postgres) -> AsyncIterator[Postgres]:
    await own_server.start()
    yield own_server
    for pid in (own_server.pid, *children(own_server.pid)) if own_server.running else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(url)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    database = await asyncpg.connect(url)
    try:
        yield database
    finally:
        await database.close()


async def kept_once(store: PostgresStore, sent: Sequence[Append], outcomes: Sequence[Any]) -> None:
    """Checks that what was acknowledged is in the log once and where it was said, and the rest once or not at all."""
    log = await log_of(store)
    check_gapless(log)
    assert await store.bounds() == (0, len(log))
    stands = {event.event_id: event for event in log}
    assert len(stands) == len(log)
    for append, outcome in zip(sent, outcomes, strict=True):
        found = [stands.get(event.event_id) for event in append.events]
        assert all(found) or not any(found)
        if isinstance(outcome, Appended):
            assert found[-1] is not None
            assert (found[-1].sequence, found[-1].stream_sequence) == (outcome.pos, outcome.version)
    rows = await store.list(Listing("task", limit=10_000))
    assert {row.id for row in rows} == {event.event_id.partition("/")[0] for event in log}


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


async def waiting(url: str, count: int) -> None:
    """Waits until so many statements wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    async def stuck() -> bool:
        return int(await databases.ask(url, query)) >= count

    await until(stuck)


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


# ---- the bell ----


class Heard:
    """What a store's listener heard: sequences of its own events, () for those of others."""

    def __init__(self, store: PostgresStore) -> None:
        self.rings: list[list[int]] = []
        store.on_commit(lambda events: self.rings.append([event.sequence for event in events]))


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


# ---- a server that goes away ----


async def cut(url: str) -> None:
    """Ends every connection but the one that asks."""
    query = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state <> ''"
    )
    await databases.ask(url, query)


async def test_connections_that_are_cut_lose_no_append_and_repeat_none(server: Postgres) -> None:
    url = await databases.fresh(server)
    sent: list[Append] = []
    outcomes: list[Any] = []

    async def write(store: PostgresStore, name: str) -> None:
        for i in range(12):
            sent.append(an_append(f"{name}-{i}", count=2, request=a_key(f"{name}-{i}")))
            outcomes.append(None)
            place = len(sent) - 1
            outcomes[place] = await store.append(sent[place])

    async with opened(url) as store, opened(url) as other:
        writing = asyncio.gather(
            *(write(store, f"a-{i}") for i in range(16)), *(write(other, f"b-{i}") for i in range(4))
        )
        for count in (20, 80, 140):
            await until(lambda count=count: sum(outcome is not None for outcome in outcomes) >= count)
            await cut(url)
        await writing
        assert all(isinstance(outcome, Appended) for outcome in outcomes)
        await cut(url)
        await kept_once(store, sent, outcomes)  # reading goes on, too


async def test_a_server_stopped_under_load_keeps_what_it_acknowledged_and_nothing_twice(server: Postgres) -> None:
    url = await databases.fresh(server)
    store = await PostgresStore.open(url)
    sent: list[Append] = []
    outcomes: list[Any] = []
    for turn in range(3):
        batch = [an_append(f"t-{turn}-{i}", count=1 + i % 3, request=a_key(f"r-{turn}-{i}")) for i in range(64)]
        appends = [asyncio.create_task(store.append(append)) for append in batch[:32]]
        await asyncio.sleep(0.002 * turn)  # to be hit at another moment each time
        appends += [asyncio.create_task(store.append(append)) for append in batch[32:]]
        await (server.kill() if turn == 2 else server.stop(immediate=True))
        await server.start()
        sent += batch
        outcomes += await asyncio.gather(*appends, return_exceptions=True)
        assert all(isinstance(outcome, Appended | StoreUnavailable) for outcome in outcomes)
        await kept_once(store, sent, outcomes)
    assert all(isinstance(outcome, Appended) for outcome in outcomes)  # it was back within the time allowed
    await store.close()


async def test_a_server_that_stays_away_refuses_in_time_and_serves_again_when_it_is_back(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_writer, "BACK_S", FAST)
    async with opened(await databases.fresh(server)) as store:
        await store.append(an_append())
        await server.stop()
        for call in (store.append(an_append("t-2")), store.bounds(), store.claim("me", 1, 1), store.beat("me")):
            with pytest.raises(StoreUnavailable) as refused:
                await asyncio.wait_for(call, 3)
            assert server.url.partition("@")[0].rpartition(":")[2] not in refused.value.cause
        await server.start()
        heard = Heard(store)
        assert await store.append(an_append("t-2")) == Appended(2, 1) and await store.bounds() == (0, 2)
        await until(lambda: [] in heard.rings, 3)  # it listens again, and says that something may have been missed


async def test_a_server_that_hangs_refuses_in_time_and_what_it_did_after_all_is_kept_once(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("COMMIT_S", FAST), ("BACK_S", FAST)):
        monkeypatch.setattr(postgres_writer, name, value)
    monkeypatch.setattr(postgres_session, "CONNECT_S", FAST)
    async with opened(await databases.fresh(server)) as store:
        append = an_append("t-1", count=2, request=a_key("r-1"))
        family = (server.pid, *children(server.pid))
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(store.append(append), 5)
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        again = await store.append(append)
        assert again in (Appended(2, 2), Answer(b"body", 1, b"first answer"))
        await kept_once(store, [append], [again])


class Line:
    """A network between a store and its server, on which answers can be held back and all be cut."""

    def __init__(self) -> None:
        self.deaf = False
        self._links: list[asyncio.StreamWriter] = []

    async def start(self, url: str) -> str:
        """Returns the URL through it."""
        user, _, place = url.partition("@")
        address, _, rest = place.partition("/")
        host, _, port = address.partition(":")

        async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            away, back = await asyncio.open_connection(host, int(port))
            self._links += [writer, back]
            await asyncio.gather(self._carry(reader, back, False), self._carry(away, writer, True))

        self.server = await asyncio.start_server(join, "127.0.0.1", 0)
        return f"{user}@127.0.0.1:{self.server.sockets[0].getsockname()[1]}/{rest}"

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not (answers and self.deaf):
                    writer.write(data)
        writer.close()

    def cut(self) -> None:
        self.deaf = False
        for link in self._links:
            link.transport.abort()
        self._links.clear()


async def test_a_commit_whose_answer_is_lost_is_found_again_and_not_done_twice(url: str) -> None:
    line = Line()
    async with opened(await line.start(url)) as store:
        heard = Heard(store)
        # A batch, so that what is sent below is known to the server, and is done at once.
        await asyncio.gather(
            store.append(an_append("old", count=2)), store.append(an_append("o", request=a_key("r-0")))
        )
        line.deaf = True
        sent = [
            an_append("new", count=2, request=a_key("r-1")),
            an_append("old", 2),
            an_append("old-2", request=a_key("r-2")),
        ]
        appends = [asyncio.create_task(store.append(append)) for append in (*sent, an_append("old", 1, count=4))]

        async def committed() -> bool:
            return await databases.ask(url, "SELECT pos FROM log_head") == 7

        await until(committed)
        assert not any(append.done() for append in appends)
        line.cut()
        *outcomes, conflict = await asyncio.gather(*appends)
        assert all(isinstance(outcome, Appended) for outcome in outcomes) and conflict == Conflict()
        await kept_once(store, sent, outcomes)
        assert sorted(pos for ring in heard.rings for pos in ring) == [1, 2, 3, 4, 5, 6, 7]
        assert await store.answer("r-1") == Answer(b"body", 4, b"first answer")
    line.server.close()


async def test_two_that_wait_for_each_other_are_told_apart_and_both_get_through(
    url: str, stores: Sequence[PostgresStore]
) -> None:
    await asyncio.gather(*(stores[0].append(an_append(name)) for name in ("a", "b")))
    async with connected(url) as other:
        await other.execute("SET deadlock_timeout = '20s'")  # so that it is the store's statement that is ended
        held = other.transaction()
        await held.start()
        await other.execute("SELECT FROM aggregates WHERE id = 'b' FOR UPDATE")
        both = asyncio.gather(*(stores[0].append(an_append(name, 1)) for name in ("b", "a")))
        await waiting(url, 1)
        await other.execute("SELECT FROM aggregates WHERE id = 'a' FOR UPDATE")
        await held.commit()
    assert all(isinstance(outcome, Appended) for outcome in await both)
    check_gapless(await log_of(stores[0]))


async def test_a_lease_is_renewed_while_all_reading_connections_are_busy(stores: Sequence[PostgresStore]) -> None:
    store = stores[0]
    await store.join("me")

    def slowly(db: Any) -> Awaitable[Any]:
        return db.fetchval("SELECT pg_sleep(30)")  # type: ignore[no-any-return]

    reads = [asyncio.create_task(store._read(slowly)) for _ in range(READERS * 4)]
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
        assert await store.beat("me") and isinstance(await store.append(an_append()), Appended)
    for read in reads:
        read.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    assert await store.bounds() == (0, 1)


async def test_an_append_that_the_engine_cannot_take_is_refused_and_stops_nobody_else(
    stores: Sequence[PostgresStore],
) -> None:
    for bad in (an_append("t-1", created_at=2**70), an_append("nul\0")):
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(stores[0].append(bad), 2)
    assert await asyncio.wait_for(stores[0].append(an_append("t-2")), 2) == Appended(1, 1)


async def test_a_page_is_bounded_in_bytes_and_goes_on_behind_its_last_event(stores: Sequence[PostgresStore]) -> None:
    append = an_append("t-1", count=40, project_id="p")
    for event in append.events:
        event.task_progress.message = os.urandom(50_000).hex()
    await stores[0].append(append)
    for key in (None, ("task", "t-1"), ("project", "p")):
        page = await stores[1].read(0, 1000, key)  # type: ignore[arg-type]
        assert 1 < len(page.events) < 40 and page.through == page.events[-1].sequence
        assert [event.sequence for event in await log_of(stores[1], key)] == list(range(1, 41))  # type: ignore[arg-type]


async def test_names_sort_by_their_bytes_as_in_sqlite(stores: Sequence[PostgresStore]) -> None:
    names = ["a", "B", "ä", "_", "ß", "Z", "é", "🜍", "b", "-"]
    for name in names:
        await stores[0].append(an_append(name, status=DONE))
    assert [row.id for row in await stores[0].list(Listing("task"))] == sorted(names, reverse=True)
