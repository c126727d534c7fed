"""The conditions a benchmark ran under, and what processes used."""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

FSYNCS = 200
BLOCK = b"\0" * 4096
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Returns p50, p99 and the number of values, rounded to microseconds when the values are milliseconds."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
        "n": len(ordered),
    }


def conditions(folder: Path) -> dict[str, Any]:
    """Returns what the figures depend on: machine, versions, load, and what one fsync costs in `folder`."""
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "apsw": version("apsw"),
        "load_1m": os.getloadavg()[0],
        "fdatasync_4k_ms": percentiles(fsyncs(folder)),
    }


def fsyncs(folder: Path) -> list[float]:
    """Returns the milliseconds that appending 4 KiB and fdatasync take, several times."""
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            start = time.perf_counter()
            file.write(BLOCK)
            file.flush()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - start) * 1e3)
    return taken


def cpu_seconds(pid: int) -> float:
    """Returns user and system time of a process so far (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def resident_mib(pid: int) -> float:
    """Returns the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
