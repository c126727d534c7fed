"""Texts that are really numbers, dates or codes: recognised, and how to read them."""

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd

from stages.preparing import dates, numbers

Series: TypeAlias = "pd.Series[Any]"

TRIED = 200  # different values on which a way of reading is tried before it is tried on all
ENOUGH = 0.95  # of the values have to be read that way
HALF = 0.5
CODES = {
    "UUIDs": r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}",
    "e-mail addresses": r"[^@\s]+@[^@\s]+\.[a-zA-Z]{2,}",
    "web addresses": r"https?://\S+",
    "check sums": r"(?:[0-9a-f]{32,128}|[0-9A-F]{32,128})",
}
DAY_FIRST = ("%d/%m/%Y", "%d-%m-%Y", "%d.%m.%Y", "%d/%m/%y", "%d.%m.%y", "%d-%m-%y")
CLOCKS = ("", " %H:%M", " %H:%M:%S")
OTHERS = (
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d %b %Y",
    "%d %B %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%b-%Y",
    "%b %Y",
)
DATED = re.compile(r"\d.*[-/. ]|[-/. ].*\d")  # has a digit and something between
LONGEST_DATE = 40  # characters
ISO = re.compile(r"\d{4}-\d{2}(-\d{2}([T ]\d{2}:\d{2}.*)?)?")


MONEY = "[$€£¥₹]"
SIGNS = "([%$€£¥₹])"


@dataclass(frozen=True, slots=True)
class Numbers:
    """Texts read as numbers.

    Attributes:
        parsed: which of them are.
        parse: the way for `preparing.numbers`.
        other: as what they can be read as well, when that is not the same; None when it cannot be.
    """

    values: Series
    parsed: Series
    parse: dict[str, Any]
    other: "Series | None" = None
    enough: float = ENOUGH


@dataclass(frozen=True, slots=True)
class Dates:
    """Texts read as dates: as what, the format, and another format that reads them all as well."""

    values: Series
    format: str
    other: str | None


def code_of(levels: Series) -> str:
    """Returns what kind of code nearly all of the texts are, "" for none."""
    tried = levels.iloc[:TRIED]
    for kind, pattern in CODES.items():
        if tried.str.fullmatch(pattern).mean() >= ENOUGH and levels.str.fullmatch(pattern).mean() >= ENOUGH:
            return kind
    return ""


def as_numbers(levels: Series, decimal: str | None = None) -> Numbers | None:
    """Reads different texts as numbers. None when fewer than half of them are, or when they are codes: 00123.

    Args:
        decimal: the sign before a fraction, "." or ","; None: find out.
    """
    sign = decimal or _decimal(levels.iloc[:TRIED])
    parse: dict[str, Any] = {"clutter": True, "decimal": sign}
    if numbers(levels.iloc[:TRIED], parse).notna().mean() < HALF or levels.str.match(r"0\d").mean() > 1 - ENOUGH:
        return None
    values = numbers(levels, parse)
    return Numbers(values, values.notna(), parse, None if decimal else _other(levels, values, sign))


def _decimal(levels: Series) -> str:
    """Returns the sign before the decimals: with which more are numbers, else the one that is usual."""
    known = {sign: int(numbers(levels, {"clutter": True, "decimal": sign}).notna().sum()) for sign in (".", ",")}
    if known["."] != known[","]:
        return max(known, key=lambda sign: known[sign])
    return "," if _points_part_thousands(levels) else "."


def _points_part_thousands(levels: Series) -> bool:
    """Tells whether points before three digits part thousands: so it is with money, which has no thousandths."""
    pointed = levels.str.contains(".", regex=False)
    return bool(pointed.any() and levels[pointed].str.contains(MONEY, regex=True).all())


def _other(levels: Series, values: Series, decimal: str) -> "Series | None":
    """Returns how texts with points may be read as well: 1.500 € is a thousand and a half, or one and a half.

    1,500 is not in doubt: where a comma comes before fractions, some number has one or two digits behind it.
    """
    if not levels.str.contains(".", regex=False).any():
        return None
    read = numbers(levels, {"clutter": True, "decimal": "." if decimal == "," else ","})
    return read if read.notna().mean() >= values.notna().mean() and not read.equals(values) else None


def signs_of(levels: Series) -> dict[str, int]:
    """Returns how many of different texts have which sign of money or percent; "" stands for none."""
    return {str(sign): int(count) for sign, count in levels.str.extract(SIGNS)[0].fillna("").value_counts().items()}


def as_dates(levels: Series) -> Dates | None:
    """Reads different texts as dates. None when they are none, or when no one format reads nearly all of them."""
    tried = levels.iloc[:TRIED]
    if not tried.str.contains(DATED).mean() >= ENOUGH or tried.str.len().max() > LONGEST_DATE:
        return None
    if tried.str.fullmatch(ISO).mean() >= ENOUGH and _reads(tried, levels, "ISO8601"):
        return Dates(dates(levels, {"format": "ISO8601"}), "ISO8601", None)
    for clock in CLOCKS:
        for format_ in DAY_FIRST:
            month_first = format_.replace("%d", "%-").replace("%m", "%d").replace("%-", "%m")
            first, second = (_reads(tried, levels, each + clock) for each in (format_, month_first))
            if first or second:
                best = format_ if first else month_first
                other = month_first + clock if first and second else None
                return Dates(dates(levels, {"format": best + clock}), best + clock, other)
        for format_ in OTHERS:
            if _reads(tried, levels, format_ + clock):
                return Dates(dates(levels, {"format": format_ + clock}), format_ + clock, None)
    return None


def _reads(tried: Series, levels: Series, format_: str) -> bool:
    if dates(tried, {"format": format_}).notna().mean() < ENOUGH:
        return False
    return bool(dates(levels, {"format": format_}).notna().mean() >= ENOUGH)
