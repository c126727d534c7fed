"""The column to predict: whether it can be, as what, and what is odd about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import pandas as pd

from stages.columns import Look
from stages.contract import Failed, Issue
from stages.preparing import numbers, words
from stages.wording import counted, quoted, several, share

Task: TypeAlias = Literal["binary", "multiclass", "regression"]
TASKS = get_args(Task)

LEAST_ROWS = 20  # with a target
FEW_ROWS = 200  # below: a score is a rough guess
FOLDS, LEAST_FOLDS = 5, 3
RARE = 2 * FOLDS  # rows of a class, below which it can hardly be learned
LEAST_OF_CLASS = 2 * LEAST_FOLDS  # below: too few to be in every part; its rows are left out
MANY_CLASSES = 100
MOST_SPELLED = 1_000  # different values of a target, up to which their spellings are compared
WHOLE_LEVELS = 20  # whole numbers with up to so many levels may be classes or amounts: a person has to say
UNBALANCED = 0.8  # share of the largest class
MOSTLY = 0.5  # share of one amount, from which the others decide about the score
KEPT_CLASSES = 50  # named in the result
YES = ("1", "yes", "true", "y", "t", "positive", "pos", "present", "case", "event", "bad", "churned", "died", "default")


@dataclass(frozen=True, slots=True)
class Target:
    """The target, settled.

    Attributes:
        values: numbers for a regression, else texts; NaN where there is none.
        classes: count of rows by class, sorted by name; empty for a regression.
        parse: how `preparing.target_of` has to read it.
    """

    column: str
    task: Task
    task_why: str
    values: "pd.Series[Any]"
    classes: Mapping[str, int] = field(default_factory=dict)
    positive_class: str | None = None
    parse: Mapping[str, Any] = field(default_factory=dict)
    issues: tuple[Issue, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns it for `result`."""
        names = {"column": self.column, "task": self.task, "task_why": self.task_why, "parse": dict(self.parse)}
        missing = int(self.values.isna().sum())
        found: dict[str, Any] = {**names, "missing": missing, "rows": len(self.values) - missing}
        if self.task == "regression":
            figures = self.values.describe().drop("count")
            return {**found, "classes": None, "dist": {str(k): float(f"{v:.6g}") for k, v in figures.items()}}
        classes = [{"name": name, "rows": rows} for name, rows in list(self.classes.items())[:KEPT_CLASSES]]
        return {**found, "positive_class": self.positive_class, "classes": classes, "dist": None}


@dataclass(frozen=True, slots=True)
class Unsure:
    """The task is not clear: a person has to choose one of `options`."""

    issue: Issue
    options: tuple[Task, ...]


def settle(
    found: Look,
    given: "pd.Series[Any]",
    wanted: str | None,
    said: str | None,
    positive: str | None,
    why_wanted: str = "",
    *,
    apart: bool = False,
) -> Target | Unsure:
    """Settles the target.

    Args:
        wanted, why_wanted: the task that PARSE_INTENT found, a suggestion, and why.
        said: the task that a person chose at the gate; it holds.
        positive: the class to find, of two.
        apart: whether classes that differ in nothing but capitals are classes of their own.

    Raises:
        Failed: nothing can be learned from this column; code as in docs/stages.md.
    """
    _refuse_empty(found)
    alike = {} if apart else _alike(found, given)
    if alike:
        found = replace(found, unique=found.unique - len(alike), parse={**found.parse, "alike": alike})
    options = _possible(found)
    if said and said not in options:
        text = f"{quoted(found.name)} cannot be predicted as {said}: {_shape(found)}. It can be: {', '.join(options)}."
        raise Failed("BAD_EDIT", text, column=found.name, value=said, suggestion="Choose again.")
    task, why = _task(found, options, said, wanted, why_wanted or "the objective says so")
    if task is None:
        advice = "Choose multiclass when the numbers are names of classes, regression when they are amounts."
        issue = Issue("TASK_AMBIGUOUS", "WARN", why, column=found.name, suggestion=advice)
        return Unsure(issue, options)
    if task == "regression":
        return _regression(found, given, why)
    return _classes(found, given, task, why, positive)


