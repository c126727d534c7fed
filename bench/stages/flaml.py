"""FLAML on the same training rows and test rows, for comparison. Conductor needs nothing of it.

python3 -m venv var/flaml && var/flaml/bin/pip install 'flaml[automl]' pyarrow
make bench-stages ARGS="--flaml --python var/flaml/bin/python"
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).with_name("flaml_program.py")
SLACK = 20  # times the budget until FLAML is ended: its budget is of wall time


@dataclass(frozen=True, slots=True)
class Rival:
    """What FLAML got: the score on the same test rows, processor seconds with its import, peak MiB, its best model."""

    score: float | None
    cpu_s: float
    peak_mb: float
    model: str

    def __str__(self) -> str:
        score = "no model" if self.score is None else f"{self.score:.4f}"
        return f"{score}, {self.cpu_s:.1f} s, {self.peak_mb:.0f} MB, {self.model}"


def rival(folder: Path, python: str, budget_s: float, seed: int) -> Rival:
    """Runs FLAML in an interpreter that has it, at one thread, over a run's folder.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on standard error.
    """
    variables = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HOME": str(folder), "PATH": "/usr/bin:/bin"}
    command = [python, "-P", str(PROGRAM), str(folder), str(budget_s), str(seed)]
    done = subprocess.run(
        command, env=variables, stdout=subprocess.PIPE, text=True, check=True, timeout=SLACK * budget_s
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return Rival(found["score"], found["cpu_s"], found["peak_mb"], found["model"])
