"""TRAIN: what is tried within the budget, what is chosen and why, and that no test row is ever read."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

from stages import costs, portfolio, preparing, scheduling, scoring, train
from stages.budget import Budget, Late
from stages.choosing import Blender, Judged, choose
from stages.contract import CONTRACT, RESULT, Failed, Progress, Room, cpu_seconds
from stages.folding import read
from stages.remembering import KEPT, key_of, recalled, remember
from stages.search import BEHIND, FAILED, OK, SKIPPED, Search, Trial
from tests.tables_at_hand import REPO, leave, run_stage
from tests.trained import FOLDS, numbers, prepared, selected, trained

FEW = {"candidates": ["linear"]}  # with guessing and one boosting: what is always tried
TIMES = ("fit_cpu_s", "predict_ms")


def _laid(folder: Path, frame: pd.DataFrame | None = None, task: str = "binary", **more: Any) -> Path:
    target = "amount" if task == "regression" else "label"
    other = "label" if task == "regression" else "amount"
    frame = numbers() if frame is None else frame
    prepared(folder, frame, target, task, drop=(other,), **more)
    selected(folder, edits=FEW)
    return folder


def _board(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in result["leaderboard"]]


def _search(folder: Path, seconds: float = 60.0, task: str = "binary") -> Search:
    plan = json.loads((_laid(folder, task=task) / "preprocess" / RESULT).read_text())["result"]
    rows = read(Room("TRAIN", folder), plan)
    metric = scoring.METRICS[scoring.names(plan["task"])[0]]
    return Search(rows, plan, metric, FOLDS, Budget(seconds, since=cpu_seconds()), Progress(), 0)


def _candidate(name: str, **params: Any) -> dict[str, Any]:
    entry = portfolio.ENTRIES[name]
    fitting = portfolio.fitting(entry, "binary", 180, 4)
    return {"id": name, "family": entry.family, "kind": entry.kind, "params": fitting | params, "folds": FOLDS}


@pytest.fixture(autouse=True)
def _young_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage has a process of its own; that of the tests has used processor time before."""
    monkeypatch.setattr(train, "Budget", lambda seconds: Budget(seconds, since=cpu_seconds()))


# ---- what is left ----


@pytest.mark.parametrize(("task", "best"), [("binary", 0.85), ("regression", 0.9)])
def test_the_model_predicts_rows_it_has_not_seen(tmp_path: Path, task: str, best: float) -> None:
    found = trained(_laid(tmp_path, task=task))
    result, plan = found.result, json.loads((tmp_path / "preprocess" / RESULT).read_text())["result"]
    assert result["chosen"]["cv_mean"] > best > result["baseline_score"]
    model = joblib.load(tmp_path / "train" / "model.joblib")
    fresh = numbers(rows=400, seed=9)
    predicted = model.predict(preparing.prepare(fresh, plan))
    truth = preparing.target_of(fresh, plan).to_numpy()
    if task == "regression":
        assert np.corrcoef(predicted, truth)[0, 1] > 0.9
    else:
        assert (predicted == truth).mean() > 0.75
    assert {line["status"] for line in result["leaderboard"]} == {OK}
    assert (tmp_path / "train" / "plot-leaderboard.png").stat().st_size > 5_000
    assert len(found.summary) <= 600
    assert {action.field for action in found.actions} >= {"model", "budget_s", "MODEL_SELECT", "PREPROCESS"}


def test_several_classes_one_of_them_rare_and_not_in_every_fold(tmp_path: Path) -> None:
    frame = numbers()
    frame.loc[[0, 1], "label"] = "odd"  # rows of two folds: the models of those have seen one or none
    frame.loc[2:90:2, "label"] = "third"
    result = trained(_laid(tmp_path, frame, "multiclass")).result
    assert result["classes"] == ["no", "odd", "third", "yes"]
    unseen = pd.read_parquet(tmp_path / "train" / "oof.parquet")
    chances = unseen[[f"proba_{place}" for place in range(4)]].to_numpy()
    assert np.allclose(chances.sum(axis=1), 1, atol=1e-5)
    assert {line["status"] for line in result["leaderboard"]} == {OK}


