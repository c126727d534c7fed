"""Runs a command that dies with its parent: `tether.py PARENT_PID COMMAND [ARGUMENT …]`, by path, before any import.

On Linux the kernel sends SIGKILL when the parent ends in whatever way (prctl(2), PR_SET_PDEATHSIG; kept across
execve(2)). Elsewhere the command just runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the line above; then nobody sends the signal.
    if os.getppid() != parent:
        raise SystemExit(1)
    os.execvp(command[0], command)  # noqa: S606 - the point of this program


if __name__ == "__main__":
    main()
