"""Files that are whole or not there."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from services.conductor.store.admin import AdminError


def refuse_existing(file: Path, force: bool) -> None:
    """Raises AdminError when a file would be replaced that nobody allowed to be."""
    if file.exists() and not force:
        raise AdminError(f"{file} exists: name another file, or give --force to replace it.")


@contextlib.contextmanager
def written(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Gives an empty file beside `path` to be filled; it takes its place once it is on the disk.

    Args:
        before: what is done just before that.

    Raises:
        AdminError: the file system refuses; there is nothing new then.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            _sync(part)
            before()
            part.rename(path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise AdminError(f"{path} cannot be made: {error.strerror}.") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
