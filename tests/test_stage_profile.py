"""PROFILE_DATA: what it finds in a table, what it refuses, and that it says so in words."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.columns import look
from stages.contract import Failed, Result, Room
from stages.plots import NAMED, bars, picture
from stages.preparing import numbers
from stages.profile_data import work
from stages.rows import copies, mixed
from stages.targets import Target, settle
from tests.tables_at_hand import lay, leave, run_stage, save, table, work_here

ROWS = 240
DICE = np.random.default_rng(7)
NOISE = DICE.normal(size=ROWS)
ANSWER = np.where(NOISE + DICE.normal(size=ROWS) > 0, "yes", "no")
CONTROLS = [chr(code) for code in range(32)]


def frame(**columns: Any) -> pd.DataFrame:
    """Returns a sound little table with further columns."""
    return pd.DataFrame({"size": NOISE, "answer": ANSWER} | columns)


def profiled(
    folder: Path, given: pd.DataFrame, target: str | None = "answer", intent: Any = (), **edits: Any
) -> Result:
    lay(folder, given, target, **dict(intent))
    return work_here(work, folder, "PROFILE_DATA", edits=edits)


def codes(result: Result) -> dict[str, str | None]:
    return {issue.code: issue.column for issue in result.warnings}


def role(result: Result, name: str) -> str:
    return str(next(column["role"] for column in result.result["columns"] if column["name"] == name))


# ---- what cannot be worked with ----

REFUSED: dict[str, tuple[str, pd.DataFrame, str, str]] = {
    "one class": ("SINGLE_CLASS_TARGET", frame(same="a"), "same", "same value in every row"),
    "no target at all": ("TARGET_ALL_MISSING", frame(none=[None] * ROWS), "none", "Every value of the target"),
    "a name per row": (
        "TARGET_UNIQUE_PER_ROW",
        frame(code=[f"row-{n}" for n in range(ROWS)]),
        "code",
        "names the rows",
    ),
    "row numbers": ("TARGET_UNIQUE_PER_ROW", frame(n=range(ROWS)), "n", "numbers of the rows"),
    "19 rows": ("TOO_FEW_ROWS", frame().head(19), "answer", "at least 20"),
    "five of a class": (
        "TOO_FEW_ROWS",
        frame(rare=["a"] * 5 + ["b"] * (ROWS - 5)),
        "rare",
        'class "a" of "rare" has only 5 rows',
    ),
    "nothing to learn from": (
        "NO_FEATURES",
        pd.DataFrame({"answer": ANSWER, "same": "x"}),
        "answer",
        "no column but",
    ),
    "another name": ("TARGET_NOT_FOUND", frame(), "anwser", 'Did you mean "answer"?'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_target_of_no_use_is_refused_by_its_code_and_another_can_be_chosen(case: str, tmp_path: Path) -> None:
    code, given, target, words = REFUSED[case]
    with pytest.raises(Failed) as caught:
        profiled(tmp_path, given, target)
    assert caught.value.issue.code == code
    assert words in caught.value.issue.message and len(caught.value.issue.message) <= 600
    assert [action.field for action in caught.value.actions if action.kind == "CHOOSE"] == ["target"]


def test_after_a_refusal_another_target_goes_through(tmp_path: Path) -> None:
    given = frame(same="a")
    with pytest.raises(Failed, match="same value"):
        profiled(tmp_path, given, "same")
    assert work_here(work, tmp_path, "PROFILE_DATA", edits={"target": "answer"}).result["target"]["column"] == "answer"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", "nonsense"),
        ("task", "clustering"),
        ("task", "regression"),
        ("task", "multiclass"),
        ("positive_class", "maybe"),
        ("roles.size", "DATETIME"),
        ("roles.size", "TARGET"),
        ("roles.gone", "TEXT"),
        ("dates.gone", "DAY_FIRST"),
        ("colour", "red"),
    ],
)
def test_nonsense_at_the_gate_is_refused_with_its_field(field: str, value: str, tmp_path: Path) -> None:
    lay(tmp_path, frame(), "answer")
    with pytest.raises(Failed) as caught:
        work_here(work, tmp_path, "PROFILE_DATA", edits={field: value})
    assert caught.value.issue.code == "BAD_EDIT"
    assert field in str(caught.value.issue) or caught.value.issue.column == "answer"


# ---- what a person has to say ----


def test_without_a_target_it_asks_and_offers_the_likely_ones_first(tmp_path: Path) -> None:
    likely = {"target_candidates": [{"column": "answer", "score": 0.5, "why": ""}]}
    result = profiled(tmp_path, frame(same="x"), None, likely)
    (asked,) = [action for action in result.actions if action.required]
    assert result.status == "NEEDS_INPUT" and asked.field == "target"
    assert asked.options == ("answer", "size")  # a constant cannot be predicted
    assert result.result["target"] is None


def test_a_few_whole_numbers_may_be_classes_or_amounts_so_it_asks(tmp_path: Path) -> None:
    given = frame(grade=np.random.default_rng(3).integers(1, 6, ROWS))
    result = profiled(tmp_path, given, "grade")
    assert codes(result)["TASK_AMBIGUOUS"] == "grade" and result.status == "NEEDS_INPUT"
    (asked,) = [action for action in result.actions if action.required]
    assert asked.field == "task" and asked.options == ("multiclass", "regression")
    for task in asked.options:
        settled = profiled(tmp_path, given, "grade", task=task)
        assert settled.status == "OK" and settled.result["target"]["task"] == task


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (np.where(NOISE > 0, 1, 0), "binary"),
        (NOISE > 0, "binary"),
        (np.where(NOISE > 0.5, "a", np.where(NOISE < -0.5, "b", "c")), "multiclass"),
        (NOISE, "regression"),
        (np.arange(ROWS) * 7 % 101, "regression"),
        ([f"${1000 + value * 3.5:,.2f}" for value in range(ROWS)], "regression"),
    ],
)
def test_the_task_follows_from_the_values(values: Any, task: str) -> None:
    column = pd.Series(values, name="y")
    kind = {"i": "int", "f": "float", "b": "bool"}.get(column.dtype.kind, "text")
    target = settle(look("y", kind, column), column, None, None, None)
    assert isinstance(target, Target) and target.task == task and target.task_why
    told = target.to_json()
    assert (told["classes"] is None) == (task == "regression") == (told["dist"] is not None)


def test_the_class_to_find_is_the_yes_and_can_be_changed(tmp_path: Path) -> None:
    assert profiled(tmp_path, frame()).result["target"]["positive_class"] == "yes"
    assert profiled(tmp_path, frame(), positive_class="no").result["target"]["positive_class"] == "no"


# ---- what is odd about columns ----

ODD: dict[str, tuple[Any, str, str]] = {
    "same": (["x"] * ROWS, "CONSTANT", "CONSTANT_COLUMN"),
    "empty": ([None] * ROWS, "CONSTANT", "ALL_MISSING_COLUMN"),
    "price": ([f"€{n % 37:,}.50" for n in range(ROWS)], "NUMERIC", "NUMBERS_AS_TEXT"),
    "mixture": ([str(n % 50) if n % 3 else "unknown" for n in range(ROWS)], "CATEGORY", "MIXED_TYPES"),
    "nearly": ([str(n % 50) if n > 2 else "a few" for n in range(ROWS)], "NUMERIC", "MIXED_TYPES"),
    "ratio": (np.where(np.arange(ROWS) == 11, np.inf, NOISE), "NUMERIC", "INFINITE_VALUES"),
    "when": ([f"{n % 12 + 1:02}/{n % 11 + 1:02}/2024" for n in range(ROWS)], "DATETIME", "AMBIGUOUS_DATE"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_column_is_named_with_its_code(name: str) -> None:
    values, expected, code = ODD[name]
    column = pd.Series(values, name=name)
    found = look(name, "float" if column.dtype.kind == "f" else "text", column)
    assert found.role == expected
    issue = next(issue for issue in found.issues if issue.code == code)
    assert issue.column == name and name in issue.message


def test_an_infinite_number_is_missing_and_its_line_is_named() -> None:
    found = look("ratio", "float", pd.Series(ODD["ratio"][0]))
    assert found.missing == 1 and found.issues[0].row == 13  # row 11 counted from 0, below a header
    assert all(math.isfinite(value) for value in found.stats.values())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([f"{n:08x}-1234-4abc-8def-{n:012x}" for n in range(ROWS)], "ID"),
        ([f"person{n}@example.org" for n in range(ROWS)], "ID"),
        ([f"K{n:05}" for n in range(ROWS)], "ID"),
        ([f"{n:05}" for n in range(ROWS)], "ID"),  # leading noughts are no number
        ([f"{n % 30:05}" for n in range(ROWS)], "CATEGORY"),
        (["red", "green", "blue"] * (ROWS // 3), "CATEGORY"),
        ([f"the quick brown fox number {n} jumps" for n in range(ROWS)], "TEXT"),
        ([f"2024-{n % 12 + 1:02}-{n % 28 + 1:02}" for n in range(ROWS)], "DATETIME"),
        ([f"{n % 28 + 1}.{n % 12 + 1}.2024" for n in range(ROWS)], "DATETIME"),
        ([f"Mar-{2000 + n % 20}" for n in range(ROWS)], "DATETIME"),
        ([f"1.234,{n % 60:02}" for n in range(ROWS)], "NUMERIC"),
        ([f"({n}.5)" for n in range(ROWS)], "NUMERIC"),
        ([f"{n % 90 + 1} %" for n in range(ROWS)], "NUMERIC"),
    ],
)
def test_what_texts_really_are(values: list[str], expected: str) -> None:
    assert look("column", "text", pd.Series(values)).role == expected


def test_european_numbers_and_amounts_in_brackets_are_read_rightly() -> None:
    assert look("a", "text", pd.Series([f"1.{n:03},50" for n in range(100, 150)])).stats["min"] == 1100.5
    assert look("a", "text", pd.Series([f"({n},000)" for n in range(1, 50)])).stats["min"] == -49000


@pytest.mark.parametrize(
    ("cells", "read", "code"),
    [
        (["1.50 €", "2.75 €", "12.00 €"], [1.5, 2.75, 12], "NUMBERS_AS_TEXT"),
        (["1,50 €", "2,75 €", "12,00 €"], [1.5, 2.75, 12], "NUMBERS_AS_TEXT"),
        (["1.234,50", "2.000,00", "12,25"], [1234.5, 2000, 12.25], "NUMBERS_AS_TEXT"),
        (["1,234.50", "2,000.00", "12.25"], [1234.5, 2000, 12.25], "NUMBERS_AS_TEXT"),
        (["1 234,5", "12,5", "2 345,25"], [1234.5, 12.5, 2345.25], "NUMBERS_AS_TEXT"),
        (["$1,234", "$500", "($12,500)"], [1234, 500, -12500], "NUMBERS_AS_TEXT"),
        (["12%", "3.5%", "\u22124 %"], [12, 3.5, -4], "NUMBERS_AS_TEXT"),
        (["₹12,34,567", "₹950"], [1234567, 950], "NUMBERS_AS_TEXT"),
        (["1.500 €", "950 €", "12.000 €"], [1500, 950, 12000], "AMBIGUOUS_NUMBER"),
        (["12%", "0.12", "15%"], [12, 0.12, 15], "MIXED_TYPES"),
        (["$12", "€15", "$9"], [12, 15, 9], "MIXED_TYPES"),
    ],
)
def test_numbers_with_signs_are_read_as_they_were_meant_or_it_warns(
    cells: list[str], read: list[float], code: str
) -> None:
    values = pd.Series(cells * 10)
    found = look("price", "text", values)
    assert found.role == "NUMERIC" and numbers(values, found.parse).tolist()[: len(read)] == read
    assert code in {issue.code for issue in found.issues}
    assert (code == "NUMBERS_AS_TEXT") == (not [issue for issue in found.issues if issue.severity == "WARN"])


def test_a_fraction_with_the_other_sign_is_no_hundredfold() -> None:
    values = pd.Series(["1.50 €", "1,75 €", *(f"{n}.25 €" for n in range(60))])
    found = look("price", "text", values)
    assert numbers(values, found.parse).iloc[:3].tolist()[::2] == [1.5, 0.25] and found.stats["max"] < 100
    assert any(issue.code == "MIXED_TYPES" and issue.value == "1,75 €" for issue in found.issues)


def test_what_stands_before_a_fraction_is_a_persons_choice(tmp_path: Path) -> None:
    given = frame(fuel=[f"1.{n:03} €" for n in range(500, 500 + ROWS)])
    asked = next(action for action in profiled(tmp_path, given).actions if action.field == "fractions.fuel")
    assert (asked.options, asked.default) == (("POINT", "COMMA"), "COMMA")
    said = profiled(tmp_path, given, **{"fractions.fuel": "POINT"})
    (column,) = [column for column in said.result["columns"] if column["name"] == "fuel"]
    assert column["stats"]["min"] == 1.5 and "AMBIGUOUS_NUMBER" not in codes(said)


def test_amounts_that_are_nearly_all_nothing_are_named() -> None:
    losses = pd.Series(np.where(np.arange(ROWS) % 10, 0.0, np.arange(ROWS) * 7.5), name="loss")
    target = settle(look("loss", "float", losses), losses, "regression", None, None)
    assert isinstance(target, Target)
    assert [(each.code, each.value) for each in target.issues if each.code == "IMBALANCE"] == [("IMBALANCE", "0")]
    assert not settle(look("y", "float", pd.Series(NOISE)), pd.Series(NOISE), "regression", None, None).issues


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("customer_id", DICE.permutation(10**6)[:ROWS], "ID"),
        ("CustomerID", DICE.permutation(10**6)[:ROWS], "ID"),
        ("anything", np.arange(ROWS) + 1000, "ID"),
        ("tag", np.sort(DICE.permutation(9 * 10**5)[:ROWS]) + 10**5, "ID"),  # handed out one after another
        ("ID_Kunde", DICE.permutation(10**6)[:ROWS], "ID"),
        ("weight", DICE.permutation(10**6)[:60], "NUMERIC"),  # sixty different weights are nothing odd
        ("population", np.sort(DICE.lognormal(10, 2, ROWS).astype(int) * 1000 + np.arange(ROWS)), "NUMERIC"),
        ("order_value", DICE.permutation(10**6)[:ROWS], "NUMERIC"),
        ("year", np.arange(ROWS) + 1800, "NUMERIC"),
        ("idle_minutes", DICE.integers(0, 50, ROWS), "NUMERIC"),
        ("flag", DICE.integers(0, 2, ROWS), "BOOL"),
    ],
)
def test_whole_numbers_that_number_the_rows_are_told_from_measurements(name: str, values: Any, expected: str) -> None:
    found = look(name, "int", pd.Series(values))
    assert found.role == expected
    assert bool(found.why) == (expected == "ID")
    asked = [issue for issue in found.issues if issue.code == "ID_COLUMN"]  # it is kept, and a person is told
    assert len(asked) == (name in ("population", "order_value", "year"))


def test_an_ambiguous_date_is_read_as_a_person_says(tmp_path: Path) -> None:
    given = frame(when=ODD["when"][0])
    asked = profiled(tmp_path, given)
    assert "dates.when" in [action.field for action in asked.actions]
    said = profiled(tmp_path, given, **{"dates.when": "MONTH_FIRST"})
    (column,) = [column for column in said.result["columns"] if column["name"] == "when"]
    assert column["parse"] == {"format": "%m/%d/%Y"} and "AMBIGUOUS_DATE" not in codes(said)


def test_a_role_is_changed_by_a_person(tmp_path: Path) -> None:
    given = frame(zone=np.random.default_rng(3).integers(1, 9, ROWS))
    assert role(profiled(tmp_path, given), "zone") == "NUMERIC"
    assert role(profiled(tmp_path, given, **{"roles.zone": "CATEGORY"}), "zone") == "CATEGORY"


def test_names_in_any_script_are_legible_in_pictures(tmp_path: Path) -> None:
    room = Room("PROFILE_DATA", tmp_path)
    with picture(room, "plot-x.png", "物种 by Größe", "行", "مدينة", NAMED) as axes:
        bars(axes, ["北京", "Größe", "\U000f0000"], [3, 2, 1])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    written = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *labels]
    assert written == ["WuZhong by Größe", "Xing", "mdynh", "BeiJing", "Größe", "U+F0000"]


# ---- what is odd about the table ----


def test_leaks_are_found_whatever_their_shape_and_honest_columns_are_not_accused(tmp_path: Path) -> None:
    yes = ANSWER == "yes"
    leaks = {
        "copy": np.where(yes, "J", "N"),
        "written_after": np.where(yes, np.random.default_rng(3).normal(size=ROWS), np.nan),
        "code": np.where(yes, 17.5, 3.0) + np.random.default_rng(3).normal(size=ROWS) * 0.1,
    }
    result = profiled(tmp_path, frame(**leaks, honest=NOISE * 2))
    accused = {issue.column for issue in result.warnings if issue.code == "LEAKAGE_SUSPECT"}
    assert accused == set(leaks)
    message = next(issue.message for issue in result.warnings if issue.column == "copy")
    assert "copy of the answer" in message


def test_a_leak_of_a_number_is_found_also_with_values_far_out(tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    price = dice.pareto(1.2, ROWS)
    price[0] = 1e6  # alone, it makes a line of anything that grows with the price
    given = frame(price=price, price_with_tax=price * 1.19, logarithm=np.log(price))
    given["area"] = price * np.where(np.arange(ROWS), dice.uniform(0.2, 1.8, ROWS), 1)
    result = profiled(tmp_path, given, "price")
    strong = {issue.column for issue in result.warnings if issue.code == "LEAKAGE_SUSPECT" and issue.severity == "WARN"}
    assert "price_with_tax" in strong and "area" not in strong


@pytest.mark.parametrize(("name", "target"), [("penguins", "species"), ("mpg", "mpg"), ("breast_cancer", "target")])
def test_no_column_of_an_honest_table_is_accused(name: str, target: str, tmp_path: Path) -> None:
    result = profiled(tmp_path, table(name).iloc[:, :12].assign(**{target: table(name)[target]}), target)
    assert "LEAKAGE_SUSPECT" not in codes(result) and "ID_COLUMN" not in codes(result)


def test_rows_that_are_odd_are_counted(tmp_path: Path) -> None:
    given = frame(id=range(ROWS), patient=np.arange(ROWS) // 4)
    copied = pd.concat([given, given.head(30).assign(id=range(ROWS, ROWS + 30))], ignore_index=True)
    result = profiled(tmp_path, copied)
    found = {issue.code: issue for issue in result.warnings}
    assert found["DUPLICATE_ROWS"].count == 30 == result.result["table"]["dup_rows"]  # another id is no other row
    assert found["DUPLICATE_ROWS"].row == ROWS + 2
    assert found["ID_COLUMN"].column == "id" and "left out unless you keep it" in found["ID_COLUMN"].message
    assert found["GROUPED_ROWS"].column == "patient" == result.result["group"]


def test_rows_in_order_of_time_and_a_table_wider_than_long(tmp_path: Path) -> None:
    days = pd.date_range("2020-01-01", periods=40).strftime("%Y-%m-%d")
    dice = np.random.default_rng(3)
    wide = pd.DataFrame(dice.normal(size=(40, 45)), columns=[f"c{n}" for n in range(45)])
    wide = wide.assign(day=days, y=["a", "b"] * 20)
    found = codes(profiled(tmp_path, wide, "y"))
    assert found["TIME_ORDERED"] == "day"
    assert {"MORE_COLUMNS_THAN_ROWS", "FEW_ROWS"} <= found.keys()


def test_an_uneven_target_is_described(tmp_path: Path) -> None:
    target = np.array(["common"] * (ROWS - 22) + ["seldom"] * 15 + ["rare"] * 7, dtype=object)
    target[:3] = None
    result = profiled(tmp_path, frame(y=target), "y")
    found = {issue.code: issue for issue in result.warnings}
    assert {"IMBALANCE", "RARE_CLASS", "TARGET_MISSING_ROWS"} <= found.keys()
    assert found["TARGET_MISSING_ROWS"].count == 3 and found["RARE_CLASS"].value == "rare"


def test_columns_that_were_not_to_be_used_do_not_make_rows_different(tmp_path: Path) -> None:
    given = frame(note=np.random.default_rng(3).normal(size=ROWS))
    doubled = pd.concat([given, given.assign(note=0.5)], ignore_index=True)
    assert profiled(tmp_path, doubled).result["table"]["dup_rows"] == 0
    assert profiled(tmp_path, doubled, "answer", {"drop": ["note"]}).result["table"]["dup_rows"] == ROWS


def test_hashes_of_rows_tell_columns_and_missing_values_apart() -> None:
    a, b = pd.Series([1.0, 2.0, np.nan, np.nan]), pd.Series([2.0, 1.0, np.nan, 0.0])
    assert copies(mixed(mixed(None, a), b)) == 0
    assert copies(mixed(mixed(None, a), a)) == 1  # nothing equals nothing, here


# ---- the program ----


def test_the_program_leaves_the_same_bytes_twice_and_pictures_people_can_read(tmp_path: Path) -> None:
    lay(tmp_path, pd.read_csv(save("penguins", tmp_path)), "species")
    first, second = (run_stage(tmp_path, "PROFILE_DATA", seed=3) for _ in range(2))
    assert first.exit == 0 and first["status"] == "OK", first.stderr
    for volatile in ("metrics",):
        first.pop(volatile), second.pop(volatile)
    assert json.dumps(first) == json.dumps(second)
    names = [artifact["name"] for artifact in first["artifacts"]]
    assert names[0] == "plot-target.png" and 3 <= len(names) <= 12
    header = (tmp_path / "profile-data" / "plot-target.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(header[16:20]) == 900
    assert [event["event"] for event in first.events][-1] == "result" and len(first.events) > 2


def test_the_program_fails_typed_without_traceback_and_then_succeeds(tmp_path: Path) -> None:
    lay(tmp_path, frame(same="x"), "same")
    failed = run_stage(tmp_path, "PROFILE_DATA")
    assert failed.exit == 2 and failed["status"] == "FAILED" and failed["error"]["code"] == "SINGLE_CLASS_TARGET"
    assert "Traceback" not in json.dumps(failed) and str(tmp_path) not in json.dumps(failed)
    again = run_stage(tmp_path, "PROFILE_DATA", edits={"target": "answer"}, attempt=2)
    assert again.exit == 0 and again["attempt"] == 2


def test_hostile_names_and_cells_do_no_harm(tmp_path: Path) -> None:
    ugly = ["$\\frac{", "a\nb\x1b[31m|c", "<script>alert(1)</script>", "x" * 10_000, "\u202eevil", "🐧", " ", "a.b.c"]
    given = pd.DataFrame({name: [f"{name[:20]}{n % 5}\x07\n" for n in range(ROWS)] for name in ugly})
    given["$y_{"] = np.where(NOISE > 0, "$\\alpha^{", "b\n\n# c")
    result = profiled(tmp_path, given, "$y_{")
    told = [result.summary, *(issue.message for issue in result.warnings)]
    told += [action.label for action in result.actions]
    assert not [text for text in told for sign in CONTROLS if sign in text]
    assert max(map(len, told[1:] or [""])) < 700 and len(result.result["columns"]) == 9


def test_a_missing_earlier_stage_is_named(tmp_path: Path) -> None:
    leave(tmp_path, "PARSE_INTENT", {"target": "y"})
    with pytest.raises(Failed, match="DATA_SOURCE has not left"):
        work_here(work, tmp_path, "PROFILE_DATA")
