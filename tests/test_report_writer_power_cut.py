"""What the ReportWriter has answered for is on the disk: nothing of it is lost at a power cut.

The disk is one that forgets: of a file it keeps what it held, and of a folder the names in it, when it was last synced.
"""

import asyncio
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from conductor.v1 import report_writer_pb2

from services.report_writer.files import PARTS, Folder
from services.report_writer.service import ReportWriter
from tests.report_writers import a_request

Left: TypeAlias = "Mapping[str, bytes | Left]"
MIB = 1024 * 1024
NOBODY: Any = None  # the caller, of whom nothing is asked


class Disk:
    """What a power cut would leave of a folder, by inode."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}

    def sync(self, descriptor: int) -> None:
        """Stands for os.fsync."""
        here = Path(f"/proc/self/fd/{descriptor}")
        inode = os.fstat(descriptor).st_ino
        if here.is_dir():
            with os.scandir(descriptor) as entries:
                self._folders[inode] = {entry.name: entry.inode() for entry in entries}
        else:
            self._files[inode] = here.read_bytes()

    def forget_names(self) -> None:
        """Is as after the death of a writer that had named its file, and not synced the folder yet."""
        self._folders.clear()

    def left(self) -> Left:
        return self._left(self._root.stat().st_ino)

    def _left(self, folder: int) -> Left:
        names = {name: inode for name, inode in self._folders.get(folder, {}).items() if name != PARTS}
        return {
            name: self._left(inode) if inode in self._folders else self._files.get(inode, b"")
            for name, inode in names.items()
        }


def seen(folder: Path) -> Left:
    """What stands in a folder now."""
    found = [path for path in folder.iterdir() if path.name != PARTS]
    return {path.name: seen(path) if path.is_dir() else path.read_bytes() for path in found}


def artifact(offset: int, data: bytes, whole: bytes = b"") -> report_writer_pb2.WriteArtifactRequest:
    sha256 = hashlib.sha256(whole).hexdigest() if whole else ""
    return report_writer_pb2.WriteArtifactRequest(
        task_id="t-2", name="model.joblib", offset=offset, data=data, sha256=sha256
    )


@pytest.mark.parametrize("died", [False, True])
def test_what_was_answered_for_is_left_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: bool
) -> None:
    root = tmp_path / "reports"
    writer, disk = ReportWriter(Folder.open(root), MIB), Disk(root)
    monkeypatch.setattr(os, "fsync", disk.sync)
    report = a_request("t-1")
    report.research_id = "r-1"
    first, second = b"1" * 100_000, b"2" * 100_000

    async def write() -> None:
        await writer.WriteReport(report, NOBODY)
        await writer.WriteArtifact(artifact(0, second, second), NOBODY)

    async def write_in_pieces() -> None:
        await writer.WriteArtifact(artifact(0, first), NOBODY)
        await writer.WriteArtifact(artifact(len(first), second, first + second), NOBODY)

    for told, names in ((write, {"t-1.md", "t-1", "t-2"}), (write_in_pieces, {"t-2"})):
        asyncio.run(told())
        if died:  # a repeat is answered for too
            disk.forget_names()
            asyncio.run(told())
        assert disk.left() == seen(root) and seen(root).keys() == names
        for path in sorted(root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
