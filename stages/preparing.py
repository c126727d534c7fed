"""Turns rows of a table into what a model takes, by the plan that PREPROCESS left.

Travels with every exported model, so it stands alone: it imports numpy, pandas, scikit-learn and skrub, nothing of
ours. `plan` is always the whole result of PREPROCESS. What needs no fit is done row by row in `prepare`; what is
learned from rows (fills, scales, codes) is in `encoder`, which is fitted inside the model's pipeline, after the split.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

Plan = Mapping[str, Any]
Column = Mapping[str, Any]

MANY_LEVELS = 40  # of a category: for a linear model rarer ones count as one; trees take more of them as numbers
MAX_CODES = 254  # of an ordinal code; scikit-learn's boosting takes at most 255 categories
EXTREME = 1e30  # of a number; forests count in 32 bits and refuse what is larger than 3.4e38
TEXT_DIMENSIONS = 30  # of a text column after encoding
KNOTS = 5  # of the curve of a number
MANY_CURVES = 100  # columns of numbers, above which curves would take more memory than they are worth
NO_TEXT = "missing"
TRUE, FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")
CLUTTER = r"[\s\u00a0\u202f'’_$€£¥₹%]"  # around and inside of numbers that people typed
ACCOUNTING = r"^\((.*)\)$"  # (12.50) is minus 12.50
GROUPED = r"[+-]?[1-9]\d{0,2}(?:\%s\d{2,3})*\%s\d{3}(?:\%s\d*)?"  # 1,234.50, and 12,34,567 as in India


def prepare(frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Returns the feature columns of the plan, in its order, each cast as the plan says.

    Columns the plan does not name are left out; those it names and the frame has not are added, all missing. What does
    not parse is missing; so is an infinite number. Works on each row by itself and never looks at the target.
    """
    markers = plan.get("null_markers", ())
    columns = {entry["column"]: _cast(_found(frame, entry), frame.index, entry, markers) for entry in kept(plan)}
    return pd.DataFrame(columns, index=frame.index, columns=list(plan["features"]))


def kept(plan: Plan) -> Iterator[Column]:
    """Yields the plan's entries of the features, in their order."""
    entries = {entry["column"]: entry for entry in plan["plan"]}
    yield from (entries[name] for name in plan["features"])


def target_of(frame: pd.DataFrame, plan: Plan) -> "pd.Series[Any]":
    """Returns the target: numbers for a regression, else texts, as the classes of the plan are written.

    Missing where it is missing, infinite or does not parse. Raises KeyError when the frame has no such column.
    """
    entry = {"column": plan["target"], **plan.get("target_parse", {})}
    given = _found(frame, entry)
    if given is None:
        raise KeyError(plan["target"])
    markers = plan.get("null_markers", ())
    if plan["task"] == "regression":
        return numbers(given, entry.get("parse", {}), markers)
    return words(given, entry.get("parse", {}), markers)


def _found(frame: pd.DataFrame, entry: Column) -> "pd.Series[Any] | None":
    for name in (entry["column"], entry.get("original")):
        if name in frame.columns:
            found = frame[name]
            return found.iloc[:, 0] if isinstance(found, pd.DataFrame) else found
    return None


def _cast(
    given: "pd.Series[Any] | None", index: "pd.Index[Any]", entry: Column, markers: Sequence[str]
) -> "pd.Series[Any]":
    if given is None:
        given = pd.Series(np.nan, index=index, dtype="str")
    if entry["role"] in ("NUMERIC", "BOOL"):
        return numbers(given, entry.get("parse", {}), markers).clip(-EXTREME, EXTREME)
    return (dates if entry["role"] == "DATETIME" else words)(given, entry.get("parse", {}), markers)


def numbers(given: "pd.Series[Any]", parse: Mapping[str, Any], markers: Sequence[str] = ()) -> "pd.Series[Any]":
    """Returns numbers, float64; NaN for what is none.

    Args:
        parse: `decimal`: "." or ","; `clutter`: True when currency signs, blanks and separators of thousands are to be
            taken away first; `truth`: True when words for true and false stand for 1 and 0.
    """
    if given.dtype.kind in "biuf":
        return given.astype("float64").replace([np.inf, -np.inf], np.nan)
    text = _text(given, markers)
    if parse.get("truth"):
        lowered = text.str.lower()
        known = {**dict.fromkeys(TRUE, 1.0), **dict.fromkeys(FALSE, 0.0)}
        return lowered.map(known).astype("float64")
    decimal = parse.get("decimal", ".")
    if parse.get("clutter"):
        text = text.str.replace(CLUTTER, "", regex=True).str.replace(ACCOUNTING, r"-\1", regex=True)
        text = text.str.replace("\u2212", "-", regex=False)
        thousands = "." if decimal == "," else ","
        parted = text.str.contains(thousands, regex=False)
        # 1.50 among 1,75 is no 150: what separates no thousands is not taken away.
        odd = parted & ~text.str.fullmatch(GROUPED % (thousands, thousands, decimal))
        text = text.mask(odd.fillna(False).astype(bool)).str.replace(thousands, "", regex=False)
    if decimal == ",":
        text = text.str.replace(",", ".", regex=False)
    return pd.to_numeric(text, errors="coerce").astype("float64").replace([np.inf, -np.inf], np.nan)


def dates(given: "pd.Series[Any]", parse: Mapping[str, Any], markers: Sequence[str] = ()) -> "pd.Series[Any]":
    """Returns moments without a zone, in UTC where one was given; NaT for what is none. `parse.format` as strptime."""
    text = given if given.dtype.kind in "Mm" else _text(given, markers)
    read = pd.to_datetime(text, format=parse.get("format", "ISO8601"), errors="coerce", utc=True)
    return read.dt.tz_localize(None).astype("datetime64[us]")


