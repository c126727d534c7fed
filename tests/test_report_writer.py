"""The ReportWriter over a real port: what it promises, and what must not get out of, into or lost from its folder.

Every test of the boundary runs against two processes: one with the system calls of this kernel, and one in which
openat2 and renameat2 do not exist, as on old kernels and file systems.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from conductor.v1 import error_pb2, report_writer_pb2, report_writer_pb2_grpc, terminal_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.status import from_rpc_error
from services.report_writer import report
from services.report_writer.files import TEMPORARY, Folder

Reason = error_pb2.ErrorReason
Request = report_writer_pb2.WriteReportRequest

# A seccomp filter (struct sock_filter of <linux/filter.h>): openat2 and renameat2 answer ENOSYS, all else goes on.
OLD_KERNEL = """
import ctypes, os, runpy, struct, sys
numbers = {"x86_64": 316, "aarch64": 276}
rows = [(0x20, 0, 0, 0), (0x15, 2, 0, 437), (0x15, 1, 0, numbers[os.uname().machine]), (0x06, 0, 0, 0x7FFF0000),
        (0x06, 0, 0, 0x00050000 | 38)]
code = b"".join(struct.pack("HBBI", *row) for row in rows)
buffer = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rows), ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
assert libc.syscall(437, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 38
sys.argv = ["report_writer"]
runpy.run_module("services.report_writer", run_name="__main__")
"""
LAUNCH = {"this kernel": ("-m", "services.report_writer"), "old kernel": ("-c", OLD_KERNEL)}


@dataclass
class Writer:
    """A running service and its folder."""

    process: subprocess.Popen[str]
    root: Path
    channel: grpc.Channel
    stub: report_writer_pb2_grpc.ReportWriterStub
    target: str

    def write(self, request: Request) -> report_writer_pb2.WriteReportResponse:
        return self.stub.WriteReport(request, timeout=20)

    def read(self, path: str) -> report_writer_pb2.GetReportResponse:
        return self.stub.GetReport(report_writer_pb2.GetReportRequest(path=path), timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def launch(root: Path, kernel: str = "this kernel", **options: object) -> subprocess.Popen[str]:
    environ = {**os.environ, "REPORT_WRITER_LISTEN": "127.0.0.1:0", "REPORT_WRITER_ROOT": str(root)}
    environ.update(options.pop("env", {}))  # type: ignore[call-overload]
    command = [sys.executable, *LAUNCH[kernel]]
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


@contextlib.contextmanager
def running(root: Path, kernel: str = "this kernel", **options: object) -> Iterator[Writer]:
    process = launch(root, kernel, **options)
    seen = []
    for line in process.stderr or ():
        seen.append(line)
        if found := re.search(r"listening on .* port (\d+)", line):
            break
    else:
        pytest.fail("the service did not start: " + "".join(seen))
    # Its log must be read, or a full pipe would stop it.
    threading.Thread(target=(process.stderr or sys.stdin).read, daemon=True).start()
    target = f"127.0.0.1:{found[1]}"
    channel = grpc.insecure_channel(target)
    try:
        yield Writer(process, root, channel, report_writer_pb2_grpc.ReportWriterStub(channel), target)
    finally:
        channel.close()
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module", params=LAUNCH)
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    with running(tmp_path_factory.mktemp("writer") / "reports", request.param) as started:
        yield started


@pytest.fixture
def task(request: pytest.FixtureRequest) -> str:
    return "t-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]


def a_request(task: str, objective: str = "What is durable?", output: int = 0) -> Request:
    made = Request(task_id=task, objective=objective)
    made.provenance.correlation_id = "c-1"
    if output:
        record = made.commands.add(command=terminal_pb2.Command(argv=["yes"]), stdout=b"y\n" * (output // 2))
        record.result.end = terminal_pb2.COMMAND_END_EXITED
    return made


@contextlib.contextmanager
def refused(reason: error_pb2.ErrorReason.ValueType, code: grpc.StatusCode, **metadata: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as raised:
        yield
    error = from_rpc_error(raised.value)
    assert error is not None, raised.value
    assert Reason.Name(error.reason) == Reason.Name(reason)
    assert raised.value.code() == code
    assert {key: error.metadata[key] for key in metadata} == metadata


def conflict() -> contextlib.AbstractContextManager[None]:
    return refused(Reason.ERROR_REASON_REPORT_CONFLICT, grpc.StatusCode.ALREADY_EXISTS)


def missing() -> contextlib.AbstractContextManager[None]:
    return refused(Reason.ERROR_REASON_REPORT_NOT_FOUND, grpc.StatusCode.NOT_FOUND)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def temporaries(root: Path) -> list[str]:
    return [name for name in names(root) if TEMPORARY.fullmatch(name)]


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


# What stands in the place of a report


def symlink_out(place: Path, outside: Path) -> None:
    place.symlink_to(outside)


def symlink_to_nothing(place: Path, outside: Path) -> None:
    place.symlink_to(outside.parent / "made-by-following")


def symlink_to_a_report(place: Path, outside: Path) -> None:
    other = place.with_name(f"other-{place.name}")
    other.write_bytes(report.render(a_request(place.stem)))
    place.symlink_to(other.name)


def hard_link(place: Path, outside: Path) -> None:
    os.link(outside, place)


def hard_link_of_a_right_report(place: Path, outside: Path) -> None:
    outside.write_bytes(report.render(a_request(place.stem)))
    os.link(outside, place)


def fifo(place: Path, outside: Path) -> None:
    os.mkfifo(place)


def unix_socket(place: Path, outside: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    # The address is limited to 108 bytes, so it is given relative to its folder.
    descriptor = os.open(place.parent, os.O_RDONLY)
    listener.bind(f"/proc/self/fd/{descriptor}/{place.name}")
    os.close(descriptor)
    listener.close()


def folder(place: Path, outside: Path) -> None:
    place.mkdir()


def huge(place: Path, outside: Path) -> None:
    with place.open("wb") as file:
        file.truncate(3 << 30)


STANDINGS = [symlink_out, symlink_to_nothing, symlink_to_a_report, hard_link, hard_link_of_a_right_report]
STANDINGS += [fifo, unix_socket, folder, huge]


@pytest.mark.parametrize("put", STANDINGS, ids=lambda put: put.__name__)
def test_what_stands_there_is_neither_followed_nor_replaced_nor_read(
    writer: Writer, task: str, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    outside = tmp_path / "secret"
    outside.write_text("secret")
    place = writer.root / f"{task}.md"
    put(place, outside)
    before, secret = place.lstat(), outside.read_bytes()
    with conflict():
        writer.write(a_request(task))
    with missing():
        writer.read(f"reports/{task}.md")
    assert place.lstat().st_ino == before.st_ino
    assert outside.read_bytes() == secret
    assert names(tmp_path) == ["secret"]
    assert temporaries(writer.root) == []


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def edited(content: bytes) -> bytes:
    return content.replace(b"durable", b"durably")


def emptied(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("change", [torn, edited, emptied])
def test_a_report_that_is_not_whole_is_a_conflict(writer: Writer, task: str, change: Callable[[bytes], bytes]) -> None:
    place = writer.root / f"{task}.md"
    changed = change(report.render(a_request(task)))
    place.write_bytes(changed)
    with conflict():
        writer.write(a_request(task))
    assert place.read_bytes() == changed


def test_a_report_just_being_published_is_waited_for(writer: Writer, task: str) -> None:
    """Without renameat2 a report has two names for a moment, under a lock on the folder."""
    content = report.render(a_request(task))
    temporary = writer.root / f".tmp-{'1' * 32}"
    temporary.write_bytes(content)
    turn = os.open(writer.root, os.O_RDONLY)
    fcntl.flock(turn, fcntl.LOCK_EX)
    os.link(temporary, writer.root / f"{task}.md")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(writer.write, a_request(task))
        read = pool.submit(writer.read, f"reports/{task}.md")
        wait([answer, read], timeout=0.5)  # too early an answer would be a refusal
        temporary.unlink()
        os.close(turn)
        assert answer.result(20).already_existed
        assert read.result(20).content == content


# The folder itself


def test_a_folder_swapped_after_start_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.md").write_text("secret")
    with running(tmp_path / "reports") as writer:
        (tmp_path / "reports").rename(tmp_path / "moved")
        (tmp_path / "reports").symlink_to(outside)
        writer.write(a_request("t"))
        with missing():
            writer.read("reports/x.md")
    assert names(outside) == ["x.md"]
    assert names(tmp_path / "moved") == ["t.md"]


def test_a_folder_removed_after_start_is_a_typed_failure(tmp_path: Path) -> None:
    with running(tmp_path / "reports") as writer:
        (tmp_path / "reports").rmdir()
        with refused(Reason.ERROR_REASON_REPORT_WRITE_FAILED, grpc.StatusCode.UNAVAILABLE, errno="ENOENT"):
            writer.write(a_request("t"))
        with missing():
            writer.read("reports/t.md")
    assert names(tmp_path) == []


def assert_does_not_start(root: Path, says: str) -> None:
    process = launch(root)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors.startswith(f"report_writer: REPORT_WRITER_ROOT='{root}' cannot be used: {says}")
    assert errors.count("\n") == 1


def test_a_root_that_is_a_link_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "reports").symlink_to(tmp_path / "real")
    assert_does_not_start(tmp_path / "reports", "Not a directory")


def test_a_root_that_is_a_file_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("")
    assert_does_not_start(tmp_path / "reports", "File exists")


@contextlib.contextmanager
def tmpfs(place: Path, options: str) -> Iterator[None]:
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a file system of its own is needed: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_root_is_refused_at_start(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "reports", "ro,size=64k"):
        assert_does_not_start(tmp_path / "reports", "Read-only file system")


def test_a_full_disk_is_a_typed_failure_that_leaves_nothing_and_passes(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "reports", "size=256k"), running(tmp_path / "reports") as writer:
        writer.write(a_request("before", output=20_000))
        ballast = writer.root / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        with refused(Reason.ERROR_REASON_REPORT_WRITE_FAILED, grpc.StatusCode.UNAVAILABLE, errno="ENOSPC"):
            writer.write(a_request("t", output=20_000))
        assert names(writer.root) == ["ballast", "before.md"]
        assert writer.write(a_request("before", output=20_000)).already_existed
        ballast.unlink()
        assert not writer.write(a_request("t", output=20_000)).already_existed


def test_a_file_size_limit_is_a_typed_failure_that_leaves_nothing(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    with running(tmp_path / "reports", preexec_fn=limit) as writer:
        with refused(Reason.ERROR_REASON_REPORT_WRITE_FAILED, grpc.StatusCode.UNAVAILABLE, errno="EFBIG"):
            writer.write(a_request("t", output=20_000))
        assert names(writer.root) == []
        assert writer.write(a_request("t")).size_bytes < 10_000


# Killed half-way


@pytest.mark.parametrize("kernel", LAUNCH)
def test_a_kill_leaves_whole_reports_or_none(tmp_path: Path, kernel: str) -> None:
    root = tmp_path / "reports"
    requests = [a_request(f"t-{number}", output=60_000) for number in range(400)]
    told: dict[str, str] = {}
    enough = threading.Event()

    with running(root, kernel) as writer, ThreadPoolExecutor(16) as pool:

        def attempt(request: Request) -> None:
            with contextlib.suppress(grpc.RpcError):  # killed under it
                told[request.task_id] = writer.write(request).sha256
                if len(told) >= 40:
                    enough.set()

        attempts = [pool.submit(attempt, request) for request in requests]
        assert enough.wait(20)
        writer.kill()
        for done in attempts:
            done.result(20)

    assert 40 <= len(told) < len(requests)
    assert set(told) <= {path.stem for path in root.glob("*.md")}
    for path in root.glob("*.md"):
        assert report.sealed_request(path.read_bytes()) is not None, path
    assert {task: hashlib.sha256((root / f"{task}.md").read_bytes()).hexdigest() for task in told} == told

    (root / f".tmp-{'0' * 32}").write_bytes(b"half a rep")
    with running(root, kernel) as writer:
        assert temporaries(root) == []
        answers = {request.task_id: writer.write(request) for request in requests[:60]}
    assert all(answers[task].already_existed for task in told if task in answers)


def test_a_start_leaves_alone_what_another_replica_is_writing(tmp_path: Path) -> None:
    root = tmp_path / "reports"
    with running(root) as writer, ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(writer.write, a_request(f"t-{number}", output=60_000)) for number in range(200)]
        while not all(write.done() for write in writes):
            Folder.open(root)  # what a start does
        assert all(write.result().path for write in writes)
    assert len(list(root.glob("*.md"))) == 200


@pytest.mark.parametrize("kernel", LAUNCH)
def test_two_replicas_agree_on_one_report(tmp_path: Path, kernel: str) -> None:
    root = tmp_path / "reports"
    with running(root, kernel) as first, running(root, kernel) as second, ThreadPoolExecutor(8) as pool:
        for number in range(40):
            request = a_request(f"t-{number}")
            answers = list(pool.map(lambda replica, asked=request: replica.write(asked), [first, second] * 4))
            assert sum(not answer.already_existed for answer in answers) == 1
