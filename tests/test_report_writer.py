"""The ReportWriter over a real port: what it promises, and what must not get out of, into or lost from its folder.

Every test of the boundary runs against two processes: one with the system calls of this kernel, and one in which
openat2 and renameat2 do not exist, as on old kernels and file systems.
"""

import hashlib
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.report_writer import report
from tests.report_writers import Reason, Writer, a_request, missing, names, refused, running, task, temporaries, writer

__all__ = ["task", "writer"]


# What it promises


def test_a_report_is_written_and_read_back(writer: Writer, task: str) -> None:
    answer = writer.write(a_request(task))
    content = (writer.root / f"{task}.md").read_bytes()
    assert content == report.render(a_request(task))
    assert answer.path == f"reports/{task}.md"
    assert answer.sha256 == hashlib.sha256(content).hexdigest()
    assert answer.size_bytes == len(content)
    assert not answer.already_existed
    read = writer.read(answer.path)
    assert (read.path, read.content, read.sha256) == (answer.path, content, answer.sha256)


def test_the_file_is_a_plain_readable_one_and_nothing_else_is_left(writer: Writer, task: str) -> None:
    writer.write(a_request(task))
    found = (writer.root / f"{task}.md").lstat()
    assert oct(found.st_mode) == "0o100644"
    assert found.st_nlink == 1
    assert temporaries(writer.root) == []


def test_a_repeat_gives_the_same_answer_and_touches_nothing(writer: Writer, task: str) -> None:
    first = writer.write(a_request(task))
    before = (writer.root / f"{task}.md").stat()
    again = writer.write(a_request(task))
    assert again.already_existed
    assert (again.path, again.sha256, again.size_bytes) == (first.path, first.sha256, first.size_bytes)
    after = (writer.root / f"{task}.md").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_request_for_the_same_task_replaces_nothing(writer: Writer, task: str) -> None:
    writer.write(a_request(task))
    before = (writer.root / f"{task}.md").read_bytes()
    with refused(Reason.ERROR_REASON_REPORT_CONFLICT, grpc.StatusCode.ALREADY_EXISTS, path=f"reports/{task}.md"):
        writer.write(a_request(task, "Something else?"))
    assert (writer.root / f"{task}.md").read_bytes() == before


def test_concurrent_writers_of_one_task_agree(writer: Writer, task: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(writer.write, [a_request(task, output=50_000)] * 48))
    assert sum(not answer.already_existed for answer in answers) == 1
    assert len({answer.sha256 for answer in answers}) == 1
    assert temporaries(writer.root) == []


def test_of_concurrent_different_requests_one_wins(writer: Writer, task: str) -> None:
    def attempt(number: int) -> str:
        try:
            return writer.write(a_request(task, f"Question {number}?")).sha256
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ALREADY_EXISTS
            return ""

    with ThreadPoolExecutor(16) as pool:
        won = [digest for digest in pool.map(attempt, range(32)) if digest]
    assert won == [hashlib.sha256((writer.root / f"{task}.md").read_bytes()).hexdigest()]


@pytest.mark.parametrize(
    "task_id", ["", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "a\x00b", "-a", "a.b", "a" * 129, "é"]
)
def test_a_task_id_that_is_no_file_name_is_refused(writer: Writer, task_id: str) -> None:
    before = names(writer.root), names(writer.root.parent)
    with refused(Reason.ERROR_REASON_INVALID_REQUEST, grpc.StatusCode.INVALID_ARGUMENT, field="task_id"):
        writer.write(a_request(task_id))
    assert (names(writer.root), names(writer.root.parent)) == before


@pytest.mark.parametrize(
    "path", ["x.md", "reports/../x.md", "/reports/x.md", "reports/a/x.md", "reports/x.md\n", "x\x00"]
)
def test_a_path_that_is_no_report_path_is_refused(writer: Writer, path: str) -> None:
    (writer.root.parent / "x.md").write_text("outside")
    with refused(Reason.ERROR_REASON_REPORT_NAME_REFUSED, grpc.StatusCode.INVALID_ARGUMENT, path=path):
        writer.read(path)


def test_a_missing_report_is_not_found(writer: Writer, task: str) -> None:
    with missing():
        writer.read(f"reports/{task}.md")


def test_a_report_above_the_limit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with running(tmp_path / "reports", env={"REPORT_WRITER_MAX_BYTES": "5000"}) as writer:
        size = str(len(report.render(a_request("big", output=9000))))
        reason, code = Reason.ERROR_REASON_REPORT_TOO_LARGE, grpc.StatusCode.FAILED_PRECONDITION
        with refused(reason, code, size_bytes=size, limit_bytes="5000"):
            writer.write(a_request("big", output=9000))
        assert names(writer.root) == []
        assert writer.write(a_request("small")).path == "reports/small.md"


def test_health_says_serving_and_a_stop_is_orderly(tmp_path: Path) -> None:
    with running(tmp_path / "reports") as writer:
        stub = health_pb2_grpc.HealthStub(writer.channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service="conductor.v1.ReportWriter"), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        writer.process.send_signal(signal.SIGTERM)
        assert writer.process.wait(10) == 0
