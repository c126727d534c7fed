"""The Terminal servicer: maps the contract to the sandbox and back. No decision about a command is taken here."""

import logging
import os
from collections.abc import AsyncIterator

from conductor.v1 import terminal_pb2, terminal_pb2_grpc
from google.protobuf import timestamp_pb2

from services.common.boundary import Context, correlation_id
from services.common.config import TerminalSettings
from services.terminal import limits, refusals
from services.terminal.policy import Isolation, Order
from services.terminal.running import Chunk, Ended, Lost, Running, Started
from services.terminal.sandbox import Sandbox

log = logging.getLogger(__name__)

FULL_NAME = terminal_pb2.DESCRIPTOR.services_by_name["Terminal"].full_name
SHELL = "/bin/sh"


class TerminalService(terminal_pb2_grpc.TerminalServicer):
    """conductor.v1.Terminal on top of a started sandbox."""

    def __init__(self, sandbox: Sandbox, settings: TerminalSettings) -> None:
        self._sandbox = sandbox
        self._settings = settings

    async def Run(self, request: terminal_pb2.RunRequest, context: Context) -> AsyncIterator[terminal_pb2.RunResponse]:
        """Runs one command; see the contract."""
        order = to_order(request.command, self._settings)
        running = self._sandbox.run(order)
        # The one signal that comes in every case: the caller cancelled, is gone, or its deadline has passed.
        context.add_done_callback(lambda _: running.cancel())  # type: ignore[arg-type] # the stubs ask for a class
        try:
            async for response in self._story(running, order.argv[0], request.call_id):
                yield response
        finally:
            running.close()

    async def _story(self, running: Running, program: str, call_id: str) -> AsyncIterator[terminal_pb2.RunResponse]:
        begun = await running.begun()
        if not isinstance(begun, Started):
            raise refusals.not_started(begun, program, running.cancelled)
        isolation = to_isolation(self._sandbox.describe(begun))
        log.info("command started, call_id=%s correlation_id=%s", call_id, correlation_id.get())
        started = terminal_pb2.CommandStarted(started_at=_time(begun.at_ns), isolation=isolation)
        yield terminal_pb2.RunResponse(started=started)
        async for chunk in running.output():
            yield terminal_pb2.RunResponse(chunk=to_chunk(chunk))
        ended = await running.ended()
        if isinstance(ended, Lost):
            raise refusals.lost()
        log.info("command ended, call_id=%s correlation_id=%s end=%s", call_id, correlation_id.get(), ended.end)
        yield terminal_pb2.RunResponse(result=to_result(ended, running, isolation))

    async def GetCapabilities(
        self, request: terminal_pb2.GetCapabilitiesRequest, context: Context
    ) -> terminal_pb2.GetCapabilitiesResponse:
        """Tells what the sandbox can do; see the contract."""
        isolation = self._sandbox.isolation
        return terminal_pb2.GetCapabilitiesResponse(
            available=isolation is not None,
            isolation=to_isolation(isolation) if isolation else None,
            unavailable_reason=str(self._sandbox.unavailable or ""),
            default_limits=limits.to_proto(limits.defaults(self._settings)),
            max_limits=limits.to_proto(limits.ceilings(self._settings)),
        )


def to_order(command: terminal_pb2.Command, settings: TerminalSettings) -> Order:
    """Returns what to run. Raises INVALID_REQUEST for a limit above its ceiling."""
    return Order(
        argv=tuple(command.argv) or (SHELL, "-c", command.script),
        stdin=command.stdin,
        env=dict(command.env),
        bounds=limits.resolve(settings, command.limits),
    )


def to_isolation(isolation: Isolation) -> terminal_pb2.Isolation:
    """Returns an isolation as the contract has it."""
    return terminal_pb2.Isolation(
        tier=terminal_pb2.ISOLATION_TIER_STANDARD,
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
    )
    if end == terminal_pb2.COMMAND_END_EXITED:
        result.exit_code = os.WEXITSTATUS(ended.status)
    if os.WIFSIGNALED(ended.status):
        result.signal = os.WTERMSIG(ended.status)
    return result


def _time(at_ns: int) -> timestamp_pb2.Timestamp:
    moment = timestamp_pb2.Timestamp()
    moment.FromNanoseconds(at_ns)
    return moment
