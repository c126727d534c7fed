"""The objective → the terms worth looking for."""

from services.researcher.index import Analyzer, Index, Term

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


def terms_of(objective: str, index: Index, analyzer: Analyzer) -> list[Term]:
    """Returns the distinct terms of an objective, weighed by the index, in the order they are written.

    Stop-words are left out unless there is nothing else. Of more than MAX_TERMS the heaviest are kept.
    """
    words = analyzer.words(objective)
    telling = [word for word in words if word.lower() not in STOP_WORDS] or words
    by_stem: dict[str, str] = {}
    for word in telling:
        for stem in analyzer.stems(word):
            by_stem.setdefault(stem, word)
    terms = [index.weigh(word, stem) for stem, word in by_stem.items()]
    kept = set(sorted(terms, key=lambda term: (-term.weight, term.stem))[:MAX_TERMS])
    return [term for term in terms if term in kept]
