"""Patterns of paths: `*` and `?` within a name, `**` for any folders.

    *     any characters of one name, also none; names that begin with a dot are no exception (as in gitignore)
    ?     one character of a name
    **    as a whole part of the path: any folders, also none; at the end: every file below, at any depth
All else stands for itself: case counts, and there are no brackets, braces or escapes. A `**` that is not a whole part
is a `*`.

All patterns together are one automaton whose states are the bits of one number (Baeza-Yates and Gonnet, "A New
Approach to Text Searching", 1992): the time is that of the text, whatever the pattern, and a folder that nothing below
can match is seen at once.
"""

from __future__ import annotations

from collections.abc import Iterable


class Globs:
    """Some patterns. Raises ValueError for one that no path in a folder can match."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._literal: dict[str, int] = {}  # character → states it leads on from
        self._any = self._star = self._deep = 0  # states that `?` leads on from, that `*` and `**` stay in
        self._accept = self._first = 0
        self._states = 0
        for pattern in patterns:
            self._add(_tokens(pattern))
        self.start = self._skip(self._first, True)  # the state at the top folder

    def _add(self, tokens: list[str]) -> None:
        self._first |= 1 << self._states
        for token in tokens:
            bit = 1 << self._states
            self._states += 1
            match token:
                case "**":
                    self._deep |= bit
                case "*":
                    self._star |= bit
                case "?":
                    self._any |= bit
                case _:
                    self._literal[token[-1]] = self._literal.get(token[-1], 0) | bit
        self._accept |= 1 << self._states
        self._states += 1

    def advance(self, state: int, text: str) -> int:
        """Returns the state after more of a path; 0 when nothing that goes on like this can match."""
        for character in text:
            if not state:
                break
            boundary = character == "/"
            onward = self._literal.get(character, 0) | (0 if boundary else self._any)
            stay = self._deep if boundary else self._deep | self._star
            state = self._skip((state & onward) << 1 | state & stay, boundary)
        return state

    def _skip(self, state: int, boundary: bool) -> int:
        """Adds the states that are reached when `*` and `**` stand for nothing more."""
        if boundary:
            state |= (state & self._deep) << 1
        return state | (state & self._star) << 1

    def accepts(self, state: int) -> bool:
        """Whether a path that ends here matches."""
        return bool(state & self._accept)


def _tokens(pattern: str) -> list[str]:
    """Splits a pattern: "*", "**" and "?", and characters that stand for themselves with a backslash before them."""
    parts = pattern.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in pattern:
        raise ValueError(f"{pattern!r} matches no path: give one from the workspace on, without '//', '.' and '..'")
    tokens: list[str] = []
    for part in parts:
        if part == "**":
            tokens += [] if tokens[-1:] == ["**"] else ["**"]
            continue
        for character in part:
            if character != "*":
                tokens.append(character if character == "?" else "\\" + character)
            elif tokens[-1:] != ["*"]:
                tokens.append("*")
        tokens.append("\\/")
    # `**` takes its slash along, and needs a name at the end.
    return [*tokens, "*"] if tokens[-1] == "**" else tokens[:-1]
