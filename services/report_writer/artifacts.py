"""Files of tasks, `reports/<task_id>/<name>`: written piece by piece, seen by nobody before they are whole and durable.

A file in one piece is written as a report is. One in several grows in the folder `.parts`, under a name that its place
gives: any replica may take the next piece, and a piece that is sent again finds its place.
"""

import codecs
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator

from conductor.v1 import report_writer_pb2

from services.report_writer.files import PARTS, Folder

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30  # of one file
BLOCK_BYTES = 1 << 20  # read at once
PART_S = 24 * 3600.0  # after which a file that nobody wrote to is given up: no command is silent for so long
SWEEP_S = 3600.0  # between two looks for those
TEXT, JSON, BYTES = "text/plain; charset=utf-8", "application/json", "application/octet-stream"


class Gap(Exception):
    """A piece does not join what is there. `size` is what is there, in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Different(Exception):
    """A file has not the content that was named."""


class Artifacts:
    """The files of all tasks below one reports folder. Every method but the first may raise NotAReport and OSError.

    Args:
        keep_s: seconds that a task's files are kept after the last of them was written; None: for ever.
    """

    def __init__(self, folder: Folder, keep_s: float | None) -> None:
        self._folder = folder
        self._keep_s = keep_s
        self._next_sweep = 0.0

    def add(self, task_id: str, name: str, offset: int, data: bytes) -> None:
        """Takes a piece that is not the last. Raises Gap."""
        if offset == 0:
            self._sweep()
        with self._part(task_id, name, make=offset == 0) as part:
            _join(part, offset, data)

    def finish(
        self, task_id: str, name: str, offset: int, data: bytes, sha256: str
    ) -> tuple[report_writer_pb2.Artifact, bool]:
        """Takes the last piece, and returns the file when it is durable, and whether it was there before.

        Raises Gap, and Different when the pieces have not this SHA-256 or another file stands there.
        """
        self._sweep()
        # Looks first: a repeat must succeed on a full disk too.
        with contextlib.suppress(FileNotFoundError):
            return self._standing(task_id, name, sha256), True
        try:
            if offset:
                whole = self._complete(task_id, name, offset, data, sha256)
            else:
                whole = self._publish(task_id, name, data, sha256)
        except (Gap, FileNotFoundError) as missing:
            with contextlib.suppress(FileNotFoundError):
                return self._standing(task_id, name, sha256), True
            raise missing
        # If it is not ours, another call with the same piece was faster.
        return (whole, False) if whole is not None else (self._standing(task_id, name, sha256), True)

    def discard(self, task_id: str, name: str, sha256: str) -> None:
        """Removes the pieces of a file, if there are any; also the finished one when it has the SHA-256 given."""
        with contextlib.suppress(FileNotFoundError), self._folder.inner(PARTS) as parts:
            parts.remove(_part_name(task_id, name))
        if not sha256:
            return
        with contextlib.suppress(FileNotFoundError, Different):
            os.close(self.open(task_id, name, sha256))
            with self._folder.inner(task_id) as inner:
                inner.remove(name)
            self._folder.remove_empty(task_id)

    def open(self, task_id: str, name: str, sha256: str) -> int:
        """Returns a descriptor of a file at its beginning. Raises FileNotFoundError, and Different."""
        with self._folder.inner(task_id) as inner:
            descriptor = inner.open_plain(name, os.O_RDONLY)
        try:
            if _described(name, descriptor).sha256 != sha256:
                raise Different
        except BaseException:  # the descriptor is nobody else's yet; it is raised on
            os.close(descriptor)
            raise
        return descriptor

    def _standing(self, task_id: str, name: str, sha256: str) -> report_writer_pb2.Artifact:
        descriptor = self.open(task_id, name, sha256)
        try:
            with self._folder.inner(task_id) as inner:
                inner.sync()  # its writer may have died before it did this
            return _described(name, descriptor)
        finally:
            os.close(descriptor)

    def _publish(self, task_id: str, name: str, data: bytes, sha256: str) -> report_writer_pb2.Artifact | None:
        whole = _Description(name)
        whole.add(data)
        if whole.artifact.sha256 != sha256:
            raise Different
        with self._folder.inner(task_id, make=True) as inner:
            return whole.artifact if self._folder.publish(name, data, inner) else None

    def _complete(
        self, task_id: str, name: str, offset: int, data: bytes, sha256: str
    ) -> report_writer_pb2.Artifact | None:
        with self._part(task_id, name) as part:
            _join(part, offset, data)
            whole = _described(name, part)
            if whole.sha256 != sha256:
                raise Different
            os.fchmod(part, 0o644)
            os.fsync(part)
            with self._folder.inner(PARTS) as parts, self._folder.inner(task_id, make=True) as inner:
                return whole if parts.move(_part_name(task_id, name), inner, name) else None

    @contextlib.contextmanager
    def _part(self, task_id: str, name: str, make: bool = False) -> Iterator[int]:
        """Opens what there is of a file. Raises Gap when there is nothing and it is not to be made."""
        try:
            with self._folder.inner(PARTS, make) as parts:
                part = parts.open_plain(_part_name(task_id, name), os.O_RDWR | (os.O_CREAT if make else 0))
        except FileNotFoundError:
            raise Gap(0) from None
        try:
            yield part
        finally:
            os.close(part)

    def _sweep(self) -> None:
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + SWEEP_S
        with contextlib.suppress(FileNotFoundError), self._folder.inner(PARTS) as parts:
            parts.remove_older(PART_S)
        if self._keep_s is not None and (removed := self._folder.remove_folders_older(self._keep_s)):
            log.info("removed the files of %d tasks that were kept long enough", removed)


def _part_name(task_id: str, name: str) -> str:
    return hashlib.sha256(f"{task_id}/{name}".encode()).hexdigest()


def _join(part: int, offset: int, data: bytes) -> None:
    size = os.fstat(part).st_size
    if offset > size:
        raise Gap(size)
    while data:
        written = os.pwrite(part, data, offset)
        offset, data = offset + written, data[written:]


def _described(name: str, descriptor: int) -> report_writer_pb2.Artifact:
    """Reads a file through, without moving its position."""
    whole = _Description(name)
    while block := os.pread(descriptor, BLOCK_BYTES, whole.size):
        whole.add(block)
    return whole.artifact


class _Description:
    """What a file is, block by block."""

    def __init__(self, name: str) -> None:
        self.size = 0
        self._name = name
        self._sha256 = hashlib.sha256()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_text = True

    def add(self, block: bytes) -> None:
        self.size += len(block)
        self._sha256.update(block)
        self._is_text = self._is_text and b"\0" not in block and self._decodes(block)

    @property
    def artifact(self) -> report_writer_pb2.Artifact:
        is_text = self._is_text and self._decodes(b"", final=True)
        text = JSON if self._name.endswith(".json") else TEXT
        return report_writer_pb2.Artifact(
            name=self._name,
            size_bytes=self.size,
            sha256=self._sha256.hexdigest(),
            media_type=text if is_text else BYTES,
        )

    def _decodes(self, block: bytes, final: bool = False) -> bool:
        try:
            self._decoder.decode(block, final)
        except UnicodeDecodeError:
            return False
        return True
