"""Readers of tables, and tables to read."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.researcher.documents import SourceKind, Text, Unreadable
from services.researcher.folder import FolderSource, Root
from services.researcher.tables.formats import Tables
from services.researcher.watch import Watch

MIB = 1 << 20


@pytest.fixture(scope="module")
def tables() -> Iterator[Tables]:
    formats = Tables()
    yield formats
    formats.close()


@contextmanager
def source(root: Path, home: Path, tables: Tables) -> Iterator[FolderSource]:
    made = FolderSource(
        "data", Root("data", root), home=home, parsers=tables._parsers, max_file_bytes=16 * MIB, rescan=3600.0,
        kind=SourceKind.SOURCE_KIND_TABLES, formats=tables,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


def texts(tables: Tables, path: str, data: bytes) -> tuple[dict[str, Text], dict[str, Unreadable]]:
    """Returns what a file holds: texts and troubles by member."""
    read, troubles = {}, {}
    for member, each in tables.documents(path, data, Watch(60)):
        if isinstance(each, Text):
            read[member] = each
        else:
            troubles[member] = each
    return read, troubles


def only(tables: Tables, path: str, data: bytes) -> str:
    read, troubles = texts(tables, path, data)
    assert not troubles, [str(each) for each in troubles.values()]
    return read[""].text


def lines(text: str, heading: str) -> list[str]:
    return text.partition(f"\n{heading}\n\n")[2].partition("\n\n")[0].splitlines()


def database(script: str, *, wal: Path | None = None) -> bytes:
    made = sqlite3.connect(wal or ":memory:")
    if wal:
        made.execute("pragma journal_mode=wal")
    made.executescript(script)
    made.commit()
    if wal:
        made.close()
        return wal.read_bytes()
    return made.serialize()
