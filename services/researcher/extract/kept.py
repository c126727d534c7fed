"""Texts of documents that were parsed lately: who quotes a document once often does so again."""

import hashlib
import threading
from collections import OrderedDict
from typing import TypeAlias

from services.researcher.documents import Text

MOST = 4_000_000  # characters of all texts; four bytes each at the worst

Key: TypeAlias = tuple[bytes, str, str]


def key_of(name: str, member: str, data: bytes) -> Key:
    """Returns what decides the text: the bytes by their SHA-256, the name that says their kind, and the member."""
    return hashlib.sha256(data).digest(), name, member


class Kept:
    """Keeps texts, those that were wanted last, up to MOST. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: OrderedDict[Key, Text] = OrderedDict()
        self._size = 0

    def get(self, key: Key) -> Text | None:
        """Returns the text of the very same bytes."""
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
            return self._texts.get(key)

    def put(self, key: Key, text: Text) -> None:
        """Keeps a text; the least wanted ones give way."""
        with self._lock:
            if key in self._texts or _size(text) > MOST:
                return
            self._texts[key] = text
            self._size += _size(text)
            while self._size > MOST:
                self._size -= _size(self._texts.popitem(last=False)[1])


def _size(text: Text) -> int:
    """Returns what a text counts; a place or heading takes about as much memory as 100 characters."""
    return len(text.text) + 100 * (len(text.places) + len(text.outline.headings))
