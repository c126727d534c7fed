"""Which files the patterns of a command's outputs take."""

import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.terminal import outputs
from services.terminal.globs import Globs
from tests.hostile import canary, place
from tests.outputs_at_hand import leave, paths, work
from tests.properties import examples

__all__ = ["canary", "place", "work"]


# ---- patterns ----

FILES = (".hidden", ".cache/x", "A.txt", "a.txt", "a/.b/c.txt", "a/b/c.txt", "a/b/c.txt.bak", "a/c.txt", "ab", "é.txt")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.txt", ["a.txt"]),
        ("*.txt", ["A.txt", "a.txt", "é.txt"]),
        ("?.txt", ["A.txt", "a.txt", "é.txt"]),
        ("??", ["ab"]),
        ("*", [".hidden", "A.txt", "a.txt", "ab", "é.txt"]),
        ("**", sorted(FILES)),
        ("**/*", sorted(FILES)),
        ("**/**", sorted(FILES)),
        ("a/**", ["a/.b/c.txt", "a/b/c.txt", "a/b/c.txt.bak", "a/c.txt"]),
        ("a/**/c.txt", ["a/.b/c.txt", "a/b/c.txt", "a/c.txt"]),
        ("**/c.txt", ["a/.b/c.txt", "a/b/c.txt", "a/c.txt"]),
        ("**/b/**", ["a/b/c.txt", "a/b/c.txt.bak"]),
        ("**/b/*", ["a/b/c.txt", "a/b/c.txt.bak"]),
        ("a/*/c.txt", ["a/.b/c.txt", "a/b/c.txt"]),
        ("*/*", [".cache/x", "a/c.txt"]),
        ("a**.txt", ["a.txt"]),  # not a whole part
        ("a?b", []),  # `?` is no slash
        ("a*c.txt", []),
        ("a", []),  # a folder
        ("[a].txt", []),
        ("{a,A}.txt", []),
        ("c.txt", []),
        ("\\*", []),
    ],
)
def test_patterns(place: Path, work: int, pattern: str, found: list[str]) -> None:
    leave(place, *FILES)
    assert paths(work, pattern) == found


def test_several_patterns_list_each_file_once(place: Path, work: int) -> None:
    leave(place, *FILES)
    assert paths(work, "a/**", "**/c.txt", "ab", "nothing") == [
        "a/.b/c.txt",
        "a/b/c.txt",
        "a/b/c.txt.bak",
        "a/c.txt",
        "ab",
    ]
    assert paths(work) == []


@pytest.mark.parametrize("pattern", ["", "/etc/passwd", "../x", "a/../b", "./a", "a//b", "a/", "/", "**/", "..", "a\0"])
def test_a_pattern_that_no_path_matches_is_refused(work: int, pattern: str) -> None:
    with pytest.raises(ValueError, match="matches no path"):
        Globs(["fine", pattern])
    with pytest.raises(ValueError, match="matches no path"):
        outputs.listing(work, [pattern])


def expected(pattern: list[str], path: list[str]) -> bool:
    """The definition, part by part, at whatever cost."""
    if not pattern:
        return not path
    if pattern == ["**"]:
        return bool(path)
    if pattern[0] == "**":
        return any(expected(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return bool(path) and name_matches(pattern[0], path[0]) and expected(pattern[1:], path[1:])


def name_matches(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(name_matches(pattern[1:], name[n:]) for n in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and name_matches(pattern[1:], name[1:])


def parts(alphabet: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.text(alphabet, min_size=1, max_size=5), min_size=1, max_size=4)


@examples(300)
@given(st.lists(parts("ab*?"), min_size=1, max_size=3), parts("ab"))
@example([["**", "**", "a"]], ["a"])
@example([["a", "**"], ["**", "b"]], ["a"])
def test_patterns_match_by_their_definition(patterns: list[list[str]], path: list[str]) -> None:
    globs = Globs("/".join(pattern) for pattern in patterns)
    state = globs.advance(globs.start, "/".join(path))
    assert globs.accepts(state) == any(expected(pattern, path) for pattern in patterns)


def test_no_pattern_takes_long() -> None:
    hostile = [
        "*a" * 500 + "b",
        "?*" * 500,
        "**/" * 300 + "b",
        "*/" * 500 + "*",
        *("a*" * n + "b" for n in range(400, 428)),
    ]
    globs = Globs(hostile)
    begin = time.monotonic()
    for _ in range(100):
        globs.accepts(globs.advance(globs.start, "a" * 255))
    assert time.monotonic() - begin < 2  # a backtracking matcher does not end