def _alike(found: Look, given: "pd.Series[Any]") -> dict[str, str]:
    """Returns the spellings of classes that differ from another in nothing but capitals, with the most frequent one."""
    if found.kind != "text" or _numeric(found) or found.unique > MOST_SPELLED:
        return {}
    counts = words(given, {}).value_counts()
    ordered = sorted((str(name) for name in counts.index), key=lambda name: (-int(counts[name]), name))
    first: dict[str, str] = {}
    for name in ordered:
        first.setdefault(name.casefold(), name)
    return {name: first[name.casefold()] for name in ordered if first[name.casefold()] != name}


def _spelled(found: Look) -> list[Issue]:
    alike = found.parse.get("alike", {})
    if not alike:
        return []
    text = f"Classes of {quoted(found.name)} that differ in nothing but capitals count as one: "
    text += f"{several([f'{other} as {name}' for other, name in alike.items()])}."
    advice = "Choose spellings=APART if they mean different things."
    return [Issue("SPELLINGS", "WARN", text, column=found.name, count=len(alike), suggestion=advice)]


def _shape(found: Look) -> str:
    kind = "numbers" if _numeric(found) else "texts"
    return f"it holds {counted(found.unique, 'different value')}, {kind}"


def _numeric(found: Look) -> bool:
    return found.kind in ("int", "float") or (found.kind == "text" and found.role == "NUMERIC")


def _possible(found: Look) -> tuple[Task, ...]:
    classes: Task = "binary" if found.unique == 2 else "multiclass"
    return (classes, "regression") if _numeric(found) else (classes,)


def _task(
    found: Look, options: tuple[Task, ...], said: str | None, wanted: str | None, why_wanted: str
) -> tuple[Task | None, str]:
    name = quoted(found.name)
    if wanted == "multiclass" and "regression" in options and _too_many(found.unique, found.filled):
        wanted = None  # it was taken for words: numbers with signs in them look like such
    for choice, why in ((said, "you chose so"), (wanted, why_wanted)):
        for option in options:
            if choice == option:
                return option, why
    if wanted == "multiclass" and options[0] == "binary":
        return "binary", f"{name} holds two values"
    if len(options) == 1 or found.unique == 2:
        return options[0], f"{name} holds {counted(found.unique, 'different value')}"
    whole = found.kind == "int" or all(float(value) == int(float(value)) for value, _ in found.top if _is_number(value))
    if whole and found.unique <= WHOLE_LEVELS:
        return None, f"{name} holds {found.unique} different whole numbers: they may be classes or amounts."
    return "regression", f"{name} holds numbers, {found.unique:,} different ones"


def _too_many(classes: int, rows: int) -> bool:
    return classes == rows or classes > max(MANY_CLASSES, rows / 2)


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < 1e15
    except ValueError:
        return False


def _refuse_empty(found: Look) -> None:
    name = quoted(found.name)
    if not found.filled:
        text = f"Every value of the target {name} is missing: there is nothing to learn from."
        raise Failed("TARGET_ALL_MISSING", text, column=found.name, suggestion="Choose another column as the target.")
    if found.unique == 1:
        only = found.top[0][0] if found.top else ""
        text = f"The target {name} has the same value in every row, {quoted(only)}: there is nothing to tell apart."
        advice = "Choose another target, or data that holds other cases too."
        raise Failed("SINGLE_CLASS_TARGET", text, column=found.name, value=only, suggestion=advice)
    if found.filled < LEAST_ROWS:
        text = f"Only {counted(found.filled, 'row')} have a value of {name}; at least {LEAST_ROWS} are needed."
        raise Failed("TOO_FEW_ROWS", text, column=found.name, count=found.filled, suggestion="Bring more rows.")


def _unique_per_row(found: Look, words_: str) -> Failed:
    text = f"The target {quoted(found.name)} has {words_}: it names the rows and cannot be learned from others."
    advice = "Choose another column as the target."
    return Failed("TARGET_UNIQUE_PER_ROW", text, column=found.name, count=found.unique, suggestion=advice)


def _missing(found: Look, values: "pd.Series[Any]") -> list[Issue]:
    count = int(values.isna().sum())
    issues = []
    if len(values) - count < LEAST_ROWS:
        text = f"Only {counted(len(values) - count, 'row')} have a usable value of {quoted(found.name)}."
        advice = "Bring more rows, or choose another target."
        raise Failed("TOO_FEW_ROWS", text, column=found.name, count=len(values) - count, suggestion=advice)
    if count:
        text = f"No value of the target {quoted(found.name)} in {counted(count, 'row')} ({share(count, len(values))}): "
        text += "left out."
        advice = "Check in the file why they are empty: rows left out by a rule make a model one-sided."
        issues.append(Issue("TARGET_MISSING_ROWS", "WARN", text, column=found.name, count=count, suggestion=advice))
    if len(values) - count < FEW_ROWS:
        text = f"Only {counted(len(values) - count, 'row')} can be used: every score will be a rough guess."
        issues.append(
            Issue("FEW_ROWS", "WARN", text, count=len(values) - count, suggestion="Bring more rows if you can.")
        )
    return issues


