"""What a column of a table holds: its role, its figures, and what is odd about it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from stages.contract import Issue
from stages.preparing import MANY_LEVELS
from stages.shown import plain
from stages.texts import Numbers, as_dates, as_numbers, code_of, signs_of
from stages.wording import counted, quoted, several, share

Role: TypeAlias = Literal["NUMERIC", "CATEGORY", "TEXT", "DATETIME", "ID", "CONSTANT", "TARGET", "BOOL"]
ROLES = get_args(Role)
TOP = 5  # most frequent values kept
LISTED = 1_000  # values equally frequent, above which none of them says anything
WORDY = 2.5  # words of a value, on average, from which a text is prose and no code
UNLIKE = 0.5  # share of different values from which a text is prose or an identifier and no category
ALMOST_ALL = 0.95  # of the values are different: an identifier may be
_ID_WORDS = "id|ids|uuid|guid|key|index|idx|rownames?|row|nr|no|number|record|serial|pid|order|code"
IDENTIFIER = re.compile(rf"(^|[^a-z])({_ID_WORDS})[^a-z]*$|^(id|uuid|guid|unnamed)([^a-z]|$)")
CALENDAR = re.compile(r"(^| )(year|month|week|day|date|time)( |$)")  # names of numbers that go up and are no labels
SEQUENCE_GAP = 1.5  # range of whole numbers over their count, up to which they are numbered one after another
MANY_ROWS = 200  # from which whole numbers that are all different may be labels; below, amounts often are too

LEFT_OUT = "It tells nothing and is left out."

Series: TypeAlias = "pd.Series[Any]"


@dataclass(frozen=True, slots=True)
class Look:
    """What was found of one column.

    Attributes:
        kind: as DATA_SOURCE typed it: int, float, text, bool or date.
        stats: min, max, mean, sd, median, ... of numbers; length of texts; first and last date.
        top: most frequent values with their counts.
        parse: how `preparing` has to read it.
        why: why it has the role, for a person; "" when that is plain to see.
    """

    name: str
    kind: str
    role: Role
    rows: int
    missing: int
    unique: int
    stats: Mapping[str, Any] = field(default_factory=dict)
    top: tuple[tuple[str, int], ...] = ()
    parse: Mapping[str, Any] = field(default_factory=dict)
    issues: tuple[Issue, ...] = ()
    why: str = ""

    @property
    def filled(self) -> int:
        """Returns the count of values that are there."""
        return self.rows - self.missing


def look(name: str, kind: str, values: Series, decimal: str | None = None) -> Look:
    """Looks at one column. Infinite numbers count as missing.

    Args:
        decimal: the sign before a fraction in numbers that are written as text; None: find out.
    """
    issues: list[Issue] = []
    if kind == "float":
        values, issues = _finite(name, values)
    counts = values.value_counts(sort=False)
    found = Look(name, kind, "CATEGORY", len(values), int(values.isna().sum()), len(counts), issues=tuple(issues))
    if not found.filled:
        text = f"The column {quoted(name)} holds no value at all."
        return _with(found, "CONSTANT", Issue("ALL_MISSING_COLUMN", "WARN", text, column=name, suggestion=LEFT_OUT))
    if found.unique == 1:
        text = f"The column {quoted(name)} holds the same value in every row: {quoted(counts.index[0])}."
        if not found.missing:
            return _with(
                found,
                "CONSTANT",
                Issue("CONSTANT_COLUMN", "INFO", text, column=name, suggestion=LEFT_OUT),
                top=_top(counts),
            )
    looks = {"int": _number, "float": _number, "bool": _truth, "date": _date}
    return looks[kind](found, values, counts) if kind in looks else _text(found, counts, decimal)


def _with(found: Look, role: Role, *issues: Issue, **changes: Any) -> Look:
    return replace(found, role=role, issues=(*found.issues, *issues), **changes)


def _finite(name: str, values: Series) -> tuple[Series, list[Issue]]:
    infinite = values.isin([math.inf, -math.inf])
    count = int(infinite.sum())
    if not count:
        return values, []
    text = f"{counted(count, 'value')} of the column {quoted(name)} are infinite; they count as missing."
    row = int(infinite.to_numpy().argmax()) + 2  # a file's first row of data is its line 2
    advice = "Look in the file at what they should be."
    issue = Issue("INFINITE_VALUES", "WARN", text, column=name, row=row, count=count, suggestion=advice)
    return values.mask(infinite), [issue]


def _top(counts: Series) -> tuple[tuple[str, int], ...]:
    if len(counts) > LISTED and int(counts.max()) == 1:
        return ()
    # Ties by the value itself: the order must not depend on where the rows came from.
    least = np.partition(counts.to_numpy(), -TOP)[-TOP] if len(counts) > TOP else 0
    often = counts[counts >= least]
    if len(often) > LISTED:
        often = counts[counts > least]
    best = sorted((-int(rows), str(value)) for value, rows in often.items())[:TOP]
    return tuple((plain(value), -rows) for rows, value in best)


def _figures(values: Series) -> dict[str, Any]:
    known = values.dropna().to_numpy(np.float64)
    quarter, median, three = np.quantile(known, [0.25, 0.5, 0.75])
    with np.errstate(over="ignore", invalid="ignore"):  # a spread that no number can hold is left out below
        deviation = known.std(ddof=1) if len(known) > 1 else 0.0
        figures = {"min": known.min(), "q25": quarter, "median": median, "q75": three, "max": known.max()}
        figures |= {"mean": known.mean(), "sd": deviation}
    return {label: float(f"{figure:.6g}") for label, figure in figures.items() if math.isfinite(figure)}


def _number(found: Look, values: Series, counts: Series) -> Look:
    found = _with(found, "NUMERIC", stats=_figures(values), top=_top(counts))
    levels = counts.index.to_numpy(np.float64)
    if len(levels) == 2 and set(levels) == {0.0, 1.0}:
        return _with(found, "BOOL")
    whole = found.kind == "int" or bool((levels == np.floor(levels)).all())
    if not whole or found.unique < found.rows:
        return found
    why = _numbered(found, values)
    if why:
        return _with(found, "ID", why=f"every row has another whole number in {quoted(found.name)}, and {why}")
    return _with(found, "NUMERIC", _perhaps_numbered(found)) if found.rows >= MANY_ROWS else found


def _numbered(found: Look, values: Series) -> str:
    """Returns why whole numbers that are all different number the rows, "" when nothing but that speaks for it."""
    if IDENTIFIER.search(spaced(found.name)):
        return "it is named like a label"
    if CALENDAR.search(spaced(found.name)):
        return ""
    least, most = found.stats["min"], found.stats["max"]
    if most - least + 1 <= SEQUENCE_GAP * found.rows:
        return "they count up with hardly a gap"
    alike = least > 0 and len(str(int(least))) == len(str(int(most)))
    return "they go up from row to row, all with as many digits" if alike and values.is_monotonic_increasing else ""


def _perhaps_numbered(found: Look) -> Issue:
    text = f"Every row has another whole number in {quoted(found.name)}. It is kept, as an amount."
    advice = "Choose the role ID for it if it is a number or code of the row."
    return Issue("ID_COLUMN", "INFO", text, column=found.name, count=found.unique, suggestion=advice)


def spaced(name: str) -> str:
    """Returns a name with a blank before each capital that follows a small letter: customerId → customer id."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name[:200]).replace("_", " ").lower()


