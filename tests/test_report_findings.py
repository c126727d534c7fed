"""`findings.json` beside a report, over a real port: durable before the report, one per task, never replaced.

As in test_report_writer, everything runs with this kernel's calls and without openat2 and renameat2.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from conductor.v1 import error_pb2, report_writer_pb2, researcher_pb2

from services.report_writer import report
from tests.report_writers import LAUNCH, Request, Writer, a_request, conflict, names, refused, running, temporaries

NAME = "findings.json"


@pytest.fixture(scope="module", params=LAUNCH)
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    with running(tmp_path_factory.mktemp("writer") / "reports", request.param) as started:
        yield started


@pytest.fixture
def task(request: pytest.FixtureRequest) -> str:
    return "t-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]


def researched(task: str, statement: str = "Water boils at 100 °C.", quotes: int = 1) -> Request:
    made = a_request(task)
    made.research_id, made.outcome = "r-1", researcher_pb2.RESEARCH_OUTCOME_ANSWERED
    for number in range(quotes):
        found = made.findings.add(statement=statement)
        found.citations.add(uri=f"docs/{number}.md", quote=statement).locator.line_start = 3
    made.answer.add(text=statement, findings=[0])
    return made


def fetched(writer: Writer, task: str, file: report_writer_pb2.Artifact) -> bytes:
    request = report_writer_pb2.GetArtifactRequest(task_id=task, name=file.name, sha256=file.sha256)
    return b"".join(answer.data for answer in writer.stub.GetArtifact(request, timeout=20))


def test_what_was_found_stands_beside_the_report_and_is_read_back(writer: Writer, task: str) -> None:
    answer = writer.write(researched(task))
    content = (writer.root / task / NAME).read_bytes()
    file = answer.findings
    assert (file.name, file.size_bytes, file.media_type) == (NAME, len(content), "application/json")
    assert file.sha256 == hashlib.sha256(content).hexdigest() and fetched(writer, task, file) == content
    told = json.loads(content)
    assert told["research_id"] == "r-1" and told["outcome"] == "RESEARCH_OUTCOME_ANSWERED"
    assert told["findings"][0]["citations"][0]["quote"] == "Water boils at 100 °C."
    assert "`findings.json`" in (writer.root / f"{task}.md").read_text()
    assert temporaries(writer.root) == [] and names(writer.root / task) == [NAME]


def test_a_report_without_a_research_has_none(writer: Writer, task: str) -> None:
    assert not writer.write(a_request(task)).HasField("findings")
    assert not (writer.root / task).exists()


def test_a_repeat_gives_the_same_answer_and_touches_neither(writer: Writer, task: str) -> None:
    first = writer.write(researched(task))
    files = (writer.root / f"{task}.md", writer.root / task / NAME)
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    upgraded = researched(task)
    upgraded.provenance.conductor_version = "9.9.9"
    for again in (writer.write(researched(task)), writer.write(upgraded)):
        assert again.already_existed and again.findings == first.findings and again.sha256 == first.sha256
    assert [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files] == before


def test_a_repeat_completes_what_a_killed_writer_left(writer: Writer, task: str) -> None:
    whole = writer.write(researched(task))
    (writer.root / f"{task}.md").unlink()  # it died between the two
    again = writer.write(researched(task))
    assert not again.already_existed and (again.sha256, again.findings) == (whole.sha256, whole.findings)
    (writer.root / task / NAME).unlink()
    assert writer.write(researched(task)).findings == whole.findings
    assert (writer.root / task / NAME).exists()


def test_of_another_research_nothing_is_stored_beside_a_report(writer: Writer, task: str) -> None:
    writer.write(a_request(task))
    with conflict():
        writer.write(researched(task))
    assert not (writer.root / task).exists()


def test_other_findings_are_not_replaced_and_get_no_report(writer: Writer, task: str) -> None:
    (writer.root / task).mkdir()
    (writer.root / task / NAME).write_bytes(b"{}\n")
    path = f"reports/{task}/{NAME}"
    with refused(error_pb2.ERROR_REASON_REPORT_CONFLICT, grpc.StatusCode.ALREADY_EXISTS, path=path):
        writer.write(researched(task))
    assert (writer.root / task / NAME).read_bytes() == b"{}\n"
    assert not (writer.root / f"{task}.md").exists()


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo"])
def test_what_stands_in_the_way_is_neither_followed_nor_replaced(
    writer: Writer, task: str, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    place = writer.root / task / NAME
    place.parent.mkdir()
    {"symlink": lambda: place.symlink_to(outside), "folder": place.mkdir, "fifo": lambda: os.mkfifo(place)}[kind]()
    with conflict():
        writer.write(researched(task))
    assert outside.read_text() == "theirs" and not (writer.root / f"{task}.md").exists()


def test_an_answer_that_rests_on_no_finding_is_refused(writer: Writer, task: str) -> None:
    made = researched(task)
    made.answer[0].findings.append(1)
    with refused(error_pb2.ERROR_REASON_INVALID_REQUEST, grpc.StatusCode.INVALID_ARGUMENT, field="findings"):
        writer.write(made)
    assert not (writer.root / task).exists() and not (writer.root / f"{task}.md").exists()


def test_of_concurrent_different_researches_one_wins_whole(writer: Writer, task: str) -> None:
    def attempt(number: int) -> report_writer_pb2.WriteReportResponse | None:
        try:
            return writer.write(researched(task, f"Statement {number}."))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ALREADY_EXISTS
            return None

    with ThreadPoolExecutor(16) as pool:
        won = [answer for answer in pool.map(attempt, range(32)) if answer]
    assert len(won) == 1
    assert fetched(writer, task, won[0].findings) == (writer.root / task / NAME).read_bytes()


@pytest.mark.parametrize("kernel", LAUNCH)
def test_after_a_kill_a_report_has_its_findings_and_a_repeat_gives_both(tmp_path: Path, kernel: str) -> None:
    root = tmp_path / "reports"
    requests = [researched(f"t-{number}", "Water boils. " * 50, quotes=20) for number in range(300)]
    told: list[str] = []
    enough = threading.Event()
    with running(root, kernel) as writer, ThreadPoolExecutor(16) as pool:

        def attempt(request: Request) -> None:
            with contextlib.suppress(grpc.RpcError):  # killed under it
                told.append(writer.write(request).findings.sha256)
                if len(told) >= 30:
                    enough.set()

        attempts = [pool.submit(attempt, request) for request in requests]
        assert enough.wait(20)
        writer.kill()
        for done in attempts:
            done.result(20)
    assert len(told) < len(requests)
    for path in root.glob("*.md"):
        assert report.sealed_request(path.read_bytes()) is not None
        json.loads((root / path.stem / NAME).read_bytes())
    with running(root, kernel) as writer:
        for request in requests[:60]:
            answer = writer.write(request)
            assert hashlib.sha256((root / request.task_id / NAME).read_bytes()).hexdigest() == answer.findings.sha256
