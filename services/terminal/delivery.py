"""A file brought into a named workspace: whole under its name, or not there.

Every folder on its path is opened from the one above, and no link is followed, so that nothing outside of the workspace
is touched whatever an earlier command left there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.common.errors import Reason, Refusal
from services.terminal import folders, refusals

if TYPE_CHECKING:
    from services.terminal.workspace import Workspace

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PART = ".delivered-"  # how a file is called until it is whole
_BARRED = (errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG, errno.EACCES)


@dataclass(slots=True)
class Delivery:
    """One file on its way in. Its methods block on the disk.

    Args:
        room: the workspace, which nobody else uses meanwhile.
        path: of the file in it, with `/`.
        most: bytes that it may have.
    """

    room: Workspace
    name: str
    path: str
    most: int
    size: int = 0
    _folder: int = -1
    _part: str = ""
    _fd: int = -1
    _sha256: hashlib._Hash = field(default_factory=hashlib.sha256)

    def open(self) -> None:
        """Makes the folders on its path. Raises FILE_NOT_FOUND and OSError."""
        *parents, last = self.path.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in (*parents, last)):
            raise refusals.no_file(self.name, self.path)
        try:
            self._folder = os.dup(self.room.work)
            for part in parents:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=self._folder)
                inner = os.open(part, folders.FOLDER, dir_fd=self._folder)
                os.close(self._folder)
                self._folder = inner
            self._part = f"{_PART}{secrets.token_hex(8)}"
            self._fd = os.open(self._part, _NEW_FILE, 0o600, dir_fd=self._folder)
        except OSError as error:
            if error.errno in _BARRED:
                raise refusals.no_file(self.name, self.path) from None
            raise

    def write(self, data: bytes) -> None:
        """Adds a piece. Raises OVER_CAPACITY and OSError."""
        self.size += len(data)
        if self.size > self.most:
            text = f"The file is larger than the {self.most} bytes a workspace may hold: {self.path[:200]}."
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=self.most)
        self._sha256.update(data)
        with memoryview(data) as rest:
            written = 0
            while written < len(data):
                written += os.write(self._fd, rest[written:])

    def finish(self, wanted: str) -> str:
        """Gives the file its name, and returns its SHA-256. Raises UPLOAD_REFUSED when it should have another."""
        sha256 = self._sha256.hexdigest()
        if wanted and wanted != sha256:
            text = f"{self.path[:200]} has the SHA-256 {sha256}, not the one it should have. Send it again."
            raise Refusal(Reason.ERROR_REASON_UPLOAD_REFUSED, text, sha256=sha256)
        _, _, last = self.path.rpartition("/")
        try:
            os.rename(self._part, last, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError as error:
            if error.errno in _BARRED:
                raise refusals.no_file(self.name, self.path) from None
            raise
        self._part = ""
        return sha256

    def close(self) -> None:
        """Ends it; what is not finished is gone."""
        if self._part:
            with contextlib.suppress(OSError):
                os.unlink(self._part, dir_fd=self._folder)
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1
