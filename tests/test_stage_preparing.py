"""Preparing rows by a plan: the same row gives the same numbers, whatever file it came from."""

import ast
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import preparing
from stages.preparing import categorical, dates, encoder, numbers, prepare, target_of, words

PLAN: dict[str, Any] = {
    "target": "y",
    "task": "binary",
    "features": ["size", "colour", "zone", "flag", "price", "day", "note"],
    "null_markers": ["NA"],
    "plan": [
        {"column": "note", "role": "TEXT", "action": "ENCODE_TEXT"},
        {"column": "size", "role": "NUMERIC", "action": "KEEP", "original": "Size "},
        {"column": "zone", "role": "CATEGORY", "action": "CATEGORY", "parse": {"number": True}},
        {"column": "colour", "role": "CATEGORY", "action": "CATEGORY"},
        {"column": "gone", "role": "ID", "action": "DROP"},
        {"column": "flag", "role": "BOOL", "action": "KEEP", "parse": {"truth": True}},
        {"column": "price", "role": "NUMERIC", "action": "PARSE_NUMBER", "parse": {"clutter": True, "decimal": "."}},
        {"column": "day", "role": "DATETIME", "action": "PARSE_DATE", "parse": {"format": "%d/%m/%Y"}},
    ],
}
ROWS = 60


def known() -> pd.DataFrame:
    """Returns rows as data.parquet has them: typed, with gaps."""
    place = np.arange(ROWS)
    return pd.DataFrame(
        {
            "gone": place,
            "size": np.where(place % 7 == 0, np.nan, place / 4),
            "colour": pd.Series(np.resize(["red", "green", None], ROWS), dtype="str"),
            "zone": np.where(place % 5 == 0, np.nan, place % 4),
            "flag": pd.Series(np.resize(np.array([True, False, None], dtype=object), ROWS)),
            "price": [f"${1000 + n:,.2f}" for n in place],
            "day": [f"{n % 28 + 1:02}/{n % 12 + 1:02}/2024" for n in place],
            "note": [f"some words about the number {n}" for n in place],
            "y": np.where(place % 2, "yes", "no"),
        }
    )


