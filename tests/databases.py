"""One PostgreSQL server for all tests of a session, and a fresh schema on it for each test that asks."""

import atexit
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import asyncpg

from ops.postgres import Postgres

_numbers = itertools.count()
_started: list[Postgres] = []


async def server() -> Postgres:
    """Returns the server, started by whoever asks first. It ends with this process."""
    if not _started:
        folder = Path(tempfile.mkdtemp(prefix="conductor-postgres-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        found = Postgres(folder, settings={"max_connections": "200", "shared_buffers": "64MB"})
        await found.start()
        atexit.register(os.kill, found.pid, 3)  # SIGQUIT: before the folder goes
        _started.append(found)
    return _started[0]


async def fresh(on: Postgres | None = None) -> str:
    """Returns the URL of a new, empty schema."""
    url, name = (on or await server()).url, f"test_{os.getpid()}_{next(_numbers)}"
    database = await asyncpg.connect(url)
    await database.execute(f"CREATE SCHEMA {name}")
    await database.close()
    return f"{url}?search_path={name}"


async def ask(url: str, query: str, *values: Any) -> Any:
    """Returns the first value that a query gives."""
    database = await asyncpg.connect(url)
    try:
        return await database.fetchval(query, *values)
    finally:
        await database.close()
