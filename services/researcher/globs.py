"""Patterns of paths: `*`, `?` and `[a-z]` within a name, `**` for any number of folders."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

Pattern: TypeAlias = tuple[re.Pattern[str] | None, ...]  # one for each name of a path, None for `**`


def matcher(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Returns what says whether a path belongs: it matches a pattern of `include`, if there are any, and none of
    `exclude`. A pattern without `/` is one of names, wherever they are; one that names a folder means all below it.
    """
    wanted = [_parsed(pattern) for pattern in include]
    unwanted = [_parsed(pattern) for pattern in exclude]

    def belongs(path: str) -> bool:
        names = path.split("/")
        if wanted and not any(_matches(pattern, names) for pattern in wanted):
            return False
        return not any(_matches(pattern, names) for pattern in unwanted)

    return belongs


def _parsed(pattern: str) -> Pattern:
    names = pattern.strip("/").split("/")
    if len(names) == 1:
        names.insert(0, "**")
    # fnmatch.translate writes expressions that do not try again what cannot match: no pattern takes long.
    return tuple(None if name == "**" else re.compile(fnmatch.translate(name)) for name in names)


def _matches(pattern: Pattern, names: Sequence[str]) -> bool:
    """Says whether a pattern matches a path, or a folder it lies in; in (names x parts) steps."""
    reached = {0}  # how many names the parts so far can have taken
    for part in pattern:
        if part is None:
            reached = set(range(min(reached), len(names) + 1))
        else:
            reached = {taken + 1 for taken in reached if taken < len(names) and part.match(names[taken])}
        if not reached:
            return False
    return True
