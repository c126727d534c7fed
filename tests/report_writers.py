"""Report Writers as processes, on this kernel and as on an old one."""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from conductor.v1 import error_pb2, report_writer_pb2, report_writer_pb2_grpc, terminal_pb2

from services.common.status import from_rpc_error
from services.report_writer.files import TEMPORARY

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


def folder(place: Path, outside: Path) -> None:
    place.mkdir()
