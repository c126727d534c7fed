"""Small tables laid in a run's folder as the stages before MODEL_SELECT would leave them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.contract import Result, folder_of
from tests.tables_at_hand import lay, leave, work_here

FOLDS = 3
KINDS = {"f": "NUMERIC", "i": "NUMERIC", "b": "BOOL", "M": "DATETIME"}


def numbers(rows: int = 240, seed: int = 0) -> pd.DataFrame:
    """Returns a table whose class and amount follow from x and a level, with some noise."""
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame({"x": draw.normal(size=rows), "z": draw.normal(size=rows)})
    frame["level"] = draw.choice(["low", "mid", "high"], rows)
    score = 2 * frame["x"] + frame["level"].map({"low": -1.0, "mid": 0.0, "high": 1.0})
    frame["amount"] = score + draw.normal(scale=0.3, size=rows)
    frame["label"] = np.where(score + draw.normal(scale=0.7, size=rows) > 0, "yes", "no")
    return frame


def prepared(
    folder: Path,
    frame: pd.DataFrame,
    target: str,
    task: str,
    *,
    drop: tuple[str, ...] = (),
    kind: str = "STRATIFIED",
    rows: int | None = None,
    **intent: Any,
) -> None:
    """Leaves the results of the stages up to PREPROCESS: every fourth row tests, the others take turns in the folds."""
    lay(folder, frame, target, **intent)
    plan = [_entry(frame, name) for name in frame.columns if name not in (target, *drop)]
    at = np.arange(len(frame))
    part = np.where(at % 4 == 3, "test", "train")
    turn = np.where(part == "train", np.cumsum(part == "train") % FOLDS, -1)
    own = folder / folder_of("PREPROCESS")
    own.mkdir(exist_ok=True)
    split = pd.DataFrame({"row": at, "part": part, "fold": turn.astype("int8")})
    split.to_parquet(own / "split.parquet", index=False)
    train = rows or int((part == "train").sum())
    classes = [] if task == "regression" else sorted(frame[target].dropna().astype(str).unique())
    result = {
        "target": target,
        "task": task,
        "positive_class": classes[-1] if task == "binary" else None,
        "classes": classes,
        "plan": plan,
        "features": [entry["column"] for entry in plan],
        "split": {"kind": kind, "test_share": 0.25, "folds": FOLDS, "n_train": train, "n_test": 0, "seed": 0},
        "dropped_rows": [],
        "features_est": 2 * len(plan),
    }
    leave(folder, "PREPROCESS", result)


def _entry(frame: pd.DataFrame, name: str) -> dict[str, str]:
    role = KINDS.get(frame[name].dtype.kind, "CATEGORY")
    return {"column": name, "role": role, "action": "KEEP", "reason": ""}


def chosen(folder: Path, stage: str, found: Result) -> dict[str, Any]:
    """Leaves what a stage found, for the next one, and returns it."""
    leave(folder, stage, found.result)
    return found.result


def selected(folder: Path, **envelope: Any) -> dict[str, Any]:
    """Does MODEL_SELECT."""
    from stages import model_select

    return chosen(folder, "MODEL_SELECT", work_here(model_select.work, folder, "MODEL_SELECT", **envelope))


def trained(folder: Path, **envelope: Any) -> Result:
    """Does TRAIN."""
    from stages import train

    return work_here(train.work, folder, "TRAIN", **envelope)
