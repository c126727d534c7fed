"""What people see of a research while it runs: few and small pieces that name the newest and count all of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import conductor_pb2, event_pb2, researcher_pb2, task_pb2
from google.protobuf import duration_pb2, json_format
from hypothesis import given
from hypothesis import strategies as st

from client.show import event_line, step_lines
from services.common.errors import Reason
from services.conductor.activity import NAMED, PIECE_BYTES, Activity
from services.conductor.pieces import INTERVAL_S
from services.conductor.protocol import MAX_ACTIVITY, MAX_PROGRESS, Answered, CallWorker, Command, Progressed
from services.conductor.router import GrpcRouter
from services.conductor.state.requests import GRACE_S
from tests.conftest import until
from tests.fakes import Workers, finding
from tests.properties import examples
from tests.report_writers import Writer, running
from tests.task_runs import ONE, RAN, R, Run
from tests.test_output_kept import artifact, conducting

Response = researcher_pb2.ResearchResponse
Outcome = researcher_pb2.ResearchOutcome
HOUR_S = 3600
NOTHING_TO_KEEP_TO = researcher_pb2.ResearchBudget()


def read(uri: str = "docs/a.md", why: str = "") -> Response:
    gap = researcher_pb2.Gap(kind=researcher_pb2.GAP_KIND_UNREADABLE, subject=uri, detail=why) if why else None
    return Response(read=researcher_pb2.SourceRead(uri=uri, title="A", bytes=10, gap=gap))


def judged(kept: bool, beginning: str = "Water boils") -> Response:
    return Response(
        judged=researcher_pb2.PassageJudged(uri="docs/a.md", beginning=beginning, kept=kept, why="names the seal")
    )


def spent(**fields: Any) -> Response:
    return Response(usage=researcher_pb2.ResearchUsage(**fields))


def said(message: str) -> Response:
    return Response(progress=researcher_pb2.ResearchProgress(message=message))


def whole(**fields: Any) -> Response:
    return Response(result=researcher_pb2.ResearchResult(findings=[finding()], **fields))


def activity(**budget: Any) -> Activity:
    return Activity("call-1", INTERVAL_S, researcher_pb2.ResearchBudget(**budget))


# ---- pieces ----


def test_a_piece_says_what_was_read_kept_rejected_and_spent() -> None:
    made = activity(max_fetches=20, max_model_tokens=9000, wall_time={"seconds": 60})
    for event in (
        read("docs/a.md"),
        read("docs/b.pdf", "It is encrypted."),
        judged(True),
        judged(False),
        judged(False),
    ):
        made.add(event)
    made.add(spent(documents=1))
    made.add(
        spent(documents=2, bytes=1_500_000, wall_time={"seconds": 3}, fetches=1, model_calls=1, model_input_tokens=70)
    )
    piece = made.take()
    assert piece is not None and piece.call_id == "call-1"
    assert piece.message == (
        "Read 2 documents, 1 of them of no use. Kept 1 passage as evidence, rejected 2. Spent so far: 3.0 of 60 s, "
        "2 documents, 1.5 MB, 1 of 20 requests to the web, 1 model call, 70 of 9,000 tokens."
    )
    told = piece.research
    assert [one.uri for one in told.read] == ["docs/a.md", "docs/b.pdf"] and told.usage.documents == 2
    assert told.read[1].gap.detail == "It is encrypted." and [one.kept for one in told.judged] == [True, False, False]
    assert made.take() is None and made.take(last=True) is None and made.pause is None


def test_of_a_flood_the_newest_are_named_and_all_are_counted() -> None:
    made = activity()
    for number in range(10_000):
        made.add(read(f"docs/{number}.md", "bad" if number % 10 == 0 else ""))
        made.add(judged(number % 4 == 0, f"passage {number}"))
    piece = made.take()
    assert piece is not None
    told = piece.research
    assert (told.documents_read, told.documents_unusable) == (10_000, 1000)
    assert (told.passages_kept, told.passages_rejected) == (2500, 7500)
    assert [one.uri for one in told.read] == [f"docs/{number}.md" for number in range(10_000 - NAMED, 10_000)]
    assert told.judged[-1].beginning == "passage 9999" and len(told.judged) == NAMED


def test_names_of_any_length_and_script_do_not_make_a_piece_large() -> None:
    made = activity()
    for _ in range(20):
        made.add(read("🎉" * 5000, "漢" * 5000))
        made.add(judged(False, "🎉" * 5000))
    piece = made.take()
    assert piece is not None and 0 < piece.research.ByteSize() <= PIECE_BYTES
    assert piece.research.documents_read == 20 and piece.research.read and piece.research.judged


texts = st.text(max_size=2000).map(lambda text: text.encode(errors="ignore").decode() * 3)
events = st.one_of(
    st.builds(read, texts, texts),
    st.builds(judged, st.booleans(), texts),
    st.builds(lambda model, tokens: spent(model=model, model_input_tokens=tokens), texts, st.integers(0, 2**64 - 1)),
    st.just(None),
)


@examples(60)
@given(st.lists(events, max_size=40))
def test_no_piece_is_large_and_nothing_goes_uncounted(moves: list[Response | None]) -> None:
    made = activity()
    pieces = []
    for move in moves:
        if move is None:
            pieces.append(made.take())
        else:
            made.add(move)
    pieces.append(made.take(last=True))
    told = [piece.research for piece in pieces if piece is not None]
    assert all(one.ByteSize() <= PIECE_BYTES for one in told)
    assert all(len(piece.message) <= 500 for piece in pieces if piece is not None)
    kinds = [move.WhichOneof("event") for move in moves if move is not None]
    assert sum(one.documents_read for one in told) == kinds.count("read")
    assert sum(one.passages_kept + one.passages_rejected for one in told) == kinds.count("judged")


def test_pieces_grow_rarer_cover_the_longest_research_and_never_exceed_their_number() -> None:
    made, time, told = activity(), 0.0, 0
    assert made.pause is None
    while made.add(read()) is None and (pause := made.pause) is not None:
        assert pause >= INTERVAL_S
        time += pause
        assert made.take() is not None
        told += 1
    assert told == MAX_ACTIVITY - 1 and time > HOUR_S
    last = made.take(last=True)
    assert last is not None and last.research.documents_read == 1


# ---- through the router ----


def begin(router: GrpcRouter) -> list[Command]:
    heard: list[Command] = []
    budget = researcher_pb2.ResearchBudget(max_documents=9)
    request = researcher_pb2.ResearchRequest(objective="boil", budget=budget)
    router.call(CallWorker("call-1", R, request, 10), heard.append)
    return heard


def told(heard: list[Command]) -> list[event_pb2.TaskProgress]:
    return [command.progress for command in heard if isinstance(command, Progressed)]


def plays(workers: Workers, *messages: Response, then: asyncio.Event | None = None) -> None:
    async def stream() -> AsyncIterator[Response]:
        for message in messages[:-1]:
            yield message
        if then is not None:
            await then.wait()
        yield messages[-1]

    async def play(_: Any) -> AsyncIterator[Response]:
        return stream()

    workers.research = play


@pytest.fixture
async def router(workers: Workers) -> AsyncIterator[GrpcRouter]:
    made = GrpcRouter(workers.targets(), interval=0.05)
    yield made
    await made.close()


async def test_sentences_come_at_once_and_the_rest_in_pieces_before_the_result(
    router: GrpcRouter, workers: Workers
) -> None:
    plays(workers, said("Searching docs."), *(read(f"docs/{n}.md") for n in range(500)), said("Ranking."), whole())
    heard = begin(router)
    await until(lambda: isinstance(heard[-1] if heard else None, Answered))
    sentences = [progress.message for progress in told(heard) if not progress.HasField("research")]
    assert sentences == ["Searching docs.", "Ranking."]
    assert sum(progress.research.documents_read for progress in told(heard)) == 500
    assert 3 <= len(told(heard)) < 20


async def test_a_piece_is_told_while_the_research_goes_on(router: GrpcRouter, workers: Workers) -> None:
    enough = asyncio.Event()
    plays(workers, judged(True), whole(), then=enough)
    heard = begin(router)
    await until(lambda: told(heard))
    assert told(heard)[0].message == "Kept 1 passage as evidence, rejected 0."
    enough.set()
    await until(lambda: isinstance(heard[-1], Answered))
    assert len(told(heard)) == 1


async def test_the_last_piece_shows_what_the_research_came_to(router: GrpcRouter, workers: Workers) -> None:
    plays(workers, read(), spent(documents=0), whole(usage=researcher_pb2.ResearchUsage(documents=3, bytes=2_000_000)))
    heard = begin(router)
    await until(lambda: isinstance(heard[-1] if heard else None, Answered))
    last = told(heard)[-1]
    assert last.research.usage.documents == 3 and "3 of 9 documents, 2.0 MB" in last.message


async def test_after_a_cancel_nothing_more_is_told(router: GrpcRouter, workers: Workers) -> None:
    plays(workers, said("Searching."), read(), whole(), then=asyncio.Event())
    heard = begin(router)
    await until(lambda: heard)
    router.cancel("call-1")
    await until(lambda: workers.cancelled)
    before = len(heard)
    plays(workers, read(), whole(), then=asyncio.Event())
    later = begin(router)
    await until(lambda: later)  # a timer of the first call would have been due before this one
    assert len(heard) == before and not any(isinstance(command, Answered) for command in heard)


async def test_a_chatty_research_floods_nobody(router: GrpcRouter, workers: Workers) -> None:
    plays(workers, *(said(f"step {n}") for n in range(1000)), whole())
    heard = begin(router)
    await until(lambda: isinstance(heard[-1] if heard else None, Answered))
    assert len(told(heard)) == MAX_PROGRESS


@pytest.mark.parametrize(
    "broken",
    [
        {"answer": [{"text": "Trust me."}]},
        {"answer": [{"text": "x", "findings": [1]}]},
        {"sub_questions": [{"text": "x", "findings": [7]}]},
        {"contradictions": [{"one": 0, "other": 1}]},
    ],
)
async def test_an_answer_that_does_not_rest_on_its_findings_is_not_let_in(
    router: GrpcRouter, workers: Workers, broken: dict[str, Any]
) -> None:
    plays(workers, whole(**broken))
    heard = begin(router)
    await until(lambda: heard)
    (answer,) = (command.result for command in heard if isinstance(command, Answered))
    assert answer.error.reason == Reason.ERROR_REASON_WORKER_PROTOCOL and answer.WhichOneof("result") is None


# ---- what is asked, and what the report is given ----


def asked(run: Run) -> researcher_pb2.ResearchRequest:
    (call,) = (effect for effect in run.last if isinstance(effect, CallWorker))
    assert isinstance(call.request, researcher_pb2.ResearchRequest) and call.request.research_id == call.call_id
    return call.request


def test_the_hints_reach_the_researcher() -> None:
    hints = task_pb2.ResearchHints(
        sources=["docs/pumps"],
        max_findings=7,
        timeout=duration_pb2.Duration(seconds=30),
        mode=researcher_pb2.ANSWER_MODE_SYNTHESIZED,
        kinds=[researcher_pb2.SOURCE_KIND_FOLDER, researcher_pb2.SOURCE_KIND_WEB],
        web=True,
        budget=researcher_pb2.ResearchBudget(max_model_calls=3, max_fetches=9),
    )
    request = asked(Run(research=hints).go_on())
    assert (request.mode, list(request.kinds), request.web) == (hints.mode, list(hints.kinds), True)
    assert list(request.sources) == ["docs/pumps"] and request.correlation_id == "corr-1" and not request.keep_going
    assert (request.budget.max_findings, request.budget.max_model_calls, request.budget.max_fetches) == (7, 3, 9)
    assert request.budget.wall_time.ToSeconds() == 30


def test_a_bound_in_the_budget_is_the_one_that_counts() -> None:
    budget = researcher_pb2.ResearchBudget(max_findings=2, wall_time=duration_pb2.Duration(seconds=90))
    run = Run(research={"max_findings": 7, "timeout": duration_pb2.Duration(seconds=30), "budget": budget}).go_on()
    assert (asked(run).budget.max_findings, asked(run).budget.wall_time.ToSeconds()) == (2, 90)
    (call,) = (effect for effect in run.last if isinstance(effect, CallWorker))
    assert call.timeout == 90 + GRACE_S


@pytest.mark.parametrize("deadline_s", [1, 8, 20, 64, 3600])
def test_a_research_is_given_less_time_than_its_task_has_so_that_what_it_found_is_reported(deadline_s: int) -> None:
    run = Run(deadline=duration_pb2.Duration(seconds=deadline_s)).go_on()
    (call,) = (effect for effect in run.last if isinstance(effect, CallWorker))
    seconds = asked(run).budget.wall_time.ToNanoseconds() / 1e9
    assert 0 < seconds <= 60 and seconds <= call.timeout - min(GRACE_S, deadline_s / 4)
    assert seconds >= min(60, deadline_s / 2)


def test_the_report_is_given_all_that_was_found() -> None:
    found = researcher_pb2.ResearchResult(
        findings=[finding("a"), finding("b")],
        gaps=[researcher_pb2.Gap(subject="x")],
        usage=researcher_pb2.ResearchUsage(documents=3),
        outcome=Outcome.RESEARCH_OUTCOME_PARTIAL,
        answer=[researcher_pb2.AnswerSentence(text="a", findings=[0])],
        sub_questions=[researcher_pb2.SubQuestion(text="q", findings=[1])],
        contradictions=[researcher_pb2.Contradiction(one=0, other=1)],
        searched=[researcher_pb2.SearchedSource(name="docs")],
        research_id="another",
    )
    run = Run([R, task_pb2.CAPABILITY_TERMINAL], ONE).go_on()
    called = run.open
    request = run.play({"research": found}, RAN).last[-1].request
    for name in ("findings", "gaps", "usage", "outcome", "answer", "sub_questions", "contradictions", "searched"):
        assert getattr(request, name) == getattr(found, name)
    assert called is not None and request.research_id == called.call_id and len(request.commands) == 1


def test_an_outcome_of_a_newer_researcher_does_not_keep_the_report_from_being_written() -> None:
    found = researcher_pb2.ResearchResult.FromString(b"\x20\x63")  # outcome 99
    assert found.outcome == 99 and Run().play({"research": found}).last[-1].request.outcome == 0


# ---- the whole way ----


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    with running(tmp_path_factory.mktemp("writer") / "reports") as started:
        yield started


async def test_a_partial_research_completes_its_task_with_the_gaps_told_and_its_findings_as_a_file(
    tmp_path: Path, workers: Workers, writer: Writer
) -> None:
    gap = researcher_pb2.Gap(kind=researcher_pb2.GAP_KIND_BUDGET_EXHAUSTED, subject="wall_time", detail="Out of time.")
    plays(workers, read(), judged(True), whole(gaps=[gap], outcome=Outcome.RESEARCH_OUTCOME_PARTIAL))
    async with conducting(tmp_path, workers, writer.target) as conductor:
        answer = await conductor.execute(wait=duration_pb2.Duration(seconds=20))
        assert answer.status == task_pb2.TASK_STATUS_COMPLETED
        task = await conductor.stub.GetTask(conductor_pb2.GetTaskRequest(task_id=answer.task_id))
        assert [file.name for file in task.artifacts] == ["findings.json"]
        content, media_types = await artifact(conductor, answer.task_id, "findings.json")
        assert media_types == {"application/json"}
        result = json_format.ParseDict(json.loads(content), researcher_pb2.ResearchResult())
        assert list(result.findings) == [finding()] and list(result.gaps) == [gap]
        (request,) = (one for one in workers.seen if isinstance(one, researcher_pb2.ResearchRequest))
        assert result.research_id == request.research_id != ""
        report = (writer.root / f"{answer.task_id}.md").read_text()
        assert "the search ended early" in report and "Out of time." in report
        (told,) = [e for e in await conductor.events(answer.task_id) if e.task_progress.HasField("research")]
        assert told.task_progress.research.passages_kept == 1 and told.phase == "research"


def test_pieces_are_shown_with_what_they_name_and_steer_no_terminal() -> None:
    made = activity()
    made.add(read("docs/a\x1b[31m.md\nx", "Broken\u202e."))
    made.add(judged(True, "Water boils"))
    made.add(judged(False, "Oil\x07"))
    event = event_pb2.Event(sequence=7, type="conductor.task.progress", task_progress=made.take())
    lines = step_lines(event)
    assert lines[0].endswith("Read 1 document, 1 of them of no use. Kept 1 passage as evidence, rejected 1.")
    assert [line.split()[0] for line in lines[1:]] == ["!", "+", "-"]
    assert not any(ord(letter) < 32 or letter == "\u202e" for line in [*lines, event_line(event)] for letter in line)
