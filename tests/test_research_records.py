"""Researches that are repeated, left, come back to, watched, cancelled and killed half-way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import error_pb2, researcher_pb2
from google.protobuf import duration_pb2

from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error
from services.researcher.records import Records
from tests.researchers import events, serving, started

Request = researcher_pb2.ResearchRequest
Outcome = researcher_pb2.ResearchOutcome
Kind = researcher_pb2.GapKind
SLOW = "<div>" * 300_000  # takes the parser more than 3 s, then becomes a gap


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "pump.md").write_text("# Pump\n\nThe mechanical seal is replaced after 16,000 hours.\n")
    return tmp_path / "docs"


@pytest.fixture
async def stub(tmp_path: Path, docs: Path) -> AsyncIterator[Any]:
    async with serving(tmp_path, docs) as stub:
        yield stub


def asked(research_id: str = "r-1", objective: str = "When is the mechanical seal replaced?", **more: Any) -> Request:
    return Request(objective=objective, research_id=research_id, **more)


async def refusal(call: Any) -> error_pb2.TypedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            await events(call)
        else:
            await call
    error = from_rpc_error(caught.value)
    assert error is not None
    return error


async def test_a_repeated_request_gets_the_same_events_and_starts_nothing(stub: Any, docs: Path) -> None:
    first = await events(stub.Research(asked()))
    (docs / "pump.md").write_text("Nothing about it any more.")
    again = await events(stub.Research(asked(correlation_id="another-attempt")))
    assert again == first
    assert first[-1].result.outcome == Outcome.RESEARCH_OUTCOME_ANSWERED


async def test_an_id_of_another_request_is_refused(stub: Any) -> None:
    await events(stub.Research(asked()))
    error = await refusal(stub.Research(asked(objective="something else")))
    assert error.reason == Reason.ERROR_REASON_REQUEST_ID_REUSED


async def test_two_at_once_with_one_id_are_one_research(stub: Any) -> None:
    both = await asyncio.gather(*(events(stub.Research(asked())) for _ in range(8)))
    assert all(each == both[0] for each in both)


async def test_get_and_watch_give_what_was(stub: Any) -> None:
    told = await events(stub.Research(asked()))
    record = await stub.GetResearch(researcher_pb2.GetResearchRequest(research_id="r-1"))
    assert (record.sequence, record.result) == (len(told), told[-1].result)
    assert record.HasField("ended_at") and not record.HasField("error")
    for after in (0, 2, len(told) - 1, len(told)):
        request = researcher_pb2.WatchResearchRequest(research_id="r-1", after_sequence=after)
        assert await events(stub.WatchResearch(request)) == told[after:]
    request = researcher_pb2.WatchResearchRequest(research_id="r-1", after_sequence=len(told) + 1)
    assert (await refusal(stub.WatchResearch(request))).reason == Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE


async def test_an_unknown_research_is_not_found(stub: Any) -> None:
    for call in (
        stub.GetResearch(researcher_pb2.GetResearchRequest(research_id="none")),
        stub.WatchResearch(researcher_pb2.WatchResearchRequest(research_id="none")),
        stub.CancelResearch(researcher_pb2.CancelResearchRequest(research_id="none")),
    ):
        assert (await refusal(call)).reason == Reason.ERROR_REASON_RESEARCH_NOT_FOUND


async def ended(stub: Any, research_id: str = "r-1") -> researcher_pb2.ResearchRecord:
    record = researcher_pb2.ResearchRecord()

    async with asyncio.timeout(10):
        while not record.HasField("ended_at"):
            record = await stub.GetResearch(researcher_pb2.GetResearchRequest(research_id=research_id))
    return record


async def test_a_caller_that_hangs_up_stops_the_research(stub: Any, docs: Path) -> None:
    (docs / "slow.html").write_text(SLOW)
    call = stub.Research(asked())
    assert await call.read()
    call.cancel()
    record = await ended(stub)
    assert record.result.outcome != Outcome.RESEARCH_OUTCOME_ANSWERED
    assert Kind.GAP_KIND_CANCELLED in {gap.kind for gap in record.result.gaps}


async def test_a_research_that_keeps_going_is_found_after_a_disconnect(stub: Any, docs: Path) -> None:
    (docs / "slow.html").write_text("<div>" * 50_000)
    call = stub.Research(asked(keep_going=True))
    assert await call.read()
    call.cancel()
    told = await events(stub.WatchResearch(researcher_pb2.WatchResearchRequest(research_id="r-1")))
    assert "16,000 hours" in told[-1].result.findings[0].statement
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))


async def test_who_only_watches_stops_nothing_by_leaving(stub: Any, docs: Path) -> None:
    (docs / "slow.html").write_text("<div>" * 50_000)
    call = asyncio.create_task(events(stub.Research(asked())))
    watching = None
    async with asyncio.timeout(10):
        while watching is None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                attempt = stub.WatchResearch(researcher_pb2.WatchResearchRequest(research_id="r-1"))
                assert await attempt.read()
                watching = attempt
    watching.cancel()
    assert (await call)[-1].result.findings


async def test_cancel_ends_it_and_tells_that_it_is_partial(stub: Any, docs: Path) -> None:
    (docs / "slow.html").write_text(SLOW)
    call = stub.Research(asked(keep_going=True))
    assert await call.read()
    record = await stub.CancelResearch(researcher_pb2.CancelResearchRequest(research_id="r-1"))
    assert Kind.GAP_KIND_CANCELLED in {gap.kind for gap in record.result.gaps}
    async with asyncio.timeout(10):
        while (event := await call.read()) and not event.HasField("result"):
            pass
    assert event.result == record.result
    again = await stub.CancelResearch(researcher_pb2.CancelResearchRequest(research_id="r-1"))
    assert again == record, "cancelling what ended does nothing"


async def test_a_research_of_another_process_is_cancelled(tmp_path: Path, docs: Path) -> None:
    (docs / "slow.html").write_text(SLOW)
    async with started(tmp_path, docs) as (one, _), serving(tmp_path, docs) as other:
        call = one.Research(asked(keep_going=True))
        assert await call.read()
        record = await other.CancelResearch(researcher_pb2.CancelResearchRequest(research_id="r-1"))
        assert Kind.GAP_KIND_CANCELLED in {gap.kind for gap in record.result.gaps}


async def test_researches_under_way_keep_nobody_from_looking_and_too_many_are_refused(
    tmp_path: Path, docs: Path
) -> None:
    (docs / "slow.html").write_text(SLOW)
    async with serving(tmp_path, docs, max_researches="8") as stub:
        calls = [stub.Research(asked(f"r-{number}", keep_going=True)) for number in range(8)]
        for call in calls:
            assert await call.read()
        async with asyncio.timeout(3):
            record = await stub.GetResearch(researcher_pb2.GetResearchRequest(research_id="r-7"))
            assert not record.HasField("ended_at")
            assert (await refusal(stub.Research(asked("r-8")))).reason == Reason.ERROR_REASON_OVER_CAPACITY
            assert (await stub.ListSources(researcher_pb2.ListSourcesRequest())).sources
        for number in range(8):
            await stub.CancelResearch(researcher_pb2.CancelResearchRequest(research_id=f"r-{number}"))


async def test_many_who_follow_one_research_all_hear_its_end(stub: Any) -> None:
    for number in range(20):
        first = stub.Research(asked(f"r-{number}", keep_going=True))
        assert await first.read()
        request = researcher_pb2.WatchResearchRequest(research_id=f"r-{number}")
        async with asyncio.timeout(10):
            told = await asyncio.gather(*(events(stub.WatchResearch(request)) for _ in range(6)))
        assert all(each[-1].HasField("result") for each in told)


async def test_who_hangs_up_at_once_leaves_no_research_without_an_end(stub: Any) -> None:
    for number in range(30):
        call = stub.Research(asked(f"r-{number}"))
        await asyncio.sleep(number * 0.0007)  # at any moment of its beginning
        call.cancel()
    for number in range(30):
        async with asyncio.timeout(10):
            assert (await events(stub.Research(asked(f"r-{number}"))))[-1].HasField("result")


def test_nothing_comes_behind_the_result(tmp_path: Path) -> None:
    records = Records(tmp_path, keep=60)
    records.begin("one", b"1", "objective")
    records.add("one", researcher_pb2.ResearchResponse(result=researcher_pb2.ResearchResult()))
    records.add("one", researcher_pb2.ResearchResponse(usage=researcher_pb2.ResearchUsage()))
    assert [event.WhichOneof("event") for event in records.after("one", 0)] == ["result"]
    records.close()


async def test_a_short_quote_in_a_large_document_is_verified_soon(stub: Any, docs: Path) -> None:
    (docs / "large.txt").write_text("a" * 8_000_000)
    (docs / "comments.md").write_text("<!-- a -->\n\n" * 20_000 + "end")
    for uri in ("docs/large.txt", "docs/comments.md"):
        place = researcher_pb2.Locator(char_start=1_000)
        citation = researcher_pb2.Citation(uri=uri, quote="a", locator=place)
        async with asyncio.timeout(5):
            answer = await stub.VerifyCitation(researcher_pb2.VerifyCitationRequest(citation=citation))
        assert answer.state in (
            researcher_pb2.CITATION_STATE_SOURCE_CHANGED, researcher_pb2.CITATION_STATE_QUOTE_NOT_FOUND,
        )  # fmt: skip


async def test_a_refused_research_is_refused_again(stub: Any) -> None:
    for _ in range(2):
        error = await refusal(stub.Research(asked(sources=["../etc"])))
        assert error.reason == Reason.ERROR_REASON_SOURCE_REFUSED
    record = await stub.GetResearch(researcher_pb2.GetResearchRequest(research_id="r-1"))
    assert record.error.reason == Reason.ERROR_REASON_SOURCE_REFUSED


async def test_a_killed_process_leaves_no_research_under_way(tmp_path: Path, docs: Path) -> None:
    (docs / "slow.html").write_text(SLOW)
    async with started(tmp_path, docs) as (stub, process):
        call = stub.Research(asked(keep_going=True))
        assert await call.read()
        process.kill()
        await process.wait()
    (docs / "slow.html").unlink()
    async with serving(tmp_path, docs) as stub:
        record = await stub.GetResearch(researcher_pb2.GetResearchRequest(research_id="r-1"))
        assert record.error.reason == Reason.ERROR_REASON_WORKER_UNAVAILABLE and record.error.retryable
        told = await events(stub.Research(asked("r-2")))
        assert told[-1].result.findings, "the index that was being written is whole"


async def test_a_research_of_another_process_is_followed(tmp_path: Path, docs: Path) -> None:
    (docs / "slow.html").write_text("<div>" * 50_000)
    async with started(tmp_path, docs) as (one, _), serving(tmp_path, docs) as other:
        call = one.Research(asked(keep_going=True))
        assert await call.read()
        told = await events(other.WatchResearch(researcher_pb2.WatchResearchRequest(research_id="r-1")))
        assert told[-1].result.findings
        assert await events(other.Research(asked(keep_going=True))) == told, "and repeated there it is the same one"


async def test_time_that_runs_out_leaves_a_partial_result(stub: Any, docs: Path) -> None:
    (docs / "slow.html").write_text(SLOW)
    budget = researcher_pb2.ResearchBudget(wall_time=duration_pb2.Duration(seconds=2))
    result = (await events(stub.Research(asked(budget=budget))))[-1].result
    assert result.findings and result.outcome == Outcome.RESEARCH_OUTCOME_PARTIAL


def test_what_ended_long_ago_is_forgotten(tmp_path: Path) -> None:
    records = Records(tmp_path, keep=0.01)
    assert records.begin("one", b"1", "objective")
    records.add("one", researcher_pb2.ResearchResponse(result=researcher_pb2.ResearchResult()))
    assert not records.begin("one", b"1", "objective")
    records.close()
    later = Records(tmp_path, keep=1e-9)
    assert later.begin("two", b"2", "objective")
    with pytest.raises(Refusal) as caught:
        later.state("one")
    assert caught.value.error.reason == Reason.ERROR_REASON_RESEARCH_NOT_FOUND
    later.close()


async def test_a_citation_is_verified_against_the_source_as_it_is_now(stub: Any, docs: Path) -> None:
    State = researcher_pb2.CitationState
    citation = (await events(stub.Research(asked())))[-1].result.findings[0].citations[0]

    async def state(**changes: Any) -> int:
        asked = researcher_pb2.Citation()
        asked.CopyFrom(citation)
        for name, value in changes.items():
            setattr(asked, name, value)
        answer = await stub.VerifyCitation(researcher_pb2.VerifyCitationRequest(citation=asked))
        assert answer.detail
        return int(answer.state)

    assert await state() == State.CITATION_STATE_VALID
    assert await state(quote="The seal is never replaced.") == State.CITATION_STATE_QUOTE_NOT_FOUND
    for uri in ("docs/none.md", "elsewhere/pump.md", "docs/../pump.md", "/etc/passwd", "https://example.org/x"):
        assert await state(uri=uri) == State.CITATION_STATE_SOURCE_MISSING
    whole = (docs / "pump.md").read_text()
    (docs / "pump.md").write_text("New beginning.\n\n" + whole)
    assert await state() == State.CITATION_STATE_SOURCE_CHANGED
    (docs / "pump.md").write_text(f"<!-- {whole} -->\n\nNothing else.")
    assert await state() == State.CITATION_STATE_QUOTE_NOT_FOUND, "text a reader cannot see bears nothing out"
    (docs / "pump.md").unlink()
    assert await state() == State.CITATION_STATE_SOURCE_MISSING
    bare = researcher_pb2.VerifyCitationRequest(citation=researcher_pb2.Citation(uri="docs/pump.md"))
    assert (await refusal(stub.VerifyCitation(bare))).reason == Reason.ERROR_REASON_INVALID_REQUEST


async def test_cancel_of_an_index_leaves_what_was_indexed(stub: Any, docs: Path) -> None:
    (docs / "slow.html").write_text(SLOW)
    call = stub.IndexSource(researcher_pb2.IndexSourceRequest(name="docs"))
    assert await call.read()
    call.cancel()
    (docs / "slow.html").unlink()
    told = await events(stub.IndexSource(researcher_pb2.IndexSourceRequest(name="docs")))
    assert told[-1].source.documents == 1
