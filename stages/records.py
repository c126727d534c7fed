"""Tables as JSON: one object a line, or one list of objects. Each key is a column; what is nested stays JSON text."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.contract import MIB, Failed
from stages.delimited import MAX_BAD, MAX_LINE, BadRow
from stages.encodings import encoding_of
from stages.formats import Format, too_large
from stages.shown import plain

MAX_LIST = 64 * MIB  # bytes of a file that is one list: it has to be read as a whole
MAX_NAMES = 10_000  # keys


@dataclass(slots=True)
class JsonTable:
    """A table in a file of JSON objects; the same attributes as TextTable as far as they make sense."""

    path: Path
    format: Format
    encoding: str
    names: list[str]
    bad: list[BadRow] = field(default_factory=list)

    def rows(self) -> Iterator[list[str]]:
        """Yields one row an object; a key that is absent or null is an empty cell. Raises MALFORMED_ROWS."""
        self.bad.clear()
        for found in _objects(self.path, self.format, self.encoding, self.bad):
            yield [_cell(found.get(name)) for name in self.names]


def read_json(path: Path, kind: Format) -> JsonTable:
    """Finds out the keys, which needs one reading of the file. Raises Failed: MALFORMED_ROWS, FILE_TOO_LARGE."""
    encoding = encoding_of(path).name
    ignored: list[BadRow] = []
    names = keys_of(_objects(path, kind, encoding, ignored), path.name)
    return JsonTable(path, kind, encoding, names)


def first_objects(text: str, kind: Format) -> tuple[list[str], list[list[str]]]:
    """Returns the keys and the rows of a file's first characters; none of a list that is cut off."""
    found: list[Any] = list(objects_of(text.splitlines(), [])) if kind == "jsonl" else _parsed(text) or []
    objects = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    names = keys_of(objects, "The file")
    return names, [[_cell(item.get(name)) for name in names] for item in objects]


def keys_of(objects: Iterable[dict[str, Any]], name: str) -> list[str]:
    """Returns all keys in the order of their first appearance."""
    keys: dict[str, None] = {}
    for found in objects:
        keys.update(dict.fromkeys(found))
        if len(keys) > MAX_NAMES:
            raise too_large(name, f"has more than {MAX_NAMES:,} columns")
    return list(keys)


def objects_of(lines: Iterable[str], bad: list[BadRow]) -> Iterator[dict[str, Any]]:
    """Yields the objects of JSON lines and notes the lines that hold none. Raises Failed with MALFORMED_ROWS."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _parsed(line)
        if isinstance(found, dict):
            yield found
            continue
        bad.append(BadRow(number, "is not one JSON object"))
        if len(bad) >= MAX_BAD:
            text = f"More than {MAX_BAD:,} lines are no JSON objects; the first is line {bad[0].line}."
            raise Failed("MALFORMED_ROWS", text, row=bad[0].line, suggestion="Save it as JSON lines or CSV.")


def _objects(path: Path, kind: Format, encoding: str, bad: list[BadRow]) -> Iterator[dict[str, Any]]:
    with path.open(encoding=encoding, errors="replace") as file:
        if kind == "jsonl":
            yield from objects_of(iter(lambda: file.readline(MAX_LINE), ""), bad)
            return
        if path.stat().st_size > MAX_LIST:
            raise too_large(path.name, f"is one JSON list of more than {MAX_LIST // MIB} MB: save it as JSON lines")
        found = _parsed(file.read())
    if not isinstance(found, list):
        text = f"{plain(path.name)} begins like a JSON list and is none: it is cut off or damaged."
        raise Failed("UNREADABLE_FILE", text, value=plain(path.name), suggestion="Save or download it again.")
    for number, item in enumerate(found, 1):
        if isinstance(item, dict):
            yield item
        else:
            bad.append(BadRow(number, "is not a JSON object"))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # nested too deep is no table either
        return None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False)
