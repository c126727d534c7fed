"""Logs that are long already: a real task's rows, many times over, written straight into the store.

Usage: python -m bench.fill sqlite|postgres EVENTS FOLDER

Conductor makes the schema and runs one task of the job; its rows, as it wrote them, are then repeated under other ids,
64 tasks interleaved. Only ids, positions and times differ: each task is a second later than the one before, the last an
hour ago. `conductor admin check --full` finds nothing wrong with the result.
"""

import asyncio
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import apsw
import asyncpg

from bench import driver
from bench.system import PARTS, Engine, System

INTERLEAVED = 64  # tasks whose events are mixed
CHUNK = INTERLEAVED * 512  # tasks of one transaction
TIMES = {"created_at", "ended_at"}  # columns, in nanoseconds
SECOND = 1_000_000_000
AROUND_S = 3600  # nothing in a task is further from its beginning
MARKER = "filled.json"
ROOM = 2.0  # times the size of the rows that must be free on the disk: indices, write-ahead log
ROW_OVERHEAD_BYTES = 200
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

_SECONDS = re.compile(rb"\x08([\x80-\xff]{4}[\x01-\x0f])")

Row = dict[str, Any]


class Target(Protocol):
    """Where rows go."""

    async def rows(self, table: str, order: str) -> Sequence[Row]:
        """Returns all rows of a table."""

    async def add(self, table: str, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
        """Adds rows in one transaction."""

    async def finish(self, pos: int) -> None:
        """Says where the log ends and brings statistics and files into the state that they would have by now."""


@dataclass(frozen=True, slots=True)
class Template:
    """Rows of one task, and what differs from task to task in their bytes.

    Attributes:
        ids: the UUIDs, the task's own first.
        seconds: the times, in whole seconds since the epoch; the fractions stay.
    """

    aggregate: Row
    events: Sequence[Row]
    ids: Sequence[bytes]
    seconds: Sequence[int]

    @property
    def varying(self) -> Sequence[bytes]:
        """The ids and the times as they stand in the bytes."""
        return [*self.ids, *map(_seconds_field, self.seconds)]

    @property
    def size(self) -> int:
        """Bytes of one task's rows, about."""
        return sum(len(row["data"]) + ROW_OVERHEAD_BYTES for row in self.events) + len(self.aggregate["state"])


def template(aggregates: Sequence[Row], events: Sequence[Row]) -> Template:
    """Finds what differs from task to task in the rows of the only task."""
    task = next(row for row in aggregates if row["kind"] == "task")
    own = [row for row in events if row["id"] == task["id"]]
    ids, seconds = dict.fromkeys([task["id"].encode()]), set()
    began = task["created_at"] // SECOND
    for value in (task["state"], *(row["data"] for row in own)):
        ids.update(dict.fromkeys(_UUID.findall(value)))
        seconds |= {found for found in map(_varint, _SECONDS.findall(value)) if abs(found - began) <= AROUND_S}
    return Template(task, own, list(ids), sorted(seconds))


def _varint(data: bytes) -> int:
    return sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(data))


def _seconds_field(seconds: int) -> bytes:
    """Returns the first field of a google.protobuf.Timestamp; its length is the same for all times of this century."""
    return b"\x08" + bytes([seconds >> 7 * i & 0x7F | (0x80 if i < 4 else 0) for i in range(5)])


class _Form:
    """A value of the template in which ids can be replaced: bytes formatting does in C what a loop would do slowly."""

    def __init__(self, value: bytes, ids: Sequence[bytes]) -> None:
        parts = re.split(b"(" + b"|".join(map(re.escape, ids)) + b")", value)
        self._text = b"%b".join(part.replace(b"%", b"%%") for part in parts[::2])
        self._places = [ids.index(part) for part in parts[1::2]]

    def filled(self, names: Sequence[bytes]) -> bytes:
        return self._text % tuple([names[place] for place in self._places])


class Copies:
    """Rows of many tasks like the template, beginning behind position `pos`."""

    def __init__(self, made_from: Template, tasks: int, pos: int) -> None:
        self._template = made_from
        self._earliest = -tasks - AROUND_S  # seconds from the template's task to the first one
        self._began_ms = made_from.aggregate["created_at"] // 1_000_000
        self._pos = pos
        self._data = [_Form(row["data"], made_from.varying) for row in made_from.events]
        self._state = _Form(made_from.aggregate["state"], made_from.varying)

    @property
    def pos(self) -> int:
        """The position of the last event given."""
        return self._pos

    def _names(self, task: int) -> list[bytes]:
        """Returns what stands in place of the template's `varying`: UUIDs of version 7 that sort by task, and times."""
        later = self._earliest + task
        ms = b"%012x" % (self._began_ms + later * 1000)
        before, behind = ms[:8] + b"-" + ms[8:] + b"-7", b"-8000-%012x" % task
        ids = [b"%b%03x%b" % (before, i, behind) for i in range(len(self._template.ids))]
        return ids + [_seconds_field(seconds + later) for seconds in self._template.seconds]

    def aggregates(self, tasks: range) -> Iterator[Sequence[Any]]:
        for task in tasks:
            names, row = self._names(task), dict(self._template.aggregate)
            row["id"], row["state"] = names[0].decode(), self._state.filled(names)
            for column in TIMES & row.keys():
                row[column] += (self._earliest + task) * SECOND
            yield tuple(row.values())

    def events(self, tasks: range) -> Iterator[Sequence[Any]]:
        columns = list(self._template.events[0])
        own, pos, data = (columns.index(name) for name in ("id", "pos", "data"))
        for first in range(tasks.start, tasks.stop, INTERLEAVED):
            named = [self._names(task) for task in range(first, min(first + INTERLEAVED, tasks.stop))]
            for row, form in zip(self._template.events, self._data, strict=True):
                for names in named:
                    self._pos += 1
                    values = list(row.values())
                    values[own], values[pos], values[data] = names[0].decode(), self._pos, form.filled(names)
                    yield values


