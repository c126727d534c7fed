"""Runs in FLAML's own interpreter: FOLDER of a run, BUDGET in seconds, SEED. Prints one line of JSON last."""

import importlib
import json
import resource
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, budget_s: float, seed: int) -> None:
    """Fits on the rows that TRAIN had, and scores on those that REVIEW_EDIT had."""
    import pandas as pd
    from sklearn.metrics import r2_score, roc_auc_score

    plan = json.loads((folder / "preprocess" / "result.json").read_text())["result"]
    frame = pd.read_parquet(folder / "data-source" / "data.parquet")
    part = pd.read_parquet(folder / "preprocess" / "split.parquet").set_index("row")["part"].reindex(frame.index)
    x = frame[plan["features"]].copy()
    for name in x.columns[[each.kind == "O" or str(each) in ("str", "string") for each in x.dtypes]]:
        x[name] = x[name].astype("category")
    learned, judged = (part == "train").to_numpy(), (part == "test").to_numpy()
    regression = plan["task"] == "regression"
    y = frame[plan["target"]] if regression else frame[plan["target"]].astype(str)
    model = importlib.import_module("flaml").AutoML()
    metric = {"binary": "roc_auc", "multiclass": "roc_auc_ovr", "regression": "r2"}[plan["task"]]
    task = "regression" if regression else "classification"
    how: dict[str, Any] = {"metric": metric, "time_budget": budget_s, "seed": seed, "n_jobs": 1, "verbose": 0}
    model.fit(x[learned], y[learned], task=task, **how)
    score = None
    if model.best_estimator is not None and regression:
        score = r2_score(y[judged], model.predict(x[judged]))
    elif model.best_estimator is not None:
        said = model.predict_proba(x[judged])
        score = roc_auc_score(y[judged], said[:, 1] if plan["task"] == "binary" else said, multi_class="ovr")
    own, below = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime
    told = {"score": score, "cpu_s": cpu_s, "peak_mb": own.ru_maxrss / 1024, "model": str(model.best_estimator)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
