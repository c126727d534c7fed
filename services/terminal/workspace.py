"""The folders commands run in: made, filled with inputs, kept between commands, removed with whatever they hold.

Below the root, which is opened once and locked:
    command-<hex>/   a command's own, removed at its end
    kept-<name>/     a named one, kept from command to command
    removed-<hex>/   a named one on its way out
Each holds `work/`, the command's, and `inputs/`, which the command can read. Everything else below the root is not
this module's. A named one goes by a rename first, so a crash never leaves half of it under its name; parts that a crash
kept from being made are made when it is opened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from services.terminal import folders
from services.terminal.users import UIDS

OWN, KEPT, REMOVED = "command-", "kept-", "removed-"
WORK, INPUTS = "work", "inputs"
MOST_ENTRIES = 1_000_000  # that are handed from one user to the next
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # as the contract has it
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Workspace:
    """An open workspace. To close it removes nothing."""

    name: str  # of its folder
    work: int  # descriptor of the command's folder
    inputs: int  # descriptor of the folder it can read

    @property
    def work_path(self) -> str:
        """The command's folder, from the root."""
        return f"{self.name}/{WORK}"

    @property
    def inputs_path(self) -> str:
        """The folder of inputs, from the root."""
        return f"{self.name}/{INPUTS}"

    def close(self) -> None:
        """Closes the descriptors; again is no error."""
        while self.work >= 0:
            work, inputs, self.work, self.inputs = self.work, self.inputs, -1, -1
            os.close(work)
            os.close(inputs)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Kept:
    """A named workspace: its folder, and when it was last used, in seconds since the epoch."""

    folder: str
    used_at: float


@dataclass(frozen=True, slots=True)
class Swept:
    """How many workspaces were removed, and which could not be."""

    own: int
    kept: int
    stuck: tuple[tuple[str, OSError], ...]  # folder and why


Hold = Callable[[str], AbstractContextManager[bool]]


def _held(_: str) -> AbstractContextManager[bool]:
    return contextlib.nullcontext(True)


def own_name() -> str:
    """Returns a new name for a command's own workspace."""
    return OWN + secrets.token_hex(8)


def kept_name(name: str) -> str:
    """Returns the folder of a named workspace. Raises ValueError for a name that the contract does not have."""
    return KEPT + _checked(name)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: give letters, digits, '.', '_' and '-', and no sign at the beginning")
    return name


def open_root(path: Path, mode: int) -> int:
    """Opens the folder of all workspaces and locks it; makes it, with the mode, when it is missing.

    Raises BlockingIOError when another process has it, and other OSErrors when it cannot be used.
    """
    if not path.is_dir():
        path.mkdir(parents=True)
        path.chmod(mode)  # mkdir applies the umask
    root = _reach(None, str(path))
    try:
        found = os.fstat(root)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            # In a shared temporary directory somebody else may have been there first.
            raise PermissionError(errno.EPERM, "it belongs to another user, or others may write to it")
        fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:  # nothing half-made is left, whatever went wrong; it is raised on
        os.close(root)
        raise
    return root


def create(root: int, name: str, uid: int | None) -> Workspace:
    """Makes an empty workspace for a user (0: the own one). Raises OSError; then nothing is left of it."""
    _mend(root)
    os.mkdir(name, 0o700, dir_fd=root)
    try:
        return _open(root, name, uid)
    except BaseException:  # nothing half-made is left, whatever went wrong; it is raised on
        with contextlib.suppress(OSError):  # what is left is swept at the next start
            folders.remove(root, name)
        raise


def adopt(root: int, name: str, uid: int | None) -> Workspace:
    """Opens a named workspace for a user (0: the own one), makes it when there is none, and empties its inputs.

    All in `work/` is the user's then, whoever's it was; see folders.hand_over. Without a user it stays whose it is. No
    process may be using it. Raises OSError.
    """
    _mend(root)
    try:
        touch(root, name)
    except FileNotFoundError:
        return create(root, name, uid)
    return _open(root, name, uid)


def _reach(parent: int | None, name: str) -> int:
    """Opens a folder, also one that a command of the own user has locked."""
    try:
        return os.open(name, folders.FOLDER, dir_fd=parent)
    except PermissionError:
        return folders.open_unlocked(parent, name)


