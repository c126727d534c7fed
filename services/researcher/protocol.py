"""What the parts of the Researcher are to each other: sources, views of them, web, encoder, re-ranker, model.

research.py knows these and nothing behind them; __main__.py hands in the real ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from conductor.v1 import researcher_pb2

from services.researcher.documents import Document, Original, Passage, SourceKind
from services.researcher.watch import Watch

if TYPE_CHECKING:  # it comes with the extras only
    import numpy as np


@dataclass(frozen=True, slots=True)
class Term:
    """A word of the objective as it was written, its stem, and how much it tells (inverse document frequency)."""

    word: str
    stem: str
    weight: float
    present: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that may answer. `score` is comparable within one search, higher is better."""

    document: Document
    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What one research may use. Bytes count the files' sizes."""

    max_documents: int
    max_bytes: int
    max_fetches: int


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What a source is asked for.

    Attributes:
        objective: the whole of it.
        queries: what to ask a search provider, the objective's parts or a model's words for them.
        paths: what was named below the source, "" for all of it; for the web the addresses of pages.
    """

    objective: str
    queries: tuple[str, ...]
    paths: tuple[str, ...]
    limits: Limits


class Notes(Protocol):
    """Takes down what happens on the way; thread-safe. Raises Cancelled when nobody listens any more."""

    def say(self, message: str) -> None:
        """A short sentence for people."""

    def read(self, document: Document) -> None:
        """A document or page was read."""

    def miss(self, kind: researcher_pb2.GapKind.ValueType, subject: str, detail: str) -> None:
        """Something is missing from the answer."""

    def spend(self, budget: str, detail: str) -> None:
        """A budget ended something early; noted once for each budget."""

    def fetched(self) -> bool:
        """Counts one request to the web before it is made. False when the budget allows no more."""


class View(Protocol):
    """What one source holds for one inquiry. Thread-safe; the same until it is closed."""

    documents: int
    passages: int
    bytes: int
    complete: bool  # False when time or a budget ended before all of it was read

    def counts(self, stems: Sequence[str]) -> Mapping[str, int]:
        """Returns how many passages hold each stem, in their text or in the headings above."""

    def search(self, question: str, terms: Sequence[Term], limit: int, watch: Watch) -> list[Candidate]:
        """Returns the passages that match best, best first; equal input gives equal output."""

    def original(self, uri: str, watch: Watch) -> Original:
        """Reads a document again from where it is. Raises Unreadable."""

    def close(self) -> None:
        """Lets go of what the view holds."""


class Source(Protocol):
    """Somewhere evidence can come from: an adapter. Thread-safe."""

    name: str
    kind: SourceKind.ValueType

    def open(self, inquiry: Inquiry, watch: Watch, notes: Notes) -> View:
        """Brings up to date what the inquiry needs and returns a view. Raises Refusal (SOURCE_REFUSED), Cancelled.

        Time that runs out makes the view incomplete; what cannot be read becomes a gap in `notes`.
        """

    def original(self, uri: str, watch: Watch) -> Original:
        """Reads a document again, without an inquiry, to verify a citation. Raises Unreadable."""

    def describe(self) -> researcher_pb2.Source:
        """Returns what is known of the source now, without reading its documents."""


class Indexed(Source, Protocol):
    """A source with an index on disk."""

    def index(self, watch: Watch, told: Callable[[researcher_pb2.IndexSourceResponse], None]) -> None:
        """Brings the whole index up to date; tells progress and gaps, not the last message."""

    def drop(self) -> None:
        """Removes the index."""


class Encoder(Protocol):
    """Text → vectors of meaning; near ones mean the like."""

    name: str  # of the model and its settings: an index belongs to one
    dimensions: int

    def encode(self, texts: Sequence[str]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
        """Returns a float32 array of (texts, dimensions), rows of length 1; zeros for a text without known words."""


class Reranker(Protocol):
    """Reads question and passage together."""

    def score(self, question: str, texts: Sequence[str], watch: Watch) -> list[float]:
        """Returns for each text how well it answers, higher is better; of the first ones only when the time ends there.

        Raises OutOfTime when it ended before the first, Cancelled.
        """


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage as a model gets to read it: a number to cite it by, where it stands, its text."""

    number: int
    title: str
    path: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model says, and the (evidence number, verbatim quote) pairs it says bear it out."""

    text: str
    quotes: tuple[tuple[int, str], ...]
    question: int  # index of the sub-question it answers


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What calls of a model cost so far."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0


@dataclass(frozen=True, slots=True)
class ModelBudget:
    """What a research may spend on a model. 0 calls: none."""

    calls: int
    tokens: int
    cost_micros: int  # 0: no bound


class ModelFailed(Exception):
    """The model gave nothing usable: late, refused, over budget, garbage. The text says what, for a gap."""


class ModelRun(Protocol):
    """A model at work for one research; counts what it spends. Its methods block; they raise ModelFailed, Cancelled."""

    usage: ModelUsage
    name: str

    def plan(self, objective: str, sources: Sequence[str], watch: Watch) -> Sequence[str]:
        """Returns the sub-questions of an objective, at most 6, its own words when it has one part."""

    def synthesize(
        self, objective: str, questions: Sequence[str], evidence: Sequence[Evidence], watch: Watch
    ) -> Sequence[Claim]:
        """Returns claims. Nothing of them is believed before it is verified."""


class Model(Protocol):
    """A configured language model."""

    def run(self, budget: ModelBudget) -> ModelRun:
        """Begins to count for one research."""
