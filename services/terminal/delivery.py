"""A file brought into a named workspace: whole under its name, or not there.

Until it is whole it lies beside the command's folder, among the inputs, which are emptied before each use: what a kill
leaves there no command sees. Every folder on its path is opened from the one above, and no link is followed, so that
nothing outside of the workspace is touched whatever an earlier command left there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.common.errors import Reason, Refusal
from services.terminal import folders, refusals, usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.common.config import TerminalSettings
    from services.terminal.rooms import Rooms
    from services.terminal.workspace import Workspace

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PART = "delivery"  # how it is called until it is whole; one workspace takes one at a time
_BARRED = (errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG, errno.EACCES)


@dataclass(slots=True)
class Delivery:
    """One file on its way in. Its methods block on the disk, and may be called one after the other only.

    Args:
        rooms: has the workspace, which nobody else uses meanwhile.
        name: of the workspace.
        path: of the file in it, with `/`.
    """

    rooms: Rooms
    name: str
    path: str
    settings: TerminalSettings
    size: int = 0
    _room: Workspace | None = None
    _most: int = 0  # bytes that it may have
    _folder: int = -1
    _fd: int = -1
    _sha256: hashlib._Hash = field(default_factory=hashlib.sha256)

    def open(self) -> None:
        """Takes the workspace, and makes the folders on the path. Raises OVER_CAPACITY, FILE_NOT_FOUND and OSError."""
        *parents, _ = parts = self.path.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise refusals.no_place(self.name, self.path)
        self._room = room = self.rooms.take(self.name, None)
        held = usage.measure(room.work, self.settings.max_workspace_entries).used_bytes
        self._most = min(self.settings.max_file_size_bytes, self.settings.max_workspace_bytes - held)
        os.fchmod(room.inputs, 0o700)
        self._fd = os.open(_PART, _NEW_FILE, 0o600, dir_fd=room.inputs)
        with self._barred():
            self._folder = os.dup(room.work)
            for parent in parents:
                self._enter(parent)
        self._give(self._fd)

    def write(self, data: bytes) -> None:
        """Adds a piece. Raises COMMAND_LIMIT_EXCEEDED when there is no room for it, and OSError."""
        self.size += len(data)
        if self.size > self._most:
            text = f"Workspace {self.name} has room for {max(self._most, 0)} bytes more, not for {self.path[:200]}."
            raise Refusal(Reason.ERROR_REASON_COMMAND_LIMIT_EXCEEDED, text, limit=max(self._most, 0))
        self._sha256.update(data)
        with memoryview(data) as rest:
            written = 0
            while written < len(data):
                written += os.write(self._fd, rest[written:])

    def finish(self, wanted: str) -> str:
        """Gives the file its name, and returns its SHA-256. Raises UPLOAD_REFUSED when it should have another."""
        assert self._room is not None  # noqa: S101  it is open
        sha256 = self._sha256.hexdigest()
        if wanted and wanted != sha256:
            text = f"{self.path[:200]} has the SHA-256 {sha256}, not the one it should have. Send it again."
            raise Refusal(Reason.ERROR_REASON_UPLOAD_REFUSED, text, sha256=sha256)
        with self._barred():
            os.rename(_PART, self.path.rpartition("/")[2], src_dir_fd=self._room.inputs, dst_dir_fd=self._folder)
        return sha256

    def close(self) -> None:
        """Ends it; what is not finished is gone."""
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1
        room, self._room = self._room, None
        if room is None:
            return
        with contextlib.suppress(OSError):  # what is left there goes before the next use
            os.unlink(_PART, dir_fd=room.inputs)
        with contextlib.suppress(OSError):
            os.fchmod(room.inputs, 0o555)
        self.rooms.give_back(room)

    def _enter(self, name: str) -> None:
        made = False
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._folder)
            made = True
        inner = os.open(name, folders.FOLDER, dir_fd=self._folder)
        os.close(self._folder)
        self._folder = inner
        if made:
            self._give(inner)

    def _give(self, fd: int) -> None:
        """Gives what was made to whom the workspace belongs."""
        assert self._room is not None  # noqa: S101  it is open
        owner = os.fstat(self._room.work).st_uid
        if owner != os.geteuid():
            os.fchown(fd, owner, owner)

    @contextlib.contextmanager
    def _barred(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _BARRED:
                raise refusals.no_place(self.name, self.path) from None
            raise
