"""Runs the stage programs over a table as the Terminal does, answers their gates, and keeps what each left and cost.

This process loads no library of the stages: what a child's peak of memory reports begins with its parent's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from bench.stages.tables import Known
from stages.contract import CONTRACT, RESULT, folder_of

Json: TypeAlias = Any

STAGES = ("PARSE_INTENT", "DATA_SOURCE", "PROFILE_DATA", "PREPROCESS", "MODEL_SELECT", "TRAIN", "REVIEW_EDIT")
CPU_S, WALL_S, MEM_MB = 1200.0, 3600.0, 4096
ASKED = 3  # times a gate is answered before the run counts as stuck
ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Run:
    """What became of a table.

    Attributes:
        left: result.json of each stage that ended.
        cpu_s: of each stage, every attempt added up.
        stopped: why it did not reach the end, "" when it did.
        answers: what was chosen at the gates, by stage.
    """

    left: dict[str, Json] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    stopped: str = ""
    answers: dict[str, dict[str, Json]] = field(default_factory=dict)

    @property
    def peak_mb(self) -> float:
        """The most memory that a stage held, in MiB."""
        return max((float(each["metrics"]["peak_mb"]) for each in self.left.values()), default=0.0)


def run(name: str, known: Known, folder: Path, budget_s: float, seed: int) -> Run:
    """Takes a table from its objective to REVIEW_EDIT."""
    found = Run()
    subprocess.run([sys.executable, "-m", "bench.stages.tables", name, str(folder / "uploads")], cwd=ROOT, check=True)
    for stage in STAGES:
        found.stopped = _stage(found, stage, known, folder, f"uploads/{name}.csv", budget_s, seed)
        if found.stopped:
            break
    return found


def _stage(found: Run, stage: str, known: Known, folder: Path, data: str, budget_s: float, seed: int) -> str:
    """Runs a stage until its gate asks for nothing more. Returns why the run stops here, "" when it goes on."""
    edits: dict[str, Json] = {}
    for _ in range(ASKED):
        done = _program(folder, stage, known.objective, data, budget_s, seed, edits)
        if done is None:
            return f"{stage} crashed"
        found.cpu_s[stage] = round(found.cpu_s.get(stage, 0.0) + done["metrics"]["cpu_s"], 2)
        found.left[stage] = done
        if done["status"] == "FAILED":
            return f"{stage}: {done['error']['code']}: {done['error']['message']}"
        answered = _answers(stage, done, known, edits)
        if answered == edits:
            return "" if done["status"] == "OK" else f"{stage} needs an answer: {done['summary']}"
        found.answers[stage] = edits = answered
    return f"{stage} asked {ASKED} times"


def _program(
    folder: Path, stage: str, objective: str, data: str, budget_s: float, seed: int, edits: Mapping[str, Json]
) -> dict[str, Json] | None:
    """Runs one stage; None when it crashed."""
    envelope = {"contract": CONTRACT, "stage": stage, "objective": objective, "data": data, "seed": seed}
    envelope |= {"edits": dict(edits), "hints": {"budget_s": budget_s}}
    envelope |= {"limits": {"cpu_s": CPU_S, "wall_s": WALL_S, "mem_mb": MEM_MB, "threads": 1}}
    (folder / "envelope.json").write_text(json.dumps(envelope))
    variables = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    variables |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", f"stages.{stage.lower()}", "envelope.json"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    path = folder / folder_of(stage) / RESULT
    if done.returncode not in (0, 2) or not path.is_file():
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    left: dict[str, Json] = json.loads(path.read_text())
    return left


def _answers(stage: str, done: Mapping[str, Json], known: Known, edits: Mapping[str, Json]) -> dict[str, Json]:
    """Returns what a person who knows the table would choose at this gate."""
    chosen = dict(edits)
    for action in done["next_actions"]:
        name = action.get("field", "")
        if action.get("required") and name not in chosen:
            chosen[name] = known.target if name == "target" else action.get("default") or action["options"][0]
    if stage == "PREPROCESS":
        offered = {action.get("field") for action in done["next_actions"]}
        plan = {each["column"]: each["action"] for each in done["result"]["plan"]}
        drops = [name for name in known.leaks if plan.get(name, "DROP") != "DROP" and f"actions.{name}" in offered]
        chosen |= {f"actions.{name}": "DROP" for name in drops}
    return chosen
