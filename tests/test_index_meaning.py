"""Passages found by meaning beside words: encoded once, resumed, and encoded anew for another encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy", reason="comes with the extra `semantic`")

from services.researcher.documents import Document, Original, Outline, Text  # noqa: E402
from services.researcher.index import vectors  # noqa: E402
from services.researcher.index.memory import MemoryIndex  # noqa: E402
from services.researcher.index.view import fuse  # noqa: E402
from services.researcher.watch import OutOfTime, Watch  # noqa: E402
from tests.collections_at_hand import check, folder_source, found, opened, write_corpus  # noqa: E402

SUBJECTS = ({"car", "auto", "vehicle"}, {"pump", "compressor"}, {"bread", "loaf"})


class Subjects:
    """Encodes a text by which subjects its words belong to; remembers what it was given."""

    dimensions = 16

    def __init__(self, name: str = "subjects-1") -> None:
        self.name = name
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> Any:
        self.encoded += texts
        rows = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = set(text.lower().replace(".", " ").split())
            for number, subject in enumerate(SUBJECTS):
                row[number] = len(words & subject)
            if row.any():
                row /= np.linalg.norm(row)
        return rows


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("The automobile or vehicle is red.")
    (folder / "b.md").write_text("A compressor is loud.")
    (folder / "c.md").write_text("Nothing of the kind.")
    return folder


def test_finds_what_shares_no_word(root: Path, tmp_path: Path) -> None:
    with folder_source(root, tmp_path / "home", encoder=Subjects()) as source:
        view, _ = opened(source)
        assert [each.document.uri for each in found(view, "car")] == ["docs/a.md"]
        assert [each.document.uri for each in found(view, "pump")] == ["docs/b.md"]
        assert found(view, "unknown") == []
        view.close()
        (root / "b.md").unlink()
        view, _ = opened(source)
        assert found(view, "pump") == [], "its row is still there, its passage is not"
        view.close()


def test_each_passage_is_encoded_once(root: Path, tmp_path: Path) -> None:
    first = Subjects()
    with folder_source(root, tmp_path / "home", encoder=first) as source:
        opened(source)[0].close()
    assert len(first.encoded) == 3
    (root / "d.md").write_text("A loaf.")
    again = Subjects()
    with folder_source(root, tmp_path / "home", encoder=again) as source:
        view, _ = opened(source)
        assert again.encoded == ["A loaf."]
        assert [each.document.uri for each in found(view, "bread")] == ["docs/d.md"]
        view.close()


def test_another_encoder_encodes_anew(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        encoder = Subjects(name)
        with folder_source(root, tmp_path / "home", encoder=encoder) as source:
            opened(source)[0].close()
        assert len(encoder.encoded) == 3
    assert len(list((tmp_path / "home" / "index" / "docs").glob("meaning-*"))) == 1


def test_what_was_half_written_is_written_again(root: Path, tmp_path: Path) -> None:
    with folder_source(root, tmp_path / "home", encoder=Subjects()) as source:
        opened(source)[0].close()
    (folder,) = (tmp_path / "home" / "index" / "docs").glob("meaning-*")
    numbers = (folder / "numbers").read_bytes()
    (folder / "numbers").write_bytes(numbers[:-5])  # as if killed in the middle of the last row
    (root / "d.md").write_text("A loaf.")
    with folder_source(root, tmp_path / "home", encoder=Subjects()) as source:
        view, _ = opened(source)
        assert [each.document.uri for each in found(view, "bread")] == ["docs/d.md"]
        assert [each.document.uri for each in found(view, "car")] == ["docs/a.md"]
        view.close()
        assert (folder / "numbers").stat().st_size == 4 * 8


def test_words_are_searched_when_the_time_did_not_suffice_to_encode(root: Path, tmp_path: Path) -> None:
    class Slow(Subjects):
        def encode(self, texts: Sequence[str]) -> Any:
            if len(texts) > 1:
                raise OutOfTime
            return super().encode(texts)

    with folder_source(root, tmp_path / "home", encoder=Slow()) as source:
        view, _ = opened(source)
        assert [each.document.uri for each in found(view, "compressor")] == ["docs/b.md"]
        view.close()


def test_encoding_that_was_cut_short_goes_on_though_nothing_changed(root: Path, tmp_path: Path) -> None:
    class Interrupted(Subjects):
        interrupted = False

        def encode(self, texts: Sequence[str]) -> Any:
            if not self.interrupted:
                self.interrupted = True
                raise OutOfTime
            return super().encode(texts)

    with folder_source(root, tmp_path / "home", encoder=Interrupted()) as source:
        view, _ = opened(source)
        assert (view.documents, view.complete) == (3, True)
        view.close()
        view, _ = opened(source)
        assert [each.document.uri for each in found(view, "car")] == ["docs/a.md"]
        view.close()


def test_many_deletions_make_it_encode_anew(tmp_path: Path) -> None:
    root = tmp_path / "many"
    paths = write_corpus(root, 40)
    with folder_source(root, tmp_path / "home", encoder=Subjects()) as source:
        opened(source)[0].close()
        for path in paths[:30]:
            path.unlink()
        opened(source)[0].close()
        (folder,) = (tmp_path / "home" / "index" / "docs").glob("meaning-*")
        assert (folder / "numbers").stat().st_size == 10 * 8
        check(source)


def test_nearest_by_signs_is_nearly_nearest() -> None:
    chosen = np.random.default_rng(7)
    rows = chosen.normal(size=(5_000, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    exact, signs = vectors.packed(rows)
    asked = rows[17] + 0.05 * chosen.normal(size=64).astype(np.float32)
    asked /= np.linalg.norm(asked)
    best = vectors.nearest(asked, exact, signs, 10)
    assert best[0][1] == 17 and best == sorted(best, key=lambda each: -each[0])
    assert vectors.nearest(np.zeros(64, dtype=np.float32), exact, signs, 10) == []


@pytest.mark.parametrize("copies_first", [True, False])
def test_many_copies_in_front_do_not_hide_the_nearest(copies_first: bool) -> None:
    chosen = np.random.default_rng(1)
    asked = _unit(chosen.normal(size=256))
    copies = np.repeat(_unit(asked + 0.09 * chosen.normal(size=256))[None], 10_000, 0)
    best = _unit(asked + 0.01 * chosen.normal(size=256))[None]
    others = np.array([_unit(row) for row in chosen.normal(size=(3_000, 256))])
    rows = np.vstack([copies, best, others] if copies_first else [best, copies, others])
    hits = vectors.nearest(asked, *vectors.packed(rows), 60)
    assert len(hits) == 60 and hits[0][1] == (10_000 if copies_first else 0)


def _unit(row: Any) -> Any:
    return row / np.linalg.norm(row)


def test_memory_index_by_meaning() -> None:
    index = MemoryIndex(Subjects())
    for number, said in enumerate(("A compressor.", "Some bread.")):
        document = Document(f"https://a/{number}", "", "00", 1, 1)
        index.add(document, Text(said, "", Outline(()), ((0, len(said)),)), Watch(9))
    view = index.view(lambda uri, watch: Original(Text("", "", Outline(()), ()), ""))
    assert [each.document.uri for each in found(view, "pump")] == ["https://a/0"]


def test_fusion_prefers_words_two_to_one() -> None:
    assert [number for _, number in fuse([(9.0, 1), (8.0, 2)], [(0.9, 2), (0.8, 3)])] == [2, 1, 3]
    assert [number for _, number in fuse([(9.0, 1)], [(0.9, 2)])] == [1, 2]
