"""The models that are tried: in which order, with what settings, and how one is built.

The settings were chosen on public tables, not on the table at hand; docs/stages.md has the figures.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from stages import preparing
from stages.scoring import Task

Kind: TypeAlias = Literal["linear", "tree", "dummy"]
Json: TypeAlias = Any

BIG = 20_000  # rows from which large trees come first
FEW = 5_000  # rows up to which random trees are worth their time: each sees all there is
NEWTON_COLUMNS = 300  # up to which Newton's method is several times cheaper than gradients, for two classes
WIDE = 5_000_000  # rows x columns above which the strength of a linear model is not searched for
TREES_ROWS = 20_000  # rows that each tree of a forest sees at most: what it learns and weighs stays bounded
CATBOOST_ROUNDS = 300  # more costs minutes on 100,000 rows
ALWAYS = ("dummy", "linear")  # and one boosting
BASELINE = "dummy"
BLEND = "blend"
QUICK, DEFAULT, DEEP = "hgb-quick", "hgb", "hgb-deep"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the portfolio.

    Attributes:
        family: "dummy", "linear", "boosting", "extra-trees" or "catboost".
        kind: which encoder it needs.
        simple: the smaller, the simpler; of two equally good ones the simpler is chosen.
        why: for a person.
    """

    id: str
    family: str
    kind: Kind
    simple: int
    why: str
    params: Mapping[str, Json] = field(default_factory=dict)


_BASE: Mapping[str, Json] = {"max_iter": 100, "learning_rate": 0.1, "max_leaf_nodes": 31, "early_stopping": False}


def _boosting(name: str, simple: int, why: str, **params: Json) -> Entry:
    return Entry(name, "boosting", "tree", simple, why, {**_BASE, **params})


_DUMMY = Entry("dummy", "dummy", "dummy", 0, "Always says the same; whatever is no better has learned nothing.")
_LINEAR = Entry("linear", "linear", "linear", 1, "Adds up the columns; often as good as anything, and easy to explain.")
_QUICK = _boosting(
    QUICK, 2, "A small boosting of trees, for a small budget.", max_iter=40, learning_rate=0.2, max_leaf_nodes=15
)
_HGB = _boosting(
    DEFAULT, 4, "Boosting of trees with usual settings; finds bends and combinations of columns.", max_iter=150
)
_TREES = Entry(
    "extra-trees",
    "extra-trees",
    "tree",
    8,
    "Many random trees that vote; steady on noisy tables.",
    {"n_estimators": 150, "min_samples_leaf": 3},
)
_SHALLOW = _boosting("hgb-shallow", 3, "Small trees: good when columns act one by one.", max_iter=200, max_depth=3)
_COLUMNS = _boosting(
    "hgb-columns",
    6,
    "Each split looks at a third of the columns: good when many say the same.",
    max_iter=250,
    learning_rate=0.06,
    max_features=0.33,
)
_HELD = _boosting(
    "hgb-held-back",
    5,
    "Held back from learning noise: large leaves, strong damping.",
    max_iter=200,
    learning_rate=0.1,
    min_samples_leaf=50,
    l2_regularization=20.0,
    max_features=0.5,
)
_DEEP = _boosting(
    DEEP,
    7,
    "Large trees: finds fine detail in many rows.",
    max_iter=150,
    max_leaf_nodes=127,
    min_samples_leaf=40,
    max_features=0.5,
)
_CATBOOST = Entry(
    "catboost",
    "catboost",
    "tree",
    9,
    "Boosting of symmetric trees; often the best single model, but dear.",
    {"iterations": CATBOOST_ROUNDS},
)
ENTRIES = {
    each.id: each for each in (_DUMMY, _LINEAR, _QUICK, _HGB, _TREES, _SHALLOW, _COLUMNS, _HELD, _DEEP, _CATBOOST)
}
BLEND_SIMPLE = 1 + max(entry.simple for entry in ENTRIES.values())


def simplicity(name: str) -> int:
    """Returns how simple a candidate is, smaller is simpler; a blend is the least simple."""
    return ENTRIES[name].simple if name in ENTRIES else BLEND_SIMPLE


def entries(rows: int) -> tuple[Entry, ...]:
    """Returns the portfolio in the order in which it is tried on a table of that many rows to learn from."""
    rest = (_DEEP, _HGB, _HELD, _COLUMNS, _SHALLOW) if rows >= BIG else (_HGB, _HELD, _COLUMNS, _SHALLOW, _DEEP)
    catboost = (_CATBOOST,) if importlib.util.find_spec("catboost") else ()
    return (_DUMMY, _LINEAR, _QUICK, *rest, _TREES, *catboost)


def fitting(entry: Entry, task: Task, rows: int, columns: int) -> dict[str, Json]:
    """Returns the settings of an entry for a table: `columns` is how many there are once encoded."""
    params = dict(entry.params)
    if entry.family == "linear" and task == "regression":
        params["alphas"] = [10.0] if rows * columns > WIDE else [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0]
    elif entry.family == "linear":
        params["C"] = 1.0
        params["solver"] = "newton-cholesky" if task == "binary" and columns <= NEWTON_COLUMNS else "lbfgs"
    elif entry.family == "extra-trees":
        params["max_features"] = 0.5 if task == "regression" else "sqrt"
        if rows > TREES_ROWS:
            params |= {"bootstrap": True, "max_samples": round(TREES_ROWS / rows, 4)}
    return params


def build(candidate: Mapping[str, Json], plan: preparing.Plan, seed: int) -> Any:
    """Returns an unfitted pipeline, encoder and estimator, that takes what `preparing.prepare` returns.

    Args:
        candidate: as MODEL_SELECT left it.
        plan: the whole result of PREPROCESS.
    """
    from sklearn.pipeline import Pipeline

    model = ("model", _estimator(candidate["family"], dict(candidate["params"]), plan, seed))
    if candidate["kind"] == "dummy":
        return Pipeline([model])
    return Pipeline([("encode", preparing.encoder(plan, candidate["kind"])), model])


def _estimator(family: str, params: dict[str, Json], plan: preparing.Plan, seed: int) -> Any:
    regression = plan["task"] == "regression"
    if family == "dummy":
        from sklearn.dummy import DummyClassifier, DummyRegressor

        return DummyRegressor() if regression else DummyClassifier(strategy="prior")
    if family == "linear":
        return _linear(regression, params)
    if family == "extra-trees":
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        return (ExtraTreesRegressor if regression else ExtraTreesClassifier)(random_state=seed, **params)
    if family == "catboost":
        catboost = importlib.import_module("catboost")
        chosen = catboost.CatBoostRegressor if regression else catboost.CatBoostClassifier
        quiet = {"verbose": False, "allow_writing_files": False, "thread_count": 1}
        return chosen(random_seed=seed, **quiet, **params)
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    chosen = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    return chosen(random_state=seed, categorical_features=preparing.categorical(plan) or None, **params)


def _linear(regression: bool, params: dict[str, Json]) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV

    if not regression:
        return LogisticRegression(max_iter=200, **params)
    alphas = params["alphas"]
    return Ridge(alpha=alphas[0]) if len(alphas) == 1 else RidgeCV(alphas=alphas)
