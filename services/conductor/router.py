"""Calls workers over gRPC. Every outcome, good or bad, becomes a message for the actor."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import grpc
from conductor.v1 import (
    error_pb2,
    event_pb2,
    report_writer_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)
from google.protobuf.message import Message

from services.common.errors import Reason, Refusal, typed
from services.common.multiplex import FRAME_BYTES
from services.common.server import CHANNEL_OPTIONS, MAX_MESSAGE_BYTES
from services.common.status import from_rpc_error
from services.conductor.activity import Activity
from services.conductor.findings import Following
from services.conductor.lines import Answer, Lines, Method, single
from services.conductor.output import SUFFIXES, Output
from services.conductor.pieces import INTERVAL_S, Pieces
from services.conductor.protocol import Answered, CallWorker, Command, Progressed
from services.conductor.staging import ASK_S, Stages
from services.conductor.upload import PIECE_S, Send, Upload

log = logging.getLogger(__name__)

Capability = task_pb2.Capability
Deliver = Callable[[Command], None]
Pages = AsyncGenerator[bytes, None]

MAX_RESULT_BYTES = 3 * 1024 * 1024
CONNECT_S = 2.0  # how long a worker may take to accept a connection before it counts as unavailable
REPORT_READ_S = 10.0
ARTIFACT_READ_S = 3600.0  # all of it, however slowly its reader takes it
STAYING = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + FRAME_BYTES))
OPTIONS = (
    *STAYING,
    # Every address a target names gets its share of calls; one that is down gets none.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)
# A result becomes an event, and gRPC clients take 4 MiB by default.
RESEARCH = Method("/conductor.v1.Researcher/Research", researcher_pb2.ResearchResponse, MAX_RESULT_BYTES)
RUN = Method("/conductor.v1.Terminal/Run", terminal_pb2.RunResponse, MAX_RESULT_BYTES)
WRITE = Method("/conductor.v1.ReportWriter/WriteReport", report_writer_pb2.WriteReportResponse, MAX_MESSAGE_BYTES)
WRITE_RUN = Method("/conductor.v1.ReportWriter/WriteRunReport", WRITE.answer, MAX_MESSAGE_BYTES)
READ = Method("/conductor.v1.ReportWriter/GetReport", report_writer_pb2.GetReportResponse, MAX_MESSAGE_BYTES)
STORE = Method("/conductor.v1.ReportWriter/WriteArtifact", report_writer_pb2.WriteArtifactResponse, MAX_RESULT_BYTES)
FETCH = Method("/conductor.v1.ReportWriter/GetArtifact", report_writer_pb2.GetArtifactResponse, MAX_RESULT_BYTES)
# Codes after which it is known without a reason what became of a command: it was late, or nobody there runs commands.
EXPLAINED = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED})
# A server that stops answers CANCELLED to what it had not begun; when we cancel a call ourselves, nobody looks here.
GONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class GrpcRouter:
    """Implements the actor's Router over channels to the three workers.

    Args:
        targets: capability → gRPC target.
        interval: seconds between two pieces of what a command writes or a research does, see INTERVAL_S.
    """

    def __init__(self, targets: Mapping[task_pb2.Capability.ValueType, str], interval: float = INTERVAL_S) -> None:
        self._interval = interval
        self._channels = {
            capability: grpc.aio.insecure_channel(target, options=OPTIONS) for capability, target in targets.items()
        }
        self._stopped = False
        self._researcher = Lines(self._channels[Capability.CAPABILITY_RESEARCHER], MAX_MESSAGE_BYTES)
        self._writer = Lines(self._channels[Capability.CAPABILITY_REPORT_WRITER], MAX_MESSAGE_BYTES)
        # Without round robin a channel stays with one server: the files of a run are there.
        self._room = grpc.aio.insecure_channel(targets[Capability.CAPABILITY_TERMINAL], options=STAYING)
        self._stages = Stages(self._room, self.keep_for, self.read_artifact, interval)
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._cleaning: set[asyncio.Task[None]] = set()

    def call(self, call: CallWorker, deliver: Deliver) -> None:
        """Starts a call; progress and the one Answered are delivered as commands. Does nothing once stopped."""
        if self._stopped:
            return
        task = asyncio.create_task(self._call(call, deliver))
        self._calls[call.call_id] = task
        task.add_done_callback(lambda _: self._calls.pop(call.call_id, None))

    def cancel(self, call_id: str) -> None:
        """Stops a call; the worker sees its RPC cancelled and stops too. Nothing more is delivered."""
        task = self._calls.get(call_id)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """Stops all calls and starts no more. Reports can still be read."""
        self._stopped = True
        calls = list(self._calls.values())
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def close(self) -> None:
        """Stops, and closes the channels."""
        await self.stop()
        await asyncio.gather(*self._cleaning)
        await asyncio.gather(self._researcher.close(), self._writer.close())
        for channel in (*self._channels.values(), self._room):
            await channel.close()

    async def read_report(self, path: str, correlation_id: str) -> bytes:
        """Returns a report's text. Raises Refusal with the writer's reason, or WORKER_UNAVAILABLE."""
        request = report_writer_pb2.GetReportRequest(path=path)
        try:
            async with asyncio.timeout(REPORT_READ_S):
                response = await _one(self._writer, READ, request, REPORT_READ_S, correlation_id)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise Refusal.passing_on(_error_of(error, Capability.CAPABILITY_REPORT_WRITER, REPORT_READ_S)) from error
        return response.content

    async def read_artifact(self, task_id: str, file: report_writer_pb2.Artifact, correlation_id: str) -> Pages:
        """Yields a file of a task. Raises Refusal as `read_report` does, before the first piece or between two."""
        request = report_writer_pb2.GetArtifactRequest(task_id=task_id, name=file.name, sha256=file.sha256)
        channel = self._channels[Capability.CAPABILITY_REPORT_WRITER]
        try:
            await self._connected(Capability.CAPABILITY_REPORT_WRITER)
            # A call of its own, for the flow control of a stream of its own: readers may be slow.
            async with single(channel, FETCH, request, ARTIFACT_READ_S, correlation_id) as responses:
                async for response in responses:
                    yield response.data
        except grpc.aio.AioRpcError as error:
            cause = _error_of(error, Capability.CAPABILITY_REPORT_WRITER, ARTIFACT_READ_S)
            raise Refusal.passing_on(cause) from error

    async def clear_run(self, run_id: str, correlation_id: str) -> None:
        """Removes the folder of a run at the Terminal. Raises Refusal, OVER_CAPACITY while it is in use."""
        terminal = Capability.CAPABILITY_TERMINAL
        try:
            await self._connected(terminal)
            await self._stages.clear(run_id, correlation_id)
        except grpc.aio.AioRpcError as error:
            raise Refusal.passing_on(_error_of(error, terminal, ASK_S)) from error

    # ---- one call ----

    async def _call(self, call: CallWorker, deliver: Deliver) -> None:
        request = call.request
        if isinstance(request, terminal_pb2.RunRequest):
            result = await self._command(call, request, deliver)
        elif isinstance(request, event_pb2.StageCall):
            result = await self._outcome(call, lambda: self._stage(call, request, deliver))
        else:
            result = await self._outcome(call, lambda: self._ask(call, request, deliver))
        result.call_id, result.capability = call.call_id, call.capability
        deliver(Answered(result))

    async def _outcome(
        self, call: CallWorker, ask: Callable[[], Awaitable[event_pb2.WorkerResult]]
    ) -> event_pb2.WorkerResult:
        try:
            async with asyncio.timeout(call.timeout):
                await self._connected(call.capability)
                return await ask()
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            return event_pb2.WorkerResult(error=_error_of(error, call.capability, call.timeout))
        except Refusal as refusal:
            return event_pb2.WorkerResult(error=refusal.error)
        except Exception as error:  # whatever it is, the call must end in a result, or its task would never end
            log.exception("call %s failed", call.call_id)
            return event_pb2.WorkerResult(error=_unexplained(call.capability, type(error).__name__))

    async def _connected(self, capability: task_pb2.Capability.ValueType) -> None:
        """Makes sure of a connection before anything is sent, so that "never started" is known and not guessed."""
        channel = self._channels[capability]
        if channel.get_state(try_to_connect=True) == grpc.ChannelConnectivity.READY:
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                await channel.channel_ready()
        except TimeoutError:
            name = Capability.Name(capability)
            text = f"{name} does not accept connections. Start it, or check its address in Conductor's settings."
            raise Refusal(Reason.ERROR_REASON_WORKER_UNAVAILABLE, text, capability=name) from None

    async def _ask(
        self,
        call: CallWorker,
        request: researcher_pb2.ResearchRequest
        | report_writer_pb2.WriteReportRequest
        | report_writer_pb2.WriteRunReportRequest,
        deliver: Deliver,
    ) -> event_pb2.WorkerResult:
        if isinstance(request, researcher_pb2.ResearchRequest):
            return await self._research(call, request, deliver)
        method = WRITE if isinstance(request, report_writer_pb2.WriteReportRequest) else WRITE_RUN
        report = await _one(self._writer, method, request, call.timeout, request.provenance.correlation_id)
        return event_pb2.WorkerResult(report=report)

    async def _stage(self, call: CallWorker, stage: event_pb2.StageCall, deliver: Deliver) -> event_pb2.WorkerResult:
        return await self._stages.do(call, stage, lambda piece: deliver(Progressed(call.call_id, piece)))

    async def _research(
        self, call: CallWorker, request: researcher_pb2.ResearchRequest, deliver: Deliver
    ) -> event_pb2.WorkerResult:
        activity = Activity(call.call_id, self._interval, request.budget)
        following = Following(call.call_id, activity, lambda piece: deliver(Progressed(call.call_id, piece)))
        try:
            async with self._researcher.call(RESEARCH, request, call.timeout, request.correlation_id) as responses:
                async for response in responses:
                    if (result := following.add(response)) is not None:  # whatever else it may say no longer counts
                        return event_pb2.WorkerResult(research=result)
        finally:
            following.close()
        raise _no_result(call.capability)

    # ---- commands ----

    async def _command(
        self, call: CallWorker, request: terminal_pb2.RunRequest, deliver: Deliver
    ) -> event_pb2.WorkerResult:
        output = self._output(call, request.correlation_id, deliver)
        try:
            result = await self._outcome(call, lambda: self._run(call, request, output))
            # Beyond the call's own time: how the command ended is known, and what it wrote does not change that.
            with _whatever_happens(call.call_id):
                await output.end(result.command if result.HasField("command") else None)
        finally:
            for left in output.close():
                cleaning = asyncio.create_task(self._clean(left, request.correlation_id))
                self._cleaning.add(cleaning)
                cleaning.add_done_callback(self._cleaning.discard)
        return result

    def _output(self, call: CallWorker, correlation_id: str, deliver: Deliver) -> Output:
        send = self.keep_for(correlation_id)
        place = call.place
        uploads = (
            {stream: Upload(send, place.task_id, f"{place.stem}.{suffix}") for stream, suffix in SUFFIXES.items()}
            if place
            else {}
        )
        return Output(
            Pieces(call.call_id, self._interval), lambda piece: deliver(Progressed(call.call_id, piece)), uploads
        )

    def keep_for(self, correlation_id: str) -> Send:
        """Returns what stores a piece of a file at the ReportWriter."""
        return lambda request, seconds: self._store(request, seconds, correlation_id)

    async def _store(
        self, request: report_writer_pb2.WriteArtifactRequest, seconds: float, correlation_id: str
    ) -> report_writer_pb2.WriteArtifactResponse:
        """Sends a piece of a file to the ReportWriter. Raises Refusal, and nothing else."""
        writer = Capability.CAPABILITY_REPORT_WRITER
        try:
            async with asyncio.timeout(seconds):
                await self._connected(writer)
                return await _one(self._writer, STORE, request, seconds, correlation_id)
        except Refusal:
            raise
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise Refusal.passing_on(_error_of(error, writer, seconds)) from error
        except Exception as error:  # whatever it is, the command's own outcome must not be lost over it
            log.exception("a piece of %s of task %s was not stored", request.name, request.task_id)
            raise Refusal.passing_on(_unexplained(writer, type(error).__name__)) from error

    async def _clean(self, request: report_writer_pb2.WriteArtifactRequest, correlation_id: str) -> None:
        try:
            await self._store(request, PIECE_S, correlation_id)
        except Refusal as refusal:
            log.warning("half of %s of task %s is left behind: %s", request.name, request.task_id, refusal)

    async def _run(self, call: CallWorker, request: terminal_pb2.RunRequest, output: Output) -> event_pb2.WorkerResult:
        channel = self._channels[call.capability]
        try:
            # A call of its own: what a command writes wants the flow control of a stream of its own, and leaving the
            # call kills the command.
            async with single(channel, RUN, request, call.timeout, request.correlation_id) as responses:
                async for response in responses:
                    if response.WhichOneof("event") == "chunk":
                        await output.add(response.chunk)
                    elif response.WhichOneof("event") == "result":
                        record = report_writer_pb2.CommandRecord(command=request.command, result=response.result)
                        return event_pb2.WorkerResult(command=record)
        except grpc.aio.AioRpcError as error:
            cause = from_rpc_error(error)
            unexplained = cause is None or cause.reason == Reason.ERROR_REASON_INTERNAL
            if unexplained and error.code() not in EXPLAINED:
                raise _outcome_unknown(call.call_id) from error
            raise
        raise _no_result(call.capability)


@contextmanager
def _whatever_happens(call_id: str) -> Iterator[None]:
    try:
        yield
    except Exception:  # a fault in keeping output must not keep the call from ending in a result
        log.exception("the output of call %s was not kept", call_id)


async def _one(lines: Lines, method: Method[Answer], request: Message, seconds: float, correlation_id: str) -> Answer:
    """Makes a unary call."""
    async with lines.call(method, request, seconds, correlation_id) as answers:
        async for answer in answers:
            return answer
    raise _no_result(Capability.CAPABILITY_REPORT_WRITER)


# ---- errors ----


def _error_of(
    error: grpc.aio.AioRpcError | TimeoutError, capability: task_pb2.Capability.ValueType, timeout: float
) -> error_pb2.TypedError:
    """Returns why a call failed: the worker's own reason when it gave one."""
    name = Capability.Name(capability)
    cause = None if isinstance(error, TimeoutError) else from_rpc_error(error)
    if cause is not None and cause.reason != Reason.ERROR_REASON_INTERNAL:
        return cause
    if isinstance(error, TimeoutError) or error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        text = f"{name} did not answer within {timeout:g} s. Give it more time in hints, or look at its log."
        return typed(Reason.ERROR_REASON_WORKER_TIMEOUT, text, capability=name, timeout_s=f"{timeout:g}")
    if error.code() in GONE:
        text = f"{name} went away during the call. Look at its log."
        return typed(Reason.ERROR_REASON_WORKER_UNAVAILABLE, text, capability=name)
    return _unexplained(capability, error.code().name)


def _unexplained(capability: task_pb2.Capability.ValueType, code: str) -> error_pb2.TypedError:
    name = Capability.Name(capability)
    text = f"{name} failed with {code} and gave no reason. Look at its log."
    return typed(Reason.ERROR_REASON_WORKER_FAILED, text, capability=name, code=code)


def _no_result(capability: task_pb2.Capability.ValueType) -> Refusal:
    name = Capability.Name(capability)
    text = f"{name} ended its answer without a result. Look at its log."
    return Refusal(Reason.ERROR_REASON_WORKER_PROTOCOL, text, capability=name)


def _outcome_unknown(call_id: str) -> Refusal:
    text = "The Terminal went away while the command ran, so its outcome is not known. Submit the task again."
    return Refusal(Reason.ERROR_REASON_OUTCOME_UNKNOWN, text, call_id=call_id)
