"""The whole output of a command as files of its task, from a scripted Terminal over Conductor to a real ReportWriter.

Whatever happens to the ReportWriter, the command's outcome stays what it is, and the task says what is missing and why.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, report_writer_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2

from services.common.errors import Reason, Refusal, typed
from services.conductor import upload
from services.conductor.upload import BUFFER_BYTES, PIECE_BYTES, Upload
from services.report_writer.files import PARTS
from tests.conftest import Running, refused, start_conductor, until
from tests.fakes import Workers, hangs
from tests.report_writers import Writer, names, running
from tests.test_api import reason_of
from tests.test_artifacts import parts

MIB = 1024 * 1024
TERMINAL, WRITER = task_pb2.CAPABILITY_TERMINAL, task_pb2.CAPABILITY_REPORT_WRITER
OUT, ERR = terminal_pb2.OUTPUT_STREAM_STDOUT, terminal_pb2.OUTPUT_STREAM_STDERR
TEN = duration_pb2.Duration(seconds=10)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def chunks(stream: int, data: bytes) -> list[terminal_pb2.RunResponse]:
    return [
        terminal_pb2.RunResponse(chunk=terminal_pb2.OutputChunk(stream=stream, data=data[at : at + 65_536]))
        for at in range(0, len(data), 65_536)
    ]


def ends(**fields: Any) -> terminal_pb2.RunResponse:
    result = terminal_pb2.CommandResult(**{"end": terminal_pb2.COMMAND_END_EXITED, **fields})
    return terminal_pb2.RunResponse(result=result)


def writes(*messages: Any) -> Callable[[Any], Awaitable[Sequence[Any]]]:
    async def play(_: Any) -> Sequence[Any]:
        return messages

    return play


def commands(count: int = 1, **fields: Any) -> task_pb2.Hints:
    asked = [terminal_pb2.Command(argv=["make", str(number)], **fields) for number in range(count)]
    return task_pb2.Hints(capabilities=[TERMINAL], commands=asked)


async def artifact(conductor: Running, task_id: str, name: str) -> tuple[bytes, set[str]]:
    request = conductor_pb2.GetTaskArtifactRequest(task_id=task_id, name=name)
    bodies = [body async for body in conductor.stub.GetArtifact(request)]
    return b"".join(body.data for body in bodies), {body.content_type for body in bodies}


@contextlib.asynccontextmanager
async def conducting(folder: Path, workers: Workers, target: str) -> AsyncIterator[Running]:
    targets = {**workers.targets(), WRITER: target}
    started = await start_conductor(folder / "conductor.db", SimpleNamespace(targets=lambda: targets))
    try:
        yield started
    finally:
        await started.kill()


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    with running(tmp_path_factory.mktemp("writer") / "reports") as started:
        yield started


@pytest.fixture
async def kept(tmp_path: Path, workers: Workers, writer: Writer) -> AsyncIterator[tuple[Running, Writer]]:
    async with conducting(tmp_path, workers, writer.target) as conductor:
        yield conductor, writer


# ---- what is kept ----


async def test_all_that_a_command_writes_is_kept_and_can_be_read(
    kept: tuple[Running, Writer], workers: Workers
) -> None:
    conductor, writer = kept
    out, err = os.urandom(5 * MIB + 17), "ö\n".encode() * 100_000
    mixed = [piece for pair in zip(chunks(OUT, out), chunks(ERR, err), strict=False) for piece in pair]
    rest = chunks(OUT, out)[len(mixed) // 2 :] + chunks(ERR, err)[len(mixed) // 2 :]
    workers.run = writes(*mixed, *rest, ends(exit_code=0))
    answer = await conductor.execute(wait=TEN, hints=commands())
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED, answer.error
    task = await conductor.ended(answer.task_id)
    assert [(file.name, file.size_bytes, file.sha256, file.media_type) for file in task.artifacts] == [
        ("command-1.stdout", len(out), digest(out), "application/octet-stream"),
        ("command-1.stderr", len(err), digest(err), "text/plain; charset=utf-8"),
    ]
    assert await artifact(conductor, answer.task_id, "command-1.stdout") == (out, {"application/octet-stream"})
    assert await artifact(conductor, answer.task_id, "command-1.stderr") == (err, {"text/plain; charset=utf-8"})
    report = (writer.root / f"{answer.task_id}.md").read_text()
    assert f"Standard output (whole in the artefact `command-1.stdout`, {len(out):,} bytes):" in report
    assert parts(writer) == []
    (record,) = [
        e.worker_result.command for e in await conductor.events(answer.task_id) if e.worker_result.HasField("command")
    ]
    assert len(record.stdout) == 256 * 1024 and list(record.artifacts) == list(task.artifacts)


async def test_a_stream_that_was_not_written_to_has_no_file_and_every_command_its_own(
    kept: tuple[Running, Writer], workers: Workers
) -> None:
    conductor, writer = kept

    async def run(request: Any) -> Sequence[Any]:
        number = int(request.command.argv[1])
        return [*chunks(ERR if number % 2 else OUT, b"%d\n" % number), *chunks(OUT, b""), ends(exit_code=0)]

    workers.run = run
    answer = await conductor.execute(wait=TEN, hints=commands(3))
    found = names(writer.root / answer.task_id)
    assert found == ["command-1.stdout", "command-2.stderr", "command-3.stdout"]
    assert [file.name for file in (await conductor.ended(answer.task_id)).artifacts] == found
    assert (await artifact(conductor, answer.task_id, "command-2.stderr"))[0] == b"1\n"


@pytest.mark.parametrize("end", [{"exit_code": 3}, {"end": terminal_pb2.COMMAND_END_WALL_TIME, "signal": 9}])
async def test_what_a_command_that_failed_wrote_is_kept_though_there_is_no_report(
    kept: tuple[Running, Writer], workers: Workers, end: dict[str, Any]
) -> None:
    conductor, _ = kept
    workers.run = writes(*chunks(ERR, b"no such file\n"), ends(**end))
    answer = await conductor.execute(wait=TEN, hints=commands())
    assert answer.status == task_pb2.TASK_STATUS_FAILED
    assert (await artifact(conductor, answer.task_id, "command-1.stderr"))[0] == b"no such file\n"


async def test_what_is_not_there_is_told_apart(kept: tuple[Running, Writer], workers: Workers) -> None:
    conductor, writer = kept
    answer = await conductor.execute(wait=TEN, hints=commands())
    with refused(grpc.StatusCode.NOT_FOUND) as errors:
        await artifact(conductor, "no-such-task", "command-1.stdout")
    assert reason_of(errors).reason == Reason.ERROR_REASON_TASK_NOT_FOUND
    with refused(grpc.StatusCode.NOT_FOUND) as errors:
        await artifact(conductor, answer.task_id, "command-1.stderr")
    assert reason_of(errors).reason == Reason.ERROR_REASON_REPORT_NOT_FOUND
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await artifact(conductor, answer.task_id, "../secret")
    (writer.root / answer.task_id / "command-1.stdout").write_bytes(b"HELLO\n")
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        await artifact(conductor, answer.task_id, "command-1.stdout")
    (writer.root / answer.task_id / "command-1.stdout").unlink()
    with refused(grpc.StatusCode.NOT_FOUND):
        await artifact(conductor, answer.task_id, "command-1.stdout")


# ---- a ReportWriter in trouble ----


async def test_a_writer_killed_while_the_command_writes_and_back_again_has_all_of_it(
    tmp_path: Path, workers: Workers
) -> None:
    out = os.urandom(3 * MIB)
    go_on = asyncio.Event()

    async def rest(_: Any) -> Sequence[Any]:
        await go_on.wait()
        return [*chunks(OUT, out[2 * MIB :]), ends(exit_code=0)]

    workers.run = in_turns(writes(*chunks(OUT, out[: 2 * MIB])), rest)
    root = tmp_path / "reports"
    with running(root) as writer:
        async with conducting(tmp_path, workers, writer.target) as conductor:
            answer = await conductor.execute(hints=commands())
            await until(lambda: parts(writer) and (root / PARTS / parts(writer)[0]).stat().st_size > MIB)
            writer.kill()
            with pytest.raises(Refusal, match="REPORT_WRITER does not accept"):
                await anext(conductor.router.read_artifact(answer.task_id, report_writer_pb2.Artifact(), "corr-1"))
            with running(root, env={"REPORT_WRITER_LISTEN": writer.target}):
                go_on.set()
                task = await conductor.ended(answer.task_id)
                assert task.status == task_pb2.TASK_STATUS_COMPLETED, task.error
                assert await artifact(conductor, task.task_id, "command-1.stdout") == (
                    out,
                    {"application/octet-stream"},
                )


def in_turns(*scripts: Any) -> Any:
    """A script that says what each of these says, waiting for it as a command that pauses would."""

    async def turns(request: Any) -> AsyncIterator[Any]:
        for script in scripts:
            for message in await script(request):
                yield message

    async def play(request: Any) -> Any:
        return turns(request)

    return play


TROUBLES: dict[str, Any] = {
    "refuses": Reason.ERROR_REASON_REPORT_CONFLICT,
    "is full": Reason.ERROR_REASON_REPORT_WRITE_FAILED,
    "hangs": Reason.ERROR_REASON_WORKER_TIMEOUT,
    "breaks": Reason.ERROR_REASON_WORKER_FAILED,
    "stores something else": Reason.ERROR_REASON_WORKER_PROTOCOL,
}


def trouble(kind: str) -> Any:
    async def play(request: Any) -> Sequence[Any]:
        if kind == "hangs":
            return await hangs(request)
        if kind == "breaks":
            raise RuntimeError("password=hunter2")
        if kind == "stores something else":
            return [report_writer_pb2.WriteArtifactResponse(artifact=report_writer_pb2.Artifact(name="other"))]
        raise Refusal.passing_on(typed(TROUBLES[kind], f"It {kind}."))

    return play


@pytest.mark.parametrize("kind", TROUBLES)
@pytest.mark.parametrize("size", [6, 3 * MIB], ids=["small", "large"])
async def test_trouble_with_the_files_changes_no_outcome_and_is_told(
    conductor: Running, workers: Workers, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    for name in ("PIECE_S", "FINISH_S", "AWAY_S"):
        monkeypatch.setattr(upload, name, 0.2)
    workers.store, workers.run = trouble(kind), writes(*chunks(OUT, b"x" * size), ends(exit_code=0))
    begun = time.monotonic()
    answer = await conductor.execute(wait=TEN, hints=commands())
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED and time.monotonic() - begun < 3
    (file,) = (await conductor.ended(answer.task_id)).artifacts
    assert (file.name, file.size_bytes, file.sha256, file.media_type) == ("command-1.stdout", size, "", "")
    assert file.error.reason == TROUBLES[kind] and "hunter2" not in str(file)
    assert list(workers.seen[-1].commands[0].artifacts) == [file], "the report is told too"
    with refused(grpc.StatusCode.NOT_FOUND) as errors:
        await artifact(conductor, answer.task_id, "command-1.stdout")
    assert file.error.message in reason_of(errors).message


async def test_a_writer_that_is_away_is_given_up_soon_and_the_command_still_counts(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "AWAY_S", 0.3)
    monkeypatch.setattr(upload, "PIECE_S", 0.3)
    workers.run = writes(*chunks(OUT, b"x" * 3 * MIB), ends(exit_code=0))
    async with conducting(tmp_path, workers, "127.0.0.1:1") as conductor:
        answer = await conductor.execute(hints=commands())

        async def result() -> Any:
            found = [e.worker_result for e in await conductor.events(answer.task_id) if e.HasField("worker_result")]
            return found[0] if found else None

        told = await until(result, 5)
        assert told.command.result.exit_code == 0 and not told.HasField("error")
        assert told.command.artifacts[0].HasField("error") and len(told.command.stdout) == 256 * 1024


async def test_a_fault_in_keeping_output_still_leaves_the_result(
    conductor: Running, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(_: Upload) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Upload, "finish", breaks)
    answer = await conductor.execute(wait=TEN, hints=commands())
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED
    assert workers.seen[-1].commands[0].stdout == b"hello\n"


# ---- calls that do not end ----


@pytest.mark.parametrize("how", ["cancelled", "lost"])
async def test_of_a_command_without_a_result_nothing_is_left(
    kept: tuple[Running, Writer], workers: Workers, how: str
) -> None:
    conductor, writer = kept
    workers.run = in_turns(writes(*chunks(OUT, b"x" * MIB)), hangs)
    answer = await conductor.execute(hints=commands())
    await until(lambda: parts(writer))
    if how == "cancelled":
        await conductor.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=answer.task_id))
    else:
        await workers.stop()
    task = await conductor.ended(answer.task_id)
    assert task.status != task_pb2.TASK_STATUS_COMPLETED and not task.artifacts
    await until(lambda: not parts(writer))
    assert not (writer.root / answer.task_id).exists()


# ---- one upload ----


class Slow:
    """A ReportWriter that takes a piece when it is let."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(0)
        self.taken: list[report_writer_pb2.WriteArtifactRequest] = []

    async def __call__(
        self, request: report_writer_pb2.WriteArtifactRequest, _: float
    ) -> report_writer_pb2.WriteArtifactResponse:
        await self.turns.acquire()
        self.taken.append(request)
        file = report_writer_pb2.Artifact(
            name=request.name, size_bytes=request.offset + len(request.data), sha256=request.sha256
        )
        return report_writer_pb2.WriteArtifactResponse(artifact=file if request.sha256 else None)


