"""The Researcher over a real loopback port: what it answers, and what changes between calls."""

import asyncio
import os
import sys
import threading
from pathlib import Path

import grpc
import pytest
from conductor.v1 import researcher_pb2, researcher_pb2_grpc

from services.researcher import answer
from tests import asking
from tests.asking import GUIDE, NOTES, PROJECT, Client, Kind, Serve, check_quotes, gaps, small_corpus
from tests.conftest import until

serve = asking.serve  # a fixture


# What it answers


async def test_answers_with_verbatim_quotes_at_their_locators(serve: Serve) -> None:
    client = await serve()
    result = await client.ask("When is the mechanical seal replaced?")
    best = result.findings[0].citations[0]
    assert "16,000 hours" in best.quote
    assert best.uri == "docs/guide.md"
    assert best.title == "Pump station guide"
    assert list(best.locator.heading_path) == ["Pump station guide", "Maintenance"]
    assert (best.locator.line_start, best.locator.line_end) == (12, 13)
    assert check_quotes(client.root, result)
    assert (result.usage.documents, result.usage.passages) == (3, 3)
    assert result.usage.bytes == sum(path.stat().st_size for path in client.root.rglob("*.*"))


async def test_the_stream_tells_what_is_read_searched_and_kept_and_the_result_is_last(serve: Serve) -> None:
    client = await serve()
    responses = await client.call("mechanical seal")
    steps = [response.progress for response in responses if response.HasField("progress")]
    assert [step.step for step in steps] == sorted(step.step for step in steps)
    assert {step.step for step in steps} == {1, 2, 3} and {step.total_steps for step in steps} == {3}
    assert "Reading docs: 3 documents, 3 of them new or changed." in [step.message for step in steps]
    assert {response.read.uri for response in responses if response.HasField("read")} == {
        "docs/guide.md", "docs/plant/notes.txt", "docs/plant/tower.html",
    }  # fmt: skip
    judged = {response.judged.uri: response.judged.kept for response in responses if response.HasField("judged")}
    assert judged["docs/guide.md"]
    assert responses[-1].WhichOneof("event") == "result"
    assert {response.research_id for response in responses} == {responses[-1].result.research_id}


async def test_names_the_words_that_occur_nowhere(serve: Serve) -> None:
    result = await (await serve()).ask("What is the warranty of the Frobnicator?")
    assert not result.findings
    assert set(gaps(result, Kind.GAP_KIND_TERM_ABSENT)) == {"warranty", "Frobnicator"}
    assert gaps(result, Kind.GAP_KIND_NOT_FOUND)


async def test_a_word_in_common_is_no_answer(serve: Serve) -> None:
    result = await (await serve()).ask("Which oil price do analysts on Wall Street forecast for next quarter?")
    assert not result.findings


async def test_gaps_are_bounded(serve: Serve) -> None:
    result = await (await serve()).ask(" ".join(f"unknown{number}word" for number in range(900)))
    absent = [gap for gap in result.gaps if gap.kind == Kind.GAP_KIND_TERM_ABSENT]
    assert 1 < len(absent) <= 33


@pytest.mark.parametrize("objective", ["pump AND (", 'title:"x" -"y', "???", "the", "\\", "*:*", "[a TO z]", "+ -"])
async def test_an_objective_is_never_parsed_as_a_query(serve: Serve, objective: str) -> None:
    await (await serve()).ask(objective)


