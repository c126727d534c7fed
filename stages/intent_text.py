"""The text of an objective cut into words and zones: what is to be predicted, what from, what is to be left out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stages.words import apart, singular

Zone = Literal["target", "features", "drop", "keep", "group", "time", "other"]
MAX_TEXT = 8_000  # characters of an objective that are read
_TOKEN = re.compile(r"[^\W_]+(?:[._][^\W_]+)*|[.,;:?!]")
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
_ENDINGS = ("ations", "ation", "ment", "ing", "ion", "ed", "er", "or", "al", "is", "e", "y")
_SHORTEST = 4  # letters that a stem keeps

# Words after which, up to the next such words, the text speaks of something else. The longest one that fits counts.
_OPENERS = """
target: predict; predicts; predicting; predicted; prediction of; predictor of; predictors of; predictive of;
    estimate; estimates; estimating; classify; classifying; forecast; forecasting; determine; determines;
    determining; identify; detect; detecting; guess; infer; recognise; recognize; anticipate; model;
    modelling; modeling; explain; explains; explaining; drive; drives; driving; drivers of; driver of;
    affect; affects; affecting; influence; influences; influencing; cause; causes; causes of; lead to; leads
    to; contribute to; contributes to; associated with; related to; correlated with; correlates with;
    correlate with; factors behind; behind; factors for; factors of; effect on; effects on; impact on;
    influence on; impacts; impact; responsible for; important for; matters for; matter for; matter most for;
    why; likelihood of; probability of; risk of; chance of; figure out; find out; know; tell; understand;
    increase; decrease; raise; lower
features: from; using; use; based on; given; with; knowing; by using; by means of; on the basis of; depending on;
    in terms of; effect of; effects of; impact of; influence of; role of; as features;
    as a function of; function of; from the features
drop: without; but not using; but not with; but without; without using; ignore; ignoring; exclude; excluding;
    drop; dropping; except; except for; leave
    out; leaving out; but not; do not use; don t use; not using; do not include; don t include; remove;
    removing; other than; never use
keep: use only; using only; only use; only using; based only on; only from; from only; keep only; only with;
    with only; only keep; only the columns; just use; using just; solely from; solely on
group: grouped by; group by; grouping by; groups are in; keep together rows of the same; rows of the same; the
    same; split by group
time: ordered by; order by; sorted by; split by; in order of; over time by; time column; in the order of
other: within; in under; in less than; at most; optimise; optimize; optimising; optimizing; maximise; maximize;
    minimise; minimize; maximising; maximizing; minimising; minimizing; report; and report; and show; and
    tell; show; measured by; scored by; evaluate; evaluated; positive class; treat; budget; because; so that;
    in order to; so we can; so i can; in at most; in no more than; no more than; take at most; aim for;
    target metric; as the metric; the metric
"""
_STOPS = (";", ".", "?", "!")


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the objective: as written in lower case, its stem, the zone it stands in, whether it opens one."""

    word: str
    stem: str
    zone: Zone
    opener: bool = False


def stem(word: str) -> str:
    """Returns what "survived", "survival" and "survives" share, roughly: all forms must give the same, no more."""
    base = singular(word)
    for ending in _ENDINGS:
        if base.endswith(ending) and len(base) - len(ending) >= _SHORTEST:
            base = base[: -len(ending)]
            break
    if len(base) > _SHORTEST and base[-1] == base[-2]:
        base = base[:-1]
    return base[:-1] if len(base) > _SHORTEST and base[-1] in "eyi" else base


def tokens_of(text: str) -> list[Token]:
    """Returns the words and marks of an objective, glued names split, each with its zone."""
    words = [part for token in _TOKEN.findall(apart(text[:MAX_TEXT])) for part in _split(token)]
    zones = _zones(words)
    return [Token(word, stem(word), zone, opens) for word, (zone, opens) in zip(words, zones, strict=True)]


def _split(token: str) -> list[str]:
    return [part.lower() for part in _CAMEL.findall(token)] or [token]


def _zones(words: Sequence[str]) -> list[tuple[Zone, bool]]:
    found: list[tuple[Zone, bool]] = []
    zone: Zone = "other"
    at = 0
    while at < len(words):
        size, opened = _opener(words, at)
        if opened:
            zone = _meant(opened, words, at, zone)
            found += [(zone, True)] * size
            at += size
            continue
        if words[at] in _STOPS:
            zone = "other"
        elif zone == "features" and words[at] in ("on", "to") and _of_something(words, at):
            zone = "target"  # "the effect of weight on mpg"
        found.append((zone, words[at] in _STOPS))
        at += 1
    return found


def _of_something(words: Sequence[str], at: int) -> bool:
    recent = words[max(0, at - 8) : at]
    return any(noun in recent for noun in ("effect", "effects", "impact", "influence", "role")) and words[at] == "on"


def _openers(text: str) -> dict[tuple[str, ...], Zone]:
    found: dict[tuple[str, ...], Zone] = {}
    for zone, phrases in re.findall(r"^(\w+): ((?:.+\n)(?: +.+\n)*)", text, re.MULTILINE):
        found.update({tuple(phrase.split()): zone for phrase in phrases.split(";")})
    return found


_BY_WORDS = _openers(_OPENERS)
_LONGEST = 5  # words of an opener


def _opener(words: Sequence[str], at: int) -> tuple[int, Zone | None]:
    for size in range(min(_LONGEST, len(words) - at), 0, -1):
        zone = _BY_WORDS.get(tuple(words[at : at + size]))
        if zone:
            return size, zone
    return 0, None


def _meant(opened: Zone, words: Sequence[str], at: int, before: Zone) -> Zone:
    """Returns the zone that an opener opens here: "with" may end a list of what is left out, and so may "by"."""
    if words[at] == "model" and at and words[at - 1] in ("a", "the", "this", "good", "best", "simple"):
        return before  # the noun
    if words[at] == "the" and before not in ("other",):
        return before
    return opened


def phrases_in(tokens: Sequence[Token], zone: Zone) -> list[str]:
    """Returns what stands in a zone as a list of words: "age, sex and id" gives three."""
    found: list[str] = []
    part: list[str] = []
    for token in [*tokens, Token(",", ",", zone)]:
        if token.zone == zone and not token.opener and token.word not in (",", "and", "or", "the", "column", "columns"):
            part.append(token.word)
        elif part:
            found.append(" ".join(part))
            part = []
    return found
