"""EXPORT: the accepted model as files that work elsewhere, proven in a fresh process before the stage is done.

By hand: `python -m stages.export envelope.json` in the folder of a run.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages import card, folding
from stages.bundling import BUNDLE, copy_programs, pack, write_skops
from stages.contract import Action, Artifact, Envelope, Failed, Issue, Json, Progress, Result, Room, main
from stages.judging import Draw, metrics_of
from stages.locking import NEEDED, lock
from stages.shown import plain
from stages.smoke import prove, reproduce
from stages.thresholds import DEFAULT
from stages.trial import Trial, load
from stages.typed import MISSING
from stages.wording import counted, quoted

FORMATS = ("joblib", "skops")
MAX_NAME, MAX_LICENCE = 80, 200  # characters
TOLERANCE = 1e-3  # of a score made again, as a share of it beyond one: other processors add in another order
CHEAP_S = 30.0  # a model fitted in less is trained again to prove train.py
MODEL_FILES = {"joblib": "model.joblib", "skops": "model.skops"}
TYPES = {
    ".joblib": "application/octet-stream",
    ".skops": "application/zip",
    ".json": "application/json",
    ".py": "text/x-python",
    ".lock": "text/plain",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".zip": "application/zip",
}
TITLES = {
    "model.joblib": "The model (joblib)",
    "model.skops": "The model (skops: loads only trusted types)",
    "schema.json": "What the model takes and gives",
    "predict.py": "Predicts rows of a file",
    "train.py": "Trains the model again and checks its score",
    "preparing.py": "Makes of rows what the model takes",
    "judging.py": "Computes the score",
    "split.parquet": "Which rows were learned from and tested on",
    "requirements.lock": "The packages it needs",
    "model-card.md": "The model card",
    "manifest.json": "The files and their SHA-256",
    "bundle.zip": "All of these files",
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person chose: the model's name, its licence, and the formats it is written in."""

    name: str
    licence: str
    formats: tuple[str, ...]


def work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    """Does the stage. Raises Failed with INPUT_MISSING, BAD_EDIT, EXPORT_SMOKE_TEST_FAILED."""
    progress.tell(0, "reading", always=True)
    trial, source, reviewed = load(room), room.result_of("DATA_SOURCE"), room.result_of("REVIEW_EDIT")
    if reviewed.get("opened", {}).get("model_sha256") != trial.model_sha256:
        text = "REVIEW_EDIT judged another model than the one TRAIN left. Do REVIEW_EDIT again."
        again = Action("back-review", "Do REVIEW_EDIT again", "BACK", "REVIEW_EDIT")
        raise Failed("INPUT_MISSING", text, value="review-edit/result.json", actions=(again,))
    wishes = _wishes(envelope, trial)
    _clear(room)
    progress.tell(10, "writing", "the model", always=True)
    issues: list[Issue] = []
    types = _write_models(room, trial, wishes, issues)
    formats = tuple(each for each in FORMATS if room.path(MODEL_FILES[each]).exists())
    schema = _schema(trial, source, reviewed, wishes, types)
    names = [MODEL_FILES[each] for each in formats] + _write_rest(room, trial, schema, reviewed, wishes, envelope.seed)
    files = pack(room.own, names)
    progress.tell(40, "proving", "predictions of the bundle in a fresh process", always=True)
    proof = prove(room.own, trial, schema, formats)
    progress.tell(75, "proving", "training again", always=True)
    again = _again(room, trial, schema, issues)
    result: dict[str, Json] = {
        "files": files,
        "smoke_test": {"rows": proof.rows, "max_abs_diff": proof.max_abs_diff, "ok": True, "ways": list(proof.ways)},
        "reproduce": {**schema["reproduce"], "checked": again},
        "name": wishes.name,
        "licence": wishes.licence,
        "formats": list(formats),
        "trusted_types": types,
        "card_path": "export/model-card.md",
        "bundle_path": f"export/{BUNDLE}",
    }
    artifacts = [Artifact(each["path"], TYPES[Path(each["path"]).suffix], TITLES[each["path"]]) for each in files]
    size = next(each["bytes"] for each in files if each["path"] == BUNDLE)
    summary = (
        f"{quoted(wishes.name)} is ready: one file of {size / 1e6:.2g} MB with the model, predict.py and a model card. "
        f"Unpacked in a fresh process it gave the same predictions on {counted(proof.rows, 'row')}, with columns in "
        "another order, missing and added."
    )
    return Result(summary, result, _actions(wishes), issues, artifacts)


