"""Text → words and stems: what the index holds, and what a question's words are looked up as.

The index holds words in lower case, not stems: to stem while indexing takes as long as all the rest of it. A question's
stem is widened to the words of the index that share it; a few words of a question are stemmed, not millions of a text.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import tantivy

from services.researcher.documents import Heading
from services.researcher.terms import MAX_TERM, Analyzer

MAX_FORMS = 12  # words of the index one stem is widened to, the commonest
LEAST_SCANNED = 5  # letters of a stem from which all words that begin with it are looked through; fewer begin too many

# What a short stem is tried with, from the endings that the English stemmer takes off.
_ENDINGS = """
    able ably al ally als ance ate ated ates ation ations ative ator ators bed bing d ded der ding e ed ely
    ement ence ent er ered ers es est ful fully ged ger ging ial ible ic ical ication ics ie ied ier ies ily
    iness ing ings ion ions ious is ist ity ive ize ized izes izing l led ler less ling ly med ment ments ming
    n ned ner ness ning ous ped per ping r red ring s sed sing ted ter ting tings ved ving y ying z zing
"""
_ENDINGS_OF_SHORT = tuple(_ENDINGS.split())


def above_text(title: str, above: Iterable[Heading]) -> str:
    """Returns what stands above a place: the document's title and the headings."""
    return "\n".join((title, *(heading.text for heading in above)))


def indexed_words() -> tantivy.TextAnalyzer:
    """Returns the analyzer of the index: it cuts text as `terms.Analyzer` does, and leaves the words whole.

    Text comes to it `lowered`: for a whole text at once that is cheaper than word by word.
    """
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    return builder.filter(tantivy.Filter.remove_long(MAX_TERM)).build()


Prefixed = Callable[[str], Iterable[tuple[str, int]]]  # a prefix → the words of the index that begin so, with counts
Counted = Callable[[str], int]  # a word → how many passages hold it


def forms(stem: str, analyzer: Analyzer, prefixed: Prefixed, counted: Counted) -> list[tuple[str, int]]:
    """Returns the commonest words that have the stem, with their counts, in a fixed order."""
    found: dict[str, int] = {}
    for word, count in _candidates(stem, prefixed, counted):
        if count > found.get(word, 0):
            found[word] = count
    ranked = sorted(found.items(), key=lambda each: (-each[1], each[0]))
    same = ((word, count) for word, count in ranked if analyzer.stems(word) == [stem])
    return list(islice(same, MAX_FORMS))


def _candidates(stem: str, prefixed: Prefixed, counted: Counted) -> Iterator[tuple[str, int]]:
    beginning = _beginning(stem)
    endings: Iterable[str] = _ENDINGS_OF_SHORT
    if len(beginning) >= LEAST_SCANNED:
        yield from prefixed(beginning)
        endings = ("ing", "ings") if stem.endswith("e") else ()
        beginning = stem
    yield stem, counted(stem)
    for begins in {beginning, stem.removesuffix("e")}:
        for ending in endings:
            yield begins + ending, counted(begins + ending)
    if stem.endswith("ie"):  # die: dying
        yield stem[:-2] + "ying", counted(stem[:-2] + "ying")


def _beginning(stem: str) -> str:
    """Returns what all words of a stem begin with: `happi` ends for `happy`, `possibl` for `possibility`."""
    return stem[:-1] if stem.endswith(("i", "bl")) else stem
