"""Files of tasks at the ReportWriter, over a real port: whole or not there, never replaced, never followed elsewhere.

As in test_report_writer, everything runs with this kernel's calls and without openat2 and renameat2.
"""

import hashlib
import os
import resource
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import grpc
import pytest
from conductor.v1 import error_pb2, report_writer_pb2

from services.report_writer.artifacts import MAX_BYTES, PART_S
from services.report_writer.files import PARTS
from tests.report_writers import LAUNCH, Writer, names, refused, running, temporaries

Reason = error_pb2.ErrorReason
KIB = 1024
NAME = "command-1.stdout"
CONFLICT = (Reason.ERROR_REASON_REPORT_CONFLICT, grpc.StatusCode.ALREADY_EXISTS)
NOT_FOUND = (Reason.ERROR_REASON_REPORT_NOT_FOUND, grpc.StatusCode.NOT_FOUND)
INVALID = (Reason.ERROR_REASON_INVALID_REQUEST, grpc.StatusCode.INVALID_ARGUMENT)
TEXT, BYTES = "text/plain; charset=utf-8", "application/octet-stream"


@pytest.fixture(scope="module", params=LAUNCH)
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    with running(tmp_path_factory.mktemp("writer") / "reports", request.param) as started:
        yield started


@pytest.fixture
def task(request: pytest.FixtureRequest) -> str:
    return "t-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def send(writer: Writer, task: str, name: str = NAME, **fields: object) -> report_writer_pb2.WriteArtifactResponse:
    request = report_writer_pb2.WriteArtifactRequest(task_id=task, name=name, **fields)  # type: ignore[arg-type]
    return writer.stub.WriteArtifact(request, timeout=20)


def store(
    writer: Writer, task: str, content: bytes, piece: int = 64 * KIB, name: str = NAME
) -> report_writer_pb2.WriteArtifactResponse:
    """Sends a file in pieces of a size; the last may be empty."""
    last = len(content) // piece * piece
    for at in range(0, last, piece):
        assert not send(writer, task, name, offset=at, data=content[at : at + piece]).HasField("artifact")
    return send(writer, task, name, offset=last, data=content[last:], sha256=digest(content))


def fetch(writer: Writer, task: str, sha256: str, name: str = NAME) -> bytes:
    request = report_writer_pb2.GetArtifactRequest(task_id=task, name=name, sha256=sha256)
    chunks = [answer.data for answer in writer.stub.GetArtifact(request, timeout=20)]
    assert all(0 < len(chunk) <= 64 * KIB for chunk in chunks)
    return b"".join(chunks)


def parts(writer: Writer) -> list[str]:
    folder = writer.root / PARTS
    return names(folder) if folder.exists() else []


@pytest.mark.parametrize("size", [1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 300_001])
def test_a_file_is_stored_and_read_back(writer: Writer, task: str, size: int) -> None:
    content = os.urandom(size)
    answer = store(writer, task, content)
    place = writer.root / task / NAME
    assert place.read_bytes() == content == fetch(writer, task, digest(content))
    found = place.lstat()
    assert (oct(found.st_mode), found.st_nlink) == ("0o100644", 1)
    file = answer.artifact
    assert (file.name, file.size_bytes, file.sha256) == (NAME, size, digest(content))
    assert not answer.already_existed and not file.HasField("error")
    assert (temporaries(writer.root), parts(writer), names(writer.root / task)) == ([], [], [NAME])


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"plain\n", TEXT),
        ("é€🎉".encode() * 40_000, TEXT),  # pieces cut its characters
        (b"\x1b[31mred", TEXT),
        (b"a\0b", BYTES),
        (b"\xff\xfe", BYTES),
        ("cut é".encode()[:-1], BYTES),
        (b"x" * 70_000 + b"\xff", BYTES),
    ],
)
def test_its_media_type_is_what_it_is(writer: Writer, task: str, content: bytes, media_type: str) -> None:
    assert store(writer, task, content, piece=64 * KIB).artifact.media_type == media_type


def test_nobody_sees_it_before_it_is_whole(writer: Writer, task: str) -> None:
    send(writer, task, data=b"half")
    assert not (writer.root / task).exists()
    with refused(*NOT_FOUND):
        fetch(writer, task, digest(b"half"))
    send(writer, task, discard=True)


@pytest.mark.parametrize("piece", [100_000, 30_000])
def test_a_repeat_of_any_piece_and_of_the_whole_changes_nothing(writer: Writer, task: str, piece: int) -> None:
    content = os.urandom(70_000)
    for at in range(0, 60_000, 30_000):
        for _ in range(3):
            send(writer, task, offset=at, data=content[at : at + 30_000])
    send(writer, task, discard=True)
    first = store(writer, task, content, piece)
    before = (writer.root / task / NAME).stat()
    last = len(content) // piece * piece
    again = send(writer, task, offset=last, data=content[last:], sha256=digest(content))
    assert again.already_existed and again.artifact == first.artifact
    after = (writer.root / task / NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    send(writer, task, discard=True)  # what is finished stays
    send(writer, task, discard=True, sha256="0" * 64)  # also when another is meant
    assert (writer.root / task / NAME).read_bytes() == content


def test_the_last_piece_sent_by_many_at_once_is_stored_once(writer: Writer, task: str) -> None:
    content = os.urandom(200_000)
    send(writer, task, data=content[:150_000])
    last = {"offset": 150_000, "data": content[150_000:], "sha256": digest(content)}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: send(writer, task, **last), range(32)))
    assert {answer.artifact.sha256 for answer in answers} == {digest(content)}
    assert sum(not answer.already_existed for answer in answers) == 1
    assert fetch(writer, task, digest(content)) == content


