"""Does a stage of a run: brings its files to its program in the Terminal, follows it, keeps what it leaves.

The folder of a run is a named workspace. What its stages leave is kept by the ReportWriter, and is brought back when
the workspace lacks it: because it stood unused for too long, or because another Terminal takes the run on. A stage may
be done twice, and then does the same twice.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
from conductor.v1 import error_pb2, event_pb2, project_pb2, report_writer_pb2, terminal_pb2

from services.common.errors import Reason, Refusal
from services.common.server import MAX_MESSAGE_BYTES
from services.common.status import from_rpc_error
from services.conductor import stage_result
from services.conductor.intake import UPLOADED
from services.conductor.lines import Method, sending, single
from services.conductor.protocol import CallWorker
from services.conductor.stage_progress import Lines
from services.conductor.state.run import folder_of
from services.conductor.telling import Telling
from services.conductor.upload import Send, Upload

PIECE_BYTES = 256 * 1024
UNUSED_S = 5  # seconds after which nobody is at work with a run's folder any more
FILE_S = 600.0  # for one file to be read or written
ASK_S = 30.0
STDERR_BYTES = 64 * 1024  # the end of it, of a program that crashed
ENVELOPE = "envelope.json"
ALONE = {"PYTHONSAFEPATH": "1"}  # a program's modules are its own, not what an earlier one left in the folder
WORKSPACE_BYTES = 4 * 1024**3
FILE_BYTES = 1024**3

RUN = Method("/conductor.v1.Terminal/Run", terminal_pb2.RunResponse, MAX_MESSAGE_BYTES)
ABILITIES = Method("/conductor.v1.Terminal/GetCapabilities", terminal_pb2.GetCapabilitiesResponse, MAX_MESSAGE_BYTES)
STAT = Method("/conductor.v1.Terminal/StatFile", terminal_pb2.OutputFile, MAX_MESSAGE_BYTES)
READ = Method("/conductor.v1.Terminal/ReadFile", terminal_pb2.ReadFileResponse, MAX_MESSAGE_BYTES)
WRITE = Method("/conductor.v1.Terminal/WriteFile", terminal_pb2.OutputFile, MAX_MESSAGE_BYTES)
REMOVE = Method("/conductor.v1.Terminal/RemoveWorkspace", terminal_pb2.RemoveWorkspaceResponse, MAX_MESSAGE_BYTES)

Bytes = AsyncGenerator[bytes, None]
Fetch = Callable[[str, report_writer_pb2.Artifact, str], Bytes]
StoreFor = Callable[[str], Send]
Tell = Callable[[event_pb2.TaskProgress], None]


class Stages:
    """Does stages over a channel to the Terminal and the ReportWriter's keeping of files.

    Args:
        terminal: a channel that stays with one Terminal as long as that is there.
        send: gives what stores a piece of a file, for a correlation id.
        fetch: reads a file back: of a task, its name and SHA-256, correlation id.
        interval: seconds between two pieces of progress, see pieces.INTERVAL_S.
    """

    def __init__(self, terminal: grpc.aio.Channel, send: StoreFor, fetch: Fetch, interval: float) -> None:
        self._terminal = terminal
        self._send = send
        self._fetch = fetch
        self._interval = interval

    async def do(self, call: CallWorker, stage: event_pb2.StageCall, tell: Tell) -> event_pb2.WorkerResult:
        """Does it. Raises AioRpcError and Refusal when the Terminal or the ReportWriter cannot be used."""
        task_id = call.place.task_id if call.place is not None else call.call_id
        room = self._room(stage.run.run_id, stage.run.correlation_id)
        keep = _Keeping(room, self._send(stage.run.correlation_id), stage, task_id)
        try:
            await self._bring(room, stage)
        except grpc.aio.AioRpcError as full:
            if not _is_full(full):
                raise
            await room.clear()  # an attempt before has filled it; what counts is kept elsewhere
            await self._bring(room, stage)
        if call.again:
            # It may have been the keeping of what was found that failed. Done twice it would not be found byte by byte.
            with contextlib.suppress(stage_result.Unusable):
                return await keep.result(None)
        result, errors = await self._run(room, call, stage, tell)
        if (error := stage_result.ended_badly(stage, result)) is not None:
            return event_pb2.WorkerResult(error=error, stage=await keep.crash(errors))
        try:
            return await keep.result(result.exit_code)
        except stage_result.Unusable as why:
            error = stage_result.no_result(stage, str(why))
            return event_pb2.WorkerResult(error=error, stage=await keep.crash(errors))

    async def clear(self, run_id: str, correlation_id: str) -> None:
        """Removes the folder of a run that has ended. Raises AioRpcError, OVER_CAPACITY while it is in use."""
        await self._room(run_id, correlation_id).clear(UNUSED_S)

    def _room(self, run_id: str, correlation_id: str) -> "_Room":
        return _Room(self._terminal, f"run-{run_id}", correlation_id)

    async def _bring(self, room: "_Room", stage: event_pb2.StageCall) -> None:
        """Makes sure that the run's folder has what the stage may need."""
        abilities = await room.abilities()
        for file in stage.run.artifacts:
            if not file.stale and file.stage_id < stage.stage_id:
                await self._restore(room, stage_result.path_of(file), file.task_id, file.name, file.sha256)
        for upload in stage_result.chosen_data(stage):
            await self._restore(room, f"uploads/{upload.name}", upload.upload_id, UPLOADED, upload.sha256)
        for file in stage_result.notes(stage):
            path = stage_result.path_of(file)
            if await room.sha256(path) is None:  # one that is there may be newer
                await self._restore(room, path, file.task_id, file.name, file.sha256)
        document = stage_result.envelope(stage, abilities.data_folders)
        await room.write(ENVELOPE, _once(document), hashlib.sha256(document).hexdigest())

    async def _restore(self, room: "_Room", path: str, task_id: str, name: str, sha256: str) -> None:
        if await room.sha256(path) == sha256:
            return
        file = report_writer_pb2.Artifact(name=name, sha256=sha256)
        async with contextlib.aclosing(self._fetch(task_id, file, room.correlation_id)) as data:
            await room.write(path, data, sha256)

    async def _run(
        self, room: "_Room", call: CallWorker, stage: event_pb2.StageCall, tell: Tell
    ) -> tuple[terminal_pb2.CommandResult, bytes]:
        lines = Lines(call.call_id, self._interval)
        telling, errors = Telling(lines, tell), bytearray()
        try:
            async with room.run(call, _command(stage), call.timeout) as responses:
                async for response in responses:
                    if response.WhichOneof("event") == "result":
                        telling.end()
                        return response.result, bytes(errors)
                    if response.chunk.stream == terminal_pb2.OUTPUT_STREAM_STDOUT:
                        lines.add(response.chunk.data)
                        telling.go_on()
                    else:
                        errors = (errors + response.chunk.data)[-STDERR_BYTES:]
        finally:
            telling.stop()
        text = "The Terminal ended its answer without a result. Look at its log."
        raise Refusal(Reason.ERROR_REASON_OUTCOME_UNKNOWN, text, call_id=call.call_id)