def _regression(found: Look, given: "pd.Series[Any]", why: str) -> Target:
    values = numbers(given, found.parse)
    known = values.dropna()
    if len(known) == known.nunique() and (known.diff().iloc[1:] == 1).all():
        raise _unique_per_row(found, "the numbers of the rows, one after another")
    issues = (*_missing(found, values), *_mostly(found, known))
    return Target(found.name, "regression", why, values, parse=found.parse, issues=issues)


def _mostly(found: Look, known: "pd.Series[Any]") -> list[Issue]:
    """Returns the warning about amounts that are nearly all the same, for example 0."""
    counts = known.value_counts()
    rows, value = int(counts.iloc[0]), float(counts.index[0])
    if rows <= MOSTLY * len(known):
        return []
    text = f"{share(rows, len(known))} of the rows have the same value of {quoted(found.name)}, {value:g}: "
    text += "the others decide about the score, and a model that nearly always says so is seldom wrong."
    advice = f"Consider to ask first whether it is {value:g} at all, as classes, and how much only where it is not."
    return [Issue("IMBALANCE", "WARN", text, column=found.name, value=f"{value:g}", count=rows, suggestion=advice)]


def _classes(found: Look, given: "pd.Series[Any]", task: Task, why: str, positive: str | None) -> Target:
    parse = (
        {**found.parse, "number": True}
        if _numeric(found)
        else {k: v for k, v in found.parse.items() if k in ("truth", "alike")}
    )
    values = words(given, parse)
    counts = values.value_counts()
    if _too_many(len(counts), int(counts.sum())):
        raise _unique_per_row(found, f"{counted(len(counts), 'different value')} in {counted(found.filled, 'row')}")
    classes = {str(name): int(counts[name]) for name in sorted(counts.index)}
    sizes = sorted(classes.values())
    if sizes[-2] < LEAST_OF_CLASS:
        small = min(classes, key=lambda name: (classes[name], name))
        text = f"The class {quoted(small)} of {quoted(found.name)} has only {counted(classes[small], 'row')}; "
        text += f"at least two classes need {LEAST_OF_CLASS} rows each."
        advice = "Bring more rows of that class, or choose another target."
        raise Failed("TOO_FEW_ROWS", text, column=found.name, value=small, count=classes[small], suggestion=advice)
    issues = (*_spelled(found), *_missing(found, values), *_uneven(found, classes))
    chosen = _positive(classes, positive) if task == "binary" else None
    return Target(found.name, task, why, values, classes, chosen, parse, issues)


def _uneven(found: Look, classes: Mapping[str, int]) -> list[Issue]:
    issues = []
    rare = [name for name, rows in classes.items() if rows < RARE]
    if rare:
        left_out = [name for name in rare if classes[name] < LEAST_OF_CLASS]
        text = f"Hardly any rows of {several(rare)} in {quoted(found.name)}: they can hardly be learned."
        text += f" Rows of {several(left_out)} are left out." if left_out else ""
        first, advice = rare[0], "Bring more rows of them if you can."
        issues.append(
            Issue("RARE_CLASS", "WARN", text, found.name, value=first[:80], count=classes[first], suggestion=advice)
        )
    largest = max(classes, key=lambda name: classes[name])
    total = sum(classes.values())
    if classes[largest] > UNBALANCED * total:
        text = f"{share(classes[largest], total)} of the rows are {quoted(largest)}: "
        text += "a model that always says so is right as often."
        advice = "Judge it by a measure that is fair to the rare class, as the area under the ROC curve."
        issues.append(Issue("IMBALANCE", "WARN", text, column=found.name, count=classes[largest], suggestion=advice))
    return issues


def _positive(classes: Mapping[str, int], wanted: str | None) -> str:
    known = {name.casefold(): name for name in classes}
    if wanted is not None and str(wanted).casefold() in known:
        return known[str(wanted).casefold()]
    for word in YES:
        if word in known:
            return known[word]
    return min(classes, key=lambda name: (classes[name], name))
