"""Trains the model again and checks its score on the test rows: `python train.py DATA`.

DATA is the file the model was made from, or the data.parquet made of it. The same rows are learned from and tested on
(split.parquet), with the same settings and seeds. Exit code 0: the score is the one in schema.json, within its
tolerance; 1: it is another; 2: the data is not the same file, or cannot be read.

Needs the packages in requirements.lock, and predict.py, preparing.py and judging.py beside it.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import predict  # type: ignore[import-not-found,unused-ignore] # these lie beside this file in the bundle
from judging import Case, Draw, metrics_of  # type: ignore[import-not-found,unused-ignore]
from preparing import prepare, target_of  # type: ignore[import-not-found,unused-ignore]
from sklearn.base import clone


def main(given: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments (the command line's when None). Returns the exit code."""
    parser = argparse.ArgumentParser(description="Trains the model again and checks its score.")
    parser.add_argument("data", type=Path, help="the file the model was made from, or its data.parquet")
    parser.add_argument("--model", type=Path, help="where to write the model trained again (joblib)")
    asked = parser.parse_args(given)
    try:
        schema = predict.load_schema()
        model, score = again(load(asked.data, schema), schema)
    except predict.Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.model:
        import joblib

        joblib.dump(model, asked.model)
    wanted = schema["reproduce"]
    same = abs(score - wanted["expected"]) <= wanted["tolerance"]
    print(json.dumps({"metric": schema["metric"], "score": score, "expected": wanted["expected"], "same": same}))
    return 0 if same else 1


def load(path: Path, schema: Mapping[str, Any]) -> pd.DataFrame:
    """Returns the rows the model was made from. Raises Unusable when the file is another."""
    if not path.is_file():
        raise predict.Unusable(f"There is no file {path}.")
    found, data = predict.sha256(path), schema["data"]
    if found == data["parquet_sha256"]:
        return pd.read_parquet(path)
    if found != data["sha256"]:
        raise predict.Unusable(f"{path} is not the file the model was made from (its SHA-256 is another).")
    if not data["plain"]:
        raise predict.Unusable(f"{path} was not read as it stands. Give the data.parquet of the run instead.")
    frame = predict.read(path, schema)
    columns = [each for each in schema["columns"] if each["name"] in frame.columns]
    return pd.DataFrame({each["name"]: predict.cast(frame[each["name"]], each, schema["reading"]) for each in columns})


def again(frame: pd.DataFrame, schema: Mapping[str, Any]) -> tuple[Any, float]:
    """Returns the model, trained again, and its score on the test rows."""
    split = pd.read_parquet(predict.HERE / "split.parquet").sort_values("row")
    if len(split) != len(frame):
        raise predict.Unusable(f"The data has {len(frame):,} rows where {len(split):,} are expected.")
    part = split["part"].to_numpy()
    seen, test = frame[part == "train"], frame[part == "test"]
    plan = schema["plan"]
    model = clone(predict.load_model(schema)).fit(prepare(seen, plan), target_of(seen, plan))
    case = case_of(model, prepare(test, plan), target_of(test, plan), schema)
    return model, metrics_of(case)[schema["metric"]](Draw(case, np.ones(len(test))))


def case_of(model: Any, ready: pd.DataFrame, truth: "pd.Series[Any]", schema: Mapping[str, Any]) -> Case:
    """Returns what the model says of rows beside what is true."""
    if schema["task"] == "regression":
        return Case(truth.to_numpy(dtype=float), np.asarray(model.predict(ready), dtype=float))
    chances, classes = model.predict_proba(ready), tuple(schema["classes"])
    said = np.pad(chances, ((0, 0), (0, len(classes) - chances.shape[1])))
    numbers = truth.astype(str).map({name: at for at, name in enumerate(classes)}).to_numpy(dtype=int)
    positive = classes.index(schema["positive_class"]) if schema["positive_class"] is not None else -1
    return Case(numbers, said, classes, positive, schema["threshold"] or 0.5)


if __name__ == "__main__":
    sys.exit(main())
