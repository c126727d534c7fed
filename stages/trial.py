"""The chosen model before rows it has not seen: what TRAIN left, the test rows, and what the model says about them."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import joblib
import numpy as np
import pandas as pd

from stages.contract import Action, Failed, Json, Room, sha256_of
from stages.judging import LOWER_BETTER, Case, Vector, metrics_of
from stages.preparing import prepare, target_of

LOOKS = "opened.json"
TEST, TRAIN = "test", "train"


@dataclass(frozen=True)
class Trial:
    """A model, its data and how the data was split.

    Attributes:
        plan: the result of PREPROCESS.
        trained: the result of TRAIN.
        frame: all rows of data.parquet.
        parts: "train", "test" or "dropped" for each row.
        metric: name of the metric by which the model was chosen.
    """

    plan: dict[str, Json]
    trained: dict[str, Json]
    frame: pd.DataFrame
    parts: Vector
    model: Any
    model_sha256: str
    data_sha256: str
    metric: str

    @property
    def is_classes(self) -> bool:
        """Whether a class is predicted, not a value."""
        return bool(self.plan["task"] != "regression")

    @cached_property
    def test(self) -> Vector:
        """Positions of the test rows."""
        return np.flatnonzero(self.parts == TEST)

    @cached_property
    def train(self) -> Vector:
        """Positions of the rows the model was trained on."""
        return np.flatnonzero(self.parts == TRAIN)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes the model knows, then those that only test rows have: it cannot be right about these."""
        if not self.is_classes:
            return ()
        known = [str(name) for name in self.model.classes_]
        met = target_of(self.frame.iloc[self.test], self.plan).dropna().astype(str).unique()
        return (*known, *sorted(set(met) - set(known)))

    @property
    def positive(self) -> int:
        """Number of the class that is asked for, with two classes; -1 else."""
        if len(self.classes) != 2:
            return -1
        wanted = self.plan.get("positive_class")
        return self.classes.index(wanted) if wanted in self.classes else 1

    def prepared(self, rows: Vector) -> pd.DataFrame:
        """Returns what the model takes, of the rows at these positions."""
        return prepare(self.frame.iloc[rows], self.plan)

    def said(self, prepared: pd.DataFrame) -> Vector:
        """Returns the model's probabilities, a column for each of `classes`, or its values."""
        if not self.is_classes:
            return np.asarray(self.model.predict(prepared), dtype=float)
        return self.widened(np.asarray(self.model.predict_proba(prepared), dtype=float))

    def widened(self, said: Vector) -> Vector:
        """Returns probabilities with a column of zeros for each class the model does not know."""
        return np.pad(said, ((0, 0), (0, len(self.classes) - said.shape[1]))) if self.is_classes else said

    def truth(self, rows: Vector) -> Vector:
        """Returns the class numbers, or the values, of the rows at these positions."""
        target = target_of(self.frame.iloc[rows], self.plan)
        if not self.is_classes:
            return np.asarray(target, dtype=float)
        numbers = {name: number for number, name in enumerate(self.classes)}
        return np.asarray(target.astype(str).map(numbers), dtype=int)

    def case(self, truth: Vector, said: Vector, threshold: float) -> Case:
        """Returns what was said beside what is true."""
        return Case(truth, said, self.classes, self.positive, threshold) if self.is_classes else Case(truth, said)

    @property
    def higher_better(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric not in LOWER_BETTER


def load(room: Room) -> Trial:
    """Reads what TRAIN and the stages before it left. Raises Failed with INPUT_MISSING or TOO_FEW_ROWS."""
    plan, trained = room.result_of("PREPROCESS"), room.result_of("TRAIN")
    path, data = room.of("TRAIN", "model.joblib"), room.of("DATA_SOURCE", "data.parquet")
    split = pd.read_parquet(room.of("PREPROCESS", "split.parquet")).sort_values("row")
    frame = pd.read_parquet(data)
    parts = np.full(len(frame), "dropped", dtype=object)
    parts[split["row"].to_numpy()] = split["part"].to_numpy()
    trial = Trial(
        plan, trained, frame, parts, joblib.load(path), sha256_of(path), sha256_of(data), metric_of(trained["metric"])
    )
    if not len(trial.test):
        advice = "Go back to PREPROCESS and keep rows for the test."
        raise Failed(
            "TOO_FEW_ROWS",
            "No row was kept for the test, so nobody can say how good the model is.",
            suggestion=advice,
            actions=(Action("back-preprocess", "Go back to PREPROCESS: another split", "BACK", "PREPROCESS"),),
        )
    if trial.metric not in metrics_of(
        trial.case(trial.truth(trial.test[:1]), trial.said(trial.prepared(trial.test[:1])), 0.5)
    ):
        raise Failed("INPUT_MISSING", f"The metric {trial.metric} is not known here. Choose another in MODEL_SELECT.")
    return trial


def metric_of(given: Json) -> str:
    """Returns the name of the metric, of TRAIN's `metric`."""
    return str(given["name"] if isinstance(given, dict) else given)


@dataclass(frozen=True, slots=True)
class Looks:
    """Who looked at the test rows.

    Attributes:
        models: how many models were judged on test rows of this data, this one included.
        thresholds: how many thresholds of this model were looked at, this one included.
    """

    models: int
    thresholds: int
    rows_sha256: str


def look(room: Room, trial: Trial, threshold: float | None) -> Looks:
    """Notes, in the stage's folder, that the test rows are looked at, and returns how often they were.

    A look that was noted before is the same look: repeating a stage adds nothing.
    """
    digest = hashlib.sha256(trial.data_sha256.encode() + trial.test.astype("<i8").tobytes()).hexdigest()
    mine = {"data_sha256": trial.data_sha256, "rows_sha256": digest, "rows": len(trial.test)}
    mine |= {"model_sha256": trial.model_sha256, "threshold": threshold}
    path = room.path(LOOKS)
    looks = [one for one in _noted(path.read_text() if path.is_file() else "") if one != mine] + [mine]
    path.write_text(json.dumps({"looks": looks}, indent=1))
    of_data = [one for one in looks if one.get("data_sha256") == trial.data_sha256]
    of_model = [one for one in of_data if one.get("model_sha256") == trial.model_sha256]
    return Looks(len({one.get("model_sha256") for one in of_data}), len(of_model), digest)


def _noted(text: str) -> list[dict[str, Json]]:
    try:
        looks = json.loads(text)["looks"]
    except (ValueError, KeyError, TypeError):  # none yet, or an attempt ended while it was written
        return []
    return [one for one in looks if isinstance(one, dict)]
