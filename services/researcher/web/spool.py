"""Bytes of pages, kept for as long as a view of them is open: in a file without a name, so that memory stays free."""

import os
import tempfile
import threading
from pathlib import Path
from typing import IO


class Spool:
    """Takes bytes and gives them back. Thread-safe. Its space is freed when it is closed, or the process ends."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._end = 0
        self._lock = threading.Lock()

    def put(self, data: bytes) -> tuple[int, int]:
        """Keeps bytes and returns where they are. Raises OSError when the disk is full."""
        with self._lock:
            start, rest = self._end, memoryview(data)
            while rest:
                rest = rest[os.pwrite(self._file.fileno(), rest, start + len(data) - len(rest)) :]
            self._end += len(data)
        return start, len(data)

    def get(self, place: tuple[int, int]) -> bytes:
        """Returns the bytes of a place."""
        start, size = place
        with self._lock:
            return os.pread(self._file.fileno(), size, start)

    def close(self) -> None:
        """Lets go of all of it; whoever comes later gets ValueError."""
        with self._lock:
            self._file.close()
