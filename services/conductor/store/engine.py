"""Which engine keeps the log: PostgreSQL for a URL, SQLite for a path."""

from pathlib import Path

from services.conductor.store import postgres_session
from services.conductor.store.base import Store
from services.conductor.store.postgres import PostgresStore
from services.conductor.store.sqlite import SqliteStore


async def open_store(where: str | Path) -> Store:
    """Opens the log. Raises ConfigError when it cannot be used, in one sentence that says what to do."""
    return SqliteStore(where) if isinstance(where, Path) else await PostgresStore.open(where)


def shown(where: str | Path) -> str:
    """Says where the log is, without a password."""
    return str(where) if isinstance(where, Path) else postgres_session.shown(where)
