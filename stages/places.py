"""Where data may lie: below the data folders and the run's uploads, and nowhere else.

Nothing is followed out of them: not "..", not an absolute path, not a link.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from stages.contract import Failed
from stages.shown import listed, nearest, plain

UPLOADS = "uploads"  # folder in the run's
MAX_FILES = 2000  # looked at in all folders together
MAX_DEPTH = 6  # folders below a data folder
MAX_ENTRIES = 20_000  # names read in all, files of other kinds included
TABLES = (".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xlsm", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
PACKED = (".gz", ".bz2", ".xz", ".zip")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_DRIVE = re.compile(r"[a-zA-Z]:[\\/]")


class Places:
    """The folders of one run that may hold data."""

    def __init__(self, run: Path, folders: Sequence[str]) -> None:
        self._run = run
        self._folders = [Path(folder) for folder in folders]

    def names(self) -> dict[str, Path]:
        """Returns every table at hand by the path a person names it with. The first folder with a name wins."""
        found: dict[str, Path] = {}
        budget = [MAX_ENTRIES]
        roots = [(self._run / UPLOADS, f"{UPLOADS}/"), *((folder, "") for folder in self._folders)]
        for root, prefix in roots:
            for path in _walk(root, MAX_DEPTH, budget):
                if len(found) >= MAX_FILES:
                    return found
                found.setdefault(prefix + path.relative_to(root).as_posix(), path)
        return found

    def find(self, name: str) -> Path:
        """Returns the file of that name.

        Raises Failed with UNSUPPORTED_SOURCE, PATH_OUTSIDE_WORKSPACE, FILE_NOT_FOUND or UNREADABLE_FILE.
        """
        parts = _parts(name)
        in_uploads = parts[0] == UPLOADS and len(parts) > 1
        for root in [self._run] if in_uploads else self._folders:
            path = root.joinpath(*parts)
            if os.path.lexists(path):
                return _regular(root, parts, name)
        raise self._missing(name)

    def _missing(self, name: str) -> Failed:
        known = self.names()
        by_name = {PurePosixPath(path).name: path for path in known}
        close = nearest(name, known) or [by_name[near] for near in nearest(PurePosixPath(name).name, by_name)]
        text = f"There is no file {plain(name)} in the data folders or among the uploads."
        if close:
            return Failed("FILE_NOT_FOUND", text, value=plain(name), suggestion=f"Did you mean {listed(close)}?")
        there = f"There are: {listed(sorted(known))}." if known else "Upload a table first."
        return Failed("FILE_NOT_FOUND", text, value=plain(name), suggestion=there)


def is_table(name: str) -> bool:
    """Returns whether a file of this name may hold a table: by its ending, compressed ones included."""
    path = PurePosixPath(name.lower())
    return path.suffix in TABLES or path.suffix == ".zip" or (path.suffix in PACKED and _inner(path) in TABLES)


def _inner(path: PurePosixPath) -> str:
    return PurePosixPath(path.stem).suffix


def _parts(name: str) -> tuple[str, ...]:
    if _URL.match(name):
        text = f"{plain(name)} is an address on a network. A stage opens no connections."
        raise Failed("UNSUPPORTED_SOURCE", text, value=plain(name), suggestion="Download the file and upload it.")
    parts = PurePosixPath(name).parts
    outside = name.startswith(("/", "~", "\\")) or ".." in parts or _DRIVE.match(name) or "\0" in name
    if outside:
        last = plain(re.split(r"[/\\]", name.rstrip("/\\"))[-1])  # an absolute path may say too much of this machine
        text = f"The path of {last} points out of the data folders."
        advice = "Name the file by its path below a data folder, or upload it."
        raise Failed("PATH_OUTSIDE_WORKSPACE", text, value=last, suggestion=advice)
    if not parts:
        raise Failed("FILE_NOT_FOUND", "No file was named.", suggestion="Choose a file or upload one.")
    return parts


def _regular(root: Path, parts: Sequence[str], name: str) -> Path:
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            text = f"{plain(name)} is a link, or lies behind one. Links are not followed."
            advice = "Put the file itself into the data folder, or upload it."
            raise Failed("PATH_OUTSIDE_WORKSPACE", text, value=plain(name), suggestion=advice)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        text = f"{plain(name)} is a folder, not a file."
        raise Failed("FILE_NOT_FOUND", text, value=plain(name), suggestion="Name one of the files in it.")
    if not stat.S_ISREG(mode):
        text = f"{plain(name)} is neither a file nor a folder, but a device or a pipe."
        raise Failed("UNREADABLE_FILE", text, value=plain(name), suggestion="Choose an ordinary file.")
    if not os.access(path, os.R_OK):
        text = f"{plain(name)} may not be read."
        raise Failed("UNREADABLE_FILE", text, value=plain(name), suggestion="Allow reading it, or upload a copy.")
    return path


def _walk(folder: Path, depth: int, budget: list[int]) -> Iterator[Path]:
    """Yields the tables below a folder in the order of their names. Hidden ones and links are left out."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(_some(listing, budget), key=lambda entry: entry.name)
    except OSError:
        return  # a folder that is not there, or may not be read, offers nothing
    for entry in entries:
        if entry.is_file(follow_symlinks=False) and is_table(entry.name):
            yield Path(entry.path)
    for entry in entries:
        if depth > 0 and entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), depth - 1, budget)


def _some(listing: Iterator["os.DirEntry[str]"], budget: list[int]) -> Iterator["os.DirEntry[str]"]:
    for entry in listing:
        if budget[0] <= 0:
            return
        budget[0] -= 1
        if not entry.name.startswith("."):
            yield entry
