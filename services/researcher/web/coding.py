"""Undoes the content encoding of a body piece by piece, so that whoever counts the pieces can stop a bomb.

gzip and deflate are all that is asked for; both are in the standard library and inflate to a bound.
"""

import zlib
from collections.abc import Iterator

from services.researcher.documents import Unreadable

ACCEPTED = "gzip, deflate"
PIECE_BYTES = 64 * 1024  # inflated at once
MAX_MEMBERS = 256  # of one gzip body: each costs time, however empty
_GZIP = b"\x1f\x8b"  # how another member begins (RFC 1952 2.2)


def decoded(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yields the body, PIECE_BYTES at most at a time. Raises Unreadable for another encoding, zlib.error."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        yield from pieces
    elif encoding in ("gzip", "x-gzip", "deflate"):
        yield from _inflated(pieces, encoding)
    else:
        raise Unreadable(f"It is encoded as {encoding[:40]!r}, which was not asked for.", lasting=False)


def _inflated(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    inflate, members = None, 0
    for piece in pieces:
        while piece:
            if inflate is None or (inflate.eof and piece.startswith(_GZIP)):
                inflate, members = zlib.decompressobj(_window(piece, encoding)), members + 1
                if members > MAX_MEMBERS:
                    raise zlib.error("its compressed body has too many members")
            if inflate.eof:
                break  # what is behind the end is filling
            yield inflate.decompress(piece, PIECE_BYTES)
            piece = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    if inflate is not None and not inflate.eof:
        raise zlib.error("its compressed body ends too early")


def _window(first: bytes, encoding: str) -> int:
    """`deflate` is zlib's format (RFC 9110 8.4.1.2), yet some servers send it bare."""
    if encoding != "deflate":
        return zlib.MAX_WBITS | 16
    return zlib.MAX_WBITS if first[:1] and first[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS
