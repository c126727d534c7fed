"""One pass over the columns of a table, one column in memory at a time, and what is kept of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from stages.columns import Look, Role, Series, look
from stages.contract import Failed, Progress
from stages.rows import Hashes, levels, mixed
from stages.wording import counted, quoted

MOST_COLUMNS = 4_000  # more do not fit into a result
DAY_FIRST, MONTH_FIRST = "DAY_FIRST", "MONTH_FIRST"
FRACTIONS = {"POINT": ".", "COMMA": ","}  # what stands before a fraction, as a person chooses it
READABLE = {"NUMERIC": ("int", "float", "bool"), "DATETIME": ("date",), "BOOL": ("bool",)}  # by kind of column


@dataclass(slots=True)
class Survey:
    """What one pass found.

    Attributes:
        lines_known: whether row n of the table is line n + 2 of the file.
        sample: positions of the sampled rows, in order.
        looks: by column, in the order of the table.
        hashes: of the rows, identifiers and columns left out; None when no column counts.
        combinations: how many different rows the levels of those columns could make.
        kept: the sampled rows of every column; their index says which.
        marks: whole columns of dates, to see whether they are in order.
    """

    rows: int
    lines_known: bool
    sample: Any
    bytes: int = 0
    looks: dict[str, Look] = field(default_factory=dict)
    hashes: Hashes | None = None
    combinations: float = 1.0
    kept: dict[str, Series] = field(default_factory=dict)
    marks: dict[str, Series] = field(default_factory=dict)


class Table:
    """data.parquet and what DATA_SOURCE says of its columns."""

    def __init__(self, path: Path, source: Mapping[str, Any]) -> None:
        self._file = pq.ParquetFile(path)
        self.kinds: dict[str, str] = {column["name"]: column["type"] for column in source["columns"]}
        self.originals = {column["name"]: column.get("original_name", column["name"]) for column in source["columns"]}
        self.rows: int = self._file.metadata.num_rows
        # A line of the file can be named only when every line was read as one row.
        self.lines_known = not any(source.get(key) for key in ("bad_rows", "sampled", "repeated_names"))
        if len(self.kinds) > MOST_COLUMNS:
            text = f"The table has {counted(len(self.kinds), 'column')}; at most {MOST_COLUMNS:,} can be worked on."
            advice = "Leave columns out of the file."
            raise Failed("FILE_TOO_LARGE", text, count=len(self.kinds), suggestion=advice)

    def column(self, name: str) -> Series:
        """Reads one column."""
        read: Series = self._file.read(columns=[name]).column(0).to_pandas()
        return read.rename(name)

    def frame(self, names: Sequence[str]) -> pd.DataFrame:
        """Reads some columns."""
        return pd.DataFrame({name: self.column(name) for name in names})

    def survey(
        self,
        without: Collection[str],
        roles: Mapping[str, str],
        dates: Mapping[str, str],
        fractions: Mapping[str, str],
        sample: Any,
        progress: Progress,
    ) -> Survey:
        """Looks at every column.

        Args:
            without: columns that do not count when rows are compared.
            roles: by column, what a person chose.
            dates: by column, DAY_FIRST or MONTH_FIRST, as a person chose.
            fractions: by column of numbers written as text, POINT or COMMA, as a person chose.
            sample: positions of the rows that are kept.
        """
        found = Survey(self.rows, self.lines_known, sample)
        for place, (name, kind) in enumerate(self.kinds.items()):
            progress.tell(60 * place / len(self.kinds), "looking", f"column {place + 1} of {len(self.kinds)}")
            values = self.column(name)
            found.bytes += int(values.memory_usage(index=False, deep=True))
            seen = _in_order(look(name, kind, values, FRACTIONS.get(fractions.get(name, ""))), dates.get(name))
            seen = as_role(seen, roles[name]) if name in roles else seen
            found.looks[name] = seen
            found.kept[name] = values.iloc[sample]
            if seen.role not in ("ID", "CONSTANT") and name not in without:
                found.hashes = mixed(found.hashes, values)
                found.combinations *= levels(seen.unique + bool(seen.missing), self.rows)
            if seen.role == "DATETIME":
                found.marks[name] = values
        return found


def _in_order(seen: Look, order: str | None) -> Look:
    if order is None or "other" not in seen.parse:
        return seen
    format_, other = seen.parse["format"], seen.parse["other"]
    issues = tuple(issue for issue in seen.issues if issue.code != "AMBIGUOUS_DATE")
    chosen = {"format": format_ if order == DAY_FIRST else other}
    return replace(seen, parse=chosen, issues=issues)


def roles_of(seen: Look) -> Iterator[Role]:
    """Yields the roles a person may give a column."""
    if seen.role != "CONSTANT":
        if seen.kind in READABLE["NUMERIC"] or "decimal" in seen.parse or _mixed(seen):
            yield "NUMERIC"
        yield from ("CATEGORY", "TEXT")
        if seen.kind in READABLE["DATETIME"] or "format" in seen.parse:
            yield "DATETIME"
        if seen.role == "BOOL":
            yield "BOOL"
        yield "ID"
    else:
        yield "CONSTANT"


def _mixed(seen: Look) -> bool:
    return any(issue.code == "MIXED_TYPES" for issue in seen.issues)


def as_role(seen: Look, role: str) -> Look:
    """Returns the look with the role a person chose. Raises Failed with BAD_EDIT when the column cannot have it."""
    options = list(roles_of(seen))
    if role not in options:
        text = f"{quoted(role)} cannot be chosen for {quoted(f'roles.{seen.name}')}. It may be {', '.join(options)}."
        field_ = f"roles.{seen.name}"[:200]
        raise Failed("BAD_EDIT", text, column=field_, value=role[:80], suggestion="Choose again.")
    if role == seen.role:
        return replace(seen, why="you chose so")
    parse: dict[str, Any] = {}
    if role in ("CATEGORY", "TEXT") and seen.kind in ("int", "float"):
        parse = {"number": True}
    elif role == "NUMERIC" and seen.kind == "text":
        parse = {"clutter": True, "decimal": seen.parse.get("decimal", ".")}
    elif role in ("DATETIME", "CATEGORY", "BOOL", "NUMERIC") and seen.kind in ("date", "bool", "text"):
        parse = {key: value for key, value in seen.parse.items() if key in ("truth", "format")}
    return replace(seen, role=next(each for each in options if each == role), parse=parse, why="you chose so")
