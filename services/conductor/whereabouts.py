"""Where a replica's process lives, said in the name of its lease, so that its neighbours can tell when it is gone.

A lease that runs out takes seconds. A process of the same machine and the same process namespace can know at once.
"""

import os
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STARTED = 19  # place of the start time behind the name in /proc/<pid>/stat: field 22 of proc_pid_stat(5)
DEAD = frozenset("ZX")  # states of a process of which only the entry is left


def name_here(nonce: str) -> str:
    """Returns a name that nobody ever had, for a lease of this process."""
    return f"{_place()}/{os.getpid()}/{_started(os.getpid())}/{nonce}"


def is_gone(name: str) -> bool:
    """Tells whether the process of a name is known to have ended. False also when that cannot be told from here."""
    place, _, rest = name.partition("/")
    pid, _, rest = rest.partition("/")
    started = rest.partition("/")[0]
    if not place or place != _place() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)  # unlike /proc it cannot be hidden from us
    except ProcessLookupError:
        return True
    except OSError:
        return False
    now = _started(int(pid))
    return bool(now and started) and now != started


def _place() -> str:
    """Names this boot of this machine and this process namespace; "" where the system does not tell."""
    try:
        return f"{BOOT_ID.read_text().strip()}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Returns when a process started, or "dead" for what is left of one; "" when that cannot be told."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if values[0] in DEAD else values[STARTED]
