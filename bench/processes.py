"""What processes used: CPU, memory and syncs, each with everything they started."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SYNCS = "fsync,fdatasync,sync_file_range,msync"
ATTACH_S = 10.0
# The end of a call in strace's output; one that another thread interrupted is printed in two parts.
_ENDED = re.compile(rb"\) += -?\d")
_ATTACHED = re.compile(rb"strace: Process \d+ attached")


def tree(roots: Iterable[int]) -> list[int]:
    """Returns the processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = list(roots)
    for process in found:  # grows while it is walked
        found += children.get(process, [])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """Returns user and system time of process trees so far, with that of children that have ended (proc(5))."""
    total = 0
    for process in tree(roots):
        with contextlib.suppress(OSError):
            total += sum(map(int, _stat(process)[11:15]))
    return total * TICK_S


def cpu_by_name(groups: Mapping[str, Collection[int]]) -> dict[str, float]:
    """Returns the CPU seconds of each named group of process trees."""
    return {name: cpu_seconds(roots) for name, roots in groups.items()}


def memory_mib(roots: Iterable[int]) -> dict[str, float]:
    """Returns resident memory, its peak, and the proportional share (shared pages counted once) of process trees."""
    totals = dict.fromkeys(("rss", "peak_rss", "pss"), 0)
    for process in tree(roots):
        with contextlib.suppress(OSError):
            status = _fields(Path(f"/proc/{process}/status"))
            totals["rss"] += status["VmRSS"]
            totals["peak_rss"] += status["VmHWM"]
            totals["pss"] += _fields(Path(f"/proc/{process}/smaps_rollup"))["Pss"]
    return {name: round(kib / 1024, 1) for name, kib in totals.items()}


def pin(roots: Iterable[int], cores: Collection[int]) -> None:
    """Binds process trees, with every thread they have, to cores. What they start later inherits it."""
    for process in tree(roots):
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def _stat(process: int) -> list[str]:
    """Returns the fields of proc_pid_stat(5) from the third, `state`, on: the second may hold blanks."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _fields(path: Path) -> dict[str, int]:
    """Returns the sizes in a file of `name: number kB` lines, in KiB."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0])
    return found


def _threads(process: int) -> int:
    return len(list(Path(f"/proc/{process}/task").iterdir()))


def traced(command: list[str], output: Path) -> list[str] | None:
    """Returns the command under strace, writing its syncs to a file; None without strace.

    With --seccomp-bpf only the traced calls stop the process, so that it is hardly slowed down.
    """
    strace = shutil.which("strace")
    if strace is None:
        return None
    return [strace, "-f", "--seccomp-bpf", "-e", f"trace={SYNCS}", "-o", str(output), *command]


def syncs(output: Path) -> int:
    """Returns how many syncs an strace has seen end."""
    return len(_ENDED.findall(output.read_bytes())) if output.exists() else 0


@contextlib.asynccontextmanager
async def attached(roots: Collection[int], output: Path) -> AsyncIterator[None]:
    """Writes the syncs of running process trees to a file. Every system call stops them: they are slowed down."""
    processes = tree(roots)
    threads = sum(map(_threads, processes))
    targets = [word for process in processes for word in ("-p", str(process))]
    strace = await asyncio.create_subprocess_exec(
        "strace", "-f", "-e", f"trace={SYNCS}", "-o", str(output), *targets, stderr=asyncio.subprocess.PIPE
    )
    assert strace.stderr is not None
    try:
        async with asyncio.timeout(ATTACH_S):
            seen = 0
            while seen < threads:
                seen += bool(_ATTACHED.search(await strace.stderr.readline()))
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            strace.send_signal(signal.SIGINT)
        await strace.communicate()
