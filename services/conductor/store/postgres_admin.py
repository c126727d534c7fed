"""Administration of a log on PostgreSQL, beside running Conductors. PostgreSQL's own programs make and read backups."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.conductor.store import migrations
from services.conductor.store.admin import AdminError, Reader
from services.conductor.store.base import Store
from services.conductor.store.postgres import PostgresStore
from services.conductor.store.postgres_programs import run
from services.conductor.store.postgres_session import ERRORS, connect_at_start, shown
from services.conductor.store.whole import refuse_existing, written

PREFETCH = 1000  # rows fetched at once

# What the server knows of broken pages and half-made indices of this database.
DAMAGE = """
SELECT 'pages whose checksum was wrong: ' || checksum_failures FROM pg_stat_database
  WHERE datname = current_database() AND checksum_failures > 0
UNION ALL
SELECT 'index ' || i.indexrelid::regclass || ' is not valid: REINDEX it' FROM pg_index i
  JOIN pg_class c ON c.oid = i.indrelid
  WHERE NOT i.indisvalid AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
"""
WITHIN = """SELECT '"' || replace(current_schema(), '"', '""') || '"'"""
RELATIONS = """
SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = current_schema()
"""


class PostgresReader(Reader):
    """Reads through cursors of one transaction."""

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._name = name

    async def rows(self, sql: str, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        try:
            async for row in self._connection.cursor(sql, *values, prefetch=PREFETCH):
                yield tuple(row)
        except ERRORS as error:
            raise _unreadable(self._name, error) from error


class PostgresAdministration:
    """The Administration of one PostgreSQL database, or of the schema that the URL names by `?search_path=`."""

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        self.known = len(migrations.files("postgres"))
        self._url = url

    async def schema(self) -> int:
        async with self._connected() as connection:
            if await connection.fetchval("SELECT to_regclass('meta')") is None:
                return 0
            version, oldest = await connection.fetchrow("SELECT schema_version, oldest FROM meta")
            migrations.pending("postgres", version, oldest)
            return int(version)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        connection = await connect_at_start(self._url)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                yield PostgresReader(connection, self.name)
        finally:
            await connection.close()

    async def damage(self, reader: Reader) -> AsyncIterator[str]:
        async for (finding,) in reader.rows(DAMAGE):
            yield finding

    async def open(self) -> Store:
        return await PostgresStore.open(self._url)

    async def backup(self, file: Path, force: bool) -> None:
        refuse_existing(file, force)
        if not await self.schema():
            raise AdminError(f"There is no store at {self.name}: name it with --store or CONDUCTOR_STORE.")
        async with self._connected() as connection:
            server, within = connection.get_server_version().major, await connection.fetchval(WITHIN)
        tables = ["--table", f"{within}.*", "--exclude-table-data", f"{within}.replicas"]
        with written(file) as part:
            await run("pg_dump", server, ["--format=custom", "--file", str(part), *tables], self._url)
            await run("pg_restore", server, ["--list", "--file", "/dev/null", str(part)])  # it can be read again

    async def restore(self, file: Path, force: bool) -> None:
        async with self._connected() as connection:
            if await connection.fetchval(RELATIONS):
                raise AdminError(f"{self.name} is not empty: create a database and name it with --store.")
            whole = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
            await run("pg_restore", connection.get_server_version().major, [*whole, str(file)], self._url)
            await connection.execute("UPDATE meta SET store_id = gen_random_uuid()::text")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        connection = await connect_at_start(self._url)
        try:
            yield connection
        except ERRORS as error:
            raise _unreadable(self.name, error) from error
        finally:
            await connection.close()


def _unreadable(name: str, error: Exception) -> AdminError:
    first = str(error).partition("\n")[0]  # details follow on lines of their own
    return AdminError(f"{name} cannot be used ({type(error).__name__}: {first}).")
