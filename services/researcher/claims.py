"""What a model claims → the claims that its quotes bear out, each with the exact places of its quotes. No model here.

A claim is kept when at least one of its quotes stands verbatim in the evidence it names, when the numbers, dates, names
and negations of the claim stand in its quotes, and when it shares its words with them. This proves where a claim
comes from, not that it is true: words put together anew, "A calls B" for "B calls A", pass. English is read best; in
other languages fewer names and no negations are seen.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.researcher.documents import Span
from services.researcher.names import Stems, unfounded
from services.researcher.orders import asks_about_orders, commands_reader
from services.researcher.polarity import Polarity, prefixed
from services.researcher.protocol import Claim, Evidence
from services.researcher.quantities import Date, Quantity, borne_out, dates, quantities, units
from services.researcher.terms import STOP_WORDS
from services.researcher.verbatim import UNSEEN, Folded, find, fold, sentence

MAX_CLAIM = 600  # characters; a claim is a sentence
MAX_QUOTE = 800  # characters; nobody checks a longer one at a glance
MIN_QUOTE_WORDS = 2
MAX_QUOTES = 6  # of one claim
MIN_SHARE = 0.6  # of a claim's telling stems must stand in its quotes or in the headings above them
SHOWN = 80  # characters of a claim or quote repeated in a reason

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_AMOUNTS = re.compile(
    r"\b(?:half|halves|twice|thrice|doubl(?:e[ds]?|ing)|tripl(?:e[ds]?|ing)|quarter|dozens?|hundreds?|thousands?|millions?"
    r"|billions?|trillions?|majority|minority|(?:two|three)-thirds|tenfold)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quoted:
    """A quote that stands in a piece of evidence: its number, and [start, end) in code points of Evidence.text."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A claim its quotes bear out. `text` is free of characters nobody sees, its white space folded."""

    text: str
    question: int
    quotes: tuple[Quoted, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A claim nothing bears out, and why, in one sentence. `text` is its beginning, fit to be shown."""

    claim: Claim
    text: str
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the claims, in their order."""

    kept: tuple[Kept, ...]
    dropped: tuple[Dropped, ...]


def verify(claims: Sequence[Claim], evidence: Sequence[Evidence], objective: str, stems: Stems) -> Verdict:
    """Checks claims against the evidence they were made from.

    Args:
        claims: as a model made them; anything may be in them.
        evidence: what the model was given.
        objective: what was asked; it bears nothing out.
        stems: cuts text into stems, as the index does.
    """
    check = _Check(evidence, objective, stems)
    kept: dict[tuple[str, tuple[Quoted, ...]], Kept] = {}
    dropped = []
    for claim in claims:
        try:
            found = check(claim)
        except _Unborne as reason:
            dropped.append(Dropped(claim, _short(claim.text), str(reason)))
        else:
            kept.setdefault((found.text.lower(), found.quotes), found)
    return Verdict(tuple(kept.values()), tuple(dropped))


class _Unborne(Exception):
    """Nothing bears a claim out."""


@dataclass(frozen=True, slots=True)
class _Piece:
    evidence: Evidence
    folded: Folded
    above: str  # the title and headings it stands under

    def around(self, quoted: Quoted) -> tuple[str, Span]:
        """Returns the sentences a quote stands in, and its place in them."""
        start, end = sentence(self.evidence.text, (quoted.start, quoted.end))
        return self.evidence.text[start:end], (quoted.start - start, quoted.end - start)


class _Check:
    def __init__(self, evidence: Sequence[Evidence], objective: str, stems: Stems) -> None:
        self._pieces: Mapping[int, _Piece] = {
            each.number: _Piece(each, fold(each.text), "\n".join((each.title, *each.path))) for each in evidence
        }
        self._known = _composed((objective, *(each.text for each in evidence)))
        self._orders_wanted = asks_about_orders(objective)
        self._stems = stems
        self._polarity = Polarity(stems, STOP_WORDS)

    def __call__(self, claim: Claim) -> Kept:
        text = _clean(claim.text)
        if not text or len(text) > MAX_CLAIM:
            raise _Unborne(f"A claim of {len(text)} characters is no sentence.")
        if not self._orders_wanted and commands_reader(text):
            raise _Unborne(f"“{_short(text)}” gives an order or speaks of one: what is read is never followed.")
        quotes = self._quotes(claim, text)
        self._bear(text, quotes)
        return Kept(text, claim.question, quotes)

    def _quotes(self, claim: Claim, text: str) -> tuple[Quoted, ...]:
        """Returns where the claim's quotes stand. Raises _Unborne when none does."""
        found: list[Quoted] = []
        problems = []
        for number, quote in claim.quotes:
            try:
                found.append(self._quoted(number, quote))
            except _Unborne as problem:
                problems.append(str(problem))
        if not found:
            why = problems[0] if problems else "it names no quote."
            raise _Unborne(f"“{_short(text)}”: {why}")
        return tuple(dict.fromkeys(found))[:MAX_QUOTES]

    def _quoted(self, number: int, quote: str) -> Quoted:
        piece = self._pieces.get(number)
        if piece is None:
            raise _Unborne("there is no evidence of the number it names.")
        span = find(quote, piece.folded)
        if span is None:
            raise _Unborne(f"its quote “{_short(quote)}” does not stand in evidence {number}.")
        verbatim = piece.evidence.text[span[0] : span[1]]
        if len(_words(verbatim)) < MIN_QUOTE_WORDS or len(verbatim) > MAX_QUOTE:
            raise _Unborne(f"its quote “{_short(quote)}” is too short or too long to bear anything out.")
        quoted = Quoted(number, *span)
        if not self._orders_wanted and commands_reader(piece.around(quoted)[0]):
            raise _Unborne(f"its quote “{_short(quote)}” is an order to the reader, not evidence.")
        return quoted

    def _bear(self, text: str, quotes: Sequence[Quoted]) -> None:
        """Raises _Unborne when the quotes do not hold what the claim says."""
        pieces = [self._pieces[quoted.number] for quoted in quotes]
        verbatim = _composed(
            piece.evidence.text[quoted.start : quoted.end] for piece, quoted in zip(pieces, quotes, strict=True)
        )
        above = _composed(piece.above for piece in pieces)
        sentences = [piece.around(quoted) for piece, quoted in zip(pieces, quotes, strict=True)]
        missing = self._missing(text, sentences, verbatim, above)
        if missing:
            raise _Unborne(f"“{_short(text)}”: its quotes do not say “{_short(missing)}”.")
        if self._share(text, verbatim, above) < MIN_SHARE:
            raise _Unborne(f"“{_short(text)}” shares too little with its quotes.")
        whole = _composed(around for around, _ in sentences)
        if _same(text, whole):
            return
        turned = self._polarity.turned(self._polarity.read(text), self._polarity.read(whole))
        if turned:
            raise _Unborne(f"“{_short(text)}”: {turned}.")

    def _missing(self, text: str, sentences: Sequence[tuple[str, Span]], verbatim: str, above: str) -> str:
        """Returns the first date, number, amount or name of the claim that its quotes lack."""
        quoted_dates = [each for around, span in sentences for each in dates(around) if _inside(each.span, span)]
        claimed_dates = dates(text)
        for date in claimed_dates:
            if not any(date.within(each) for each in quoted_dates):
                return text[slice(*date.span)]
        numbers = [each for around, span in sentences for each in quantities(around) if _inside(each.span, span)]
        named = units(verbatim) | units(above)
        for number in quantities(text):
            told = any(_inside(number.span, date.span) for date in claimed_dates)
            if told or _is_article(number.value, text[slice(*number.span)]):
                continue
            if not borne_out(number, numbers, named):
                return text[slice(*number.span)]
        held = set(self._stems(verbatim))
        for amount in _AMOUNTS.finditer(text):
            if not held.issuperset(self._stems(amount[0])) and not _counted(amount.span(), quantities(text)):
                return amount[0]
        return unfounded(_without(text, claimed_dates), f"{verbatim}\n{above}", self._known, self._stems, STOP_WORDS)

    def _share(self, text: str, verbatim: str, above: str) -> float:
        quoted = self._telling(verbatim)
        claimed = self._telling(text)
        claimed = claimed.difference(*(self._stems(text[slice(*each.span)]) for each in quantities(text))) or claimed
        if not any(stem in quoted or prefixed(stem, quoted) for stem in claimed):
            return 0.0
        basis = quoted | self._telling(above)
        return sum(stem in basis or prefixed(stem, quoted) for stem in claimed) / len(claimed)

    def _telling(self, text: str) -> frozenset[str]:
        """Returns the stems that tell something; of scripts without spaces, pairs of characters."""
        words = [word for word in _words(text) if word.lower() not in STOP_WORDS]
        found: set[str] = set()
        for word in words:
            if _CJK.search(word):
                found.update(word[place : place + 2] for place in range(max(1, len(word) - 1)))
            else:
                found.update(self._stems(word))
        return frozenset(found)


def _words(text: str) -> list[str]:
    """Returns the words of a text; a run of a script without spaces counts as a word for every two characters."""
    found: list[str] = []
    for word in re.findall(r"\w+", text):
        found += [word[place : place + 2] for place in range(0, len(word), 2)] if _CJK.search(word) else [word]
    return found


def _inside(span: Span, outer: Span) -> bool:
    return outer[0] <= span[0] and span[1] <= outer[1]


def _same(text: str, other: str) -> bool:
    """Says whether a claim repeats whole sentences word for word."""
    return fold(text).text.strip(" .") == fold(other).text.strip(" .")


def _is_article(value: str, written: str) -> bool:
    """Says whether a "one" is no number: one of them, the one that."""
    return value == "1" and written.lower().startswith("one")


def _counted(span: Span, numbers: Iterable[Quantity]) -> bool:
    """Says whether a word such as million is part of a number, which is checked as such."""
    return any(_inside(span, number.span) for number in numbers)


def _without(text: str, found: Iterable[Date]) -> str:
    """Returns the text without its dates: the name of a month is none of somebody."""
    for date in sorted(found, key=lambda each: -each.span[0]):
        text = text[: date.span[0]] + "," + text[date.span[1] :]
    return text


def _clean(text: str) -> str:
    seen = (c if c.isspace() or unicodedata.category(c) not in UNSEEN else "" for c in text)
    return " ".join(_composed(("".join(seen),)).split())


def _composed(texts: Iterable[str]) -> str:
    """Joins texts, each once, letters and their accents as one character each, as stems are cut."""
    return unicodedata.normalize("NFC", "\n".join(dict.fromkeys(texts)))


def _short(text: str) -> str:
    text = _clean(text)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