class _Room:
    """The folder of a run at the Terminal."""

    def __init__(self, channel: grpc.aio.Channel, workspace: str, correlation_id: str) -> None:
        self._channel = channel
        self._workspace = workspace
        self.correlation_id = correlation_id

    async def abilities(self) -> terminal_pb2.GetCapabilitiesResponse:
        told: terminal_pb2.GetCapabilitiesResponse = await self._one(ABILITIES, terminal_pb2.GetCapabilitiesRequest())
        return told

    async def sha256(self, path: str) -> str | None:
        """Returns the SHA-256 of a file; None when there is none."""
        try:
            found = await self._one(STAT, terminal_pb2.ReadFileRequest(workspace=self._workspace, path=path))
        except grpc.aio.AioRpcError as error:
            if not _says(error, Reason.ERROR_REASON_FILE_NOT_FOUND):
                raise
            return None
        return str(found.sha256)

    async def clear(self, unused_s: int = 0) -> None:
        """Removes the folder with all it holds, unless it was used within so many seconds."""
        request = terminal_pb2.RemoveWorkspaceRequest(workspace=self._workspace)
        request.unused_for.FromSeconds(unused_s)
        await self._one(REMOVE, request)

    async def read(self, path: str) -> Bytes:
        """Yields a file's content."""
        request = terminal_pb2.ReadFileRequest(workspace=self._workspace, path=path)
        async with single(self._channel, READ, request, FILE_S, self.correlation_id) as responses:
            async for response in responses:
                yield response.data

    async def write(self, path: str, data: Bytes, sha256: str) -> None:
        """Writes a file."""

        async def requests() -> AsyncIterator[terminal_pb2.WriteFileRequest]:
            yield terminal_pb2.WriteFileRequest(workspace=self._workspace, path=path, sha256=sha256)
            async for piece in data:
                yield terminal_pb2.WriteFileRequest(data=piece)

        await sending(self._channel, WRITE, requests(), FILE_S, self.correlation_id)

    def run(self, call: CallWorker, command: terminal_pb2.Command, seconds: float) -> Any:
        """Begins the program; leaving it kills it."""
        request = terminal_pb2.RunRequest(
            call_id=call.call_id, command=command, correlation_id=self.correlation_id, workspace=self._workspace
        )
        return single(self._channel, RUN, request, seconds, self.correlation_id)

    async def _one(self, method: Method[Any], request: Any) -> Any:
        async with single(self._channel, method, request, ASK_S, self.correlation_id) as answers:
            async for answer in answers:
                return answer
        raise Refusal(Reason.ERROR_REASON_WORKER_PROTOCOL, f"The Terminal gave no answer to {method.path}.")


