"""What a file is, by its first bytes and not by its name, and how a compressed one is laid open.

Nothing is ever unpickled, and nothing grows without bound: a compressed file may unpack to MAX_BYTES and to MAX_RATIO
times its size, no further.
"""

import bz2
import errno
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Literal, cast

from stages.contract import MIB, Failed
from stages.places import is_table
from stages.shown import listed, plain

Format = Literal["csv", "xlsx", "jsonl", "json", "parquet"]
Packing = Literal["", "gz", "bz2", "xz", "zip"]
MAX_BYTES = 4096 * MIB  # of a file, also after it is laid open
MAX_RATIO = 100  # times that a compressed file may grow
FREE_EXPANSION = 64 * MIB  # to which any compressed file may grow
HEAD = 4096  # bytes that tell what it is
MAX_MEMBERS = 10_000  # of a zip file
PIECE = MIB
# NotImplementedError is zipfile's word for a compression it does not know.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)

_PACKINGS: tuple[tuple[bytes, Packing], ...] = (
    (b"\x1f\x8b", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "zip"),
)
_FOREIGN = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file (.xls, .doc)"),
    (b"RDX", "an R data file"),
    (b"RDA", "an R data file"),
    (b"X\n\x00\x00\x00", "an R data file"),
    (b"ARROW1", "a Feather file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"ID3", "a sound"),
    (b"RIFF", "a sound or picture"),
)
_PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<svg")
CONVERT = "Save it as CSV, Excel (.xlsx), JSON lines or Parquet and choose that."


def head_of(path: Path, size: int) -> tuple[bytes, bytes, Packing]:
    """Returns the first bytes as they lie on the disk, the first `size` bytes laid open, and how it was packed.

    Raises Failed with UNREADABLE_FILE, UNSUPPORTED_FORMAT or EMPTY_FILE.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max(HEAD, size))
    except OSError as error:
        raise _unreadable(path, error) from error
    if not raw:
        raise Failed("EMPTY_FILE", f"{plain(path.name)} is empty.", suggestion="Choose a file with a table in it.")
    packing = _packing(path, raw)
    if not packing:
        return raw, raw[:size] if size > 0 else raw, packing
    try:
        with _opened(path, packing) as stream:
            return raw, stream.read(size), packing
    except (*DAMAGED, OSError) as error:
        raise _unreadable(path, error) from error


def recognise(name: str, head: bytes) -> Format:
    """Returns the format of what begins with these bytes, compressed no more. Raises UNSUPPORTED_FORMAT, EMPTY_FILE."""
    if not head:
        raise Failed("EMPTY_FILE", f"{plain(name)} is empty.", suggestion="Choose a file with a table in it.")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"PK\x03\x04"):
        return "xlsx"
    what = _foreign(head)
    if what:
        text = f"{plain(name)} is {what}, which holds no table that can be read here."
        raise Failed("UNSUPPORTED_FORMAT", text, value=plain(name), suggestion=CONVERT)
    return _text_format(head)


def _text_format(head: bytes) -> Format:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{"):
        return "jsonl"
    if text.startswith(b"[") and text[1:].lstrip()[:1] in (b"{", b"]", b""):
        return "json"
    return "csv"


def _foreign(head: bytes) -> str:
    if head.startswith(_PICKLE):
        return "a Python pickle: opening one can run any program, so it is never opened"
    named = next((what for start, what in _FOREIGN if head.startswith(start)), "")
    if named:
        return named
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower().startswith(_MARKUP):
        return "a web page or XML"
    utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff")) or half_null(head)
    return "" if utf16 or b"\0" not in head else "made of bytes that are no text"


def half_null(head: bytes) -> bool:
    """Tells whether every second byte is mostly null, as in UTF-16 text of Western languages."""
    sample = head[: len(head) // 2 * 2]
    if len(sample) < 4:
        return False
    shares = sorted(sample[start::2].count(0) / (len(sample) // 2) for start in (0, 1))
    return shares[0] < 0.02 and shares[1] > 0.4


def laid_open(path: Path, packing: Packing, scratch: Path) -> Path:
    """Returns the file itself, or, when it is packed, a copy that is not, at `scratch`.

    Raises Failed with FILE_TOO_LARGE or UNREADABLE_FILE.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise too_large(path.name, f"has {size // MIB:,} MB, at most {MAX_BYTES // MIB:,} are read")
    if not packing:
        return path
    cap = min(MAX_BYTES, max(FREE_EXPANSION, MAX_RATIO * size))
    try:
        with _opened(path, packing) as stream, scratch.open("wb") as file:
            _copy(stream, file, cap, path.name)
    except (*DAMAGED, OSError) as error:
        raise _unreadable(path, error) from error
    return scratch


def _copy(stream: IO[bytes], file: IO[bytes], cap: int, name: str) -> None:
    left = cap
    while piece := stream.read(PIECE):
        left -= len(piece)
        if left < 0:
            raise too_large(name, f"unpacks to more than {cap // MIB:,} MB")
        file.write(piece)


def too_large(name: str, what: str) -> Failed:
    """Returns the failure of a file that is over a bound: `what` says which."""
    advice = "Give a part of it: fewer rows or columns, or several files."
    return Failed("FILE_TOO_LARGE", f"{plain(name)} {what}.", value=plain(name), suggestion=advice)


def _packing(path: Path, raw: bytes) -> Packing:
    found = next((packing for start, packing in _PACKINGS if raw.startswith(start)), "")
    return "" if found == "zip" and _is_workbook(path) else cast(Packing, found)


def _is_workbook(path: Path) -> bool:
    """Tells an Excel file from other zip files. One that would unpack to too much is refused here."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (*DAMAGED, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    workbook = any(member.filename == "xl/workbook.xml" for member in members)
    total = sum(member.file_size for member in members)
    if workbook and (len(members) > MAX_MEMBERS or total > max(FREE_EXPANSION, 20 * path.stat().st_size)):
        raise too_large(path.name, f"unpacks to {total // MIB:,} MB, which no ordinary workbook does")
    return workbook


def _opened(path: Path, packing: Packing) -> IO[bytes]:
    openers: dict[Packing, Callable[[Path], object]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    return cast(IO[bytes], openers[packing](path)) if packing in openers else _only_member(path)


def _only_member(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    members = [member for member in archive.infolist() if not member.is_dir() and not _hidden(member.filename)]
    tables = [member for member in members if is_table(member.filename)] or members
    if len(tables) != 1:
        names = listed([member.filename for member in tables]) or "none"
        text = f"{plain(path.name)} must hold one table; it holds {len(tables):,} files: {names}."
        raise Failed("UNSUPPORTED_FORMAT", text, value=plain(path.name), suggestion="Unpack it and choose one file.")
    if tables[0].flag_bits & 1:
        text = f"{plain(path.name)} is locked with a password."
        raise Failed("UNREADABLE_FILE", text, value=plain(path.name), suggestion="Unpack it and give the file inside.")
    return archive.open(tables[0])


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _unreadable(path: Path, error: BaseException) -> Failed:
    if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC, errno.EDQUOT):
        return too_large(path.name, "unpacks to more than the run's folder may hold")
    text = f"{plain(path.name)} cannot be read: it is damaged, cut off, or not what its first bytes say."
    return Failed("UNREADABLE_FILE", text, value=plain(path.name), suggestion="Save or download it again.")
