"""What a stage's program left, read without trust: any JSON, of any shape, from any team.

Nothing here raises over a value: what is absent or of another type is None, or an empty list or text.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from services.report_writer.escape import fold, shorten

MAX_RESULT_BYTES = 1024 * 1024
TEXT_CHARS = 300  # of a sentence
NAME_CHARS = 80  # of a name of a column, a class, a model
WHOLE = 1e15  # beyond it, whole numbers are shown by their first digits
SPACED = 10_000  # from it on, numbers are shown with separators; years are not
LEAST = 1e-9  # below it, numbers are shown with an exponent

Json: TypeAlias = Any


def parsed(data: bytes) -> Json:
    """Returns what a result.json holds, None when it is no JSON or larger than a result may be."""
    if len(data) > MAX_RESULT_BYTES:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number too long, too deep
        return None


def of(value: Json, *path: str) -> Json:
    """Returns what stands at a path of keys, None when nothing does."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def items(value: Json) -> list[Json]:
    """Returns a list, an empty one when the value is none."""
    return value if isinstance(value, list) else []


def rows(value: Json) -> list[Mapping[str, Json]]:
    """Returns those items of a list that are objects."""
    return [item for item in items(value) if isinstance(item, Mapping)]


def number(value: Json) -> float | None:
    """Returns a finite number, None when the value is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer beyond what a float holds
        return None
    return found if math.isfinite(found) else None


def figure(value: Json, digits: int = 4) -> str:
    """Returns a number as people read it, with so many digits that count. "" when the value is no number.

    A number near a whole one keeps more digits: 0.99997 is not 1.
    """
    found = number(value)
    if found is None:
        return ""
    if abs(found) < WHOLE and found == int(found):
        return f"{int(found):,}" if abs(found) >= SPACED else str(int(found))
    if SPACED <= abs(found) < WHOLE:
        return f"{found:,.{max(0, digits - len(str(int(abs(found)))))}f}"
    if LEAST <= abs(found) < 1e-4:
        return f"{found:.{digits - 1 - math.floor(math.log10(abs(found)))}f}"
    shown = f"{found:.{digits}g}"
    return f"{found:.6g}" if float(shown).is_integer() else shown


def text(value: Json, limit: int = TEXT_CHARS) -> str:
    """Returns a text on one line, cut to a limit; numbers and truth too. "" for anything else. Not escaped."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        begun = value[: limit * 8].encode(errors="replace").decode()  # JSON may hold halves of a surrogate pair
        return shorten(fold(begun), limit)
    return figure(value)


def name(value: Json) -> str:
    """Returns a short text, for example the name of a column."""
    return text(value, NAME_CHARS)


def texts(value: Json, limit: int = NAME_CHARS) -> list[str]:
    """Returns those items of a list that can be shown as text."""
    return [shown for item in items(value) if (shown := text(item, limit))]
