"""How the rows are to be divided into those that train and those that test: by what, and which columns can do it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.choices import Choices, bad
from stages.columns import spaced
from stages.splitting import KINDS
from stages.targets import FOLDS, LEAST_FOLDS
from stages.wording import counted, quoted

TEST_SHARE = 0.25
LEAST_SHARE, MOST_SHARE = 0.05, 0.5
MOST_FOLDS = 10
MANY_ROWS = 20_000  # from which fewer folds say as much
FOLDS_OF_MANY = 3
LEAST_PARTS = LEAST_FOLDS + 1  # groups, or moments: one for each fold and one to test on
CLOCK = re.compile(r"(^| )(year|date|time|timestamp|period|week|day|month)( |$)")  # names of numbers that are times

Column = Mapping[str, Any]  # of the profile


@dataclass(frozen=True, slots=True)
class Cut:
    """How the rows are to be split. `why`: why not by chance, or why by chance all the same; "" when that is plain."""

    kind: str
    share: float
    folds: int
    column: str | None = None
    why: str = ""


class Cutting:
    """Settles the split, by the profile, by what the objective said and by what a person chose."""

    def __init__(self, choices: Choices, intent: Mapping[str, Any], profile: Mapping[str, Any]) -> None:
        """Reads what was chosen. Raises Failed with BAD_EDIT."""
        target = profile["target"]
        self._choices = choices
        self._classes = target["task"] != "regression"
        self._columns = {column["name"]: column for column in profile["columns"] if column["name"] != target["column"]}
        self._group, self._time = intent.get("group") or profile.get("group"), intent.get("time")
        self._later = bool(intent.get("later"))
        self._ordered = next((each["column"] for each in profile["issues"] if each["code"] == "TIME_ORDERED"), None)
        self._chosen = choices.text("split", KINDS)
        self._by = choices.text("split_column", list(self._columns))
        self.kind = self._chosen or self._usual()

    def _usual(self) -> str:
        if self._by:
            return "TIME" if self._columns[self._by]["role"] == "DATETIME" else "GROUP"
        by_time = self._time or (self._later and self._clock())
        return "TIME" if by_time else "GROUP" if self._group else "STRATIFIED" if self._classes else "RANDOM"

    def _clock(self) -> str | None:
        """Returns the column that says when, None when none does."""
        able = [name for name, column in self._columns.items() if not _not_by_time(column)]
        dated = [name for name in able if self._columns[name]["role"] == "DATETIME"]
        named = [name for name in able if CLOCK.search(spaced(name))]
        return self._ordered if self._ordered in able else next(iter([*dated, *named]), None)

    @property
    def groups(self) -> set[str]:
        """The columns that say which rows belong together: who learns them knows nothing about others."""
        chosen = self._by if self.kind == "GROUP" else None
        return {name for name in (chosen, self._group) if name}

    def kinds(self) -> tuple[str, ...]:
        """Returns the kinds of split that the table allows."""
        by_time, by_group = (
            [not why(each) for each in self._columns.values()] for why in (_not_by_time, _not_by_group)
        )
        allowed = {"STRATIFIED": self._classes, "RANDOM": True, "GROUP": any(by_group), "TIME": any(by_time)}
        return tuple(kind for kind in KINDS if allowed[kind])

    def able(self) -> list[str]:
        """Returns the columns that rows can be split by."""
        return [name for name, each in self._columns.items() if not _not_by_time(each) or not _not_by_group(each)]

    def cut(self, target: "pd.Series[Any]") -> Cut:
        """Returns how to split the rows that have a target. Raises Failed with BAD_EDIT."""
        kind, column = self.kind, self._column()
        if kind == "STRATIFIED" and not self._classes:
            raise bad("split", kind, "Only classes can be spread evenly; choose RANDOM for numbers.")
        share = self._choices.number("test_share", LEAST_SHARE, MOST_SHARE) or TEST_SHARE
        folds = self._choices.number("folds", 2, MOST_FOLDS)
        return Cut(kind, share, int(folds) if folds else self._folds(target, share), column, self._why())

    def _column(self) -> str | None:
        if self.kind not in ("GROUP", "TIME"):
            return None
        by_time = self.kind == "TIME"
        found = self._by or ((self._time or self._clock()) if by_time else self._group)
        if found not in self._columns:
            advice = "Choose the column to split by as well (split_column)."
            raise bad("split", self.kind, advice if self.kind in self.kinds() else "No column can divide the rows so.")
        name = str(found)
        why = (_not_by_time if by_time else _not_by_group)(self._columns[name])
        if why:
            field, value = ("split_column", name) if self._by else ("split", self.kind)
            raise bad(field, value, f"{quoted(name)} {why}.")
        return name

    def _folds(self, target: "pd.Series[Any]", share: float) -> int:
        if len(target) >= MANY_ROWS:
            return FOLDS_OF_MANY
        smallest = target.value_counts().min() if self._classes else len(target)
        return int(min(FOLDS, max(LEAST_FOLDS, smallest * (1 - share) // 2)))

    def _why(self) -> str:
        if not self._later or self._chosen or self._by or self._time:
            return ""
        if self.kind == "TIME":
            return "The objective speaks of what comes later, so the latest rows test."
        return "The objective speaks of what comes later, and no column says when a row was: rows to come may do worse."


def _not_by_time(column: Column) -> str:
    """Returns why rows cannot be put in order of time by a column, "" when they can."""
    if column["role"] != "DATETIME" and (column["kind"] not in ("int", "float") or column["role"] == "CONSTANT"):
        return "holds no dates and no numbers, by which rows could be put in order"
    return _too_few(column["unique"], "moment")


def _not_by_group(column: Column) -> str:
    """Returns why rows cannot be kept together by a column, "" when they can."""
    if column["kind"] == "float":
        return "holds measurements, which do not say what belongs together"
    return _too_few(column["unique"] + bool(column["missing"]), "group")


def _too_few(parts: int, what: str) -> str:
    if parts >= LEAST_PARTS:
        return ""
    return f"has only {counted(parts, what)}; {LEAST_PARTS} are the least, for {LEAST_FOLDS} folds and the test"
