"""An export works where nothing of this project is: in a fresh environment made from its lock file."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest

from stages.preparing import prepare
from tests.models_at_hand import train
from tests.tables_at_hand import run_stage, table

INSTALL_S = 600  # at most, to fetch and unpack about 700 MB
NO_REGISTRY = ("Temporary failure in name resolution", "Connection refused", "Network is unreachable")


def run(folder: Path, *command: str, timeout: float = 120.0) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.timeout(INSTALL_S + 300)
def test_predict_and_train_give_the_same_in_an_environment_made_from_the_lock(tmp_path: Path) -> None:
    folder, fresh = tmp_path / "run", tmp_path / "fresh"
    frame = table("titanic").drop(columns="Name")
    train(folder, frame, "Survived", "binary", "roc_auc", "hgb-quick")
    assert run_stage(folder, "REVIEW_EDIT").exit == 0
    assert run_stage(folder, "EXPORT").exit == 0
    with zipfile.ZipFile(folder / "export" / "bundle.zip") as packed:
        packed.extractall(fresh)
    python = installed(fresh)

    asked = frame[frame.columns[::-1]].drop(columns="Age").assign(more=1)
    asked.to_csv(fresh / "rows.csv", index=False)
    done = run(fresh, python, "predict.py", "rows.csv", "out.csv", "--proba")
    assert done.returncode == 0, done.stderr
    made = pd.read_csv(fresh / "out.csv")[["proba_0", "proba_1"]].to_numpy()
    assert made == pytest.approx(expected(folder, frame.drop(columns="Age")), abs=1e-9)

    again = run(fresh, python, "train.py", str(folder / "data-source" / "data.parquet"))
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["score"] == pytest.approx(told["expected"], abs=1e-3)


def installed(fresh: Path) -> str:
    """Returns the interpreter of a new environment with what the lock names. Skips when there is no registry."""
    made = run(fresh, sys.executable, "-m", "venv", "venv")
    assert made.returncode == 0, made.stderr
    python = str(fresh / "venv" / "bin" / "python")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
    done = run(fresh, python, "-m", "pip", "install", *quiet, "-r", "requirements.lock", timeout=INSTALL_S)
    if done.returncode and any(text in done.stderr for text in NO_REGISTRY):
        pytest.skip("pip reaches no registry here")
    assert done.returncode == 0, done.stderr
    absent = run(fresh, python, "-c", "import stages")
    assert "No module named 'stages'" in absent.stderr
    return python


def expected(folder: Path, frame: pd.DataFrame) -> Any:
    plan = json.loads((folder / "preprocess" / "result.json").read_text())["result"]
    return joblib.load(folder / "train" / "model.joblib").predict_proba(prepare(frame, plan))
