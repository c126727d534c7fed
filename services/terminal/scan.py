"""When a command's workspace is looked at, and whether what it holds passes a limit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from services.terminal import unlinked, usage
from services.terminal.job import Job

EVERY_S = 0.2
SHARE = 10  # a scan that takes long is repeated after this many times its length
RUSH = 2  # a scan comes early when this part of a limit may be gone
UNSEEN = 2  # scans in a row that could not see what the processes hold


class Scan:
    """Looks at a workspace from time to time.

    Args:
        job: its workspace and limits.
        processes: tells the ids of the command's processes.
    """

    def __init__(self, job: Job, processes: Callable[[], list[int]]) -> None:
        self._job = job
        self._processes = processes
        self._device = unlinked.Device(job["workspace_fd"])
        self._sockets = job["loopback"] or job["tier"] == "none"  # else the filter keeps descriptors from being sent
        self._next = self._soonest = 0.0
        self._free = (0, 0)  # inodes and bytes of the disk at the last scan
        self._unseen = 0

    def due(self) -> bool:
        """Whether it is time for a scan."""
        now = time.monotonic()
        return now >= self._next or (now >= self._soonest and self._rushes())

    def _rushes(self) -> bool:
        """Whether the disk fills so fast that a limit may be passed before the next scan; others may be the cause."""
        inodes, size = self._free
        now = os.fstatvfs(self._job["workspace_fd"])
        return (
            inodes - now.f_ffree > self._job["workspace_entries"] // RUSH
            or size - now.f_bfree * now.f_frsize > self._job["workspace_bytes"] // RUSH
        )

    def passed(self) -> str:
        """Scans. Returns the limit that is passed, FILE_SIZE or WORKSPACE, or ""."""
        begin = time.monotonic()
        job, folder = self._job, self._job["workspace_fd"]
        disk = os.fstatvfs(folder)
        self._free = disk.f_ffree, disk.f_bfree * disk.f_frsize
        found = usage.measure(folder, job["workspace_entries"])
        hidden, unknown = unlinked.look(self._processes, self._device, job["file_size_bytes"], self._sockets)
        self._unseen = self._unseen + 1 if unknown else 0
        now = time.monotonic()
        self._soonest = now + SHARE * (now - begin)
        self._next = max(self._soonest, now + EVERY_S)
        if found.largest_bytes > job["file_size_bytes"]:
            return "FILE_SIZE"
        passed = (
            found.used_bytes + hidden > job["workspace_bytes"],
            found.entries > job["workspace_entries"],
            found.unknown,
            self._unseen >= UNSEEN,
        )
        return "WORKSPACE" if any(passed) else ""
