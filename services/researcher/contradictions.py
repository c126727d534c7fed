"""Findings that cannot both hold: nearly the same words with another number, or with a yes where the other says no.

Two sentences that each name what the other does not, an option or a version, speak of different things.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from conductor.v1 import researcher_pb2

from services.researcher.polarity import Polarity, Said
from services.researcher.quantities import Quantity, labels, quantities
from services.researcher.terms import STOP_WORDS, Analyzer

MAX_SENTENCES = 200  # compared with each other
MAX_FOUND = 10
ALIKE = 0.6  # Jaccard similarity of telling stems, numbers aside, from which two sentences speak of the same
SAME_WORDS = 0.8  # the same, where only a negation tells them apart
LEAST_STEMS = 3  # two shorter sentences are alike too easily
SHOWN = 160  # characters of a sentence in the detail
MOST_SUBJECT = 4  # words

# Names of options, settings and programs: `--keep-all`, max_size, server.port, maxSize, CAP_KILL.
_NAME = re.compile(
    r"(?<![\w.-])(?:--?[a-z][\w-]*|[A-Za-z]\w*(?:_\w+|\.[A-Za-z_]\w*)+|[a-z]+[A-Z]\w*|[A-Z][A-Z0-9]+)(?![\w-])"
)
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")


@dataclass(frozen=True, slots=True)
class _Sentence:
    finding: int
    text: str
    stems: frozenset[str]
    words: tuple[str, ...]
    measured: tuple[Quantity, ...]
    said: Said
    names: frozenset[str]
    labels: frozenset[str]


def contradictions(statements: Sequence[str], analyzer: Analyzer) -> list[researcher_pb2.Contradiction]:
    """Compares statements sentence by sentence; one contradiction for each pair of findings."""
    polarity = Polarity(analyzer.stems, STOP_WORDS)
    sentences = list(_sentences(statements, analyzer, polarity))[:MAX_SENTENCES]
    found: dict[tuple[int, int], researcher_pb2.Contradiction] = {}
    for one, other in combinations(sentences, 2):
        pair = one.finding, other.finding
        if one.finding == other.finding or pair in found or not _alike(one, other, ALIKE) or _apart(one, other):
            continue
        how = _disagree(one, other)
        if not how and _alike(one, other, SAME_WORDS) and polarity.turned(one.said, other.said):
            how = "One says the contrary of the other"
        if how:
            detail = f"{how}: “{_short(one.text)}” against “{_short(other.text)}”"
            found[pair] = researcher_pb2.Contradiction(
                subject=_subject(one, other), one=pair[0], other=pair[1], detail=detail
            )
            if len(found) == MAX_FOUND:
                break
    return list(found.values())


def _sentences(statements: Sequence[str], analyzer: Analyzer, polarity: Polarity) -> Iterator[_Sentence]:
    for number, statement in enumerate(statements):
        for text in _SENTENCE.split(statement):
            words = tuple(word for word in analyzer.words(text) if word.lower() not in STOP_WORDS)
            stems = frozenset(stem for word in words if not word[0].isdigit() for stem in analyzer.stems(word))
            if len(stems) >= LEAST_STEMS:
                said, names = polarity.read(text), frozenset(_NAME.findall(text))
                measured, numbered = tuple(quantities(text)), frozenset(labels(text))
                yield _Sentence(number, text, stems, words, measured, said, names, numbered)


def _alike(one: _Sentence, other: _Sentence, share: float) -> bool:
    return len(one.stems & other.stems) >= share * len(one.stems | other.stems)


def _apart(one: _Sentence, other: _Sentence) -> bool:
    """Says whether they speak of different things by name, or by number: "exit code 1" and "exit code 2"."""
    return bool(
        (one.names - other.names and other.names - one.names)
        or (one.labels - other.labels and other.labels - one.labels)
    )


def _disagree(one: _Sentence, other: _Sentence) -> str:
    """Names the two values of a unit that each sentence gives once, when they differ."""
    for unit in {each.unit for each in one.measured} & {each.unit for each in other.measured}:
        mine = {each.value for each in one.measured if each.unit == unit}
        theirs = {each.value for each in other.measured if each.unit == unit}
        if len(mine) == len(theirs) == 1 and mine != theirs:
            return f"{' '.join((*mine, unit)).strip()} or {' '.join((*theirs, unit)).strip()}"
    return ""


def _subject(one: _Sentence, other: _Sentence) -> str:
    shared = [word for word in one.words if word in other.words and not word[0].isdigit()]
    return " ".join(list(dict.fromkeys(shared))[:MOST_SUBJECT]) or " ".join(one.words[:MOST_SUBJECT])


def _short(text: str) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= SHOWN else folded[: SHOWN - 1] + "…"
