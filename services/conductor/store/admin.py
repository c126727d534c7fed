"""What an operator does to a store, behind one interface for both engines.

Statements are the same on both: parameters are written `$1`, `$2`, … in the order of their first use.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from services.conductor.store.base import Store


class AdminError(Exception):
    """It cannot be done. The message is one sentence and says what to do."""


class InUse(AdminError):
    """A Conductor has the store to itself."""


class Reader(Protocol):
    """One snapshot of a store, whatever others write meanwhile."""

    def rows(self, sql: str, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Yields rows as they are read; few of them are in memory at once."""


class Administration(Protocol):
    """One store, seen by its operator. Every method raises AdminError, or ConfigError when it cannot be reached.

    Attributes:
        name: where it is, without a password.
        known: the newest schema this release knows.
    """

    name: str
    known: int

    async def schema(self) -> int:
        """Returns the version of the store's schema; 0 when there is none yet."""

    def reader(self) -> AbstractAsyncContextManager[Reader]:
        """Opens a snapshot. A running Conductor is not disturbed; it cannot reuse space meanwhile."""

    def damage(self, reader: Reader) -> AsyncIterator[str]:
        """Yields what the engine itself finds wrong with its files."""

    async def open(self) -> Store:
        """Opens the store for writing and brings its schema up to date. Raises InUse on SQLite."""

    async def backup(self, file: Path, force: bool) -> None:
        """Writes all there is at one moment into a file: whole or not at all. `force`: also over another file."""

    async def restore(self, file: Path, force: bool) -> None:
        """Makes the store what a backup holds, under a new store_id. `force`: also over another store."""
