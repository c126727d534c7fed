"""What DATA_SOURCE tells: the description of a table, what is odd about it, and what a person may change."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stages.catalogue import Candidate
from stages.contract import Action, Failed, Issue, Result
from stages.delimited import TextTable
from stages.options import DECIMALS, DELIMITERS, ENCODINGS, MAX_SAMPLE_ROWS, SAMPLE_ROWS, Options
from stages.reading import Read, Rows, Source
from stages.shown import listed, plain
from stages.workbooks import SheetTable

MAX_CANDIDATES = 20
MAX_BAD_SHOWN = 50
MAX_MARKER_ISSUES = 20
MAX_CELL = 80  # characters of a cell in the preview
PREVIEW_CHARS = 40_000  # of all cells of a row of the preview
MAX_ORIGINAL = 200  # characters of a column's original name
HEADER_LINES = 20  # offered as the line of the names
LEADING = 3  # columns in which the word for a sum is looked for
_TOTAL = re.compile(r"((grand|sub) ?)?totals?:?|sums?:?|overall|summe:?|gesamt(summe)?:?|somme|suma|totale?:?", re.I)
_YES_NO = ("yes", "no")
_BY_READING = ("MALFORMED_ROWS", "NO_HEADER", "NO_ROWS", "BAD_EDIT")  # failures of how it was read
KINDS = {"int": "whole numbers", "float": "numbers", "text": "text", "bool": "true or false", "date": "dates"}


def which_table(offered: Sequence[Candidate], found: Sequence[Candidate]) -> Result:
    """Returns the question which table to take."""
    paths = tuple(candidate.path for candidate in offered[:MAX_CANDIDATES])
    choose = Action("data", "Which table?", "CHOOSE", "data", options=paths, required=True)
    text = f"{len(found):,} tables are at hand and the objective does not say which: {listed(paths)}. Choose one."
    result = {**_nothing(), "candidates": [candidate.to_json() for candidate in found[:MAX_CANDIDATES]]}
    return Result(text, result, [choose, _back(), _abort()])


def _nothing() -> dict[str, Any]:
    unknown = dict.fromkeys(("format", "encoding", "encoding_confidence", "delimiter", "decimal", "sampled", "sha256"))
    empty: dict[str, Any] = {name: [] for name in ("columns", "bad_rows", "null_markers", "preview")}
    return {"path": "", **unknown, "rows": 0, "bytes": 0, **empty}


def description(source: Source, table: Rows | None, read: Read) -> dict[str, Any]:
    """Returns what is known of a table, for later stages and for people."""
    text = table if isinstance(table, TextTable) else None
    sampled = {"rows_of": read.rows_of, "rows": read.rows} if read.rows < read.rows_of else None
    limit = max(8, min(MAX_CELL, PREVIEW_CHARS // max(1, len(read.names))))
    columns = zip(read.names, read.original, read.columns, strict=True)
    return {
        "format": source.format,
        "packing": source.packing,
        "encoding": text.encoding if text else getattr(table, "encoding", None),
        "encoding_confidence": text.confidence if text else None,
        "delimiter": text.dialect.delimiter if text else None,
        "decimal": read.decimal,
        "header": getattr(table, "header", None) or None,
        "sheet": table.sheet if isinstance(table, SheetTable) else None,
        "rows": read.rows,
        "columns": [
            {"name": name, "original_name": original[:MAX_ORIGINAL], "type": column.type}
            for name, original, column in columns
        ],
        "bad_lines": [row.line for row in read.bad],
        "bad_rows": [{"line": row.line, "reason": row.reason} for row in read.bad[:MAX_BAD_SHOWN]],
        "sampled": sampled,
        "repeated_names": read.repeated,
        "bytes": source.bytes,
        "null_markers": sorted({marker for column in read.columns for marker in column.missing if marker}),
        "preview": [[plain(cell, limit) for cell in row] for row in read.preview],
    }


def summary(source: Source, table: Rows | None, read: Read) -> str:
    """Returns the table in two or three sentences."""
    kinds = Counter(column.type for column in read.columns)
    types = ", ".join(f"{count} of {KINDS[kind]}" for kind, count in kinds.most_common())
    text = f"{plain(source.name)} has {read.rows_of:,} rows and {len(read.names):,} columns: {types}."
    if isinstance(table, SheetTable) and len(table.sheets) > 1:
        text += f" Read was the sheet {plain(table.sheet)}, one of {len(table.sheets)}."
    if read.rows < read.rows_of:
        text += f" {read.rows:,} rows, spread evenly over the file, are used."
    if read.bad:
        text += f" {_count(len(read.bad), 'line')} could not be read as a row; the first is line {read.bad[0].line}."
    return text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def malformed(read: Read) -> Failed:
    """Returns the failure of a table with lines that do not fit."""
    first = read.bad[0]
    text = f"{_count(len(read.bad), 'line')} of the file cannot be read as rows. Line {first.line} {first.reason}."
    advice = "Repair the file, choose another delimiter, or have such lines left out."
    return Failed("MALFORMED_ROWS", text, row=first.line, count=len(read.bad), suggestion=advice)


def no_header(names: Sequence[str]) -> Failed:
    """Returns the failure of a table without a line that looks like names."""
    text = "The first line looks like values and not like the names of the columns."
    advice = f"Choose the line that holds the names, or none: the columns are called {listed(names, 2)} then."
    return Failed("NO_HEADER", text, row=1, suggestion=advice)


def issues(source: Source, table: Rows | None, read: Read) -> list[Issue]:
    """Returns what is odd about a table."""
    found: list[Issue] = []
    if read.bad:
        failed = malformed(read).issue
        found.append(
            Issue("MALFORMED_ROWS", "WARN", failed.message, None, failed.row, None, failed.count, failed.suggestion)
        )
    if read.repeated:
        text = (
            f"{_count(read.repeated, 'row')} further down {'repeats' if read.repeated == 1 else 'repeat'} the names of "
        )
        advice = "Look whether the file was put together of several that do not belong together."
        text += "the columns and was left out."
        found.append(Issue("MALFORMED_ROWS", "WARN", text, count=read.repeated, suggestion=advice))
    found += _total(read)
    if isinstance(table, TextTable) and table.guessed:
        text = f"The encoding of {plain(source.name)} is not said in it; {table.encoding} was guessed."
        advice = "Look at names with foreign letters in the preview; choose another encoding when they are wrong."
        found.append(Issue("ENCODING_GUESSED", "WARN", text, value=table.encoding, suggestion=advice))
    if getattr(table, "named", True) is False:
        text = f"No line holds the names of the columns: they are called {listed(read.names, 3)}."
        found.append(Issue("NO_HEADER", "INFO", text, suggestion="Use these names, or choose the line with the names."))
    found += [_twice(read, at) for at in read.twice]
    if read.rows < read.rows_of:
        text = f"The file has {read.rows_of:,} rows; {read.rows:,} of them are used, spread evenly over it."
        advice = "Raise sample_rows to use more; it takes more time and memory."
        found.append(Issue("SAMPLED", "WARN", text, count=read.rows, suggestion=advice))
    return found + _marker_issues(read)


def _total(read: Read) -> list[Issue]:
    """Returns the warning about a last row that seems to be the sum of the others."""
    ends = [column.values[-1].as_py() for column in read.columns[:LEADING]] if read.rows else []
    said = next((end for end in ends if isinstance(end, str) and _TOTAL.fullmatch(end)), None)
    if said is None:
        return []
    text = f'The last row says "{plain(said, 20)}": it may sum up the others, and it is used like any of them.'
    advice = "Delete it from the file when it is no row of its own."
    return [Issue("MALFORMED_ROWS", "WARN", text, row=None, value=plain(said, 20), suggestion=advice)]


def _twice(read: Read, at: int) -> Issue:
    name = plain(read.original[at]) or "(no name)"
    text = f"Two columns are called {name}; the later one is column {at + 1} and is called {read.names[at]} here."
    advice = "Check that the two are not the same thing twice."
    return Issue("DUPLICATE_COLUMN", "WARN", text, column=read.names[at], value=name, suggestion=advice)


def _marker_issues(read: Read) -> list[Issue]:
    found = []
    for name, column in zip(read.names, read.columns, strict=True):
        shown = {marker: count for marker, count in column.missing.items() if marker}
        if shown:
            words = listed([f'"{plain(marker, 20)}" ({_count(count, "time")})' for marker, count in shown.items()])
            text = f"In {plain(name)}, {words} was read as missing."
            advice = "If it means something, list the markers of missing values without it."
            total = sum(shown.values())
            found.append(Issue("NULL_MARKERS", "INFO", text, column=name, count=total, suggestion=advice))
    return found[:MAX_MARKER_ISSUES]


def actions(
    name: str, source: Source, table: Rows | None, read: Read, options: Options, found: Sequence[Candidate]
) -> list[Action]:
    """Returns what a person may do at the gate."""
    others = tuple(dict.fromkeys([name, *(candidate.path for candidate in found[:MAX_CANDIDATES])]))
    offered = [Action("confirm", "Use this table", "CONFIRM")]
    if options.skip_bad_rows is not None:
        chosen = "yes" if options.skip_bad_rows else "no"
        offered.append(_skip(chosen))
    if len(others) > 1:
        offered.append(Action("data", "Another table", "CHOOSE", "data", others, name))
    if isinstance(table, TextTable):
        offered += _text_actions(table, read)
    if isinstance(table, SheetTable) and len(table.sheets) > 1:
        offered.append(Action("sheet", "Another sheet", "CHOOSE", "sheet", tuple(table.sheets), table.sheet))
    if isinstance(table, TextTable | SheetTable):
        offered.append(_header(str(table.header) if table.header else "none"))
    markers = ", ".join(sorted({marker for column in read.columns for marker in column.missing if marker}))
    offered.append(_markers(markers))
    offered.append(_sample_rows(options.sample_rows))
    return [*offered, _back(), _abort()]


def repairs(code: str, name: str, found: Sequence[Candidate]) -> list[Action]:
    """Returns what a person may choose after a failure, so that another attempt goes better."""
    paths = tuple(candidate.path for candidate in found if candidate.look and candidate.path != name)[:MAX_CANDIDATES]
    offered = [Action("data", "Another table", "CHOOSE", "data", paths)] if paths else []
    if code in _BY_READING:
        encodings = Action("encoding", "Encoding of the text", "CHOOSE", "encoding", ENCODINGS)
        delimiters = Action("delimiter", "What separates the cells", "CHOOSE", "delimiter", tuple(DELIMITERS))
        decimals = Action("decimal", "Sign before the fraction of numbers", "CHOOSE", "decimal", tuple(DECIMALS))
        offered += [
            _skip(None),
            _header(None),
            delimiters,
            encodings,
            decimals,
            _markers(None),
            _sample_rows(SAMPLE_ROWS),
        ]
    return [*offered, _back(), _abort()]


def _skip(default: str | None) -> Action:
    return Action("skip-bad-rows", "Leave out lines that cannot be read?", "CHOOSE", "skip_bad_rows", _YES_NO, default)


def _header(default: str | None) -> Action:
    lines = ("none", *map(str, range(1, HEADER_LINES + 1)))
    return Action("header", "Line that holds the names", "CHOOSE", "header", lines, default)


def _markers(default: str | None) -> Action:
    return Action("null-markers", "Words that mean missing, with commas", "EDIT", "null_markers", default=default)


def _text_actions(table: TextTable, read: Read) -> list[Action]:
    delimiter = next((word for word, sign in DELIMITERS.items() if sign == table.dialect.delimiter), "comma")
    decimal = next(word for word, sign in DECIMALS.items() if sign == read.decimal)
    encodings = tuple(dict.fromkeys([table.encoding, *ENCODINGS]))
    return [
        Action("delimiter", "What separates the cells", "CHOOSE", "delimiter", tuple(DELIMITERS), delimiter),
        Action("encoding", "Encoding of the text", "CHOOSE", "encoding", encodings, table.encoding),
        Action("decimal", "Sign before the fraction of numbers", "CHOOSE", "decimal", tuple(DECIMALS), decimal),
    ]


def _back() -> Action:
    return Action("back", "Back to the objective", "BACK", "PARSE_INTENT")


def _abort() -> Action:
    return Action("abort", "End the run", "ABORT")


def _sample_rows(rows: int) -> Action:
    return Action("sample-rows", "Most rows to use", "EDIT", "sample_rows", (), rows, 1, MAX_SAMPLE_ROWS)
