"""Connections to PostgreSQL: how they are opened, what a server must be, and what its errors mean."""

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from services.common.config import ConfigError
from services.conductor.store import migrations
from services.conductor.store.base import StoreUnavailable

OLDEST_SERVER = 140000  # PostgreSQL 14: what the statements are written for and tested on
START_S = 10.0  # how long a server may stay away when the Conductor starts
CONNECT_S = 5.0
PAUSE_S = 0.1  # between attempts to connect
SETTINGS = {"application_name": "conductor", "synchronous_commit": "on"}
MIGRATING = 0x636F6E64  # the advisory lock under which schema files are applied: "cond"

# All that asyncpg raises, and the network below it; TimeoutError is an OSError. InternalClientError: what it says of a
# connection whose server has just said goodbye.
ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
# The connection is gone, or its server going: whether the statement under way was kept is not known.
GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
_STARTING = (
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
    asyncpg.TooManyConnectionsError,
    OSError,
)
_REFUSED = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)


def shown(url: str) -> str:
    """Returns the URL without its password and parameters, for people to read."""
    parts = urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{parts.netloc.rpartition('@')[2]}{parts.path}"


def unavailable(error: Exception) -> StoreUnavailable:
    """Returns an engine's error as the store's."""
    return StoreUnavailable(f"{type(error).__name__}: {error}")


async def connect(url: str, settings: Mapping[str, str] | None = None) -> Any:
    """Opens a connection whose commits are durable. Raises one of ERRORS."""
    return await asyncpg.connect(
        url,
        timeout=CONNECT_S,
        server_settings={**SETTINGS, **(settings or {})},
        max_cached_statement_lifetime=0,  # statements are few and stay
    )


async def connect_at_start(url: str) -> Any:
    """Opens a connection, waiting a while for a server that is about to start.

    Raises:
        ConfigError: it cannot be reached, or refuses; one sentence says what to do.
    """
    deadline = time.monotonic() + START_S
    while True:
        try:
            return await connect(url)
        except _STARTING as error:
            if time.monotonic() > deadline:
                raise ConfigError(_unreachable(url, error)) from error
        except ValueError as error:  # what asyncpg says of a URL that it cannot read may hold the password
            raise ConfigError(
                "CONDUCTOR_STORE cannot be read: give postgresql://user:password@host:port/database."
            ) from error
        except ERRORS as error:
            raise ConfigError(refused(url, error)) from error
        await asyncio.sleep(PAUSE_S)


def _unreachable(url: str, error: BaseException) -> str:
    where = shown(url)
    if isinstance(error, socket.gaierror):
        return f"The host of {where} is not known: correct CONDUCTOR_STORE, or the machine's name service."
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return f"PostgreSQL at {where} has no connection left: raise its max_connections, or stop others."
    if isinstance(error, asyncpg.CannotConnectNowError):
        return f"PostgreSQL at {where} still starts or stops: wait until it serves."
    return f"PostgreSQL at {where} cannot be reached: start it, or correct CONDUCTOR_STORE."


def refused(url: str, error: Exception) -> str:
    """Says in one sentence why a server that can be reached does not serve, and what to do."""
    where = shown(url)
    if isinstance(error, _REFUSED):
        return f"PostgreSQL at {where} refuses the user or the password: correct CONDUCTOR_STORE."
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return f"PostgreSQL at {where} has no such database: create it, or correct CONDUCTOR_STORE."
    return f"PostgreSQL at {where} cannot be used ({type(error).__name__}: {error}): correct CONDUCTOR_STORE."


# What must hold of a server, with what to do when it does not. `{}` stands for what was found.
_DEMANDS = (
    (
        "SELECT current_setting('server_version_num')::int",
        lambda found: found >= OLDEST_SERVER,
        "is version {}, too old: upgrade it to PostgreSQL 14 or newer",
    ),
    (
        "SELECT current_setting('fsync')",
        lambda found: found == "on",
        "runs with fsync={}, so that a power cut loses what was acknowledged: set fsync=on",
    ),
    (
        "SELECT current_setting('full_page_writes')",
        lambda found: found == "on",
        "runs with full_page_writes={}, so that a power cut may break its files: set full_page_writes=on",
    ),
    (
        "SELECT current_setting('synchronous_commit')",
        lambda found: found == "on",
        "keeps synchronous_commit={}: allow sessions to set it on",
    ),
    (
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool",
        lambda found: not found,
        "only lets its data be read: name the primary server, or set default_transaction_read_only=off",
    ),
    (
        "SELECT current_setting('server_encoding')",
        lambda found: found == "UTF8",
        "has a database of encoding {}: create it with ENCODING 'UTF8' TEMPLATE template0",
    ),
    (
        "SELECT current_schema()",
        lambda found: found is not None,
        "has no schema to write to: create the one that search_path names",
    ),
)


async def check(connection: Any, url: str) -> None:
    """Raises ConfigError when the server cannot keep the store's promises."""
    for query, holds, otherwise in _DEMANDS:
        found = await connection.fetchval(query)
        if not holds(found):
            raise ConfigError(f"PostgreSQL at {shown(url)} {otherwise.format(found)}.")


async def migrate(connection: Any, url: str) -> None:
    """Applies the schema files that the database does not have yet, each in one transaction, one process at a time.

    Raises:
        ConfigError: the schema is for newer Conductors only, or the tables cannot be made.
    """
    try:
        while await _apply_next(connection):
            pass
    except asyncpg.PostgresError as error:
        raise ConfigError(
            f"The schema at {shown(url)} cannot be made or read ({error}): give it a schema of its own."
        ) from error


async def _apply_next(connection: Any) -> bool:
    """Applies the first file that is missing; tells whether there was one."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext(current_schema()))", MIGRATING)
        version, oldest = 0, 0
        if await connection.fetchval("SELECT to_regclass(quote_ident(current_schema()) || '.meta')"):
            version, oldest = await connection.fetchrow("SELECT schema_version, oldest FROM meta")
        missing = migrations.pending("postgres", version, oldest)
        if missing:
            number, file = missing[0]
            await connection.execute(file.read_text())
            await connection.execute("UPDATE meta SET schema_version = $1", number)
    return bool(missing)
