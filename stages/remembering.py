"""Keeps what the folds have shown, so that taking another model at the gate costs one fit and no second search.

What is kept holds for exactly the same table, plan, candidates, budget and seed; a hash of all of them says so.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import sklearn

from stages.contract import Room, replacing, sha256_of
from stages.search import Trial

KEPT = "trials.npz"
ARRAYS = ("candidate", "predicted")  # of a Trial, that are not kept as JSON
SAME = ("candidates", "metric", "folds", "rows", "budget_s")  # of MODEL_SELECT's result


def key_of(room: Room, plan: Mapping[str, Any], selected: Mapping[str, Any], seed: int) -> str:
    """Returns a hash of everything that what the folds show follows from. Raises Failed with INPUT_MISSING."""
    files = [
        sha256_of(room.of(stage, name))
        for stage, name in (("DATA_SOURCE", "data.parquet"), ("PREPROCESS", "split.parquet"))
    ]
    all_ = [files, plan, [selected[name] for name in SAME], seed, sklearn.__version__]
    return hashlib.sha256(json.dumps(all_, sort_keys=True).encode()).hexdigest()


def remember(room: Room, key: str, trials: Sequence[Trial], used_s: float) -> None:
    """Keeps the trials and how much of the budget was used up to here."""
    named = [field.name for field in fields(Trial) if field.name not in ARRAYS]
    told = [{"id": trial.id} | {name: getattr(trial, name) for name in named} for trial in trials]
    said = {f"{place}-{fold}": each for place, trial in enumerate(trials) for fold, each in enumerate(trial.predicted)}
    with replacing(room.path(KEPT)) as path, path.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            key=np.array(key),
            used_s=np.array(used_s),
            told=np.array(json.dumps(told)),
            **said,
        )


def recalled(room: Room, key: str, candidates: Sequence[Mapping[str, Any]]) -> tuple[list[Trial], float]:
    """Returns the trials of an earlier attempt and the seconds it had used; none when there was none with this key."""
    try:
        with np.load(room.path(KEPT), allow_pickle=False) as kept:
            return (_read(kept, candidates), float(kept["used_s"])) if str(kept["key"]) == key else ([], 0.0)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none, or not whole: it is made again
        return [], 0.0


def _read(kept: Any, candidates: Sequence[Mapping[str, Any]]) -> list[Trial]:
    by_id = {candidate["id"]: candidate for candidate in candidates}
    found = []
    for place, told in enumerate(json.loads(str(kept["told"]))):
        said = [kept[f"{place}-{fold}"] for fold in range(len(told["scores"]))]
        found.append(Trial(by_id[told.pop("id")], predicted=said, **told))
    return found
