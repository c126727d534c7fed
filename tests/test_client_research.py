"""What operators ask the Researcher itself, on the command line, against scripted services on real ports."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, researcher_pb2, researcher_pb2_grpc, task_pb2
from google.api import httpbody_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner

from client.cli import app
from client.evidence import numbered, table
from client.researcher import ResearcherClient
from services.common.errors import Reason, Refusal
from services.common.status import to_status
from services.report_writer import report
from services.report_writer.findings import findings_json
from tests.test_client import TASK, completed, process
from tests.test_client import Scripted as ScriptedConductor
from tests.test_client import serve as serve_conductor
from tests.test_report import everywhere

State = researcher_pb2.CitationState
Act = Callable[[Any, grpc.ServicerContext], Any]


class Scripted(researcher_pb2_grpc.ResearcherServicer):
    """Answers each rpc as told; records every request."""

    def __init__(self) -> None:
        self.acts: dict[str, Act] = {}
        self.requests: list[Any] = []
        self.left = threading.Event()


def _unary(rpc: str) -> Any:
    def answer(self: Scripted, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        return self.acts[rpc](request, context)

    return answer


def _stream(rpc: str) -> Any:
    def answer(self: Scripted, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self.requests.append(type(request).FromString(request.SerializeToString()))
        context.add_callback(self.left.set)
        yield from self.acts[rpc](request, context)

    return answer


for _rpc in ("GetResearch", "CancelResearch", "VerifyCitation", "AddSource", "ListSources", "RemoveSource"):
    setattr(Scripted, _rpc, _unary(_rpc))
for _rpc in ("WatchResearch", "IndexSource"):
    setattr(Scripted, _rpc, _stream(_rpc))


@pytest.fixture
def script() -> Scripted:
    return Scripted()


@pytest.fixture
def researcher(script: Scripted) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(16))
    researcher_pb2_grpc.add_ResearcherServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def give(answer: Any) -> Act:
    return lambda request, context: answer


def refuse(reason: Any, message: str = "No.") -> Act:
    def act(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort_with_status(to_status(Refusal(reason, message), "c-1"))

    return act


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def a_source(name: str = "docs", **fields: Any) -> researcher_pb2.Source:
    made = researcher_pb2.Source(name=name, kind=researcher_pb2.SOURCE_KIND_FOLDER, path="main/docs", documents=1234)
    made.MergeFrom(researcher_pb2.Source(passages=56_789, bytes=12_345_678, **fields))
    return made


# ---- sources ----


def test_sources_are_listed_in_a_table_and_as_json(script: Scripted, researcher: str) -> None:
    indexed = a_source(unreadable=2, configured=True, indexed_at=Timestamp(seconds=1_700_000_000), include=["**/*.md"])
    script.acts["ListSources"] = give(researcher_pb2.ListSourcesResponse(sources=[indexed, a_source("other\x1b[31m")]))
    done = run("sources", "list", "--researcher", researcher)
    assert done.exit_code == 0, done.output
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "KIND", "DOCUMENTS", "UNREADABLE", "PASSAGES", "MB", "INDEX", "MB", "INDEXED", "PATH"],
        ["docs", "folder", "1,234", "2", "56,789", "12.3", "0.0", "2023-11-14T22:13:20Z", "main/docs", "**/*.md"],
        ["other", "[31m", "folder", "1,234", "0", "56,789", "12.3", "0.0", "never", "main/docs", "(added)"],
    ]
    lines = run("sources", "list", "--json", "--researcher", researcher).stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["docs", "other\x1b[31m"]


def test_no_sources_are_a_heading(script: Scripted, researcher: str) -> None:
    script.acts["ListSources"] = give(researcher_pb2.ListSourcesResponse())
    done = run("sources", "list", "--researcher", researcher)
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 1)


def test_a_source_is_added_as_the_options_say(script: Scripted, researcher: str) -> None:
    script.acts["AddSource"] = give(a_source("prices"))
    options = ("--kind", "tables", "--include", "*.csv", "--include", "*.db", "--exclude", "old/**")
    done = run("sources", "add", "prices", "main/data", *options, "--researcher", researcher)
    assert done.exit_code == 0 and "conductor sources index prices" in done.stderr
    run("sources", "add", "docs", "main/docs", "--researcher", researcher)
    first, second = script.requests
    assert (first.name, first.path, first.kind) == ("prices", "main/data", researcher_pb2.SOURCE_KIND_TABLES)
    assert (list(first.include), list(first.exclude)) == (["*.csv", "*.db"], ["old/**"])
    assert second.kind == researcher_pb2.SOURCE_KIND_FOLDER


def test_indexing_tells_progress_gaps_and_the_source(script: Scripted, researcher: str) -> None:
    Response = researcher_pb2.IndexSourceResponse
    progress = researcher_pb2.IndexProgress(documents=10, total_documents=20, indexed=3, removed=1, bytes=2_500_000)
    gap = researcher_pb2.Gap(kind=researcher_pb2.GAP_KIND_UNREADABLE, subject="docs/a.pdf", detail="It is\nencrypted.")
    steps = [Response(progress=progress), Response(gap=gap), Response(source=a_source())]
    script.acts["IndexSource"] = give(steps)
    done = run("sources", "index", "docs", "--researcher", researcher)
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and lines[:2] == [
        "10 of 20 documents looked at, 3 indexed (2.5 MB), 1 removed",
        "  ! UNREADABLE docs/a.pdf: It is encrypted.",
    ]
    assert lines[3].startswith("docs")
    told = run("sources", "index", "docs", "--json", "--researcher", researcher).stdout.splitlines()
    assert [next(iter(json.loads(line))) for line in told] == ["progress", "gap", "source"]


@pytest.mark.parametrize(
    ("command", "rpc"),
    [
        (("remove", "docs"), "RemoveSource"),
        (("index", "docs"), "IndexSource"),
        (("add", "docs", "main/x"), "AddSource"),
    ],
)
def test_a_refusal_has_its_reason_and_code(script: Scripted, researcher: str, command: Sequence[str], rpc: str) -> None:
    script.acts[rpc] = refuse(Reason.ERROR_REASON_SOURCE_REFUSED, "It is configured by the operator.")
    done = run("sources", *command, "--researcher", researcher)
    assert done.exit_code in (2, 3) and "SOURCE_REFUSED: It is configured by the operator." in done.stderr
    assert len(script.requests) == 1


def test_a_source_is_removed(script: Scripted, researcher: str) -> None:
    script.acts["RemoveSource"] = give(researcher_pb2.RemoveSourceResponse())
    done = run("sources", "remove", "docs", "--researcher", researcher)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "Removed docs.\n")
    assert script.requests[0].name == "docs"


def test_a_researcher_that_is_not_there_is_4_and_says_which_was_tried() -> None:
    done = process("sources", "list", "--researcher", "127.0.0.1:1")
    assert done.returncode == 4 and "Tried 127.0.0.1:1. Start the Researcher" in done.stderr


# ---- researches ----


def a_result() -> researcher_pb2.ResearchResult:
    made = researcher_pb2.ResearchResult(outcome=researcher_pb2.RESEARCH_OUTCOME_PARTIAL, research_id="r-1")
    for uri, quote in (("docs/a.md", "It costs 90."), ("docs/b.pdf", "Yearly.\x1b[2J")):
        made.findings.add(statement=quote).citations.add(uri=uri, quote=quote)
    made.findings[0].citations[0].locator.line_start = made.findings[0].citations[0].locator.line_end = 3
    made.findings[1].citations[0].locator.page = 7
    made.answer.add(text="It is changed yearly.", findings=[1])
    made.gaps.add(kind=researcher_pb2.GAP_KIND_CANCELLED, subject="wall_time", detail="Out of time.")
    return made


def test_a_research_is_shown_with_its_answer_citations_and_gaps(script: Scripted, researcher: str) -> None:
    record = researcher_pb2.ResearchRecord(research_id="r-1", objective="When?", sequence=12, result=a_result())
    record.started_at.seconds = 1_700_000_000
    record.ended_at.seconds = 1_700_000_009
    script.acts["GetResearch"] = give(record)
    done = run("research", "r-1", "--researcher", researcher)
    assert done.stdout.splitlines() == [
        "r-1  When?",
        "Started 2023-11-14T22:13:20Z, ended 2023-11-14T22:13:29Z, 12 events",
        "PARTIAL",
        "  It is changed yearly. [1]",
        "  [1] docs/b.pdf, page 7: Yearly. [2J",
        "  [2] docs/a.md, line 3: It costs 90.",
        "  ! CANCELLED wall_time: Out of time.",
    ]
    told = json.loads(run("research", "r-1", "--json", "--researcher", researcher).stdout)
    assert told["result"]["outcome"] == "RESEARCH_OUTCOME_PARTIAL"
    script.acts["GetResearch"] = refuse(Reason.ERROR_REASON_RESEARCH_NOT_FOUND)
    assert run("research", "r-2", "--researcher", researcher).exit_code == 3


def test_a_research_is_followed_to_its_result_over_a_broken_stream(script: Scripted, researcher: str) -> None:
    Response = researcher_pb2.ResearchResponse
    events = [
        Response(sequence=1, progress=researcher_pb2.ResearchProgress(message="Searching docs.")),
        Response(sequence=2, read=researcher_pb2.SourceRead(uri="docs/a.md")),
        Response(sequence=3, judged=researcher_pb2.PassageJudged(uri="docs/a.md", beginning="Oil", why="weak")),
        Response(sequence=4, usage=researcher_pb2.ResearchUsage(documents=1)),
        Response(sequence=5, result=a_result()),
    ]

    def act(request: Any, context: grpc.ServicerContext) -> Iterator[Response]:
        for event in events[request.after_sequence :]:
            yield event
            if event.sequence == 2 and request.after_sequence == 0:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut on the way")

    script.acts["WatchResearch"] = act
    done = run("research", "r-1", "--follow", "--researcher", researcher)
    assert done.exit_code == 0 and [request.after_sequence for request in script.requests] == [0, 2]
    lines = done.stdout.splitlines()
    assert lines[:3] == ["Searching docs.", ". docs/a.md", "- docs/a.md: Oil (weak)"]
    assert lines[3].startswith("spent 1 documents") and lines[4] == "PARTIAL"


def test_a_cancel_gives_the_record(script: Scripted, researcher: str) -> None:
    script.acts["CancelResearch"] = give(researcher_pb2.ResearchRecord(research_id="r-1"))
    with ResearcherClient(researcher) as client:
        assert client.cancel("r-1").research_id == "r-1"


# ---- verify ----


class WithFindings(conductor_pb2_grpc.ConductorServicer):
    """A Conductor that has one artefact of one task."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def GetArtifact(self, request: Any, context: grpc.ServicerContext) -> Iterator[httpbody_pb2.HttpBody]:
        if (request.task_id, request.name) != (TASK, "findings.json"):
            context.abort_with_status(to_status(Refusal(Reason.ERROR_REASON_REPORT_NOT_FOUND, "No such."), "c-1"))
        for at in range(0, len(self.content), 100):
            yield httpbody_pb2.HttpBody(content_type="application/json", data=self.content[at : at + 100])


