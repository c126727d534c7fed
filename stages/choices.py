"""What a person chose at a gate, checked: a program run by hand must not take nonsense for a choice."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.contract import Failed
from stages.wording import quoted, several


class Choices:
    """The edits of an envelope. Every reading method takes note of the fields it knows; `done` refuses the others."""

    def __init__(self, edits: Mapping[str, Any]) -> None:
        self._edits = edits
        self._known: set[str] = set()

    def text(self, field: str, options: Sequence[str] | None = None) -> str | None:
        """Returns what was chosen for a field, None when nothing was. Raises Failed with BAD_EDIT."""
        self._known.add(field)
        given = self._edits.get(field)
        if given is None:
            return None
        chosen = str(given).lower() if isinstance(given, bool) else str(given)
        if options is not None and chosen not in options:
            raise bad(field, chosen, f"It may be {several(options, 8)}.")
        return chosen

    def number(self, field: str, least: float, most: float) -> float | None:
        """Returns the number that was chosen for a field, None when none was. Raises Failed with BAD_EDIT."""
        self._known.add(field)
        given = self._edits.get(field)
        if given is None:
            return None
        try:
            chosen = float(given)
        except (TypeError, ValueError):
            raise bad(field, str(given), "It has to be a number.") from None
        if not least <= chosen <= most:
            raise bad(field, str(given), f"It has to be between {least:g} and {most:g}.")
        return chosen

    def of_columns(self, prefix: str, columns: Iterable[str]) -> dict[str, str]:
        """Returns what was chosen for columns, as fields `<prefix>.<column>`. Raises Failed with BAD_EDIT."""
        names = set(columns)
        chosen = {}
        for field, given in self._edits.items():
            if field.startswith(f"{prefix}."):
                self._known.add(field)
                column = field.removeprefix(f"{prefix}.")
                if column not in names:
                    raise bad(field, str(given), f"There is no column {quoted(column)}.")
                chosen[column] = str(given)
        return chosen

    def done(self) -> None:
        """Raises Failed with BAD_EDIT when something was chosen that no method asked for."""
        for field in sorted(self._edits.keys() - self._known):
            raise bad(field, str(self._edits[field]), "This stage offers no such choice.")


def bad(field: str, value: str, why: str) -> Failed:
    """Returns the failure for a choice that was not on offer."""
    text = f"{quoted(value)} cannot be chosen for {quoted(field)}. {why}"
    return Failed("BAD_EDIT", text, column=field[:200], value=value[:80], suggestion="Choose again.")
