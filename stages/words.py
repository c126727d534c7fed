"""Words: of what people write, and of the names of columns, glued or not."""

import re
from collections.abc import Sequence
from functools import lru_cache

_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
_JOINT = re.compile(  # where a script without blanks between words meets letters of another
    r"(?<=[\u2e80-\u9fff\uac00-\ud7af])(?=[0-9A-Za-z_])|(?<=[0-9A-Za-z_])(?=[\u2e80-\u9fff\uac00-\ud7af])"
)
_FILE = re.compile(
    r"[\w./\\~:-]+\.(?:csv|tsv|tab|txt|xlsx?|xlsm|jsonl|ndjson|json|parquet|pq)(?:\.(?:gz|bz2|xz|zip))?\b", re.I
)
_IRREGULAR = {"children": "child", "people": "person", "men": "man", "women": "woman", "mice": "mouse", "feet": "foot"}
_COMMON_TEXT = """
a an the of in on at to for by from with without and or is are was were be been it its this that these those i
we you my our their his her which what who whom whose how when where why do does did can could will would
should may might please want need like help me us let if whether not no as each every any all some using use
based given data dataset table file csv
"""
COMMON = frozenset(_COMMON_TEXT.split())


@lru_cache(maxsize=20_000)
def words_of(text: str) -> tuple[str, ...]:
    """Returns the words of a text or of a name, in lower case and singular: "MedHouseVal" and "med_house_val" alike."""
    return tuple(singular(part.lower()) for part in _PARTS.findall(apart(text)))


def apart(text: str) -> str:
    """Returns the text with blanks between the letters of such scripts and others: "预测species" is two words."""
    return _JOINT.sub(" ", text)


def singular(word: str) -> str:
    """Returns a word without the plural's ending, roughly: the same for both numbers is all that is asked."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def telling(text: str) -> tuple[str, ...]:
    """Returns the words of a text that say something, without "the", "of" and their like."""
    return tuple(word for word in words_of(text) if word not in COMMON)


def is_run(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Tells whether the words of one stand in the other, one after another."""
    size = len(part)
    return size > 0 and any(tuple(whole[at : at + size]) == tuple(part) for at in range(len(whole) - size + 1))


def files_named(objective: str) -> list[str]:
    """Returns the names of files in a text, as they stand there."""
    return [match.strip(".:") for match in _FILE.findall(objective[:20_000])]
