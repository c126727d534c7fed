"""The parser process: takes its sandbox, reads one document and ends.

Native code given hostile bytes can take quadratic time, all memory, or control; a thread cannot be stopped then, a
process can, and what was taken over ends with the document. Forked (forking.py) from a process that parsers.py starts
as `python -I -c BOOT ROOT` without environment.

In:  {"name", "wanted", "after"} and the document's bytes; see wire.py.
Out: first {"missing"}; then a frame for each item, and {"kind": "end"}.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import Any

from services.researcher.extract import forking, members, sandbox, wire
from services.researcher.extract.parts import Begun, Bounds, Item, Items, Part, Raw, Trouble

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from services.researcher.extract.worker import main; main()"
READ_BYTES = 1024 * 1024
_SURROGATE = re.compile("[\ud800-\udfff]")


def main(read: Callable[[str, bytes, Bounds], Items] = members.read) -> None:
    """Has a process of its own answer each document, until nobody asks; see forking.serve."""
    members.prepare()
    sandbox.prepare()
    forking.serve(lambda: _live(read))


def _live(read: Callable[[str, bytes, Bounds], Items]) -> None:
    _send({"missing": sandbox.enter()})
    head, data = wire.unpack(_exactly)
    _answer(read, head, data)


def _answer(read: Callable[[str, bytes, Bounds], Items], head: dict[str, Any], data: bytes) -> None:
    bounds = Bounds(len(data), head["wanted"], head["after"])
    bounds.clock(len(data))
    try:
        for item in read(head["name"], data, bounds):
            _tell(item)
    except MemoryError:
        _tell(Trouble("", f"It takes more memory than a parser may use ({sandbox.MEMORY_BYTES >> 20:,} MiB)."))
    _send({"kind": "end"})


def _tell(item: Item) -> None:
    if isinstance(item, Part):
        head = {"title": _clean(item.title), "headings": item.headings, "places": item.places}
        _send({"kind": "part", "member": item.member} | head, _clean(item.text).encode())
    elif isinstance(item, Raw):
        _send({"kind": "raw", "member": item.member}, item.data)
    elif isinstance(item, Begun):
        _send({"kind": "begun", "member": item.member, "number": item.number})
    else:
        _send({"kind": "trouble", "member": item.member, "detail": _clean(item.detail), "truncated": item.truncated})


def _clean(text: str) -> str:
    """Returns text that can be written as UTF-8, of the same length."""
    return _SURROGATE.sub("\ufffd", text)


def _exactly(length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = os.read(0, min(length - len(data), READ_BYTES))
        if not chunk:
            sys.exit()  # nobody waits for an answer
        data += chunk
    return bytes(data)


def _send(head: dict[str, Any], body: bytes = b"") -> None:
    for piece in wire.pack(head, body):
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(1, rest) :]