def test_another_content_replaces_nothing(writer: Writer, task: str) -> None:
    store(writer, task, b"first")
    for content, piece in ((b"second", 100), (b"second, in pieces", 5)):
        with refused(*CONFLICT, path=f"reports/{task}/{NAME}"):
            store(writer, task, content, piece)
    assert (writer.root / task / NAME).read_bytes() == b"first"
    send(writer, task, discard=True)


@pytest.mark.parametrize("before", [b"", b"some"])
def test_pieces_that_do_not_give_the_sum_are_not_published(writer: Writer, task: str, before: bytes) -> None:
    if before:
        send(writer, task, data=before)
    with refused(*CONFLICT):
        send(writer, task, offset=len(before), data=b"thing", sha256=digest(b"something else"))
    assert not (writer.root / task).exists()
    send(writer, task, discard=True)


def test_a_piece_that_leaves_a_gap_is_refused(writer: Writer, task: str) -> None:
    for fields in ({"offset": 1}, {"offset": 1, "sha256": digest(b"x")}):
        with refused(*INVALID, field="offset"):
            send(writer, task, data=b"x", **fields)
    send(writer, task, data=b"four")
    with refused(*INVALID, field="offset"):
        send(writer, task, offset=5, data=b"x")
    send(writer, task, discard=True)
    assert parts(writer) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("task_id", value) for value in ("", "..", "../x", "a/b", ".parts", "a.md", "a" * 129, "a\0")),
        *(("name", value) for value in ("", ".", "..", "../x", "a/b", ".hidden", "-a", "UPPER", "a" * 65, "a\0", "é")),
        ("sha256", "0" * 63),
        ("sha256", "G" * 64),
        ("data", b"x" * (KIB * KIB + 1)),
    ],
)
def test_what_breaks_a_rule_is_refused_and_makes_nothing(
    writer: Writer, task: str, field: str, value: str | bytes
) -> None:
    before = names(writer.root), names(writer.root.parent), parts(writer)
    with refused(*INVALID, field=field):
        writer.stub.WriteArtifact(
            report_writer_pb2.WriteArtifactRequest(**{"task_id": task, "name": NAME, "data": b"x", field: value}),
            timeout=20,
        )
    assert (names(writer.root), names(writer.root.parent), parts(writer)) == before


def test_a_file_above_the_limit_is_refused(writer: Writer, task: str) -> None:
    with refused(Reason.ERROR_REASON_REPORT_TOO_LARGE, grpc.StatusCode.FAILED_PRECONDITION, limit_bytes=str(MAX_BYTES)):
        send(writer, task, offset=MAX_BYTES, data=b"x")


