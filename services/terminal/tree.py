"""The processes below a process: finds them, measures them, kills them all (proc(5))."""
# /proc is read by descriptors and names, a hundred times a second.
# ruff: noqa: PTH208

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
            children += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended meanwhile; what it left has moved up to the supervisor
    return children


def measure(pid: int) -> tuple[int, int, float]:
    """Returns (threads, bytes of memory, seconds of CPU) of one process; zeros when it is gone.

    Memory is what belongs to the process: anonymous, shared and swapped pages, not those of files.
    """
    try:
        status = read(f"/proc/{pid}/status")
        times = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        threads = _field(status, (b"Threads:",))
        if threads > 1 and not _memory_is_told(status):
            status = read(f"/proc/{living(pid)}/status")
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0, 0.0
    return threads, _field(status, _PAGE_KIB) * 1024, sum(map(int, times[11:13])) / _TICKS_PER_S


def living(pid: int) -> int:
    """Returns the id to ask for what a process holds: when its first thread has ended, that of one that has not.

    0 when all have. The kernel shows nothing of a process by the id of a thread that has ended. Raises OSError.
    """
    if not _ended(pid):
        return pid
    return next((thread for thread in map(int, os.listdir(f"/proc/{pid}/task")) if not _ended(thread)), 0)


def _ended(thread: int) -> bool:
    return read(f"/proc/{thread}/stat").rpartition(b")")[2].split(None, 1)[0] in (b"Z", b"X")


def has_memory(pid: int) -> bool:
    """Whether a process lives: one that is ending gives its memory back first."""
    try:
        return _memory_is_told(read(f"/proc/{pid}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return False


def _memory_is_told(status: bytes) -> bool:
    return b"\nRssAnon:" in status


def proportional_bytes(pid: int) -> int | None:
    """Returns the memory of one process with shared pages divided among their sharers, None when it may not be read."""
    try:
        return _field(read(f"/proc/{living(pid)}/smaps_rollup"), _PROPORTIONAL_KIB) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:
        return None


def _field(text: bytes, names: tuple[bytes, ...]) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def read(path: str, most: int | None = None) -> bytes:
    """Returns a file of /proc, or not much more than its first bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts, length = [], 0
        while (most is None or length < most) and (part := os.read(fd, 65536)):
            parts.append(part)
            length += len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


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
