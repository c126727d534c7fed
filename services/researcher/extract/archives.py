"""Members of archives, one after another and bounded: ZIP, tar (also compressed), and single compressed files."""

import bz2
import contextlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Protocol, TypeAlias

from services.researcher.extract import zips
from services.researcher.extract.parts import MAX_MEMBER_BYTES, Bounds, Broken

CHUNK_BYTES = 256 * 1024
TAR_BYTES = 4 * 1024  # tarfile gives none of a piece that is cut off
_CUT = "It is cut off or damaged: what follows could not be read."
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError)
_SIGNS = (b"\x1f\x8b", "gz"), (b"BZh", "bz2"), (b"\xfd7zXZ\x00", "xz")

# A name, and what reads the member. It raises Broken; `Partly` carries what there is.
Member: TypeAlias = tuple[str, Callable[[], bytes]]


class Partly(Exception):
    """A member ends early; what there is of it, and why it ends."""

    def __init__(self, data: bytes, detail: str) -> None:
        super().__init__(detail)
        self.data = data


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, most: int, /) -> bytes: ...


def members(kind: str, name: str, data: bytes, bounds: Bounds) -> Iterator[Member]:
    """Yields the members of an archive that are files. Raises Broken when it cannot go on."""
    if kind == "zip":
        return _zip(data, bounds)
    if kind == "tar":
        return _tar(data, bounds)
    return _packed(name, data, bounds)


def _zip(data: bytes, bounds: Bounds) -> Iterator[Member]:
    def reader(entry: zips.Entry) -> Callable[[], bytes]:
        def read() -> bytes:
            expanded = zips.expand(data, entry, MAX_MEMBER_BYTES)
            bounds.spend(len(expanded))
            return expanded

        return read

    for entry in zips.entries(data):
        yield entry.name, reader(entry)


def _tar(data: bytes, bounds: Bounds) -> Iterator[Member]:
    try:
        with tarfile.open(fileobj=Expanding(data, bounds), mode="r|", errorlevel=0, encoding="utf-8") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else each header is kept
                if info.isreg() and not info.issparse():
                    yield info.name, _tar_reader(tar, info)
                else:
                    bounds.count()
    except (*_DAMAGE, ValueError):
        raise Broken(_CUT, truncated=True) from None


def _tar_reader(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        if info.size > MAX_MEMBER_BYTES:
            raise Broken(f"It is larger than {MAX_MEMBER_BYTES:,} bytes when expanded.", truncated=True)
        stream = tar.extractfile(info)
        pieces = bytearray()
        with contextlib.suppress(*_DAMAGE):  # what came before is told, and that it is not all
            while stream and (piece := stream.read(TAR_BYTES)):
                pieces += piece
        if info.size and not pieces:
            raise Broken(_CUT, truncated=True)
        if len(pieces) < info.size:
            raise Partly(bytes(pieces), _CUT)
        return bytes(pieces)

    return read


def _packed(name: str, data: bytes, bounds: Bounds) -> Iterator[Member]:
    def read() -> bytes:
        pieces = bytearray()
        stream = Expanding(data, bounds)
        try:
            while piece := stream.read(CHUNK_BYTES):
                pieces += piece
                if len(pieces) > MAX_MEMBER_BYTES:
                    raise Broken(f"It is larger than {MAX_MEMBER_BYTES:,} bytes when expanded.", truncated=True)
        except _DAMAGE:
            if not pieces:
                raise Broken("It is damaged: it does not expand.") from None
            raise Partly(bytes(pieces), _CUT) from None
        return bytes(pieces)

    yield PurePosixPath(name).stem, read


class Expanding(io.RawIOBase):
    """Reads compressed bytes expanded, or plain ones as they are, and counts them. Raises EOFError at a cut."""

    def __init__(self, data: bytes, bounds: Bounds) -> None:
        super().__init__()
        self._data = data
        self._bounds = bounds
        self._at = 0
        self._kind = next((kind for sign, kind in _SIGNS if data.startswith(sign)), "")
        self._worker = self._fresh()
        self._fed = b""  # given to the decompressor and not used by it yet

    def readable(self) -> bool:
        """Returns True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Returns up to `size` bytes, b"" at the end."""
        size = CHUNK_BYTES if size < 0 else size
        piece = self._expand(size) if self._worker else self._next(size)
        self._bounds.spend(len(piece) if self._worker else 0)
        return piece

    def _fresh(self) -> _Decompressor | None:
        if self._kind == "gz":
            return _Gzip()
        if self._kind == "bz2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(memlimit=256 * 1024**2) if self._kind == "xz" else None

    def _next(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def _expand(self, size: int) -> bytes:
        while self._worker:
            if self._worker.eof:
                self._fed = self._worker.unused_data.lstrip(b"\0") or self._next(CHUNK_BYTES).lstrip(b"\0")
                if not self._fed:
                    return b""
                self._worker = self._fresh()  # several streams may follow each other
                continue
            waiting = not getattr(self._worker, "needs_input", True)
            fed = b"" if waiting else self._fed or self._next(CHUNK_BYTES)
            self._fed = b""
            if not fed and not waiting:
                raise EOFError
            if piece := self._worker.decompress(fed, size):
                return piece
        return b""


class _Gzip:
    """zlib's decompressor with the manners of the others: it keeps what it did not use."""

    def __init__(self) -> None:
        self._worker = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._worker.eof

    @property
    def unused_data(self) -> bytes:
        return self._worker.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._worker.unconsumed_tail

    def decompress(self, data: bytes, most: int, /) -> bytes:
        return self._worker.decompress(self._worker.unconsumed_tail + data, most)
