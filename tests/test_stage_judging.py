"""What REVIEW_EDIT computes: metrics and their intervals, calibration, importance, effects."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from stages import effects, explaining, judging, portfolio
from stages.explaining import Shuffler, importance, shuffled, sources
from stages.judging import Case, Draw, calibration, guessing, judge, metrics_of
from stages.preparing import encoder, prepare, target_of
from tests.models_at_hand import plan_of
from tests.tables_at_hand import table

RNG = np.random.default_rng(7)


# ---- the figures ----


def some_case(classes: int, rows: int = 300) -> Case:
    truth = RNG.integers(0, classes, rows)
    said = RNG.random((rows, classes)) + 0.6 * np.eye(classes)[truth]
    said = np.round(said / said.sum(axis=1, keepdims=True), 2)  # with ties
    said[:, -1] = 1 - said[:, :-1].sum(axis=1)
    return Case(truth, said, tuple("abcdef"[:classes]), 1 if classes == 2 else -1)


def test_every_metric_of_two_classes_is_scikit_learns() -> None:
    case = some_case(2)
    y, p, called = case.truth, case.said[:, 1], (case.said[:, 1] >= 0.5).astype(int)
    wanted = {
        "roc_auc": metrics.roc_auc_score(y, p),
        "average_precision": metrics.average_precision_score(y, p),
        "accuracy": metrics.accuracy_score(y, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, called),
        "precision": metrics.precision_score(y, called),
        "recall": metrics.recall_score(y, called),
        "f1": metrics.f1_score(y, called),
        "f1_macro": metrics.f1_score(y, called, average="macro"),
        "log_loss": metrics.log_loss(y, case.said),
        "brier": metrics.brier_score_loss(y, p),
    }
    draw = Draw(case, np.ones(len(y)))
    assert {name: metric(draw) for name, metric in metrics_of(case).items()} == pytest.approx(wanted)


def test_every_metric_of_more_classes_and_of_values_is_scikit_learns() -> None:
    case = some_case(4)
    called = case.said.argmax(axis=1)
    wanted = {
        "roc_auc_ovr": metrics.roc_auc_score(case.truth, case.said, multi_class="ovr"),
        "accuracy": metrics.accuracy_score(case.truth, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(case.truth, called),
        "f1_macro": metrics.f1_score(case.truth, called, average="macro"),
        "log_loss": metrics.log_loss(case.truth, case.said),
        "brier": ((case.said - np.eye(4)[case.truth]) ** 2).sum(axis=1).mean(),
    }
    draw = Draw(case, np.ones(len(called)))
    assert {name: metric(draw) for name, metric in metrics_of(case).items()} == pytest.approx(wanted)
    y, p = RNG.normal(size=50), RNG.normal(size=50)
    figures = {name: metric(Draw(Case(y, p), np.ones(50))) for name, metric in metrics_of(Case(y, p)).items()}
    root = metrics.root_mean_squared_error(y, p)
    assert figures == pytest.approx(
        {"r2": metrics.r2_score(y, p), "rmse": root, "mae": metrics.mean_absolute_error(y, p)}
    )


@pytest.mark.parametrize("classes", [2, 3, 0])
def test_a_row_that_counts_twice_is_as_good_as_two_rows(classes: int) -> None:
    case = some_case(classes) if classes else Case(RNG.normal(size=300), RNG.normal(size=300))
    w = RNG.integers(0, 4, 300)
    twice = Case(np.repeat(case.truth, w), np.repeat(case.said, w, axis=0), case.classes, case.positive)
    for metric in metrics_of(case).values():
        assert metric(Draw(case, w.astype(float))) == pytest.approx(metric(Draw(twice, np.ones(w.sum()))))


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "RESAMPLES", 200)
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=80)
        found = judge(Case(truth, np.zeros(80)), Case(truth, np.zeros(80)), "mae", seed)
        low, high = found.metrics["mae"].low, found.metrics["mae"].high
        held += low is not None and high is not None and low <= np.sqrt(2 / np.pi) <= high
    assert 50 <= held <= 60  # 95 % of 60 is 57


def test_rows_of_one_group_are_drawn_together_and_so_widen_the_interval() -> None:
    groups = np.repeat(np.arange(20), 15)
    truth = np.repeat(np.random.default_rng(0).normal(size=20), 15)
    case, guess = Case(truth, np.zeros(300)), Case(truth, np.full(300, truth.mean()))
    alone, together = judge(case, guess, "mae", 0), judge(case, guess, "mae", 0, groups)

    def width(found: judging.Verdicts) -> float:
        return (found.metrics["mae"].high or 0) - (found.metrics["mae"].low or 0)

    assert width(together) > 2 * width(alone)


def test_a_resample_without_a_class_gives_no_interval_rather_than_a_flattering_one() -> None:
    case = Case(np.array([1, *[0] * 9]), np.c_[np.linspace(0, 1, 10), np.linspace(1, 0, 10)], ("no", "yes"), 1)
    found = judge(case, guessing(case, case.truth, "roc_auc"), "roc_auc", 0).metrics["roc_auc"]
    assert (found.value, found.low, found.high) == (1.0, None, None)  # a third of the resamples has no "yes"
    alone = Case(np.zeros(10, dtype=int), case.said, case.classes, 1)
    assert np.isnan(judge(alone, alone, "roc_auc", 0).metrics["roc_auc"].value)


def test_calibration_of_an_honest_model_is_near_nothing_and_of_a_boaster_is_not() -> None:
    chance = RNG.random(5000)
    truth = (RNG.random(5000) < chance).astype(int)
    honest = Case(truth, np.c_[1 - chance, chance], ("no", "yes"), 1)
    loud = np.clip(chance * 3 - 1, 0, 1)
    assert calibration(honest).ece < 0.03 < 0.1 < calibration(Case(truth, np.c_[1 - loud, loud], ("no", "yes"), 1)).ece


# ---- what it leans on ----


@pytest.mark.parametrize("kind", ["linear", "tree"])
def test_a_column_shuffled_after_encoding_predicts_as_one_shuffled_before(kind: str) -> None:
    frame = table("penguins").drop(columns="sex")
    plan = plan_of(frame, "species", "multiclass")
    entry = portfolio.ENTRIES["linear" if kind == "linear" else "hgb-quick"]
    candidate = {"family": entry.family, "kind": kind, "params": {**entry.params}}
    if kind == "linear":
        candidate["params"] = {"C": 1.0}
    rows = prepare(frame, plan)
    model = portfolio.build(candidate, plan, 0).fit(rows, target_of(frame, plan))
    shuffler = Shuffler(model, rows, 0)
    assert all(source is not None for source in shuffler._sources)
    shuffler.again()
    for column in range(len(rows.columns)):
        raw = model.predict_proba(shuffled(rows, [column], shuffler._orders))
        assert shuffler.said(column) == pytest.approx(raw)
    assert shuffler.said(None) == pytest.approx(model.predict_proba(rows))


def test_an_encoded_column_made_of_several_is_known_as_such_and_measured_the_long_way() -> None:
    frame = pd.DataFrame(RNG.normal(size=(300, 3)), columns=["a", "b", "c"])
    y = (frame["a"] > 0).to_numpy()
    model = make_pipeline(PCA(2, whiten=True), LogisticRegression()).fit(frame.assign(a=5 * frame["a"]), y)
    rows = frame.assign(a=5 * frame["a"])
    assert sources(model[:-1], rows, np.random.default_rng(0)) is None
    found = importance(model, rows, lambda said, at: metrics.roc_auc_score(y[at], said[:, 1]), 0)
    assert found.columns[0].column == "a"


def test_of_many_columns_only_those_that_move_the_predictions_are_measured() -> None:
    frame = pd.DataFrame(RNG.normal(size=(300, 40)), columns=[f"c{at}" for at in range(40)])
    y = np.where(frame["c33"] + frame["c7"] > 0, "yes", "no")
    plan = plan_of(frame.assign(y=y), "y", "binary")
    model = Pipeline([("encode", encoder(plan, "linear")), ("model", LogisticRegression())]).fit(frame, y)
    found = importance(model, frame, lambda said, at: metrics.roc_auc_score(y[at] == "yes", said[:, 1]), 0)
    assert {each.column for each in found.columns[:2]} == {"c33", "c7"}
    assert (len(found.columns), found.of, found.complete) == (explaining.MAX_COLUMNS, 40, True)
    spent = importance(model, frame, lambda said, at: 1.0, 0, budget_s=-1.0)
    assert not spent.complete
    assert not spent.columns


@pytest.mark.parametrize(
    ("shape", "direction"),
    [
        (lambda x: x, "RISES"),
        (lambda x: -x, "FALLS"),
        (lambda x: -((x - 5) ** 2), "PEAK"),
        (lambda x: (x - 5) ** 2, "DIP"),
        (lambda x: 0 * x, "FLAT"),
    ],
)
def test_an_effect_is_said_in_words(shape: Any, direction: str) -> None:
    frame = pd.DataFrame({"x": np.linspace(0, 10, 300), "z": RNG.normal(size=300)})
    found = effects.effect(lambda rows: shape(rows["x"].to_numpy()) + rows["z"].to_numpy(), frame, "x", ["it"], 0)
    assert found is not None
    assert found.direction == direction


def test_levels_dates_and_columns_of_one_value_have_effects_or_none() -> None:
    days = pd.to_datetime("2020-01-01") + pd.to_timedelta(np.arange(60), unit="D")
    frame = pd.DataFrame({"day": days, "level": ["a", "b", None] * 20, "one": 1.0})
    frame["level"] = frame["level"].astype("str")
    by_level = effects.effect(lambda rows: (rows["level"] == "b").to_numpy(float), frame, "level", ["it"], 0)
    by_day = effects.effect(lambda rows: rows["day"].astype("int64").to_numpy(float), frame, "day", ["it"], 0)
    assert by_level and (by_level.direction, by_level.labels) == ("LEVELS", ("a", "b"))
    assert by_level.words == "It is highest for level = b (1) and lowest for a (0)."
    assert by_day and by_day.direction == "RISES"
    assert effects.effect(lambda rows: np.zeros(len(rows)), frame, "one", ["it"], 0) is None


def test_a_figure_that_is_nearly_one_is_not_said_to_be_one() -> None:
    assert [effects.figure(value) for value in (0.99953, 1.0, 0.9949, 12345.6, 0.00001)] == [
        "0.99953",
        "1",
        "0.995",
        "12,346",
        "1.00e-05",
    ]
