"""One table of errors: total, equal to what the contract documents, and what really arrives at a client."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, error_pb2, event_pb2, task_pb2, terminal_pb2
from google.protobuf import descriptor_pb2
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from services.common.errors import TABLE, Reason, Refusal, typed
from services.common.server import Service
from services.common.status import from_rpc_error
from tests.conftest import MARKDOWN, refused

DESCRIPTORS = Path(__file__).resolve().parent.parent / "gen" / "conductor.pb"
REASONS = [reason for reason in Reason.values() if reason != Reason.ERROR_REASON_UNSPECIFIED]
EVERY_REASON = pytest.mark.parametrize("reason", REASONS, ids=[Reason.Name(r)[len("ERROR_REASON_") :] for r in REASONS])


def documented() -> dict[int, str]:
    """Returns what error.proto says about each reason, by its number."""
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    proto = next(file for file in files if file.name == "conductor/v1/error.proto")
    at = next(n for n, enum in enumerate(proto.enum_type) if enum.name == "ErrorReason")
    comments = {tuple(place.path): place.leading_comments for place in proto.source_code_info.location}
    return {value.number: " ".join(comments[5, at, 2, n].split()) for n, value in enumerate(proto.enum_type[at].value)}


COMMENTS = documented()


# ---- the table ----


def test_every_reason_of_the_contract_has_its_row_and_no_other() -> None:
    assert set(TABLE) == set(REASONS)
    assert all(error_pb2.ErrorKind.Name(row.kind) != "ERROR_KIND_UNSPECIFIED" for row in TABLE.values())


@EVERY_REASON
def test_the_table_says_what_the_contract_documents(reason: Any) -> None:
    codes = "|".join(name for name in code_pb2.Code.keys() if name != "OK")  # noqa: SIM118  not a dict
    found = re.search(rf"\. ({codes})\b(?=[.,])", COMMENTS[reason])
    assert found is not None, f"the comment names no code: {COMMENTS[reason]}"
    assert code_pb2.Code.Value(found[1]) == TABLE[reason].code
    assert ("retryable" in COMMENTS[reason]) == TABLE[reason].retryable


def test_kinds_fit_their_codes() -> None:
    for reason, row in TABLE.items():
        name = Reason.Name(reason)
        assert (row.code == code_pb2.DEADLINE_EXCEEDED) == (row.kind == error_pb2.ERROR_KIND_TIMEOUT), name
        assert (row.code == code_pb2.CANCELLED) == (row.kind == error_pb2.ERROR_KIND_CANCELLED), name
        assert ("_REPORT_" in name and "NOT_READY" not in name) == (row.kind == error_pb2.ERROR_KIND_REPORT_WRITE), name
        assert row.code != code_pb2.INVALID_ARGUMENT or not row.retryable, name


@EVERY_REASON
def test_a_typed_error_is_complete_from_its_reason(reason: Any) -> None:
    error = typed(reason, "What to do.", number=7, nothing=None)
    assert (error.kind, error.retryable) == (TABLE[reason].kind, TABLE[reason].retryable)
    assert error.metadata == {"number": "7", "nothing": "None"}


# ---- the wire ----


@dataclass
class Raises(conductor_pb2_grpc.ConductorServicer):
    """Raises what it is told to, before or in the middle of an answer."""

    error: Exception = field(default_factory=lambda: RuntimeError("unset"))

    async def GetTask(self, request: Any, context: Any) -> Any:
        raise self.error

    async def Execute(self, request: Any, context: Any) -> Any:
        raise self.error

    async def SubscribeEvents(self, request: Any, context: Any) -> AsyncIterator[event_pb2.Event]:
        if request.after_sequence:
            yield event_pb2.Event(sequence=request.after_sequence)
        raise self.error


@dataclass
class Wire:
    servicer: Raises
    channel: grpc.aio.Channel
    stub: Any

    async def task(self, task_id: str = "t-1", **options: Any) -> Any:
        return await self.stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id), **options)

    async def events(self, after: int) -> list[Any]:
        stream = self.stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(after_sequence=after))
        return [event async for event in stream]


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    servicer, service = Raises(), Service("127.0.0.1:0", ["conductor.v1.Conductor"])
    conductor_pb2_grpc.add_ConductorServicer_to_server(servicer, service.server)
    await service.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        yield Wire(servicer, channel, conductor_pb2_grpc.ConductorStub(channel))
    await service.stop(0)


def status_of(code: int) -> grpc.StatusCode:
    return next(status for status in grpc.StatusCode if status.value[0] == code)


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Returns the details of a refused call by the names of their types."""
    known = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
        error_pb2.TypedError,
    )

    def unpacked() -> Iterator[tuple[str, Any]]:
        for detail in rpc_status.from_call(error).details:
            kind = next(k for k in known if detail.Is(k.DESCRIPTOR))
            yield kind.DESCRIPTOR.name, kind.FromString(detail.value)

    return dict(unpacked())


