"""WriteRunReport over a real port: it reads what the stages left, and what is missing, changed or repeated is told."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator

import grpc
import pytest
from conductor.v1 import error_pb2, project_pb2, report_writer_pb2

from services.report_writer import report, run_report
from tests.report_writers import Writer, conflict, missing, refused, running, task
from tests.test_run_report import Left, Request, golden

Stage = project_pb2.Stage
PIECE_BYTES = 1024 * 1024
__all__ = ["task"]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    with running(tmp_path_factory.mktemp("run-writer") / "reports") as started:
        yield started


@dataclasses.dataclass
class Run:
    """A run of which the ReportWriter keeps what the stages left."""

    request: Request
    left: Left

    def result(self, stage: int) -> project_pb2.RunArtifact:
        given = (*self.request.run.artifacts, *self.request.outcome.artifacts)
        return next(file for file in given if file.stage_id == stage and file.name == "result.json" and not file.stale)


def store(writer: Writer, file: project_pb2.RunArtifact, content: bytes) -> None:
    """Stores a file, and says in the run what it is."""
    file.sha256, file.size_bytes = hashlib.sha256(content).hexdigest(), len(content)
    for offset in range(0, len(content), PIECE_BYTES):
        piece = report_writer_pb2.WriteArtifactRequest(
            task_id=file.task_id, name=file.name, offset=offset, data=content[offset : offset + PIECE_BYTES]
        )
        piece.sha256 = file.sha256 if offset + PIECE_BYTES >= len(content) else ""
        writer.stub.WriteArtifact(piece, timeout=20)


@pytest.fixture
def run(writer: Writer, task: str) -> Run:
    """The golden run that explains mpg, under tasks of this test alone."""
    request, left = golden("mpg-review")
    request.task_id, request.provenance.correlation_id = task, "c-1"
    found = Run(request, left)
    for file in (*request.run.artifacts, *request.outcome.artifacts):
        file.task_id = f"{task}-{file.stage_id}"
    for stage, result in left.items():
        store(writer, found.result(stage), json.dumps(result).encode())
    return found


def write(writer: Writer, request: Request) -> report_writer_pb2.WriteReportResponse:
    return writer.stub.WriteRunReport(request, timeout=20)


def test_it_holds_what_the_stages_left(writer: Writer, run: Run, task: str) -> None:
    answer = write(writer, run.request)
    content = (writer.root / f"{task}.md").read_bytes()
    assert content == report.sealed(run.request, run_report.body(run.request, run.left))
    assert (answer.path, answer.size_bytes) == (f"reports/{task}.md", len(content))
    assert answer.sha256 == hashlib.sha256(content).hexdigest()
    assert not answer.already_existed
    assert writer.read(answer.path).content == content
    linked = f"]({task}-{Stage.STAGE_TRAIN}/result.json)"
    assert linked.encode() in content
    assert (writer.root / f"{task}-{Stage.STAGE_TRAIN}" / "result.json").exists()


def test_a_repeat_gives_the_same_answer(writer: Writer, run: Run, task: str) -> None:
    first = write(writer, run.request)
    before = (writer.root / f"{task}.md").stat()
    again = write(writer, run.request)
    assert again.already_existed
    assert (again.path, again.sha256, again.size_bytes) == (first.path, first.sha256, first.size_bytes)
    assert (writer.root / f"{task}.md").stat().st_mtime_ns == before.st_mtime_ns


def test_a_repeat_succeeds_when_what_it_was_made_of_is_gone(writer: Writer, run: Run, task: str) -> None:
    first = write(writer, run.request)
    (writer.root / f"{task}-{Stage.STAGE_TRAIN}" / "result.json").unlink()
    assert write(writer, run.request).sha256 == first.sha256


def test_another_request_for_the_same_task_conflicts(writer: Writer, run: Run, task: str) -> None:
    write(writer, run.request)
    before = (writer.root / f"{task}.md").read_bytes()
    run.request.run.decisions.add(stage_id=Stage.STAGE_TRAIN, approved=True)
    with conflict():
        write(writer, run.request)
    assert (writer.root / f"{task}.md").read_bytes() == before


def test_a_result_that_is_gone_is_told(writer: Writer, run: Run, task: str) -> None:
    (writer.root / f"{task}-{Stage.STAGE_TRAIN}" / "result.json").unlink()
    with missing():
        write(writer, run.request)
    assert not (writer.root / f"{task}.md").exists()


def test_a_result_that_was_changed_is_told(writer: Writer, run: Run, task: str) -> None:
    (writer.root / f"{task}-{Stage.STAGE_TRAIN}" / "result.json").write_bytes(b"{}")
    with conflict():
        write(writer, run.request)
    assert not (writer.root / f"{task}.md").exists()


def test_a_stale_result_is_not_read(writer: Writer, run: Run, task: str) -> None:
    old = run.result(Stage.STAGE_TRAIN)
    old.stale = True
    (writer.root / f"{task}-{Stage.STAGE_TRAIN}" / "result.json").unlink()
    content = writer.read(write(writer, run.request).path).content
    assert b"extra-trees |" not in content


@pytest.mark.parametrize(
    ("content", "readable"),
    [
        (b"\xff", False),
        (b"[" * 200_000, False),
        (b'"x"', True),
        (b'{"result": 1}', True),
        (b'{"summary": "All is well."}' + b" " * 1024 * 1024, False),
    ],
    ids=["no-utf-8", "deep", "a-text", "another-shape", "large"],
)
def test_a_result_of_any_bytes_is_no_crash(writer: Writer, run: Run, task: str, content: bytes, readable: bool) -> None:
    file = run.result(Stage.STAGE_REVIEW_EDIT)
    file.task_id = f"{task}-other"
    store(writer, file, content)
    text = writer.read(write(writer, run.request).path).content.decode()
    assert "## Models tried" in text
    assert "98 rows it had never seen" not in text
    assert "All is well" not in text
    assert ("What REVIEW_EDIT left could not be read" in text) is not readable


@pytest.mark.parametrize("name", ["../out", "", ".", "a/b", "a" * 200])
def test_a_task_that_is_no_name_is_refused(writer: Writer, run: Run, name: str) -> None:
    run.result(Stage.STAGE_TRAIN).task_id = name
    with refused(error_pb2.ERROR_REASON_INVALID_REQUEST, grpc.StatusCode.INVALID_ARGUMENT):
        write(writer, run.request)


def test_without_a_run_it_is_refused(writer: Writer, run: Run) -> None:
    run.request.ClearField("run")
    with refused(error_pb2.ERROR_REASON_INVALID_REQUEST, grpc.StatusCode.INVALID_ARGUMENT):
        write(writer, run.request)
