"""What the service hands to the spawner, as plain values that `marshal` carries: paths and arguments are bytes."""

from __future__ import annotations

from typing import TypedDict

# Descriptors travel beside the job, in this order; in the process that receives them they are named as here, with _fd.
ASK, REFUSED = b"?", b"!"  # the service finds no offer; the spawner can make none, an errno follows
FDS = ("control", "status", "stdin", "stdout", "stderr", "workspace")
STREAMS = FDS[2:5]


class Setting(TypedDict):
    """What all commands of one spawner have in common."""

    tier: str  # strong, standard or none
    separate_uid: bool  # each command has a user of its own
    minimum_abi: int  # of Landlock
    paths: list[tuple[str, int]]  # what may be used beyond the workspace, with Landlock rights
    data: list[str]  # of the paths, those of folders in which nothing may run
    workspace_execute: bool  # whether programs in the workspace may run


class Task(TypedDict):
    """One command, or the sandbox's self-test when `argv` is empty, as the service sends it."""

    argv: list[bytes]
    executable: bytes  # what is executed; argv[0] is what it is told of its name
    identity: tuple[int, ...]  # device, inode, size and time of change (ns) of the executable that was decided on
    env: dict[bytes, bytes]
    home: bytes  # path of the workspace
    inputs: bytes  # path of the folder of inputs
    loopback: bool  # a loopback of its own instead of no sockets at all; strong only
    wall_s: float
    cpu_s: int
    memory_bytes: int
    processes: int
    open_files: int
    file_size_bytes: int
    workspace_bytes: int
    workspace_entries: int


class Job(Setting, Task):
    """All there is to know of a command, where it is supervised."""

    uid: int  # 0: the command runs as the service's own user
    control_fd: int  # its end of file, by cancel or by the death of the service, ends the command
    status_fd: int  # what the supervisor has to say
    stdin_fd: int
    stdout_fd: int
    stderr_fd: int
    workspace_fd: int
