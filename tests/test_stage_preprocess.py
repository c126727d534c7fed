"""PREPROCESS: the plan for every column with its reason, and a split that keeps together what belongs together."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract import Failed, Result
from stages.preprocess import work
from stages.splitting import DROPPED, TEST, TRAIN, groups_of, split
from tests.properties import examples
from tests.tables_at_hand import lay, leave, run_stage, work_here

ROWS = 240
DICE = np.random.default_rng(5)
NOISE = DICE.normal(size=ROWS)
ANSWER = np.where(NOISE + DICE.normal(size=ROWS) > 0, "yes", "no")
ROLES = {"i": "NUMERIC", "f": "NUMERIC", "b": "BOOL"}


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"size": NOISE, "colour": ["red", "green"] * (ROWS // 2), "answer": ANSWER} | columns)


def laid(folder: Path, table: pd.DataFrame, target: str = "answer", intent: Any = (), **profile: Any) -> None:
    """Leaves what the stages before would, the profile by hand: `roles` by column, `issues`, `group`, `task`."""
    lay(folder, table, target, **dict(intent))
    roles, parses = profile.get("roles", {}), profile.get("parses", {})
    columns = [
        {
            "name": name,
            "kind": {"i": "int", "f": "float", "b": "bool"}.get(table[name].dtype.kind, "text"),
            "role": "TARGET" if name == target else roles.get(name, ROLES.get(table[name].dtype.kind, "CATEGORY")),
            "missing": int(table[name].isna().sum()),
            "unique": int(table[name].nunique()),
            "parse": parses.get(name, {}),
            "stats": {"words": float(table[name].astype("str").fillna("").str.count(" ").mean()) + 1},
        }
        for name in table.columns
    ]
    settled = {"column": target, "task": profile.get("task", "binary"), "parse": {}, "positive_class": "yes"}
    found = {"target": settled, "columns": columns, "issues": profile.get("issues", []), "group": profile.get("group")}
    leave(folder, "PROFILE_DATA", found)


def planned(folder: Path, **edits: Any) -> Result:
    return work_here(work, folder, "PREPROCESS", edits=edits)


def steps(result: Result) -> dict[str, dict[str, Any]]:
    return {step["column"]: step for step in result.result["plan"]}


def parts(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "preprocess" / "split.parquet")


# ---- the plan ----


def test_every_column_has_an_action_and_a_reason_in_words(tmp_path: Path) -> None:
    table = frame(
        id=range(ROWS),
        same="x",
        empty=[None] * ROWS,
        after=np.where(ANSWER == "yes", "J", "N"),
        price=[f"${n},000" for n in range(ROWS)],
        day=[f"2024-01-{n % 28 + 1:02}" for n in range(ROWS)],
        note=[f"a long remark number {n}" for n in range(ROWS)],
        code=[f"k{n % 60}" for n in range(ROWS)],
        job=[f"chief maker {n % 60}" for n in range(ROWS)],
        unwanted=NOISE,
    )
    roles = {"id": "ID", "same": "CONSTANT", "empty": "CONSTANT", "price": "NUMERIC", "day": "DATETIME", "note": "TEXT"}
    leak = {"code": "LEAKAGE_SUSPECT", "severity": "WARN", "column": "after", "message": "It may be a copy."}
    parses = {"price": {"clutter": True, "decimal": "."}, "day": {"format": "ISO8601"}}
    laid(tmp_path, table, intent={"drop": ["unwanted"]}, roles=roles, parses=parses, issues=[leak])
    result = planned(tmp_path)
    found = steps(result)
    assert {name: step["action"] for name, step in found.items()} == {
        "size": "KEEP",
        "colour": "CATEGORY",
        "id": "DROP",
        "same": "DROP",
        "empty": "DROP",
        "after": "DROP",
        "price": "PARSE_NUMBER",
        "day": "PARSE_DATE",
        "note": "ENCODE_TEXT",
        "code": "CATEGORY",
        "job": "ENCODE_TEXT",
        "unwanted": "DROP",
    }
    assert [name for name, step in found.items() if step.get("many")] == ["code"]
    assert all(step["reason"] for step in found.values()) and "answer" not in found
    issues = {name: step["issue"] for name, step in found.items() if "issue" in step}
    expected = {"id": "ID_COLUMN", "same": "CONSTANT_COLUMN", "empty": "ALL_MISSING_COLUMN", "after": "LEAKAGE_SUSPECT"}
    assert issues == expected and {issue.column for issue in result.warnings} == set(expected)
    assert result.result["features"] == ["size", "colour", "price", "day", "note", "code", "job"]
    assert "id" in result.summary and len(result.summary) <= 600


def test_only_the_columns_that_were_asked_for_are_used(tmp_path: Path) -> None:
    laid(tmp_path, frame(), intent={"keep_only": ["size"]})
    assert planned(tmp_path).result["features"] == ["size"]


def test_a_person_keeps_what_was_to_go_and_drops_what_was_to_stay(tmp_path: Path) -> None:
    laid(tmp_path, frame(id=range(ROWS)), roles={"id": "ID"})
    offered = {action.field: action for action in planned(tmp_path).actions}
    assert offered["actions.id"].default == "DROP" and "KEEP" in offered["actions.id"].options
    result = planned(tmp_path, **{"actions.id": "KEEP", "actions.size": "DROP", "actions.colour": "ENCODE_TEXT"})
    assert result.result["features"] == ["colour", "id"]
    assert steps(result)["id"]["role"] == "NUMERIC"
    # What speaks against it stays known, so that nobody wonders at a result that is too good.
    assert steps(result)["id"]["issue"] == "ID_COLUMN" and "kept" in result.warnings[0].message
    assert steps(result)["colour"]["role"] == "TEXT"


def test_numbers_taken_as_categories_are_written_the_same_way_in_any_file(tmp_path: Path) -> None:
    laid(tmp_path, frame(zone=np.arange(ROWS) % 4))
    step = steps(planned(tmp_path, **{"actions.zone": "CATEGORY"}))["zone"]
    assert step["role"] == "CATEGORY" and step["parse"] == {"number": True}


def test_markers_that_only_numbers_have_stay_values_of_texts(tmp_path: Path) -> None:
    laid(tmp_path, frame())
    source = json.loads((tmp_path / "data-source" / "result.json").read_text())["result"]
    leave(tmp_path, "DATA_SOURCE", source | {"null_markers": ["NA", "None", "unknown"]})
    assert planned(tmp_path).result["null_markers"] == ["NA"]


# ---- what it refuses ----


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actions.size", "PARSE_DATE"),
        ("actions.gone", "DROP"),
        ("actions.answer", "DROP"),
        ("split", "BY_MOON"),
        ("split", "TIME"),  # there is no column of dates
        ("split_column", "gone"),
        ("test_share", 0.9),
        ("test_share", "half"),
        ("folds", 1),
        ("folds", "five"),
        ("shuffle", "yes"),
    ],
)
def test_nonsense_at_the_gate_is_refused_with_its_field(field: str, value: Any, tmp_path: Path) -> None:
    laid(tmp_path, frame())
    with pytest.raises(Failed) as caught:
        planned(tmp_path, **{field: value})
    assert caught.value.issue.code == "BAD_EDIT" and caught.value.issue.column == field


def test_leaving_out_every_column_is_refused(tmp_path: Path) -> None:
    laid(tmp_path, frame())
    with pytest.raises(Failed) as caught:
        planned(tmp_path, **{"actions.size": "DROP", "actions.colour": "DROP"})
    assert caught.value.issue.code == "NO_FEATURES"
    assert planned(tmp_path, **{"actions.size": "DROP"}).status == "OK"  # nothing of the failure is left


def test_a_split_that_leaves_a_class_without_rows_is_refused(tmp_path: Path) -> None:
    laid(tmp_path, frame(step=np.argsort(np.argsort(ANSWER, kind="stable"))))  # "yes" is said last of all
    with pytest.raises(Failed) as caught:
        planned(tmp_path, split="TIME", split_column="step", test_share=0.5)
    assert caught.value.issue.code == "TOO_FEW_ROWS"


def test_without_a_target_there_is_no_plan(tmp_path: Path) -> None:
    laid(tmp_path, frame())
    leave(tmp_path, "PROFILE_DATA", {"target": None, "columns": [], "issues": []})
    with pytest.raises(Failed, match="No target"):
        planned(tmp_path)


# ---- the split ----


def test_classes_are_spread_evenly_and_every_row_is_in_one_part(tmp_path: Path) -> None:
    laid(tmp_path, frame())
    cut = planned(tmp_path).result["split"]
    found = parts(tmp_path)
    assert cut["kind"] == "STRATIFIED" and cut["n_test"] == (found.part == TEST).sum() == ROWS // 4
    assert found.row.tolist() == list(range(ROWS)) and found.row.dtype == "int64" and found.fold.dtype == "int8"
    assert ((found.fold == -1) == (found.part != TRAIN)).all() and set(found.fold[found.part == TRAIN]) == set(range(5))
    by_fold = [(ANSWER[found.row[found.fold == fold]] == "yes").mean() for fold in range(-1, 5)]
    assert np.ptp(by_fold) < 0.05


def test_rows_that_cannot_be_used_are_dropped_and_counted(tmp_path: Path) -> None:
    answer = np.array(ANSWER, dtype=object)
    answer[:7] = None
    answer[7:11] = "perhaps"
    laid(tmp_path, frame(answer=answer), task="multiclass")
    result = planned(tmp_path).result
    assert [reason["n"] for reason in result["dropped_rows"]] == [7, 4]
    assert parts(tmp_path).part[:11].tolist() == [DROPPED] * 11 and result["classes"] == ["no", "yes"]


def test_an_infinite_target_is_dropped(tmp_path: Path) -> None:
    target = NOISE.copy()
    target[3] = np.inf
    laid(tmp_path, frame(y=target), "y", task="regression")
    assert planned(tmp_path).result["split"]["kind"] == "RANDOM"
    assert parts(tmp_path).part[3] == DROPPED


def test_no_copy_of_a_row_is_on_the_other_side_not_even_under_another_id(tmp_path: Path) -> None:
    # An id is dropped, and so is what was asked to be: to the model these rows are the same.
    table = pd.concat([frame(), frame().head(80)], ignore_index=True).assign(id=lambda known: range(len(known)))
    laid(tmp_path, table, roles={"id": "ID"})
    planned(tmp_path)
    found = parts(tmp_path)
    assert (found.part[:80].to_numpy() == found.part[ROWS:].to_numpy()).all()
    assert (found.fold[:80].to_numpy() == found.fold[ROWS:].to_numpy()).all()


def test_copies_that_are_ordinary_do_not_hinder_the_split(tmp_path: Path) -> None:
    table = pd.DataFrame({"sex": ["f", "m"] * 120, "answer": ["yes", "no", "no", "yes"] * 60})
    laid(tmp_path, table)
    assert planned(tmp_path).result["split"]["n_test"] == 60


def test_rows_of_one_patient_stay_together_and_the_patient_is_no_feature(tmp_path: Path) -> None:
    patient = np.arange(ROWS) // 4
    laid(tmp_path, frame(patient=patient), group="patient")
    result = planned(tmp_path)
    found = parts(tmp_path).assign(patient=patient)
    assert result.result["split"]["kind"] == "GROUP" and "patient" not in result.result["features"]
    assert (found.groupby("patient")[["part", "fold"]].nunique() == 1).all(axis=None)
    assert 0.2 < (found.part == TEST).mean() < 0.3
    assert planned(tmp_path, split="STRATIFIED").result["split"]["kind"] == "STRATIFIED"


def test_with_time_the_latest_rows_test_and_folds_grow_with_time(tmp_path: Path) -> None:
    days = pd.Series(pd.date_range("2020-01-01", periods=ROWS // 8).strftime("%d/%m/%Y").repeat(8))
    shuffled = days.sample(frac=1, random_state=1).reset_index(drop=True)
    table = frame(day=shuffled.astype("str"))
    laid(tmp_path, table, intent={"time": "day"}, roles={"day": "DATETIME"}, parses={"day": {"format": "%d/%m/%Y"}})
    cut = planned(tmp_path).result["split"]
    found = parts(tmp_path).assign(day=pd.to_datetime(shuffled, format="%d/%m/%Y"))
    assert cut["kind"] == "TIME" and cut["column"] == "day"
    assert found.day[found.part == TRAIN].max() < found.day[found.part == TEST].min()  # no day is on both sides
    spans = [found.day[found.fold == fold] for fold in range(5)]
    assert all(early.max() <= late.min() for early, late in pairwise(spans))


def test_a_group_that_a_person_chose_is_no_feature_and_may_be_kept(tmp_path: Path) -> None:
    site = [f"s{n % 7}" for n in range(ROWS)]
    laid(tmp_path, frame(site=site, ward=np.arange(ROWS) // 20), group="ward")
    result = planned(tmp_path, split="GROUP", split_column="site")
    step, cut = steps(result)["site"], result.result["split"]
    assert (cut["kind"], cut["column"], step["action"], step["issue"]) == ("GROUP", "site", "DROP", "GROUPED_ROWS")
    assert "which rows belong together" in step["reason"] and steps(result)["ward"]["action"] == "DROP"
    assert (parts(tmp_path).assign(site=site).groupby("site")[["part", "fold"]].nunique() == 1).all(axis=None)
    kept = planned(tmp_path, split_column="site", split="GROUP", **{"actions.site": "CATEGORY"})
    assert "site" in kept.result["features"]
    assert "site" in planned(tmp_path, split="STRATIFIED", split_column="site").result["features"]


def test_few_groups_make_fewer_folds_and_none_is_empty(tmp_path: Path) -> None:
    laid(tmp_path, frame(site=np.arange(ROWS) % 4))
    cut = planned(tmp_path, split_column="site").result["split"]
    assert cut["kind"] == "GROUP" and cut["folds"] == len(set(parts(tmp_path).fold) - {-1}) <= 3


@pytest.mark.parametrize(
    ("kind", "column", "why"),
    [
        ("TIME", "colour", "holds no dates"),
        ("GROUP", "colour", "only 2 groups"),
        ("TIME", "term", "only 2 moments"),
        ("GROUP", "size", "measurements"),
    ],
)
def test_a_column_that_cannot_divide_the_rows_is_not_offered_and_refused(
    kind: str, column: str, why: str, tmp_path: Path
) -> None:
    laid(tmp_path, frame(term=[1, 2] * (ROWS // 2), site=[f"s{n % 7}" for n in range(ROWS)], weight=NOISE))
    offered = {action.field: action.options for action in planned(tmp_path).actions}
    assert offered["split_column"] == ("size", "site", "weight")  # by size in order, by site together
    with pytest.raises(Failed, match=why) as caught:
        planned(tmp_path, split=kind, split_column=column)
    assert (caught.value.issue.code, caught.value.issue.column) == ("BAD_EDIT", "split_column")
    assert {"split", "split_column"} <= {action.field for action in caught.value.actions}


def test_an_objective_that_speaks_of_what_comes_later_is_tested_on_the_latest_rows(tmp_path: Path) -> None:
    days = pd.date_range("2020-01-01", periods=ROWS).strftime("%Y-%m-%d").astype("str")
    laid(tmp_path, frame(day=days), intent={"later": True}, roles={"day": "DATETIME"})
    result = planned(tmp_path)
    assert (result.result["split"]["kind"], result.result["split"]["column"]) == ("TIME", "day")
    assert "comes later" in result.summary and result.warnings[0].code == "TIME_ORDERED"
    assert planned(tmp_path, split="RANDOM").result["split"]["kind"] == "RANDOM"
    laid(tmp_path, frame(), intent={"later": True})
    result = planned(tmp_path)
    assert result.result["split"]["kind"] == "STRATIFIED" and result.warnings[0].severity == "WARN"
    assert "no column says when" in result.summary


def test_most_rows_of_the_first_moment_are_all_learned_from(tmp_path: Path) -> None:
    year = np.array([2000] * 200 + [2001] * 20 + [2002] * 10 + [2003] * 10)
    laid(tmp_path, frame(year=year))
    assert planned(tmp_path, split="TIME", split_column="year").result["split"]["n_test"] == 40


def test_share_and_folds_are_a_persons_choice(tmp_path: Path) -> None:
    laid(tmp_path, frame())
    cut = planned(tmp_path, test_share=0.4, folds=3).result["split"]
    assert cut["n_test"] == 96 and cut["folds"] == 3 and set(parts(tmp_path).fold) == {-1, 0, 1, 2}


@examples(60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=20, max_size=120), st.integers(0, 2**32 - 1))
def test_no_group_is_ever_divided_and_nothing_is_lost(rows: list[tuple[int, int]], seed: int) -> None:
    strata, groups = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    used = np.arange(len(rows)) * 2
    found = split(used, 2 * len(rows), strata, groups, 0.25, 4, seed).frame()
    assert (found.part[1::2] == DROPPED).all() and (found.part[::2] != DROPPED).all()
    together = found.iloc[used].groupby(groups)[["part", "fold"]].nunique()
    assert (together == 1).all(axis=None)
    again = split(used, 2 * len(rows), strata, groups, 0.25, 4, seed).frame()
    assert found.equals(again)


@examples(60)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=40))
def test_rows_alike_in_either_column_are_in_one_group(rows: list[tuple[int, int]]) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    found = groups_of(columns)
    assert found is not None
    for column in columns:
        assert (pd.Series(found).groupby(column).nunique() == 1).all()


# ---- the program ----


def test_the_program_leaves_the_same_bytes_twice_another_seed_another_split(tmp_path: Path) -> None:
    laid(tmp_path, frame())
    left = []
    for seed in (1, 1, 2):
        done = run_stage(tmp_path, "PREPROCESS", seed=seed)
        assert done.exit == 0 and done["status"] == "OK", done.stderr
        left.append((json.dumps(done["result"]), (tmp_path / "preprocess" / "split.parquet").read_bytes()))
    assert left[0] == left[1] != left[2]
    assert not {"sklearn", "skrub"} & set(imported())  # nothing is fitted here


def imported() -> list[str]:
    code = "import sys, stages.preprocess, stages.profile_data; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()
