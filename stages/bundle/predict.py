"""Predicts with the model beside this file: `python predict.py rows.csv predictions.csv [--proba]`.

Takes a CSV, TSV or Parquet file with the columns the model was trained on, by their names: in any order, further ones
are left out, absent ones count as missing. Exit code 0, or 2 with a sentence that says what is wrong with the input.

Needs the packages in requirements.lock, and preparing.py beside it.
"""

import argparse
import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from preparing import prepare  # type: ignore[import-not-found,unused-ignore] # it lies beside this file in the bundle

HERE = Path(__file__).resolve().parent
DELIMITERS = (",", ";", "\t", "|")
MAX_CELL = 1024 * 1024  # characters
SHOWN = 5  # names in a message
TRUE, FALSE = "true", "false"
WHOLE = r"[+-]?\d+"
GROUPED = r"[+-]?[1-9]\d{0,2}(\%s\d{3})+"  # 1.234.567: with one separator it may as well be a fraction
NUMBER = {  # the sign before a fraction → a number
    ".": re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[1-9]\d{0,2}(,\d{3})+\.\d+|[1-9]\d{0,2}(,\d{3}){2,})"),
    ",": re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?"),
}


class Unusable(Exception):
    """The input cannot be predicted from; the message says why."""


def main(given: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments (the command line's when None). Returns the exit code."""
    parser = argparse.ArgumentParser(description="Predicts a row for each row of a table.")
    parser.add_argument("input", type=Path, help="CSV, TSV or Parquet file")
    parser.add_argument("output", type=Path, help="CSV file to write: row, prediction and, with --proba, proba_<class>")
    parser.add_argument("--proba", action="store_true", help="write the probability of each class too")
    asked = parser.parse_args(given)
    try:
        schema = load_schema()
        frame = known(read(asked.input, schema), schema)
        said = predictions(load_model(schema), frame, schema, proba=asked.proba)
        write(said, asked.input, asked.output)
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(said):,} rows predicted", file=sys.stderr)
    return 0


def load_schema() -> dict[str, Any]:
    """Returns schema.json."""
    schema: dict[str, Any] = json.loads((HERE / "schema.json").read_text(encoding="utf-8"))
    return schema


def load_model(schema: Mapping[str, Any]) -> Any:
    """Returns the model: model.joblib, or model.skops when that is what there is. Raises Unusable for another's file.

    What joblib loads may do anything, so the file must be the one the manifest names.
    """
    name = "model.joblib" if (HERE / "model.joblib").exists() else "model.skops"
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    wanted = {each["path"]: each["sha256"] for each in manifest["files"]}.get(name)
    if not (HERE / name).exists() or sha256(HERE / name) != wanted:
        raise Unusable(f"{name} is not the file that manifest.json names. Unpack the bundle again.")
    if name == "model.joblib":
        import joblib

        return joblib.load(HERE / name)
    import skops.io

    return skops.io.load(HERE / name, trusted=schema["trusted_types"])


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def predictions(model: Any, frame: pd.DataFrame, schema: Mapping[str, Any], *, proba: bool) -> pd.DataFrame:
    """Returns for each row its number, the prediction and, if asked, the probability of each class."""
    ready = prepare(frame, schema["plan"])
    rows = pd.DataFrame({"row": np.arange(1, len(ready) + 1)})
    if schema["task"] == "regression":
        if proba:
            raise Unusable("This model predicts a number and has no probabilities: leave --proba out.")
        return rows.assign(prediction=np.asarray(model.predict(ready), dtype=float))
    chances = model.predict_proba(ready)
    names = [str(name) for name in model.classes_]
    called = np.asarray(names, dtype=object)[chances.argmax(axis=1)]
    if schema["threshold"] is not None:
        positive = names.index(schema["positive_class"])
        other = names[1 - positive]
        called = np.where(chances[:, positive] >= schema["threshold"], schema["positive_class"], other)
    rows["prediction"] = called
    return rows.assign(**{f"proba_{name}": chances[:, at] for at, name in enumerate(names)}) if proba else rows


def write(said: pd.DataFrame, source: Path, path: Path) -> None:
    """Writes the predictions. Raises Unusable when the file cannot be written or is the input."""
    if path.resolve() == source.resolve():
        raise Unusable("The output would overwrite the input. Choose another name.")
    try:
        said.to_csv(path, index=False)
    except OSError as error:
        raise Unusable(f"{path} cannot be written: {error.strerror}.") from None


def known(frame: pd.DataFrame, schema: Mapping[str, Any]) -> pd.DataFrame:
    """Returns the frame with the columns the model was trained on, typed. Says on stderr what is amiss.

    Raises Unusable when none of them is there.
    """
    columns = {each["name"]: each for each in schema["columns"]}
    features = set(schema["plan"]["features"])
    there = [name for name in frame.columns if name in columns]
    if not features & set(there):
        raise Unusable(f"The file has none of the columns the model needs: {listed(schema['plan']['features'])}.")
    absent = [name for name in schema["plan"]["features"] if name not in there]
    if absent:
        print(f"note: not in the file, so taken as missing: {listed(absent)}", file=sys.stderr)
    extra = [name for name in frame.columns if name not in columns]
    if extra:
        print(f"note: not known to the model, so left out: {listed(extra)}", file=sys.stderr)
    reading = {**schema["reading"], "decimal": decimal_of(frame[there], columns, schema["reading"]["decimal"])}
    typed = {name: cast(frame[name], columns[name], reading) for name in there}
    return pd.DataFrame(typed, index=frame.index)


def decimal_of(frame: pd.DataFrame, columns: Mapping[str, Mapping[str, Any]], usual: str) -> str:
    """Returns the sign before a fraction in this file: the training data's, unless all numbers that tell say another.

    Read with the wrong one 1.5 would be 15. A number such as 1.234 tells nothing: it may be 1234.
    """
    other = "," if usual == "." else "."
    tells = {sign: re.compile(rf"{WHOLE}\{sign}\d+") for sign in (usual, other)}
    either = {sign: re.compile(GROUPED % sign) for sign in tells}
    told = dict.fromkeys(tells, False)
    for name in frame.columns:
        if columns[name]["type"] in ("int", "float") and frame[name].dtype.kind not in "biuf":
            for text in {str(value).strip() for value in frame[name].tolist()}:
                for sign in tells:
                    told[sign] |= bool(tells[sign].fullmatch(text)) and not either[sign].fullmatch(text)
    if told[usual] or not told[other]:
        return usual
    print(f"note: fractions are written with {other!r} in this file, and were with {usual!r} before", file=sys.stderr)
    return other


def cast(cells: "pd.Series[Any]", column: Mapping[str, Any], reading: Mapping[str, Any]) -> "pd.Series[Any]":
    """Returns a column as it was where the model was trained: numbers, or texts; what does not fit is missing."""
    kind = column["type"]
    if cells.dtype.kind in "iuf" and kind in ("int", "float"):
        return cells.astype("float64")
    if cells.dtype.kind == "M":
        return cells
    if cells.dtype.kind == "m":
        return cells.dt.total_seconds()
    texts = [None if value is None or value != value else str(value).strip() for value in cells.tolist()]
    markers = {"", *reading["null_markers"]}
    if kind in ("int", "float"):
        numbers = [number(text, reading["decimal"]) for text in texts]
        bad = [at for at, (text, value) in enumerate(zip(texts, numbers, strict=True)) if value != value and text]
        bad = [at for at in bad if texts[at] not in markers]
        if bad:
            first = f"row {bad[0] + 1}: {str(texts[bad[0]])[:40]!r}"
            print(f"note: {column['name']}: no number, so taken as missing: {len(bad)} ({first})", file=sys.stderr)
        return pd.Series(numbers, index=cells.index, dtype="float64")
    if kind == "bool":
        texts = [text.lower() if text is not None else None for text in texts]
        texts = [text if text in (TRUE, FALSE) else None for text in texts]
        if column["role"] != "CATEGORY":
            truth = {TRUE: 1.0, FALSE: 0.0}
            return pd.Series([truth.get(text or "", np.nan) for text in texts], index=cells.index, dtype="float64")
    return pd.Series([None if text in markers else text for text in texts], index=cells.index, dtype="str")


def number(text: str | None, decimal: str) -> float:
    """Returns the number a cell says, NaN for none."""
    if text is None or not NUMBER[decimal].fullmatch(text):
        return float("nan")
    return float(text.replace(".", "").replace(",", ".") if decimal == "," else text.replace(",", ""))


def read(path: Path, schema: Mapping[str, Any]) -> pd.DataFrame:
    """Returns the table in a file; of text, all cells as texts. Raises Unusable."""
    if not path.is_file():
        raise Unusable(f"There is no file {path}.")
    raw = path.read_bytes()
    if raw.startswith(b"PAR1"):
        try:
            frame = pd.read_parquet(path).reset_index(drop=True)
        except (ValueError, OSError):  # what pyarrow raises for a broken file
            raise Unusable(f"{path} is a Parquet file that cannot be read.") from None
        if not len(frame):
            raise Unusable(f"{path} has no rows.")
        return frame.set_axis(names_of([str(name) for name in frame.columns], schema["columns"]), axis=1)
    text = decoded(raw, path, schema["reading"].get("encoding"))
    if not text.strip():
        raise Unusable(f"{path} is empty.")
    return table(text, path, schema)


def decoded(raw: bytes, path: Path, usual: str | None) -> str:
    """Returns the text of a file: UTF-8, or UTF-16 with its mark, or the encoding of the training data."""
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", usual or "utf-8-sig"):
        try:
            text = raw.decode(encoding)
        except (UnicodeError, LookupError):
            continue
        if "\0" not in text:
            return text
    raise Unusable(f"{path} is no text in UTF-8. Save it as CSV in UTF-8.")


def table(text: str, path: Path, schema: Mapping[str, Any]) -> pd.DataFrame:
    """Returns the cells of a CSV text (RFC 4180). Raises Unusable with the line that does not fit."""
    csv.field_size_limit(MAX_CELL)
    first, delimiter = heading(text, schema)
    lines = cells(text, delimiter, path)
    if schema["reading"].get("header") == 0:
        named = [each["name"] for each in schema["columns"]]
        if len(first) != len(named):
            raise Unusable(f"The first line of {path} has {len(first)} cells; the model knows {len(named)} columns.")
    else:
        next(lines)
        named = names_of(first, schema["columns"])
    rows = list(lines)
    if not rows:
        raise Unusable(f"{path} has the names of columns and no rows.")
    if all(len(row) == len(named) + 1 for _, row in rows):
        named = ["", *named]  # as R writes: no name for the names of the rows
    for line, row in rows:
        if len(row) > len(named) and not "".join(row[len(named) :]).strip():
            del row[len(named) :]
        if len(row) != len(named):
            raise Unusable(f"Line {line} of {path} has {len(row)} cells where {len(named)} are expected.")
    by_column = zip(*(row for _, row in rows), strict=True)
    return pd.DataFrame({at: list(column) for at, column in enumerate(by_column)}, dtype=object).set_axis(named, axis=1)


def heading(text: str, schema: Mapping[str, Any]) -> tuple[list[str], str]:
    """Returns the cells of the first line, and the delimiter that finds most of the model's columns there."""
    usual = schema["reading"].get("delimiter") or ","
    found = {each: next(csv.reader(io.StringIO(text, newline=""), delimiter=each), []) for each in (usual, *DELIMITERS)}
    wanted = {each["name"] for each in schema["columns"]}
    best = max(found, key=lambda each: len(wanted & set(names_of(found[each], schema["columns"]))))
    return found[best], best


def cells(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields each line that is not blank, with its number."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise Unusable(f"Line {reader.line_num} of {path} is no CSV: {error}.") from None


def names_of(given: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the model's names of columns for the names a file has; the second of two equal ones is the second."""
    waiting: dict[str, list[str]] = {}
    for column in columns:
        for spelled in dict.fromkeys((column["original_name"], column["name"])):
            waiting.setdefault(" ".join(spelled.split()), []).append(column["name"])
    named: list[str] = []
    for cell in given:
        free = [name for name in waiting.get(" ".join(cell.split()), []) if name not in named]
        name = free[0] if free else cell
        named.append(name if name not in named else f"{cell} (column {len(named) + 1})")
    return named


def listed(names: Sequence[Any]) -> str:
    """Returns "a, b and 3 more" of names, without line ends."""
    shown = ", ".join(" ".join(str(name).split())[:60] for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


if __name__ == "__main__":
    sys.exit(main())
