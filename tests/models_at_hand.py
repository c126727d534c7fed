"""A trained model in a run's folder, as TRAIN and the stages before it leave it, for tests of the stages after it."""

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.pipeline import Pipeline

from stages import portfolio
from stages.contract import folder_of
from stages.preparing import prepare, target_of
from tests.tables_at_hand import lay, leave

TEST_SHARE = 0.25


def plan_of(frame: pd.DataFrame, target: str, task: str, dropped: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns a plan as PREPROCESS leaves it: numbers as numbers, all else as categories."""
    features = [str(name) for name in frame.columns if name not in (target, *dropped)]
    roles = {name: "NUMERIC" if frame[name].dtype.kind in "biuf" else "CATEGORY" for name in features}
    plan = [{"column": name, "role": roles[name], "action": "KEEP", "reason": "", "parse": {}} for name in features]
    classes = [] if task == "regression" else sorted(frame[target].dropna().astype(str).unique())
    split = {"kind": "RANDOM", "test_share": TEST_SHARE, "folds": 5, "seed": 0}
    told = {"target": target, "task": task, "classes": classes, "features": features, "plan": plan, "split": split}
    return {**told, "positive_class": classes[-1] if task == "binary" else None, "dropped_rows": []}


def train(
    folder: Path,
    frame: pd.DataFrame,
    target: str,
    task: str,
    metric: str,
    model: str = "linear",
    *,
    profile: dict[str, Any] | None = None,
    dropped: tuple[str, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    """Leaves a table, a plan, a split and a fitted model of the portfolio ("linear", "hgb", "dummy", ...).

    Args:
        profile: of PROFILE_DATA: columns with their strength, issues.
        more: changes of the plan.

    Returns:
        the plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / folder_of("DATA_SOURCE")).exists():
        lay(folder, frame, target)
    plan = {**plan_of(frame, target, task, dropped), **more}
    known = target_of(frame, plan).notna().to_numpy()
    wanted = target_of(frame, plan) if task != "regression" else None
    rows = np.flatnonzero(known)
    seen, test = train_test_split(
        rows, test_size=TEST_SHARE, random_state=0, stratify=None if wanted is None else wanted.iloc[rows]
    )
    parts = np.full(len(frame), "dropped", dtype=object)
    parts[seen], parts[test] = "train", "test"
    fold = np.where(parts == "train", np.arange(len(frame)) % 5, -1).astype("int8")
    leave(folder, "PROFILE_DATA", profile or {"columns": [], "issues": []})
    leave(folder, "PREPROCESS", {**plan, "split": {**plan["split"], "n_train": len(seen), "n_test": len(test)}})
    split = pd.DataFrame({"row": np.arange(len(frame)), "part": parts, "fold": fold})
    split.to_parquet(folder / folder_of("PREPROCESS") / "split.parquet", index=False)
    _fit(folder, frame.iloc[np.sort(seen)], plan, metric, model)
    return plan


def _fit(folder: Path, seen: pd.DataFrame, plan: dict[str, Any], metric: str, model: str) -> None:
    entry = portfolio.ENTRIES[model]
    params = portfolio.fitting(entry, plan["task"], len(seen), len(plan["features"]))
    candidate = {"id": entry.id, "family": entry.family, "kind": entry.kind, "params": params}
    pipeline: Pipeline = portfolio.build(candidate, plan, 0)
    x, y = prepare(seen, plan), target_of(seen, plan)
    own = folder / folder_of("TRAIN")
    own.mkdir(exist_ok=True)
    joblib.dump(pipeline.fit(x, y), own / "model.joblib")
    kept = pd.DataFrame({"row": seen.index.to_numpy(), "y": y.to_numpy()})
    if plan["task"] == "binary":
        said = cross_val_predict(clone(pipeline), x, y, cv=3, method="predict_proba")
        kept["proba_0"], kept["proba_1"] = said.T
    kept.to_parquet(own / "oof.parquet", index=False)
    board = [{"id": model, "cv_mean": None, "cv_sd": None, "folds": 5, "fit_cpu_s": 0.1, "status": "OK"}]
    told = {"leaderboard": board, "chosen": {"id": model, "weights": None}, "classes": plan["classes"]}
    better = metric not in ("rmse", "mae", "log_loss", "brier")
    told |= {"metric": {"name": metric, "higher_better": better}, "baseline_score": None, "tried": 1, "total": 1}
    leave(folder, "TRAIN", {**told, "model": "model.joblib", "budget_used_s": 0.1})
