"""Pages on disk until they expire: one file for each address, safe for several processes, bounded in size.

A file is a line of JSON and the body behind it. It is written aside and renamed, so a reader sees a whole file or none;
what a crash left half-written does not match its own hash and counts as absent.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

LONGEST_S = 7 * 86_400  # seconds a page is believed to be fresh at most, whatever its server says
KEPT_STALE_S = 30 * 86_400  # seconds a stale page is kept, to ask whether it changed
ROOM = 0.8  # of the most bytes is left over by a clearing
LOOK_EVERY = 64  # pages written before the folder is looked through again

_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?([0-9]{1,18})", re.I)


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it was fetched. Times are nanoseconds since 1970.

    Attributes:
        url: the address it stands at, after redirects.
        type: media type, lower case, without parameters.
        charset: as the server names it; empty when it does not.
        sha256: of the body.
        fresh_until_ns: when it must be asked for again.
        validators: request headers that ask whether it changed.
        private: `host:port` of each private host on the way to it, which the operator allowed then.
    """

    url: str
    type: str
    charset: str
    sha256: str
    retrieved_ns: int
    fresh_until_ns: int
    validators: Mapping[str, str]
    private: tuple[str, ...]
    body: bytes


class Cache:
    """Keeps pages below a folder. Trouble with the disk makes it forget, never fail.

    Args:
        most_bytes: of all pages; the longest unused go first.
        default_seconds: for which a page is fresh whose server says nothing.
        clock: nanoseconds since 1970.
    """

    def __init__(
        self, folder: Path, most_bytes: int, default_seconds: float, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._default_seconds = default_seconds
        self._clock = clock
        self._written = 0
        self._bytes = 0  # written since the folder was looked through
        self._lock = threading.Lock()

    def get(self, url: str) -> Page | None:
        """Returns the page kept for an address, fresh or stale."""
        path = self._path(url)
        try:
            line, _, body = path.read_bytes().partition(b"\n")
            facts = json.loads(line)
            page = Page(**(facts | {"private": tuple(facts["private"])}), body=body)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if hashlib.sha256(body).hexdigest() != page.sha256:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # for the clearing: used now
        return page

    def fresh(self, page: Page) -> bool:
        """Whether a page need not be asked for again. A clock that was set back makes it stale."""
        return page.retrieved_ns <= self._clock() < page.fresh_until_ns

    def until(self, headers: Mapping[str, str], now_ns: int) -> int | None:
        """Returns until when an answer is fresh, None when it may not be kept (RFC 9111 5.2.2)."""
        control = headers.get("cache-control", "").lower()
        directives = {part.partition("=")[0].strip() for part in control.split(",")}
        if "no-store" in directives:
            return None
        age = _MAX_AGE.search(control)
        seconds = 0.0 if "no-cache" in directives else float(age[1]) if age else self._default_seconds
        return now_ns + round(min(seconds, LONGEST_S) * 1e9)

    def put(self, url: str, page: Page) -> None:
        """Keeps a page for an address it was asked for by."""
        facts = asdict(page)
        body: bytes = facts.pop("body")
        data = json.dumps(facts).encode() + b"\n" + body
        if len(data) > self._most_bytes:
            return
        path = self._path(url)
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(path, data)
        if self._due(len(data)):
            self.clear()

    def _due(self, size: int) -> bool:
        with self._lock:
            self._written += 1
            self._bytes += size
            due = self._written == 1 or self._written % LOOK_EVERY == 0 or self._bytes > self._most_bytes * (1 - ROOM)
            if due:
                self._bytes = 0
            return due

    def clear(self) -> None:
        """Removes what is too old, and the longest unused when there is too much. One process at a time does it."""
        with contextlib.suppress(OSError), self._alone():
            now = time.time()
            entries = sorted(self._entries())
            total = sum(size for _, size, _ in entries)
            room = self._most_bytes if total <= self._most_bytes else self._most_bytes * ROOM
            for used, size, path in entries:
                if total <= room and now - used < KEPT_STALE_S:
                    break
                path.unlink(missing_ok=True)
                total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the folder's lock; raises BlockingIOError when another process clears already."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)

    def _path(self, url: str) -> Path:
        name = hashlib.sha256(url.encode()).hexdigest()
        return self._folder / name[:2] / name[2:]


def _replace(path: Path, data: bytes) -> None:
    descriptor, aside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(aside).replace(path)
    except BaseException:  # whatever it is: nothing half-written stays, and it goes on up
        Path(aside).unlink(missing_ok=True)
        raise
