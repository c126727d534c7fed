"""Finds a quote in a text as exactly as people read it, and gives its exact place.

White space is folded, typographic quotes, dashes and dots count as plain ones, marks of emphasis and characters nobody
sees do not count. Letters, digits and their case count. What is found is a span of the text itself, so that what is
cited is verbatim whatever was tolerated in finding it.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from services.researcher.documents import Span

_PLAIN = {
    **dict.fromkeys("“”„‟«»″＂", '"'),
    **dict.fromkeys("‘’‚‛′＇", "'"),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **{"…": "...", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"},
}
_EMPHASIS = "*`"
UNSEEN = ("Cc", "Cf", "Co", "Cs", "Cn")  # categories of characters that a reader does not see
_WITHIN_NUMBER = ".,:/"
_WRAPPED = " \"'.-"  # around a quote: its own quotation marks and signs of omission
_SENTENCE_END = re.compile(
    r"(?:(?<=[^\d\s][.!?…])|(?<=\S\d[.!?…]))[\"'”’)\]*_`]*\s+(?=[^a-z\s])|(?<=[。！？])"
    r"|\n(?:[ \t\r]*\n)+|\n(?=[ \t]*(?:[-*+•|#]|\d{1,3}[.)])[ \t]?)"
)


@dataclass(frozen=True, slots=True)
class Folded:
    """A text as it is compared, and for each of its characters the place it comes from."""

    text: str
    places: tuple[int, ...]


def fold(text: str) -> Folded:
    """Returns a text as quotes are compared with it."""
    characters: list[str] = []
    places: list[int] = []
    visible = [(place, character) for place, character in enumerate(text) if _seen(character)]
    for index, (place, character) in enumerate(visible):
        if character.isspace():
            plain = "" if characters and characters[-1] == " " else " "
        elif character in _EMPHASIS and not _between_words(visible, index):
            plain = ""
        elif character in _PLAIN:
            plain = _PLAIN[character]
        else:
            plain = character if character.isascii() else unicodedata.normalize("NFD", character)
        characters += plain
        places += [place] * len(plain)
    return Folded("".join(characters), tuple(places))


def _seen(character: str) -> bool:
    if character.isascii():
        return character.isprintable() or character.isspace()
    return character.isspace() or unicodedata.category(character) not in UNSEEN


def _between_words(visible: Sequence[tuple[int, str]], index: int) -> bool:
    """Says whether a character stands between letters or digits, as the star of 2*3 does."""
    return 0 < index < len(visible) - 1 and visible[index - 1][1].isalnum() and visible[index + 1][1].isalnum()


def find(quote: str, folded: Folded) -> Span | None:
    """Returns where a quote stands in a text, in code points; whole words and numbers only. None: it does not.

    Args:
        quote: as a model or a person wrote it.
        folded: fold() of the text it is said to stand in.
    """
    wanted = fold(quote).text.strip()
    for each in dict.fromkeys((wanted, wanted.strip(_WRAPPED))):
        start = folded.text.find(each) if each else -1
        while start >= 0:
            if _whole(folded.text, start, start + len(each)):
                return folded.places[start], folded.places[start + len(each) - 1] + 1
            start = folded.text.find(each, start + 1)
    return None


def _whole(text: str, start: int, end: int) -> bool:
    """Says whether a piece of folded text cuts no letter, no word and no number in two."""
    before, behind = text[:start][-2:], text[end : end + 2]
    first, last = text[start], text[end - 1]
    if unicodedata.combining(first) or (behind and unicodedata.combining(behind[0])):
        return False
    if before and _wordy(before[-1]) and _wordy(first):
        return False
    if behind and _wordy(last) and _wordy(behind[0]):
        return False
    if first.isdigit() and before and (before[-1] == "-" or (before[-1] in _WITHIN_NUMBER and before[0].isdigit())):
        return False
    if last.isdigit() and behind:
        return not (behind[0] == "%" or (behind[0] in _WITHIN_NUMBER and behind[1:].isdigit()))
    return True


def _wordy(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.combining(character) > 0


def sentence(text: str, span: Span) -> Span:
    """Returns the sentences, list items or rows that a span stands in, whole: a "not" before a quote belongs to it."""
    start, end = 0, len(text)
    for mark in _SENTENCE_END.finditer(text):
        if mark.end() <= span[0]:
            start = mark.end()
        elif mark.start() >= span[1]:
            end = mark.start()
            break
    return start, end
