"""PROFILE_DATA: what every column holds, what is odd about the table, and whether the target can be predicted.

`python -m stages.profile_data ENVELOPE.json`, see stages/contract.py. Reads what PARSE_INTENT and DATA_SOURCE left.
Edits: target, task, positive_class, spellings, roles.<column>, dates.<column>, fractions.<column>.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stages.choices import Choices, bad
from stages.contract import MAX_ISSUES, Artifact, Envelope, Failed, Progress, Result, Room, main
from stages.leaks import MANY_COLUMNS, SAMPLE, SAMPLE_OF_MANY, Judge, Strength
from stages.pictures import of_columns, of_missing, of_target
from stages.rows import copies, group_of, ordinary
from stages.shown import nearest, plain
from stages.survey import Survey, Table
from stages.targets import TASKS, Target, Unsure, settle
from stages.told_of_profile import SPELLINGS, actions, column, issues, rescue, summary
from stages.wording import counted, quoted, several

DRAWN = 8  # columns that get a picture
OF_TARGET = (  # another target may help
    "TARGET_NOT_FOUND",
    "TARGET_ALL_MISSING",
    "SINGLE_CLASS_TARGET",
    "TARGET_UNIQUE_PER_ROW",
    "TOO_FEW_ROWS",
    "NO_FEATURES",
)
DRAWN_ROLES = ("NUMERIC", "CATEGORY", "BOOL", "DATETIME")


def work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    """Does the stage's work. Raises Failed, code as in docs/stages.md."""
    intent, source = room.result_of("PARSE_INTENT"), room.result_of("DATA_SOURCE")
    table = Table(room.of("DATA_SOURCE", "data.parquet"), source)
    try:
        return _work(envelope, room, intent, table, progress)
    except Failed as failed:
        if failed.issue.code in OF_TARGET:
            failed.actions = tuple(rescue(intent, table.kinds))
        raise


def _work(envelope: Envelope, room: Room, intent: Mapping[str, Any], table: Table, progress: Progress) -> Result:
    choices = Choices(envelope.edits)
    asked = _Asked(choices, table, intent)
    progress.tell(1, "looking", counted(table.rows, "row"), always=True)
    sample = asked.sample(table, envelope.seed)
    survey = table.survey(asked.without, asked.roles, asked.dates, asked.fractions, sample, progress)
    target = asked.settled(table, survey)
    choices.done()
    told = _told(survey, target, envelope.seed, progress) if isinstance(target, Target) else {}
    return _left(room, intent, survey, target, told, progress)


class _Asked:
    """What PARSE_INTENT found and a person chose, checked against the table."""

    def __init__(self, choices: Choices, table: Table, intent: Mapping[str, Any]) -> None:
        names = list(table.kinds)
        self.target = choices.text("target", names) or _known(intent.get("target"), names)
        self.roles = choices.of_columns("roles", names)
        self.dates = choices.of_columns("dates", names)
        self.fractions = choices.of_columns("fractions", names)
        self.task = choices.text("task", TASKS)
        self.wanted, self.why = intent.get("task"), plain(intent.get("task_why") or "", 200)
        self.positive = choices.text("positive_class")
        self.spellings = choices.text("spellings", SPELLINGS)
        self.hoped = intent.get("positive_class")
        dropped = set(intent.get("drop") or ())
        dropped |= {name for name in names if name not in (intent.get("keep_only") or names)}
        self.without = dropped - {self.target}

    def sample(self, table: Table, seed: int) -> Any:
        """Returns the positions of the rows on which columns are judged, in order."""
        at_hand = np.arange(table.rows)
        if self.target:
            at_hand = np.flatnonzero(table.column(self.target).notna().to_numpy())
        most = SAMPLE if len(table.kinds) <= MANY_COLUMNS else SAMPLE_OF_MANY
        if len(at_hand) > most:
            at_hand = np.sort(np.random.default_rng(seed).choice(at_hand, most, replace=False))
        return at_hand

    def settled(self, table: Table, survey: Survey) -> Target | Unsure | None:
        """Returns the target, why its task is unsure, or None when nobody named one."""
        if self.target is None:
            return None
        found, values = survey.looks[self.target], table.column(self.target)
        apart = self.spellings == "APART"
        target = settle(found, values, self.wanted, self.task, self.positive or self.hoped, self.why, apart=apart)
        if self.positive and isinstance(target, Target) and self.positive not in target.classes:
            raise bad("positive_class", self.positive, f"It may be {several(list(target.classes))}.")
        others = [name for name in survey.looks if name != self.target and name not in self.without]
        if not any(survey.looks[name].role != "CONSTANT" for name in others):
            text = f"There is no column but {quoted(self.target)} to predict from."
            raise Failed("NO_FEATURES", text, suggestion="Bring a table with more columns, or leave fewer out.")
        return target


def _known(name: str | None, names: list[str]) -> str | None:
    if name is None or name in names:
        return name
    folded = {each.casefold(): each for each in names}
    if name.casefold() in folded:
        return folded[name.casefold()]
    near = nearest(name, names)
    text = f"There is no column {quoted(name)} in the table."
    advice = f"Did you mean {several(near)}?" if near else f"The columns are {several(names, 10)}."
    raise Failed("TARGET_NOT_FOUND", f"{text} {advice}", value=plain(name), suggestion="Name one of the columns.")


def _told(survey: Survey, target: Target, seed: int, progress: Progress) -> dict[str, Strength]:
    told: dict[str, Strength] = {}
    hashes = survey.hashes
    copied = hashes is not None and not ordinary(hashes, survey.combinations)
    judge = Judge(target, survey.sample, seed, hashes if copied else None)
    for place, (name, found) in enumerate(survey.looks.items()):
        if name != target.column and found.role != "CONSTANT":
            progress.tell(60 + 25 * place / len(survey.looks), "comparing with the target", plain(name))
            told[name] = judge.strength(found, survey.kept[name])
    return told


def _left(
    room: Room,
    intent: Mapping[str, Any],
    survey: Survey,
    target: Target | Unsure | None,
    told: Mapping[str, Strength],
    progress: Progress,
) -> Result:
    settled = target if isinstance(target, Target) else None
    found = list(issues(survey, target, told, intent))
    pictures = list(_pictures(room, survey, settled, told, progress))
    group = group_of(each for each in survey.looks.values() if settled is None or each.name != settled.column)
    name = settled.column if settled else None
    result = {
        "table": {
            "rows": survey.rows,
            "cols": len(survey.looks),
            "dup_rows": 0 if survey.hashes is None else copies(survey.hashes),
            "mem_mb": round(survey.bytes / 1e6, 1),
        },
        "target": settled.to_json() if settled else None,
        "columns": [column(each, told.get(each.name), name, at) for at, each in enumerate(survey.looks.values())],
        "issues": [issue.to_json() for issue in found[:MAX_ISSUES]],
        "plots": [picture.name for picture in pictures],
        "group": group.name if group else None,
    }
    return Result(summary(survey, target, found), result, list(actions(intent, survey, target)), found, pictures)


def _pictures(
    room: Room, survey: Survey, target: Target | None, told: Mapping[str, Strength], progress: Progress
) -> Iterator[Artifact]:
    progress.tell(85, "drawing", always=True)
    if target:
        yield of_target(room, target)
    yield from of_missing(room, list(survey.looks.values()))
    if target:
        best = sorted(told, key=lambda name: (-told[name].score, name))
        best = [name for name in best if survey.looks[name].role in DRAWN_ROLES][:DRAWN]
        yield from of_columns(room, [survey.looks[name] for name in best], survey.kept, target)


if __name__ == "__main__":
    main(work)
