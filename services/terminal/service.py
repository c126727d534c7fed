"""The Terminal servicer: maps the contract to the sandbox and back. No decision about a command is taken here."""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator

from conductor.v1 import terminal_pb2, terminal_pb2_grpc
from google.protobuf import timestamp_pb2

from services.common.boundary import Context, correlation_id
from services.common.config import TerminalSettings
from services.terminal import limits, refusals, threads
from services.terminal.calls import Calls
from services.terminal.delivery import Delivery
from services.terminal.globs import Globs
from services.terminal.policy import Isolation, Order
from services.terminal.policy_file import Rule
from services.terminal.running import CHUNK_BYTES, Chunk, Ended, Lost, Running, Started
from services.terminal.sandbox import Sandbox

log = logging.getLogger(__name__)

FULL_NAME = terminal_pb2.DESCRIPTOR.services_by_name["Terminal"].full_name
SHELL = "/bin/sh"
# A request holds at most 4 MiB of inputs and 8 MiB of arguments.
MAX_INPUT_BYTES = 4 * 1024 * 1024


class TerminalService(terminal_pb2_grpc.TerminalServicer):
    """conductor.v1.Terminal on top of a started sandbox and what is remembered of calls."""

    def __init__(self, sandbox: Sandbox, calls: Calls, settings: TerminalSettings) -> None:
        self._sandbox = sandbox
        self._calls = calls
        self._settings = settings

    async def Run(self, request: terminal_pb2.RunRequest, context: Context) -> AsyncIterator[terminal_pb2.RunResponse]:
        """Runs one command, or tells what became of it; see the contract."""
        order = to_order(request, self._settings)
        told = self._calls.run(request.call_id, fingerprint(request), lambda: _Command(self._sandbox, order, request))
        # The one signal that comes in every case: the caller cancelled, is gone, or its deadline has passed.
        context.add_done_callback(lambda _: told.leave())  # type: ignore[arg-type] # the stubs ask for a class
        try:
            async for response in told:
                yield response
        finally:
            told.leave()

    async def ReadFile(
        self, request: terminal_pb2.ReadFileRequest, context: Context
    ) -> AsyncIterator[terminal_pb2.ReadFileResponse]:
        """Reads a file of a named workspace; see the contract."""
        fd = await asyncio.to_thread(self._sandbox.rooms.open_file, request.workspace, request.path)
        try:
            while data := await asyncio.to_thread(os.read, fd, CHUNK_BYTES):
                yield terminal_pb2.ReadFileResponse(data=data)
        finally:
            os.close(fd)

    async def StatFile(self, request: terminal_pb2.ReadFileRequest, context: Context) -> terminal_pb2.OutputFile:
        """Tells size and SHA-256 of a file of a named workspace; see the contract."""
        return await asyncio.to_thread(self._stat, request.workspace, request.path)

    def _stat(self, workspace: str, path: str) -> terminal_pb2.OutputFile:
        with os.fdopen(self._sandbox.rooms.open_file(workspace, path), "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return terminal_pb2.OutputFile(path=path, size_bytes=file.tell(), sha256=sha256)

    async def WriteFile(
        self, requests: AsyncIterator[terminal_pb2.WriteFileRequest], context: Context
    ) -> terminal_pb2.OutputFile:
        """Writes a file into a named workspace; see the contract."""
        first = await anext(requests, terminal_pb2.WriteFileRequest())
        for name in ("workspace", "path"):
            if not getattr(first, name):
                raise refusals.missing(name)
        delivery = Delivery(self._sandbox.rooms, first.workspace, first.path, self._settings)
        try:
            await threads.to_its_end(delivery.open)
            await threads.to_its_end(delivery.write, first.data)
            async for request in requests:
                await threads.to_its_end(delivery.write, request.data)
            sha256 = await threads.to_its_end(delivery.finish, first.sha256)
        except OSError as error:
            raise refusals.unavailable("workspace", error.errno) from error
        finally:
            await threads.to_its_end(delivery.close)
        return terminal_pb2.OutputFile(path=first.path, size_bytes=delivery.size, sha256=sha256)

    async def RemoveWorkspace(
        self, request: terminal_pb2.RemoveWorkspaceRequest, context: Context
    ) -> terminal_pb2.RemoveWorkspaceResponse:
        """Removes a named workspace; see the contract."""
        unused_s = request.unused_for.ToNanoseconds() / limits.NANOS
        await asyncio.to_thread(self._sandbox.rooms.remove, request.workspace, unused_s)
        return terminal_pb2.RemoveWorkspaceResponse()

    async def GetCapabilities(
        self, request: terminal_pb2.GetCapabilitiesRequest, context: Context
    ) -> terminal_pb2.GetCapabilitiesResponse:
        """Tells what the sandbox can do; see the contract."""
        sandbox = self._sandbox
        return terminal_pb2.GetCapabilitiesResponse(
            available=sandbox.isolation is not None,
            isolation=to_isolation(sandbox.isolation) if sandbox.isolation else None,
            unavailable_reason=str(sandbox.unavailable or ""),
            default_limits=limits.to_proto(limits.defaults(self._settings)),
            max_limits=limits.to_proto(limits.ceilings(self._settings)),
            tiers=[
                terminal_pb2.TierState(
                    tier=_tier(tier), available=refusal is None, unavailable_reason=str(refusal or "")
                )
                for tier, refusal in sandbox.tried.items()
            ],
            programs=[_to_rule(rule) for rule in sandbox.programs.rules()],
            loopback=sandbox.loopback,
            data_folders=[str(folder) for folder in self._settings.data],
        )


class _Command:
    """One command's story, as `Calls` writes it down."""

    def __init__(self, sandbox: Sandbox, order: Order, request: terminal_pb2.RunRequest) -> None:
        self._sandbox = sandbox
        self._order = order
        self._call_id = request.call_id
        self._running: Running | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Kills the command; the story then goes on to its result."""
        self._cancelled = True
        if self._running is not None:
            self._running.cancel()

    async def responses(self) -> AsyncGenerator[terminal_pb2.RunResponse, None]:
        """Runs the command and tells: started, output, result. Raises Refusal when nothing ran."""
        self._running = running = await self._sandbox.run(self._order)
        try:
            if self._cancelled:
                running.cancel()
            async for response in self._story(running):
                yield response
        finally:
            running.close()

    async def _story(self, running: Running) -> AsyncIterator[terminal_pb2.RunResponse]:
        begun = await running.begun()
        if not isinstance(begun, Started):
            raise refusals.not_started(begun, self._order.argv[0])
        isolation = to_isolation(self._sandbox.describe(begun))
        log.info("command started, call_id=%s correlation_id=%s", self._call_id, correlation_id.get())
        started = terminal_pb2.CommandStarted(started_at=_time(begun.at_ns), isolation=isolation)
        yield terminal_pb2.RunResponse(started=started)
        async for chunk in running.output():
            yield terminal_pb2.RunResponse(chunk=to_chunk(chunk))
        ended = await running.ended()
        if isinstance(ended, Lost):
            raise refusals.lost()
        log.info("command ended, call_id=%s correlation_id=%s end=%s", self._call_id, correlation_id.get(), ended.end)
        yield terminal_pb2.RunResponse(result=to_result(ended, running, isolation))


def fingerprint(request: terminal_pb2.RunRequest) -> bytes:
    """Returns what two calls with one call id must have in common."""
    same = terminal_pb2.RunRequest(command=request.command, workspace=request.workspace)
    return same.SerializeToString(deterministic=True)


def to_order(request: terminal_pb2.RunRequest, settings: TerminalSettings) -> Order:
    """Returns what to run. Raises INVALID_REQUEST for a limit above its ceiling, or for too much input."""
    command = request.command
    if sum(len(file.content) for file in command.inputs) > MAX_INPUT_BYTES:
        raise refusals.too_much_input(MAX_INPUT_BYTES)
    try:
        Globs(command.outputs)
    except ValueError as error:
        raise refusals.no_pattern(str(error)) from None
    return Order(
        argv=tuple(command.argv) or (SHELL, "-c", command.script),
        script=not command.argv,
        stdin=command.stdin,
        env=dict(command.env),
        bounds=limits.resolve(settings, command.limits),
        loopback=command.network == terminal_pb2.NETWORK_LOOPBACK,
        workspace=request.workspace,
        inputs=tuple((file.name, file.content) for file in command.inputs),
        outputs=tuple(command.outputs),
    )


def to_isolation(isolation: Isolation) -> terminal_pb2.Isolation:
    """Returns an isolation as the contract has it."""
    return terminal_pb2.Isolation(
        tier=_tier(isolation.tier),
        landlock_abi=isolation.landlock_abi,
        separate_uid=isolation.separate_uid,
        layers=isolation.layers,
        not_enforced=isolation.not_enforced,
    )


def to_chunk(chunk: Chunk) -> terminal_pb2.OutputChunk:
    """Returns output as the contract has it."""
    stream = terminal_pb2.OUTPUT_STREAM_STDERR if chunk.stderr else terminal_pb2.OUTPUT_STREAM_STDOUT
    return terminal_pb2.OutputChunk(stream=stream, data=chunk.data)


def to_result(ended: Ended, running: Running, isolation: terminal_pb2.Isolation) -> terminal_pb2.CommandResult:
    """Returns a command's end as the contract has it."""
    end = terminal_pb2.CommandEnd.Value(f"COMMAND_END_{ended.end}")
    result = terminal_pb2.CommandResult(
        end=end,
        cpu_time=limits.duration(ended.cpu_ns / limits.NANOS),
        peak_memory_bytes=ended.peak_bytes,
        started_at=_time(ended.started_ns),
        ended_at=_time(ended.ended_ns),
        stdout_dropped_bytes=running.dropped[False],
        stderr_dropped_bytes=running.dropped[True],
        isolation=isolation,
        limits=limits.to_proto(running.bounds),
        files=[
            terminal_pb2.OutputFile(path=file.path, size_bytes=file.size, sha256=file.sha256)
            for file in running.left.files
        ],
        files_left_out=running.left.left_out,
    )
    if end == terminal_pb2.COMMAND_END_EXITED:
        result.exit_code = os.WEXITSTATUS(ended.status)
    if os.WIFSIGNALED(ended.status):
        result.signal = os.WTERMSIG(ended.status)
    return result


def _to_rule(rule: Rule) -> terminal_pb2.ProgramRule:
    highest = terminal_pb2.Limits()
    for name, value in rule.ceilings.items():
        limits.put(highest, name, value)
    return terminal_pb2.ProgramRule(path=rule.path, max_limits=highest, loopback=rule.loopback)


def _tier(tier: str) -> terminal_pb2.IsolationTier.ValueType:
    return terminal_pb2.IsolationTier.Value(f"ISOLATION_TIER_{tier.upper()}")


def _time(at_ns: int) -> timestamp_pb2.Timestamp:
    moment = timestamp_pb2.Timestamp()
    moment.FromNanoseconds(at_ns)
    return moment
