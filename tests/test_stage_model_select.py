"""MODEL_SELECT: how models are judged, which are tried, and what the forecast says before anything is fitted."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from stages import costs, model_select, scheduling, scoring
from stages.contract import Failed, Limits
from tests.tables_at_hand import leave, run_stage, work_here
from tests.trained import numbers, prepared, selected

THREE = ("dummy", "linear")


def _laid(folder: Path, rows: int | None = None, task: str = "binary", **intent: Any) -> Path:
    target = "amount" if task == "regression" else "label"
    prepared(folder, numbers(), target, task, rows=rows, **intent)
    return folder


def _tried(result: dict[str, Any]) -> list[str]:
    return [each["id"] for each in result["candidates"] if each["selected"]]


def test_the_usual_measure_of_each_task_has_a_reason(tmp_path: Path) -> None:
    for task, name in (("binary", "roc_auc"), ("multiclass", "roc_auc_ovr"), ("regression", "r2")):
        metric = selected(_laid(tmp_path, task=task))["metric"]
        assert metric["name"] == name
        assert metric["higher_better"]
        assert len(metric["why"]) > 20


@pytest.mark.parametrize(
    ("said", "task", "name"),
    [("AUC", "binary", "roc_auc"), ("f1-score", "multiclass", "f1_macro"), ("RMSE", "regression", "rmse")],
)
def test_the_measure_of_the_objective_is_taken_by_its_everyday_name(
    tmp_path: Path, said: str, task: str, name: str
) -> None:
    found = work_here(model_select.work, _laid(tmp_path, task=task, metric=said), "MODEL_SELECT")
    assert found.result["metric"]["name"] == name
    assert not found.warnings


def test_a_measure_that_cannot_judge_the_task_is_said_and_not_used(tmp_path: Path) -> None:
    found = work_here(model_select.work, _laid(tmp_path, metric="rmse"), "MODEL_SELECT")
    assert found.result["metric"]["name"] == "roc_auc"
    assert [issue.code for issue in found.warnings] == ["METRIC_UNKNOWN"]


@pytest.mark.parametrize(
    "edits",
    [
        {"metric": "rmse"},
        {"metric": "no such"},
        {"budget_s": "soon"},
        {"budget_s": -1},
        {"budget_s": float("nan")},
        {"candidates": ["nothing"]},
        {"candidates": []},
        {"candidates": {"linear": 1}},
        {"optimise": "beauty"},
        {"colour": "red"},
    ],
)
def test_a_choice_that_was_not_offered_is_refused_by_name(tmp_path: Path, edits: dict[str, Any]) -> None:
    with pytest.raises(Failed) as refused:
        selected(_laid(tmp_path), edits=edits)
    assert refused.value.issue.code == "BAD_EDIT"
    assert next(iter(edits)) in str(refused.value)


def test_every_field_that_is_offered_is_taken(tmp_path: Path) -> None:
    edits = {"metric": "log_loss", "budget_s": 30, "candidates": ["hgb-columns"], "optimise": "size"}
    found = work_here(model_select.work, _laid(tmp_path), "MODEL_SELECT", edits=edits)
    assert (found.result["metric"]["name"], found.result["budget_s"]) == ("log_loss", 30.0)
    assert not found.result["metric"]["higher_better"]
    assert set(_tried(found.result)) == {*THREE, "hgb", "hgb-columns"}
    assert {each["folds"] for each in found.result["candidates"] if each["selected"]} == {found.result["folds"]}
    assert {action.field for action in found.actions if action.kind in ("CHOOSE", "EDIT")} == set(edits)
    assert {action.kind for action in found.actions} >= {"CONFIRM", "BACK", "ABORT"}


def test_small_and_quick_leave_the_large_and_the_slow_out(tmp_path: Path) -> None:
    small = _tried(selected(_laid(tmp_path, rows=2_000), edits={"optimise": "size"}))
    quick = _tried(selected(tmp_path, edits={"optimise": "speed"}))
    usual = _tried(selected(tmp_path))
    assert "extra-trees" in usual
    assert "extra-trees" not in small
    assert len(quick) < len(small) < len(usual)
    assert {*THREE, "hgb"} <= set(quick)
    first = {each["id"]: each["folds"] for each in selected(tmp_path)["candidates"] if each["selected"]}
    assert first["hgb"] == first["linear"] == 3 > first["hgb-columns"] == 1, "what nobody asked for begins on a part"


def test_the_schedule_follows_from_the_budget_and_always_holds_three(tmp_path: Path) -> None:
    _laid(tmp_path, rows=75_000)
    counts = []
    for budget in (10, 20, 60, 300):
        result = selected(tmp_path, edits={"budget_s": budget})
        tried = _tried(result)
        assert {*THREE} <= set(tried)
        assert {"hgb", "hgb-quick"} & set(tried)
        assert result["too_small"] or result["est_cpu_s"] <= budget
        counts.append(len(tried) * result["folds"])
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("budget_s", [1.0, 6.0])
@pytest.mark.parametrize("rows", [22, 258])
def test_a_small_table_gets_every_fold_in_any_budget(rows: int, budget_s: float) -> None:
    shape = costs.Shape(rows, numbers=5, categories=2, texts=0, dates=0, wide=40, outputs=3)
    made = scheduling.schedule(model_select._candidates("multiclass", shape), shape, 5, budget_s)
    assert (made.folds, made.rows, made.too_small) == (5, rows, False)
    assert made.tried == ("dummy", "linear", "hgb")


def test_a_budget_too_small_is_said_and_means_fewer_rows(tmp_path: Path) -> None:
    _laid(tmp_path, rows=2_000_000)
    limits = Limits(mem_mb=4096)
    found = work_here(model_select.work, tmp_path, "MODEL_SELECT", edits={"budget_s": 8}, limits=limits)
    assert [issue.code for issue in found.warnings] == ["BUDGET_TOO_SMALL"]
    assert found.result["rows"] < 2_000_000
    assert _tried(found.result) == ["dummy", "linear", "hgb-quick"]
    assert found.result["est_cpu_s"] <= 8


def test_the_budget_never_passes_what_the_run_allows(tmp_path: Path) -> None:
    found = work_here(model_select.work, _laid(tmp_path, budget_s=500), "MODEL_SELECT", limits=Limits(cpu_s=100))
    assert found.result["budget_s"] == 95.0
    assert [issue.code for issue in found.warnings] == ["BUDGET_CUT"]


def test_what_needs_more_memory_than_there_is_is_left_out_or_refused(tmp_path: Path) -> None:
    _laid(tmp_path, rows=19_000)
    result = selected(tmp_path, limits=Limits(mem_mb=350), edits={"budget_s": 500})
    assert any("memory" in each["why"] for each in result["candidates"])
    with pytest.raises(Failed) as refused:
        selected(tmp_path, limits=Limits(mem_mb=200))
    assert refused.value.issue.code == "MEMORY_LIMIT"


def test_without_columns_there_is_nothing_to_choose(tmp_path: Path) -> None:
    leave(_laid(tmp_path), "PREPROCESS", {"features": [], "task": "binary"})
    with pytest.raises(Failed) as refused:
        selected(tmp_path)
    assert refused.value.issue.code == "NO_FEATURES"


def test_the_program_runs_by_hand_without_loading_scikit_learn(tmp_path: Path) -> None:
    left = run_stage(_laid(tmp_path), "MODEL_SELECT")
    assert left.exit == 0, left.stderr
    assert left["status"] == "OK"
    assert len(left["summary"]) <= 600
    again = run_stage(tmp_path, "MODEL_SELECT")
    assert again["result"] == left["result"]
    assert left["metrics"]["cpu_s"] < 1.5
    missing = run_stage(tmp_path / "empty", "MODEL_SELECT")
    assert (missing.exit, missing["error"]["code"]) == (2, "INPUT_MISSING")
    assert sys.executable not in str(missing)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_measure_has_the_value_that_scikit_learn_gives(task: scoring.Task) -> None:
    draw = np.random.default_rng(3)
    classes = ["a", "b", "c"][: 2 if task == "binary" else 3]
    if task == "regression":
        y, said = draw.normal(size=200), draw.normal(size=200)
    else:
        y = draw.choice(classes, 200).astype(object)
        said = draw.dirichlet(np.ones(len(classes)), 200).round(2)  # rounded, so that there are ties
        said /= said.sum(axis=1, keepdims=True)
    guessed = None if task == "regression" else np.asarray(classes, dtype=object)[said.argmax(axis=1)]
    for name in scoring.names(task):
        ours = scoring.value(name, y, said, classes if guessed is not None else (), None)
        theirs = _theirs(name, y, said, guessed, classes)
        assert ours == pytest.approx(theirs, abs=1e-12), name


def _theirs(name: str, y: Any, said: Any, guessed: Any, classes: list[str]) -> float:
    top = None if guessed is None else said[:, -1]
    known = {
        "roc_auc": lambda: metrics.roc_auc_score(y == classes[-1], top),
        "roc_auc_ovr": lambda: metrics.roc_auc_score(y, said, multi_class="ovr", labels=classes),
        "average_precision": lambda: metrics.average_precision_score(y == classes[-1], top),
        "log_loss": lambda: metrics.log_loss(y, said, labels=classes),
        "brier": lambda: metrics.brier_score_loss(y == classes[-1], top),
        "accuracy": lambda: metrics.accuracy_score(y, guessed),
        "balanced_accuracy": lambda: metrics.balanced_accuracy_score(y, guessed),
        "f1": lambda: metrics.f1_score(y, guessed, pos_label=classes[-1]),
        "f1_macro": lambda: metrics.f1_score(y, guessed, average="macro"),
        "r2": lambda: metrics.r2_score(y, said),
        "rmse": lambda: metrics.root_mean_squared_error(y, said),
        "mae": lambda: metrics.mean_absolute_error(y, said),
    }
    return float(known[name]())


def test_predictions_that_are_no_numbers_have_no_value() -> None:
    with pytest.raises(ValueError, match="not all numbers"):
        scoring.value("r2", np.ones(3), np.array([1.0, np.nan, 2.0]))
    with pytest.raises(ValueError, match="one class"):
        scoring.value("roc_auc", np.array(["a", "a"]), np.full((2, 2), 0.5), ["a", "b"])
