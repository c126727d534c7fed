"""An objective → the parts that are looked for one by one. Without a model: by its own marks, never by guessing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.researcher.terms import STOP_WORDS, Analyzer

MAX_PARTS = 6

_ASKS = r"(?:what|when|where|which|who|whom|whose|why|how)"
# A question ends; a paragraph; a list item begins; another question follows a comma or a semicolon.
_END = re.compile(
    rf"(?<=[?？])\s+|\n\s*\n|\n\s*(?=(?:[-*•]|\d{{1,2}}[.)])\s)|[;,]\s+(?=(?:and|or)\s+{_ASKS}\b)|;\s+(?={_ASKS}\b)",
    re.I,
)
_MARK = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+|^(?:and|or)\s+", re.I)
_POINTS_BACK = re.compile(r"\b(?:it|its|they|their|them|this|that|these|those|he|she|his|her|one|ones)\b", re.I)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an objective. `about` is what it refers back to; empty when it stands by itself."""

    text: str
    about: str = ""

    @property
    def query(self) -> str:
        """What is searched for."""
        return f"{self.text} {self.about}" if self.about else self.text


def split(objective: str, analyzer: Analyzer) -> tuple[Part, ...]:
    """Returns the questions and list items of an objective, at most MAX_PARTS; the whole of it when it has no two."""
    pieces = [_MARK.sub("", piece).strip() for piece in _END.split(objective)]
    telling = [piece for piece in pieces if _tells(piece, analyzer)]
    if not 2 <= len(telling) <= MAX_PARTS:
        return (Part(objective.strip()),)
    return parts_of(telling)


def parts_of(texts: Sequence[str]) -> tuple[Part, ...]:
    """Returns parts, each with what came before it when it points back."""
    parts: list[Part] = []
    for text in texts[:MAX_PARTS]:
        before = parts[-1] if parts else None
        about = before.query if before is not None and _POINTS_BACK.search(text) else ""
        parts.append(Part(text, about))
    return tuple(parts)


def _tells(piece: str, analyzer: Analyzer) -> bool:
    return any(word.lower() not in STOP_WORDS for word in analyzer.words(piece))
