"""Folders to make workspaces in, and what tells their state."""

import os
from pathlib import Path

import pytest

from services.terminal import workspace
from tests.hostile import canary, place, root

__all__ = ["canary", "place", "root"]


A, B = 60_706, 60_707  # users
KEPT = workspace.kept_name("project-1")
DEEP = 2_000


def owners(path: Path) -> set[int]:
    """Returns the users to whom a folder and all below it belong; links are not followed."""
    found = {path.lstat().st_uid}
    for folder, names, files in os.walk(path):
        found |= {Path(folder, name).lstat().st_uid for name in (*names, *files)}
    return found


@pytest.fixture
def top(place: Path) -> Path:
    return place / "workspaces"
