"""What the Researcher refuses, what budgets end, and how it is stopped."""

import threading
import time
from pathlib import Path

import pytest
from conductor.v1 import researcher_pb2
from google.protobuf import duration_pb2

from services.common.errors import Reason
from services.researcher.watch import Cancelled, Watch
from tests import asking
from tests.asking import NOTES, Kind, Serve, gaps
from tests.conftest import until

serve = asking.serve  # a fixture


# What it refuses


@pytest.mark.parametrize(
    "source",
    [
        "../secret.md",
        "/etc",
        "docs/../../secret.md",
        "guide.md/..",
        "missing.md",
        "image.png",
        "a\0b",
        "guide.md/x",
        "..",
    ],
)
async def test_sources_outside_the_roots_are_refused(serve: Serve, tmp_path: Path, source: str) -> None:
    client = await serve()
    (tmp_path / "secret.md").write_text("secret")
    (client.root / "image.png").write_bytes(b"x")
    error = await client.refused(sources=[source])
    assert error.reason == Reason.ERROR_REASON_SOURCE_REFUSED
    assert error.metadata["source"] == source
    assert str(tmp_path) not in error.message


async def test_absolute_names_are_refused_even_below_a_root(serve: Serve) -> None:
    client = await serve()
    error = await client.refused(sources=[str(client.root / "guide.md")])
    assert error.reason == Reason.ERROR_REASON_SOURCE_REFUSED


@pytest.mark.parametrize("source", ["guide.md", "docs/guide.md", "./guide.md", "docs/./guide.md"])
async def test_a_source_is_named_with_or_without_its_root(serve: Serve, source: str) -> None:
    client = await serve()
    result = await client.ask("mechanical seal", sources=[source, source])
    assert result.usage.documents == 1
    assert {c.uri for f in result.findings for c in f.citations} == {"docs/guide.md"}


async def test_a_folder_is_a_source_and_narrows_the_search(serve: Serve) -> None:
    result = await (await serve()).ask("mechanical seal", sources=["plant"])
    assert result.usage.documents == 2
    assert "seal" in gaps(result, Kind.GAP_KIND_TERM_ABSENT)


async def test_the_root_whose_name_comes_first_wins(serve: Serve, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, text in ((one / "two", "inner"), (two, "outer")):
        folder.mkdir(parents=True)
        (folder / "a.md").write_text(f"The {text} valve is open.")
    client = await serve(one, two)
    result = await client.ask("valve open", sources=["two/a.md"])
    assert [finding.citations[0].uri for finding in result.findings] == ["two/a.md"]
    assert "outer" in result.findings[0].statement


async def test_roots_of_one_name_get_different_uris(serve: Serve, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number) / "docs").mkdir(parents=True)
        (tmp_path / str(number) / "docs" / "a.md").write_text(f"The valve is number {number}{number}{number}.")
    client = await serve(tmp_path / "1" / "docs", tmp_path / "2" / "docs")
    result = await client.ask("valve number 222", sources=["docs-2/a.md"])
    assert [finding.citations[0].uri for finding in result.findings] == ["docs-2/a.md"]


async def test_no_roots(serve: Serve, tmp_path: Path) -> None:
    client = await serve(tmp_path / "missing")
    assert (await client.refused()).reason == Reason.ERROR_REASON_NO_SOURCES


