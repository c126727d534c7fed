"""Counts, shares and names as sentences hold them, and what measures are called."""

from collections.abc import Sequence
from typing import Any

from stages.shown import plain

LISTED = 5  # names that a sentence lists
NAMES = {
    "roc_auc": "ROC AUC",
    "roc_auc_ovr": "ROC AUC (mean over the classes)",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "f1_macro": "F1 (mean over the classes)",
    "log_loss": "log loss",
    "brier": "Brier score",
    "r2": "R²",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
}


def quoted(value: Any) -> str:
    """Returns a value or name in quotation marks, short and without control characters."""
    return f'"{plain(str(value))}"'


def counted(number: int, one: str, many: str = "") -> str:
    """Returns "1 row" or "1,234 rows"."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def several(names: Sequence[Any], most: int = LISTED) -> str:
    """Returns names in quotation marks as a sentence lists them; many end with "and 12 more"."""
    marked = [quoted(name) for name in names[:most]]
    if len(names) > most:
        marked.append(f"{len(names) - most:,} more")
    return " and ".join(filter(None, (", ".join(marked[:-1]), *marked[-1:])))


def share(part: int, whole: int) -> str:
    """Returns a share in percent: "12 %", "under 1 %", "over 99 %"."""
    percent = 100 * part / whole if whole else 0.0
    if 99 < percent < 100:
        return "over 99 %"
    return "under 1 %" if 0 < percent < 1 else f"{percent:.0f} %"
