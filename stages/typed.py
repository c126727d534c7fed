"""Strict types: a column is a number only when every value in it reads as one, after the markers of missing values.

Codes such as "007" or numbers of more digits than a computer's integer holds stay text, since as numbers they would not
come back the same. Dates are recognised only in the form of ISO 8601, and stay text of that form.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from stages.shown import plain

Type = Literal["int", "float", "text", "bool", "date"]
Array: TypeAlias = Any  # pyarrow publishes no types
MISSING = ("", "#N/A", "?", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null")
MISSING_AMONG_NUMBERS = ("-", "--", ".", "..", "None", "none", "missing", "Missing", "unknown", "Unknown", "*")
MAX_NAME = 100  # characters
LOOK = 1000  # values of a column that are tried first: most texts are known by them
_LEADING_ZERO = r"^[+-]?0[0-9]"
_LONG = r"^[+-]?[0-9]{16,}$"
_DAY = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_DATE = _DAY + r"([ T]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?$"
_COMMA = r"^[+-]?([0-9]+|[0-9]{1,3}(\.[0-9]{3})+)(,[0-9]+)?$"
_COMMA_CELL = re.compile(r"[+-]?(\d+,(\d{1,2}|\d{4,})|0,\d+|\d{1,3}(\.\d{3})+,\d+)")  # 1,234 may also be thousands
_POINT_CELL = re.compile(r"[+-]?\d+\.\d+")
_EITHER_CELL = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")  # 1.234 may be thousands where others have a comma


@dataclass(frozen=True, slots=True)
class Column:
    """The values of a column with their type, and the markers that were read as missing with how often."""

    values: Array
    type: Type
    missing: dict[str, int]


def decimal_of(rows: Iterable[Sequence[str]]) -> str:
    """Returns "," when numbers in these rows have a comma before the fraction and none has a point, else ".".

    A point before three digits tells nothing: with commas elsewhere, 1.234 are more than a thousand.
    """
    commas = points = 0
    for row in rows:
        for cell in row:
            commas += "," in cell and bool(_COMMA_CELL.fullmatch(cell.strip()))
            points += "." in cell and bool(
                _POINT_CELL.fullmatch(cell.strip()) and not _EITHER_CELL.fullmatch(cell.strip())
            )
    return "," if commas and not points else "."


def column_of(texts: Array, decimal: str, markers: Sequence[str] | None) -> Column:
    """Returns a column of text with its type.

    Args:
        texts: a pyarrow array of strings; cells are trimmed of white space.
        markers: what counts as missing; None: MISSING, and among numbers MISSING_AMONG_NUMBERS too.
    """
    trimmed = pc.utf8_trim_whitespace(texts)
    values, missing = _without(trimmed, MISSING if markers is None else ("", *markers))
    number = _number(values, decimal)
    if number is None and markers is None:
        number, values, more = _number_but_for_markers(values, decimal)
        missing = {**missing, **more}
    if number is not None:
        return Column(number, "int" if pa.types.is_integer(number.type) else "float", missing)
    truth = _truth(values)
    if truth is not None:
        return Column(truth, "bool", missing)
    return Column(values, "date" if _all_match(values, _DATE) else "text", missing)


def _without(values: Array, markers: Sequence[str]) -> tuple[Array, dict[str, int]]:
    hit = pc.is_in(values, value_set=pa.array(sorted(set(markers)), pa.string()))
    if not pc.any(hit).as_py():
        return values, {}
    counts = Counter({pair["values"]: pair["counts"] for pair in pc.value_counts(values.filter(hit)).to_pylist()})
    return pc.if_else(hit, pa.scalar(None, pa.string()), values), dict(sorted(counts.items()))


def _number(values: Array, decimal: str) -> Array | None:
    if values.null_count == len(values):
        return None
    if decimal == ",":
        if not _all_match(values, _COMMA):
            return None
        values = pc.replace_substring(pc.replace_substring(values, ".", ""), ",", ".")
    for kind in (pa.int64(), pa.float64()):
        try:
            pc.cast(values.slice(0, LOOK), kind)  # a cast that fails makes an error of each value: dear on all of them
            cast = pc.cast(values, kind)
        except pa.ArrowInvalid:
            continue
        odd = _LEADING_ZERO if kind == pa.int64() else f"{_LEADING_ZERO}|{_LONG}"
        return None if pc.any(pc.match_substring_regex(values, odd)).as_py() else cast
    return None


def _number_but_for_markers(values: Array, decimal: str) -> tuple[Array | None, Array, dict[str, int]]:
    """Tries again with the markers that stand for missing only where all the rest are numbers."""
    cleared, missing = _without(values.slice(0, LOOK), MISSING_AMONG_NUMBERS)
    if cleared.null_count < len(cleared) and _number(cleared, decimal) is None:
        return None, values, {}
    cleared, missing = _without(values, MISSING_AMONG_NUMBERS)
    number = _number(cleared, decimal) if missing else None
    return (None, values, {}) if number is None else (number, cleared, missing)


def _truth(values: Array) -> Array | None:
    if not _all_match(values, "^(?i:true|false)$"):
        return None
    return pc.equal(pc.utf8_lower(values), "true")


def _all_match(values: Array, pattern: str) -> bool:
    if values.null_count == len(values):
        return False
    head = pc.all(pc.match_substring_regex(values.slice(0, LOOK), pattern)).as_py()
    return head is not False and bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def safe_names(given: Sequence[str]) -> tuple[list[str], list[int]]:
    """Returns names that are not empty, short, free of control characters and unique, and which were there twice."""
    short = [plain(raw, MAX_NAME) or f"column_{at + 1}" for at, raw in enumerate(given)]
    reserved, taken = set(short), set[str]()
    last: dict[str, int] = {}  # number given last to a name
    names: list[str] = []
    twice: list[int] = []
    for at, name in enumerate(short):
        if name in taken:
            twice.append(at)
            stem = name[: MAX_NAME - 8]
            numbers = range(last.get(name, 1) + 1, 2 * len(short) + 2)
            last[name] = next(number for number in numbers if f"{stem}_{number}" not in reserved)
            name = f"{stem}_{last[name]}"
            reserved.add(name)
        taken.add(name)
        names.append(name)
    return names, twice
