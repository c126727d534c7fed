"""The values of the measures in stages.scoring; each is given what was true, the predictions, and the classes."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]
from sklearn import metrics

Numbers: TypeAlias = "np.ndarray[Any, Any]"
Measure: TypeAlias = Callable[[Numbers, Numbers, Numbers, str | None], float]

RARE = np.finfo("float64").eps  # no probability below it, so that the logarithm of one stays finite


def _of_positive(predicted: Numbers, classes: Numbers, positive: str | None) -> tuple[Numbers, Any]:
    label = classes[-1] if positive is None else positive
    return predicted[:, list(classes).index(label)], label


def _auc(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    chance, label = _of_positive(predicted, classes, positive)
    return _ranking(y == label, chance)


def _ranking(true: Numbers, chance: Numbers) -> float:
    """The area under the ROC curve by ranks (Mann and Whitney 1947): scikit-learn's value at a tenth of the time."""
    ones = int(true.sum())
    zeros = len(true) - ones
    if not ones or not zeros:
        raise ValueError("There is only one class in these rows.")
    above = rankdata(chance)[true].sum() - ones * (ones + 1) / 2
    return float(above / (ones * zeros))


def _auc_ovr(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    """The mean over the classes that are there: a rare one may be missing from a fold."""
    there = [at for at, label in enumerate(classes) if 0 < (y == label).sum() < len(y)]
    if not there:
        raise ValueError("There is only one class in these rows.")
    return float(np.mean([_ranking(y == classes[at], predicted[:, at]) for at in there]))


def _average_precision(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    chance, label = _of_positive(predicted, classes, positive)
    return float(metrics.average_precision_score(y == label, chance))


def _brier(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    chance, label = _of_positive(predicted, classes, positive)
    return float(np.mean((chance - (y == label)) ** 2))


def _log_loss(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    at = np.searchsorted(classes, y)
    return float(-np.mean(np.log(np.clip(predicted[np.arange(len(y)), at], RARE, 1.0))))


def _accuracy(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    return float(np.mean(y == classes[predicted.argmax(axis=1)]))


def _f1_of(true: Numbers, said: Numbers) -> float:
    found = int((true & said).sum())
    return 2 * found / max(1, int(true.sum()) + int(said.sum()))


def _f1(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    _, label = _of_positive(predicted, classes, positive)
    return _f1_of(y == label, classes[predicted.argmax(axis=1)] == label)


def _f1_macro(y: Numbers, predicted: Numbers, classes: Numbers, positive: str | None) -> float:
    """The mean over the classes that are there or were said."""
    guessed = classes[predicted.argmax(axis=1)]
    either = [label for label in classes if (y == label).any() or (guessed == label).any()]
    return float(np.mean([_f1_of(y == label, guessed == label) for label in either]))


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
    "accuracy": _accuracy,
    "balanced_accuracy": _recall,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "r2": _numeric(metrics.r2_score),
    "rmse": _numeric(metrics.root_mean_squared_error),
    "mae": _numeric(metrics.mean_absolute_error),
}
