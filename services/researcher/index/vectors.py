"""Meanings of passages: 8-bit vectors and their signs, beside the word index.

Passages are found by the signs and ranked by the vectors.

Numpy comes with the extra `semantic` and is imported only where an encoder is.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.researcher.index.catalogue import Catalogue
from services.researcher.protocol import Encoder
from services.researcher.watch import Watch

if TYPE_CHECKING:
    import numpy as np

NEAR = 8  # times as many are found by signs as are ranked by vectors
ENCODED = 256  # passages encoded at once
DEAD_SHARE = 0.5  # of the rows belong to passages that are gone, from which all is encoded anew
SCALE = 127  # of a component of 1


def packed(vectors: "np.ndarray[Any, Any]") -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Returns the 8-bit vectors and the signs, eight in a byte, of float vectors of length 1."""
    import numpy as np

    return np.rint(vectors * SCALE).clip(-SCALE, SCALE).astype(np.int8), np.packbits(vectors > 0, axis=1)


def nearest(
    asked: "np.ndarray[Any, Any]", exact: "np.ndarray[Any, Any]", signs: "np.ndarray[Any, Any]", limit: int
) -> "list[tuple[float, int]]":
    """Returns (likeness, row) of the rows nearest to a vector, best first; rows without a vector are never near."""
    import numpy as np

    if not len(exact) or not asked.any():
        return []
    _, sign = packed(asked[None, :])
    rows = np.arange(len(signs))
    if len(signs) > limit * NEAR:
        distance = _distance(signs, sign[0])
        bound = np.searchsorted(np.cumsum(np.bincount(distance)), limit * NEAR)
        # All that are nearer, whatever stands in front of them; of those just as far, as many as may be ranked.
        nearer, as_far = np.flatnonzero(distance < bound), np.flatnonzero(distance == bound)
        rows = np.sort(np.concatenate((nearer, as_far[: limit * NEAR * 4 - len(nearer)])))
    likeness = exact[rows].astype(np.float32) @ asked.astype(np.float32) / SCALE
    order = np.argsort(-likeness, kind="stable")[:limit]
    return [(float(likeness[each]), int(rows[each])) for each in order if likeness[each] > 0]


def _distance(signs: "np.ndarray[Any, Any]", sign: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Returns in how many signs each row differs."""
    import numpy as np

    wide = np.uint64 if signs.shape[1] % 8 == 0 else np.uint8  # eight bytes at once where a row has whole eights
    differing = np.bitwise_count(signs.view(wide) ^ np.ascontiguousarray(sign).view(wide))
    distance = np.zeros(len(signs), dtype=np.uint16)
    for column in range(differing.shape[1]):  # column by column: many times faster than a sum along rows
        distance += differing[:, column]
    return distance


class Held:
    """The meanings of passages in memory, which are numbered from 0."""

    def __init__(self, encoder: Encoder, texts: Sequence[str]) -> None:
        self._encoder = encoder
        self._exact, self._signs = packed(encoder.encode(texts))

    def search(self, question: str, limit: int) -> list[tuple[float, int]]:
        """Returns (likeness, number) of the nearest passages, best first."""
        return nearest(self._encoder.encode([question])[0], self._exact, self._signs, limit)


class Kept:
    """The meanings of a collection's passages in flat files beside its catalogue, one row for a passage.

    Rows are appended in the order of the passages' numbers, so that the last number tells where to go on. Rows of
    passages that are gone stay until they are half of all. Only who writes the index calls `extend`.
    """

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self._encoder = encoder
        name = hashlib.blake2b(f"{encoder.name} {encoder.dimensions}".encode(), digest_size=8).hexdigest()
        self._folder = folder / f"meaning-{name}"
        self._widths = {"numbers": 8, "exact": encoder.dimensions, "signs": (encoder.dimensions + 7) // 8}
        self._state = threading.Lock()
        self._opened: tuple[int, _Rows] | None = None

    def extend(self, catalogue: Catalogue, watch: Watch) -> None:
        """Encodes the passages that were not yet. Raises OutOfTime, Cancelled, OSError; what is done stays."""
        for other in self._folder.parent.glob("meaning-*"):
            if other != self._folder:
                shutil.rmtree(other, ignore_errors=True)  # of another encoder
        self._folder.mkdir(exist_ok=True)
        rows = self._trim()
        if rows and self._rows(rows).stale(catalogue):
            shutil.rmtree(self._folder)
            self._folder.mkdir()
            rows = 0
        last = int(self._rows(rows).numbers[-1]) if rows else 0
        texts = catalogue.texts(last)
        while batch := list(islice(texts, ENCODED)):
            watch.check()
            self._append(batch)

    def _append(self, batch: Sequence[tuple[int, str]]) -> None:
        import numpy as np

        exact, signs = packed(self._encoder.encode([text for _, text in batch]))
        numbers = np.array([number for number, _ in batch], dtype=np.int64)
        # The numbers last: a row counts when it has one.
        for name, values in (("exact", exact), ("signs", signs), ("numbers", numbers)):
            with (self._folder / name).open("ab") as file:
                file.write(values.tobytes())

    def _count(self) -> int:
        """Returns how many rows are whole."""
        sizes = []
        for name, width in self._widths.items():
            path = self._folder / name
            sizes.append(path.stat().st_size // width if path.exists() else 0)
        return min(sizes)

    def _trim(self) -> int:
        """Cuts off what one who died left half-written."""
        rows = self._count()
        for name, width in self._widths.items():
            path = self._folder / name
            if path.exists():
                os.truncate(path, rows * width)
        return rows

    def opened(self) -> "_Rows | None":
        """Returns the rows there are now; None when there are none."""
        rows = self._count()
        with self._state:
            if rows and (self._opened is None or self._opened[0] != rows):
                self._opened = rows, self._rows(rows)
            return self._opened[1] if rows and self._opened is not None else None

    def _rows(self, rows: int) -> "_Rows":
        import numpy as np

        def mapped(name: str, kind: type, shape: tuple[int, ...]) -> "np.ndarray[Any, Any]":
            return np.memmap(self._folder / name, dtype=kind, mode="r", shape=shape)

        return _Rows(
            self._encoder,
            mapped("numbers", np.int64, (rows,)),
            mapped("exact", np.int8, (rows, self._widths["exact"])),
            mapped("signs", np.uint8, (rows, self._widths["signs"])),
        )


class _Rows:
    """The rows of the files at one moment."""

    def __init__(
        self,
        encoder: Encoder,
        numbers: "np.ndarray[Any, Any]",
        exact: "np.ndarray[Any, Any]",
        signs: "np.ndarray[Any, Any]",
    ) -> None:
        self._encoder = encoder
        self.numbers, self._exact, self._signs = numbers, exact, signs

    def search(self, question: str, limit: int) -> list[tuple[float, int]]:
        """Returns (likeness, number) of the nearest passages, best first."""
        found = nearest(self._encoder.encode([question])[0], self._exact, self._signs, limit)
        return [(likeness, int(self.numbers[row])) for likeness, row in found]

    def stale(self, catalogue: Catalogue) -> bool:
        """Says whether so many rows belong to passages that are gone that all should be encoded anew."""
        return catalogue.up_to(int(self.numbers[-1])) < (1 - DEAD_SHARE) * len(self.numbers)
