"""What the parser process does with a file of tables: its text, or that of each of its tables.

Part of the parser process, in the sandbox of extract/sandbox.py; see extract/worker.py.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from services.researcher.extract import worker
from services.researcher.extract.parts import Begun, Bounds, Broken, Exhausted, Items, Trouble
from services.researcher.tables import database, delimited, records, workbook
from services.researcher.tables.kinds import kind
from services.researcher.tables.profile import Table, written

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from services.researcher.tables.program import main; main()"

MAX_NAME = 200  # characters of a table's name in a uri
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f/\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

_READERS: dict[str, Callable[[str, bytes, Bounds], Iterator[Table]]] = {
    "delimited": lambda name, data, _: iter((delimited.table(name, data),)),
    "lines": lambda name, data, _: iter((records.lines(name, data),)),
    "json": lambda name, data, _: records.tables(name, data),
    "workbook": lambda _, data, bounds: workbook.tables(data, bounds),
    "database": lambda _, data, __: database.tables(data),
}


def main() -> None:
    """Answers files of tables; see worker.main."""
    worker.main(read)


def read(path: str, data: bytes, bounds: Bounds) -> Items:
    """Yields the text of each table; a problem of one does not end the others.

    Args:
        path: of the file, below its source.
    """
    pure = PurePosixPath(path)
    folder = "" if str(pure.parent) == "." else str(pure.parent)
    seen: Counter[str] = Counter()
    try:
        for table in _READERS[kind(pure.name)](pure.name, data, bounds):
            member = _label(table.member, seen)
            if bounds.begin() and bounds.wanted in (None, member):
                yield Begun(member, bounds.begun)
                yield from _guarded(replace(table, member=member), pure.name, folder)
    except Broken as broken:
        yield Trouble("", str(broken), broken.truncated)
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes make readers raise anything; the file is named, the next one is read
        yield Trouble("", f"It is broken: its reader gave up ({type(error).__name__}).")


def _guarded(table: Table, file: str, folder: str) -> Items:
    try:
        yield from written(table, file, folder)
    except Exhausted:
        raise
    except Broken as broken:
        yield Trouble(table.member, str(broken), broken.truncated)
    except MemoryError:
        raise
    except Exception as error:  # as above, but of one table
        yield Trouble(table.member, f"It is broken: its reader gave up ({type(error).__name__}).")


def _label(name: str, seen: Counter[str]) -> str:
    """Returns a table's name as it goes into a uri: one printable component, told from others of that name."""
    if not name and not seen:
        seen[""] += 1
        return ""
    label = _UNPRINTABLE.sub("\ufffd", name)[:MAX_NAME].strip() or "unnamed"
    seen[label] += 1
    return label if seen[label] == 1 else f"{label}~{seen[label]}"
