"""DATA_SOURCE: finds the table, reads it strictly, and leaves it as data.parquet with all that was odd about it.

By hand: `python -m stages.data_source envelope.json` in the folder of a run.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages import told_of_data as told
from stages.catalogue import Candidate, candidates, clear_choice
from stages.contract import Artifact, Envelope, Failed, Progress, Result, Room, main, replacing, sha256_of
from stages.formats import too_large
from stages.options import Options, bad, from_edits
from stages.places import Places
from stages.reading import Read, Rows, Source, open_rows, read_columns, read_rows, source_of
from stages.shown import plain
from stages.words import files_named

DATA = "data.parquet"
SCRATCH = "unpacked.part"
LOOKED_WHEN_CHOSEN = 8  # candidates opened when the table is chosen already: they are only offered beside it
MAX_TOLD_BYTES = 600_000  # of the description of the columns


def work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    """Does the stage. Raises Failed with the codes of docs/stages.md and what may be chosen to do better."""
    places = Places(room.root, envelope.data_folders)
    name, found = "", list[Candidate]()
    try:
        name = _named(envelope, room)
        progress.tell(0, "looking", always=True)
        found = candidates(places, envelope.objective, *([LOOKED_WHEN_CHOSEN] if name else []))
        options = from_edits(envelope.edits)
        if not name:
            choice = clear_choice(found)
            if choice is None:
                return _ask(places, envelope.objective, found)
            name = choice.path
        return _open(name, places.find(name), options, found, envelope, room, progress)
    except Failed as failed:
        failed.actions = (*failed.actions, *told.repairs(failed.issue.code, name, found))
        raise


def _open(
    name: str,
    path: Path,
    options: Options,
    found: list[Candidate],
    envelope: Envelope,
    room: Room,
    progress: Progress,
) -> Result:
    scratch = room.path(SCRATCH)
    try:
        return _read(name, path, source_of(path, scratch), options, found, envelope, room, progress)
    finally:
        scratch.unlink(missing_ok=True)


def _named(envelope: Envelope, room: Room) -> str:
    chosen = envelope.edits.get("data")
    if chosen is not None and (not isinstance(chosen, str) or not chosen):
        raise bad("data", "data must be the path of a table.")
    if chosen or envelope.data:
        return str(chosen or envelope.data)
    intent = room.root / "parse-intent" / "result.json"
    return str(room.result_of("PARSE_INTENT").get("data") or "") if intent.is_file() else ""


def _ask(places: Places, objective: str, found: list[Candidate]) -> Result:
    """Asks which table; fails when the objective names one that is not there, or there is none at all."""
    for name in files_named(objective)[:1]:
        places.find(name)
    readable = [candidate for candidate in found if candidate.look]
    if not found:
        text = "There is no table in the data folders or among the uploads."
        raise Failed("FILE_NOT_FOUND", text, suggestion="Upload a CSV, Excel, JSON lines or Parquet file.")
    return told.which_table(readable or found, found)


def _read(
    name: str,
    path: Path,
    source: Source,
    options: Options,
    found: list[Candidate],
    envelope: Envelope,
    room: Room,
    progress: Progress,
) -> Result:
    def say(rows: int) -> None:
        progress.tell(min(80.0, 5 + rows / 20_000), "reading", f"{rows:,} rows so far", done=rows)

    table: Rows | None = None
    if source.format == "parquet":
        read = read_columns(source, options, envelope.seed, say)
    else:
        table = open_rows(source, options)
        if options.header is None and getattr(table, "named", True) is False:
            raise told.no_header(table.names)
        read = read_rows(table, options, envelope.seed, say, options.decimal)
    _check(source, read, options)
    progress.tell(85, "writing", always=True)
    with replacing(room.path(DATA)) as part:
        arrays = [column.values for column in read.columns]
        pq.write_table(pa.Table.from_arrays(arrays, names=read.names), part, compression="zstd")
    result = {
        "path": name,
        **told.description(source, table, read),
        "sha256": sha256_of(path),
        "candidates": [candidate.to_json() for candidate in found[: told.MAX_CANDIDATES]],
    }
    if len(json.dumps(result, ensure_ascii=False).encode()) > MAX_TOLD_BYTES:
        raise too_large(source.name, "has column names that are too long all together")
    return Result(
        told.summary(source, table, read),
        result,
        told.actions(name, source, table, read, options, found),
        told.issues(source, table, read),
        [Artifact(DATA, "application/vnd.apache.parquet", f"The table {plain(source.name, 60)}, typed")],
    )


def _check(source: Source, read: Read, options: Options) -> None:
    if read.bad and (not options.skip_bad_rows or not read.rows):
        raise told.malformed(read)
    if not read.rows or not read.columns:
        text = f"{plain(source.name)} has the names of {len(read.names):,} columns and no rows."
        raise Failed("NO_ROWS", text, count=0, suggestion="Choose a file with rows, or another line for the names.")


if __name__ == "__main__":
    main(work)
