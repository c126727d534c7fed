"""Which tables are at hand, and which of them an objective speaks of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.contract import Failed
from stages.places import Places
from stages.reading import Look, look
from stages.shown import listed, plain
from stages.words import files_named, is_run, telling, words_of

MAX_LOOKED = 60  # files that are opened to see their columns
NAMED = 10.0  # score of a file whose full name stands in the objective
NAME = 3.0  # of one whose name's words do
COLUMN = 1.0  # of each column the objective names
CLEAR = 2.0  # a candidate is clear when its score is that much above the next


@dataclass(frozen=True, slots=True)
class Candidate:
    """A table at hand.

    Attributes:
        why: what of the objective it matches, in words; or why it cannot be read.
        look: its beginning; None when it was not opened or cannot be read.
    """

    path: str
    bytes: int
    score: float
    why: str
    look: Look | None

    def to_json(self) -> dict[str, Any]:
        """Returns it for the result, short."""
        seen = self.look
        columns = [plain(name, 60) for name in seen.names[:30]] if seen else []
        sample = [[plain(cell, 40) for cell in row[:12]] for row in seen.rows[:2]] if seen else []
        rows = seen.rows_estimate if seen else None
        described = {"path": self.path, "rows_estimate": rows, "columns": columns, "bytes": self.bytes}
        return {**described, "score": round(self.score, 3), "why": self.why, "sample": sample}


def candidates(places: Places, objective: str, most_looked: int = MAX_LOOKED) -> list[Candidate]:
    """Returns the tables at hand, the likeliest first. Only the `most_looked` whose names fit best are opened."""
    named = [name.casefold() for name in files_named(objective)]
    asked = telling(objective)
    at_hand = places.names()
    by_name = {name: _name_score(name, named, asked) for name in at_hand}
    order = sorted(at_hand, key=lambda name: (-by_name[name][0], name))
    found = [
        _candidate(name, at_hand[name], by_name[name], asked if rank < most_looked else None)
        for rank, name in enumerate(order)
    ]
    return sorted(found, key=lambda candidate: (-candidate.score, candidate.path))


def clear_choice(found: Sequence[Candidate]) -> Candidate | None:
    """Returns the table the objective speaks of, when there is no doubt; None when a person should choose."""
    readable = [candidate for candidate in found if candidate.look or candidate.score >= NAMED]
    if not readable or readable[0].score <= 0:
        return None
    second = readable[1].score if len(readable) > 1 else 0.0
    return readable[0] if readable[0].score - second >= CLEAR else None


def _name_score(name: str, named: Sequence[str], asked: Sequence[str]) -> tuple[float, str]:
    folded = name.casefold()
    if folded in named:
        return NAMED + 1, "the objective names this file"
    if PurePosixPath(folded).name in {PurePosixPath(path).name for path in named}:
        return NAMED, "the objective names a file of this name"
    stem = telling(PurePosixPath(name).name.split(".")[0])
    if is_run(stem, asked):
        return NAME, "the objective has the words of its name"
    shared = set(stem) & set(asked)
    return (
        (NAME * len(shared) / len(set(stem)) / 2, f"its name shares {listed(sorted(shared))}") if shared else (0.0, "")
    )


def _candidate(name: str, path: Path, by_name: tuple[float, str], asked: Sequence[str] | None) -> Candidate:
    score, why = by_name
    size = path.lstat().st_size
    if asked is None:
        return Candidate(name, size, score, why or "nothing in its name", None)
    try:
        seen = look(path)
    except (Failed, OSError) as error:
        return Candidate(name, size, min(score, 0.0) if score < NAMED else score, plain(str(error), 200), None)
    hits = [column for column in seen.names if is_run(telling(column) or words_of(column), asked)]
    reasons = [why] if why else []
    if hits:
        reasons.append(f"it has {listed(hits)}, which the objective names")
    total = score + COLUMN * min(4, len(hits))
    return Candidate(name, size, total, " and ".join(reasons) or "nothing of the objective is in it", seen)
