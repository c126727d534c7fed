"""What a person may say about how a table is to be read, and how their words are checked."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.contract import Failed
from stages.shown import plain

SAMPLE_ROWS = 500_000  # kept at most when nothing else is said
MAX_SAMPLE_ROWS = 2_000_000
MAX_HEADER = 100  # the last line that may hold the names
NO_HEADER = 0  # in Options.header
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
ENCODINGS = ("utf-8", "cp1252", "iso-8859-15", "cp1250", "cp1251", "utf-16", "shift_jis", "gb18030")
DECIMALS = {"point": ".", "comma": ","}
FIELDS = (
    "data",
    "delimiter",
    "encoding",
    "header",
    "null_markers",
    "skip_bad_rows",
    "sample_rows",
    "sheet",
    "decimal",
)
YES_NO = {"yes": True, "no": False, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Options:
    """How to read a table. None everywhere means: find out.

    Attributes:
        header: line that holds the names, counted from 1 over the lines that are not blank; NO_HEADER when none does.
        skip_bad_rows: True leaves lines out that do not fit; False makes one of them a failure.
        sample_rows: the most rows to keep.
    """

    delimiter: str | None = None
    encoding: str | None = None
    header: int | None = None
    null_markers: tuple[str, ...] | None = None
    skip_bad_rows: bool | None = None
    sample_rows: int = SAMPLE_ROWS
    sheet: str | None = None
    decimal: str | None = None


def from_edits(edits: Mapping[str, Any]) -> Options:
    """Returns the options a person chose. Raises Failed with BAD_EDIT that names the field."""
    unknown = [name for name in edits if name not in FIELDS]
    if unknown:
        raise bad(str(unknown[0]), f"There is nothing called {plain(str(unknown[0]))} to change here.")
    rows = edits.get("sample_rows")
    return Options(
        delimiter=_delimiter(edits.get("delimiter")),
        encoding=_encoding(edits.get("encoding")),
        header=_header(edits.get("header")),
        null_markers=_markers(edits.get("null_markers")),
        skip_bad_rows=_yes_no(edits.get("skip_bad_rows")),
        sample_rows=SAMPLE_ROWS if rows is None else _whole("sample_rows", rows, 1, MAX_SAMPLE_ROWS),
        sheet=_text("sheet", edits.get("sheet")),
        decimal=_one_of("decimal", edits.get("decimal"), DECIMALS),
    )


def bad(field: str, text: str) -> Failed:
    """Returns the failure of an edit that makes no sense."""
    return Failed("BAD_EDIT", text, value=plain(field), suggestion=f"Choose another value for {plain(field)}.")


def _text(field: str, given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given
    raise bad(field, f"{field} must be a text.")


def _one_of(field: str, given: Any, known: Mapping[str, str]) -> str | None:
    word = _text(field, given)
    if word is None or word in known.values():
        return word
    if word.lower() not in known:
        raise bad(field, f"{field} must be one of {', '.join(known)}.")
    return known[word.lower()]


def _delimiter(given: Any) -> str | None:
    return _one_of("delimiter", given, DELIMITERS)


def _encoding(given: Any) -> str | None:
    word = _text("encoding", given)
    if word is None:
        return None
    try:
        info = codecs.lookup(word)
    except (LookupError, ValueError):
        raise bad("encoding", f"There is no encoding called {plain(word)}.") from None
    if not info._is_text_encoding:
        raise bad("encoding", f"{plain(word)} is no encoding of text.")
    return info.name


def _header(given: Any) -> int | None:
    if given is None:
        return None
    if isinstance(given, str) and given.lower() in ("none", "no"):
        return NO_HEADER
    return _whole("header", given, 1, MAX_HEADER)


def _whole(field: str, given: Any, least: int, most: int) -> int:
    try:
        number = int(given) if not isinstance(given, bool) and float(given) == int(given) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not least <= number <= most:
        raise bad(field, f"{field} must be a whole number from {least} to {most}.")
    return number


def _markers(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts) or len(parts) > 100:
        raise bad("null_markers", "null_markers must be words with commas between them, at most 100.")
    return tuple(sorted({part.strip() for part in parts}))


def _yes_no(given: Any) -> bool | None:
    if given is None or isinstance(given, bool):
        return given
    if isinstance(given, str) and given.lower() in YES_NO:
        return YES_NO[given.lower()]
    raise bad("skip_bad_rows", "skip_bad_rows must be yes or no.")
