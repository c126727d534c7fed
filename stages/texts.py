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


@dataclass(frozen=True, slots=True)
class Numbers:
    """Texts read as numbers: which parsed, as what, and the way for `preparing.numbers`."""

    values: Series
    parsed: Series
    parse: dict[str, Any]
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


def as_numbers(levels: Series) -> Numbers | None:
    """Reads different texts as numbers. None when fewer than half of them are, or when they are codes: 00123."""
    parse = {"clutter": True, "decimal": _decimal(levels.iloc[:TRIED])}
    if numbers(levels.iloc[:TRIED], parse).notna().mean() < HALF or levels.str.match(r"0\d").mean() > 1 - ENOUGH:
        return None
    values = numbers(levels, parse)
    return Numbers(values, values.notna(), parse)


def _decimal(levels: Series) -> str:
    """Returns the sign before the decimals: what stands last, unless three digits follow it everywhere."""
    commas = levels[levels.str.contains(",", regex=False)]
    dots = levels[levels.str.contains(".", regex=False)]
    both = commas[commas.str.contains(".", regex=False)]
    if len(both):
        return "," if (both.str.rfind(",") > both.str.rfind(".")).mean() > HALF else "."
    if len(commas):
        return "." if commas.str.contains(r"(?<!\d)[1-9]\d{0,2}(?:,\d{3})+(?!\d)", regex=True).all() else ","
    return "," if len(dots) and dots.str.contains(r"\d\.\d{3}\.\d{3}(?!\d)", regex=True).all() else "."


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
