"""What a person said outright about their intent, checked; and what they are told and asked about it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stages.contract import Action
from stages.intent import Intent, target_action
from stages.intent_lexicon import BY_TASK, metric_of
from stages.intent_target import Known
from stages.options import bad
from stages.shown import listed, nearest, plain

GOALS = ("PREDICT", "EXPLAIN")
TASKS = ("binary", "multiclass", "regression")
MAX_BUDGET_S = 86_400.0
MAX_NAME = 200  # characters of a column's name or a class
MOST_OFFERED = 300  # columns
_WORDS = {"PREDICT": "predict", "EXPLAIN": "explain"}


def checked(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns what was said, by field. Raises Failed with BAD_EDIT that names a field that makes no sense."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _CHECKS:
            if where == "edits":
                raise bad(str(name), f"There is nothing called {plain(str(name))} to change here.")
            continue  # a hint may be meant for a later stage
        if value is not None and value != "" and value != []:
            found[name] = _CHECKS[name](name, value)
    return found


def _one_of(options: Sequence[str]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        word = next((option for option in options if isinstance(value, str) and option.lower() == value.lower()), None)
        if word is None:
            raise bad(name, f"{name} must be one of {', '.join(options)}.")
        return word

    return check


def _name(name: str, value: Any) -> str:
    if isinstance(value, bool | int | float):
        value = str(value)
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise bad(name, f"{name} must be a text of at most {MAX_NAME} characters.")
    return value


def _names(name: str, value: Any) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise bad(name, f"{name} must be a list of columns.")
    return [_name(name, part).strip() for part in parts]


def _metric(name: str, value: Any) -> str:
    known = {metric for metrics in BY_TASK.values() for metric in metrics}
    word = value.lower() if isinstance(value, str) else ""
    metric = word if word in known else metric_of(word)
    if metric is None:
        raise bad(name, f"metric must be one of {', '.join(sorted(known))}.")
    return metric


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value) if not isinstance(value, bool) else 0.0
    except (TypeError, ValueError):
        seconds = 0.0
    if not 1 <= seconds <= MAX_BUDGET_S:
        raise bad(name, f"{name} must be a number of seconds from 1 to {MAX_BUDGET_S:,.0f}.")
    return seconds


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "target": _name,
    "goal": _one_of(GOALS),
    "task": _one_of(TASKS),
    "metric": _metric,
    "budget_s": _seconds,
    "positive_class": _name,
    "group": _name,
    "time": _name,
    "drop": _names,
    "keep_only": _names,
}


def check_columns(given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises Failed with BAD_EDIT when something said names a column that the table, as far as seen, does not have."""
    if not names:
        return
    for field in ("group", "time", "drop", "keep_only"):
        value = given.get(field) or []
        for name in [value] if isinstance(value, str) else value:
            if name not in names:
                near = listed(nearest(name, names)) or listed(names)
                raise bad(field, f"{field} names {plain(name)}, which is no column of the table. There are {near}.")
    if given.get("target") and given["target"] in (given.get("drop") or []):
        raise bad("drop", f"{plain(given['target'])} cannot be left out: it is the column to be predicted.")


def summary(intent: Intent, data: str, columns: Sequence[Known]) -> str:
    """Returns what was understood in a few sentences."""
    table = f" from {plain(data)}" if data else ""
    if intent.target is None:
        asked = intent.issues[0].message if intent.asks else "Which column is meant is settled when the table is there."
        return f"To {_WORDS[intent.goal]} a column{table}. {asked}"
    text = f"To {_WORDS[intent.goal]} {plain(intent.target)}{table}"
    text += f", as {intent.task}: {intent.task_why}." if intent.task else "."
    if intent.positive_class:
        text += f" The class that counts is {plain(intent.positive_class, 40)}."
    if "task" in intent.asks:
        text += f" {intent.task_why}: choose which."
    extras = [
        ("Measured by", intent.metric or ""),
        ("Left out:", listed(intent.drop)),
        ("Only:", listed(intent.keep_only)),
    ]
    if intent.budget_s:
        extras.append(("Time to learn:", f"{intent.budget_s:g} s"))
    return text + "".join(f" {words} {value}." for words, value in extras if value)


def actions(intent: Intent, columns: Sequence[Known]) -> list[Action]:
    """Returns what a person may do at the gate."""
    names = [column.name for column in columns]
    first = [each.column for each in intent.candidates]
    offered = [Action("confirm", "This is what I want", "CONFIRM")]
    if names:
        offered.append(target_action(names, first, intent.target, required="target" in intent.asks))
    offered.append(Action("goal", "Predict new rows, or explain?", "CHOOSE", "goal", GOALS, intent.goal))
    ask_task = "task" in intent.asks
    kinds = _kinds(intent, columns)
    offered.append(Action("task", "What kind of answer?", "CHOOSE", "task", kinds, intent.task, required=ask_task))
    metrics = BY_TASK[intent.task] if intent.task else tuple(dict.fromkeys(sum(BY_TASK.values(), ())))
    offered.append(Action("metric", "Measured by", "CHOOSE", "metric", metrics, intent.metric))
    budget = Action("budget", "Seconds to learn", "EDIT", "budget_s", (), intent.budget_s, 1, MAX_BUDGET_S)
    offered += [budget, *_about_columns(intent, columns)]
    return [*offered, Action("abort", "End the run", "ABORT")]


def _kinds(intent: Intent, columns: Sequence[Known]) -> tuple[str, ...]:
    """Returns the kinds of answer that the target can have, as far as the beginning of the table shows."""
    target = next((column for column in columns if column.name == intent.target), None)
    if target is None or target.levels <= 2:  # more values may follow
        return TASKS
    return tuple(task for task in TASKS if task != "binary" or task == intent.task)


def _about_columns(intent: Intent, columns: Sequence[Known]) -> list[Action]:
    target = next((column for column in columns if column.name == intent.target), None)
    others = tuple(column.name for column in columns if column.name != intent.target)[:MOST_OFFERED]
    offered = []
    if target and intent.task == "binary" and target.labels:
        label, default = "The class that counts", intent.positive_class
        offered.append(Action("positive-class", label, "CHOOSE", "positive_class", target.labels, default))
    if others:
        offered += [
            Action("drop", "Columns to leave out", "CHOOSE", "drop", others, intent.drop or None, many=True),
            Action(
                "keep-only",
                "The only columns to use",
                "CHOOSE",
                "keep_only",
                others,
                intent.keep_only or None,
                many=True,
            ),
            Action("group", "Column whose rows belong together", "CHOOSE", "group", others, intent.group),
            Action("time", "Column that holds the time", "CHOOSE", "time", others, intent.time),
        ]
    return offered
