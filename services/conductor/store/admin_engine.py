"""Which engine's administration looks after the log: PostgreSQL's for a URL, SQLite's for a path."""

from pathlib import Path

from services.conductor.store.admin import Administration
from services.conductor.store.postgres_admin import PostgresAdministration
from services.conductor.store.sqlite_admin import SqliteAdministration


def administration(where: str | Path) -> Administration:
    """Returns the administration of a store. Nothing is opened yet."""
    return SqliteAdministration(where) if isinstance(where, Path) else PostgresAdministration(where)