def _wishes(envelope: Envelope, trial: Trial) -> Wishes:
    """Returns what was chosen. Raises Failed with BAD_EDIT that names the field."""
    edits = envelope.edits
    for field in edits:
        if field not in ("name", "licence", "formats"):
            raise _bad(str(field), f"There is nothing called {plain(str(field))} to change here.")
    name, licence = edits.get("name", f"{trial.plan['target']} model"), edits.get("licence", "")
    if not isinstance(name, str) or not plain(name):
        raise _bad("name", "name must be a text with at least one letter.")
    if not isinstance(licence, str):
        raise _bad("licence", "licence must be a text, for example MIT.")
    formats = edits.get("formats", list(FORMATS))
    if not isinstance(formats, list) or not formats or any(each not in FORMATS for each in formats):
        raise _bad("formats", f"formats must be one or both of {', '.join(FORMATS)}.")
    return Wishes(plain(name, MAX_NAME), plain(licence, MAX_LICENCE), tuple(sorted(set(formats))))


def _bad(field: str, text: str) -> Failed:
    return Failed("BAD_EDIT", text, value=plain(field), suggestion=f"Choose another value for {plain(field)}.")


def _clear(room: Room) -> None:
    """Removes what an earlier attempt left: a file of another choice must not stay beside the new ones."""
    for path in room.own.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_models(room: Room, trial: Trial, wishes: Wishes, issues: list[Issue]) -> list[str]:
    """Writes the model in the formats asked for; returns the types that skops asks to trust."""
    types: list[str] = []
    if "skops" in wishes.formats:
        try:
            types = write_skops(trial.model, room.path("model.skops"))
        except Failed:  # cancelled, or out of time
            raise
        except Exception as error:  # skops raises whatever a foreign estimator's state leads to
            text = f"The model cannot be written as skops ({plain(type(error).__name__)}); it is written with joblib."
            issues.append(Issue("SKOPS_NOT_WRITTEN", "WARN", text, suggestion="Use model.joblib."))
    if "joblib" in wishes.formats or not room.path("model.skops").exists():
        shutil.copyfile(room.of("TRAIN", "model.joblib"), room.path("model.joblib"))
    return types


def _schema(
    trial: Trial, source: Mapping[str, Json], reviewed: Mapping[str, Json], wishes: Wishes, types: Sequence[str]
) -> dict[str, Json]:
    threshold = (reviewed.get("threshold") or {}).get("value")
    roles = {entry["column"]: entry["role"] for entry in trial.plan["plan"]}
    columns = [{**each, "role": roles.get(each["name"], "TARGET")} for each in source["columns"]]
    case = trial.case(trial.truth(trial.test), trial.said(trial.prepared(trial.test)), threshold or DEFAULT)
    expected = metrics_of(case)[trial.metric](Draw(case, np.ones(len(trial.test))))
    name = plain(str(source["path"]).rsplit("/", 1)[-1], 60)
    command = f"python train.py {name}" if _is_plain(source) else "python train.py data.parquet"
    return {
        "format": "conductor-model/1",
        "name": wishes.name,
        "licence": wishes.licence,
        "model": str(trial.trained["chosen"].get("id")),
        "target": trial.plan["target"],
        "task": trial.plan["task"],
        "classes": list(trial.classes),
        "positive_class": trial.classes[trial.positive] if trial.positive >= 0 else None,
        "threshold": threshold,
        "metric": trial.metric,
        "test": reviewed["test"],
        "columns": columns,
        "plan": trial.plan,
        "reading": {
            "delimiter": source.get("delimiter"),
            "encoding": source.get("encoding"),
            "decimal": source.get("decimal") or ".",
            "header": source.get("header"),
            "null_markers": _markers(trial, source),
        },
        "data": {
            "name": name,
            "sha256": source["sha256"],
            "parquet_sha256": trial.data_sha256,
            "plain": _is_plain(source),
            "rows": len(trial.frame),
            "n_train": len(trial.train),
            "n_test": len(trial.test),
        },
        "reproduce": {"command": command, "expected": expected, "tolerance": TOLERANCE * max(1.0, abs(expected))},
        "trusted_types": list(types),
    }


