"""Words → vectors of meaning: the encoder of the extra `semantic`.

The vectors are those of WordLlama (l2_supercat, 256 dimensions), which travel in its package: nothing is downloaded.
The package's files are read, its code is not imported: that sets up logging and can download. A text is the mean of
its words' pieces, each word for itself: that takes a third of the CPU time of cutting the whole text into pieces, and
found no less (recall at 10 of 200 questions .395 and .375, which is within chance).
"""

import importlib.metadata
import importlib.util
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from services.common.config import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    Vectors: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32]]

PACKAGE = "wordllama"
NEEDED = (PACKAGE, "numpy", "safetensors", "tokenizers")
WEIGHTS = "weights/l2_supercat_256.safetensors"
PIECES = "tokenizers/l2_supercat_tokenizer_config.json"
TENSOR = "embedding.weight"
DIMENSIONS = 256
FORM = 1  # of how words are cut and put together; another one when this module does it differently
MAX_TEXT = 16_384  # characters of a text that are looked at; a passage has a tenth of them
KEPT_WORDS = 50_000  # whose pieces are remembered, about 10 MB
FIRST_PIECE = 259  # the numbers below stand for no text: unknown, begin, end, and single bytes (Llama's vocabulary)
SPACE = "▁"  # the piece of a space alone

_WORD = re.compile(r"[^\W_]{1,40}")


@dataclass(frozen=True, slots=True)
class _Model:
    """The files, loaded."""

    table: "Vectors"  # a row for each piece
    tokenizer: "Tokenizer"
    space: int  # number of the piece SPACE


class WordVectors:
    """An Encoder. Thread-safe; loads its 80 MB when it is used first.

    Args:
        folder: of the package.
        version: of the package.
    """

    dimensions = DIMENSIONS

    def __init__(self, folder: Path, version: str) -> None:
        self.name = f"{PACKAGE} {version} {Path(WEIGHTS).stem} {FORM}"
        self._weights, self._pieces = folder / WEIGHTS, folder / PIECES
        for path in (self._weights, self._pieces):
            if not path.is_file():
                raise ConfigError(f"{PACKAGE} {version} lacks {path.name}: install conductor[semantic] anew.")
        self._lock = threading.Lock()
        self._loaded: _Model | None = None
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, texts: Sequence[str]) -> "Vectors":
        """Returns a row of length 1 for each text; zeros for a text without known words. Raises ConfigError."""
        import numpy as np

        model = self._model()
        rows = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            if pieces := self._cut(text[:MAX_TEXT], model):
                row[:] = model.table[pieces].sum(axis=0)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        np.divide(rows, lengths, out=rows, where=lengths > 0)
        return rows

    def _cut(self, text: str, model: _Model) -> list[int]:
        """Returns the numbers of the pieces of all words. Text in capitals only is read as if it were not."""
        pieces: list[int] = []
        for word in _WORD.findall(text.lower() if text.isupper() else text):
            known = self._known.get(word)
            pieces += self._learn(word, model) if known is None else known
        return pieces

    def _learn(self, word: str, model: _Model) -> tuple[int, ...]:
        if len(self._known) >= KEPT_WORDS:
            self._known = {}
        numbers = model.tokenizer.encode(word, add_special_tokens=False).ids
        self._known[word] = found = tuple(n for n in numbers if n >= FIRST_PIECE and n != model.space)
        return found

    def _model(self) -> _Model:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load(self._weights, self._pieces)
            return self._loaded


def _load(weights: Path, pieces: Path) -> _Model:
    import numpy as np
    from safetensors import SafetensorError, safe_open
    from tokenizers import Tokenizer

    try:
        with safe_open(weights, framework="numpy") as file:
            table = file.get_tensor(TENSOR).astype(np.float32)
        tokenizer = Tokenizer.from_file(str(pieces))
    except Exception as problem:  # tokenizers raises bare Exception for a file it cannot read
        if not isinstance(problem, (SafetensorError, OSError)) and type(problem) is not Exception:
            raise
        raise ConfigError(f"{weights.parent.parent}: {problem}. Install conductor[semantic] anew.") from None
    space = tokenizer.token_to_id(SPACE)
    if table.shape != (tokenizer.get_vocab_size(), DIMENSIONS) or space is None or not np.isfinite(table).all():
        raise ConfigError(f"{weights} does not fit {pieces}: install conductor[semantic] anew.")
    return _Model(table, tokenizer, space)


def installed() -> WordVectors | None:
    """Returns the encoder; None when the extra `semantic` is not installed. Raises ConfigError when it is broken."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        return None
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return WordVectors(Path(spec.origin).parent, importlib.metadata.version(PACKAGE))
