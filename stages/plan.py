"""What is to be done with each column, and why: a proposal that a person may change."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from stages.choices import bad
from stages.preparing import MANY_LEVELS, TEXT_DIMENSIONS
from stages.wording import counted, quoted

Action: TypeAlias = Literal["KEEP", "DROP", "PARSE_DATE", "PARSE_NUMBER", "ENCODE_TEXT", "CATEGORY"]
ACTIONS = get_args(Action)
DATE_PARTS = 7  # columns a date becomes, about
ONE_WORD = 1.5  # words of a value, on average, below which many levels are codes, with nothing to read in them


@dataclass(frozen=True, slots=True)
class Step:
    """What is done with one column.

    Attributes:
        reason: one sentence for somebody who does not program.
        issue: code of what speaks against the column, also when a person keeps it; "" for nothing.
        options: what may be done instead.
    """

    column: str
    role: str
    action: Action
    reason: str
    issue: str = ""
    parse: Mapping[str, Any] = field(default_factory=dict)
    original: str = ""
    levels: int = 0
    options: tuple[Action, ...] = ("DROP",)

    def to_json(self) -> dict[str, Any]:
        """Returns it for `result`."""
        step: dict[str, Any] = {"column": self.column, "role": self.role, "action": self.action, "reason": self.reason}
        many = self.action == "CATEGORY" and self.levels > MANY_LEVELS
        optional = {"issue": self.issue, "parse": dict(self.parse), "many": many}
        optional["original"] = "" if self.original == self.column else self.original
        return step | {key: value for key, value in optional.items() if value}

    @property
    def width(self) -> int:
        """Returns about how many columns of numbers it becomes."""
        if self.action == "DROP":
            return 0
        if self.action == "PARSE_DATE":
            return DATE_PARTS
        if self.action == "ENCODE_TEXT":
            return TEXT_DIMENSIONS
        return min(max(1, self.levels), MANY_LEVELS) if self.action == "CATEGORY" else 1


class Proposal:
    """Decides about columns, by the profile and by what the objective said."""

    def __init__(self, profile: Mapping[str, Any], dropped: Collection[str], kept_only: Collection[str]) -> None:
        self._dropped, self._kept_only = dropped, kept_only
        self._leaks = {
            issue["column"]: issue["message"]
            for issue in profile["issues"]
            if issue["code"] == "LEAKAGE_SUSPECT" and issue["severity"] == "WARN"
        }

    def step(self, column: Mapping[str, Any], original: str, groups: Collection[str]) -> Step:
        """Returns what is proposed for a column of the profile. `groups`: columns that say what belongs together."""
        name = column["name"]
        usual = _usual(column)
        usual = replace(usual, original=original, levels=column["unique"])
        if column["role"] == "CONSTANT":
            code = "CONSTANT_COLUMN" if column["unique"] else "ALL_MISSING_COLUMN"
            words = "It has the same value in every row." if column["unique"] else "It holds no value at all."
            return replace(usual, action="DROP", reason=words, issue=code, options=("DROP",))
        if name in self._dropped:
            return replace(usual, action="DROP", reason="You asked to leave it out.")
        if self._kept_only and name not in self._kept_only:
            return replace(usual, action="DROP", reason="It is not among the columns you asked to use.")
        if name in self._leaks:
            return replace(usual, action="DROP", reason=self._leaks[name], issue="LEAKAGE_SUSPECT")
        if column["role"] == "ID":
            words = f"It identifies rows: {column.get('why', 'you said so')}."
            return replace(usual, action="DROP", reason=words, issue="ID_COLUMN")
        if name in groups:
            words = "It says which rows belong together; a model that learns it knows nothing about new ones."
            return replace(usual, action="DROP", reason=words, issue="GROUPED_ROWS")
        return usual


def _usual(column: Mapping[str, Any]) -> Step:
    """Returns what is done with a column that nothing speaks against."""
    name, role, parse = column["name"], column["role"], column["parse"]
    ways = tuple(_ways(column))
    first: Action = ways[0]
    many = column["unique"] > MANY_LEVELS
    reasons = {
        "KEEP": "Numbers are taken as they are.",
        "PARSE_NUMBER": "The texts are read as numbers.",
        "PARSE_DATE": "Dates are taken apart into year, month, day and day of the week.",
        "ENCODE_TEXT": f"The texts are told apart by the pieces of words in them, as {TEXT_DIMENSIONS} numbers.",
        "CATEGORY": f"{counted(column['unique'], 'different value')}, each by itself{', rare ones together' * many}.",
        "DROP": "",
    }
    shown_role = role
    if role in ("ID", "CONSTANT"):  # what it would be if a person keeps it
        shown_role = {"KEEP": "NUMERIC", "PARSE_DATE": "DATETIME", "ENCODE_TEXT": "TEXT"}.get(first, "CATEGORY")
        shown_role = role if first == "DROP" else shown_role
    return Step(name, shown_role, first, reasons[first], parse=parse, options=(*ways, "DROP"))


def _ways(column: Mapping[str, Any]) -> Iterator[Action]:
    """Yields what may be done with a column, the usual way first."""
    role, kind, parse = column["role"], column["kind"], column["parse"]
    many = column["unique"] > MANY_LEVELS
    if role == "DATETIME":
        yield "PARSE_DATE"
    elif role in ("NUMERIC", "BOOL", "ID", "CONSTANT") and kind in ("int", "float", "bool"):
        yield "KEEP"
    elif role == "NUMERIC" or "decimal" in parse:
        yield "PARSE_NUMBER"
    elif role == "TEXT" or many:
        coded = role != "TEXT" and column.get("stats", {}).get("words", 1.0) < ONE_WORD
        yield from ("CATEGORY", "ENCODE_TEXT") if coded else ("ENCODE_TEXT", "CATEGORY")
        return
    if role not in ("DATETIME",):
        yield "CATEGORY"
        if kind == "text":
            yield "ENCODE_TEXT"


def changed(step: Step, action: str) -> Step:
    """Returns the step with the action a person chose. Raises Failed with BAD_EDIT when it was not on offer."""
    if action not in step.options:
        raise bad(f"actions.{step.column}", action, f"It may be {', '.join(step.options)}.")
    if action == step.action:
        return step
    reason = f"You chose {action} for {quoted(step.column)}."
    role, parse = step.role, dict(step.parse)
    if action in ("CATEGORY", "ENCODE_TEXT"):
        role = "TEXT" if action == "ENCODE_TEXT" else "CATEGORY"
        numeric = step.role in ("NUMERIC", "BOOL") and "decimal" not in parse and "truth" not in parse
        parse = {"number": True} if numeric else {k: v for k, v in parse.items() if k in ("truth", "number")}
    chosen = next(option for option in step.options if option == action)
    return replace(step, action=chosen, role=role, parse=parse, reason=reason)