async def test_a_slow_writer_makes_the_command_wait_and_memory_stays_flat() -> None:
    writer = Slow()
    one = Upload(writer, "t-1", "command-1.stdout")
    added = 0

    async def write() -> None:
        nonlocal added
        for _ in range(64):
            await one.add(b"x" * 65_536)
            added += 65_536

    writing = asyncio.create_task(write())
    await until(lambda: added >= BUFFER_BYTES)
    for _ in range(100):
        await asyncio.sleep(0)
    assert added <= BUFFER_BYTES and not writing.done()
    writer.turns.release()
    await until(lambda: added >= BUFFER_BYTES + PIECE_BYTES - 65_536)
    for _ in range(64):
        writer.turns.release()
    await writing
    file = await one.finish()
    assert file is not None and not file.HasField("error") and file.size_bytes == 4 * MIB
    assert b"".join(piece.data for piece in writer.taken) == b"x" * 4 * MIB
    assert all(len(piece.data) <= MIB for piece in writer.taken)
    assert one.give_up() is None


async def test_an_upload_without_output_is_no_file_and_sends_nothing() -> None:
    writer = Slow()
    one = Upload(writer, "t-1", "command-1.stderr")
    assert await one.finish() is None and one.give_up() is None and not writer.taken


async def test_a_piece_is_sent_again_while_that_may_help() -> None:
    tries = 0

    async def send(request: Any, _: float) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Refusal(Reason.ERROR_REASON_WORKER_UNAVAILABLE, "It restarts.")
        return await Slow.__call__(ready, request, 1)

    ready = Slow()
    ready.turns.release()
    one = Upload(send, "t-1", "command-1.stdout")
    await one.add(b"hello")
    file = await one.finish()
    assert file is not None and file.sha256 == digest(b"hello") and tries == 3