def test_what_was_said_of_unseen_rows_gives_the_score_of_the_leaderboard(tmp_path: Path) -> None:
    result = trained(_laid(tmp_path), edits={"model": "hgb"}).result
    unseen = pd.read_parquet(tmp_path / "train" / "oof.parquet")
    split = pd.read_parquet(tmp_path / "preprocess" / "split.parquet")
    assert unseen["row"].tolist() == split["row"][split["part"] == "train"].tolist()
    fold = unseen["row"].map(split.set_index("row")["fold"])
    chances = unseen[["proba_0", "proba_1"]].to_numpy()
    scores = [
        scoring.value("roc_auc", unseen["y"][fold == each].to_numpy(), chances[fold == each], ["no", "yes"])
        for each in range(FOLDS)
    ]
    line = next(line for line in result["leaderboard"] if line["id"] == result["chosen"]["id"])
    assert line["scores"] == pytest.approx(scores, abs=1e-5)
    assert line["cv_sd"] == pytest.approx(np.std(scores, ddof=1), abs=1e-5)


def test_test_rows_change_nothing_whatever_is_in_them(tmp_path: Path) -> None:
    clean, poisoned = tmp_path / "clean", tmp_path / "poisoned"
    frame = numbers()
    (clean).mkdir(), (poisoned).mkdir()
    before = trained(_laid(clean, frame)).result
    bad = frame.copy()
    tests = np.arange(len(bad)) % 4 == 3
    bad.loc[tests, "x"] = 1e9
    bad.loc[tests, "level"] = "never seen"
    bad.loc[tests, "label"] = np.where(bad.loc[tests, "label"] == "yes", "no", "yes")
    after = trained(_laid(poisoned, bad)).result
    assert _board(before) == _board(after)
    one, other = (joblib.load(each / "train" / "model.joblib") for each in (clean, poisoned))
    x = frame[["x", "z", "level"]]
    assert np.array_equal(one.predict_proba(x), other.predict_proba(x))


def test_the_same_data_and_seed_give_the_same_answer(tmp_path: Path) -> None:
    _laid(tmp_path)
    one, two = trained(tmp_path, seed=5).result, trained(tmp_path, seed=5).result
    assert _board(one) == _board(two)
    assert one["chosen"] == two["chosen"]


def test_infinite_and_missing_values_are_no_reason_to_fail(tmp_path: Path) -> None:
    frame = numbers()
    frame.loc[::5, "x"] = np.inf
    frame.loc[1::7, "x"] = -np.inf
    frame.loc[::3, "z"] = np.nan
    frame.loc[::6, "level"] = None
    frame.loc[::10, "label"] = None
    result = trained(_laid(tmp_path, frame)).result
    assert {line["status"] for line in result["leaderboard"]} == {OK}


def test_folds_by_time_are_judged_by_models_of_earlier_ones(tmp_path: Path) -> None:
    _laid(tmp_path, kind="TIME")
    plan = json.loads((tmp_path / "preprocess" / RESULT).read_text())["result"]
    rows = read(Room("TRAIN", tmp_path), plan)
    parts = rows.parts(5)
    assert [fold for fold, _, _ in parts] == [1, 2]
    assert all(rows.fold[learned].max() < fold for fold, learned, _ in parts)


# ---- what is tried ----


def test_one_that_is_far_behind_on_some_folds_is_not_tried_on_the_rest_and_ends_the_trying(tmp_path: Path) -> None:
    search = _search(tmp_path)
    bad = {**_candidate("hgb-columns", min_samples_leaf=10_000), "folds": 1}
    later = {**_candidate("hgb-shallow"), "folds": 1}
    found = search.run([_candidate("dummy"), _candidate("linear"), bad, later])
    assert [(trial.status, len(trial.scores)) for trial in found] == [(OK, 3), (OK, 3), (BEHIND, 1), (BEHIND, 0)]


def test_one_that_is_about_as_good_on_some_folds_is_tried_on_all(tmp_path: Path) -> None:
    search = _search(tmp_path)
    near = {**_candidate("hgb-shallow"), "folds": 1}
    found = search.run([_candidate("dummy"), _candidate("linear"), _candidate("hgb-quick"), near])
    assert [len(trial.scores) for trial in found] == [FOLDS] * 4
    assert found[-1].status == OK


def test_boosting_ends_when_it_gains_no_more_and_the_last_fit_takes_as_many_rounds(tmp_path: Path) -> None:
    search = _search(tmp_path)
    search.run([_candidate("dummy"), _candidate("linear"), _candidate("hgb", max_iter=5_000)])
    rounds = search.trials[-1].rounds
    assert len(rounds) == FOLDS and 0 < max(rounds) < 500
    model = train._fitted(search, Judged("hgb", (0.9,), {"hgb": 1.0}), search.plan, 0)
    assert model[-1].n_iter_ == round(np.mean(rounds))