@EVERY_REASON
async def test_every_reason_reaches_the_client_with_its_details(wire: Wire, reason: Any) -> None:
    wire.servicer.error = Refusal(reason, "Ünd dann? 100 %\nDo this.", source="../etc")
    with refused(status_of(TABLE[reason].code)) as errors:
        await wire.task(metadata=(("x-correlation-id", "corr-1"),))
    found = details(errors[0])
    info = found.pop("ErrorInfo")
    assert (info.reason, info.domain) == (Reason.Name(reason).removeprefix("ERROR_REASON_"), "conductor.v1")
    assert info.metadata == {"source": "../etc", "correlation_id": "corr-1"}
    assert found.pop("TypedError") == wire.servicer.error.error == from_rpc_error(errors[0])
    retry = found.pop("RetryInfo", None)
    assert (retry is not None) == (reason == Reason.ERROR_REASON_OVER_CAPACITY)
    assert retry is None or retry.retry_delay.ToMilliseconds() > 0
    assert found == {} and errors[0].details() == "Ünd dann? 100 %\nDo this."


async def test_a_broken_rule_names_each_field_in_bad_request(wire: Wire) -> None:
    commands = [terminal_pb2.Command(argv=["ls"]), terminal_pb2.Command()]
    request = conductor_pb2.ExecuteRequest(objective=" ", hints=task_pb2.Hints(commands=commands))
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        await wire.stub.Execute(request)
    found = details(errors[0])
    fields = [violation.field for violation in found["BadRequest"].field_violations]
    assert fields[0] == "objective" and set(fields) == {"objective", "output_mode", "hints.commands[1].argv"}
    assert all(violation.description for violation in found["BadRequest"].field_violations)
    assert found["TypedError"].metadata == {"field": "objective"}
    assert found["TypedError"].reason == Reason.ERROR_REASON_INVALID_REQUEST


async def test_a_refusal_in_the_middle_of_a_stream_is_as_complete(wire: Wire) -> None:
    wire.servicer.error = Refusal(Reason.ERROR_REASON_SHUTTING_DOWN, "Come back.")
    for after in (0, 5):
        with refused(grpc.StatusCode.UNAVAILABLE) as errors:
            await wire.events(after)
        assert details(errors[0])["TypedError"] == wire.servicer.error.error


SECRET = "password=hunter2"
SURPRISES = [RuntimeError(SECRET), KeyError(SECRET), ValueError(SECRET), TimeoutError(SECRET), OSError(28, SECRET)]


@pytest.mark.parametrize("surprise", SURPRISES, ids=lambda error: type(error).__name__)
async def test_an_exception_nobody_foresaw_tells_the_caller_nothing_and_the_log_all(
    wire: Wire, caplog: pytest.LogCaptureFixture, surprise: Exception
) -> None:
    wire.servicer.error = surprise
    with caplog.at_level(logging.ERROR):
        for call in (wire.task(metadata=(("x-correlation-id", "corr-9"),)), wire.events(0), wire.events(5)):
            with refused(grpc.StatusCode.INTERNAL) as errors:
                await call
            answer = f"{errors[0].details()} {rpc_status.from_call(errors[0])} {errors[0].trailing_metadata()}"
            assert "hunter2" not in answer and type(surprise).__name__ not in answer
            assert details(errors[0])["TypedError"].reason == Reason.ERROR_REASON_INTERNAL
    assert "hunter2" in caplog.text and "corr-9" in caplog.text  # the operator finds it under the id the caller has


