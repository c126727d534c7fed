"""Proves an export: unpacks its zip, predicts test rows in a fresh process, and compares with the model at hand."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.bundling import BUNDLE
from stages.contract import Action, Failed, Json
from stages.judging import Vector
from stages.shown import plain
from stages.trial import Trial

ROWS = 200  # test rows that are predicted
TOLERANCE = 1e-9
EXTRA = "a column nobody knows"
MANY = """import pathlib, predict, sys
for line in sys.stdin:
    given, made, without = line.rstrip("\\n").split("\\t")
    if without:
        pathlib.Path(without).unlink()
    if predict.main([given, made, *sys.argv[1:]]):
        sys.exit(2)
"""


@dataclass(frozen=True, slots=True)
class Proof:
    """What came out: rows predicted, all ways together, and the largest difference to the model at hand."""

    rows: int
    max_abs_diff: float
    ways: tuple[str, ...]


def prove(folder: Path, trial: Trial, schema: Mapping[str, Json], formats: Sequence[str]) -> Proof:
    """Predicts with the zip in `folder` and compares.

    As they are, from the command line; with columns in another order and one more; with one column missing; and, when
    there are two formats, with the second one.

    Raises:
        Failed: with EXPORT_SMOKE_TEST_FAILED, saying what went wrong.
    """
    rows = trial.test[:ROWS]
    frame = trial.frame.iloc[rows]
    lost = str(trial.plan["features"][0])
    with tempfile.TemporaryDirectory(dir=folder, prefix="smoke-") as name:
        room = Path(name)
        with zipfile.ZipFile(folder / BUNDLE) as bundle:
            bundle.extractall(room)
        options = ["--proba"] if trial.is_classes else []
        backwards = frame[frame.columns[::-1]].assign(**{EXTRA: "x"})
        less = frame.drop(columns=lost)
        _write(room / "rows.csv", frame, schema)
        _write(room / "backwards.csv", backwards, schema)
        _write(room / "less.csv", less, schema)
        _run(room, ["predict.py", "rows.csv", "rows.out", *options])
        ways = ["backwards.csv\tbackwards.out\t\n"]
        ways += ["less.csv\tless.out\t\n"] if len(trial.plan["features"]) > 1 else []
        ways += ["rows.csv\tsecond.out\tmodel.joblib\n"] if len(formats) > 1 else []
        _run(room, ["-c", MANY, *options], "".join(ways))
        whole, without = _expected(trial, frame), _expected(trial, less)
        asked = {"rows": whole, "backwards": whole, "less": without, "second": whole}
        made = {way: expected for way, expected in asked.items() if (room / f"{way}.out").exists()}
        off = {way: _off(room / f"{way}.out", trial, schema, expected) for way, expected in made.items()}
    worst = max(off, key=lambda way: off[way])
    if not off[worst] <= TOLERANCE:
        raise _failed(f"The exported model predicts otherwise ({worst}): off by {off[worst]:.3g}.")
    return Proof(len(rows) * len(off), off[worst], tuple(off))


def _expected(trial: Trial, frame: pd.DataFrame) -> Vector:
    from stages.preparing import prepare

    return trial.said(prepare(frame, trial.plan))


def _write(path: Path, frame: pd.DataFrame, schema: Mapping[str, Json]) -> None:
    """Writes rows as the file they come from would have them: its names, its delimiter, its decimal sign."""
    reading = schema["reading"]
    spelled = {each["name"]: each["original_name"] for each in schema["columns"]}
    names = [spelled.get(name, name) for name in frame.columns]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=reading["delimiter"] or ",")
        writer.writerow(names if len(set(names)) == len(names) else frame.columns)
        for row in zip(*(frame[name].tolist() for name in frame.columns), strict=True):
            writer.writerow([_cell(value, reading["decimal"]) for value in row])


def _cell(value: Any, decimal: str) -> str:
    if value is None or value is pd.NaT or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).replace(".", decimal) if isinstance(value, float) else str(value)


def _run(room: Path, arguments: Sequence[str], given: str = "") -> None:
    variables = {
        name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ
    }
    variables |= {"HOME": str(room), "TMPDIR": str(room), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=room, env=variables, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        last = plain((done.stderr.strip().splitlines() or ["no word"])[-1].replace(str(room), ""), 200)
        raise _failed(f"{arguments[0] if arguments[0] != '-c' else 'predict.py'} ended with {done.returncode}: {last}.")


def _off(path: Path, trial: Trial, schema: Mapping[str, Json], expected: Vector) -> float:
    """Returns the largest difference, of values as a share of those beyond one; infinite when a class differs."""
    made = pd.read_csv(path, dtype=str, keep_default_na=False)
    if len(made) != len(expected):
        return float("inf")
    if not trial.is_classes:
        values = made["prediction"].astype(float).to_numpy()
        return float(np.max(np.abs(values - expected) / np.maximum(1.0, np.abs(expected))))
    known = [str(name) for name in trial.model.classes_]
    chances = made.iloc[:, 2:].astype(float).to_numpy()
    if list(made.columns[2:]) != [f"proba_{name}" for name in known]:
        return float("inf")
    case = trial.case(np.zeros(len(made), dtype=int), expected, schema["threshold"] or 0.5)
    called = [trial.classes[at] for at in case.labels]
    same = called == made["prediction"].tolist()
    return float(np.abs(chances - expected[:, : len(known)]).max()) if same else float("inf")


def reproduce(folder: Path, data: Path) -> dict[str, Json]:
    """Runs the exported train.py in a fresh process on the data and returns what it printed.

    Raises Failed with EXPORT_SMOKE_TEST_FAILED when it does not end well.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="again-") as name:
        room = Path(name)
        with zipfile.ZipFile(folder / BUNDLE) as bundle:
            bundle.extractall(room)
        variables = {"PATH": os.environ.get("PATH", ""), "HOME": name, "TMPDIR": name, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "train.py", str(data)]
        done = subprocess.run(command, cwd=room, env=variables, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        last = plain((done.stderr.strip().splitlines() or ["no word"])[-1].replace(name, ""), 200)
        raise _failed(f"train.py ended with {done.returncode}: {last}.")
    told: dict[str, Json] = json.loads(done.stdout.splitlines()[-1])
    return told


def _failed(text: str) -> Failed:
    advice = "Do the stage again; if it fails again, go back to MODEL_SELECT and choose another model."
    back = Action("back-models", "Go back to MODEL_SELECT: another model", "BACK", "MODEL_SELECT")
    return Failed(
        "EXPORT_SMOKE_TEST_FAILED", text, suggestion=advice, actions=(back, Action("abort", "End the run", "ABORT"))
    )
