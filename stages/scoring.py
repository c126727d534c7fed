"""The measures a model is judged by: their names, which way is better, and their values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from stages.contract import Failed

Task: TypeAlias = Literal["binary", "multiclass", "regression"]
Numbers: TypeAlias = "np.ndarray[Any, Any]"

CLASSES: tuple[Task, ...] = ("binary", "multiclass")


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure.

    Attributes:
        name: as people and other stages call it.
        sklearn: the scorer of scikit-learn that gives the same value, for some with the sign turned.
        tasks: those it can judge.
        meaning: what it says, in a few plain words.
    """

    name: str
    sklearn: str
    higher_better: bool
    tasks: tuple[Task, ...]
    meaning: str

    def beats(self, one: float, other: float) -> bool:
        """Returns whether one value is better than another."""
        return one > other if self.higher_better else one < other

    def gain(self, one: Any, other: Any) -> Any:
        """Returns by how much one value is better than another, negative when it is worse."""
        return one - other if self.higher_better else other - one


METRICS = {
    metric.name: metric
    for metric in (
        Metric("roc_auc", "roc_auc", True, ("binary",), "how well it ranks the two classes; 0.5 is guessing"),
        Metric("roc_auc_ovr", "roc_auc_ovr", True, ("multiclass",), "how well it ranks each class above the rest"),
        Metric("average_precision", "average_precision", True, ("binary",), "how pure its top of the list is"),
        Metric("log_loss", "neg_log_loss", False, CLASSES, "how far its probabilities are off; 0 is perfect"),
        Metric("brier", "neg_brier_score", False, ("binary",), "how far its probabilities are off; 0 is perfect"),
        Metric("accuracy", "accuracy", True, CLASSES, "the share of rows it gets right"),
        Metric("balanced_accuracy", "balanced_accuracy", True, CLASSES, "the share it gets right in each class"),
        Metric("f1", "f1", True, ("binary",), "the balance of finding and not crying wolf"),
        Metric("f1_macro", "f1_macro", True, CLASSES, "the same balance, each class counting alike"),
        Metric("r2", "r2", True, ("regression",), "the share of the differences it explains; 0 is guessing"),
        Metric(
            "rmse", "neg_root_mean_squared_error", False, ("regression",), "its usual error, large ones counting more"
        ),
        Metric("mae", "neg_mean_absolute_error", False, ("regression",), "its usual error, in the target's own unit"),
    )
}
ALIASES = {
    "auc": "roc_auc",
    "rocauc": "roc_auc",
    "auroc": "roc_auc",
    "roc": "roc_auc",
    "ap": "average_precision",
    "prauc": "average_precision",
    "logloss": "log_loss",
    "crossentropy": "log_loss",
    "brierscore": "brier",
    "acc": "accuracy",
    "f1score": "f1",
    "f1macro": "f1_macro",
    "macrof1": "f1_macro",
    "rsquared": "r2",
    "r2score": "r2",
    "rootmeansquarederror": "rmse",
    "meanabsoluteerror": "mae",
}
BY_TASK = {
    ("roc_auc", "multiclass"): "roc_auc_ovr",
    ("f1", "multiclass"): "f1_macro",
    ("roc_auc_ovr", "binary"): "roc_auc",
}


def names(task: Task) -> tuple[str, ...]:
    """Returns the measures that can judge a task, the usual one first."""
    return tuple(name for name, metric in METRICS.items() if task in metric.tasks)


def named(text: str, task: Task) -> Metric | None:
    """Returns the measure that a person meant ("AUC", "f1-score"), None when it is none for this task."""
    plain = "".join(letter for letter in text.lower() if letter.isalnum())
    known = {"".join(letter for letter in name if letter.isalnum()): name for name in METRICS}
    name = known.get(plain) or ALIASES.get(plain, "")
    metric = METRICS.get(BY_TASK.get((name, task), name))
    return metric if metric and task in metric.tasks else None


def value(name: str, y: Numbers, predicted: Numbers, classes: Sequence[str] = (), positive: str | None = None) -> float:
    """Returns how good predictions are.

    Args:
        y: what was true.
        predicted: numbers for a regression; else probabilities, a column for each of `classes`, rows summing to 1.
        classes: sorted, as `classes_` of a fitted model.
        positive: the class that a binary measure is about; the last one when None.

    Raises:
        ValueError: the predictions are not all finite numbers, or `y` lacks a class the measure needs.
    """
    from stages.measures import MEASURES  # scikit-learn: a second to load, and most that is here does without

    if not np.isfinite(predicted).all():
        raise ValueError("The predictions are not all numbers.")
    found = MEASURES[name](np.asarray(y), predicted, np.asarray(classes), positive)
    if not np.isfinite(found):
        raise ValueError(f"{name} has no value on these rows.")
    return float(found)


def asked(text: str, task: Task, field: str = "metric") -> Metric:
    """Returns the measure that was asked for. Raises Failed with BAD_EDIT naming the field when it cannot judge."""
    metric = named(text, task)
    if metric is None:
        raise Failed(
            "BAD_EDIT",
            f"{field}: {text[:80]!r} does not judge a {task} task.",
            value=field,
            suggestion=f"Choose one of {', '.join(names(task))}.",
        )
    return metric
