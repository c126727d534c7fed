"""What is answered, over the real service on a loopback port: quotes, abstention, hostile files."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import researcher_pb2, researcher_pb2_grpc
from google.protobuf import duration_pb2

from bench.research.corpus import Question
from bench.research.hostile import ASKED, ASKED_HIDDEN, HIDDEN, VISIBLE
from bench.research.scores import Answer
from services.common.config import ResearcherSettings, load
from services.common.server import Service
from services.researcher.__main__ import assembled
from services.researcher.service import FULL_NAME

Stub: Any = researcher_pb2_grpc.ResearcherStub
Result = researcher_pb2.ResearchResult
WALL_S = 600  # of one research; the first one indexes


@dataclass(slots=True)
class Quoted:
    """What became of the questions. Counts."""

    asked: int = 0
    first: int = 0  # the first finding's quote lies in the answer
    any: int = 0  # one of them does
    abstained: int = 0
    citations: int = 0
    verbatim: int = 0  # still there at their locator, as VerifyCitation says
    unquoted: int = 0  # findings without a citation
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Survived:
    """What hostile files did."""

    visible: bool  # the one visible sentence beside hidden ones is found
    hidden: int  # quotes with hidden text
    unreadable: Sequence[str]  # gaps told
    duplicates: int  # findings among 10,000 near-duplicates
    seconds: float


@asynccontextmanager
async def served(roots: Iterable[Path], home: Path) -> AsyncIterator[Stub]:
    """Gives a client of a whole Researcher."""
    settings = replace(load(ResearcherSettings), listen="127.0.0.1:0", roots=tuple(roots), home=home, sources=None)
    async with assembled(settings) as researcher:
        service = Service(settings.listen, [FULL_NAME], max_calls=settings.max_calls, multiplexed=True)
        researcher_pb2_grpc.add_ResearcherServicer_to_server(researcher, service.server)
        await service.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
                yield researcher_pb2_grpc.ResearcherStub(channel)
        finally:
            await service.stop(1)


async def ask(stub: Stub, objective: str, sources: Sequence[str] = ()) -> Result:
    """Returns the result of one research."""
    budget = researcher_pb2.ResearchBudget(wall_time=duration_pb2.Duration(seconds=WALL_S))
    request = researcher_pb2.ResearchRequest(objective=objective, sources=sources, budget=budget)
    async for response in stub.Research(request):
        if response.HasField("result"):
            result: Result = response.result
            return result
    raise RuntimeError("The stream ended without a result.")


async def answers(docs: Path, home: Path, questions: Sequence[Question]) -> Quoted:
    """Asks all questions of the documents, and checks every citation."""
    counts = Quoted()
    async with served([docs], home) as stub:
        await ask(stub, "Is everything indexed?")
        for question in questions:
            began = time.perf_counter()
            result = await ask(stub, question.text)
            counts.seconds.append(time.perf_counter() - began)
            await _count(counts, stub, question, result)
    counts.seconds.sort()
    return counts


async def _count(counts: Quoted, stub: Stub, question: Question, result: Result) -> None:
    answer = Answer(question.answer)
    held = [
        any(answer.holds_quote(citation.quote) for citation in finding.citations) if question.answer else False
        for finding in result.findings
    ]
    counts.asked += 1
    counts.first += bool(held and held[0])
    counts.any += any(held)
    counts.abstained += not result.findings
    counts.unquoted += sum(not finding.citations for finding in result.findings)
    for finding in result.findings:
        for citation in finding.citations:
            checked = await stub.VerifyCitation(researcher_pb2.VerifyCitationRequest(citation=citation))
            counts.citations += 1
            counts.verbatim += (
                checked.state == researcher_pb2.CITATION_STATE_VALID
                and checked.locator.char_start == citation.locator.char_start
                and checked.locator.char_end == citation.locator.char_end
            )


async def hostile(folder: Path, home: Path) -> Survived:
    """Asks what hostile files would like to answer."""
    began = time.perf_counter()
    async with served([folder, folder.with_name("duplicates")], home) as stub:
        asked = await ask(stub, ASKED, ["hostile"])
        fooled = await ask(stub, ASKED_HIDDEN, ["hostile"])
        pump = await ask(stub, "How often is the cooling pump of hall seven inspected?", ["duplicates"])
    said = [citation.quote for result in (asked, fooled) for each in result.findings for citation in each.citations]
    unreadable = sorted(gap.subject for gap in asked.gaps if gap.kind != researcher_pb2.GAP_KIND_TERM_ABSENT)
    return Survived(
        any(VISIBLE[:40] in quote for quote in said),
        sum(HIDDEN in quote for quote in said),
        unreadable,
        len(pump.findings),
        time.perf_counter() - began,
    )


def run_answers(docs: Path, home: Path, questions: Sequence[Question]) -> Quoted:
    """Runs `answers` to its end."""
    return asyncio.run(answers(docs, home, questions))


def run_hostile(folder: Path, home: Path) -> Survived:
    """Runs `hostile` to its end."""
    return asyncio.run(hostile(folder, home))
