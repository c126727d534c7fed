"""A workspace whose outputs are listed and read."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.terminal import folders, outputs
from tests.hostile import canary, place

__all__ = ["canary", "place"]


@pytest.fixture
def work(place: Path) -> Iterator[int]:
    """An open, empty folder of a command; `place / "work"` is its path."""
    (place / "work").mkdir()
    descriptor = os.open(place / "work", folders.FOLDER)
    yield descriptor
    os.close(descriptor)


def leave(place: Path, *paths: str) -> None:
    for path in paths:
        (place / "work" / path).parent.mkdir(parents=True, exist_ok=True)
        (place / "work" / path).write_text(path)


def paths(work: int, *patterns: str) -> list[str]:
    files, left_out = outputs.listing(work, patterns)
    assert left_out == 0
    return [file.path for file in files]
