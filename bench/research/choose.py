"""How questions.tsv was chosen, and what unanswerable.tsv was picked from by hand.

Run by `python -m bench.research.choose`, never by the evaluation.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.research.corpus import QUESTIONS, build, every_question
from bench.research.headings import Asked, shingles, words
from services.researcher.terms import STOP_WORDS

MOST_OF_PACKAGE = 60  # questions, so that none decides the figures
NEARLY_VERBATIM = 0.75  # of a question's words in a row
LEAST_TELLING = 2  # words that are no stop words
TEXTS = (".html", ".md", ".rst", ".txt")


def main() -> None:
    """Writes questions.tsv and prints the questions of the packages outside of the corpus."""
    docs = build().folder
    everything = " ".join(" ".join(_words_of(path)) for path in sorted(docs.rglob("*")) if path.suffix in TEXTS)
    taken: Counter[str] = Counter()
    lines, seen = [], set()
    for name, inside, each in sorted(_good(), key=lambda found: hashlib.sha256(found[2].question.encode()).digest()):
        if each.question in seen or f" {' '.join(each.answer[:40])}"[:80] in seen:
            continue
        seen |= {each.question, f" {' '.join(each.answer[:40])}"[:80]}
        if not inside:
            print(f"{name}\t{each.question}")
        elif taken[name] < MOST_OF_PACKAGE and not _given_away(each.question, everything):
            taken[name] += 1
            lines.append(f"{name}\t{each.question}\n")
    QUESTIONS.write_text("".join(sorted(lines)), "utf-8")


def _good() -> Iterator[tuple[str, bool, Asked]]:
    for package, each in every_question():
        telling = [word for word in words(each.question) if word not in STOP_WORDS]
        if len(telling) >= LEAST_TELLING and len(shingles(each.answer)) >= LEAST_TELLING:
            yield package.name, bool(package.take), each


def _words_of(path: Path) -> tuple[str, ...]:
    return words(re.sub(r"<[^>]*>", " ", path.read_text("utf-8", "replace")))


def _given_away(question: str, everything: str) -> bool:
    """Says whether most of a question's words stand in a row somewhere."""
    asked = words(question)
    run = max(4, math.ceil(NEARLY_VERBATIM * len(asked)))
    return any(" ".join(asked[start : start + run]) in everything for start in range(len(asked) - run + 1))


if __name__ == "__main__":
    main()
