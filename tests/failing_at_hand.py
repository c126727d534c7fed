"""Files and tables that make a stage fail or warn, and what earlier stages leave before them."""

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import joblib
import numpy as np
import pandas as pd

from stages import profile_data, review_edit
from stages.contract import RESULT
from tests import models_at_hand
from tests.tables_at_hand import lay, leave, work_here
from tests.trained import numbers, prepared, selected

Json: TypeAlias = Any
Make: TypeAlias = Callable[[Path], dict[str, Json]]  # lays files in a run's folder; returns fields of the envelope
NOTHING: Mapping[str, Json] = MappingProxyType({})

# ---- files as they are uploaded ----

GOOD = "x,y\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(8))


def upload(content: str | bytes, name: str = "t.csv", **envelope: Json) -> Make:
    """Returns what lays an uploaded file, and a good one beside it."""

    def make(folder: Path) -> dict[str, Json]:
        (folder / "uploads").mkdir(exist_ok=True)
        (folder / "uploads" / "good.csv").write_text(GOOD)
        (folder / "uploads" / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return {"data": f"uploads/{name}", "objective": "predict y", **envelope}

    return make


def link(folder: Path) -> dict[str, Json]:
    """Lays a link in place of a file."""
    asked = upload(GOOD)(folder)
    (folder / "uploads" / "t.csv").unlink()
    (folder / "uploads" / "t.csv").symlink_to(folder / "uploads" / "good.csv")
    return asked


OTHER_FILE = {"data": "uploads/good.csv"}
SPECIES = "island,species,bill\n" + "".join(f"i{n % 3},{'ABC'[n % 3]},{n}.5\n" for n in range(30))
LEVELS = "x,stars\n" + "".join(f"{n}.5,{n % 5 + 1}\n" for n in range(30))
BOMB = gzip.compress(b"x,y\n" + b"0" * (66 * 1024 * 1024), 1)  # unpacks to a little more than any file may

# ---- tables as DATA_SOURCE leaves them ----


def frame(rows: int = 60, **columns: Json) -> pd.DataFrame:
    """Returns a table of a number that says a little about `y`, with columns of its own or in place of these."""
    draw = np.random.default_rng(1)
    y = np.array(["no", "yes"])[np.arange(rows) % 2]
    made = pd.DataFrame({"x": draw.normal(size=rows) + 0.5 * (y == "yes"), "y": y})
    return made.assign(**{name: values(rows) if callable(values) else values for name, values in columns.items()})


def table(made: pd.DataFrame, target: str | None = "y", edits: Mapping[str, Json] = NOTHING, **intent: Json) -> Make:
    """Returns what leaves a table before PROFILE_DATA."""

    def make(folder: Path) -> dict[str, Json]:
        lay(folder, made, target, **intent)
        return {"edits": dict(edits)}

    return make


def profiled(made: pd.DataFrame, target: str = "y", edits: Mapping[str, Json] = NOTHING, **intent: Json) -> Make:
    """Returns what leaves a table and its profile, before PREPROCESS."""

    def make(folder: Path) -> dict[str, Json]:
        lay(folder, made, target, **intent)
        leave(folder, "PROFILE_DATA", work_here(profile_data.work, folder, "PROFILE_DATA").result)
        return {"edits": dict(edits)}

    return make


def every(step: int, odd: str, usual: str) -> Callable[[int], list[str]]:
    """Returns values of which every `step`th is odd."""
    return lambda rows: [odd if n % step == 0 else usual for n in range(rows)]


def days(rows: int) -> list[str]:
    """Returns a day for each row, one after another."""
    return [str(day.date()) for day in pd.date_range("2024-01-01", periods=rows)]


WIDE = pd.DataFrame(np.random.default_rng(2).normal(size=(24, 30)), columns=[f"c{n}" for n in range(30)])
COPIED = pd.concat([frame(40), frame(40).head(10)], ignore_index=True)
UNSETTLED = {"target": None, "columns": [{"name": "x", "role": "NUMERIC"}], "issues": [], "group": None}
ONLY_IDS = frame(40).drop(columns="x").assign(row_id=range(40))

# ---- models ----


def ready(stage: str, rows: int | None = None, **envelope: Json) -> Make:
    """Returns what leaves a table and its plan, before MODEL_SELECT, or before TRAIN a linear model to try."""

    def make(folder: Path) -> dict[str, Json]:
        prepared(folder, numbers(), "label", "binary", drop=("amount",), rows=rows)
        if stage == "TRAIN":
            selected(folder, edits={"candidates": ["linear"]})
        return envelope

    return make


def changed(stage: str, name: str, change: Callable[[dict[str, Json]], Json], make: Make) -> Make:
    """Returns what makes a run and then changes what a stage left."""

    def changing(folder: Path) -> dict[str, Json]:
        asked = make(folder)
        path = folder / name / RESULT
        result = json.loads(path.read_text())["result"]
        leave(folder, stage, {**result, **change(result)})
        return asked

    return changing


def broken(keep: str) -> Callable[[dict[str, Json]], Json]:
    """Returns what breaks every boosting among the candidates, and leaves out others but `keep` and guessing."""

    def change(result: dict[str, Json]) -> Json:
        kept = [each for each in result["candidates"] if each["id"] in ("dummy", "hgb", keep)]
        wrong = {"max_iter": -1}
        return {
            "candidates": [
                {**each, "selected": True, "params": {**each["params"], **(wrong if each["id"] == "hgb" else {})}}
                for each in kept
            ]
        }

    return change


def hurried(result: dict[str, Json]) -> Json:
    """Gives TRAIN hardly any budget, although MODEL_SELECT forecast that all would fit."""
    return {"budget_s": 0.01, "candidates": [{**each, "selected": True, "folds": 3} for each in result["candidates"]]}


def no_target(folder: Path) -> dict[str, Json]:
    """Leaves a table whose target has lost its values since PREPROCESS."""
    ready("TRAIN")(folder)
    numbers().assign(label=None).to_parquet(folder / "data-source" / "data.parquet", index=False)
    return {}


def model(noise: bool = False, leak: bool = False, edits: Mapping[str, Json] = NOTHING) -> Make:
    """Returns what leaves a linear model, before REVIEW_EDIT: of an honest table, of noise, or of a leak."""

    def make(folder: Path) -> dict[str, Json]:
        made = numbers(320).drop(columns="amount")
        if noise:
            made["label"] = np.random.default_rng(5).permutation(made["label"])
        if leak:
            made["outcome"] = (made["label"] == "yes") + 0.001 * made["z"]
        columns = [{"name": "outcome", "strength": 0.99}] if leak else []
        profile = {"columns": columns, "issues": []}
        models_at_hand.train(folder, made, "label", "binary", "roc_auc", profile=profile)
        return {"edits": dict(edits)}

    return make


def untested(folder: Path) -> dict[str, Json]:
    """Leaves a split without test rows."""
    model()(folder)
    path = folder / "preprocess" / "split.parquet"
    pd.read_parquet(path).assign(part="train").to_parquet(path, index=False)
    return {}


def reviewed(folder: Path) -> dict[str, Json]:
    """Leaves a model and its review, before EXPORT."""
    model()(folder)
    source = json.loads((folder / "data-source" / RESULT).read_text())["result"]
    reading = {"delimiter": ",", "decimal": ".", "encoding": "utf-8", "header": 1, "packing": None}
    leave(folder, "DATA_SOURCE", {**source, **reading, "bytes": 1})
    leave(folder, "REVIEW_EDIT", work_here(review_edit.work, folder, "REVIEW_EDIT").result)
    return {}


def another(change: Callable[[Json], Json]) -> Make:
    """Returns what leaves a changed model with its review."""

    def make(folder: Path) -> dict[str, Json]:
        reviewed(folder)
        path = folder / "train" / "model.joblib"
        joblib.dump(change(joblib.load(path)), path)
        leave(folder, "REVIEW_EDIT", work_here(review_edit.work, folder, "REVIEW_EDIT").result)
        return {}

    return make


class Strange:
    """A type that no public package has."""


def strange(given: Json) -> Json:
    """Hangs something onto a model that skops cannot write."""
    given.strange = Strange()
    return given


def half_taught(given: Json) -> Json:
    """Teaches a model again, with a few rows only: train.py will come to another score."""
    made = numbers(40, seed=9)
    return given.fit(made[["x", "z", "level"]], np.where(made["z"] > 0, "yes", "no"))
