"""Which column an objective wants predicted: every column gets a score with its reason; a small gap means to ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.intent_text import Token, stem
from stages.shown import plain
from stages.words import COMMON, singular, words_of

CLEAR = 0.65  # least score of a target that is taken without asking
GAP = 0.2  # by which it must be above the next
SURE = 0.8  # score of a column that is named in full, wherever that is: no other word had to be understood
NAMED = 0.3  # score from which a column counts as meant at all
MOST_LABELS = 20  # different values of a column that are looked for in the objective
_UNITS_TEXT = """
g kg mg mm cm m km usd eur gbp s sec ms min h hr pct perc percent mi lb lbs ft in sqft c f l ml
"""
_UNITS = frozenset(_UNITS_TEXT.split())
_TOLERATED_TEXT = """
column variable field value class label status rate outcome target correctly accurately precisely well quickly
reliably report yes together again now here there column only either both than above below high higher low
best most more less
"""
_TOLERATED = frozenset(_TOLERATED_TEXT.split())
_PREPOSITIONS_TEXT = """
of on in at for per by among across between about into as
"""
_PREPOSITIONS = frozenset(_PREPOSITIONS_TEXT.split())
_ENOUGH = 20  # places where a part of a name stands: a text that says it more often says no more
_JOINED = frozenset(("and", "or", ",", "vs", "versus", "plus", "both"))
_MEANING = {  # words of people → words of columns
    ("fuel", "consumption"): ("mpg",),
    ("fuel", "economy"): ("mpg",),
    ("fuel", "efficiency"): ("mpg",),
    ("gas", "mileage"): ("mpg",),
    ("mile", "per", "gallon"): ("mpg",),
    ("gender",): ("sex",),
    ("sex",): ("gender",),
    ("cost",): ("price",),
    ("expensive",): ("price",),
    ("cheap",): ("price",),
    ("worth",): ("price",),
    ("price",): ("cost",),
    ("salary",): ("income", "wage", "salary", "earn"),
    ("wage",): ("income", "wage", "salary"),
    ("earn",): ("income", "wage", "salary"),
    ("income",): ("salary", "wage"),
    ("die",): ("death", "died", "mortality", "survived"),
    ("death",): ("died", "mortality", "death"),
    ("leave",): ("churn", "attrition"),
    ("quit",): ("churn", "attrition"),
    ("cancel",): ("churn",),
    ("body", "mass", "index"): ("bmi",),
    ("live",): ("survived",),
    ("delay",): ("late",),
    ("pass",): ("result",),
}
_STEMMED = {tuple(map(stem, said)): tuple(map(stem, meant)) for said, meant in _MEANING.items()}


@dataclass(frozen=True, slots=True)
class Known:
    """A column as far as its beginning was seen.

    Attributes:
        type: one of stages.typed.Type.
        labels: its different values when they are MOST_LABELS at most and not numbers.
        levels: how many different values there are, missing ones not counted.
    """

    name: str
    type: str = "text"
    labels: tuple[str, ...] = ()
    levels: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """A column that may be the target, its score (0 to 1) and why."""

    column: str
    score: float
    why: str
    label: str | None = None


@dataclass(frozen=True, slots=True)
class _Hit:
    start: int
    end: int
    strength: float
    why: str


def score(tokens: Sequence[Token], columns: Sequence[Known], focused: bool) -> list[Scored]:
    """Returns the columns that may be meant, the best first.

    Args:
        focused: the objective has a verb such as "predict", so what stands elsewhere counts less.
    """
    hits = {column.name: _hits(tokens, column.name) for column in columns}
    longest = _without_parts(hits)
    taken = [hit for found in longest.values() for hit in found if hit.strength >= 0.9]
    scored = []
    for column in columns:
        by_name = max((_by_place(tokens, hit, focused, taken), hit.why) for hit in longest[column.name] or [_NONE])
        by_label, label = _by_label(tokens, column, focused, taken)
        if by_label > by_name[0]:
            scored.append(Scored(column.name, by_label, f'"{plain(label or "", 40)}" is one of its values', label))
        else:
            scored.append(Scored(column.name, round(by_name[0], 3), by_name[1], label))
    kept = [each for each in scored if each.score > 0]
    return sorted(kept, key=lambda each: -each.score)


_NONE = _Hit(0, 0, 0.0, "")


def clear(scored: Sequence[Scored]) -> Scored | None:
    """Returns the column that is meant without doubt, None when a person should say."""
    if not scored or scored[0].score < CLEAR:
        return None
    second = scored[1].score if len(scored) > 1 else 0.0
    return scored[0] if scored[0].score - second >= GAP - 1e-9 else None


def named_in(text: str, columns: Sequence[str]) -> list[str]:
    """Returns the columns a phrase names, longest names first: for lists of what to drop or keep."""
    folded = {column.casefold(): column for column in columns}
    if text.strip().casefold() in folded:
        return [folded[text.strip().casefold()]]
    tokens = [Token(word, stem(word), "drop") for word in words_of(text)]
    found = _without_parts({column: _hits(tokens, column) for column in columns})
    best = [column for column in columns if any(hit.strength >= 0.9 for hit in found[column])]
    return best or [column for column in columns if any(hit.strength >= 0.7 for hit in found[column])]


def _hits(tokens: Sequence[Token], name: str) -> list[_Hit]:
    """Returns where a column is named: by all its words, by them glued or shortened, by another word, by a part."""
    words = words_of(name)[:12]
    core = words[:-1] if len(words) > 1 and words[-1] in _UNITS else words
    stems = tuple(stem(word) for word in core)
    if not stems:
        return []
    found = _runs(tokens, words, stems, core)
    if not found:
        found = _meant_by_other_words(tokens, stems) + _partly(tokens, stems)
    return found


def _runs(tokens: Sequence[Token], words: Sequence[str], stems: Sequence[str], core: Sequence[str]) -> list[_Hit]:
    size, glued, found = len(stems), "".join(core), []
    full = len(words)
    for at in range(len(tokens)):
        here = tokens[at : at + size]
        if tuple(token.word for token in tokens[at : at + full]) == tuple(words):
            found.append(_Hit(at, at + full, 1.0, "the objective names it"))
        elif tuple(token.stem for token in here) == tuple(stems):
            found.append(_Hit(at, at + size, 0.98, "the objective names it"))
        elif (end := _glued_end(tokens, at, glued)) > at:
            found.append(_Hit(at, end, 0.95, "the objective names it, written apart or together"))
        elif size > 1 and len(here) == size and all(map(_shortened, core, here)):
            found.append(_Hit(at, at + size, 0.85, "its name looks like the objective's words, shortened"))
        elif _abbreviated(glued, tokens[at : at + 2]):
            found.append(_Hit(at, at + 2, 0.85, "its name looks like the objective's words, shortened"))
        elif (
            size == 1
            and len(core[0]) >= 3
            and len(tokens[at].word) > len(core[0]) + 1
            and _shortened(core[0], tokens[at])
        ):
            found.append(_Hit(at, at + 1, 0.7, f'its name looks like "{plain(tokens[at].word, 30)}", shortened'))
    return found


def _glued_end(tokens: Sequence[Token], at: int, glued: str) -> int:
    """Returns where tokens from `at` on that make the glued name end; `at` when they do not."""
    text = ""
    for end in range(at, min(at + 5, len(tokens))):
        text += tokens[end].word
        if text == glued and len(glued) > 3:
            return end + 1
        if not glued.startswith(text):
            break
    return at


def _abbreviated(glued: str, pair: Sequence[Token]) -> bool:
    """Tells whether a name such as "hmrun" or "cruns" is short for two words such as "home runs"."""
    if len(pair) < 2 or pair[0].word in COMMON or len(pair[1].word) < 3:
        return False
    head = next((head for head in (pair[1].word, singular(pair[1].word)) if glued.endswith(head)), None)
    short = glued.removesuffix(head) if head else ""
    letters = iter(pair[0].word)
    return 0 < len(short) <= 4 and short[0] == pair[0].word[0] and all(letter in letters for letter in short)


def _shortened(short: str, token: Token) -> bool:
    return token.word not in COMMON and len(short) >= 3 and (token.word.startswith(short) or token.stem == stem(short))


def _meant_by_other_words(tokens: Sequence[Token], stems: Sequence[str]) -> list[_Hit]:
    found = []
    for said, meant in _STEMMED.items():
        if not set(meant) & set(stems):
            continue
        for at in range(len(tokens)):
            if tuple(token.stem for token in tokens[at : at + len(said)]) == said:
                words = " ".join(token.word for token in tokens[at : at + len(said)])
                found.append(_Hit(at, at + len(said), 0.78, f'it may be what "{words}" means'))
    return found


def _partly(tokens: Sequence[Token], stems: Sequence[str]) -> list[_Hit]:
    if len(stems) < 2:
        return []
    found = []
    for at, token in enumerate(tokens):
        if token.stem in stems and token.word not in COMMON and len(token.word) > 2:
            share = len({each.stem for each in tokens[max(0, at - 3) : at + 4]} & set(stems)) / len(set(stems))
            head = 0.1 if token.stem == stems[-1] else 0.0
            found.append(_Hit(at, at + 1, min(0.75, 0.5 * share + head + 0.1), f'"{token.word}" is part of its name'))
        if len(found) >= _ENOUGH:
            break
    return found


def _without_parts(hits: Mapping[str, Sequence[_Hit]]) -> dict[str, list[_Hit]]:
    """Leaves out what lies inside a longer name: "length" in "sepal length" when there is such a column."""
    strong = [hit for found in hits.values() for hit in found if hit.strength >= 0.85]
    return {
        name: [hit for hit in found if not any(_inside(hit, other) for other in strong)] for name, found in hits.items()
    }


def _inside(hit: _Hit, other: _Hit) -> bool:
    covered = other.start <= hit.start and hit.end <= other.end
    longer = other.end - other.start > hit.end - hit.start
    return covered and (longer or other.strength - hit.strength > 0.1 or other.strength == 1.0 > hit.strength)


def _by_place(tokens: Sequence[Token], hit: _Hit, focused: bool, taken: Sequence[_Hit]) -> float:
    if hit.end == 0:
        return 0.0
    zone = tokens[hit.start].zone
    if zone == "target":
        place = 1.0 if not _is_modifier(tokens, hit, taken) else 0.6
        if _goes_on(tokens, hit, taken) or any(other.end == hit.start for other in taken):
            place = min(place, 0.62)  # the name is only a part of a longer noun, such as "age" in "age group"
    elif zone == "other":
        place = 0.6 if focused else 0.85
    else:
        place = 0.1
    return round(hit.strength * place, 3)


def _is_modifier(tokens: Sequence[Token], hit: _Hit, taken: Sequence[_Hit]) -> bool:
    """Tells whether it only says of what: "the price of each cut" is about the price."""
    before = [other for other in taken if other.end <= hit.start and tokens[other.start].zone == "target"]
    first = max(before, key=lambda other: other.end, default=None)
    if first is None:
        return False
    between = [token.word for token in tokens[first.end : hit.start]]
    return any(word in _PREPOSITIONS for word in between) and not any(word in _JOINED for word in between)


def _goes_on(tokens: Sequence[Token], hit: _Hit, taken: Sequence[_Hit]) -> bool:
    if hit.end >= len(tokens):
        return False
    after = tokens[hit.end]
    if after.opener or after.zone != "target" or not after.word[0].isalpha() or after.word.endswith("ly"):
        return False
    if any(other.start == hit.end for other in taken):
        return True
    return after.word not in COMMON | _TOLERATED | _PREPOSITIONS | _JOINED


def _by_label(tokens: Sequence[Token], column: Known, focused: bool, taken: Sequence[_Hit]) -> tuple[float, str | None]:
    """Returns the score of a column whose values the objective speaks of, and the value when it is one."""
    places: dict[str, float] = {}
    covered = {at for hit in taken for at in range(hit.start, hit.end)}
    for label in column.labels if column.levels > 1 else ():
        words = words_of(label)
        if not words or words in (("yes",), ("no",), ("true",), ("false",)) or len("".join(words)) < 3:
            continue
        stems = tuple(stem(word) for word in words)
        for at in range(len(tokens) - len(stems) + 1):
            here = tokens[at : at + len(stems)]
            if tuple(token.stem for token in here) == stems and not covered & set(range(at, at + len(stems))):
                weight = {"target": 0.72, "other": 0.5 if focused else 0.7}.get(here[0].zone, 0.05)
                places[label] = max(places.get(label, 0.0), weight)
    if not places:
        return 0.0, None
    best = max(places, key=lambda label: places[label])
    strength = places[best] + (0.15 if len(places) > 1 and places[best] >= 0.5 else 0.0)
    return round(strength, 3), best if len(places) == 1 else None
