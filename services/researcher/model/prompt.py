"""What a model gets to read. The wording lives in prompts/*.md; what others wrote is fenced in as data."""

import json
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from services.researcher.model.meter import estimate
from services.researcher.protocol import Evidence
from services.researcher.verbatim import UNSEEN

MAX_QUESTIONS = 6
MAX_CLAIMS = 24
MARK_BYTES = 8  # of randomness: text that was written before cannot hold the mark
_KEPT = "\n\t\u200c\u200d"  # words of some scripts need the joiners


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to a model: the rules, what to work on, and the form of the answer as a JSON schema."""

    rules: str
    task: str
    name: str
    schema: dict[str, Any]

    def tokens(self) -> int:
        """Returns about how many tokens it takes."""
        return estimate(self.rules) + estimate(self.task) + estimate(json.dumps(self.schema))


@cache
def _file(name: str) -> str:
    return Path(__file__).parent.joinpath("prompts", f"{name}.md").read_text(encoding="utf-8")


def again(problem: str) -> str:
    """Returns the words that ask for an unreadable answer once more."""
    return _file("again").replace("{problem}", problem)


def plan(objective: str, sources: Sequence[str], schema: dict[str, Any]) -> Prompt:
    """Returns the question for the parts of an objective."""
    mark = _mark()
    names = "\n".join(f"- {_line(name)}" for name in sources)
    task = f"{_fence('objective', mark, objective)}\n\nSources that will be searched:\n{names}\n"
    return Prompt(_file("plan").replace("{most}", str(MAX_QUESTIONS)), task, "plan", schema)


def synthesize(
    objective: str, questions: Sequence[str], evidence: Sequence[Evidence], room: int, schema: dict[str, Any]
) -> tuple[Prompt, int]:
    """Returns the question for claims, and how many pieces of evidence fit into `room` tokens, first ones first."""
    mark = _mark()
    rules = _file("synthesize").replace("{most}", str(MAX_CLAIMS))
    asked = "\n".join(f"{number}. {_line(question)}" for number, question in enumerate(questions, start=1))
    head = f"{_fence('objective', mark, objective)}\n\n{_fence('questions', mark, asked)}\n\n"
    left = room - Prompt(rules, head, "claims", schema).tokens()
    shown = []
    for each in evidence:
        text = _evidence(each, mark)
        left -= estimate(text)
        if left < 0:
            break
        shown.append(text)
    return Prompt(rules, head + "\n\n".join(shown), "claims", schema), len(shown)


def _evidence(each: Evidence, mark: str) -> str:
    place = " > ".join(_line(part) for part in (each.title, *each.path) if part)
    return _fence(f"evidence {each.number}", mark, f"[{place}]\n{each.text}")


def _fence(kind: str, mark: str, text: str) -> str:
    """Puts text between marks it cannot hold: the mark is random, and taken out of the text should it be there."""
    name = kind.split()[0]
    inside = seen(text).replace(mark, "")
    return f"<{name}-{mark}{kind[len(name) :]}>\n{inside}\n</{name}-{mark}>"


def seen(text: str) -> str:
    """Returns the text without what a reader does not see and orders travel in: tags, direction marks, controls."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in UNSEEN:
        return character
    return " " if character.isspace() else ""


def _line(text: str) -> str:
    return " ".join(seen(text).split())


def _mark() -> str:
    return secrets.token_hex(MARK_BYTES)
