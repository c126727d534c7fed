"""Hands out workspaces: one of its own to a command, or a named one to one command at a time."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from services.common.config import ConfigError
from services.terminal import outputs, refusals, workspace
from services.terminal.workspace import Workspace

log = logging.getLogger(__name__)


class Rooms:
    """The folder of all workspaces. Its methods may be called from any thread, and block on the disk.

    Args:
        keep_s: seconds that a named workspace is kept after its last use.
    """

    def __init__(self, keep_s: float) -> None:
        self.path = Path()  # known when it is open
        self._keep_s = keep_s
        self._root = -1
        self._lock = threading.Lock()
        self._busy: set[str] = set()  # folders that are in use, or being removed

    def open(self, path: Path, for_others: bool) -> None:
        """Takes the folder and sweeps it. Raises ConfigError when it cannot be used or another Terminal has it.

        Args:
            for_others: whether commands have users of their own, who must be able to pass through, and may not list.
        """
        self.path = path
        try:
            self._root = workspace.open_root(path, 0o711 if for_others else 0o700)
        except BlockingIOError:
            raise ConfigError(
                f"TERMINAL_WORKSPACES={str(path)!r} is in use by another Terminal: give each its own folder."
            ) from None
        except OSError as error:
            raise ConfigError(
                f"TERMINAL_WORKSPACES={str(path)!r} cannot be used: {error.strerror}. Name a folder that this user may "
                "write to, and nobody else."
            ) from None
        self.sweep()

    def close(self) -> None:
        """Lets go of the folder. Nothing may be in use, and nothing may be asked for any more."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def take(self, name: str, uid: int | None) -> Workspace:
        """Returns a workspace for a command's user (0: the own one; None: whose it is); `give_back` it.

        Args:
            name: of a named one, made if there is none; "" for one of the command's own.

        Raises OSError, or OVER_CAPACITY when the named one is in use.
        """
        folder = workspace.kept_name(name) if name else workspace.own_name()
        self._occupy(folder, name)
        try:
            return (workspace.adopt if name else workspace.create)(self._root, folder, uid)
        except BaseException:  # what was taken is given back, whatever went wrong; it is raised on
            self._leave(folder)
            raise

    def give_back(self, room: Workspace) -> None:
        """Ends the use of a workspace: one of a command's own is removed, a named one kept from now on."""
        room.close()
        self._leave(room.name)

    def remove(self, name: str, unused_s: float = 0) -> None:
        """Removes a named workspace, if there is one.

        Args:
            unused_s: seconds that nobody may have used it for.

        Raises OVER_CAPACITY when it is in use, or was too short a time ago, and OSError.
        """
        folder = workspace.kept_name(name)
        self._occupy(folder, name)
        try:
            if unused_s and not workspace.unused(self._root, folder, unused_s, time.time()):
                raise refusals.workspace_busy(name)
            workspace.remove(self._root, folder)
        except FileNotFoundError:
            pass
        finally:
            with self._lock:
                self._busy.discard(folder)

    def open_file(self, name: str, path: str) -> int:
        """Opens a file of a named workspace and returns its descriptor. Raises FILE_NOT_FOUND and OSError."""
        try:
            folder = workspace.kept_name(name)
            workspace.touch(self._root, folder)
            work = workspace.open_work(self._root, folder)
            try:
                return outputs.open_file(work, path)[0]
            finally:
                os.close(work)
        except (FileNotFoundError, NotADirectoryError):
            raise refusals.no_file(name, path) from None

    def sweep(self) -> None:
        """Removes what nobody uses: own workspaces that an earlier process left, named ones that were kept long enough.

        Raises OSError when the folder cannot be used.
        """
        swept = workspace.sweep(self._root, self._keep_s, time.time(), self._hold)
        if swept.own or swept.kept:
            log.info("removed %d workspaces of ended commands and %d named ones", swept.own, swept.kept)
        for name, error in swept.stuck:
            log.error("workspace %s could not be removed, the next sweep tries again: %s", name, error)

    @contextlib.contextmanager
    def _hold(self, folder: str) -> Iterator[bool]:
        """Takes a folder for the time of the block, and tells whether it could."""
        with self._lock:
            free = folder not in self._busy
            if free:
                self._busy.add(folder)
        try:
            yield free
        finally:
            if free:
                with self._lock:
                    self._busy.discard(folder)

    def _occupy(self, folder: str, name: str) -> None:
        with self._lock:
            if folder in self._busy:
                raise refusals.workspace_busy(name)
            self._busy.add(folder)

    def _leave(self, folder: str) -> None:
        """Removes or keeps a folder that is no longer used."""
        try:
            if folder.startswith(workspace.OWN):
                workspace.remove(self._root, folder)
            else:
                workspace.touch(self._root, folder)
        except FileNotFoundError:
            pass  # it could not be made
        except OSError as error:
            log.error("workspace %s could not be removed, the next sweep tries again: %s", folder, error)
        finally:
            with self._lock:
                self._busy.discard(folder)
