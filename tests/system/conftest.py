"""A whole running system for each module: five real processes on free ports, sharing nothing with others."""

import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ops.stack import Stack

DOCUMENTS = {
    "log.md": "# The log\n\nThe log promises that every event is durable before it is acknowledged.\n",
    "water.md": "# Water\n\nAt sea level water boils at 100 degrees Celsius.\n",
}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
async def stack(tmp_path: Path, documents: Path) -> AsyncIterator[Stack]:
    async with Stack(tmp_path / "run", environ={"RESEARCHER_ROOTS": str(documents)}) as stack:
        yield stack


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
