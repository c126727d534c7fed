"""Collections on disk for the tests of the index: made, opened, searched and judged."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.researcher.documents import Document, Kind
from services.researcher.extract.reading import Parsers
from services.researcher.folder import FolderSource, Root
from services.researcher.protocol import Candidate, Inquiry, Limits, View
from services.researcher.terms import Analyzer, terms_of
from services.researcher.watch import Watch

PLENTY = Limits(10**6, 10**12, 0)


@dataclass
class Notebook:
    """Takes down what a source tells."""

    said: list[str] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    gaps: dict[str, tuple[Kind.ValueType, str]] = field(default_factory=dict)
    spent: dict[str, str] = field(default_factory=dict)

    def say(self, message: str) -> None:
        self.said.append(message)

    def read(self, document: Document) -> None:
        self.documents.append(document)

    def miss(self, kind: Kind.ValueType, subject: str, detail: str) -> None:
        self.gaps[subject] = kind, detail

    def spend(self, budget: str, detail: str) -> None:
        self.spent.setdefault(budget, detail)

    def fetched(self) -> bool:
        return True


@contextmanager
def folder_source(root: Path, home: Path, **options: Any) -> Iterator[FolderSource]:
    """Gives a source `docs` of the folder, with its index below `home`."""
    parsers = Parsers()
    settings = {"rescan": 3600.0, "max_file_bytes": 1 << 20} | options
    source = FolderSource("docs", Root("docs", root), home=home, parsers=parsers, **settings)
    try:
        yield source
    finally:
        source.close()
        parsers.close()


def opened(source: FolderSource, *paths: str, seconds: float = 60, limits: Limits = PLENTY) -> tuple[View, Notebook]:
    """Opens a source; the caller closes the view."""
    notes = Notebook()
    return source.open(Inquiry("", (), paths, limits), Watch(seconds), notes), notes


def found(view: View, question: str, limit: int = 20) -> list[Candidate]:
    """Searches a view."""
    terms = terms_of(question, view.counts, view.passages, Analyzer())
    return view.search(question, [term for term in terms if term.present], limit, Watch(60))


def uris(source: FolderSource, question: str, *paths: str, limit: int = 20) -> list[str]:
    """Opens a source, searches, and returns where the passages stand, best first."""
    view, _ = opened(source, *paths)
    try:
        return [each.document.uri for each in found(view, question, limit)]
    finally:
        view.close()


def check(source: FolderSource) -> dict[str, str]:
    """Checks that word index and catalogue hold the same, and every passage stands in its file; returns uri → hash."""
    view, _ = opened(source)
    snapshot = source._store.snapshot()
    try:
        catalogue = snapshot.catalogue
        numbers = [number for number, _ in catalogue.texts(0)]
        assert snapshot.words.held == len(numbers) == view.passages
        assert not catalogue.dead()
        passages = catalogue.passages(numbers, "docs")
        assert passages.keys() == set(numbers)
        for document, passage in passages.values():
            text = source.original(document.uri, Watch(60)).text.text
            assert text[passage.start : passage.start + len(passage.text)] == passage.text
        assert len({(document.uri, passage.start) for document, passage in passages.values()}) == len(numbers)
        return {document.uri: document.sha256 for document, _ in passages.values()}
    finally:
        snapshot.close()
        view.close()


def write_corpus(root: Path, count: int, seed: int = 1, words: int = 120) -> Sequence[Path]:
    """Writes documents of made-up words, `count` of them, in folders of fifty; each has a word of its own."""
    chosen = random.Random(seed)  # noqa: S311
    vocabulary = [f"word{number}" for number in range(2_000)]
    paths = []
    for number in range(count):
        path = root / f"part{number // 50}" / f"{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = " ".join(chosen.choices(vocabulary, k=words))
        path.write_text(f"# Document {number}\n\nOnly here: own{seed}x{number}. {body}\n")
        paths.append(path)
    return paths
