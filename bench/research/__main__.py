"""`make eval-research`: how well the Researcher finds, quotes and abstains, and what that costs, in one table."""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path

from bench.research.answering import Quoted, Survived, run_answers, run_hostile
from bench.research.corpus import VAR, Built, Question, build
from bench.research.packages import Missing
from bench.research.retrieval import (
    MIB,
    Found,
    Search,
    as_served,
    full_text,
    indexed,
    measure,
    passages,
    quantile,
    words_only,
)
from bench.research.scale import scaled
from services.researcher.extras import encoder, reranker


def main() -> int:
    """Measures and prints."""
    arguments = _arguments()
    try:
        built = _fewer(build(), arguments.most)
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    print(f"{len(built.answerable)} questions with an answer, {len(built.unanswerable)} without; half is tuned on.")
    VAR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=VAR) as scratch:
        folder = Path(scratch)
        if "retrieval" in arguments.only:
            _retrieval(built, folder, arguments.half)
        if "answers" in arguments.only:
            for half in arguments.half:
                answered = run_answers(built.folder, folder / "served", _half(built.answerable, half))
                refused = run_answers(built.folder, folder / "served", _half(built.unanswerable, half))
                _tell_answers(half, answered, refused)
        if "hostile" in arguments.only:
            _tell_hostile(run_hostile(built.hostile, folder / "hostile"))
        for megabytes in arguments.scale:
            print(scaled(built.folder, folder / f"scale-{megabytes}", megabytes, built.answerable[:100]), flush=True)
    return 0


def _arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m bench.research", description=__doc__)
    parser.add_argument("--half", type=names, default=["tuning", "held-out"], help="tuning, held-out, or both")
    parser.add_argument("--only", type=names, default=["retrieval", "answers", "hostile"], help="some of these")
    parser.add_argument("--most", type=int, help="questions of each half and kind; all when not given")
    parser.add_argument("--scale", type=lambda text: [int(each) for each in names(text)], default=[], help="MB of text")
    return parser.parse_args()


def _fewer(built: Built, most: int | None) -> Built:
    """Keeps that many questions of each half, the same ones each time."""

    def some(questions: Sequence[Question]) -> tuple[Question, ...]:
        mixed = sorted(questions, key=lambda each: hashlib.sha256(each.text.encode()).digest())
        return tuple(each for half in ("tuning", "held-out") for each in _half(mixed, half)[:most])

    return replace(built, answerable=some(built.answerable), unanswerable=some(built.unanswerable))


def _half(questions: Sequence[Question], half: str) -> list[Question]:
    return [question for question in questions if question.held_out == (half == "held-out")]


def _retrieval(built: Built, home: Path, halves: Sequence[str]) -> None:
    reader, meaning = reranker(), encoder()
    with indexed(built.folder, home / "words") as index:
        texts = passages(index.catalogue)
        characters = sum(map(len, texts)) / 1e6
        print(
            f"{index.view.documents} documents, {len(texts)} passages, {characters:.0f} million characters:"
            f" {index.cpu:.1f} CPU s with extraction, {index.wall:.1f} s, {index.bytes / MIB:.0f} MiB on disk,"
            f" {len(index.missed)} unreadable"
        )
        systems = {
            "SQLite FTS5 (unicode61, OR)": full_text(texts),
            "default, index alone": words_only(index.view),
            "default": as_served(index.view),
        }
        if reader is not None:
            systems["with extra rerank"] = as_served(index.view, reader)
        _compare(systems, built, halves)
    if meaning is not None:
        with indexed(built.folder, home / "meaning", meaning) as index:
            systems = {"with extra semantic": as_served(index.view)}
            if reader is not None:
                systems["with both extras"] = as_served(index.view, reader)
            _compare(systems, built, halves)


def _compare(systems: Mapping[str, Search], built: Built, halves: Sequence[str]) -> None:
    for half in halves:
        questions = _half(built.answerable, half)
        print(
            f"\n{f'{half}, {len(questions)} questions':34}  P@1    R@5    R@10   MRR    nDCG   CPU p50 / p99",
            flush=True,
        )
        for name, search in systems.items():
            _tell(measure(name, search, questions))


def _tell(found: Found) -> None:
    figures = "  ".join(f"{figure:.3f}" for figure in astuple(found.quality))
    print(f"{found.name:34}  {figures}  {found.p50 * 1000:6.1f} / {found.p99 * 1000:.1f} ms", flush=True)


def _tell_answers(half: str, answered: Quoted, refused: Quoted) -> None:
    cited = answered.citations + refused.citations
    verbatim = answered.verbatim + refused.verbatim
    print(f"\n{half}, over the service")
    print(
        f"  first quote in the answer    {answered.first / answered.asked:.3f}, any {answered.any / answered.asked:.3f}"
    )
    print(f"  abstains without an answer   {refused.abstained / max(refused.asked, 1):.3f} (mark: at least .60)")
    print(f"  abstains wrongly             {answered.abstained / answered.asked:.3f} (mark: at most .10)")
    print(f"  quotes verbatim              {verbatim} of {cited} (mark: all)")
    print(f"  findings without a quote     {answered.unquoted + refused.unquoted} (mark: 0)")
    middle, late = quantile(answered.seconds, 0.5), quantile(answered.seconds, 0.99)
    print(f"  wall time p50 / p99          {middle * 1000:.0f} / {late * 1000:.0f} ms", flush=True)


def _tell_hostile(survived: Survived) -> None:
    print(f"\nhostile files, {survived.seconds:.0f} s")
    print(f"  the visible sentence found   {'yes' if survived.visible else 'NO'}")
    print(f"  quotes of hidden text        {survived.hidden} (mark: 0)")
    print(f"  10,000 near-duplicates give  {survived.duplicates} findings")
    print(f"  told as gaps                 {', '.join(survived.unreadable)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