def from_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows as somebody reads them from a file, every cell as text."""
    return pd.read_csv(io.StringIO(frame.to_csv(index=False, na_rep="NA")), dtype=str, keep_default_na=False)


def same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left.reset_index(drop=True), right.reset_index(drop=True))


def test_rows_of_a_file_of_texts_are_prepared_as_the_typed_ones() -> None:
    typed = prepare(known(), PLAN)
    assert list(typed) == PLAN["features"]
    assert typed.dtypes.astype(str).tolist() == ["float64", "str", "str", "float64", "float64", "datetime64[us]", "str"]
    same(typed, prepare(from_csv(known()), PLAN))
    assert typed.zone.dropna().unique().tolist() == ["1", "2", "3", "0"] and typed.price[3] == 1003


@pytest.mark.parametrize("change", ["reordered", "more", "another index", "another name", "one row"])
def test_order_further_columns_and_index_do_not_matter(change: str) -> None:
    frame, expected = known(), prepare(known(), PLAN)
    changed = {
        "reordered": frame[frame.columns[::-1]],
        "more": frame.assign(extra="x", another=1),
        "another index": frame.set_index(np.arange(ROWS) * 3 + 7),
        "another name": frame.rename(columns={"size": "Size "}),
        "one row": frame.head(1),
    }[change]
    got = prepare(changed, PLAN)
    same(got, expected.head(len(changed)))
    assert got.index.equals(changed.index)


def test_columns_that_are_not_there_are_all_missing_and_of_the_same_type() -> None:
    full = prepare(known(), PLAN)
    bare = prepare(known()[["y"]], PLAN)
    assert bare.isna().all(axis=None) and bare.dtypes.equals(full.dtypes) and len(bare) == ROWS
    assert prepare(known().head(0), PLAN).dtypes.equals(full.dtypes)


def test_each_row_is_prepared_by_itself() -> None:
    whole = prepare(known(), PLAN)
    parts = pd.concat([prepare(known().iloc[[n]], PLAN) for n in range(8)])
    same(whole.head(8), parts)


def test_the_target_is_not_looked_at() -> None:
    same(prepare(known(), PLAN), prepare(known().drop(columns="y"), PLAN))


@pytest.mark.parametrize(
    ("given", "parse", "expected"),
    [
        (["1", " 2.5 ", "", "x", "1e3", "-0"], {}, [1, 2.5, None, None, 1000, 0]),
        (["inf", "-Infinity", "nan"], {}, [None, None, None]),
        ([np.inf, 1.0, np.nan], {}, [None, 1, None]),
        (["1,5", "2"], {"decimal": ","}, [1.5, 2]),
        (["€ 1.234,50", "(7)", "12 %"], {"clutter": True, "decimal": ","}, [1234.5, -7, 12]),
        (["$1,234.00", "1'000", "1\u00a0000"], {"clutter": True, "decimal": "."}, [1234, 1000, 1000]),
        (["True", "NO", "y", "2"], {"truth": True}, [1, 0, 1, None]),
        ([True, None, False], {"truth": True}, [1, None, 0]),
    ],
)
def test_numbers_are_read_as_people_write_them(given: list[Any], parse: dict[str, Any], expected: list[Any]) -> None:
    read = numbers(pd.Series(given), parse)
    assert read.dtype == "float64" and [None if np.isnan(value) else value for value in read] == expected


def test_words_are_written_one_way() -> None:
    assert words(pd.Series([1.0, 2.5, np.nan]), {}).tolist()[:2] == ["1", "2.5"]
    assert words(pd.Series(["1.0", "1", " 2.50"]), {"number": True}).tolist() == ["1", "1", "2.5"]
    assert words(pd.Series([True, False]), {}).tolist() == ["true", "false"]
    assert words(pd.Series(["TRUE", "False"]), {"truth": True}).tolist() == ["true", "false"]
    assert words(pd.Series(["None", "NA", "x"]), {}, ["NA"]).isna().tolist() == [False, True, False]


def test_dates_of_every_kind_end_as_the_same_moments() -> None:
    moment = pd.Timestamp("2024-03-01")
    assert dates(pd.Series(["2024-03-01", "2024-03-01T02:00:00+02:00"]), {}).tolist() == [moment, moment]
    assert dates(pd.Series([moment]), {}).tolist() == [moment]
    assert dates(pd.Series(["01/03/2024", "31/31/2024"]), {"format": "%d/%m/%Y"}).tolist()[:1] == [moment]
    assert dates(pd.Series(["x", ""]), {}).isna().all()


def test_the_target_is_text_for_classes_and_a_number_for_a_regression() -> None:
    frame = pd.DataFrame({"y": ["1", "0.0", "", "NA"]})
    plan = {**PLAN, "target_parse": {"parse": {"number": True}}}
    classes = target_of(frame, plan)
    assert classes.tolist()[:2] == ["1", "0"] and classes.isna().sum() == 2
    assert target_of(pd.DataFrame({"y": [1.0, np.inf]}), {**PLAN, "task": "regression"}).isna().tolist() == [
        False,
        True,
    ]
    with pytest.raises(KeyError):
        target_of(frame[[]], PLAN)


@pytest.mark.parametrize("kind", ["linear", "tree"])
def test_the_encoder_gives_numbers_for_rows_it_has_never_seen(kind: Any) -> None:
    fitted = encoder(PLAN, kind).fit(prepare(known(), PLAN))
    odd = known().head(3).assign(colour=["mauve", None, "red"], zone=[9, None, 1], day="never", note=None)
    for rows in (prepare(known(), PLAN), prepare(odd, PLAN), prepare(known()[["y"]], PLAN)):
        matrix = fitted.transform(rows)
        assert matrix.dtype.kind == "f" and len(matrix) == len(rows)
        assert not np.isinf(matrix).any()
        if kind == "linear":
            assert not np.isnan(matrix).any()


def test_the_encoder_refers_to_nothing_of_ours_and_is_the_same_each_time() -> None:
    one, two = (encoder(PLAN, "tree").fit_transform(prepare(known(), PLAN)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    for kind in ("linear", "tree"):
        assert b"stages" not in pickle.dumps(encoder(PLAN, kind).fit(prepare(known(), PLAN)))


def test_codes_of_categories_are_few_enough_for_boosting_and_come_first() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    frame = pd.DataFrame({"colour": [f"c{n % 700}" for n in range(1400)], "zone": np.arange(1400) % 9})
    plan = {**PLAN, "features": ["zone", "colour"]}
    matrix = encoder(plan, "tree").fit_transform(prepare(frame, plan))
    assert categorical(plan) == [0, 1] and np.nanmax(matrix) < 255
    model = HistGradientBoostingClassifier(max_iter=2, categorical_features=categorical(plan))
    assert model.fit(matrix, frame.zone > 4).score(matrix, frame.zone > 4) > 0.9


def test_many_codes_are_numbers_for_trees_and_few_columns_for_a_line() -> None:
    rows = 6_000
    frame = pd.DataFrame({"code": [f"c{n * n % 5_003:04}" for n in range(rows)], "zone": np.arange(rows) % 9})
    entry = {"column": "code", "role": "CATEGORY", "action": "CATEGORY", "many": True}
    plan = {**PLAN, "features": ["zone", "code"], "plan": [*PLAN["plan"], entry]}
    tree, line = (encoder(plan, kind).fit(prepare(frame, plan)) for kind in ("tree", "linear"))
    seen = prepare(frame, plan)
    assert tree.transform(seen).shape == (rows, 2) and categorical(plan) == [0]
    assert 9 < line.transform(seen).shape[1] <= 9 + preparing.MANY_LEVELS
    assert np.isnan(tree.transform(prepare(frame.head(1).assign(code=None), plan))[0, 1])


def test_a_column_with_no_value_at_all_among_those_that_train_is_no_trouble() -> None:
    frame = known().assign(size=np.nan, colour=None, day=None, note=None)
    for kind in ("linear", "tree"):
        fitted = encoder(PLAN, kind).fit(prepare(frame, PLAN))
        assert fitted.transform(prepare(known(), PLAN)).shape[0] == ROWS


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_constant_empty_and_enormous_numbers_stay_finite() -> None:
    entries = [{"column": name, "role": "NUMERIC", "action": "KEEP"} for name in "abcd"]
    plan = {**PLAN, "features": list("abcd"), "plan": entries}
    huge = 10.0 ** np.linspace(-300, 300, ROWS)
    frame = pd.DataFrame({"a": 1.0, "b": np.nan, "c": np.r_[np.zeros(ROWS - 3), 1, 2, 3], "d": huge})
    strange = pd.DataFrame({name: [1e300, -1e300, np.nan, np.inf] for name in "abcd"})
    for rows in (frame, strange):
        linear = encoder(plan, "linear").fit(prepare(frame, plan)).transform(prepare(rows, plan))
        assert np.isfinite(linear).all() and np.abs(linear).max() < 10
        tree = encoder(plan, "tree").fit(prepare(frame, plan)).transform(prepare(rows, plan))
        assert not np.isinf(tree.astype(np.float32)).any()


def test_it_stands_alone() -> None:
    tree = ast.parse(Path(preparing.__file__).read_text())
    roots = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    roots |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots == {"collections", "typing", "numpy", "pandas", "sklearn", "skrub"}
