"""A reader of ZIP archives (APPNOTE 6.3.10): entries one by one, bounded, from bytes in memory.

Not zipfile, which keeps an object for each of a million entries before the first is read. What is encrypted, split or
compressed in a rare way is named and not read.
"""

import bz2
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from services.researcher.extract.parts import Broken

_END, _END_BYTES, _MAX_COMMENT = b"PK\x05\x06", 22, 65_535
_END64, _LOCATOR64, _LOCATOR64_BYTES = b"PK\x06\x06", b"PK\x06\x07", 20
_ENTRY, _ENTRY_BYTES = b"PK\x01\x02", 46
_LOCAL, _LOCAL_BYTES = b"PK\x03\x04", 30
_ENCRYPTED, _UTF8 = 0x1, 0x800
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_EXTRA64 = 1
_NO_ARCHIVE = "It is no ZIP archive, or it is cut off: its directory is missing."


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive. Sizes are what the directory says, which may be wrong."""

    name: str
    encrypted: bool
    method: int
    crc: int
    packed: int
    size: int
    offset: int  # of its local header


def entries(data: bytes) -> Iterator[Entry]:
    """Yields the files of an archive in the order of its directory. Raises Broken."""
    position, end, shift = _directory(data)
    while position + _ENTRY_BYTES <= end and data.startswith(_ENTRY, position):
        fields = struct.unpack_from("<6H3I5H2I", data, position + 4)
        _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length, *_, offset = fields
        start = position + _ENTRY_BYTES
        raw = data[start : start + name_length]
        extra = data[start + name_length : start + name_length + extra_length]
        size, packed, offset = _widened(extra, size, packed, offset)
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437", "replace")
        if not name.endswith("/"):
            yield Entry(name, bool(flags & _ENCRYPTED), method, crc, packed, size, offset + shift)
        position = start + name_length + extra_length + comment_length
    if position != end:
        raise Broken("Its directory is damaged: some of its members cannot be found.")


def expand(data: bytes, entry: Entry, most: int) -> bytes:
    """Returns what a file of the archive holds. Raises Broken, also when it is larger than `most` bytes."""
    if entry.encrypted:
        raise Broken("It is encrypted. Give it without its password.")
    packed = memoryview(data)[(start := _start(data, entry)) : start + entry.packed]
    if len(packed) < entry.packed:
        raise Broken("It is cut off: the archive ends inside it.")
    try:
        expanded = _expanded(packed, entry.method, most + 1)
    except (zlib.error, OSError, EOFError, ValueError):
        raise Broken("It is damaged: it does not expand.") from None
    if len(expanded) > most:
        raise Broken(f"It is larger than {most:,} bytes when expanded.", truncated=True)
    if zlib.crc32(expanded) != entry.crc:
        raise Broken("It is damaged: its checksum is wrong.")
    return expanded


def _expanded(packed: memoryview, method: int, most: int) -> bytes:
    if method == _STORED:
        return bytes(packed[:most])
    if method == _DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most)
    if method == _BZIP2:
        return bz2.BZ2Decompressor().decompress(packed, most)
    raise Broken(f"It is compressed with method {method}, which is not read. Use deflate.")


def _directory(data: bytes) -> tuple[int, int, int]:
    """Returns begin and end of the directory, and by how many bytes something before the archive shifts all offsets."""
    at = data.rfind(_END, max(len(data) - _END_BYTES - _MAX_COMMENT, 0))
    if at < 0 or at + _END_BYTES > len(data):
        raise Broken(_NO_ARCHIVE)
    disk, _, _, count, size, offset, _ = struct.unpack_from("<4H2IH", data, at + 4)
    end = at
    if _FULL16 in (count, disk) or _FULL32 in (size, offset):
        locator = at - _LOCATOR64_BYTES
        if locator >= 0 and data.startswith(_LOCATOR64, locator):
            end = data.rfind(_END64, max(locator - _MAX_COMMENT, 0), locator)
            if end < 0 or end + 56 > len(data):
                raise Broken(_NO_ARCHIVE)
            size, offset = struct.unpack_from("<2Q", data, end + 40)
    begin = end - size
    if begin < 0 or begin < offset:
        raise Broken(_NO_ARCHIVE)
    return begin, end, begin - offset


def _widened(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Returns sizes and offset from the ZIP64 field where the directory has no room for them (4.5.3)."""
    position = 0
    while position + 4 <= len(extra):
        identity, length = struct.unpack_from("<2H", extra, position)
        if identity == _EXTRA64:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra[: position + 4 + length], position + 4))
            size, packed, offset = (next(wide, each) if each == _FULL32 else each for each in (size, packed, offset))
            break
        position += 4 + length
    return size, packed, offset


def _start(data: bytes, entry: Entry) -> int:
    if not data.startswith(_LOCAL, entry.offset) or entry.offset + _LOCAL_BYTES > len(data):
        raise Broken("It is damaged: it does not stand where the archive's directory says.")
    name_length, extra_length = struct.unpack_from("<2H", data, entry.offset + 26)
    return int(entry.offset + _LOCAL_BYTES + name_length + extra_length)