class SqliteTarget:
    """A database file that nobody else uses now."""

    def __init__(self, path: Path) -> None:
        self._database = apsw.Connection(str(path))
        self._database.execute("PRAGMA synchronous=OFF")  # a fill that is cut off is begun again
        self._database.execute("PRAGMA cache_size=-262144")

    async def rows(self, table: str, order: str) -> Sequence[Row]:
        cursor = self._database.execute(f"SELECT * FROM {table} ORDER BY {order}")  # noqa: S608  constants
        return [dict(zip((name for name, _ in cursor.getdescription()), row, strict=True)) for row in cursor]

    async def add(self, table: str, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
        names, marks = ",".join(columns), ",".join("?" * len(columns))
        with self._database:
            self._database.executemany(f"INSERT INTO {table}({names}) VALUES ({marks})", rows)  # noqa: S608  constants

    async def finish(self, pos: int) -> None:
        self._database.execute("UPDATE log_head SET pos = ?", (pos,))
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._database.close()


class PostgresTarget:
    """A database that nobody else uses now."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def rows(self, table: str, order: str) -> Sequence[Row]:
        return [dict(row) for row in await self._connection.fetch(f"SELECT * FROM {table} ORDER BY {order}")]  # noqa: S608

    async def add(self, table: str, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
        await self._connection.copy_records_to_table(table, records=rows, columns=columns)

    async def finish(self, pos: int) -> None:
        await self._connection.execute("UPDATE log_head SET pos = $1", pos)
        await self._connection.execute("VACUUM (ANALYZE)")  # what autovacuum would do during the first measurement
        await self._connection.execute("CHECKPOINT")


@contextlib.asynccontextmanager
async def _target(system: System) -> AsyncIterator[Target]:
    if system.engine == "sqlite":
        yield SqliteTarget(Path(system.store))
        return
    connection = await asyncpg.connect(system.store)
    try:
        yield PostgresTarget(connection)
    finally:
        await connection.close()


async def fill(data: Path, engine: Engine, events: int) -> Mapping[str, Any]:
    """Makes a store with so many events, about, in a folder. Returns what was done.

    A folder that was filled before is used again: what was measured on it since has made its log a little longer.
    """
    marker = data / MARKER
    if marker.exists():
        return {**json.loads(marker.read_text()), "used_again": True}
    shutil.rmtree(data, ignore_errors=True)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=data.parent, prefix="fill-") as folder:
        async with System(Path(folder), engine, data=data) as system:
            await driver.task(system.stub())
            await system.stop(PARTS)
            async with _target(system) as target:
                done = await _fill(target, events, data)
    done["seconds"] = round(time.perf_counter() - begun, 1)
    done["mib_on_disk"] = _mib(data)
    marker.write_text(json.dumps(done))
    return done


def _mib(folder: Path) -> int:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20)


async def _fill(target: Target, events: int, data: Path) -> dict[str, Any]:
    one = template(await target.rows("aggregates", "id"), await target.rows("events", "pos"))
    tasks = max(1, events // len(one.events) - 1)
    free = shutil.disk_usage(data).free
    if free < tasks * one.size * ROOM:
        raise SystemExit(f"{events} events need {tasks * one.size * ROOM / 2**30:.0f} GiB free on the disk of {data}.")
    copies = Copies(one, tasks, one.events[-1]["pos"])
    for first in range(0, tasks, CHUNK):
        chunk = range(first, min(first + CHUNK, tasks))
        await target.add("aggregates", list(one.aggregate), copies.aggregates(chunk))
        await target.add("events", list(one.events[0]), copies.events(chunk))
    await target.finish(copies.pos)
    return {
        "events": copies.pos,
        "tasks": tasks + 1,
        "events_per_task": len(one.events),
        "bytes_per_event": round(sum(len(row["data"]) for row in one.events) / len(one.events)),
        "bytes_of_events": [len(row["data"]) for row in one.events],
    }


def main() -> None:
    engine, events, folder = sys.argv[1:]
    assert engine in ("sqlite", "postgres"), engine
    data = Path(folder).absolute()
    data.parent.mkdir(parents=True, exist_ok=True)
    print(json.dumps(asyncio.run(fill(data, "sqlite" if engine == "sqlite" else "postgres", int(events)))))


if __name__ == "__main__":
    main()
