"""What is odd about rows: copies, rows that belong together, rows in order of time."""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.columns import Look, Series, spaced
from stages.contract import Issue
from stages.preparing import dates
from stages.wording import counted, quoted, share

Hashes = npt.NDArray[np.uint64]

MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing (Knuth's golden ratio)
LEAST_GROUPS = 10
MOST_GROUPS = 0.8  # groups for each row, above which nearly every row stands for itself
ORDERED = 0.99  # of neighbours are in order
CHANCE = 1.5  # times as many copies as chance would make are still ordinary
COMMON = 0.5  # share of copies from which they are ordinary: few columns with few levels
MEASURED = 0.5  # share of different values, above which a column is measured and its levels have no end
WHO = "patient|subject|customer|client|user|person|member|household|family|session|student|school|account|device"
WHO += "|player|employee|donor|animal|participant|respondent|individual|case|mother|child|store|shop|hospital"
WHO += "|chick|rat|mouse|dog|cat|cow|pig|tree|plant|litter|baby|driver|worker|firm"
GROUP = re.compile(rf"({WHO})s?( ?(id|no|nr|number|code|key|name|index))?|((group|cluster|household) ?)?(uu|u)?id")


def mixed(so_far: Hashes | None, values: Series) -> Hashes:
    """Returns a hash for each row that also depends on this column; the same in every run."""
    own: Hashes = pd.util.hash_pandas_object(values, index=False).to_numpy(np.uint64)
    return own if so_far is None else so_far * MIX + own


def copies(hashes: Hashes) -> int:
    """Returns how many rows repeat an earlier one."""
    return len(hashes) - len(np.unique(hashes))


def levels(different: int, rows: int) -> float:
    """Returns how many values a column may have: those it has, and no end of them where most rows have another one."""
    return math.inf if different > MEASURED * rows else different


def ordinary(hashes: Hashes, combinations: float) -> bool:
    """Returns whether copies are so common that they are no mistake: rows of a few columns with a few levels.

    Args:
        combinations: how many different rows the levels of the columns could make. It says how many rows repeat others
            by chance; when many more do, somebody copied them.
    """
    if combinations <= len(hashes) and copies(hashes) > COMMON * len(hashes):
        return True
    if math.isinf(combinations):
        return False
    by_chance = len(hashes) + combinations * math.expm1(-len(hashes) / combinations)  # were all rows as likely
    return copies(hashes) <= CHANCE * by_chance


def duplicates(hashes: Hashes, combinations: float) -> Issue | None:
    """Returns what there is to say about copies of rows; `combinations` as in `ordinary`."""
    count = copies(hashes)
    if not count:
        return None
    repeats = "repeats" if count == 1 else "repeat"
    text = f"{counted(count, 'row')} ({share(count, len(hashes))}) {repeats} an earlier row in every column but "
    text += "identifiers."
    if ordinary(hashes, combinations):
        text += " With so few different rows that is ordinary; they are kept and split like all others."
        return Issue("DUPLICATE_ROWS", "INFO", text, count=count)
    seen = pd.Series(hashes).duplicated()
    text += " Copies are kept on one side of the split, so that no answer is known from its copy."
    advice = "Remove them from the file if they are mistakes."
    return Issue("DUPLICATE_ROWS", "WARN", text, row=int(seen.to_numpy().argmax()) + 2, count=count, suggestion=advice)


def group_of(looks: Iterable[Look]) -> Look | None:
    """Returns the column that says which rows belong to one patient, customer, …; None when no name says so."""
    for look in looks:
        several = LEAST_GROUPS <= look.unique <= MOST_GROUPS * look.filled
        if several and look.role in ("NUMERIC", "CATEGORY", "TEXT", "ID") and GROUP.fullmatch(spaced(look.name)):
            return look
    return None


def grouped(look: Look) -> Issue:
    """Returns what there is to say about rows that belong together."""
    each = f"{look.filled / look.unique:.1f}"
    text = f"The rows belong to {counted(look.unique, 'value')} of {quoted(look.name)}, about {each} rows each. "
    text += "Rows of one are kept on one side of the split."
    advice = "Choose another kind of split if rows of the same one may well be known when predicting."
    return Issue("GROUPED_ROWS", "WARN", text, column=look.name, count=look.unique, suggestion=advice)


def ordered(columns: Mapping[str, Series], looks: Mapping[str, Look]) -> Issue | None:
    """Returns what there is to say when the rows stand in the order of a column of dates."""
    for name, values in columns.items():
        moments = dates(values, looks[name].parse).dropna()
        steps = moments.astype("int64").diff().iloc[1:]
        if len(steps) and (steps >= 0).mean() >= ORDERED and (steps > 0).any():
            text = f"The rows are in the order of {quoted(name)}. If the model shall predict what comes later, "
            text += "test it on the latest rows."
            advice = "Choose the split TIME in the next stage."
            return Issue("TIME_ORDERED", "INFO", text, column=name, suggestion=advice)
    return None
