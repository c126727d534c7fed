"""Reports of earlier tasks as a source: the reports, what commands wrote, files they left; nothing half-written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conductor.v1 import report_writer_pb2, researcher_pb2

from services.report_writer.findings import NAME, findings_json
from services.report_writer.report import render
from services.researcher.citing import visible
from services.researcher.documents import Kind, SourceKind, Unreadable
from services.researcher.extract.reading import Parsers
from services.researcher.folder import FolderSource, Root
from services.researcher.formats import Documents
from services.researcher.reports import FINDINGS, Reports
from services.researcher.watch import Watch
from tests.collections_at_hand import found, opened, uris
from tests.researchers import events, serving


@contextmanager
def source(root: Path, home: Path) -> Iterator[FolderSource]:
    parsers = Parsers()
    made = FolderSource(
        "reports", Root("reports", root), home=home, parsers=parsers, max_file_bytes=1 << 20, rescan=3600.0,
        kind=SourceKind.SOURCE_KIND_REPORTS, formats=Reports(Documents(parsers)),
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()
        parsers.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder as the ReportWriter leaves it: a report, its findings, the output of a command, files on the way."""
    folder = tmp_path / "reports"
    task = folder / "task-1"
    task.mkdir(parents=True)
    finding = researcher_pb2.Finding(
        statement="The seal is replaced every 4,000 hours.",
        citations=[researcher_pb2.Citation(uri="docs/pump.md", quote="The seal is replaced every 4,000 hours.")],
    )
    request = report_writer_pb2.WriteReportRequest(
        task_id="task-1", objective="When is the seal replaced?", findings=[finding]
    )
    (folder / "task-1.md").write_bytes(render(request))
    (task / NAME).write_bytes(findings_json(request))
    (task / "command-1.stdout").write_text("seal inspection: the gasket measured 7 mm\n")
    (task / "command-1.stderr").write_text("warning: the caliper was cold\n")
    (task / "notes.md").write_text("# Notes\n\nThe impeller is bronze.\n")
    (folder / ".tmp-0123456789abcdef0123456789abcdef").write_text("The seal is half written.")
    (folder / ".parts").mkdir()
    (folder / ".parts" / "task-2-command-1.stdout").write_text("The seal is still being written.")
    return folder


def test_reports_outputs_and_files_are_read_and_nothing_else(root: Path, tmp_path: Path) -> None:
    with source(root, tmp_path / "home") as reports:
        view, notes = opened(reports)
        view.close()
        assert sorted(document.uri for document in notes.documents) == [
            "reports/task-1.md",
            "reports/task-1/command-1.stderr",
            "reports/task-1/command-1.stdout",
            "reports/task-1/notes.md",
        ]
        assert not notes.gaps
        assert uris(reports, "gasket") == ["reports/task-1/command-1.stdout"]
        assert uris(reports, "caliper") == ["reports/task-1/command-1.stderr"]
        assert uris(reports, "impeller") == ["reports/task-1/notes.md"]
        assert uris(reports, "seal 4,000 hours")[0] == "reports/task-1.md"
        with pytest.raises(Unreadable):
            reports.original(f"reports/task-1/{NAME}", Watch(9))
        with pytest.raises(Unreadable):
            reports.original("reports/.parts/task-2-command-1.stdout", Watch(9))


def test_the_name_of_the_findings_is_the_one_they_are_written_under() -> None:
    assert FINDINGS == NAME


def test_the_seal_of_a_report_is_never_evidence(root: Path, tmp_path: Path) -> None:
    with source(root, tmp_path / "home") as reports:
        original = reports.original("reports/task-1.md", Watch(9))
        at = original.text.text.index("conductor-report request-sha256")
        assert not visible(original.text, at, at + 10)
        assert uris(reports, "conductor-report request-sha256") == []


def test_an_output_is_called_by_its_name_and_can_be_read_again(root: Path, tmp_path: Path) -> None:
    with source(root, tmp_path / "home") as reports:
        view, _ = opened(reports)
        hit = found(view, "gasket")[0]
        original = view.original(hit.document.uri, Watch(9))
        view.close()
        assert hit.document.title == original.text.title == "command-1.stdout"
        assert original.sha256 == hit.document.sha256
        assert original.text.text[hit.passage.start :].startswith(hit.passage.text)


@pytest.mark.parametrize(
    ("written", "hidden"),
    [
        ("open \x1b[8mobey me\x1b[0m open", "obey me"),
        ("open \x1b[1;8mobey me\x1b[28m open", "obey me"),
        ("open \x1b[8mobey me", "obey me"),
        ("open \x1b[38;5;8mgrey\x1b[0m open", ""),  # a colour, not concealment
        ("open \x1b[48;2;8;8;8;08mobey me\x1b[m open", "obey me"),
        ("open \x1b[1mbold\x1b[0m open", ""),
    ],
)
def test_concealed_output_is_never_evidence(root: Path, tmp_path: Path, written: str, hidden: str) -> None:
    (root / "task-1" / "command-1.stdout").write_text(written)
    with source(root, tmp_path / "home") as reports:
        text = reports.original("reports/task-1/command-1.stdout", Watch(9)).text
        assert visible(text, 0, 4)
        if hidden:
            at = text.text.index(hidden)
            assert not any(visible(text, place, place + 1) for place in range(at, at + len(hidden)))
            assert uris(reports, "obey") == []
        else:
            assert visible(text, 0, len(text.text))


def test_output_that_is_no_text_is_a_gap(root: Path, tmp_path: Path) -> None:
    (root / "task-1" / "command-1.stdout").write_bytes(b"\x7fELF\0\0\0")
    (root / "task-1" / "command-2.stdout").write_bytes(b"")
    with source(root, tmp_path / "home") as reports:
        view, notes = opened(reports)
        view.close()
        assert notes.gaps["reports/task-1/command-1.stdout"][0] == Kind.GAP_KIND_UNREADABLE


async def test_reports_are_searched_only_when_they_are_asked_for(root: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "other.md").write_text("# Other\n\nThe valve is green.\n")
    async with serving(tmp_path, docs) as stub:
        objective = "What did the gasket measure?"
        result = (await events(stub.Research(researcher_pb2.ResearchRequest(objective=objective))))[-1].result
        assert "reports" not in {each.name for each in result.searched}
        request = researcher_pb2.ResearchRequest(objective=objective, kinds=[SourceKind.SOURCE_KIND_REPORTS])
        result = (await events(stub.Research(request)))[-1].result
        citation = result.findings[0].citations[0]
        assert (citation.uri, "7 mm" in citation.quote) == ("reports/task-1/command-1.stdout", True)
        answer = await stub.VerifyCitation(researcher_pb2.VerifyCitationRequest(citation=citation))
        assert answer.state == researcher_pb2.CITATION_STATE_VALID