# ---- what is chosen ----


def _judged(name: str, *scores: float) -> Judged:
    return Judged(name, scores, {name: 1.0})


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (
            [_judged("dummy", 0.5, 0.5, 0.5), _judged("linear", 0.8, 0.7, 0.9), _judged("hgb", 0.82, 0.69, 0.91)],
            "linear",
        ),
        ([_judged("dummy", 0.5, 0.5, 0.5), _judged("linear", 0.8, 0.7, 0.9), _judged("hgb", 0.84, 0.74, 0.95)], "hgb"),
        ([_judged("dummy", 0.5, 0.5, 0.5), _judged("linear", 0.52, 0.45, 0.54)], "dummy"),
        ([_judged("dummy", 0.0), _judged("linear", 0.1)], "linear"),
    ],
)
def test_the_simpler_of_two_as_good_is_chosen_and_why_is_said(models: list[Judged], expected: str) -> None:
    choice = choose(models, scoring.METRICS["roc_auc"])
    assert choice.model.id == expected
    assert expected in choice.why


def test_less_is_better_where_the_measure_is_an_error() -> None:
    models = [_judged("dummy", 9.0, 9.0), _judged("linear", 3.0, 3.1), _judged("hgb", 2.0, 2.1)]
    assert choose(models, scoring.METRICS["rmse"]).model.id == "hgb"


def test_noise_is_called_noise(tmp_path: Path) -> None:
    frame = numbers(600)
    frame["label"] = np.random.default_rng(1).choice(["yes", "no"], len(frame))
    found = trained(_laid(tmp_path, frame))
    if found.result["chosen"]["id"] == "dummy":
        assert "NO_BETTER_THAN_BASELINE" in [issue.code for issue in found.warnings]
    assert found.result["chosen"]["cv_mean"] < 0.6


def test_a_blend_has_to_be_clearly_better_than_the_best() -> None:
    draw = np.random.default_rng(0)
    y = [draw.normal(size=200) for _ in range(3)]
    trials = []
    for name in ("linear", "hgb"):
        said = [fold + draw.normal(scale=0.5, size=200) for fold in y]
        scores = [scoring.value("r2", fold, each) for fold, each in zip(y, said, strict=True)]
        trials.append(Trial({"id": name}, scores=scores, predicted=said))
    found = Blender(trials, y, scoring.METRICS["r2"], (), None).blend()
    assert found is not None
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.mean > max(trial.mean for trial in trials) * 1.002
    same = [Trial({"id": name}, scores=trials[0].scores, predicted=trials[0].predicted) for name in ("linear", "hgb")]
    assert Blender(same, y, scoring.METRICS["r2"], (), None).blend() is None


def test_a_blend_is_left_as_a_vote_that_needs_nothing_of_ours(tmp_path: Path) -> None:
    search = _search(tmp_path)
    search.run([_candidate("dummy"), _candidate("linear"), _candidate("hgb-quick")])
    mixed = Judged("blend", (0.9, 0.9, 0.9), {"linear": 0.5, "hgb-quick": 0.5})
    model = train._fitted(search, mixed, search.plan, 0)
    assert all(isinstance(each, Pipeline) for _, each in model.estimators)
    singles = [each.predict_proba(search.rows.x) for each in model.estimators_]
    assert np.allclose(model.predict_proba(search.rows.x), np.mean(singles, axis=0))
    assert set(model.predict(search.rows.x)) <= {"yes", "no"}


def test_a_person_takes_another_model(tmp_path: Path) -> None:
    result = trained(_laid(tmp_path), edits={"model": "hgb"}).result
    assert (result["chosen"]["id"], result["chosen"]["why"]) == ("hgb", "You chose hgb.")
    model = joblib.load(tmp_path / "train" / "model.joblib")
    assert "HistGradientBoosting" in type(model[-1]).__name__


def test_another_model_costs_one_fit_and_no_second_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = trained(_laid(tmp_path)).result
    asked: list[str] = []
    monkeypatch.setattr(Search, "_fold", lambda _self, trial, *_: asked.append(trial.id))
    again = trained(tmp_path, edits={"model": "hgb"}).result
    assert not asked
    assert again["leaderboard"] == before["leaderboard"]
    unseen = pd.read_parquet(tmp_path / "train" / "oof.parquet")
    assert len(unseen) == 180
    assert again["chosen"]["id"] == "hgb"


