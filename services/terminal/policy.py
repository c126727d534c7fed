"""What may run, where and how far: the sandbox's policy, a command's bounds, and what is told of both."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.terminal import landlock

# Users nobody else hands out: https://systemd.io/UIDS-GIDS has 60706 to 61183 as unused, and they exist in a container
# whose user namespace maps 65536 users.
UIDS = range(60_706, 61_184)

# Programs and their libraries. Folders that do not exist are left out.
PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
# Read by the loader and by common programs when they start, and public on every machine; what is not here, such as
# passwd, resolv.conf and all of /proc, is not needed to work on one's own files.
CONFIGURATION = ("/etc/ld.so.cache", "/etc/localtime", "/etc/gitconfig", "/etc/ssl/openssl.cnf")
CONFIGURATION_OF_PYTHON = "python3*"  # below /etc; Debian's interpreter reads sitecustomize.py there
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

STAT_IS_OPEN = "Whether a file exists outside of the workspace, and its size, mode and times, can be seen with stat."
POLLED = (
    "Memory, CPU time and processes are measured every 50 ms, the workspace every 200 ms or more slowly when it is "
    "large: a command can pass these limits for that long."
)
DELETED_FILES = "Disk space of deleted files that a command keeps open is not counted when it hides its descriptors."
OWN_FILES = (
    "Commands run as the service's own user: they can change mode, owner and times of that user's files anywhere, "
    "and the kernel does not bound the number of processes."
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The standard tier's demands. What cannot be met refuses every command."""

    separate_uid: bool  # another user for each command; only root can
    minimum_abi: int  # of Landlock
    paths: tuple[tuple[str, int], ...]  # what may be used beyond the workspace, with Landlock rights

    def not_enforced(self) -> tuple[str, ...]:
        """Returns what this policy leaves open, one sentence each."""
        return (STAT_IS_OPEN, POLLED, DELETED_FILES, *(() if self.separate_uid else (OWN_FILES,)))


def standard() -> Policy:
    """Returns the policy for the user this process runs as.

    Below Landlock ABI 3 files outside can be truncated; below 6 a command can signal processes of its own user, the
    service among them.
    """
    separate = os.geteuid() == 0
    return Policy(separate_uid=separate, minimum_abi=3 if separate else 6, paths=tuple(_paths()))


def _paths() -> Iterator[tuple[str, int]]:
    for path in PROGRAMS:
        yield path, landlock.READ_EXECUTE
    for path in (*CONFIGURATION, *map(str, Path("/etc").glob(CONFIGURATION_OF_PYTHON))):
        yield path, landlock.READ
    for path in DEVICES:
        yield path, landlock.DEVICE


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one command. Times are seconds."""

    wall_time: float
    cpu_time: float  # of any one process; held in whole seconds, rounded up
    memory_bytes: int  # of the tree
    processes: int
    file_size_bytes: int
    output_bytes: int  # kept, per stream


@dataclass(frozen=True, slots=True)
class Order:
    """One command to run."""

    argv: tuple[str, ...]
    stdin: bytes
    env: dict[str, str]
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Isolation:
    """What holds a command, and what does not."""

    landlock_abi: int
    separate_uid: bool
    layers: tuple[str, ...]
    not_enforced: tuple[str, ...]