async def test_the_same_question_gets_the_same_answer(serve: Serve, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(20):
        (other / f"{number}.md").write_text(f"# Note {number}\n\nValve {number} of the plant stands open by day.\n")
    first = await serve(other, small_corpus(tmp_path / "docs"))
    again = await serve(other, tmp_path / "docs")
    results = [await client.ask("When is the pump bypass closed?") for client in (first, first, again)]
    for result in results:
        result.ClearField("research_id")
        result.usage.ClearField("wall_time")
        for each in result.searched:
            each.ClearField("at")
        for citation in (citation for finding in result.findings for citation in finding.citations):
            citation.ClearField("retrieved_at")
    assert results[0] == results[1] == results[2]
    assert results[0].findings


async def test_near_duplicates_become_one_finding_with_more_citations(serve: Serve) -> None:
    client = await serve()
    for number in range(5):
        (client.root / f"copy-{number}.md").write_text(GUIDE)
    result = await client.ask("When is the mechanical seal replaced?")
    quoting = [finding for finding in result.findings if "16,000 hours" in finding.statement]
    assert len(quoting) == 1
    assert len(quoting[0].citations) == answer.MAX_CITATIONS
    assert len({citation.uri for citation in quoting[0].citations}) == answer.MAX_CITATIONS


async def test_findings_are_limited(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(20):
        (root / f"{number}.md").write_text(f"Valve {number} word{number} other{number} third{number} is made of brass.")
    client = await serve(root)
    assert len((await client.ask("valve brass")).findings) == 8
    budget = researcher_pb2.ResearchBudget(max_findings=3)
    assert len((await client.ask("valve brass", budget=budget)).findings) == 3


async def test_this_projects_own_documents(serve: Serve) -> None:
    folders = [path for path in (PROJECT / "docs", PROJECT / "protos") if path.is_dir()]
    folder = folders[0]
    client = await serve(folder)
    for question in ("How are sources opened?", "What is refused?", "locator of a quote", "hidden text in HTML"):
        check_quotes(folder, await client.ask(question))


# What changes between calls


async def test_only_what_changed_is_read_again(serve: Serve) -> None:
    client = await serve()
    await client.ask("gearbox oil")
    notes = client.root / "plant" / "notes.txt"
    notes.write_text(NOTES.replace("synthetic", "mineral12"))  # the same size
    responses = await client.call("gearbox oil")
    assert [response.read.uri for response in responses if response.HasField("read")] == ["docs/plant/notes.txt"]
    assert "mineral12" in responses[-1].result.findings[0].statement
    responses = await client.call("gearbox oil")
    assert not [response for response in responses if response.HasField("read")], "nothing changed"


async def test_deleted_and_new_documents_are_seen(serve: Serve) -> None:
    client = await serve()
    assert (await client.ask("gearbox oil")).findings
    (client.root / "plant" / "notes.txt").unlink()
    assert "gearbox" in gaps(await client.ask("gearbox oil"), Kind.GAP_KIND_TERM_ABSENT)
    (client.root / "new.rst").write_text("Title\n=====\n\nThe gearbox oil is red.\n")
    result = await client.ask("gearbox oil")
    assert result.findings[0].citations[0].uri == "docs/new.rst"
    assert list(result.findings[0].citations[0].locator.heading_path) == ["Title"]


async def test_headings_are_searched_for_everything_below_them(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    sentences = [f"Fact {number} tells of w{number}a and w{number}b and w{number}c here. " for number in range(120)]
    (root / "a.md").write_text("# Animals\n\n## Quokka\n\n" + "".join(sentences) + "\n\n## Wombat\n\nAnother one.\n")
    client = await serve(root)
    result = await client.ask("quokka")
    assert len(result.findings) >= 3
    for finding in result.findings:
        assert list(finding.citations[0].locator.heading_path) == ["Animals", "Quokka"]
    assert check_quotes(root, result)


async def test_concurrent_calls_while_documents_change(serve: Serve) -> None:
    client = await serve()
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (client.root / "churn.md").write_text(f"# Churn {number}\n\nThe churn count is {number}.\n")
            stop.wait(0.002)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        questions = ["When is the mechanical seal replaced?", "churn count", "biocide dosing", "gearbox oil"] * 8
        results = await asyncio.gather(*(client.ask(question) for question in questions))
    finally:
        stop.set()
        thread.join()
    for question, result in zip(questions, results, strict=True):
        assert result.findings or question == "churn count"


def children_of(pid: int) -> list[str]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [child for thread in threads for child in (thread / "children").read_text().split()]


async def test_the_service_starts_answers_and_stops(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "docs")
    environ = {"RESEARCHER_LISTEN": "127.0.0.1:0", "RESEARCHER_ROOTS": str(root)}
    environ |= {"RESEARCHER_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.researcher", cwd=PROJECT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    line = ""
    while "listening" not in line:
        line = (await asyncio.wait_for(process.stderr.readline(), 20)).decode()
    port = line.partition("listening on 127.0.0.1:")[2].strip()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = Client(researcher_pb2_grpc.ResearcherStub(channel), root)
        assert (await client.ask("biocide legionella")).findings
    children = children_of(process.pid)
    assert children
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    for child in children:
        await until(lambda child=child: not Path(f"/proc/{child}").exists(), 5)