class _Keeping:
    """Stores what a stage left as files of its task."""

    def __init__(self, room: _Room, send: Send, stage: event_pb2.StageCall, task_id: str) -> None:
        self._room = room
        self._send = send
        self._stage = stage
        self._task_id = task_id

    async def result(self, exit_code: int | None) -> event_pb2.WorkerResult:
        """Stores its result and all files that this names. Raises Unusable.

        Args:
            exit_code: of its program; None when it is not known any more.
        """
        try:
            text = await self._text()
            outcome, error = stage_result.read(self._stage, self._task_id, text, exit_code)
            document = self._file(stage_result.RESULT, "All that the stage found", "application/json")
            for file in outcome.artifacts:
                sha256 = file.sha256
                await self._store(file, self._room.read(stage_result.path_of(file)))
                if file.sha256 != sha256:
                    raise stage_result.Unusable(f"{file.name} has another SHA-256 than it says")
            await self._store(document, _once(text))  # last: of two processes it alone is never the same
        except Refusal as refusal:
            if refusal.error.reason != Reason.ERROR_REASON_REPORT_CONFLICT:
                raise
            raise stage_result.Unusable(
                "files of a process before it stand in its place; begin the stage again"
            ) from refusal
        except grpc.aio.AioRpcError as gone:
            if not _says(gone, Reason.ERROR_REASON_FILE_NOT_FOUND):
                raise
            raise stage_result.Unusable("it, or a file it names, is not there") from gone
        outcome.artifacts.insert(0, document)
        return event_pb2.WorkerResult(error=error, stage=outcome)

    async def _text(self) -> bytes:
        text = bytearray()
        path = f"{folder_of(self._stage.stage_id)}/{stage_result.RESULT}"
        async with contextlib.aclosing(self._room.read(path)) as pieces:
            async for piece in pieces:
                text += piece
                if len(text) > stage_result.MAX_RESULT_BYTES:
                    raise stage_result.Unusable(f"it is larger than {stage_result.MAX_RESULT_BYTES} bytes")
        return bytes(text)

    async def crash(self, errors: bytes) -> project_pb2.StageOutcome | None:
        """Stores the last words of a program that crashed, if there are any."""
        if not errors:
            return None
        file = self._file(stage_result.STDERR, "What the program wrote to standard error", "text/plain")
        try:
            await self._store(file, _once(errors))
        except Refusal as refusal:
            if refusal.error.reason != Reason.ERROR_REASON_REPORT_CONFLICT:
                raise
            return None  # those of a process before stand there: how this one ended is more than its words
        return project_pb2.StageOutcome(artifacts=[file])

    def _file(self, name: str, title: str, media_type: str) -> project_pb2.RunArtifact:
        return stage_result.artifact(self._stage, self._task_id, name, title, media_type)

    async def _store(self, file: project_pb2.RunArtifact, data: Bytes) -> None:
        upload = Upload(self._send, self._task_id, file.name)
        try:
            async for piece in data:
                await upload.add(piece)
            stored = await upload.finish()
        finally:
            if (left := upload.give_up()) is not None:
                await asyncio.shield(self._send(left, ASK_S))
        if stored is None:
            raise stage_result.Unusable(f"{file.name} is empty")
        if stored.HasField("error"):
            raise Refusal.passing_on(stored.error)
        file.size_bytes, file.sha256 = stored.size_bytes, stored.sha256


def _command(stage: event_pb2.StageCall) -> terminal_pb2.Command:
    program = stage.program
    threads = str(max(1, program.threads))
    command = terminal_pb2.Command(argv=[*program.argv, ENVELOPE], allow_failure=True, idempotent=True)
    # Several threads that spin for work starve each other where processors are shared, see docs/stages.md.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS", "DUCKDB_THREADS")
    command.env.update({**dict.fromkeys(names, threads), "OMP_WAIT_POLICY": "PASSIVE", **ALONE, **program.env})
    command.limits.CopyFrom(
        terminal_pb2.Limits(
            wall_time=program.wall_time,
            cpu_time=program.cpu_time,
            memory_bytes=stage_result.memory_of(stage),
            file_size_bytes=FILE_BYTES,
            workspace_bytes=WORKSPACE_BYTES,
        )
    )
    return command


async def _once(data: bytes) -> Bytes:
    for begin in range(0, len(data), PIECE_BYTES):
        yield data[begin : begin + PIECE_BYTES]


def _is_full(error: grpc.aio.AioRpcError) -> bool:
    """Tells whether a file found no room: in the run's folder, or on the Terminal's disk."""
    cause = from_rpc_error(error)
    return cause is not None and (
        cause.reason == Reason.ERROR_REASON_COMMAND_LIMIT_EXCEEDED
        or cause.metadata.get("errno") in ("ENOSPC", "EDQUOT")
    )


def _says(error: grpc.aio.AioRpcError, reason: "error_pb2.ErrorReason.ValueType") -> bool:
    cause = from_rpc_error(error)
    return cause is not None and cause.reason == reason