def _truth(found: Look, _values: Series, counts: Series) -> Look:
    return _with(found, "BOOL", top=_top(counts), parse={"truth": True})


def _date(found: Look, values: Series, counts: Series) -> Look:
    first, last = values.dropna().min(), values.dropna().max()
    return _with(found, "DATETIME", stats={"first": str(first), "last": str(last)}, top=_top(counts))


def _text(found: Look, counts: Series, decimal: str | None) -> Look:
    levels = pd.Series(counts.index.astype("str"), dtype="str")
    lengths = levels.str.len()
    words = float((levels.str.count(" ") + 1).mean())
    stats = {"shortest": int(lengths.min()), "longest": int(lengths.max()), "words": round(words, 1)}
    found = _with(found, "CATEGORY", stats=stats, top=_top(counts))
    for other in (_numbers_as_text(found, levels, counts, decimal), _dates_as_text(found, levels)):
        if other:
            return other
    different = found.unique / found.filled
    code = code_of(levels)
    if code and different >= ALMOST_ALL:
        return _with(found, "ID", why=f"the values of {quoted(found.name)} look like {code}, another one in every row")
    named = bool(IDENTIFIER.search(spaced(found.name)))
    if found.unique == found.filled and (words < 1.5 or named) and found.unique > MANY_LEVELS:
        return _with(
            found, "ID", why=f"every row has another text in {quoted(found.name)}: it looks like a label of the row"
        )
    if found.unique > MANY_LEVELS and (words >= WORDY or different >= UNLIKE):
        return _with(found, "TEXT")
    return found


