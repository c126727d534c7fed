"""The log on PostgreSQL: any number of Conductors on one database, each with a connection that commits batches.

Positions come from one counter row, locked from the statement that needs them until its commit: so they are gapless,
and whoever reads them in order misses nothing. NOTIFY only says "look again"; the log is the source.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg

from services.common.config import ConfigError
from services.conductor.store import postgres_sql as sql
from services.conductor.store.base import (
    Answer,
    Append,
    GroupCommit,
    Key,
    Listener,
    Listing,
    Outcome,
    Page,
    Row,
    Store,
    Stream,
)
from services.conductor.store.pages import event
from services.conductor.store.postgres_bell import Bell
from services.conductor.store.postgres_session import (
    CONNECT_S,
    ERRORS,
    GONE,
    SETTINGS,
    check,
    connect_at_start,
    migrate,
    refused,
    unavailable,
)
from services.conductor.store.postgres_writer import Writer

READERS = 3  # connections that serve reads; one more is kept for leases, which must not queue behind reads
READ_S = 30.0  # after which a query is given up

T = TypeVar("T")


class PostgresStore(Store):
    """The Store on a PostgreSQL database, or on a schema of it that the URL names by `?search_path=`."""

    exclusive = False

    def __init__(self, log_id: str, pool: Any, writer: Writer, bell: Bell) -> None:
        self.log_id = log_id
        self._pool = pool
        self._writer = writer
        self._bell = bell
        self._group = GroupCommit(writer.commit, bell.committed)
        self._reading = asyncio.Semaphore(READERS)

    @classmethod
    async def open(cls, url: str) -> "PostgresStore":
        """Connects, checks the server, brings the schema up to date.

        Raises:
            ConfigError: the server cannot be used; one sentence says what to do.
        """
        first = await connect_at_start(url)
        try:
            await check(first, url)
            await migrate(first, url)
            log_id = await first.fetchval(sql.STORE_ID)
            head = await first.fetchval(sql.HEAD)
        finally:
            await first.close()
        channel = f"conductor_{log_id}"
        writer = Writer(url, channel)
        bell = Bell(url, channel, head, writer.is_own)
        pool = asyncpg.create_pool(
            url,
            min_size=1,
            max_size=READERS + 1,
            timeout=CONNECT_S,
            command_timeout=READ_S,
            max_cached_statement_lifetime=0,
            server_settings={**SETTINGS, **sql.SETTINGS},
            reset=_leave_as_it_is,
        )
        try:
            await pool
            await writer.start()
            await bell.start()
        except ERRORS as error:
            pool.terminate()
            await writer.close()
            await bell.close()
            raise ConfigError(refused(url, error)) from error
        return cls(log_id, pool, writer, bell)

    # ---- writing ----

    async def append(self, append: Append) -> Outcome:
        return await self._group.append(append)

    async def join(self, replica: str) -> None:
        await self._run(lambda db: db.execute(sql.JOIN, replica))

    async def beat(self, replica: str) -> bool:
        return await self._run(lambda db: db.fetchval(sql.BEAT, replica)) is not None

    async def replicas(self) -> Sequence[str]:
        return [row[0] for row in await self._run(lambda db: db.fetch(sql.REPLICAS))]

    async def claim(self, replica: str, lease: float, limit: int) -> Sequence[str]:
        # Statements of their own: whoever renews its lease meanwhile is alive for the last of them.
        await self._run(lambda db: db.execute(sql.EXPIRE, timedelta(seconds=lease)))
        await self._run(lambda db: db.execute(sql.FORGET))  # here, because somebody calls this all the time
        try:
            # Not twice: what the first try had taken would not be among what the second takes.
            return sorted(row[0] for row in await self._once(lambda db: db.fetch(sql.CLAIM, replica, limit)))
        except ERRORS as error:
            raise unavailable(error) from error

    async def leave(self, replica: str) -> None:
        await self._run(lambda db: db.execute(sql.LEAVE, replica))

    async def ended_before(self, newest: int) -> int:
        found: int | None = await self._read(lambda db: db.fetchval(sql.ENDED_BEFORE, newest))
        return found or 0

    async def prune(self, ended_before: int, limit: int) -> int:
        removed: int = await self._read(lambda db: db.fetchval(sql.PRUNE, ended_before, limit))
        return removed

    async def close(self) -> None:
        await self._group.close()
        await self._bell.close()
        await self._writer.close()
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._pool.close()
        except TimeoutError:  # somebody's read does not end
            self._pool.terminate()

    # ---- reading ----

    async def stream(self, key: Key) -> Stream:
        rows = await self._read(lambda db: db.fetch(sql.STREAM, *key))
        version, epoch, owner = rows[0][:3] if rows else (0, 0, None)
        return Stream([event(*row[3:]) for row in rows if row[3] is not None], version, epoch, owner)

    async def row(self, key: Key) -> Row | None:
        found = await self._read(lambda db: db.fetchrow(sql.ROW, *key))
        return Row(*found) if found else None

    async def list(self, listing: Listing) -> Sequence[Row]:
        query, values = sql.listing(listing)
        return [Row(*found) for found in await self._read(lambda db: db.fetch(query, *values))]

    async def answer(self, request_key: str) -> Answer | None:
        found = await self._read(lambda db: db.fetchrow(sql.ANSWER, request_key))
        return Answer(*found) if found else None

    async def read(self, after: int, limit: int, key: Key | None = None) -> Page:
        query, values = sql.page(after, limit, key)
        rows = await self._read(lambda db: db.fetch(query, *values))
        head, low, *_, found = rows[0]
        events = [event(*row[2:5]) for row in rows if row[2] is not None]
        whole = len(events) == (found or 0) < limit
        return Page(events, max(head, after) if whole else events[-1].sequence, low)

    async def bounds(self) -> tuple[int, int]:
        low, head = await self._read(lambda db: db.fetchrow(sql.BOUNDS))
        return low, head

    def on_commit(self, listener: Listener) -> None:
        self._bell.on_ring(listener)

    async def _read(self, query: Callable[[Any], Awaitable[T]]) -> T:
        async with self._reading:
            return await self._run(query)

    async def _run(self, query: Callable[[Any], Awaitable[T]]) -> T:
        """Runs what may be run twice, and does so when the first connection turns out to be gone."""
        try:
            return await self._once(query)
        except GONE:
            await self._pool.expire_connections()  # the others went with it
        except ERRORS as error:
            raise unavailable(error) from error
        try:
            return await self._once(query)
        except ERRORS as error:
            raise unavailable(error) from error

    async def _once(self, query: Callable[[Any], Awaitable[T]]) -> T:
        async with self._pool.acquire(timeout=CONNECT_S) as db:
            return await query(db)


async def _leave_as_it_is(_: Any) -> None:
    """Replaces asyncpg's resetting of a connection that is given back, a round trip: nothing here changes one."""
