"""Speed at sizes beyond the corpus: its text, recombined from halves of documents, with fresh words."""

import random
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import tantivy

from bench.research.corpus import Question
from bench.research.retrieval import MIB, as_served, cpu, indexed, measure, words_only

PIECE = 4_000  # characters of a document's half
PIECES = 5  # pairs of halves of one file
FRESH = 20  # words nobody used before, in each file
SEED = 7
PASSAGE = 1_450  # characters, about what the Researcher's passages have
HEAP_BYTES = 64 * 1024 * 1024


def scaled(docs: Path, folder: Path, megabytes: int, questions: Sequence[Question]) -> str:
    """Returns one line: indexing and asking a folder of that much plain text."""
    text = folder / "text"
    size = write(docs, text, megabytes * 1_000_000)
    with indexed(text, folder / "home") as index:
        # The whole first: it meets the words of the questions for the first time.
        whole = measure("", as_served(index.view), questions)
        words = measure("", words_only(index.view), questions)
        line = (
            f"{size / 1e6:.0f} MB of text: indexed {size / 1e6 / index.cpu:.1f} MB a CPU second "
            f"({index.cpu:.1f} CPU s, {index.wall:.1f} s; tantivy alone {size / 1e6 / bare(text, folder):.1f}), "
            f"{index.bytes / MIB:.0f} MiB on disk, "
            f"question p50 / p99 {whole.p50 * 1000:.1f} / {whole.p99 * 1000:.1f} CPU ms, "
            f"of the index {words.p50 * 1000:.1f} / {words.p99 * 1000:.1f}, "
            f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
        )
    shutil.rmtree(folder)
    return line


def bare(text: Path, folder: Path) -> float:
    """Returns the CPU seconds tantivy takes for the same text in one field with stems: what this machine can do now."""
    began = cpu()
    place = folder / "bare"
    place.mkdir()
    schema = tantivy.SchemaBuilder().add_text_field("text", tokenizer_name="en_stem", index_option="freq").build()
    writer = tantivy.Index(schema, path=str(place)).writer(heap_size=HEAP_BYTES, num_threads=1)
    for path in sorted(text.rglob("*.txt")):
        whole = path.read_text("utf-8")
        for start in range(0, len(whole), PASSAGE):
            writer.add_document(tantivy.Document(text=whole[start : start + PASSAGE]))
    writer.commit()
    writer.wait_merging_threads()
    return cpu() - began


def write(docs: Path, folder: Path, size: int) -> int:
    """Writes about that many bytes of text files, the same ones each time. Returns how many it were."""
    chance = random.Random(SEED)  # noqa: S311  # text that is the same each time, no secrets
    texts = [
        path.read_text("utf-8", "replace") for path in sorted(docs.rglob("*")) if path.suffix in (".md", ".rst", ".txt")
    ]
    texts = [text for text in texts if len(text) > 2 * PIECE]
    written = number = 0
    while written < size:
        pieces = []
        for _ in range(PIECES):
            one, other = chance.choice(texts), chance.choice(texts)
            start, end = chance.randrange(len(one) - PIECE), chance.randrange(len(other) - PIECE)
            pieces += [one[start : start + PIECE], other[end : end + PIECE]]
        fresh = " ".join(f"w{chance.randrange(10**9)}" for _ in range(FRESH))
        data = "\n\n".join([*pieces, fresh]).replace("\0", " ").encode()
        place = folder / f"{number // 1000:04}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07}.txt").write_bytes(data)
        written += len(data)
        number += 1
    return written