# ---- what stands in the way ----


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "folder"])
def test_what_stands_in_the_place_of_a_file_is_left_alone(writer: Writer, task: str, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(b"hello")
    place = writer.root / task / NAME
    place.parent.mkdir()
    if kind == "symlink":
        place.symlink_to(outside)
    elif kind == "hard link":
        place.hardlink_to(outside)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    for piece in (100, 2):
        with refused(*CONFLICT):
            store(writer, task, b"hello", piece)
    with refused(*NOT_FOUND):
        fetch(writer, task, digest(b"hello"))
    assert outside.read_bytes() == b"hello" and names(place.parent) == [NAME]
    send(writer, task, discard=True)


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_what_stands_in_the_place_of_a_tasks_folder_is_not_entered(
    writer: Writer, task: str, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / NAME).write_bytes(b"hello")
    place = writer.root / task
    if kind == "symlink":
        place.symlink_to(outside)
    else:
        place.write_bytes(b"hello")
    for piece in (100, 2):
        with refused(*CONFLICT):
            store(writer, task, b"hello", piece, name="command-2.stdout")
    with refused(*NOT_FOUND):
        fetch(writer, task, digest(b"hello"))
    assert names(outside) == [NAME]
    send(writer, task, name="command-2.stdout", discard=True)


def test_a_changed_file_is_not_given_out(writer: Writer, task: str) -> None:
    content = b"as it was\n" * 20_000
    store(writer, task, content)
    (writer.root / task / NAME).write_bytes(content.replace(b"was", b"is "))
    with refused(*CONFLICT):
        fetch(writer, task, digest(content))


# ---- crashes, replicas, full disks ----


@pytest.mark.parametrize("kernel", LAUNCH)
def test_a_writer_killed_between_the_pieces_goes_on_where_it_was(tmp_path: Path, kernel: str) -> None:
    root, content = tmp_path / "reports", os.urandom(300_000)
    with running(root, kernel) as writer:
        send(writer, "t", data=content[:200_000])
        writer.kill()
    with running(root, kernel) as writer, running(root, kernel) as other:
        send(other, "t", offset=200_000, data=content[200_000:250_000])
        send(writer, "t", offset=250_000, data=content[250_000:], sha256=digest(content))
        assert fetch(other, "t", digest(content)) == content
        assert parts(writer) == []


@pytest.mark.parametrize("kernel", LAUNCH)
def test_kills_while_files_are_written_leave_whole_ones_or_none(tmp_path: Path, kernel: str) -> None:
    root = tmp_path / "reports"
    contents = {f"t-{number}": os.urandom(120_000) for number in range(300)}
    told: list[str] = []

    def attempt(writer: Writer, task: str) -> None:
        try:
            store(writer, task, contents[task], piece=50_000)
        except grpc.RpcError:
            return
        told.append(task)

    with running(root, kernel) as writer, ThreadPoolExecutor(8) as pool:
        attempts = [pool.submit(attempt, writer, task) for task in contents]
        while len(told) < 20 and not all(done.done() for done in attempts):
            wait(attempts, timeout=0.01)
        writer.kill()
        for done in attempts:
            done.result(20)
    assert 20 <= len(told) < len(contents)
    whole = {path.parent.name: path.read_bytes() for path in root.glob(f"*/{NAME}")}
    assert set(told) <= set(whole)
    assert all(content == contents[task] for task, content in whole.items())


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_takes_no_more_is_a_typed_failure_and_others_go_on(tmp_path: Path) -> None:
    full = (Reason.ERROR_REASON_REPORT_WRITE_FAILED, grpc.StatusCode.UNAVAILABLE)
    with running(tmp_path / "reports", preexec_fn=limit_files) as writer:
        for piece in (150_000, 60_000):
            with refused(*full, errno="EFBIG"):
                store(writer, "large", b"x" * 140_000, piece)
        assert store(writer, "small", b"fits").artifact.size_bytes == 4
        assert temporaries(writer.root) == [] and not (writer.root / "large" / NAME).exists()


def test_what_is_named_by_its_sum_is_removed_whole_or_not(writer: Writer, task: str) -> None:
    content = os.urandom(100_000)
    store(writer, task, content)
    store(writer, task, b"other", name="other")
    send(writer, task, data=b"half of another")
    for _ in range(2):
        send(writer, task, discard=True, sha256=digest(content))
        assert names(writer.root / task) == ["other"] and parts(writer) == []
    send(writer, task, "other", discard=True, sha256=digest(b"other"))
    assert not (writer.root / task).exists()
    store(writer, task, content)  # and can be stored again


def test_what_was_never_finished_is_removed_after_a_day(tmp_path: Path) -> None:
    root = tmp_path / "reports"
    with running(root) as writer:
        for task in ("dead", "slow"):
            send(writer, task, data=b"half")
        dead, slow = sorted(parts(writer), key=lambda name: name != hashlib.sha256(f"dead/{NAME}".encode()).hexdigest())
    for name, age in ((dead, PART_S + 60), (slow, PART_S - 3600)):
        times = ((root / PARTS / name).stat().st_mtime - age,) * 2
        os.utime(root / PARTS / name, times)
    with running(root) as writer:
        send(writer, "next", data=b"x")
        assert dead not in parts(writer) and slow in parts(writer)


def test_a_large_file_is_taken_and_given_in_little_memory(tmp_path: Path) -> None:
    with running(tmp_path / "reports") as writer:
        block = os.urandom(KIB * KIB)
        sha256 = hashlib.sha256()
        for number in range(192):
            send(writer, "t", offset=number * len(block), data=block)
            sha256.update(block)
        send(writer, "t", offset=192 * len(block), sha256=sha256.hexdigest())
        request = report_writer_pb2.GetArtifactRequest(task_id="t", name=NAME, sha256=sha256.hexdigest())
        assert sum(len(answer.data) for answer in writer.stub.GetArtifact(request, timeout=60)) == 192 * len(block)
        status = Path(f"/proc/{writer.process.pid}/status").read_text()
        peak_kib = int(status.partition("VmHWM:")[2].split()[0])
        assert peak_kib < 150 * KIB, "the file has 192 MiB"


def test_reports_still_stand_beside_the_files(writer: Writer, task: str) -> None:
    store(writer, task, b"hello")
    request = report_writer_pb2.WriteReportRequest(task_id=task, objective="Both?")
    request.provenance.correlation_id = "c-1"
    assert writer.write(request).path == f"reports/{task}.md"
    listed = subprocess.run(["ls", "-A", writer.root], capture_output=True, text=True, check=True).stdout.split()
    assert {task, f"{task}.md"} <= set(listed)