def _numbers_as_text(found: Look, levels: Series, counts: Series, decimal: str | None) -> Look | None:
    read = as_numbers(levels, decimal)
    if read is None:
        return None
    at_hand = int(counts.to_numpy()[read.parsed.to_numpy()].sum())
    odd = levels[~read.parsed]
    example = f", for example {quoted(odd.iloc[0])}" if len(odd) else ""
    strangers = found.filled - at_hand
    mixed = Issue(
        "MIXED_TYPES",
        "WARN",
        f"The column {quoted(found.name)} holds numbers and {counted(strangers, 'value')} that are none{example}.",
        column=found.name,
        value=plain(str(odd.iloc[0])) if len(odd) else None,
        count=strangers,
        suggestion="Correct these values in the file, or choose what the column holds.",
    )
    if at_hand < read.enough * found.filled:
        return None if at_hand < found.filled / 2 else _with(found, "CATEGORY", mixed)
    bare = read.other is None and strangers and levels[read.parsed].str.fullmatch(r"[-+]?\d+([.]\d+)?").all()
    issues = [] if bare else [_reading(found, levels, read, at_hand)]  # without the strangers they were numbers
    issues += _signs(found, levels[read.parsed])
    values = read.values.repeat(counts.to_numpy())
    return _with(found, "NUMERIC", *issues, *([mixed] if strangers else []), parse=read.parse, stats=_figures(values))


def _reading(found: Look, levels: Series, read: Numbers, count: int) -> Issue:
    """Returns how numbers written as text are read, by an example; a warning when they may mean something else."""
    doubtful = read.parsed if read.other is None else read.parsed & (read.other != read.values)
    at = int(doubtful.to_numpy().argmax())
    example = f"{quoted(levels.iloc[at])} is read as {read.values.iloc[at]:.15g}"
    name, text = found.name, f"The column {quoted(found.name)} holds numbers written as text: {example}"
    if read.other is None:
        advice = "Choose another role for it if these are codes."
        return Issue("NUMBERS_AS_TEXT", "INFO", f"{text}.", column=name, count=count, suggestion=advice)
    text += f", and could be {read.other.iloc[at]:.15g} as well."
    advice = "Choose what stands before a fraction, point or comma, when that is wrong."
    return Issue("AMBIGUOUS_NUMBER", "WARN", text, column=name, count=count, suggestion=advice)


def _signs(found: Look, levels: Series) -> list[Issue]:
    """Returns a warning when numbers have different signs, or percent signs here and there: they may not be alike."""
    signs = signs_of(levels)
    if len(signs) < 2 or (len(signs) == 2 and "" in signs and "%" not in signs):
        return []
    shown = several([sign or "no sign" for sign in signs])
    text = f"The numbers of the column {quoted(found.name)} have different signs: {shown}. Each is read as it stands."
    advice = "Write them all in one unit in the file."
    return [Issue("MIXED_TYPES", "WARN", text, column=found.name, count=len(levels), suggestion=advice)]


def _dates_as_text(found: Look, levels: Series) -> Look | None:
    read = as_dates(levels)
    if read is None:
        return None
    stats = {"first": str(read.values.min()), "last": str(read.values.max())}
    found = _with(found, "DATETIME", parse={"format": read.format}, stats=stats)
    if read.other is None:
        return found
    text = (
        f"The dates of {quoted(found.name)} can be read day first or month first, for example {quoted(levels.iloc[0])}."
    )
    advice = "They are read day first; choose the other way when that is wrong."
    parse = {"format": read.format, "other": read.other}
    return _with(
        found, "DATETIME", Issue("AMBIGUOUS_DATE", "WARN", text, column=found.name, suggestion=advice), parse=parse
    )


def gaps(found: Look) -> Issue | None:
    """Returns what there is to say of the missing values of a column: nothing when few are."""
    if found.role == "CONSTANT" or found.missing <= found.rows / 2:
        return None
    text = f"{share(found.missing, found.rows)} of the values of {quoted(found.name)} are missing."
    advice = "Leave it out in the next stage if what is missing is chance."
    return Issue("MANY_MISSING", "INFO", text, column=found.name, count=found.missing, suggestion=advice)