@pytest.mark.parametrize("change", ["seed", "split", "data", "candidates", "torn"])
def test_what_an_earlier_attempt_found_is_not_used_for_anything_else(tmp_path: Path, change: str) -> None:
    _laid(tmp_path)
    plan, models = (
        json.loads((tmp_path / stage / RESULT).read_text())["result"] for stage in ("preprocess", "model-select")
    )
    room = Room("TRAIN", tmp_path)
    trial = Trial(models["candidates"][0], scores=[0.5], predicted=[np.zeros(3)], fit_s=[0.1], predict_ms=[1.0])
    remember(room, key_of(room, plan, models, 0), [trial], 7.5)
    found, used_s = recalled(room, key_of(room, plan, models, 0), models["candidates"])
    assert used_s == 7.5 and found[0].scores == [0.5] and np.array_equal(found[0].predicted[0], np.zeros(3))
    files = {"split": "preprocess/split.parquet", "data": "data-source/data.parquet"}
    if change in files:
        path = tmp_path / files[change]
        pd.read_parquet(path).iloc[::-1].to_parquet(path, index=False)
    if change == "candidates":
        models["candidates"][1]["selected"] = not models["candidates"][1]["selected"]
    if change == "torn":
        path = room.path(KEPT)
        path.write_bytes(path.read_bytes()[:-40])
    assert recalled(room, key_of(room, plan, models, int(change == "seed")), models["candidates"]) == ([], 0.0)


@pytest.mark.parametrize("edits", [{"model": "extra-trees"}, {"model": "x"}, {"budget_s": "much"}, {"folds": 3}])
def test_nonsense_is_refused_by_name(tmp_path: Path, edits: dict[str, Any]) -> None:
    with pytest.raises(Failed) as refused:
        trained(_laid(tmp_path), edits=edits)
    assert refused.value.issue.code == "BAD_EDIT"
    assert next(iter(edits)) in str(refused.value)


# ---- what fails ----


def test_a_candidate_that_crashes_counts_as_guessing_and_the_others_go_on(tmp_path: Path) -> None:
    _laid(tmp_path)
    result = json.loads((tmp_path / "model-select" / RESULT).read_text())["result"]
    broken = {**_candidate("hgb-columns", max_iter=-1), "why": "", "selected": True, "est_cpu_s": 1, "est_mb": 1}
    kept = [each for each in result["candidates"] if each["id"] != "hgb-columns"]
    leave(tmp_path, "MODEL_SELECT", {**result, "candidates": [*kept, broken]})
    found = trained(tmp_path)
    line = next(line for line in found.result["leaderboard"] if line["id"] == "hgb-columns")
    assert (line["status"], line["cv_mean"]) == (FAILED, found.result["baseline_score"])
    assert "CANDIDATE_FAILED" in [issue.code for issue in found.warnings]
    assert "/" not in line["error"]


def test_when_all_fail_the_stage_says_what_the_first_one_said(tmp_path: Path) -> None:
    trials = [Trial({"id": "dummy"}), Trial({"id": "linear"}, FAILED, "ValueError: odd")]
    with pytest.raises(Failed, match="odd") as failed:
        train._usable(trials)
    assert failed.value.issue.code == "TRAINING_FAILED"


def test_memory_that_does_not_suffice_is_named(tmp_path: Path) -> None:
    search = _search(tmp_path)
    search._fit = _short_of_memory  # type: ignore[method-assign]
    with pytest.raises(Failed) as failed:
        train._usable(search.run([_candidate("linear"), _candidate("hgb")]))
    assert failed.value.issue.code == "MEMORY_LIMIT"


def _short_of_memory(_trial: Trial, _place: int) -> None:
    raise MemoryError


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    (_laid(tmp_path) / "preprocess" / "split.parquet").unlink()
    with pytest.raises(Failed) as failed:
        trained(tmp_path)
    assert failed.value.issue.code == "INPUT_MISSING"


def test_a_target_without_values_is_named(tmp_path: Path) -> None:
    frame = numbers()
    _laid(tmp_path, frame)
    frame.assign(label=None).to_parquet(tmp_path / "data-source" / "data.parquet", index=False)
    with pytest.raises(Failed) as failed:
        trained(tmp_path)
    assert failed.value.issue.code == "NO_ROWS"


# ---- the budget ----


