"""`python -m tests.attacks.able UID PLACE TIER`: tells what the kernel lacks for a tier, or nothing when it has all.

None of the services' code is asked: a tier that the machine can have and that a Terminal does not set up is a fault of
the Terminal, whatever reason it gives.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.attacks.start import become

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LANDLOCK_CREATE_RULESET, _VERSION = 444, 1
_LEAST_ABI = {True: 3, False: 6}  # by whether the service is root, and gives commands users of their own
_MOUNT_SETATTR = 442
_PR_GET_SECCOMP = 21
_NAMESPACES = 0x7E020000  # user, mount, process, network, IPC, host name, control group: CLONE_NEW*
_LENT = 61_999  # nobody's
_REC, _PRIVATE = 16384, 1 << 18


def lacking(uid: int, place: str, tier: str) -> str:
    """Returns why this machine cannot have a tier for a Terminal of a user in a place, "" when it can."""
    command = [sys.executable, "-m", "tests.attacks.able", str(uid), place, tier]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def main() -> None:
    """Tries what the arguments ask for."""
    uid, place, tier = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    least = _LEAST_ABI[uid == 0]
    # A Terminal that is root makes the namespaces as the user it has lent a command.
    become(uid or _LENT, place) if tier == "strong" else become(uid, place)
    try:
        _try_filter()
        if tier == "standard":
            _try_landlock(least)
        if tier == "strong":
            _try_namespaces()
    except OSError as error:
        print(error)  # noqa: T201 - this is what it is asked for


def _try_filter() -> None:
    _ok(_LIBC.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0), "seccomp")


def _try_landlock(least: int) -> None:
    abi = _ok(_LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION), "landlock")
    if abi < least:
        raise OSError(0, f"Landlock has ABI {abi}, and {least} is the least")


def _try_namespaces() -> None:
    """Does in namespaces what takes power in them: mounts (user_namespaces(7), AppArmor may deny those alone)."""
    uid, gid = os.geteuid(), os.getegid()
    _ok(_LIBC.unshare(_NAMESPACES), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(text)
    first = os.fork()  # process 1 of the new process namespace: only it may mount its /proc
    if not first:
        try:
            _ok(_LIBC.mount(None, b"/", None, _REC | _PRIVATE, None), "mount")
            base = tempfile.gettempdir().encode()
            _ok(_LIBC.mount(b"tmpfs", base, b"tmpfs", 0, None), "mount tmpfs")
            os.mkdir(base + b"/proc")  # noqa: PTH102
            _ok(_LIBC.mount(b"proc", base + b"/proc", b"proc", 0, None), "mount proc")
            _ok(_LIBC.syscall(_MOUNT_SETATTR, -100, base, 0, bytes(32), ctypes.c_size_t(32)), "mount_setattr")
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    if number := os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]):
        raise OSError(number, f"in namespaces: {os.strerror(number)}")


def _ok(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main()
