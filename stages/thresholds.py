"""From which probability on the asked-for class is called: chosen on training rows, so the test rows stay unseen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.contract import Failed, Room
from stages.judging import Case, Draw, metrics_of
from stages.trial import Trial

DEFAULT = 0.5
LEAST, MOST = 0.001, 0.999
GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, slots=True)
class Choice:
    """What a threshold does on training rows, each judged by a model that had not seen it.

    Attributes:
        called: share of the rows that are called.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    balanced_accuracy: float
    called: float


def table_of(trial: Trial, room: Room) -> list[Choice]:
    """Returns what each threshold of GRID does, by TRAIN's predictions out of fold; none without two classes."""
    if trial.positive < 0:
        return []
    try:
        kept = pd.read_parquet(room.of("TRAIN", "oof.parquet"))
    except Failed:  # it is only a help
        return []
    said = kept[[name for name in kept.columns if name.startswith("proba")]].to_numpy(dtype=float)
    known = np.isfinite(said).all(axis=1)
    rows = kept["row"].to_numpy()[known]
    if said.shape[1] != len(trial.classes) or not len(rows):
        return []
    return [_choice(trial.case(trial.truth(rows), said[known], threshold)) for threshold in GRID]


def _choice(case: Case) -> Choice:
    draw = Draw(case, np.ones(len(case.truth)))
    values = {name: metrics_of(case)[name](draw) for name in ("precision", "recall", "f1", "balanced_accuracy")}
    return Choice(case.threshold, **values, called=float((case.labels == case.positive).mean()))


def suggested(table: Sequence[Choice]) -> float | None:
    """Returns the threshold of the best balanced accuracy, the one nearest to DEFAULT of several."""
    if not table:
        return None
    return max(table, key=lambda row: (round(row.balanced_accuracy, 3), -abs(row.threshold - DEFAULT))).threshold
