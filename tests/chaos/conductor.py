"""Runs a Conductor that a chaos run has in hand: `python -m tests.chaos.conductor CLOCK [STORE]`.

CLOCK is a file that moves its wall clock: it holds the offset in nanoseconds as eight bytes and is mapped into memory,
so the clock jumps the moment it is written. What is moved is time.time_ns, by which Conductor tells the time. Not
time.time: gRPC adds a call's timeout to it and compares with the clock of its own C core, which would not have moved.
The monotonic clock never jumps, as on a real machine.

STORE is the host:port through which it reaches PostgreSQL, a wire that can be cut.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

FORMAT = "<q"


def set_offset(file: Path, seconds: float) -> None:
    """Moves the clock of whoever runs with the file."""
    with file.open("r+b" if file.exists() else "w+b") as handle:
        handle.write(struct.pack(FORMAT, int(seconds * 1e9)))


def move_by(file: Path) -> None:
    """Makes this process's wall clock follow the file."""
    with file.open("rb") as handle:
        offset = mmap.mmap(handle.fileno(), struct.calcsize(FORMAT), access=mmap.ACCESS_READ)
    real = time.time_ns

    def time_ns() -> int:
        moved: int = struct.unpack_from(FORMAT, offset)[0]
        return real() + moved

    time.time_ns = time_ns


def reach_by(address: str) -> None:
    """Makes this process find its store at another host:port."""
    url = urlsplit(os.environ["CONDUCTOR_STORE"])
    login, _, _ = url.netloc.rpartition("@")
    os.environ["CONDUCTOR_STORE"] = url._replace(netloc=f"{login}@{address}").geturl()


if __name__ == "__main__":
    move_by(Path(sys.argv[1]))
    for store in sys.argv[2:]:
        reach_by(store)
    from services.conductor.__main__ import main  # after the clock was changed

    main()
