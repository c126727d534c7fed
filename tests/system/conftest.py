"""Whole running systems: five real processes on free ports. One for a test alone, and one that many share."""

import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ops.stack import Stack

DOCUMENTS = {
    "log.md": "# The log\n\nThe log promises that every event is durable before it is acknowledged.\n",
    "water.md": "# Water\n\nAt sea level water boils at 100 degrees Celsius.\n",
}


def write_documents(folder: Path) -> Path:
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "documents")


@pytest.fixture
async def stack(tmp_path: Path, documents: Path) -> AsyncIterator[Stack]:
    async with Stack(tmp_path / "run", environ={"RESEARCHER_ROOTS": str(documents)}) as stack:
        yield stack


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("standing")
    documents = write_documents(folder / "documents")
    async with Stack(folder / "run", environ={"RESEARCHER_ROOTS": str(documents)}) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def shared(standing: Stack) -> AsyncIterator[Stack]:
    """A system that others use before and after: what a test kills is started again, what it wrote stays."""
    yield standing
    for name in standing.names:
        if not standing.running(name):
            await standing.start_one(name)


@dataclass(frozen=True)
class Answer:
    """What curl got."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def curl(*arguments: str, seconds: float = 60) -> Answer:
    """Calls the real curl, as a user would."""
    command = ["curl", "-sS", "-i", "--max-time", str(seconds), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=seconds + 10, check=False)
    head, _, body = done.stdout.decode(errors="replace").partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(status.split()[1]) if status else 0, headers, body)
