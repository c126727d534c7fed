"""The objective → the terms worth looking for, cut from text exactly as the index cuts it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import tantivy

from services.researcher.protocol import Term

MAX_TERM = 40  # characters; longer words are in no index
MAX_TERMS = 48  # of one objective, those that tell most; a longer objective is a document of its own

# Words of English that carry no subject, and words that ask for the work rather than name what it is about.
_STOP_WORDS = """
    a about above after again all also am an and any are as at be because been before being below between both but by
    can cannot could did do does doing don down during each either else etc every few for from further get give given
    had has have having he her here hers him his how however i if in into is it its itself just let like ll may me might
    more most must my neither no nor not now of off on once one only or other ought our ours out over own per please re
    same shall she should so some such than that the their theirs them themselves then there these they this those
    through to too under until up upon us use used uses using ve very via was we were
    what whatever when where whether which while who whom
    whose why will with within without would yes yet you your yours s t d m e g
    compare describe detail details discuss elaborate explain find findings investigate mention mentioned outline
    overview report research say says show summarise summarize summary tell write
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

KEPT_WORDS = 200_000  # words whose stem is remembered, about 20 MB
# Text in which Python and tantivy agree what a word is, and its lower case: Latin-1, punctuation, arrows, signs.
_PLAIN = re.compile(r"[\x00-\xff\u2000-\u206f\u2190-\u245f\u2500-\u2bff]*")
_WORD = re.compile(r"[^\W_]+")
_GAPS = {code: " " for code in range(128) if not chr(code).isalnum()}  # twice as fast as the pattern

Counts = Callable[[Sequence[str]], Mapping[str, int]]  # stems → how many passages hold each


def _stemming() -> tantivy.TextAnalyzer:
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(MAX_TERM))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.stemmer("english"))
        .build()
    )


def _splitting() -> tantivy.TextAnalyzer:
    return tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.remove_long(MAX_TERM)).build()


def lowered(text: str) -> str:
    """Returns text in lower case, letter by letter: no letter becomes two, and a sigma is the same at a word's end."""
    return text.lower() if text.isascii() else text.replace("\u0130", "i").replace("\u03a3", "\u03c3").lower()


@dataclass(slots=True)
class Analyzer:
    """Cuts text into words and stems. Thread-safe."""

    tokenizer: tantivy.TextAnalyzer = field(default_factory=_stemming)
    _words: tantivy.TextAnalyzer = field(default_factory=_splitting)
    _known: dict[str, str] = field(default_factory=dict)  # word → stem, none for one that is too long

    def words(self, text: str) -> list[str]:
        """Returns the words as they are written."""
        return list(self._words.analyze(text))

    def stems(self, text: str) -> list[str]:
        """Returns the stem of every word.

        Plain text is looked up among the words met before: a question reads the same words in sixty passages.
        """
        if not _PLAIN.fullmatch(text):
            return list(self.tokenizer.analyze(lowered(text)))
        lower, known = text.lower(), self._known
        words = lower.translate(_GAPS).split() if lower.isascii() else _WORD.findall(lower)
        try:
            return [stem for word in words if (stem := known[word])]
        except KeyError:
            return self._learn(words)

    def _learn(self, words: Sequence[str]) -> list[str]:
        known = self._known if len(self._known) < KEPT_WORDS else {}
        for word in words:
            if word not in known:
                known[word] = "".join(self.tokenizer.analyze(word))
        self._known = known  # two threads may learn the same, and it is the same
        return [stem for word in words if (stem := known[word])]


def terms_of(objective: str, counts: Counts, passages: int, analyzer: Analyzer) -> list[Term]:
    """Returns the distinct terms of an objective in the order they are written, weighed by how rare they are.

    Stop-words are left out unless there is nothing else. Of more than MAX_TERMS the heaviest are kept. The weight is
    BM25's inverse document frequency, ln(1 + (N - n + 0.5) / (n + 0.5)): n of N passages hold the stem.
    """
    words = analyzer.words(objective)
    telling = [word for word in words if word.lower() not in STOP_WORDS] or words
    by_stem: dict[str, str] = {}
    for word in telling:
        for stem in analyzer.stems(word):
            by_stem.setdefault(stem, word)
    held = counts(tuple(by_stem))
    terms = [_term(word, stem, held.get(stem, 0), passages) for stem, word in by_stem.items()]
    kept = set(sorted(terms, key=lambda term: (-term.weight, term.stem))[:MAX_TERMS])
    return [term for term in terms if term in kept]


def _term(word: str, stem: str, count: int, passages: int) -> Term:
    weight = math.log(1 + (max(passages - count, 0) + 0.5) / (count + 0.5))
    return Term(word, stem, weight, count > 0)
