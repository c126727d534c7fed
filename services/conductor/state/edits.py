"""What a person chose at a gate, held against what the gate offered. Pure."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from conductor.v1 import project_pb2
from google.protobuf import json_format, struct_pb2

from services.common.errors import Reason, Refusal

MAX_BYTES = 64 * 1024  # of all edits of one answer, as JSON
MAX_TEXT = 4000  # characters of an edit that is a text
SHOWN = 80  # characters of a value in a message
UPLOADS = "uploads/"  # how data that was uploaded is called; a gate that lets data be chosen takes it too
DATA_FIELD = "data"

CHOOSE = project_pb2.STAGE_ACTION_KIND_CHOOSE
EDIT = project_pb2.STAGE_ACTION_KIND_EDIT


def as_dict(edits: struct_pb2.Struct) -> dict[str, Any]:
    """Returns edits as plain values: whole numbers as int."""
    return {key: _plain(value) for key, value in json_format.MessageToDict(edits).items()}


def merged(before: struct_pb2.Struct, more: struct_pb2.Struct) -> struct_pb2.Struct:
    """Returns edits with newer ones in place of those of the same fields."""
    both = struct_pb2.Struct()
    both.CopyFrom(before)
    for key, value in more.fields.items():
        both.fields[key].CopyFrom(value)
    return both


def check(
    edits: struct_pb2.Struct,
    offered: Iterable[project_pb2.StageAction],
    uploads: Iterable[project_pb2.DataUpload],
) -> None:
    """Raises EDIT_REFUSED for the first edit that was not offered, or with a value that was not."""
    given = as_dict(edits)
    if len(json.dumps(given).encode()) > MAX_BYTES:
        raise _refused("edits", "", f"must be at most {MAX_BYTES} bytes as JSON, all together")
    fields = {action.field: action for action in offered if action.kind in (CHOOSE, EDIT)}
    uploaded = [f"{UPLOADS}{upload.name}" for upload in uploads]
    for field, value in given.items():
        action = fields.get(field)
        if action is None:
            names = ", ".join(sorted(fields)) or "nothing"
            raise _refused(field, value, f"was not offered at this gate; it offers {names}")
        if field == DATA_FIELD and value in uploaded:
            continue
        _check_value(action, value)


def _check_value(action: project_pb2.StageAction, value: Any) -> None:
    if action.kind == CHOOSE:
        chosen = value if action.many and isinstance(value, list) else [value]
        if (action.many and not isinstance(value, list)) or any(_text(one) not in action.options for one in chosen):
            what = "a list of some of" if action.many else "one of"
            raise _refused(action.field, value, f"must be {what}: {', '.join(action.options)[:2000]}")
        return
    if action.HasField("minimum") or action.HasField("maximum"):
        low = action.minimum if action.HasField("minimum") else float("-inf")
        high = action.maximum if action.HasField("maximum") else float("inf")
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _refused(action.field, value, f"must be a number from {low:g} to {high:g}")
    elif not isinstance(value, str) or len(value) > MAX_TEXT:
        raise _refused(action.field, value, f"must be a text of at most {MAX_TEXT} characters")


def require(outcome: project_pb2.StageOutcome) -> None:
    """Raises EDIT_REFUSED when something required was not chosen."""
    missing = next((action for action in outcome.actions if action.required), None)
    if outcome.needs_input and missing is not None:
        what = f"has to be chosen before this can go on ({missing.label})"
        raise _refused(missing.field, "", f"{what}: give it in edits")


def _refused(field: str, value: Any, what: str) -> Refusal:
    shown = json.dumps(value, ensure_ascii=False)[:SHOWN]
    text = f"{field} {what}." if value == "" else f"{field} {what}; {shown} is not."
    return Refusal(
        Reason.ERROR_REASON_EDIT_REFUSED, text[:MAX_TEXT], [(f"edits.{field}", what)], field=field, value=shown
    )


def _text(value: Any) -> str:
    """Returns a chosen value as options show it."""
    return WORDS.get(type(value), str)(value)


WORDS: Mapping[type, Callable[[Any], str]] = {bool: lambda value: "true" if value else "false"}


def _plain(value: Any) -> Any:
    """Makes whole numbers of a Struct, which knows doubles only, int again."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
