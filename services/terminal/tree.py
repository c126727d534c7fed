"""The processes below a process: finds them, measures them, kills them all (proc(5))."""
# /proc is read by descriptors and names, a hundred times a second.
# ruff: noqa: PTH116, PTH208

import contextlib
import os

SIGKILL = 9
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_KIB = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_PROPORTIONAL_KIB = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")


def descendants(pid: int, enough: int) -> list[int]:
    """Returns the ids of the processes below one, zombies among them. Stops soon after `enough`."""
    found: list[int] = []
    unread = [pid]
    while unread and len(found) <= enough:
        children = _children(unread.pop())
        found += children
        unread += children
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            children += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended meanwhile; what it left has moved up to the supervisor
    return children


def measure(pid: int) -> tuple[int, int, float]:
    """Returns (threads, bytes of memory, seconds of CPU) of one process; zeros when it is gone.

    Memory is what belongs to the process: anonymous, shared and swapped pages, not those of files.
    """
    try:
        status = _read(f"/proc/{pid}/status")
        times = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0, 0.0
    return _field(status, (b"Threads:",)), _field(status, _PAGE_KIB) * 1024, sum(map(int, times[11:13])) / _TICKS_PER_S


def proportional_bytes(pid: int) -> int | None:
    """Returns the memory of one process with shared pages divided among their sharers, None when it may not be read."""
    try:
        return _field(_read(f"/proc/{pid}/smaps_rollup"), _PROPORTIONAL_KIB) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:
        return None


def _field(text: bytes, names: tuple[bytes, ...]) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def deleted_open_bytes(pids: list[int], device: int) -> int:
    """Returns the disk space of files on a device that processes hold open though no folder names them any more."""
    sizes: dict[int, int] = {}
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                found = os.stat(f"/proc/{pid}/fd/{fd}")
                if found.st_nlink == 0 and found.st_dev == device:
                    sizes[found.st_ino] = found.st_blocks * 512
        except OSError:
            continue  # it ended or closed the file meanwhile, or hides itself: the docs say that this is not enforced
    return sum(sizes.values())


def kill(uid: int, confined: bool) -> None:
    """Sends SIGKILL to everything below this process; to be called until nothing is left.

    Args:
        uid: the user that only the processes below have, 0 when they have this one's.
        confined: whether `landlock.confine_signals` holds this process. With either, it is one step of the kernel, and
            nothing can fork away from it. With neither, this process's children are killed: nobody else can reap them,
            so no other process can have got their numbers. What they leave falls to this process, for the next call; in
            the strong tier one of them is the init, and with it goes everything.
    """
    with contextlib.suppress(OSError):  # no process to spare for the helper
        if uid:
            _kill_user(uid)
            return
    if confined:
        _kill_reachable()
        return
    for pid in _children(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, SIGKILL)


def _kill_user(uid: int) -> None:
    helper = os.fork()
    if helper == 0:
        try:
            os.setresuid(uid, uid, uid)
            _kill_reachable()
        finally:
            os._exit(0)
    os.waitpid(helper, 0)


def _kill_reachable() -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.kill(-1, SIGKILL)
