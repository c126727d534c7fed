"""The values of the measures in stages.scoring; each is given what was true, the predictions, and the classes."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from sklearn import metrics

Numbers: TypeAlias = "np.ndarray[Any, Any]"
Measure: TypeAlias = Callable[[Numbers, Numbers, Numbers, str | None], float]

RARE = 1e-15  # no probability below it, so that the logarithm of one stays finite


def _of_positive(predicted: Numbers, classes: Numbers, positive: str | None) -> tuple[Numbers, Any]:
    label = classes[-1] if positive is None else positive
    return predicted[:, list(classes).index(label)], label


def _auc(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    chance, label = _of_positive(predicted, classes, positive)
    return float(metrics.roc_auc_score(y == label, chance))


def _auc_ovr(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    """The mean over the classes that are there: a rare one may be missing from a fold."""
    there = [at for at, label in enumerate(classes) if 0 < (y == label).sum() < len(y)]
    if not there:
        raise ValueError("There is only one class in these rows.")
    return float(np.mean([metrics.roc_auc_score(y == classes[at], predicted[:, at]) for at in there]))


def _average_precision(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    chance, label = _of_positive(predicted, classes, positive)
    return float(metrics.average_precision_score(y == label, chance))


def _brier(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    chance, label = _of_positive(predicted, classes, positive)
    return float(np.mean((chance - (y == label)) ** 2))


def _log_loss(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    at = np.searchsorted(classes, y)
    return float(-np.mean(np.log(np.clip(predicted[np.arange(len(y)), at], RARE, 1.0))))


def _labelled(measure: Callable[..., Any], **how: Any) -> Measure:
    """Makes a measure of labels into one of probabilities: the likeliest class is what is predicted."""

    def measured(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
        return float(measure(y, classes[predicted.argmax(axis=1)], **how))

    return measured


def _f1(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    _, label = _of_positive(predicted, classes, positive)
    return float(metrics.f1_score(y == label, classes[predicted.argmax(axis=1)] == label, zero_division=0))


def _recall(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    """Balanced accuracy: the mean recall of the classes that are there."""
    guessed = classes[predicted.argmax(axis=1)]
    return float(np.mean([(guessed[y == label] == label).mean() for label in np.unique(y)]))


def _numeric(measure: Callable[[Numbers, Numbers], Any]) -> Measure:
    def measured(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
        return float(measure(y, predicted))

    return measured


MEASURES: Mapping[str, Measure] = {
    "roc_auc": _auc,
    "roc_auc_ovr": _auc_ovr,
    "average_precision": _average_precision,
    "log_loss": _log_loss,
    "brier": _brier,
    "accuracy": _labelled(metrics.accuracy_score),
    "balanced_accuracy": _recall,
    "f1": _f1,
    "f1_macro": _labelled(metrics.f1_score, average="macro", zero_division=0),
    "r2": _numeric(metrics.r2_score),
    "rmse": _numeric(metrics.root_mean_squared_error),
    "mae": _numeric(metrics.mean_absolute_error),
}