async def test_an_empty_root_and_a_missing_one_are_told(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = await (await serve(tmp_path / "empty", tmp_path / "missing")).ask("pump")
    assert gaps(result, Kind.GAP_KIND_NOT_FOUND)
    assert "missing" in gaps(result, Kind.GAP_KIND_UNREADABLE)


async def test_blank_objective_is_invalid(serve: Serve) -> None:
    assert (await (await serve()).refused(objective=" \n")).reason == Reason.ERROR_REASON_INVALID_REQUEST


async def test_links_are_not_followed(serve: Serve, tmp_path: Path) -> None:
    client = await serve()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.md").write_text("The secret valve is number 77.")
    (client.root / "link.md").symlink_to(tmp_path / "outside" / "secret.md")
    (client.root / "linked").symlink_to(tmp_path / "outside")
    result = await client.ask("secret valve number 77")
    assert not result.findings
    assert "link" in gaps(result, Kind.GAP_KIND_UNREADABLE)["docs/link.md"]
    for source in ("link.md", "linked", "linked/secret.md", "docs/linked/secret.md"):
        assert (await client.refused(sources=[source])).metadata["source"] == source


# Budgets and stopping


async def test_documents_and_bytes_are_limited(serve: Serve) -> None:
    client = await serve()
    one = await client.ask("pump", budget=researcher_pb2.ResearchBudget(max_documents=1))
    assert one.usage.documents == 1
    assert "max_documents" in gaps(one, Kind.GAP_KIND_BUDGET_EXHAUSTED)
    few = await client.ask("gearbox oil", budget=researcher_pb2.ResearchBudget(max_bytes=len(NOTES)))
    assert few.usage.documents == 2, "what was indexed before is searched too"
    assert few.findings and "max_bytes" in gaps(few, Kind.GAP_KIND_BUDGET_EXHAUSTED)


async def test_the_operators_limits_are_ceilings(serve: Serve) -> None:
    client = await serve(max_documents="2")
    result = await client.ask("pump", budget=researcher_pb2.ResearchBudget(max_documents=3))
    assert result.usage.documents == 2


async def test_budgets_hold_over_all_parts_and_sources(serve: Serve, tmp_path: Path) -> None:
    for root, thing in (("one", "valve"), ("two", "pump")):
        (tmp_path / root).mkdir()
        for number in range(5):
            text = f"The {thing} number{number} other{number} third{number} is made of brass."
            (tmp_path / root / f"{number}.md").write_text(text)
    client = await serve(tmp_path / "one", tmp_path / "two")
    few = await client.ask("valve brass", budget=researcher_pb2.ResearchBudget(max_documents=6))
    assert few.usage.documents == 6 and "max_documents" in gaps(few, Kind.GAP_KIND_BUDGET_EXHAUSTED)
    both = "Which valve is made of brass? Which pump is made of brass?"
    for most in (1, 2, 3, 5):
        result = await client.ask(both, budget=researcher_pb2.ResearchBudget(max_findings=most))
        assert len(result.findings) <= most
    assert [len(part.findings) for part in result.sub_questions] == [2, 3]


async def test_no_time_gives_an_honest_empty_result(serve: Serve) -> None:
    budget = researcher_pb2.ResearchBudget(wall_time=duration_pb2.Duration(nanos=1))
    result = await (await serve()).ask("mechanical seal", budget=budget)
    assert not result.findings
    assert "wall_time" in gaps(result, Kind.GAP_KIND_BUDGET_EXHAUSTED)
    assert not gaps(result, Kind.GAP_KIND_TERM_ABSENT)


async def test_running_out_of_time_returns_what_was_found(serve: Serve) -> None:
    """The deadline of the call is a budget too: the result comes before it, with what was read by then."""
    client = await serve()
    (client.root / "z-slow.html").write_text("<div>" * 300_000)  # quadratic in the parser: more than 3 s
    request = researcher_pb2.ResearchRequest(objective="When is the mechanical seal replaced?")
    started = time.monotonic()
    responses = [response async for response in client.stub.Research(request, timeout=4)]
    assert time.monotonic() - started < 4
    result = responses[-1].result
    assert "16,000 hours" in result.findings[0].statement
    assert "wall_time" in gaps(result, Kind.GAP_KIND_BUDGET_EXHAUSTED)


async def test_cancel_stops_the_thread(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="services.researcher.runs")
    client = await serve()
    (client.root / "z-slow.html").write_text("<div>" * 200_000)
    call = client.stub.Research(researcher_pb2.ResearchRequest(objective="mechanical seal"))
    assert (await call.read()).WhichOneof("event") == "progress"
    call.cancel()
    await until(lambda: "research: 0 findings" in caplog.text, 2)
    (client.root / "z-slow.html").unlink()
    assert (await client.ask("mechanical seal")).findings


def test_a_cancel_is_seen_while_another_call_builds() -> None:
    watch, lock = Watch(30), threading.Lock()
    threading.Timer(0.05, watch.cancel).start()
    with lock, pytest.raises(Cancelled), watch.holding(lock):
        pass
    assert watch.elapsed() < 2
