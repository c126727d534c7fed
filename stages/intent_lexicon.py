"""What is recognised in an objective besides columns: goals, tasks, measures, budgets, and what is not done here."""

import re
from typing import Literal

Goal = Literal["PREDICT", "EXPLAIN"]
Task = Literal["binary", "multiclass", "regression"]
METRICS = {  # by everyday names; the names that the measures have in later stages
    "balanced accuracy": "balanced_accuracy",
    "accuracy": "accuracy",
    "area under the curve": "roc_auc",
    "roc auc": "roc_auc",
    "auroc": "roc_auc",
    "auc": "roc_auc",
    "average precision": "average_precision",
    "pr auc": "average_precision",
    "macro f1": "f1_macro",
    "f1 macro": "f1_macro",
    "f1 score": "f1",
    "f1": "f1",
    "log loss": "log_loss",
    "logloss": "log_loss",
    "cross entropy": "log_loss",
    "brier": "brier",
    "root mean squared error": "rmse",
    "rmse": "rmse",
    "mean absolute error": "mae",
    "mae": "mae",
    "r squared": "r2",
    "r2": "r2",
}
BY_TASK: dict[str, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "log_loss", "brier", "accuracy", "balanced_accuracy", "f1", "f1_macro"),
    "multiclass": ("roc_auc_ovr", "log_loss", "accuracy", "balanced_accuracy", "f1_macro"),
    "regression": ("r2", "rmse", "mae"),
}
_EXPLAIN = re.compile(
    r"\b(factors?|drivers?|drives?|driving|affects?|affecting|influences?|influencing|explains?|explaining|why|"
    r"understand|impacts?|effects?|associated|association|correlat\w+|relationships?|related|causes?|"
    r"depends?|contributes?|matters?|important|importance|what predicts|which \w+ predict|predictors?|responsible|"
    r"do(?:es)? .{0,60} (?:raise|increase|decrease|reduce|lower|improve|worsen)|"
    r"makes? .{0,40}(more|less|higher|lower|expensive|cheap)\w*)\b"
)
_PREDICT = re.compile(r"\b(predict|predicting|classify|classifying|estimate|detect|forecast|guess|anticipate)\b")
_CLASSES = re.compile(
    r"\b(classif\w+|whether|yes or no|binary|multi-?class|true or false|who|"
    r"which (class|category|kind|type|species|sort))\b"
)
_AMOUNT = re.compile(r"\b(regress\w*|how (much|many|long|old|far|high|tall|heavy|fast|expensive))\b")
_UNITS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "m": 60, "h": 3600, "hr": 3600, "hour": 3600}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "ten": 10, "half an": 0.5}
_BUDGET = re.compile(
    r"\b(?:within|in under|in less than|in at most|at most|no more than|in no more than|under|less than|up to"
    r"|max(?:imum)?|budget(?: of| is|:)?|spend|take|takes|for|in)\s+(?:at most |only |no more than |up to )?"
    r"(\d+(?:\.\d+)?|half an|an?|one|two|three|four|five|six|ten)[ -]?"
    r"(seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h)\b(?!\s*(?:of|after|before|from|later))",
    re.I,
)
_LABELLED = re.compile(r"\b(\d+(?:\.\d+)?)[ -](second|minute|hour)s? (?:budget|limit|of training)\b", re.I)
_POSITIVE = re.compile(
    r"\bpositive (?:class|label|value)(?: is| =|:)?\s+[\"'`“]?([^\"'`”,.;]{1,60})"
    r"|\b(?:treat|count|take|use) [\"'`“]?([^\"'`”,.;]{1,60}?)[\"'`”]? as (?:the )?positive"
    r"|[\"'`“]([^\"'`”,.;]{1,60})[\"'`”] is (?:the )?positive",
    re.I,
)
_UNSUPPORTED = (
    ("clustering", re.compile(r"\b(cluster\w*|k-?means|segment(?:s|ing|ation)?|group similar|similar groups?)\b")),
    ("finding outliers", re.compile(r"\b(anomal\w+|outliers?)\b")),
    ("recommending", re.compile(r"\b(recommend\w*|collaborative filtering)\b")),
    (
        "working with pictures or sound",
        re.compile(
            r"\b(images?|photos?|photographs?|pictures?|videos?|audio|speech|object detection|face recognition|"
            r"x-?rays?)\b"
        ),
    ),
    (
        "writing or translating text",
        re.compile(
            r"\b(write (?:me )?an? (?:poem|story|essay|article|text|song|letter|email)|generate (?:\w+ )?"
            r"(?:text|stories|poems|captions|sentences)|translat\w+|summari[sz]\w+|chat ?bot|answer questions)\b"
        ),
    ),
    ("reducing dimensions", re.compile(r"\b(dimension\w* reduction|reduce (?:the )?dimensions?|pca|t-?sne|umap)\b")),
)
SERIES = "forecasting the future of a series"
_LATER = re.compile(
    r"\b(forecast\w*|next(?! to\b)|future|upcoming|coming|tomorrow|ahead|in advance|over time|by (?:date|time))\b"
)
_FORECAST = re.compile(r"\b(forecast\w*|time[- ]series)\b")
_HORIZON = re.compile(
    r"\b(next|future|ahead|upcoming|tomorrow|coming)\b(?: \w+)?(?: (?:days?|weeks?|months?|years?|quarters?))?"
)
_SUPERVISED = re.compile(r"\b(predict\w*|classif\w+|estimat\w+|which factors|what drives|explain)\b")


