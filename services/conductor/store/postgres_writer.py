"""The connection that commits batches, and what is done when it breaks while it does."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import asyncpg

from services.conductor.store import postgres_commit
from services.conductor.store.base import Append, Appended, Outcome, StoreUnavailable
from services.conductor.store.postgres_session import ERRORS, GONE, PAUSE_S, connect, unavailable
from services.conductor.store.postgres_sql import WRITTEN

log = logging.getLogger(__name__)

COMMIT_S = 10.0  # after which a connection that does not answer is given up
BACK_S = 5.0  # how long a server may stay away before the appends that wait are refused
TRIES = 5  # of a batch that collides with others
# Another replica used the same request key at the same moment, or waits for what this one holds.
COLLISIONS = (
    asyncpg.UniqueViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)


class Writer:
    """Commits batches over one connection, which it opens again when it is gone.

    Args:
        channel: which hears of every commit.
    """

    def __init__(self, url: str, channel: str) -> None:
        self.channel = channel
        self._url = url
        self._connection: Any = None
        self._closed = False

    async def start(self) -> None:
        """Connects. Raises one of ERRORS."""
        self._connection = await connect(self._url, postgres_commit.COMMIT_SETTINGS)

    def is_own(self, pid: int) -> bool:
        """Tells whether a server process is this connection's."""
        return self._connection is not None and self._connection.get_server_pid() == pid

    async def commit(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Makes a batch durable. Raises StoreUnavailable."""
        statement = postgres_commit.statement(postgres_commit.shape(batch))
        values = postgres_commit.values(batch, self.channel)
        deadline = None  # until when a server that went away is waited for
        collided = 0
        while True:
            try:
                if self._connection is None:
                    await self.start()
                found = postgres_commit.outcomes(batch, await self._execute(statement, values))
                return found if deadline is None else await self._settle(batch, found)
            except COLLISIONS as error:
                collided += 1
                if collided == TRIES:
                    raise unavailable(error) from error
            except GONE as error:
                self._drop()
                now = time.monotonic()
                deadline = deadline or now + BACK_S
                if self._closed or now > deadline:
                    raise unavailable(error) from error
                log.warning("the connection to PostgreSQL is gone (%s); connecting again", type(error).__name__)
                await asyncio.sleep(PAUSE_S)
            except ERRORS as error:
                raise unavailable(error) from error

    async def close(self) -> None:
        """Lets go of the connection; commits are refused from here on."""
        self._closed = True
        if self._connection is not None:
            try:
                await self._connection.close(timeout=COMMIT_S)
            except ERRORS:  # it is gone, which is what was wanted
                self._drop()

    async def _execute(self, statement: str, values: Sequence[Any]) -> Sequence[Any]:
        if self._closed:
            raise StoreUnavailable("ClosedError: the store is closed")
        async with asyncio.timeout(COMMIT_S):
            rows: Sequence[Any] = await self._connection.fetch(statement, *values)  # prepared once
        return rows

    async def _settle(self, batch: Sequence[Append], found: list[Outcome]) -> Sequence[Outcome]:
        """Finds the appends that an earlier try kept before its connection broke: this try could only be refused."""
        for place, append in enumerate(batch):
            if not isinstance(found[place], Appended):
                values = (*append.key, append.version, append.version + len(append.events))
                async with asyncio.timeout(COMMIT_S):
                    rows = await self._connection.fetch(WRITTEN, *values)
                if [row[0] for row in rows] == [event.SerializeToString() for event in append.events]:
                    found[place] = Appended(rows[-1][1], values[-1])
        return found

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
