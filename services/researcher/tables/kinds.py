"""Which names are files of tables. Imported by the parser process too, so it imports nothing of this project."""

from pathlib import PurePosixPath

_KINDS = {
    "delimited": "csv tsv",
    "lines": "jsonl ndjson",
    "json": "json",
    "workbook": "xlsx xlsm",
    "database": "db db3 sqlite sqlite3",
}
_BY_SUFFIX = {f".{suffix}": kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}


def kind(name: str) -> str:
    """Returns the kind of a file by its name; "" when it holds no tables that are read."""
    return _BY_SUFFIX.get(PurePosixPath(name).suffix.lower(), "")