def goal_of(text: str) -> Goal:
    """Returns whether somebody wants predictions or an explanation, from the objective in lower case."""
    asks = _EXPLAIN.search(text)
    predicts = _PREDICT.search(text)
    return "EXPLAIN" if asks and (not predicts or asks.start() < predicts.start()) else "PREDICT"


def wants_classes(text: str) -> bool:
    """Tells whether the words speak of one of several kinds."""
    return bool(_CLASSES.search(text))


def wants_amount(text: str) -> bool:
    """Tells whether the words speak of how much or how many."""
    return bool(_AMOUNT.search(text))


def metric_of(text: str) -> str | None:
    """Returns the measure that the objective names, None for none. "precision" alone is no measure but a word."""
    plain = re.sub(r"[-_]", " ", text)
    return next((name for words, name in METRICS.items() if re.search(rf"\b{re.escape(words)}\b", plain)), None)


def later_of(text: str) -> bool:
    """Tells whether the words speak of what comes later, or of an order of time."""
    return bool(_LATER.search(text))


def budget_of(text: str) -> float | None:
    """Returns the seconds somebody allows, None when the objective does not say."""
    match = _LABELLED.search(text) or _BUDGET.search(text)
    if not match:
        return None
    number, unit = match.group(1).lower(), match.group(2).lower()
    value = _NUMBERS[number] if number in _NUMBERS else float(number)
    return value * _UNITS.get(unit, 0) or value * _UNITS[unit.removesuffix("s")]


def positive_of(text: str) -> str | None:
    """Returns what the objective calls the positive class, as written."""
    match = _POSITIVE.search(text)
    return next((group.strip() for group in match.groups() if group), None) if match else None


def unsupported(text: str, target_is_clear: bool) -> str | None:
    """Returns the name of a task that no stage does, when the objective asks for one.

    Args:
        text: in lower case.
        target_is_clear: a column is named to be predicted: then a word such as "segment" may be that column's name.
    """
    if _FORECAST.search(text) and (_HORIZON.search(text) or not target_is_clear or "time" in text):
        return SERIES
    if _HORIZON.search(text) and re.search(
        r"\b(next|coming|upcoming) (?:\d+ )?(days?|weeks?|months?|years?|quarters?)\b", text
    ):
        return SERIES
    if target_is_clear and _SUPERVISED.search(text):
        return None
    return next((name for name, pattern in _UNSUPPORTED if pattern.search(text)), None)
