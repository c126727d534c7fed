"""What may run, where and how far: the sandbox's policy, a command's bounds, and what is told of both."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from services.common import landlock

# Programs and their libraries. Folders that do not exist are left out.
PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
# Read by the loader and by common programs when they start, and public on every machine; what is not here, such as
# passwd, resolv.conf and all of /proc, is not needed to work on one's own files.
CONFIGURATION = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/gitconfig", "/etc/ssl/openssl.cnf")
CONFIGURATION_OF_PYTHON = "python3*"  # below /etc; Debian's interpreter reads sitecustomize.py there
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

STAT_IS_OPEN = "Whether a file exists outside of the workspace, and its size, mode and times, can be seen with stat."
POLLED = (
    "Memory, CPU time and processes are measured every 50 ms, the workspace every 200 ms or more slowly when it is "
    "large: a command can pass these limits for that long."
)
DELETED_FILES = "Disk space of deleted files is not counted when a thread holds them apart from its process."
KERNEL_MEMORY = "Memory that the kernel holds for a command, in pipes and socket pairs, is not counted."
OWN_FILES = (
    "Commands run as the service's own user: they can change mode, owner and times of that user's files anywhere."
)
OWN_USER = "The kernel does not bound the number of processes: commands run as the service's own user."
SCRATCH = "What a command puts into /tmp and /dev/shm, at most 16 MiB each, is memory that its limit does not count."
NO_LANDLOCK = "The kernel has no Landlock: files are kept from the command by its own file system view alone."
NOTHING_HOLDS = (
    "The operator has turned the sandbox off: commands reach the files, processes and network of their user, and what "
    "they start may outlive them."
)
LISTED = "The operator's list of programs holds for the program a command names, not for what that starts."

TIERS = ("strong", "standard", "none")


@dataclass(frozen=True, slots=True)
class Policy:
    """A tier's demands. What cannot be met refuses every command."""

    tier: str  # one of TIERS
    separate_uid: bool  # another user for each command; only root can
    minimum_abi: int  # of Landlock
    paths: tuple[tuple[str, int], ...]  # what may be used beyond the workspace, with Landlock rights
    listed: bool = False  # the operator says which programs may run, and Landlock holds descendants to it
    data: tuple[str, ...] = ()  # of the paths, those of folders in which nothing may run

    def not_enforced(self, landlock_abi: int) -> tuple[str, ...]:
        """Returns what this policy leaves open on this kernel, one sentence each."""
        # Since Linux 5.14 the processes of a user namespace are counted by themselves.
        always: tuple[str, ...] = () if self.separate_uid or self.tier == "strong" else (OWN_USER,)
        always += (LISTED,) if self.listed and (self.tier == "none" or not landlock_abi) else ()
        if self.tier == "none":
            return (NOTHING_HOLDS, POLLED, KERNEL_MEMORY, DELETED_FILES, *always)
        if self.tier == "standard":
            return (
                STAT_IS_OPEN,
                POLLED,
                KERNEL_MEMORY,
                *(() if self.separate_uid else (OWN_FILES,)),
                *always,
            )
        return (POLLED, KERNEL_MEMORY, SCRATCH, *(() if landlock_abi else (NO_LANDLOCK,)), *always)


@dataclass(frozen=True, slots=True)
class Folders:
    """What the operator adds to what commands may read: folders of programs, which may be run too, and of data."""

    programs: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


def of_tier(tier: str, executables: tuple[str, ...] | None, folders: Folders = Folders()) -> Policy:
    """Returns the policy of a tier for the user this process runs as.

    Args:
        executables: what may be executed, if not all of PROGRAMS and the operator's folders of programs.

    In the standard tier everything rests on Landlock: below ABI 3 files outside can be truncated; below 6 a command can
    signal processes of its own user, the service among them. In the strong tier it is a second wall.
    """
    separate = os.geteuid() == 0
    minimum = (3 if separate else 6) if tier == "standard" else 0
    data = tuple(
        each for each in folders.data if not any(f"{path}/".startswith(f"{each}/") for path in folders.programs)
    )
    return Policy(
        tier, separate, minimum, tuple(_paths(executables, folders)), listed=executables is not None, data=data
    )


def allowed(
    setting: str,
    executables: tuple[str, ...] | None,
    folders: Folders = Folders(),
) -> tuple[Policy, ...]:
    """Returns the tiers that the operator's setting TERMINAL_TIER allows, best first."""
    tiers = {"best": ("strong", "standard"), "none-i-understand": ("none",)}
    return tuple(of_tier(tier, executables, folders) for tier in tiers.get(setting, (setting,)))


def _paths(executables: tuple[str, ...] | None, folders: Folders) -> Iterator[tuple[str, int]]:
    for path in folders.data:
        yield path, landlock.READ
    for path in (*PROGRAMS, *folders.programs):
        yield path, landlock.READ_EXECUTE if executables is None else landlock.READ
    for path in executables or ():
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
    open_files: int
    workspace_bytes: int
    workspace_entries: int

    def within(self, ceilings: Mapping[str, float]) -> "Bounds":
        """Returns these bounds, lowered to some ceilings."""
        lower = {name: value for name, value in ceilings.items() if value < getattr(self, name)}
        return replace(self, **lower) if lower else self  # type: ignore[arg-type] # names and types are the same


@dataclass(frozen=True, slots=True)
class Order:
    """One command to run."""

    argv: tuple[str, ...]
    script: bool  # the caller gave a script, and argv is the shell's
    stdin: bytes
    env: dict[str, str]
    bounds: Bounds
    loopback: bool = False
    workspace: str = ""  # "": one of its own
    inputs: tuple[tuple[str, bytes], ...] = ()
    outputs: tuple[str, ...] = ()  # patterns of the files to list


@dataclass(frozen=True, slots=True)
class Isolation:
    """What holds a command, and what does not."""

    tier: str
    landlock_abi: int
    separate_uid: bool
    layers: tuple[str, ...]
    not_enforced: tuple[str, ...]
