"""REVIEW_EDIT: the figures are right, the verdict is honest, and the test rows are opened once."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import judging, review_edit
from stages.contract import Artifact, Failed, Result
from stages.review_edit import work
from tests.models_at_hand import train
from tests.tables_at_hand import Left, leave, run_stage, table, work_here


def review(folder: Path, **envelope: Any) -> Result:
    return work_here(work, folder, "REVIEW_EDIT", **envelope)


def codes(result: Result) -> dict[str, str]:
    return {issue.code: issue.severity for issue in result.warnings}


def two_columns(rows: int, noise: float) -> pd.DataFrame:
    """Returns a table whose target follows x, not z, the more surely the less noise."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=rows)
    y = np.where(x + noise * rng.normal(size=rows) > 0, "yes", "no")
    return pd.DataFrame({"x": x, "z": rng.normal(size=rows), "kind": rng.choice(["a", "b", "c"], rows), "y": y})


@pytest.fixture
def drawn() -> None:
    """Asked for by tests that look at pictures, which cost more than all the rest of the stage."""


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(review_edit, "_draw", lambda *_: [Artifact("opened.json", "application/json", "")])
        monkeypatch.setattr(judging, "RESAMPLES", 200)


@pytest.fixture(scope="module")
def penguins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("penguins")
    train(folder, table("penguins"), "species", "multiclass", "roc_auc_ovr")
    return folder


@pytest.fixture
def doubtful(tmp_path: Path) -> Path:
    train(tmp_path, two_columns(400, 1.0), "y", "binary", "roc_auc")
    return tmp_path


# ---- the verdict ----


@pytest.fixture(scope="module")
def judged(penguins: Path) -> Left:
    """What the program itself leaves of the penguins."""
    return run_stage(penguins, "REVIEW_EDIT")


def test_an_easy_table_is_better_than_guessing_and_asks_for_a_confirmation_only(judged: Left) -> None:
    left = judged
    assert (left.exit, left["status"]) == (0, "OK")
    found = left["result"]
    assert found["verdict"] == "BETTER"
    assert found["test"]["value"] > 0.99
    assert found["lift"]["ci95"][0] > 0.4
    (easy,) = [each for each in left["warnings"] if each["code"] == "SUSPICIOUSLY_GOOD"]
    assert easy["severity"] == "INFO"
    assert "easy" in easy["message"]
    assert "confirm" in easy["suggestion"]
    assert not [action for action in left["next_actions"] if action.get("required")]
    assert [row["rows"] for row in found["per_class"]] == [sum(row) for row in found["confusion"]["table"]]
    assert {event["event"] for event in left.events} == {"progress", "result"}


def test_pictures_are_900_by_600_and_listed(penguins: Path, judged: Left) -> None:
    titles = {each["name"]: each["title"] for each in judged["artifacts"] if each["media_type"] == "image/png"}
    named = ("confusion", "roc", "calibration", "importance", "effect-1")
    assert {f"plot-{name}.png" for name in named} <= set(titles)
    assert set(titles) == {path.name for path in (penguins / "review-edit").glob("plot-*.png")}
    for name in titles:
        head = (penguins / "review-edit" / name).read_bytes()[:24]
        assert struct.unpack(">II", head[16:]) == (900, 600)
    assert all("cause" in title for name, title in titles.items() if "effect" in name)


def test_values_have_residuals_and_effects_with_a_direction(tmp_path: Path, drawn: None) -> None:
    train(tmp_path, table("mpg"), "mpg", "regression", "rmse", "hgb-quick", dropped=("name",))
    found = review(tmp_path).result
    assert found["verdict"] == "BETTER"
    assert found["baseline"]["value"] > found["test"]["value"]  # less is better
    assert found["lift"]["ci95"][0] > 0
    assert {each["column"]: each["direction"] for each in found["effects"]}["weight"] == "FALLS"
    worst = found["residuals"]["worst"][0]
    assert table("mpg")["mpg"].iloc[worst["row"] - 1] == worst["true"]
    assert found["threshold"] is None


def test_a_target_of_noise_is_said_to_be_no_better_than_guessing(tmp_path: Path) -> None:
    frame = two_columns(400, 1.0)
    frame["y"] = np.random.default_rng(5).permutation(frame["y"])
    train(tmp_path, frame, "y", "binary", "roc_auc")
    result = review(tmp_path)
    assert result.result["verdict"] == "SAME_AS_BASELINE"
    assert codes(result)["NO_BETTER_THAN_BASELINE"] == "WARN"
    assert "better than guessing" in result.summary


