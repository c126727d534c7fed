"""One writer of an index at a time, over all processes and replicas (flock(2)); readers never wait."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.researcher.watch import POLL_S, Watch


@contextmanager
def alone(path: Path, watch: Watch) -> Iterator[None]:
    """Holds the lock file; the kernel lets go of it when its holder dies. Raises OutOfTime, Cancelled, OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _taken(descriptor):
            watch.check()
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
