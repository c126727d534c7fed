"""How values and names that others wrote are shown to people: short, and without characters that a screen obeys."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

MAX_VALUE = 80  # characters of a value in a message
MAX_NEAREST = 5  # names offered when one is not there
NEAR = 0.5  # least likeness of a name that is offered, 0 to 1


def plain(text: str, limit: int = MAX_VALUE) -> str:
    """Returns the text without control characters, runs of white space as one space, cut to `limit` characters."""
    head = text[: 4 * limit]
    words = "".join(" " if _odd(character) else character for character in head).split()
    joined = " ".join(words)
    return joined if len(joined) <= limit and len(head) == len(text) else joined[: limit - 1] + "…"


def _odd(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Returns the names most like this one, the best first, without regard to case."""
    by_fold = {known.casefold()[:200]: known for known in names}
    found = difflib.get_close_matches(name.casefold()[:200], list(by_fold), MAX_NEAREST, NEAR)
    return [by_fold[fold] for fold in found]


def listed(names: Sequence[str], limit: int = MAX_NEAREST) -> str:
    """Returns "a, b and 3 more" of names."""
    head = ", ".join(plain(name, 40) for name in names[:limit])
    return head if len(names) <= limit else f"{head} and {len(names) - limit} more"
