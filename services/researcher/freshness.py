"""Says whether anything below a folder changed since it was walked, without looking (inotify(7))."""

import ctypes
import errno
import os
import threading
import time
from typing import Final

# linux/inotify.h. What is read or opened is not of interest, what is written, renamed, made, removed or re-owned is.
_IN_MODIFY: Final = 0x2
_IN_ATTRIB: Final = 0x4
_IN_CLOSE_WRITE: Final = 0x8
_IN_MOVED: Final = 0xC0
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_IN_DELETE_SELF: Final = 0x400
_IN_MOVE_SELF: Final = 0x800
_IN_ONLYDIR: Final = 0x1000000
_MASK: Final = (
    _IN_MODIFY | _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_MOVED | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
) | _IN_ONLYDIR
_READ_BYTES: Final = 1024 * 1024


class Changes:
    """Watches on the folders of one walk. Thread-safe.

    A change that comes while the folders are walked counts as one behind the walk: the next look finds it. What is
    closed stays closed: a walk that still goes on then watches nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = -1
        self._sound = False
        self._closed = False
        self._first = self._last = 0.0  # when a change was seen first and last, by the monotonic clock; 0: none was

    def begin(self) -> None:
        """Forgets all watches; a walk begins."""
        with self._lock:
            self._release()
            self._first = self._last = 0.0
            if not self._closed:
                self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            self._sound = self._descriptor >= 0  # else there are too many instances (EMFILE)

    def add(self, folder: int) -> None:
        """Watches an open folder, from now on."""
        with self._lock:
            if self._sound:
                path = f"/proc/self/fd/{folder}".encode()  # the very folder that is open, whatever its name leads to
                self._sound = self._libc.inotify_add_watch(self._descriptor, path, _MASK) >= 0
                if not self._sound:  # the limit of watches (ENOSPC), or no /proc
                    self._release()

    def some(self) -> bool:
        """Says whether something changed since the walk began, or whether that cannot be said."""
        with self._lock:
            self._look()
            return not self._sound or self._first > 0

    def blind(self) -> bool:
        """Says whether changes cannot be seen, as without watches left on the machine."""
        with self._lock:
            return not self._sound

    def settled(self, quiet: float, most: float) -> bool:
        """Says whether something changed and then nothing for `quiet` seconds, or `most` seconds ago and since."""
        with self._lock:
            self._look()
            now = time.monotonic()
            return self._first > 0 and (now - self._last >= quiet or now - self._first >= most)

    def close(self) -> None:
        """Lets go of the watches, for good."""
        with self._lock:
            self._closed = True
            self._release()

    def _look(self) -> None:
        if self._sound and self._drained():
            self._last = time.monotonic()
            self._first = self._first or self._last

    def _drained(self) -> bool:
        """Reads what there is; True when that is a change, or too much (IN_Q_OVERFLOW comes as an event)."""
        try:
            return bool(os.read(self._descriptor, _READ_BYTES))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EINTR:
                return True
            raise

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._sound = -1, False