def test_the_guessing_model_itself_is_judged_too(tmp_path: Path) -> None:
    train(tmp_path, two_columns(200, 1.0), "y", "binary", "log_loss", "dummy")
    result = review(tmp_path)
    assert result.result["verdict"] == "SAME_AS_BASELINE"
    assert result.result["lift"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert result.result["importance"] == []


def test_a_leak_is_suspicious_names_the_column_and_wants_to_be_accepted(tmp_path: Path) -> None:
    frame = two_columns(400, 1.0)
    frame["outcome"] = np.where(frame["y"] == "yes", 1.0, 0.0) + 0.001 * frame["z"]
    profile = {"columns": [{"name": "outcome", "strength": 0.99}, {"name": "x", "strength": 0.3}], "issues": []}
    train(tmp_path, frame, "y", "binary", "roc_auc", profile=profile)
    result = review(tmp_path)
    assert (result.status, result.result["verdict"]) == ("NEEDS_INPUT", "SUSPICIOUS")
    (issue,) = [each for each in result.warnings if each.code == "SUSPICIOUSLY_GOOD"]
    assert (issue.severity, issue.column) == ("WARN", "outcome")
    assert any(action.kind == "BACK" and "actions.outcome" in action.label for action in result.actions)
    again = review(tmp_path, edits={"accept": "accept"})
    assert (again.status, again.result["accepted"]) == ("OK", True)
    assert again.result["test"] == result.result["test"]


# ---- the test rows are opened once ----


def test_a_repeat_gives_the_same_and_is_no_second_look(doubtful: Path) -> None:
    first, second = review(doubtful), review(doubtful)
    assert json.dumps(first.result) == json.dumps(second.result)
    assert first.result["opened"]["models_judged"] == second.result["opened"]["models_judged"] == 1
    assert "TEST_SET_REOPENED" not in codes(second)
    looks = json.loads((doubtful / "review-edit" / "opened.json").read_text())["looks"]
    assert [look["model_sha256"] for look in looks] == [first.result["opened"]["model_sha256"]]
    assert "opened.json" in [each.name for each in second.artifacts]


def test_another_threshold_changes_what_is_called_and_is_said_to_be_another_look(doubtful: Path) -> None:
    usual = review(doubtful).result
    result = review(doubtful, edits={"threshold": 0.1})
    changed = result.result
    assert changed["test"] == usual["test"]  # the area under the curve knows no threshold
    assert changed["all_metrics"]["recall"]["value"] > usual["all_metrics"]["recall"]["value"]
    assert changed["threshold"]["value"] == 0.1
    assert codes(result)["TEST_SET_REOPENED"] == "INFO"
    assert changed["opened"]["thresholds_looked_at"] == 2


def test_thresholds_are_suggested_from_training_rows_only(doubtful: Path) -> None:
    before = review(doubtful).result["threshold"]["from_training_rows"]
    data = doubtful / "data-source" / "data.parquet"
    frame, split = pd.read_parquet(data), pd.read_parquet(doubtful / "preprocess" / "split.parquet")
    test = (split["part"] == "test").to_numpy()
    frame.loc[test, "y"] = np.where(frame.loc[test, "y"] == "yes", "no", "yes")
    frame.to_parquet(data, index=False)
    assert review(doubtful).result["threshold"]["from_training_rows"] == before


def test_a_second_model_on_the_same_rows_is_counted(doubtful: Path) -> None:
    review(doubtful)
    train(doubtful, two_columns(400, 1.0), "y", "binary", "roc_auc", "hgb-quick")
    found = review(doubtful).result
    assert found["opened"]["models_judged"] == 2
    assert any("2 models" in caveat for caveat in found["caveats"])


def test_a_record_of_looks_cut_off_in_the_middle_does_not_stop_the_stage(doubtful: Path) -> None:
    (doubtful / "review-edit").mkdir()
    (doubtful / "review-edit" / "opened.json").write_text('{"looks": [{"mod')
    assert review(doubtful).result["opened"]["models_judged"] == 1


# ---- what to keep in mind ----


def test_caveats_say_what_is_weak(tmp_path: Path) -> None:
    frame = two_columns(160, 0.3)
    frame.loc[frame.index[frame["y"] == "yes"][12:], "y"] = "no"
    frame.loc[5:9, "y"] = None
    issues = [{"code": "TIME_ORDERED", "column": "day"}, {"code": "GROUPED_ROWS", "column": "who"}]
    dropped = [{"reason": 'no value of "y"', "n": 5}]
    profile = {"columns": [], "issues": issues}
    train(tmp_path, frame, "y", "binary", "roc_auc", profile=profile, dropped_rows=dropped)
    said = " ".join(review(tmp_path).result["caveats"])
    for part in (
        "39 test rows",
        "unbalanced",
        "Fewer than 10 test rows",
        "order of time",
        '"who"',
        '5 rows: no value of "y"',
    ):
        assert part in said


def test_a_class_the_model_never_saw_counts_against_it(tmp_path: Path) -> None:
    frame = table("penguins")
    plan = train(
        tmp_path, frame[frame["species"] != "Gentoo"].reset_index(drop=True), "species", "multiclass", "accuracy"
    )
    strange = frame[frame["species"] != "Gentoo"].reset_index(drop=True)
    split = pd.read_parquet(tmp_path / "preprocess" / "split.parquet")
    strange.loc[split.index[split["part"] == "test"][:3], "species"] = "Gentoo"
    strange.to_parquet(tmp_path / "data-source" / "data.parquet", index=False)
    leave(tmp_path, "PREPROCESS", plan)
    found = review(tmp_path).result
    assert found["confusion"]["classes"] == ["Adelie", "Chinstrap", "Gentoo"]
    assert found["per_class"][2]["recall"] == 0
    assert any("occurs in test rows only" in caveat for caveat in found["caveats"])


def test_names_and_values_of_a_stranger_do_no_harm(tmp_path: Path, drawn: None) -> None:
    bad = "<script>$x_{\\frac\n|`*" + "é" * 10_000
    frame = two_columns(200, 0.5).rename(columns={"x": bad})
    frame["kind"] = frame["kind"].map({"a": "$\\alpha", "b": "\n\x07", "c": "🐧" * 300})
    frame["y"] = frame["y"].map({"yes": "=1+1|`\n", "no": "b" * 5000})
    train(tmp_path, frame, "y", "binary", "roc_auc")
    result = review(tmp_path)
    texts = [
        result.summary,
        *result.result["caveats"],
        *(a.label for a in result.actions),
        *(w.message for w in result.warnings),
    ]
    texts += [each["words"] for each in result.result["effects"]] + [each.title for each in result.artifacts]
    assert all(len(text) <= 600 and "\n" not in text and "\x07" not in text for text in texts)
    assert bad in [each["column"] for each in result.result["importance"]]


# ---- what cannot be done ----


@pytest.mark.parametrize(
    "edits", [{"threshold": "much"}, {"threshold": 2}, {"threshold": float("nan")}, {"accept": "no"}, {"colour": "red"}]
)
def test_nonsense_is_refused_with_the_name_of_the_field(doubtful: Path, edits: dict[str, Any]) -> None:
    with pytest.raises(Failed) as failed:
        review(doubtful, edits=edits)
    assert failed.value.issue.code == "BAD_EDIT"
    assert next(iter(edits)) in failed.value.issue.message
    assert not (doubtful / "review-edit" / "opened.json").exists()  # nobody looked


def test_a_threshold_for_values_is_refused(penguins: Path) -> None:
    with pytest.raises(Failed, match="threshold"):
        review(penguins, edits={"threshold": 0.4})


@pytest.mark.parametrize("gone", ["train/model.joblib", "preprocess/split.parquet", "profile-data/result.json"])
def test_what_an_earlier_stage_has_not_left_is_named(doubtful: Path, gone: str) -> None:
    (doubtful / gone).unlink()
    with pytest.raises(Failed) as failed:
        review(doubtful)
    assert (failed.value.issue.code, failed.value.issue.value) == ("INPUT_MISSING", gone)


def test_without_test_rows_nothing_is_judged(doubtful: Path) -> None:
    path = doubtful / "preprocess" / "split.parquet"
    split = pd.read_parquet(path)
    split.assign(part=split["part"].replace("test", "train")).to_parquet(path, index=False)
    with pytest.raises(Failed) as failed:
        review(doubtful)
    assert failed.value.issue.code == "TOO_FEW_ROWS"
