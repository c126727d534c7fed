"""Takes plain values out of a JSON document that anybody may have written: the right type, or nothing. Pure."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

FINITE = sys.float_info.max


def text(value: Any, most: int) -> str:
    """Returns a text without control characters but tab and line ends, at most so many characters."""
    kept = "".join(c for c in str(value or "") if c in "\t\n" or (c.isprintable() and c != "\x7f"))
    return kept[:most]


def exact(value: Any, most: int) -> str:
    """Returns a text as it is, cut to so many characters; what is no Unicode becomes "?"."""
    return "" if value is None else str(value)[:most].encode(errors="replace").decode()


def number(value: Any, low: float = -FINITE, high: float = FINITE) -> float | None:
    """Returns a number within bounds, None for anything else, NaN and integers that no double holds included."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return float(value) if good else None


def sequence(value: Any, most: int) -> Sequence[Any]:
    """Returns the first of a list."""
    return value[:most] if isinstance(value, list) else []


def table(value: Any) -> Mapping[str, Any]:
    """Returns an object."""
    return value if isinstance(value, dict) else {}


def rows(value: Any, most: int) -> Sequence[Mapping[str, Any]]:
    """Returns the first objects of a list."""
    return [table(one) for one in sequence(value, most)]