def _mend(root: int) -> None:
    """Makes the root usable again: a command of the own user can change its mode."""
    mode = os.fstat(root).st_mode
    if mode & 0o722 != 0o700:
        os.fchmod(root, 0o700 | mode & 0o011)


def _open(root: int, name: str, uid: int | None) -> Workspace:
    with contextlib.ExitStack() as always, contextlib.ExitStack() as on_failure:
        folder = folders.open_unlocked(root, name)
        always.callback(os.close, folder)
        work = _part(folder, WORK)
        on_failure.callback(os.close, work)
        inputs = _part(folder, INPUTS)
        on_failure.callback(os.close, inputs)
        folders.empty(inputs)
        os.fchmod(inputs, 0o555)
        if uid is not None:
            folders.hand_over(work, uid, UIDS, MOST_ENTRIES)
        if uid:
            os.fchmod(folder, 0o711)  # to pass through, and not to list
        on_failure.pop_all()
    return Workspace(name, work, inputs)


def _part(folder: int, name: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
    return folders.open_unlocked(folder, name)


def put_inputs(workspace: Workspace, files: Iterable[tuple[str, bytes]]) -> None:
    """Writes files that the command can read and not change. Raises OSError; then there are none."""
    os.fchmod(workspace.inputs, 0o700)
    try:
        for name, content in files:
            _write(workspace.inputs, _checked(name), content)
    except BaseException:  # nothing half-made is left, whatever went wrong; it is raised on
        folders.empty(workspace.inputs)
        raise
    finally:
        os.fchmod(workspace.inputs, 0o555)


def _write(folder: int, name: str, content: bytes) -> None:
    with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=folder), "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o444)


def open_work(root: int, name: str) -> int:
    """Opens the `work/` of a named workspace, to read what it holds. Raises OSError, FileNotFoundError if none."""
    folder = _reach(root, name)
    try:
        return _reach(folder, WORK)
    finally:
        os.close(folder)


def touch(root: int, name: str) -> None:
    """Says that a named workspace is used now. Raises FileNotFoundError when there is none."""
    os.utime(name, dir_fd=root, follow_symlinks=False)


def kept(root: int) -> list[Kept]:
    """Returns all named workspaces, the one longest unused first."""
    return sorted(_kept(root), key=lambda each: each.used_at)


def _kept(root: int) -> Iterator[Kept]:
    for name in os.listdir(root):
        if name.startswith(KEPT):
            with contextlib.suppress(FileNotFoundError):
                yield Kept(name, _used_at(root, name))


def _used_at(root: int, name: str) -> float:
    # The time of the last change cannot be set, unlike the others, which a command of the own user can set.
    return os.stat(name, dir_fd=root, follow_symlinks=False).st_ctime


def remove(root: int, name: str) -> None:
    """Removes a workspace with all it holds. No process may be using it. Raises OSError, FileNotFoundError if none."""
    _mend(root)
    if name.startswith(KEPT):
        name, going = REMOVED + secrets.token_hex(8), name
        os.rename(going, name, src_dir_fd=root, dst_dir_fd=root)
    folders.remove(root, name)


def sweep(root: int, older_than_s: float | None, now: float, hold: Hold = _held) -> Swept:
    """Removes what nobody uses; goes on where it cannot.

    Args:
        root: the folder of all workspaces.
        older_than_s: seconds without use after which a named one goes; None keeps all.
        now: seconds since the epoch. A workspace used after it counts as used now: the clock was set back.
        hold: takes a folder for the time of its removal, and tells whether it could. One in use must not be given.
    """
    _mend(root)
    own = named = 0
    stuck = []
    for name in os.listdir(root):
        if not name.startswith((OWN, REMOVED, KEPT)):
            continue
        try:
            with hold(name) as held:
                if held and (not name.startswith(KEPT) or unused(root, name, older_than_s, now)):
                    remove(root, name)
                    own, named = own + name.startswith(OWN), named + (not name.startswith(OWN))
        except FileNotFoundError:
            pass  # removed meanwhile by who used it
        except OSError as error:
            stuck.append((name, error))
    return Swept(own, named, tuple(stuck))


def unused(root: int, name: str, older_than_s: float | None, now: float) -> bool:
    """Tells whether nobody used a named workspace for so long; see `sweep`. Raises FileNotFoundError if none."""
    if older_than_s is None:
        return False
    used_at = _used_at(root, name)
    if used_at > now:
        touch(root, name)
    return now - used_at > older_than_s
