"""Names and identifiers in a claim that nothing it is based on holds. Latin, Greek and Cyrillic capitals are seen."""

import re
from collections.abc import Callable, Iterable

Stems = Callable[[str], Iterable[str]]

_WORD = re.compile(r"_*[^\W_]\w*(?:[._'’\-/+#@:]+\w+)*(?:\+\+|#)?")
_SPLIT = re.compile(r"[._'’\-/+#@:]+")
_POSSESSIVE = re.compile(r"['’]s$|['’]$")
_OPENS = re.compile(r"(?:^|[.!?]\s+|[:\n]\s*)[\"'“(]*$")
_CODE = re.compile(r"\w[_/@.]\w|[a-z][A-Z]|\d[A-Za-z]|[A-Za-z]\d|^_")
_ABBREVIATED = ("e.g", "i.e", "a.m", "p.m", "and/or", "his/her", "he/she")


def unfounded(claim: str, basis: str, known: str, stems: Stems, idle: frozenset[str]) -> str:
    """Returns the first name of a claim that its basis does not hold. Empty when there is none.

    Args:
        claim: what is said.
        basis: the quotes, and the title and headings they stand under.
        known: all text at hand. A word that it holds in small letters is no name because a sentence begins with it.
        stems: cuts words into stems.
        idle: words that are no name wherever they stand.
    """
    held = {token.lower() for token in _tokens(basis)}
    held |= {stem for token in held for stem in stems(token)}
    for match in _WORD.finditer(claim):
        token = _POSSESSIVE.sub("", match[0])
        if token.lower() in _ABBREVIATED or token.lower() in idle or not _is_name(token):
            continue
        if _held(token, held, stems, idle):
            continue
        if _OPENS.search(claim[: match.start()]) and not _CODE.search(token) and _is_plain(token, known):
            continue
        return token
    return ""


def _tokens(text: str) -> Iterable[str]:
    for match in _WORD.finditer(text):
        token = _POSSESSIVE.sub("", match[0])
        yield token
        yield from _SPLIT.split(token)


def _is_name(token: str) -> bool:
    return any(character.isupper() for character in token) or _CODE.search(token) is not None


def _held(token: str, held: set[str], stems: Stems, idle: frozenset[str]) -> bool:
    """Says whether a token stands in the basis, whole or, when it is joined from several words, all its parts."""
    lower = token.lower()
    if lower in held or (not _CODE.search(token) and any(stem in held for stem in _only(stems(lower)))):
        return True
    pieces = [piece for piece in _SPLIT.split(lower) if piece]
    return len(pieces) > 1 and all(
        piece in held or piece in idle or any(stem in held for stem in _only(stems(piece))) for piece in pieces
    )


def _only(stems: Iterable[str]) -> tuple[str, ...]:
    """The stem of one word; none of what falls apart into several."""
    all_of_them = tuple(stems)
    return all_of_them if len(all_of_them) == 1 else ()


def _is_plain(token: str, known: str) -> bool:
    return re.search(rf"\b{re.escape(token.lower())}", known) is not None
