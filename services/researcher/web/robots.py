"""What a site lets robots read: the rules of robots.txt (RFC 9309).

A file that is there is obeyed; one that is not (4xx) forbids nothing; one that cannot be had (5xx, no connection)
forbids everything (RFC 9309 2.3.1).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

TOKEN = "conductorresearcher"  # noqa: S105 - the product token a site names us by, lower case
MAX_BYTES = 512 * 1024  # of a file that are read (2.5: at least 500 KiB); the rest is ignored
MAX_RULES = 5_000  # of our group; a rule costs its length at every look
MAX_PATTERN = 512  # characters; a longer one is left out

_AGENT = re.compile(r"[a-z_-]+", re.I)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that hold for us: (allowed, pattern), the longest pattern that matches decides."""

    rules: tuple[tuple[bool, str], ...] = ()

    def allow(self, target: str) -> bool:
        """Whether a path with its query may be fetched. Of equally long patterns the one that allows wins (2.2.2)."""
        path = _normal(target)
        best = max(
            ((len(pattern), allowed) for allowed, pattern in self.rules if _matches(pattern, path)), default=None
        )
        return best is None or best[1]


NOTHING_FORBIDDEN = Rules()
ALL_FORBIDDEN = Rules(((False, "/"),))


def read(body: bytes) -> Rules:
    """Reads a robots.txt: the groups that name us, merged; without one the groups for all."""
    ours: list[tuple[bool, str]] = []
    all_: list[tuple[bool, str]] = []
    named = False
    agents: set[str] = set()
    fresh = False  # whether the last line named an agent, so that another one joins the group
    for key, value in _lines(body.decode("utf-8-sig", "replace")):
        if key == "user-agent":
            agents = (agents if fresh else set()) | {_agent(value)}
            named = named or TOKEN in agents
            fresh = True
        elif key in ("allow", "disallow"):
            fresh = False
            rule = (key == "allow", _normal(value))
            for name, group in ((TOKEN, ours), ("*", all_)):
                if name in agents and value and len(value) <= MAX_PATTERN and len(group) < MAX_RULES:
                    group.append(rule)
    return Rules(tuple(ours if named else all_))


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in re.split(r"[\r\n]+", text):
        key, colon, value = line.partition("#")[0].partition(":")
        if colon:
            yield key.strip().lower(), value.strip()


def _agent(value: str) -> str:
    """Returns the product token of a user-agent line, without a version, or "*"."""
    if value.startswith("*"):
        return "*"
    match = _AGENT.match(value)
    return match[0].lower() if match else ""


def _normal(path: str) -> str:
    """Returns a path with its octets encoded alike, so that two spellings of one path match (2.2.2)."""
    kept = path.replace("%2F", "\0").replace("%2f", "\0").replace("%2A", "\1").replace("%2a", "\1").replace("%24", "\2")
    plain = quote(unquote_to_bytes(kept), safe="/?=&*$:@!'()+,;~-._\0\1\2")
    return plain.replace("\0", "%2F").replace("\1", "%2A").replace("\2", "%24")


def _matches(pattern: str, path: str) -> bool:
    """Matches from the start; `*` is any run, `$` at the end is the end. In linear steps, never by backtracking."""
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not rest:
        return not anchored or at == len(path)
    last = rest.pop() if anchored else ""
    for part in rest:
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return not anchored or (path.endswith(last) and len(path) - len(last) >= at)
