"""Whether two texts say yes or no to the same: negations and what they negate, words and their contraries. English."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Stems = Callable[[str], Iterable[str]]

SCOPE = 6  # words behind a "not" that it is taken to negate
SAME = 0.75  # of a negated clause's telling stems, from which what holds them speaks of the same
MIN_STEM = 3  # characters; shorter ones with a prefix are another word
_NOES = """
    not no never none neither nor without cannot nothing nobody nowhere hardly barely unable lack lacks lacking
"""
_NEGATORS = frozenset(_NOES.split())
_NOT_NEGATING = re.compile(
    r"\b(?:not (?:only|just|merely)|no (?:later|earlier|sooner|doubt|matter|more than|less than|fewer than)"
    r"|whether or not|none of this means)\b",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(
    r"[.;:!?()\n]|,(?!\S)|\b(?:but|however|although|though|unless|except|instead|because|so that)\b", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_PREFIXES = ("un", "in", "im", "ir", "non", "dis", "a")
_PAIRS = """
    increase/decrease raise/lower grow/shrink enable/disable allow/deny allow/forbid allow/refuse allow/prohibit
    permit/forbid permit/deny accept/reject accept/refuse before/after more/less more/fewer most/least
    maximum/minimum max/min above/below over/under higher/lower high/low faster/slower fast/slow larger/smaller
    bigger/smaller longer/shorter start/stop begin/end true/false success/failure succeed/fail required/optional
    mandatory/optional include/exclude always/never all/none public/private open/close safe/dangerous
    encrypt/decrypt add/remove create/delete win/lose buy/sell present/absent valid/invalid yes/no better/worse
    first/last early/late earlier/later inside/outside input/output top/bottom
    """
_CONTRARIES = tuple(pair.split("/") for pair in _PAIRS.split())


@dataclass(frozen=True, slots=True)
class Said:
    """What a text affirms and what it negates, as stems.

    `heads` are the first telling stems behind each negation, `clauses` the telling stems of each clause that has one,
    `negations` how many there are; "neither … nor" is one.
    """

    affirmed: frozenset[str]
    negated: frozenset[str]
    heads: frozenset[str]
    clauses: tuple[frozenset[str], ...]
    negations: int

    @property
    def stems(self) -> frozenset[str]:
        """All of them."""
        return self.affirmed | self.negated


class Polarity:
    """Compares what texts affirm and negate, in stems as `stems` makes them; `idle` words tell nothing."""

    def __init__(self, stems: Stems, idle: frozenset[str]) -> None:
        self._stems = stems
        self._idle = idle
        self._contraries = tuple((self._one(a), self._one(b)) for a, b in _CONTRARIES)

    def read(self, text: str) -> Said:
        """Returns what a text affirms and negates."""
        affirmed: set[str] = set()
        negated: set[str] = set()
        heads: set[str] = set()
        clauses: list[frozenset[str]] = []
        negations = 0
        for clause in _CLAUSE_END.split(_NOT_NEGATING.sub(" ", text)):
            left, head, negates = 0, False, False
            telling: set[str] = set()
            for word in _WORD.findall(clause):
                if _negates(word):
                    left, head, negates = SCOPE, True, True
                    negations += word.lower() != "nor"
                    continue
                stems = set(self._stems(word))
                (negated if left else affirmed).update(stems)
                if word.lower() not in self._idle:
                    telling |= stems
                    heads |= stems if head and left else set()
                    head = False
                left = max(0, left - 1)
            if negates:
                clauses.append(frozenset(telling))
        return Said(frozenset(affirmed), frozenset(negated), frozenset(heads), tuple(clauses), negations)

    def turned(self, claim: Said, quoted: Said) -> str:
        """Says in a few words how a claim turns around what is quoted. Empty when it does not."""
        unsaid = any(prefixed(stem, quoted.stems) for stem in claim.negated)  # "not supported" for "unsupported"
        if claim.negations > quoted.negations + unsaid:
            return "it negates what its quotes do not"
        if claim.heads & (quoted.affirmed - quoted.negated):
            return "it negates what its quotes affirm"
        if quoted.heads & (claim.affirmed - claim.negated) - quoted.affirmed:
            return "it affirms what its quotes negate"
        if not claim.negations and any(_shared(clause, claim.affirmed) for clause in quoted.clauses):
            return "it affirms what its quotes negate"
        for one, other in self._contraries:
            for mine, theirs in ((one, other), (other, one)):
                if mine in claim.stems - quoted.stems and theirs in quoted.stems - claim.stems:
                    return f"it says the contrary of its quotes ({mine}, not {theirs})"
        if _opposed(claim.affirmed, quoted.stems) or _opposed(quoted.affirmed, claim.stems):
            return "it says the contrary of its quotes"
        return ""

    def _one(self, word: str) -> str:
        return next(iter(self._stems(word)), word)


def prefixed(stem: str, others: frozenset[str]) -> bool:
    """Says whether a stem stands among others with a negating prefix, as "support" in "unsupported"."""
    return len(stem) > MIN_STEM and any(prefix + stem in others for prefix in _PREFIXES)


def _opposed(these: Iterable[str], others: frozenset[str]) -> bool:
    """Says whether one of these, which the others lack, stands among them with a negating prefix."""
    return any(stem not in others and prefixed(stem, others) for stem in these)


def _shared(clause: frozenset[str], others: frozenset[str]) -> bool:
    return bool(clause) and len(clause & others) >= SAME * len(clause)


def _negates(word: str) -> bool:
    lower = word.lower().replace("’", "'")
    return lower in _NEGATORS or lower.endswith("n't")
