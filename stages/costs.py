"""What trying a model will cost, forecast from the shape of the table alone, so that the same table gets the same plan.

The constants are processor seconds at one thread, measured on an x86 server core; a slower machine spends more, and
stages.budget ends what would pass the budget.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages import preparing
from stages.preparing import TEXT_DIMENSIONS

START_S = 4.0  # loading the libraries and the table
CLOSE_S = 1.0  # choosing, drawing, writing the model
BASE_MB = 260.0  # the libraries
DATE_COLUMNS = 6  # a moment becomes so many numbers
CURVE_COLUMNS = 6  # and so many more, for a linear model that may bend
LEAST_LEAF = 20  # rows in a leaf

# Encoding, seconds a row: a number, a category, a moment, a text (counted in n-grams and reduced).
NUMBER_S, CATEGORY_S, DATE_S, TEXT_S = 2.5e-7, 1.5e-6, 3e-6, 2e-5
ENCODE_S = 0.04  # whatever the rows
LINEAR_S = 3e-7  # a row, a column, an output
STEP_S, SPLIT_S, CELL_S = 3e-4, 5e-6, 9e-9  # boosting: a tree; a leaf and column of it; a row and column of it
ROW_S = 1.5e-7  # a tree and a row: its slope, and its part in judging when to end
TREE_S, SORT_S = 1e-3, 3.5e-8  # a random tree; a row and column of it, times log2 of the rows
CATBOOST_CELL_S = 1.2e-7  # a round, a row, a column
PREDICT_SHARE = 0.1  # of the fit, for the rows of a fold


@dataclass(frozen=True, slots=True)
class Shape:
    """A table as costs see it.

    Attributes:
        rows: to learn from.
        numbers, categories, texts, dates: columns of each sort.
        wide: columns after encoding for a linear model.
        outputs: models inside a model: 1, or the number of classes when there are more than two.
    """

    rows: int
    numbers: int
    categories: int
    texts: int
    dates: int
    wide: int
    outputs: int

    @property
    def tree_columns(self) -> int:
        """Columns after encoding for trees."""
        return self.numbers + self.categories + TEXT_DIMENSIONS * self.texts + DATE_COLUMNS * self.dates

    def columns(self, kind: str) -> int:
        """Returns the columns after encoding."""
        return max(1, self.wide if kind == "linear" else self.tree_columns)


def shape_of(plan: Mapping[str, Any]) -> Shape:
    """Reads the shape from the result of PREPROCESS."""
    entries = {entry["column"]: entry for entry in plan["plan"]}
    sorts = [_sort(entries[name]) for name in plan["features"]]
    counts = {sort: sorts.count(sort) for sort in ("numbers", "categories", "texts", "dates")}
    classes = len(plan.get("classes") or ())
    outputs = classes if plan["task"] == "multiclass" else 1
    found = Shape(rows=plan["split"]["n_train"], **counts, wide=0, outputs=outputs)
    curves = CURVE_COLUMNS * len(preparing.curved(plan))
    wide = max(int(plan.get("features_est") or 0), found.tree_columns) + curves
    return Shape(rows=found.rows, **counts, wide=wide, outputs=outputs)


def _sort(entry: Mapping[str, Any]) -> str:
    if entry["action"] == "ENCODE_TEXT":
        return "texts"
    return {"NUMERIC": "numbers", "BOOL": "numbers", "DATETIME": "dates"}.get(entry["role"], "categories")


def encoding(shape: Shape, rows: int) -> float:
    """Returns the seconds of fitting an encoder on so many rows and applying it."""
    a_row = shape.numbers * NUMBER_S + shape.categories * CATEGORY_S + shape.dates * DATE_S + shape.texts * TEXT_S
    return ENCODE_S + rows * a_row


def fitting(candidate: Mapping[str, Any], shape: Shape, rows: int) -> float:
    """Returns the seconds of fitting a candidate on so many rows that are encoded already, all rounds of it."""
    family, params = candidate["family"], candidate["params"]
    if family == "dummy":
        return 0.01
    columns = shape.columns(candidate["kind"])
    if family == "linear":
        return 0.01 + rows * columns * shape.outputs * LINEAR_S
    if family == "extra-trees":
        return _forest(params, rows, columns)
    if family == "catboost":
        return 0.5 + float(params["iterations"]) * rows * columns * shape.outputs * CATBOOST_CELL_S
    leaves = min(params["max_leaf_nodes"], 2 ** params.get("max_depth", 16), max(2, rows // LEAST_LEAF))
    tried = columns * (0.4 + 0.6 * params.get("max_features", 1.0))  # fewer to look at, as many to count
    a_tree = STEP_S + leaves * tried * SPLIT_S + rows * (columns * CELL_S + ROW_S)
    return 0.02 + float(params["max_iter"] * shape.outputs * a_tree)


def _forest(params: Mapping[str, Any], rows: int, columns: int) -> float:
    seen = rows * params.get("max_samples", 1.0)
    share = math.sqrt(columns) if params["max_features"] == "sqrt" else params["max_features"] * columns
    a_tree = TREE_S + seen * math.log2(max(2, seen)) * share * SORT_S
    return float(params["n_estimators"] * a_tree)


def megabytes(candidate: Mapping[str, Any], shape: Shape) -> float:
    """Returns the memory the process holds at most while it fits a candidate on every row, in MiB."""
    cell = 8 / 2**20
    columns = shape.columns(candidate["kind"])
    copies = {"linear": 4.0, "extra-trees": 2.5, "dummy": 0.0}.get(candidate["family"], 3.0)
    table = shape.rows * (shape.numbers + 8 * (shape.categories + shape.texts) + shape.dates) * cell * 2
    trees = _nodes(candidate, shape.rows) * (64 + 8 * shape.outputs) / 2**20
    return BASE_MB + table + copies * shape.rows * columns * cell + trees


def _nodes(candidate: Mapping[str, Any], rows: int) -> float:
    params = candidate["params"]
    if candidate["family"] != "extra-trees":
        return 0.0
    return float(params["n_estimators"] * 2 * rows * params.get("max_samples", 1.0) / params["min_samples_leaf"])