def words(given: "pd.Series[Any]", parse: Mapping[str, Any], markers: Sequence[str] = ()) -> "pd.Series[Any]":
    """Returns texts; a whole number is written without a point, a truth value as true or false.

    Args:
        parse: `number`: True when the column held numbers where the plan was made, so that "1.0" and "1" are one level;
            `truth`: True when it held truth values; `alike`: by spelling, the one that stands for it: "YES" → "yes".
    """
    if parse.get("alike"):
        return _text(given, markers).replace(dict(parse["alike"]))
    if parse.get("truth"):
        return numbers(given, parse, markers).map({1.0: "true", 0.0: "false"}).astype("str")
    if given.dtype.kind == "b":
        return given.map({True: "true", False: "false"}).astype("str")
    if given.dtype.kind in "iuf" or parse.get("number"):
        return _written(numbers(given, parse, markers))
    return _text(given, markers)


def _written(given: "pd.Series[Any]") -> "pd.Series[Any]":
    levels = {
        value: repr(int(value)) if value == int(value) else repr(float(value)) for value in given.dropna().unique()
    }
    return given.map(levels).astype("str")


def _text(given: "pd.Series[Any]", markers: Sequence[str]) -> "pd.Series[Any]":
    text = given.astype("str").str.strip()
    return text.mask(text.isin(["", *markers]))


# ---- what is fitted ----


def encoder(plan: Plan, kind: Literal["linear", "tree"]) -> Any:
    """Returns an unfitted transformer of what `prepare` returns into a matrix of numbers.

    For "linear": no NaN in it, every column of about the same scale. For "tree": categories first, as codes (see
    `categorical`); NaN where a value is missing.
    """
    from sklearn.compose import ColumnTransformer

    parts = _linear(plan) if kind == "linear" else _tree(plan)
    return ColumnTransformer([part for part in parts if part[2]], verbose_feature_names_out=True)


def categorical(plan: Plan) -> list[int]:
    """Returns which columns of the matrix of the encoder for trees hold codes of categories, for boosting to know."""
    return list(range(len(_sorts(plan)["category"])))


def curved(plan: Plan) -> list[str]:
    """Returns the columns of numbers that a linear model sees as curves too: none when there are very many."""
    graded = [entry["column"] for entry in kept(plan) if entry["role"] == "NUMERIC"]
    return graded if len(graded) <= MANY_CURVES else []


def _sorts(plan: Plan) -> dict[str, list[str]]:
    sorts: dict[str, list[str]] = {"number": [], "category": [], "code": [], "text": [], "date": []}
    known = {"NUMERIC": "number", "BOOL": "number", "DATETIME": "date"}
    for entry in kept(plan):
        texts = "text" if entry["action"] == "ENCODE_TEXT" else "code" if entry.get("many") else "category"
        sorts[known.get(entry["role"], texts)].append(entry["column"])
    return sorts


def _linear(plan: Plan) -> list[tuple[str, Any, list[str]]]:
    from sklearn.preprocessing import OneHotEncoder

    sorts = _sorts(plan)
    levels = {"handle_unknown": "infrequent_if_exist", "min_frequency": 5, "max_categories": MANY_LEVELS}
    levels |= {"sparse_output": False}
    return [
        ("number", _scaled() if sorts["number"] else None, sorts["number"]),
        ("curve", _curves(), curved(plan)),
        ("category", OneHotEncoder(**levels), sorts["category"] + sorts["code"]),
        ("text", _texts() if sorts["text"] else None, sorts["text"]),
        ("date", _scaled(_moments()) if sorts["date"] else None, sorts["date"]),
    ]


def _scaled(*before: Any) -> Any:
    """Returns numbers of about one scale, far-out ones pressed together, with a mark for each that was missing."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from skrub import SquashingScaler

    fill = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    return make_pipeline(*before, fill, SquashingScaler())


def _curves() -> Any:
    """Returns smooth curves of each number, so that a linear model can bend.

    Measured with 3 folds on credit, mpg, loans and ames: .841 → .851, .813 → .862, .449 → .476, .880 → .890.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import SplineTransformer
    from skrub import SquashingScaler

    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    curve = SplineTransformer(n_knots=KNOTS, degree=3, knots="quantile", extrapolation="constant", include_bias=False)
    return make_pipeline(fill, SquashingScaler(), curve)


def _tree(plan: Plan) -> list[tuple[str, Any, list[str]]]:
    """Returns what trees take: few levels as categories, many as numbers in the order of their spelling.

    Measured with 2 folds on flights (codes of planes and airports), boosting: categories .741, pieces of their
    spelling .755 at three times the cost, the mean target of each .762, numbers .764.
    """
    from sklearn.preprocessing import OrdinalEncoder

    sorts = _sorts(plan)
    codes = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
        encoded_missing_value=np.nan,
        max_categories=MAX_CODES,
    )
    return [
        ("category", codes, sorts["category"]),
        ("code", codes, sorts["code"]),
        ("number", "passthrough", sorts["number"]),
        ("text", _texts() if sorts["text"] else None, sorts["text"]),
        ("date", _moments() if sorts["date"] else None, sorts["date"]),
    ]


def _texts() -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from skrub import ApplyToCols, StringEncoder

    # A word for what is missing: a part of the rows may hold no text at all, and then there were nothing to learn.
    fill = SimpleImputer(strategy="constant", fill_value=NO_TEXT, keep_empty_features=True)
    pieces = ApplyToCols(StringEncoder(n_components=TEXT_DIMENSIONS, random_state=0))
    return make_pipeline(fill.set_output(transform="pandas"), pieces)


def _moments() -> Any:
    from skrub import ApplyToCols, DatetimeEncoder

    return ApplyToCols(DatetimeEncoder(add_weekday=True))
