"""The store on PostgreSQL while connections are cut, answers are lost, and the server is away."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from ops.postgres import Postgres, children
from services.conductor.store import postgres_session, postgres_writer
from services.conductor.store.base import Answer, Append, Appended, Conflict, Listing, StoreUnavailable
from services.conductor.store.postgres import READERS, PostgresStore
from tests import databases
from tests.conftest import until
from tests.postgres_at_hand import Heard, connected, opened, own_server, server, stores, url, waiting
from tests.stores import DONE, a_key, an_append, check_gapless, log_of

__all__ = ["own_server", "server", "stores", "url"]


FAST = 0.5  # seconds, in place of what a person would wait


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
