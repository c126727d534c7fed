"""Stores that a test administers: where they may be, what is in them, and the command itself."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from services.conductor import admin
from services.conductor.store.base import Appended, Store
from services.conductor.store.engine import open_store
from tests import databases
from tests.conftest import every_event, until
from tests.lives import RUNS, SECOND, life, live

ROOT = Path(__file__).parent.parent
NOW = 1_750_000_000 * SECOND  # longer ago than any --older-than below
SQLITE, POSTGRES = "sqlite", "postgres"


@pytest.fixture(params=[SQLITE, POSTGRES])
async def where(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Where a store may be made: a path, or the URL of an empty schema."""
    return tmp_path / "log.db" if request.param == SQLITE else await databases.fresh()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs one command on a store; returns exit code and what was written. What is refused is one sentence."""

    async def command(where: Any, *arguments: Any) -> tuple[int, str]:
        capfd.readouterr()
        code = await asyncio.to_thread(admin.main, ["--store", str(where), *map(str, arguments)])
        out, err = capfd.readouterr()
        assert (err != "") == (code == 2) and "Traceback" not in err
        if code == 2:
            assert err.startswith("conductor admin") and err.count("\n") == 1 and err.endswith(".\n"), err
        return code, err or out

    return command


async def execute(where: Any, sql: str) -> None:
    """Changes a store behind everybody's back."""
    if isinstance(where, Path):
        with contextlib.closing(apsw.Connection(str(where))) as database:
            database.execute(sql)
    else:
        await databases.ask(where, sql)


async def value(where: Any, sql: str) -> Any:
    if isinstance(where, Path):
        with contextlib.closing(apsw.Connection(str(where))) as database:
            return database.execute(sql).fetchall()[0][0]
    return await databases.ask(where, sql)


@contextlib.asynccontextmanager
async def opened(where: Any) -> AsyncIterator[Store]:
    store = await open_store(where)
    yield store
    await store.close()


async def fill(where: Any, count: int = 8) -> None:
    """Makes a store of ended tasks of all kinds, a running one, and a project."""
    lives = [life(f"t-{i}", run, ends=NOW + i) for i, run in zip(range(count), itertools.cycle(RUNS), strict=False)]
    async with opened(where) as store:
        await live(store, *lives, life("running", ends=NOW, left=2, project="p"), life("p", "project", ends=NOW))


async def events_of(where: Any) -> list[Any]:
    async with opened(where) as store:
        return await every_event(store)


@contextlib.asynccontextmanager
async def busy(store: Store, first: int = 1) -> AsyncIterator[list[Appended]]:
    """Appends whole lives as fast as it goes, meanwhile. Gives what was acknowledged."""
    acknowledged: list[Appended] = []

    async def write(writer: int) -> None:
        for number in itertools.count():
            for append in life(f"busy-{writer}-{number}", RUNS[number % 6], ends=NOW):
                outcome = await store.append(append)
                assert isinstance(outcome, Appended)
                acknowledged.append(outcome)

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    await until(lambda: len(acknowledged) >= first)
    yield acknowledged
    count = len(acknowledged)
    await until(lambda: len(acknowledged) > count)  # nobody was stopped
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)
