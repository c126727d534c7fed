"""Where the documents of a collection come from: what lists them, reads them, and tells when they changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from services.researcher.documents import Original, Text, Unreadable
from services.researcher.watch import Watch

Stamp: TypeAlias = tuple[int, ...]  # differs when the content does; for a file device, inode, size, mtime, ctime
Member: TypeAlias = tuple[str, Text | Unreadable]  # path inside an archive, "" for the thing itself


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to index. `key` is its path below the source, `size` its bytes."""

    key: str
    stamp: Stamp
    size: int


@dataclass(frozen=True, slots=True)
class Missed:
    """Something that should be indexed and cannot be looked at."""

    key: str
    detail: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of an entry. `stamp` is None when it changed so lately that the next change may not show.

    Attributes:
        sha256: of the bytes, lower-case hexadecimal.
        size: bytes.
        members: the documents in it, made as they are asked for; raises Unreadable, OutOfTime, Cancelled.
    """

    sha256: str
    size: int
    stamp: Stamp | None
    members: Iterator[Member]


class Origin(Protocol):
    """Lists and reads entries. Thread-safe, but one `entries` is walked at a time."""

    def confirm(self, path: str) -> tuple[str, str]:
        """Returns what a path means: the key or beginning of keys, and the member, or beginning of members, of one.

        Raises Refusal (SOURCE_REFUSED) when it is not there.
        """

    def changed(self) -> bool:
        """Says whether anything may have changed since the last `entries("")` that came to its end."""

    def entries(self, below: str, watch: Watch) -> Iterator[Entry | Missed]:
        """Lists what is at or below a key, all for "", in a fixed order.

        Raises Refusal (SOURCE_REFUSED) when the whole origin cannot be opened; OutOfTime, Cancelled.
        """

    def read(self, key: str, watch: Watch) -> Reading:
        """Reads an entry. Raises Unreadable, OutOfTime, Cancelled."""

    def again(self, key: str, member: str, watch: Watch) -> Original:
        """Reads one document again. Raises Unreadable, OutOfTime, Cancelled."""

    def close(self) -> None:
        """Lets go of what it holds."""
