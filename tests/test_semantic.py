"""The encoder of the extra `semantic`: real vectors, odd text, broken files, threads, and no network."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.config import ConfigError
from services.researcher import extras, semantic
from services.researcher.documents import Document, Outline, Text
from services.researcher.index.memory import MemoryIndex
from services.researcher.protocol import Encoder
from services.researcher.watch import Watch

np = pytest.importorskip("numpy", reason="comes with conductor[semantic]")

# Refuses every socket, then loads the model and uses it.
OFFLINE = """
import logging, socket, sys
def refuse(*_, **__): raise AssertionError("a socket was opened")
socket.socket.__init__ = refuse
from services.researcher import extras
assert extras.encoder().encode(["a word"]).any()
print("wordllama" in sys.modules, len(logging.getLogger().handlers))
"""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    found = extras.encoder()
    if found is None:
        pytest.skip("conductor[semantic] is not installed")
    return found


def likeness(encoder: Encoder, one: str, other: str) -> float:
    first, second = encoder.encode([one, other])
    return float(first @ second)


def test_near_vectors_mean_the_like(encoder: Encoder) -> None:
    asked = "repairing an automobile"
    assert likeness(encoder, asked, "fix your car") > likeness(encoder, asked, "boil the soup") + 0.1


def test_rows_are_of_length_one_and_fit_the_index(encoder: Encoder) -> None:
    rows = encoder.encode(["one", "two words", "x" * 500])
    assert rows.dtype == np.float32 and rows.shape == (3, encoder.dimensions)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dimensions)


# The last are letters that the vocabulary has as bytes only.
@pytest.mark.parametrize("text", ["", " \n\t", "!?... --", "___", "\ud800", "\x00", "𐎠𐎡 ꙮ"])
def test_text_without_known_words_has_no_meaning(encoder: Encoder, text: str) -> None:
    assert not encoder.encode([text]).any()


def test_a_row_does_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    texts = ["first text", "", "second \ud800 text", "第三", "a much longer text " * 50]
    together = encoder.encode(texts)
    assert all((encoder.encode([text])[0] == row).all() for text, row in zip(texts, together, strict=True))


def test_capitals_are_read_as_other_text_is(encoder: Encoder) -> None:
    assert likeness(encoder, "THE EXIT STATUS OF A SHELL", "the exit status of a shell") > 0.999


def test_ten_megabytes_without_a_space_are_bounded(encoder: Encoder) -> None:
    huge = "Zq9" * 3_500_000
    assert (encoder.encode([huge])[0] == encoder.encode([huge[: semantic.MAX_TEXT]])[0]).all()


def test_threads_that_forget_words_meanwhile_agree(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"number {n} of word{n} and other{n * 7} things" for n in range(400)]
    alone = encoder.encode(texts)
    monkeypatch.setattr(semantic, "KEPT_WORDS", 20)
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: encoder.encode(texts), range(8)):
            assert (rows == alone).all()


def test_nothing_is_fetched_and_the_package_is_not_run(encoder: Encoder) -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["False", "0"], done.stderr


def test_neither_a_plain_setup_nor_the_image_brings_vectors_made_from_others() -> None:
    """Their licence is in doubt, see docs/research.md: who wants them installs them."""
    root = Path(__file__).parents[1]
    assert f"\n{semantic.PACKAGE}==" not in "\n" + (root / "requirements.lock").read_text()
    assert f"\n{semantic.PACKAGE}==" in (root / "requirements-extras.lock").read_text()
    assert "-r requirements.lock" in (image := (root / "Dockerfile").read_text()) and "extras" not in image
    told = (root / "docs" / "research.md").read_text()
    assert "Llama 2 Community" in told and semantic.PACKAGE in told


def test_an_extra_that_is_not_installed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "NEEDED", ("no_such_package_here",))
    assert extras.encoder() is None


def test_missing_files_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"conductor\[semantic\]"):
        semantic.WordVectors(tmp_path, "1")


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "])
def test_broken_files_are_refused_when_they_are_used(tmp_path: Path, content: bytes) -> None:
    for name in (semantic.WEIGHTS, semantic.PIECES):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"conductor\[semantic\]"):
        semantic.WordVectors(tmp_path, "1").encode(["word"])


def test_an_index_finds_what_shares_no_word_with_the_question(encoder: Encoder) -> None:
    watch = Watch(60)
    index = MemoryIndex(encoder)
    for name, words in (("soup", "Boil onions in water."), ("cars", "A mechanic fixes vehicles."), ("sky", "Stars.")):
        body = Text(words, name, Outline(()), ((0, len(words)),))
        index.add(Document(f"pages/{name}", name, "", len(words), 0), body, watch)
    view = index.view(lambda uri, watch: pytest.fail("nothing is read again"))
    assert view.search("Who repairs my automobile?", (), 3, watch)[0].document.title == "cars"