# ---- what a caller's mistake must not become ----


@pytest.mark.parametrize("junk", [b"\xff\xff\xff", b"\x12\x02\xff\xfe"], ids=["no message", "no UTF-8"])
@pytest.mark.parametrize("method", ["Execute", "SubscribeEvents"])
async def test_a_request_that_cannot_be_parsed_is_an_invalid_argument(wire: Wire, junk: bytes, method: str) -> None:
    path = f"/conductor.v1.Conductor/{method}"
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        if method == "Execute":
            await wire.channel.unary_unary(path)(junk)
        else:
            await anext(aiter(wire.channel.unary_stream(path)(junk)))
    assert details(errors[0])["TypedError"].reason == Reason.ERROR_REASON_INVALID_REQUEST
    assert details(errors[0])["BadRequest"].field_violations[0].field == "request"
    assert "DecodeError" not in str(errors[0].details())


@pytest.mark.parametrize(
    "command",
    [terminal_pb2.Command(argv=["x\0"] * 256), terminal_pb2.Command(argv=["x"], env={"é" * 5000: "x"})],
    ids=["256 bad fields", "a field with a long name"],
)
async def test_a_request_with_many_mistakes_is_still_told_what_is_wrong(wire: Wire, command: Any) -> None:
    request = conductor_pb2.ExecuteRequest(
        objective="x", output_mode=MARKDOWN, hints=task_pb2.Hints(commands=[command])
    )
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        await wire.stub.Execute(request)
    assert details(errors[0])["BadRequest"].field_violations


@pytest.mark.parametrize("size", [3_000, 10_000, 1_000_000])
async def test_a_long_message_does_not_cost_the_reason(wire: Wire, size: int) -> None:
    wire.servicer.error = Refusal(Reason.ERROR_REASON_SOURCE_REFUSED, "é" * size, source="s" * size)
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
        await wire.task()
    assert details(errors[0])["TypedError"].reason == Reason.ERROR_REASON_SOURCE_REFUSED


async def test_many_long_values_do_not_cost_the_reason(wire: Wire) -> None:
    values = {f"key_{n}": "\U0001f600" * 1000 for n in range(32)}  # as many and as long as the contract allows
    wire.servicer.error = Refusal(Reason.ERROR_REASON_SOURCE_REFUSED, "\U0001f600" * 4000, **values)
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
        await wire.task()
    assert details(errors[0])["TypedError"].reason == Reason.ERROR_REASON_SOURCE_REFUSED


@pytest.mark.parametrize("number", [0, 99])
async def test_a_reason_this_version_does_not_know_is_passed_on(wire: Wire, number: Any) -> None:
    wire.servicer.error = Refusal.passing_on(error_pb2.TypedError(reason=number, message="From the future."))
    with refused(grpc.StatusCode.UNKNOWN) as errors:
        await wire.task()
    assert details(errors[0])["TypedError"] == wire.servicer.error.error
    assert details(errors[0])["ErrorInfo"].domain == "conductor.v1"


async def test_an_id_of_full_length_arrives_whole(wire: Wire) -> None:
    wire.servicer.error = Refusal(Reason.ERROR_REASON_TASK_NOT_FOUND, "No such task.", task_id="a" * 128)
    with refused(grpc.StatusCode.NOT_FOUND) as errors:
        await wire.task()
    assert details(errors[0])["TypedError"].metadata == {"task_id": "a" * 128}


async def test_a_hundred_refusals_at_once_keep_their_own_correlation_ids(wire: Wire) -> None:
    wire.servicer.error = Refusal(Reason.ERROR_REASON_TASK_NOT_FOUND, "No such task.")

    async def one(n: int) -> str:
        with refused(grpc.StatusCode.NOT_FOUND) as errors:
            await wire.task(metadata=(("x-correlation-id", f"corr-{n}"),))
        return str(details(errors[0])["ErrorInfo"].metadata["correlation_id"])

    assert await asyncio.gather(*map(one, range(100))) == [f"corr-{n}" for n in range(100)]
