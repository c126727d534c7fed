"""PARSE_INTENT: understands an objective by rules over its words and the columns of the table, and asks when unsure.

By hand: `python -m stages.parse_intent envelope.json` in the folder of a run.
"""

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from stages import said_of_intent as said_by
from stages.catalogue import candidates, clear_choice
from stages.contract import MIB, Envelope, Failed, Issue, Progress, Result, Room, main
from stages.intent import Intent, understand
from stages.intent_target import MOST_LABELS, Known
from stages.places import Places
from stages.reading import Look, look
from stages.shown import plain
from stages.typed import column_of, decimal_of

SEEN_BYTES = MIB  # of a text file: enough to tell the types of columns and the values of classes
SEEN_ROWS = 5000
MOSTLY = 0.95  # of different texts are amounts with signs: then the column holds numbers
_AMOUNT = re.compile(r"[-+(\u2212]?\s*[$€£¥₹]?\s*[-+]?\d[\d.,'’\s\u00a0\u202f]*[%$€£¥₹]?\)?")
_CODE = re.compile(r"0\d")  # a code, which leading noughts do not make a number


def work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    """Does the stage. Raises Failed with the codes of docs/stages.md."""
    progress.tell(0, "understanding", always=True)
    data, seen, issues = _seen(envelope, room)
    columns = known_columns(seen) if seen else []
    try:
        given = said_by.checked(envelope.hints, "hints") | said_by.checked(envelope.edits, "edits")
        try:
            intent = understand(envelope.objective, given, columns)
        except Failed as failed:
            if failed.issue.code != "TARGET_NOT_FOUND" or seen is None or seen.sheets < 2:
                raise
            # It may be on another sheet, which is chosen in the next stage.
            intent, columns = understand(envelope.objective, given, []), []
            issues.append(_elsewhere(seen, failed))
        said_by.check_columns(given, [column.name for column in columns])
    except Failed as failed:
        taken = {action.field for action in failed.actions}
        more = [action for action in said_by.actions(Intent(), columns) if action.kind != "CONFIRM"]
        failed.actions = (
            *failed.actions,
            *(action for action in more if not action.field or action.field not in taken),
        )
        raise
    result = {**_result(intent), "data": data, "schema_seen": bool(columns)}
    actions = said_by.actions(intent, columns)
    return Result(said_by.summary(intent, data, columns), result, actions, [*issues, *intent.issues])


def _seen(envelope: Envelope, room: Room) -> tuple[str, Look | None, list[Issue]]:
    """Returns the path of the table, its beginning when it can be read, and why it cannot."""
    places = Places(room.root, envelope.data_folders)
    name = envelope.data
    if not name:
        choice = clear_choice(candidates(places, envelope.objective))
        if choice is None:
            return "", None, []
        name = choice.path
    try:
        return name, look(places.find(name), SEEN_BYTES, SEEN_ROWS), []
    except (Failed, OSError) as error:
        code = error.issue.code if isinstance(error, Failed) else "UNREADABLE_FILE"
        text = f"The table was not looked at: {error}" if isinstance(error, Failed) else "The table cannot be read."
        return name, None, [Issue(code, "WARN", text, suggestion="The next stage tells what can be done.")]


def _elsewhere(seen: Look, failed: Failed) -> Issue:
    text = f"{failed} Only the sheet {plain(seen.sheet)} was looked at, of {seen.sheets}."
    return Issue("TARGET_NOT_FOUND", "WARN", text, suggestion="Choose another sheet in the next stage.")


def known_columns(seen: Look) -> list[Known]:
    """Returns the columns with their types and values, as far as the beginning of the table shows them."""
    decimal = decimal_of(seen.rows)
    width = len(seen.names)
    rows = [row for row in seen.rows if len(row) == width]
    cells: list[tuple[str, ...]] = list(zip(*rows, strict=True)) if rows else [()] * width
    return [_known(name, values, decimal) for name, values in zip(seen.names, cells, strict=True)]


def _known(name: str, values: tuple[str, ...], decimal: str) -> Known:
    column = column_of(pa.array(values, pa.string()), decimal, None)
    different = column.values.unique().drop_null().to_pylist()
    labels = tuple(sorted(str(value) for value in different)) if len(different) <= MOST_LABELS else ()
    if column.type != "text":
        return Known(name, column.type, labels, len(different))
    if len(different) > MOST_LABELS and sum(map(_is_amount, different)) >= MOSTLY * len(different):
        return Known(name, "float", (), len(different))
    return Known(name, "text", labels, len({value.casefold() for value in different}))


def _is_amount(text: str) -> bool:
    return bool(_AMOUNT.fullmatch(text)) and not _CODE.match(text)


def _result(intent: Intent) -> Mapping[str, Any]:
    candidates_told = [{"column": each.column, "score": each.score, "why": each.why} for each in intent.candidates]
    plain_fields = ("goal", "target", "task", "task_why", "metric", "budget_s", "drop", "keep_only")
    more = ("positive_class", "group", "time", "later", "unparsed")
    return {
        **{name: getattr(intent, name) for name in (*plain_fields, *more)},
        "target_candidates": candidates_told,
    }


if __name__ == "__main__":
    main(work)
