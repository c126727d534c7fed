"""How much property tests try: the same examples in every run, so that it is red or green by the code alone; new ones,
and many times as many, in a search (`make fuzz`)."""

from typing import Any

from hypothesis import Phase, settings

REPEAT, SEARCH = "repeat", "search"
TIMES = 20  # as many examples in a search


def register() -> None:
    """Registers both profiles, and chooses the one that repeats; `--hypothesis-profile=search` chooses the other."""
    settings.register_profile(REPEAT, derandomize=True, database=None, deadline=None)
    settings.register_profile(SEARCH, max_examples=100 * TIMES, database=None, deadline=None, print_blob=True)
    settings.load_profile(REPEAT)


def examples(count: int, **more: Any) -> settings:
    """Returns settings with as many examples as are worth their time in every run, and more in a search."""
    return settings(max_examples=count * (TIMES if searching() else 1), **more)


def phases() -> list[Phase]:
    """Returns what to do for machines of many steps, whose failing examples take minutes to be made short."""
    return list(Phase) if searching() else [Phase.generate]


def searching() -> bool:
    """Whether this is a search."""
    return settings.get_current_profile_name() == SEARCH
