"""Tables as people have them, on which a guess would be wrong without a word: signs in numbers, sheets, copies, ids."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from stages import data_source, judged_plots, judging, parse_intent, preprocess, profile_data, review_edit
from stages import preparing as of_the_stages
from stages.columns import look
from stages.contract import Envelope, Progress, Result, Room
from stages.intent import Intent, understand
from stages.intent_target import Known
from stages.judging import Case, Judged, calibration
from stages.parse_intent import known_columns
from stages.reading import Look
from stages.reading import look as look_at
from stages.rows import copies, levels, mixed, ordinary
from stages.said_of_intent import actions
from stages.targets import Target, settle
from stages.texts import as_numbers
from stages.typed import decimal_of
from stages.verdict import spread
from tests.models_at_hand import train
from tests.tables_at_hand import REPO, lay, leave, work_here

DICE = np.random.default_rng(11)


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """predict.py of a bundle, which finds preparing.py beside it."""
    monkeypatch.syspath_prepend(str(REPO / "stages" / "bundle"))
    monkeypatch.setitem(sys.modules, "preparing", of_the_stages)
    monkeypatch.delitem(sys.modules, "predict", raising=False)
    yield importlib.import_module("predict")
    sys.modules.pop("predict")


# ---- signs in numbers ----


def test_thousands_with_points_beside_decimal_commas_are_thousands() -> None:
    assert decimal_of([["1.234", "12,5"], ["987", "3,25"]]) == ","
    assert decimal_of([["2.345,67", "a"]]) == ","
    assert decimal_of([["0,125", "a"]]) == ","
    assert decimal_of([["1.234", "a"], ["2.345", "b"]]) == "."
    assert decimal_of([["0.125", "1,5"]]) == "."


def test_a_fraction_below_one_is_no_thousand() -> None:
    read = as_numbers(pd.Series(["0,125", "0,250", "0,375"]))
    assert read is not None and read.values.tolist() == [0.125, 0.25, 0.375]
    grouped = as_numbers(pd.Series(["1,125", "2,250"]))
    assert grouped is not None and grouped.values.tolist() == [1125, 2250]


@pytest.mark.parametrize(
    ("usual", "cells", "read"),
    [
        (",", ["170.5", "1.234", "8"], [170.5, 1.234, 8]),
        (",", ["170,5", "1.234", "8"], [170.5, 1234, 8]),
        (",", ["1.234", "2.345"], [1234, 2345]),
        (",", ["170,5", "170.5"], [170.5, np.nan]),
        (".", ["170,5", "8"], [170.5, 8]),
        (".", ["170.5", "1e3", "1,5"], [170.5, 1000, np.nan]),
        (".", ["35,861.13", "1,234,567", "1,234"], [35861.13, 1234567, np.nan]),
    ],
)
def test_new_rows_with_the_other_decimal_sign_are_not_ten_times_as_much(
    predict: ModuleType, usual: str, cells: list[str], read: list[float]
) -> None:
    schema = {
        "columns": [{"name": "size", "original_name": "size", "type": "float", "role": "NUMERIC"}],
        "plan": {"features": ["size"]},
        "reading": {"decimal": usual, "null_markers": []},
    }
    found = predict.known(pd.DataFrame({"size": cells}, dtype=object), schema)
    np.testing.assert_equal(found["size"].to_numpy(), np.array(read))


def test_a_target_of_numbers_with_signs_is_no_class_for_each_row(tmp_path: Path) -> None:
    paid = pd.Series([f"{n},{n % 90 + 10} €" for n in range(200, 400)], name="paid")
    settled = settle(look("paid", "text", paid), paid, "multiclass", None, None)
    assert isinstance(settled, Target) and settled.task == "regression"
    assert settled.values.iloc[0] == 200.30


def test_a_target_in_percent_is_an_amount_and_its_reading_is_shown(tmp_path: Path) -> None:
    cells = [f"{n / 10:.1f} %" for n in range(1, 41)] * 3
    assert known_columns(Look(["share"], [[cell] for cell in cells], 120, 0))[0].type == "float"
    assert known_columns(Look(["code"], [[f"{n:05}"] for n in range(90)], 90, 0))[0].type == "text"
    lay(tmp_path, pd.DataFrame({"size": DICE.normal(size=120), "share": cells}), "share")
    found = work_here(profile_data.work, tmp_path, "PROFILE_DATA")
    assert found.result["target"]["task"] == "regression"
    assert '"0.1 %" is read as 0.1' in {issue.code: issue.message for issue in found.warnings}["NUMBERS_AS_TEXT"]


def test_durations_are_seconds_in_the_table_and_when_predicting(tmp_path: Path, predict: ModuleType) -> None:
    took = pd.Series(pd.to_timedelta([90, 0.5, None], unit="s"))
    (tmp_path / "uploads").mkdir()
    pd.DataFrame({"took": took}).to_parquet(tmp_path / "uploads" / "t.parquet")
    asked = {"data": "uploads/t.parquet"}
    assert work_here(data_source.work, tmp_path, "DATA_SOURCE", **asked).result["columns"][0]["type"] == "float"
    read = pd.read_parquet(tmp_path / "data-source" / "data.parquet")["took"]
    again = predict.cast(took, {"name": "took", "type": "float"}, {})
    np.testing.assert_equal(read.to_numpy(), again.to_numpy())
    assert read.tolist()[:2] == [90, 0.5]


# ---- lines that are no rows ----


def source(folder: Path, text: str) -> Result:
    (folder / "uploads").mkdir(exist_ok=True)
    (folder / "uploads" / "t.csv").write_text(text)
    return work_here(data_source.work, folder, "DATA_SOURCE", data="uploads/t.csv")


ROWS = [f"{n}.5,{n % 7},{'yes' if n % 2 else 'no'}" for n in range(40)]


def test_names_repeated_further_down_are_no_row(tmp_path: Path) -> None:
    found = source(tmp_path, "\n".join(["size,rooms,sold", *ROWS[:20], "size, rooms,sold", *ROWS[20:]]))
    assert found.result["rows"] == 40 and [each["type"] for each in found.result["columns"]] == ["float", "int", "text"]
    (issue,) = found.warnings
    assert (issue.code, issue.severity, issue.count) == ("MALFORMED_ROWS", "WARN", 1) and "repeats" in issue.message
    seen = look_at(tmp_path / "uploads" / "t.csv")
    assert len(seen.rows) == 40  # PARSE_INTENT does not take them for values either


def test_a_last_row_that_sums_up_is_named(tmp_path: Path) -> None:
    rows = [f"{'NSE'[n % 3]},{n},{n}.5" for n in range(40)]
    assert "Total" in source(tmp_path, "\n".join(["region,units,paid", *rows, "Total,780,800"])).warnings[0].message
    assert not source(tmp_path, "\n".join(["region,units,paid", *rows])).warnings


def test_names_below_a_line_that_spans_them_are_found(tmp_path: Path) -> None:
    found = source(tmp_path, "\n".join(["House,,Sale", "size,rooms,sold", *ROWS]))
    assert [each["name"] for each in found.result["columns"]] == ["size", "rooms", "sold"]
    found = source(tmp_path, "\n".join([",rooms,sold", *ROWS]))  # a column without a name is no such line
    assert [each["name"] for each in found.result["columns"]] == ["column_1", "rooms", "sold"]


# ---- classes ----


def test_classes_in_other_capitals_are_the_same_unless_a_person_says_no(tmp_path: Path) -> None:
    answer = np.array(["Yes", "yes ", "YES", "No", "no", "Yes"] * 20)
    lay(tmp_path, pd.DataFrame({"size": DICE.normal(size=120), "answer": answer}), "answer", task="multiclass")
    found = work_here(profile_data.work, tmp_path, "PROFILE_DATA")
    settled = found.result["target"]
    assert settled["task"] == "binary"
    assert settled["classes"] == [{"name": "No", "rows": 40}, {"name": "Yes", "rows": 80}]
    assert "SPELLINGS" in {issue.code for issue in found.warnings}
    leave(tmp_path, "PROFILE_DATA", found.result)
    plan = work_here(preprocess.work, tmp_path, "PREPROCESS").result
    assert plan["classes"] == ["No", "Yes"]
    assert of_the_stages.target_of(pd.DataFrame({"answer": [" yes", "NO", "YES"]}), plan).tolist() == [
        "Yes",
        "NO",
        "Yes",
    ]
    apart = work_here(profile_data.work, tmp_path, "PROFILE_DATA", edits={"spellings": "APART"})
    assert len(apart.result["target"]["classes"]) == 5


def test_many_small_classes_are_counted_and_not_listed(tmp_path: Path) -> None:
    kinds = ["often", "usual"] * 60 + [f"k{n}" for n in range(50)]
    lay(tmp_path, pd.DataFrame({"size": DICE.normal(size=170), "kind": kinds}), "kind", task="multiclass")
    leave(tmp_path, "PROFILE_DATA", work_here(profile_data.work, tmp_path, "PROFILE_DATA").result)
    dropped = work_here(preprocess.work, tmp_path, "PREPROCESS").result["dropped_rows"]
    assert dropped == [{"reason": "50 classes have fewer than 6 rows each", "n": 50}]


def test_a_name_said_exactly_is_meant_and_no_near_copy() -> None:
    columns = [Known("salary", "float", (), 90), Known("salary_usd", "float", (), 90)]
    assert understand("predict salary", {}, columns).target == "salary"
    assert understand("predict salary usd", {}, columns).target == "salary_usd"


# ---- workbooks ----


def test_a_sheet_of_notes_before_the_table_is_passed_over(tmp_path: Path) -> None:
    table = pd.DataFrame({"size": range(30), "price": DICE.normal(size=30)})
    book(tmp_path / "uploads", Notes=pd.DataFrame({"note": ["read me"]}), Data=table)
    assert intended(tmp_path).result["target"] == "price"
    envelope = Envelope("DATA_SOURCE", data="uploads/book.xlsx")
    found = data_source.work(envelope, Room("DATA_SOURCE", tmp_path), Progress())
    assert found.result["sheet"] == "Data" and "sheet Data, one of 2" in found.summary


def test_a_target_on_another_sheet_does_not_end_the_run(tmp_path: Path) -> None:
    other = pd.DataFrame({"a": range(5), "b": range(5)})
    book(tmp_path / "uploads", First=other, Second=pd.DataFrame({"size": range(9), "price": range(9)}))
    found = intended(tmp_path)
    assert (found.result["target"], found.result["schema_seen"], found.status) == (None, False, "OK")
    assert "another sheet" in found.warnings[0].suggestion


def intended(folder: Path) -> Result:
    envelope = Envelope("PARSE_INTENT", objective="predict price", data="uploads/book.xlsx")
    return parse_intent.work(envelope, Room("PARSE_INTENT", folder), Progress())


def book(folder: Path, **sheets: pd.DataFrame) -> None:
    folder.mkdir()
    with pd.ExcelWriter(folder / "book.xlsx") as writer:
        for name, frame in sheets.items():
            frame.to_excel(writer, sheet_name=name, index=False)


# ---- rows that are known already ----


def test_a_table_five_times_over_is_found_and_no_copy_is_tested_on(tmp_path: Path) -> None:
    once = pd.DataFrame({"size": DICE.normal(size=60), "weight": DICE.normal(size=60)})
    once["answer"] = DICE.choice(["yes", "no"], 60)
    lay(tmp_path, pd.concat([once] * 5, ignore_index=True), "answer")
    profile = work_here(profile_data.work, tmp_path, "PROFILE_DATA")
    issue = next(issue for issue in profile.warnings if issue.code == "DUPLICATE_ROWS")
    assert (issue.severity, issue.count) == ("WARN", 240)
    assert not [issue for issue in profile.warnings if issue.code == "LEAKAGE_SUSPECT"]  # copies are no leak
    leave(tmp_path, "PROFILE_DATA", profile.result)
    work_here(preprocess.work, tmp_path, "PREPROCESS")
    parts = pd.read_parquet(tmp_path / "preprocess" / "split.parquet")
    assert (parts.groupby(parts["row"] % 60)[["part", "fold"]].nunique() == 1).all(axis=None)


@pytest.mark.parametrize("name", ["id", "Chick", "patient_id", "uuid"])
def test_rows_of_one_id_are_kept_together(tmp_path: Path, name: str) -> None:
    who = np.repeat(np.arange(40), 6)
    table = pd.DataFrame({name: who, "size": DICE.normal(size=240), "answer": np.where(who % 2, "yes", "no")})
    lay(tmp_path, table, "answer")
    found = work_here(profile_data.work, tmp_path, "PROFILE_DATA")
    assert {issue.code: issue.column for issue in found.warnings}.get("GROUPED_ROWS") == name


def test_rows_that_chance_repeats_are_no_copies() -> None:
    dice = np.random.default_rng(4)
    coarse = mixed(mixed(None, pd.Series(dice.integers(0, 40, 300))), pd.Series(dice.integers(0, 20, 300)))
    assert ordinary(coarse, 800) and copies(coarse) > 30
    assert not ordinary(np.r_[coarse, coarse[:200]], 800)  # so many more are copied
    assert not ordinary(np.r_[np.arange(300), np.arange(9)].astype(np.uint64), levels(300, 309))  # a measurement


# ---- what is offered and said ----


def test_two_classes_are_not_offered_for_a_column_of_three() -> None:
    def offered(levels: int) -> tuple[str, ...]:
        columns = [Known("status", "int", levels=levels), Known("age", "int", levels=50)]
        return next(each.options for each in actions(Intent(target="status"), columns) if each.field == "task")

    assert offered(3) == ("multiclass", "regression")
    assert offered(2) == ("binary", "multiclass", "regression")


def test_an_interval_without_width_is_not_called_one() -> None:
    assert "interval 1 to 1" not in spread(Judged(1.0, 1.0, 1.0))
    assert "95 % interval 0.8 to 0.9" in spread(Judged(0.85, 0.8, 0.9))


def rare_class(folder: Path) -> None:
    """Leaves a model that ranks a class of one in a hundred well and never calls it."""
    size = DICE.normal(size=1200)
    rare = size + DICE.normal(scale=0.8, size=1200)
    frame = pd.DataFrame({"size": size, "fraud": np.where(rare > np.quantile(rare, 0.98), "yes", "no")})
    train(folder, frame, "fraud", "binary", "roc_auc")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_edit, "_draw", lambda *_: [])
    monkeypatch.setattr(judging, "RESAMPLES", 100)


def test_a_model_that_never_says_the_rare_class_is_found_out(tmp_path: Path, quick: None) -> None:
    rare_class(tmp_path)
    found = work_here(review_edit.work, tmp_path, "REVIEW_EDIT", edits={"threshold": 0.9})
    silent = next(issue for issue in found.warnings if issue.code == "IMBALANCE")
    assert 'none of the 6 test rows that are "yes": it never says so' in silent.message
    assert silent.message in found.summary
    assert silent.message in found.result["caveats"]
    assert "for example" in silent.suggestion
    found = work_here(review_edit.work, tmp_path, "REVIEW_EDIT", edits={"threshold": 0.02})
    assert "finds none" not in found.summary


def test_a_class_of_many_that_is_never_found_is_named(tmp_path: Path, quick: None) -> None:
    kind = np.where(np.arange(400) % 20 == 0, "rare", np.where(DICE.normal(size=400) > 0, "a", "b"))
    frame = pd.DataFrame({"size": DICE.normal(size=400) + (kind == "a"), "kind": kind})
    train(tmp_path, frame, "kind", "multiclass", "accuracy")
    found = work_here(review_edit.work, tmp_path, "REVIEW_EDIT")
    assert 'none of the test rows that are "rare" (5 rows)' in found.summary
    assert "IMBALANCE" in {issue.code for issue in found.warnings}


def test_a_target_that_has_moved_on_is_no_success(tmp_path: Path, quick: None) -> None:
    step = np.arange(200)
    frame = pd.DataFrame({"step": step, "y": np.where(step < 150, step * 1.0, 300) + DICE.normal(size=200)})
    train(tmp_path, frame, "y", "regression", "r2")
    split = pd.read_parquet(tmp_path / "preprocess" / "split.parquet")
    split["part"] = np.where(step < 150, "train", "test")
    split.to_parquet(tmp_path / "preprocess" / "split.parquet", index=False)
    found = work_here(review_edit.work, tmp_path, "REVIEW_EDIT")
    assert found.result["test"]["value"] < 0 < found.result["lift"]["value"]
    assert "below 0" in found.result["caveats"][0] and "below 0" in found.summary


def test_many_classes_of_one_size_are_not_called_unbalanced(tmp_path: Path, quick: None) -> None:
    kinds = np.repeat([f"k{n:02}" for n in range(20)], 40)
    frame = pd.DataFrame({"size": np.arange(800) / 40 + DICE.normal(size=800), "kind": kinds})
    train(tmp_path, frame.sample(frac=1, random_state=0, ignore_index=True), "kind", "multiclass", "roc_auc_ovr")
    found = work_here(review_edit.work, tmp_path, "REVIEW_EDIT")
    assert not [caveat for caveat in found.result["caveats"] if "unbalanced" in caveat]


def test_a_model_that_guesses_has_no_errors_unnoticed(tmp_path: Path, quick: None) -> None:
    frame = pd.DataFrame({"size": np.ones(240), "coin": DICE.choice(["h", "t"], 240)})
    train(tmp_path, frame, "coin", "binary", "roc_auc")
    found = work_here(review_edit.work, tmp_path, "REVIEW_EDIT")
    assert found.result["verdict"] == "SAME_AS_BASELINE"
    assert not [caveat for caveat in found.result["caveats"] if "unnoticed" in caveat]


def test_a_patient_who_is_predicted_does_not_divide_the_rows(tmp_path: Path) -> None:
    who = np.repeat(np.arange(40), 6)
    lay(tmp_path, pd.DataFrame({"size": DICE.normal(size=240), "patient": who}), "patient", task="regression")
    profile = work_here(profile_data.work, tmp_path, "PROFILE_DATA")
    assert profile.result["group"] is None
    leave(tmp_path, "PROFILE_DATA", profile.result)
    assert work_here(preprocess.work, tmp_path, "PREPROCESS").result["split"]["kind"] == "RANDOM"


def test_a_table_of_some_classes_says_that_there_are_more(tmp_path: Path) -> None:
    truth = np.repeat(np.arange(40), 5)
    case = Case(truth, np.eye(40)[truth], tuple(f"k{n:02}" for n in range(40)))
    first = next(judged_plots.of_classes(Room("REVIEW_EDIT", tmp_path), case, calibration(case), "kind"))
    assert first.title.endswith("(20 of 40 classes)")