def stored(result: researcher_pb2.ResearchResult) -> bytes:
    made = everywhere("x")
    made.ClearField("findings")
    made.ClearField("answer")
    made.findings.extend(result.findings)
    made.answer.extend(result.answer)
    return findings_json(made)


@pytest.fixture
def conductor() -> Iterator[Callable[[bytes], str]]:
    servers = []

    def start(content: bytes) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        conductor_pb2_grpc.add_ConductorServicer_to_server(WithFindings(content), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def states(**by_uri: int) -> Act:
    def act(request: Any, context: grpc.ServicerContext) -> Any:
        state = by_uri[request.citation.uri.removeprefix("docs/").partition(".")[0]]
        return researcher_pb2.VerifyCitationResponse(state=state, detail=f"It is {state}.")  # type: ignore[arg-type]

    return act


@pytest.mark.parametrize(
    ("a", "b", "code"),
    [
        (State.CITATION_STATE_VALID, State.CITATION_STATE_VALID, 0),
        (State.CITATION_STATE_VALID, State.CITATION_STATE_SOURCE_CHANGED, 0),
        (State.CITATION_STATE_QUOTE_NOT_FOUND, State.CITATION_STATE_VALID, 1),
        (State.CITATION_STATE_VALID, State.CITATION_STATE_SOURCE_MISSING, 1),
        (State.CITATION_STATE_VALID, State.CITATION_STATE_UNSPECIFIED, 1),
        (State.CITATION_STATE_VALID, 99, 1),  # of a newer Researcher
    ],
)
def test_verify_tells_of_every_citation_whether_it_holds(
    script: Scripted, researcher: str, conductor: Any, a: int, b: int, code: int
) -> None:
    script.acts["VerifyCitation"] = states(a=a, b=b)
    target = conductor(stored(a_result()))
    done = run("verify", TASK, "--target", target, "--researcher", researcher)
    assert done.exit_code == code, done.output
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    names = [
        State.Name(each).removeprefix("CITATION_STATE_") if each in State.values() else str(each) for each in (b, a)
    ]
    assert [line[:2] for line in lines] == [["[n]", "STATE"], ["[1]", names[0]], ["[2]", names[1]]]
    assert done.stderr == ("All 2 citations hold.\n" if code == 0 else "1 of 2 citations do not hold.\n")
    assert [request.citation for request in script.requests] == [one for _, one in numbered(a_result())]
    told = run("verify", TASK, "--json", "--target", target, "--researcher", researcher)
    fields = [json.loads(line) for line in told.stdout.splitlines()]
    assert told.exit_code == code and [each["number"] for each in fields] == [1, 2]
    assert fields[0]["uri"] == "docs/b.pdf"


def test_where_a_quote_stands_now_is_told(script: Scripted, researcher: str, conductor: Any) -> None:
    moved = researcher_pb2.VerifyCitationResponse(state=State.CITATION_STATE_SOURCE_CHANGED, detail="It moved.")
    moved.locator.line_start, moved.locator.line_end = 12, 14
    script.acts["VerifyCitation"] = give(moved)
    done = run("verify", TASK, "--target", conductor(stored(a_result())), "--researcher", researcher)
    assert done.exit_code == 0 and done.stdout.count("It moved. Now: lines 12-14.") == 2


def test_the_numbers_are_those_of_the_report() -> None:
    made = everywhere("x")
    made.ClearField("findings")
    made.ClearField("answer")
    made.findings.extend(a_result().findings)
    made.answer.extend(a_result().answer)
    markdown = report.render(made).decode()
    for number, citation in numbered(a_result()):
        after = markdown.partition(f" Citation {number}\n\n")[2]
        assert after.startswith(f"`{citation.uri}`")


def test_a_citation_that_cannot_be_checked_does_not_hold_and_the_others_are_checked(
    script: Scripted, researcher: str, conductor: Any
) -> None:
    answers = iter([refuse(Reason.ERROR_REASON_INVALID_REQUEST, "needs a uri"), states(a=1, b=1)])
    script.acts["VerifyCitation"] = lambda request, context: next(answers)(request, context)
    done = run("verify", TASK, "--target", conductor(stored(a_result())), "--researcher", researcher)
    assert done.exit_code == 1 and len(done.stdout.splitlines()) == 3 and "needs a uri" in done.stdout


def test_a_task_without_citations_or_without_a_research_is_told_apart(
    script: Scripted, researcher: str, conductor: Any
) -> None:
    target = conductor(stored(researcher_pb2.ResearchResult()))
    done = run("verify", TASK, "--target", target, "--researcher", researcher)
    assert (done.exit_code, done.stdout) == (0, "") and "nothing to verify" in done.stderr
    missing = run("verify", "another", "--target", target, "--researcher", researcher)
    assert missing.exit_code == 3 and "REPORT_NOT_FOUND" in missing.stderr and not script.requests


def test_a_table_is_aligned_and_harmless() -> None:
    assert table([("A", "BB", "C"), ("aaa", "b\x1b", "c c")]) == ["A    BB  C", "aaa  b   c c"]


# ---- hints ----


@pytest.mark.parametrize(
    ("options", "capabilities"),
    [
        (("--web",), []),
        (("--mode", "synthesized", "--command", "date"), [1, 2]),
        (("--kind", "web", "--kind", "tables"), []),
    ],
)
def test_execute_gives_the_hints_of_a_research(options: Sequence[str], capabilities: list[int]) -> None:
    script = ScriptedConductor()
    server, port = serve_conductor(script)
    completed(script)
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    done = run("execute", "Why?", "--no-wait", *options, "--target", f"127.0.0.1:{port}")
    server.stop(None).wait()
    assert done.exit_code == 0, done.output
    (request,) = script.seen(conductor_pb2.ExecuteRequest)
    hints: task_pb2.Hints = request.hints
    assert list(hints.capabilities) == capabilities
    assert hints.research.web == ("--web" in options)
    assert hints.research.mode == (researcher_pb2.ANSWER_MODE_SYNTHESIZED if "--mode" in options else 0)
    assert list(hints.research.kinds) == ([4, 3] if "--kind" in options else [])


@pytest.mark.parametrize("options", [("--mode", "guess"), ("--kind", "x")])
def test_a_wrong_hint_is_2_before_anything_is_asked(options: Sequence[str]) -> None:
    done = run("execute", "Why?", *options, "--target", "127.0.0.1:1")
    assert done.exit_code == 2 and "give one of" in done.stderr