def _is_plain(source: Mapping[str, Json]) -> bool:
    """Returns whether the file can be read without DATA_SOURCE: text as it stands, every line a row."""
    text = source.get("format") in ("csv", "tsv") and not source.get("packing")
    fewer = any(source.get(key) for key in ("sampled", "bad_rows", "repeated_names"))
    return bool(text and not fewer and source.get("header") in (0, 1))


def _markers(trial: Trial, source: Mapping[str, Json]) -> list[str]:
    """Returns what counts as missing in a cell: the usual words and those met, but for what was kept as a text."""
    known = {*MISSING, *source.get("null_markers", [])}
    texts = [trial.frame[each["name"]] for each in source["columns"] if each["type"] == "text"]
    kept = {value for column in texts for value in column[column.isin(known)].unique()}
    return sorted(known - kept)


def _write_rest(
    room: Room, trial: Trial, schema: dict[str, Json], reviewed: Mapping[str, Json], wishes: Wishes, seed: int
) -> list[str]:
    packages = [str(name) for name in (trial.trained["chosen"].get("packages") or [])]
    texts = {
        "schema.json": json.dumps(schema, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "requirements.lock": lock((*NEEDED, *packages)),
        "model-card.md": card.write(schema, reviewed, trial.plan, wishes.licence),
    }
    for name, text in texts.items():
        room.path(name).write_text(text, encoding="utf-8")
    _write_split(room, trial, seed)
    return [*texts, "split.parquet", *copy_programs(room.own)]


def _write_split(room: Room, trial: Trial, seed: int) -> None:
    """Writes which rows the model was fitted on and tested on; a small budget may have left some of the first out."""
    split = pd.read_parquet(room.of("PREPROCESS", "split.parquet"))
    learned = int(trial.trained.get("rows") or len(trial.train))
    if learned < len(trial.train):
        kept = folding.read(room, trial.plan).sample(learned, seed).row
        split["part"] = split["part"].mask((split["part"] == "train") & ~split["row"].isin(kept), "unused")
    split.to_parquet(room.path("split.parquet"), index=False)


def _again(room: Room, trial: Trial, schema: Mapping[str, Json], issues: list[Issue]) -> Json:
    """Trains again with the exported program when that is cheap; returns what it gave, None when it was not done."""
    members = trial.trained["chosen"].get("weights") or {trial.trained["chosen"].get("id"): 1.0}
    board = [row for row in trial.trained.get("leaderboard", []) if row.get("id") in members]
    if sum((row.get("fit_cpu_s") or 0.0) / max(1, (row.get("folds") or 1) - 1) for row in board) > CHEAP_S:
        return None
    told = reproduce(room.own, room.of("DATA_SOURCE", "data.parquet"))
    if not told["same"]:
        text = (
            f"Trained again on the same rows, the model reaches {told['score']:.6g} instead of {told['expected']:.6g}."
        )
        issues.append(
            Issue("NOT_REPRODUCED", "WARN", text, suggestion="Use the exported model, not one trained again.")
        )
    return {"score": told["score"], "same": told["same"]}


def _actions(wishes: Wishes) -> list[Action]:
    return [
        Action("confirm", "Finish: the export is as it should be", "CONFIRM"),
        Action("name", "Name of the model", "EDIT", "name", default=wishes.name),
        Action("licence", "Licence, for example MIT or CC-BY-4.0", "EDIT", "licence", default=wishes.licence),
        Action("formats", "Formats of the model", "CHOOSE", "formats", FORMATS, list(wishes.formats), many=True),
        Action("back-review", "Go back to REVIEW_EDIT", "BACK", "REVIEW_EDIT"),
        Action("abort", "End the run", "ABORT"),
    ]


def run() -> Any:
    """Runs the program."""
    main(work)


if __name__ == "__main__":
    run()
