"""Exports work where nothing of this project is: in a fresh environment made from their lock file."""

import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import export, profile_data, train
from stages.budget import Budget
from stages.contract import STAGES, Room, cpu_seconds, folder_of
from stages.preparing import prepare
from stages.smoke import Proof
from stages.trial import load
from tests import models_at_hand
from tests.tables_at_hand import leave, table, work_here
from tests.test_stage_export import read_from, reviewed

INSTALL_S = 600  # at most, to ask the registry, which may have to send the packages for that
NO_REGISTRY = ("Temporary failure in name resolution", "Connection refused", "Network is unreachable")
ROWS = 60  # predicted of each table


def run(folder: Path, *command: str, timeout: float = 120.0) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.timeout(INSTALL_S + 300)
def test_predict_and_train_give_the_same_in_an_environment_made_from_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What EXPORT tries in processes of its own is tried here, elsewhere.
    monkeypatch.setattr(export, "prove", lambda *_: Proof(1, 0.0, ("rows",)))
    monkeypatch.setattr(export, "_again", lambda *_: None)
    monkeypatch.setattr(profile_data, "_pictures", lambda *_: iter(()))
    monkeypatch.setattr(train, "Budget", lambda seconds: Budget(seconds, since=cpu_seconds()))
    bundles = {}
    for make in (penguins, mpg, visits):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder)
        reviewed(folder)
        leave(folder, "EXPORT", work_here(export.work, folder, "EXPORT").result)
        bundles[folder] = unpacked(folder)
    assert len({(bundle / "requirements.lock").read_text() for bundle in bundles.values()}) == 1
    python = installed(tmp_path, bundles[tmp_path / "penguins"] / "requirements.lock")
    for folder, bundle in bundles.items():
        check_predictions(folder, bundle, python)
    again = run(bundles[tmp_path / "mpg"], python, "train.py", str(tmp_path / "mpg" / "table.csv"))
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["score"] == pytest.approx(told["expected"], abs=1e-3)


def unpacked(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "export" / "bundle.zip") as packed:
        packed.extractall(folder / "fresh")
    return folder / "fresh"


def check_predictions(folder: Path, bundle: Path, python: str) -> None:
    """Rows as somebody else has them: columns in another order, one missing, one more."""
    trial = load(Room("EXPORT", folder))
    frame = trial.frame.iloc[trial.test[:ROWS]]
    lost = trial.plan["features"][0]
    reading = json.loads((bundle / "schema.json").read_text())["reading"]
    asked = frame[frame.columns[::-1]].drop(columns=[lost, trial.plan["target"]]).assign(more=1)
    asked.to_csv(bundle / "rows.csv", index=False, sep=reading["delimiter"], decimal=reading["decimal"])
    classes = ["--proba"] if trial.is_classes else []
    done = run(bundle, python, "predict.py", "rows.csv", "out.csv", *classes)
    assert done.returncode == 0, done.stderr
    made = pd.read_csv(bundle / "out.csv")
    said = made.iloc[:, 2:] if trial.is_classes else made["prediction"]
    expected = trial.said(prepare(frame.drop(columns=lost), trial.plan))
    assert said.to_numpy() == pytest.approx(expected, abs=1e-9, rel=1e-9), folder.name


# ---- the tables ----


def penguins(folder: Path) -> None:
    """Several classes, with missing values."""
    frame = table("penguins")
    read_from(folder, frame, "species", frame.to_csv(index=False))
    models_at_hand.train(folder, frame, "species", "multiclass", "log_loss", "hgb-quick")


def mpg(folder: Path) -> None:
    """An amount, from a file with decimal commas."""
    frame = table("mpg").drop(columns="name").assign(weight=lambda made: made["weight"] / 3)
    text = frame.to_csv(index=False, sep=";", decimal=",")
    read_from(folder, frame, "mpg", text, delimiter=";", decimal=",", format="csv")
    models_at_hand.train(folder, frame, "mpg", "regression", "rmse", "hgb-quick")


def visits(folder: Path) -> None:
    """Yes or no, from days, texts and names, by the plan that the stages themselves make."""
    draw = np.random.default_rng(4)
    day = pd.to_datetime("2024-01-01") + pd.to_timedelta(draw.integers(0, 500, 300), unit="D")
    words = ["cough", "fever", "fall", "headache", "broken arm", "checkup", "burn", "bite", "again", "urgent", "calm"]
    said = [" ".join(draw.choice(words, 6)) for _ in day]
    stays = ["yes" if ("fever" in text) != (draw.random() < 0.1) else "no" for text in said]
    frame = pd.DataFrame({"day": day.strftime("%Y-%m-%d"), "said": said, "ward": draw.choice(list("ABC"), 300)})
    (folder / "uploads").mkdir()
    frame.assign(stays=stays).to_csv(folder / "uploads" / "visits.csv", index=False)
    asked = {"objective": "predict stays", "data": "uploads/visits.csv", "hints": {"target": "stays"}}
    for stage in STAGES[: STAGES.index("REVIEW_EDIT")]:
        edits = {"candidates": ["linear"]} if stage == "MODEL_SELECT" else {}
        work = importlib.import_module(f"stages.{stage.lower()}").work
        leave(folder, stage, work_here(work, folder, stage, edits=edits, **asked).result)
    plan = json.loads((folder / folder_of("PREPROCESS") / "result.json").read_text())["result"]["plan"]
    assert {"DATETIME", "TEXT"} <= {entry["role"] for entry in plan if entry["action"] != "DROP"}


# ---- the environment ----


def installed(folder: Path, lock: Path) -> str:
    """Returns the interpreter of a new environment with what the lock names, and nothing else.

    pip says what it would install: from the registry, exactly what is named. The packages themselves are those of the
    same versions that are installed here; to fetch and unpack them once more would only take a minute.
    """
    named = dict(line.split("==") for line in lock.read_text().splitlines() if not line.startswith("#"))
    asked = ("install", "--dry-run", "--ignore-installed", "--disable-pip-version-check", "--report", "-", "--quiet")
    told = run(folder, sys.executable, "-m", "pip", *asked, "-r", str(lock), timeout=INSTALL_S)
    if told.returncode and any(text in told.stderr for text in NO_REGISTRY):
        pytest.skip("pip reaches no registry here")
    assert told.returncode == 0, told.stderr
    found = [each["metadata"] for each in json.loads(told.stdout)["install"]]
    assert {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in found} == named
    made = run(folder, sys.executable, "-m", "venv", "--without-pip", "venv")
    assert made.returncode == 0, made.stderr
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    for name, version in named.items():
        link(packages, name, version)
    python = str(folder / "venv" / "bin" / "python")
    absent = run(folder, python, "-c", "import stages")
    assert "No module named 'stages'" in absent.stderr
    return python


def link(packages: Path, name: str, version: str) -> None:
    """Links all that a package has put here."""
    here = distribution(name)
    assert here.version == version
    tops = {file.parts[0] for file in here.files or ()} - {"..", "__pycache__"}
    for top in tops:
        (packages / top).symlink_to(Path(str(here.locate_file(top))).resolve())
