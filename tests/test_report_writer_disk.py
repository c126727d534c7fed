"""The Report Writer and what stands on its disk: things in place of reports, folders that change, kills."""

import contextlib
import fcntl
import hashlib
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import grpc
import pytest

from services.report_writer import report
from services.report_writer.files import Folder
from tests.report_writers import (
    LAUNCH,
    Reason,
    Request,
    Writer,
    a_request,
    conflict,
    folder,
    launch,
    missing,
    names,
    refused,
    running,
    task,
    temporaries,
    writer,
)

__all__ = ["task", "writer"]


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
