"""What the service hands to the launcher, as plain values that `marshal` carries: paths and arguments are bytes."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would double the launcher's start
if TYPE_CHECKING:
    from typing import TypedDict

    class Job(TypedDict):
        """One command, or the sandbox's self-test when `argv` is empty. Names ending in _fd are inherited."""

        argv: list[bytes]
        env: dict[bytes, bytes]
        home: bytes  # path of the workspace
        workspace_fd: int
        stdin_fd: int
        stdout_fd: int
        stderr_fd: int
        status_fd: int
        uid: int  # 0: the command runs as the service's own user
        uid_fd: int  # the lease on the uid, held until the tree is gone; -1 without one
        minimum_abi: int  # of Landlock
        paths: list[tuple[str, int]]  # what may be used beyond the workspace, with Landlock rights
        wall_s: float
        cpu_s: int
        memory_bytes: int
        processes: int
        file_size_bytes: int
        workspace_bytes: int
        workspace_entries: int
else:
    Job = dict