class Ticking:
    """A clock on which everything takes `step` seconds, however long it takes."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def _on_a_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, step: float) -> tuple[dict[str, Any], list[str]]:
    monkeypatch.setattr(train, "Budget", lambda seconds: Budget(seconds, Ticking(step)))
    (folder / "train" / KEPT).unlink(missing_ok=True)
    found = trained(folder)
    return found.result, [issue.code for issue in found.warnings]


def test_no_clock_decides_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path, numbers(), "label", "binary", drop=("amount",))
    selected(tmp_path, edits={"budget_s": 40})
    usual, slow, quick, hopeless = (_on_a_machine(tmp_path, monkeypatch, step) for step in (0.15, 0.45, 0.05, 2.0))
    assert len(usual[0]["leaderboard"]) > 5, "there is something to leave out"
    assert slow[0]["budget_used_s"] > 25, "the slow machine is slow enough to tempt"
    for found, codes in (slow, quick):
        assert _board(found) == _board(usual[0])
        assert found["chosen"] == usual[0]["chosen"]
        assert "BUDGET_REACHED" not in codes
    assert "BUDGET_REACHED" in hopeless[1], "where the clock has to decide, it is said"
    assert {line["id"] for line in hopeless[0]["leaderboard"] if line["status"] == OK} >= {"dummy", "linear", "hgb"}


def test_a_blend_that_only_the_clock_leaves_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = _search(tmp_path)
    search.run([_candidate("dummy"), _candidate("linear"), _candidate("hgb-quick")])
    mixed = Judged("blend", (0.9, 0.9, 0.9), {"linear": 0.5, "hgb-quick": 0.5})
    monkeypatch.setattr(Blender, "blend", lambda _self: mixed)
    assert train._blend(search, search.plan) == (mixed, ())
    search.budget.resume(63.0)
    assert train._blend(search, search.plan) == (None, ("blend",))
    search.budget.seconds = 5.0
    assert train._blend(search, search.plan) == (None, ()), "the forecast has left it out, so it is so everywhere"


def test_a_step_that_takes_too_long_is_ended_by_processor_time() -> None:
    before = cpu_seconds()
    with pytest.raises(Late), Budget(0.3, since=before).ending(reserve=0.1):
        while cpu_seconds() - before < 20:
            sum(range(1000))
    assert cpu_seconds() - before < 10, "a busy machine counts in coarse steps"
    assert signal.getsignal(signal.SIGPROF) == signal.SIG_DFL


class _Clearing:
    """What is raised while this is cleared away is dropped by Python."""

    def __del__(self) -> None:
        until = cpu_seconds() + 0.3
        while cpu_seconds() < until:
            sum(range(100))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_end_that_python_drops_is_asked_for_again() -> None:
    before = cpu_seconds()
    with pytest.raises(Late), Budget(0.2, since=before).ending(reserve=0.1):
        _Clearing()
        while cpu_seconds() - before < 5:
            sum(range(1000))
    assert cpu_seconds() - before < 4


def test_what_does_not_fit_is_skipped_and_three_are_tried_whatever_the_budget(tmp_path: Path) -> None:
    search = _search(tmp_path, seconds=0.01)
    names = ("dummy", "linear", "hgb-quick", "hgb", "hgb-deep")
    found = {trial.id: trial.status for trial in search.run([_candidate(name) for name in names])}
    assert found == {**dict.fromkeys(names[:3], OK), "hgb": SKIPPED, "hgb-deep": SKIPPED}


def test_a_candidate_far_dearer_than_forecast_is_stopped_and_the_budget_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "fitting", lambda *_: 0.05)
    monkeypatch.setattr(costs, "CLOSE_S", 0.2)
    search = _search(tmp_path, seconds=6.0)
    endless = _candidate("hgb-deep", max_iter=200_000, learning_rate=1e-6)
    found = search.run([_candidate("dummy"), _candidate("linear"), _candidate("hgb-quick"), endless])
    assert [trial.status for trial in found] == [OK, OK, OK, SKIPPED]
    assert "ended" in found[-1].error
    assert search.budget.used <= 6.0 * 1.1


def test_the_machine_being_slow_is_said(tmp_path: Path) -> None:
    search = _search(tmp_path, seconds=0.01)
    search.run([_candidate("dummy"), _candidate("linear"), _candidate("hgb-quick"), _candidate("hgb")])
    choice = choose([_judged("linear", 0.9, 0.9)], search.metric)
    issues = list(train._issues(search, choice, {}, {"too_small": False}, search.plan, ()))
    assert [issue.code for issue in issues] == ["BUDGET_REACHED"]
    assert "hgb" in issues[0].message


def test_too_small_a_budget_learns_from_fewer_rows_and_says_so(tmp_path: Path) -> None:
    _laid(tmp_path, numbers(6_000))
    select = json.loads((tmp_path / "model-select" / RESULT).read_text())["result"]
    leave(tmp_path, "MODEL_SELECT", {**select, "rows": 1_000, "too_small": True, "folds": 2})
    found = trained(tmp_path)
    assert 1_000 <= found.result["rows"] <= 1_002, "with a row of each class, whatever was drawn"
    assert "BUDGET_TOO_SMALL" in [issue.code for issue in found.warnings]
    assert {"dummy", "linear"} <= {line["id"] for line in found.result["leaderboard"] if line["status"] == OK}


def test_more_time_at_the_gate_tries_more(tmp_path: Path) -> None:
    _laid(tmp_path, rows=60_000)
    plan = json.loads((tmp_path / "preprocess" / RESULT).read_text())["result"]
    few = chosen_ids(train._again(selected(tmp_path), plan, 15.0))
    many = chosen_ids(train._again(selected(tmp_path), plan, 300.0))
    assert {"dummy", "linear"} <= few < many | {"hgb-quick"}


def chosen_ids(result: dict[str, Any]) -> set[str]:
    """Returns which are tried."""
    return {each["id"] for each in result["candidates"] if each["selected"]}


def test_forecasts_grow_with_rows_and_the_schedule_is_the_same_each_time() -> None:
    shape = costs.Shape(10_000, 8, 4, 0, 0, 30, 1)
    large = costs.Shape(100_000, 8, 4, 0, 0, 30, 1)
    names = [entry.id for entry in portfolio.entries(shape.rows)]
    candidates = [_candidate(name) for name in names]
    for candidate in candidates[1:]:
        assert costs.fitting(candidate, large, 100_000) > costs.fitting(candidate, shape, 10_000)
        fitted = portfolio.fitting(portfolio.ENTRIES[candidate["id"]], "binary", 100_000, 30)
        assert costs.megabytes({**candidate, "params": fitted}, large) < 1024, "100,000 rows have to fit in 1 GB"
    one, two = (scheduling.schedule(candidates, shape, 5, 60.0) for _ in range(2))
    assert one == two


# ---- the program ----


def test_the_program_tells_each_fold_and_keeps_its_budget(tmp_path: Path) -> None:
    _laid(tmp_path)
    left = run_stage(tmp_path, "TRAIN")
    assert left.exit == 0, left.stderr
    told = [event for event in left.events if event.get("candidate")]
    assert len(told) == FOLDS * 3
    assert [event["done"] for event in told] == list(range(1, len(told) + 1))
    assert all({"best", "budget_share", "total"} <= event.keys() for event in told)
    assert left.events[-1] == {"event": "result", "path": f"train/{RESULT}"}
    assert left["result"]["budget_used_s"] <= left["result"]["budget_s"] * 1.1
    assert {artifact["name"] for artifact in left["artifacts"]} >= {"model.joblib", "oof.parquet"}


def test_a_cancelled_program_leaves_at_once_and_says_so(tmp_path: Path) -> None:
    _laid(tmp_path)
    result = json.loads((tmp_path / "model-select" / RESULT).read_text())["result"]
    endless = {
        **_candidate("hgb", max_iter=500_000, learning_rate=1e-6),
        "why": "",
        "selected": True,
        "est_cpu_s": 1,
        "est_mb": 1,
    }
    leave(tmp_path, "MODEL_SELECT", {**result, "candidates": [*result["candidates"][:2], endless]})
    (tmp_path / "envelope.json").write_text(json.dumps({"contract": CONTRACT, "stage": "TRAIN"}))
    variables = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.train", "envelope.json"]
    program = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True)
    assert program.stdout
    for line in program.stdout:
        if json.loads(line).get("candidate") == "linear":
            break
    program.terminate()
    asked = time.monotonic()
    program.wait(timeout=30)
    assert program.returncode == 2
    assert time.monotonic() - asked < 20
    left = json.loads((tmp_path / "train" / RESULT).read_text())
    assert (left["status"], left["error"]["code"]) == ("FAILED", "CANCELLED")
