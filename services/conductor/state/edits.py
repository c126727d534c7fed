"""What a person chose at a gate, held against what the gate offered. Pure."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from conductor.v1 import project_pb2
from google.protobuf import json_format, struct_pb2

from services.common.errors import Reason, Refusal

MAX_BYTES = 64 * 1024  # of all edits of one answer, or all hints of a run, as JSON
MAX_TEXT = 4000  # characters of an edit that is a text
MAX_DEPTH = 16  # of lists and objects in each other; protobuf reads no message that is nested deeper than 100
SHOWN = 80  # characters of a value in a message
UPLOADS = "uploads/"  # how data that was uploaded is called; a gate that lets data be chosen takes it too
DATA_FIELD = "data"
ALL = "edits"  # the field of a request that holds them

CHOOSE = project_pb2.STAGE_ACTION_KIND_CHOOSE
EDIT = project_pb2.STAGE_ACTION_KIND_EDIT


def as_dict(edits: struct_pb2.Struct) -> dict[str, Any]:
    """Returns edits as plain values: whole numbers as int."""
    return {key: _plain(value) for key, value in json_format.MessageToDict(edits).items()}


def check_json(values: struct_pb2.Struct) -> None:
    """Raises ValueError, saying what must be, for what JSON cannot say, nests too deep, or is too large."""
    if _depth(struct_pb2.Value(struct_value=values)) > MAX_DEPTH:
        raise ValueError(f"must nest lists and objects at most {MAX_DEPTH} deep")
    try:
        size = len(json.dumps(as_dict(values)).encode())
    except ValueError:
        raise ValueError("must have finite numbers only") from None
    if size > MAX_BYTES:
        raise ValueError(f"must be at most {MAX_BYTES} bytes as JSON, all together")


def _depth(value: struct_pb2.Value) -> int:
    inner = [*value.struct_value.fields.values(), *value.list_value.values]
    return 1 + max(map(_depth, inner), default=0)


def merged(before: struct_pb2.Struct, more: struct_pb2.Struct) -> struct_pb2.Struct:
    """Returns edits with newer ones in place of those of the same fields. Raises EDIT_REFUSED for too many."""
    both = struct_pb2.Struct()
    both.CopyFrom(before)
    for key, value in more.fields.items():
        both.fields[key].CopyFrom(value)
    _check_json(both)
    return both


def check(
    edits: struct_pb2.Struct,
    offered: Iterable[project_pb2.StageAction],
    uploads: Iterable[project_pb2.DataUpload],
) -> None:
    """Raises EDIT_REFUSED for the first edit that was not offered, or with a value that was not."""
    _check_json(edits)
    given = as_dict(edits)
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


def _check_json(edits: struct_pb2.Struct) -> None:
    try:
        check_json(edits)
    except ValueError as error:
        raise _refused(ALL, "", str(error)) from None


def _check_value(action: project_pb2.StageAction, value: Any) -> None:
    if action.kind == CHOOSE:
        chosen = value if action.many and isinstance(value, list) else [value]
        options = frozenset(action.options)
        known = all(isinstance(one, str | int | float) and _text(one) in options for one in chosen)
        if (action.many and not isinstance(value, list)) or not known or (action.required and not chosen):
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
    if not outcome.needs_input:
        return
    missing = next((action for action in outcome.actions if action.required), None)
    if missing is None:  # its program says that it needs something, and not what
        raise _refused(ALL, "", "must choose something of what is offered before this can go on")
    what = f"has to be chosen before this can go on ({missing.label})"
    raise _refused(missing.field, "", f"{what}: give it in edits")


def _refused(field: str, value: Any, what: str) -> Refusal:
    shown = json.dumps(value, ensure_ascii=False)[:SHOWN]
    text = f"{field} {what}." if value == "" else f"{field} {what}; {shown} is not."
    return Refusal(
        Reason.ERROR_REASON_EDIT_REFUSED,
        text[:MAX_TEXT],
        [(f"{ALL}.{field}" if field != ALL else ALL, what)],
        field=field,
        value=shown,
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
