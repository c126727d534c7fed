"""Frames between the service and its parser: 4 bytes length of the head, 8 of the body; JSON head; bytes body."""

import json
import struct
from collections.abc import Callable
from typing import Any

LENGTHS = struct.Struct(">IQ")
MAX_HEAD_BYTES = 128 * 1024**2  # places of a large sheet
MAX_BODY_BYTES = 1024**3


def pack(head: dict[str, Any], body: bytes = b"") -> list[bytes]:
    """Returns what to write, in order."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return [LENGTHS.pack(len(text), len(body)) + text, body]


def unpack(exactly: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    """Reads one frame. Raises ValueError when it is none."""
    head_length, body_length = LENGTHS.unpack(exactly(LENGTHS.size))
    if head_length > MAX_HEAD_BYTES or body_length > MAX_BODY_BYTES:
        raise ValueError("a frame is too large")
    head = json.loads(exactly(head_length))
    if not isinstance(head, dict):
        raise ValueError("a frame has no head")
    return head, exactly(body_length)
