"""Which schema files a store still needs, and whether this Conductor may run on it: one rule for both engines.

Schemas are numbered files, each applied in one transaction. A change that older Conductors can live with is made first
(expand) and what they need is taken away a release later (contract), so that two versions run side by side. A store
says the oldest Conductor that may run on it, by the number of the newest file which that one knows.
"""

from collections.abc import Sequence
from pathlib import Path

from services.common.config import ConfigError

SCHEMA = Path(__file__).parent / "schema"


def files(engine: str) -> Sequence[Path]:
    """Returns an engine's schema files, the first being number 1."""
    return sorted((SCHEMA / engine).glob("*.sql"))


def pending(engine: str, version: int, oldest: int) -> Sequence[tuple[int, Path]]:
    """Returns the files, with their numbers, that a store of this version needs; 0 when it has no schema yet.

    Raises:
        ConfigError: the store is for newer Conductors only.
    """
    known = files(engine)
    if oldest > len(known):
        raise ConfigError(
            f"The store has schema {version}, which needs a Conductor that knows schema {oldest} and this one knows"
            f" {len(known)}: upgrade this Conductor."
        )
    return list(enumerate(known[version:], version + 1))
