"""Bad input is told apart: each has its code, reason, field and the caller's correlation id, and leaves no trace."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, error_pb2, project_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from services.common.errors import Reason
from tests.conftest import MARKDOWN, Running, refused
from tests.fakes import Workers, finding, research_result
from tests.test_api import SECONDS_10, detail, head

HEADER = (("x-correlation-id", "corr-h"),)
UNKNOWN = "0192f0c1-0000-7000-8000-000000000000"
TRAIN = project_pb2.STAGE_TRAIN

# A request of each rpc that would be carried out, or refused for its unknown id only.
GOOD: dict[str, Message] = {
    "Execute": conductor_pb2.ExecuteRequest(objective="x", output_mode=MARKDOWN),
    "GetTask": conductor_pb2.GetTaskRequest(task_id=UNKNOWN),
    "ListTasks": conductor_pb2.ListTasksRequest(),
    "CancelTask": conductor_pb2.CancelTaskRequest(task_id=UNKNOWN),
    "GetReport": conductor_pb2.GetTaskReportRequest(task_id=UNKNOWN),
    "GetState": conductor_pb2.GetStateRequest(project_id="p-1"),
    "ListProjects": conductor_pb2.ListProjectsRequest(),
    "TransitionTo": conductor_pb2.TransitionToRequest(project_id="p-1", stage_id=1),
    "WaitForConfirmation": conductor_pb2.WaitForConfirmationRequest(project_id="p-1", stage_id=1),
    "ProposePlan": conductor_pb2.ProposePlanRequest(project_id="p-1", stage_id=1, summary="s"),
    "Confirm": conductor_pb2.ConfirmRequest(project_id="p-1"),
    "SubscribeEvents": conductor_pb2.SubscribeEventsRequest(after_sequence=0),
    "StreamEvents": conductor_pb2.StreamEventsRequest(after_sequence=0),
}
INSTEAD = ("GetReport", "project_id")  # in place of the task
STREAMS = ("SubscribeEvents", "StreamEvents")
SHORT = ("..", ".", "-a", "../etc/passwd", "/", "a/b", "a\\b", "\0", "a\0b", "a\n", "\r\na", "\x07", "\x7f", " ", "a b")
HOSTILE = (*SHORT, "é", "ａ", "\u202ea", "%2e%2e", "a" * 129, "a" * 10_000, "")


async def call(conductor: Running, rpc: str, request: Message, **options: Any) -> Any:
    """Makes a call; of a stream it takes the first message."""
    begun = getattr(conductor.stub, rpc)(request, **options)
    return await (anext(aiter(begun)) if rpc in STREAMS else begun)


def changed(rpc: str, field: str, value: Any) -> Message:
    """Returns a good request with one field changed; a dot leads into a message."""
    request = type(GOOD[rpc])()
    request.CopyFrom(GOOD[rpc])
    *path, last = field.split(".")
    inner: Any = request
    for name in path:
        inner = getattr(inner, name)
    if isinstance(value, list):
        getattr(inner, last).extend(value)
    elif isinstance(value, Message):
        getattr(inner, last).CopyFrom(value)
    else:
        setattr(inner, last, value)
    return request


async def invalid(conductor: Running, rpc: str, request: Message, field: str) -> None:
    """Expects INVALID_ARGUMENT with everything a client needs, and nothing written."""
    before = await head(conductor)
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        await call(conductor, rpc, request, metadata=HEADER)
    info, typed = detail(errors[0], error_details_pb2.ErrorInfo), detail(errors[0], error_pb2.TypedError)
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "conductor.v1")
    assert info.metadata["correlation_id"] == "corr-h" and info.metadata["field"] == field
    assert typed.reason == Reason.ERROR_REASON_INVALID_REQUEST and not typed.retryable
    violations = detail(errors[0], error_details_pb2.BadRequest).field_violations
    assert field in [violation.field for violation in violations]
    assert field in errors[0].details() and len(errors[0].details()) < 500
    assert await head(conductor) == before


def id_fields(request: Message) -> Iterator[str]:
    exact = ("confirmation_id", "plan_id")  # only compared, see below
    for field in request.DESCRIPTOR.fields:
        if field.name.endswith("_id") and field.type == field.TYPE_STRING and field.name not in exact:
            yield field.name
        elif field.name == "scope":
            yield from (f"scope.{part.name}" for part in field.message_type.fields)


# ---- ids ----


@pytest.mark.parametrize("rpc", [rpc for rpc, request in GOOD.items() if list(id_fields(request))])
async def test_a_hostile_id_is_refused_on_every_rpc_that_takes_one(conductor: Running, rpc: str) -> None:
    for field in id_fields(GOOD[rpc]):
        for value in HOSTILE:
            if value or (not field.startswith("scope.") and (rpc, field) != INSTEAD):  # an empty one is an absent one
                request = changed(rpc, field, value)
                if (rpc, field) == INSTEAD:
                    request.ClearField("task_id")
                await invalid(conductor, rpc, request, field)
    assert await head(conductor) == 0


@pytest.mark.parametrize("field", ["confirmation_id", "plan_id"])
async def test_a_hostile_answer_is_stale_or_too_long_and_confirms_nothing(conductor: Running, field: str) -> None:
    for value in (value for value in HOSTILE if value):
        if len(value) > 128:
            await invalid(conductor, "Confirm", changed("Confirm", field, value), field)
            continue
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await call(conductor, "Confirm", changed("Confirm", field, value), metadata=HEADER)
        typed = detail(errors[0], error_pb2.TypedError)
        assert typed.reason == Reason.ERROR_REASON_STALE_CONFIRMATION and typed.metadata["named"] == value
    assert await head(conductor) == 0


UNKNOWN_TASK = ["GetTask", "CancelTask", "GetReport", "SubscribeEvents", "StreamEvents", "SubscribeEvents now"]


@pytest.mark.parametrize("case", UNKNOWN_TASK)
async def test_an_unknown_task_is_not_found_and_not_made(conductor: Running, case: str) -> None:
    rpc, now = case.split()[0], case.endswith("now")
    await call(conductor, "TransitionTo", GOOD["TransitionTo"])
    before = await head(conductor)
    for task_id in (UNKNOWN, "p-1", "a" * 100):  # a project's id is no task's
        request: Any = changed(rpc, "task_id", task_id)
        if now:
            request.ClearField("after_sequence")
        with refused(grpc.StatusCode.NOT_FOUND) as errors:
            await call(conductor, rpc, request, metadata=HEADER)
        typed = detail(errors[0], error_pb2.TypedError)
        assert (typed.reason, typed.metadata) == (Reason.ERROR_REASON_TASK_NOT_FOUND, {"task_id": task_id})
        assert detail(errors[0], error_details_pb2.ErrorInfo).metadata["correlation_id"] == "corr-h"
    assert await head(conductor) == before
    assert not (await conductor.stub.ListTasks(conductor_pb2.ListTasksRequest())).tasks


async def test_reading_never_creates(conductor: Running) -> None:
    states = await asyncio.gather(
        *(conductor.stub.GetState(conductor_pb2.GetStateRequest(project_id=f"p-{n}")) for n in range(1000))
    )
    assert {state.current_stage for state in states} == {project_pb2.STAGE_PARSE_INTENT}
    assert not any(state.HasField("created_at") or state.as_of_sequence for state in states)
    for project_id in ("p-1", "p-2"):
        request = conductor_pb2.SubscribeEventsRequest(project_id=project_id)
        assert (await call(conductor, "SubscribeEvents", request)).snapshot.project.project_id == project_id
    assert not (await conductor.stub.ListProjects(conductor_pb2.ListProjectsRequest())).projects
    assert await head(conductor) == 0 and await conductor.events() == []


# ---- texts, numbers, times ----

BLANK = "\u00a0 \u2003 \u3000 \u200b \ufeff \u2800 \u3164 \u115f \u1160 \uffa0 \u180e \u00ad \u200e \u2028 \U000e0020"
INVISIBLE = "\ufe0f \u034f \u17b4 \u180b \U000e0100"


@pytest.mark.parametrize("objective", ["", " ", "\t\r\n", *BLANK.split(" "), BLANK], ids=ascii)
async def test_an_objective_without_a_visible_character_is_refused(conductor: Running, objective: str) -> None:
    await invalid(conductor, "Execute", changed("Execute", "objective", objective), "objective")


async def test_an_objective_of_invisible_marks_is_refused(conductor: Running) -> None:
    for objective in INVISIBLE.split():
        await invalid(conductor, "Execute", changed("Execute", "objective", objective * 3), "objective")


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x0b", "\x0c"], ids=ascii)
async def test_control_characters_in_an_objective_are_refused(conductor: Running, character: str) -> None:
    await invalid(conductor, "Execute", changed("Execute", "objective", f"a{character}b"), "objective")


async def test_an_objective_is_measured_in_characters(conductor: Running) -> None:
    assert (await conductor.execute("\U0001f600" * 16_384, wait=SECONDS_10)).status == task_pb2.TASK_STATUS_COMPLETED
    await invalid(conductor, "Execute", changed("Execute", "objective", "a" * 16_385), "objective")
    await invalid(conductor, "Execute", changed("Execute", "objective", "a" * 4_000_000), "objective")


DURATION = duration_pb2.Duration
BAD = [
    *(("Execute", "output_mode", number) for number in (0, 2, 99, -1)),
    *(("Execute", "wait", wait) for wait in (DURATION(seconds=61), DURATION(seconds=60, nanos=1), DURATION(nanos=-1))),
    *(("Execute", "hints.deadline", wait) for wait in (DURATION(nanos=1), DURATION(seconds=86_401))),
    ("Execute", "hints.max_attempts", 6),
    ("Execute", "hints.research.max_findings", 51),
    *(("TransitionTo", "stage_id", number) for number in (0, 9, 99, -1)),
    *(("TransitionTo", "status", number) for number in (1, 3, 7, 99, -1)),
    *(("WaitForConfirmation", "stage_id", number) for number in (0, 9, -1)),
    *(("ProposePlan", "stage_id", number) for number in (0, 9, -1)),
    *(("ProposePlan", "summary", text) for text in ("", " ", "\u3000", "a" * 4001)),
    *(("Confirm", "stage_id", number) for number in (9, -1)),
    *(("ListTasks", "status", number) for number in (7, 99, -1)),
    *((rpc, "page_size", size) for rpc in ("ListTasks", "ListProjects") for size in (-1, 1001)),
    *(
        (rpc, "page_token", text)
        for rpc in ("ListTasks", "ListProjects")
        for text in ("x", "é", "\0", "e30=", "a" * 1025)
    ),
    *((rpc, "after_sequence", -1) for rpc in STREAMS),
    ("CancelTask", "reason", "a" * 4001),
    ("TransitionTo", "message", "a" * 4001),
    ("WaitForConfirmation", "summary", "a" * 4001),
    ("Confirm", "reason", "a" * 4001),
]


@pytest.mark.parametrize(("rpc", "field", "value"), BAD, ids=lambda part: ascii(part)[:30])
async def test_a_value_out_of_its_range_is_refused_by_its_field(
    conductor: Running, rpc: str, field: str, value: Any
) -> None:
    await invalid(conductor, rpc, changed(rpc, field, value), field)


COMMAND = terminal_pb2.Command(argv=["ls"])
BAD_LISTS = [
    ("Execute", "hints.capabilities", [0], "hints.capabilities[0]"),
    ("Execute", "hints.capabilities", [1, 3], "hints.capabilities[1]"),
    ("Execute", "hints.capabilities", [1, 1], "hints.capabilities"),
    ("Execute", "hints.capabilities", [2], "hints.commands"),
    ("Execute", "hints.commands", [COMMAND] * 17, "hints.commands"),
    ("Execute", "hints.commands", [terminal_pb2.Command()], "hints.commands[0].argv"),
    ("Execute", "hints.commands", [terminal_pb2.Command(argv=["ls"], script="ls")], "hints.commands[0].argv"),
    ("Execute", "hints.commands", [terminal_pb2.Command(argv=[""])], "hints.commands[0].argv"),
    ("Execute", "hints.research.sources", [""], "hints.research.sources[0]"),
    ("WaitForConfirmation", "next_actions", ["a"] * 21, "next_actions"),
    ("WaitForConfirmation", "next_actions", ["a" * 501], "next_actions[0]"),
    ("ProposePlan", "steps", ["a"] * 51, "steps"),
    ("SubscribeEvents", "types", ["a"] * 33, "types"),
    ("StreamEvents", "types", ["../x"], "types[0]"),
]


@pytest.mark.parametrize(("rpc", "field", "values", "named"), BAD_LISTS)
async def test_a_list_that_breaks_its_rule_is_refused_by_its_item(
    conductor: Running, rpc: str, field: str, values: list[Any], named: str
) -> None:
    await invalid(conductor, rpc, changed(rpc, field, values), named)


async def test_a_rejection_without_a_reason_is_refused(conductor: Running) -> None:
    for reason in ("", " ", "\u3000"):
        request = conductor_pb2.ConfirmRequest(project_id="p-1", approved=False, reason=reason)
        await invalid(conductor, "Confirm", request, "reason")


async def test_a_wait_of_sixty_seconds_is_allowed(conductor: Running) -> None:
    assert (await conductor.execute(wait=DURATION(seconds=60))).status == task_pb2.TASK_STATUS_COMPLETED


@pytest.mark.parametrize("rpc", STREAMS)
async def test_a_cursor_beyond_the_log_is_out_of_range(conductor: Running, rpc: str) -> None:
    await conductor.execute(wait=SECONDS_10)
    at = await head(conductor)
    for after in (at + 1, 2**63 - 1):
        with refused(grpc.StatusCode.OUT_OF_RANGE) as errors:
            await call(conductor, rpc, changed(rpc, "after_sequence", after))
        typed = detail(errors[0], error_pb2.TypedError)
        assert typed.reason == Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE
        assert typed.metadata == {"after_sequence": str(after), "low": "0", "head": str(at)}


@pytest.mark.parametrize("cursor", ["-1", "x", "1.5", "9" * 30, "1e3", " 1", "0x1"])
async def test_a_last_event_id_that_is_no_sequence_is_refused(conductor: Running, cursor: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        await call(conductor, "StreamEvents", GOOD["StreamEvents"], metadata=(("last-event-id", cursor),))
    assert detail(errors[0], error_details_pb2.BadRequest).field_violations[0].field == "last-event-id"


# ---- page tokens ----


async def token_of(conductor: Running) -> str:
    for objective in ("one", "two"):
        await conductor.execute(objective, wait=SECONDS_10)
    page = await conductor.stub.ListTasks(conductor_pb2.ListTasksRequest(page_size=1))
    return str(page.next_page_token)


async def test_a_page_token_of_another_list_is_refused(conductor: Running) -> None:
    token = await token_of(conductor)
    for filters in ({"status": 4}, {"project_id": "p-1"}, {"desktop_id": "default"}):
        request = conductor_pb2.ListTasksRequest(page_token=token, **filters)
        await invalid(conductor, "ListTasks", request, "page_token")
    await invalid(conductor, "ListProjects", conductor_pb2.ListProjectsRequest(page_token=token), "page_token")


@pytest.mark.parametrize(
    "position",
    [[10**30, "x"], [-(10**30), "x"], [1, "\ud800"], [1.5, "x"], [True, "x"]],
    ids=["huge", "low", "surrogate", "fraction", "truth"],
)
async def test_a_forged_page_token_is_a_callers_mistake(conductor: Running, position: list[Any]) -> None:
    name = json.loads(base64.urlsafe_b64decode(await token_of(conductor)))[0]
    token = base64.urlsafe_b64encode(json.dumps([name, *position]).encode()).decode()
    await invalid(conductor, "ListTasks", conductor_pb2.ListTasksRequest(page_token=token), "page_token")


# ---- what one caller writes, every other can still read ----

TYPED = error_pb2.TypedError


@pytest.mark.parametrize("error", [TYPED(), TYPED(reason=99, kind=77), TYPED(reason=13, message="m" * 100_000)])
async def test_a_stages_error_is_checked_like_any_input(conductor: Running, error: error_pb2.TypedError) -> None:
    request = conductor_pb2.TransitionToRequest(project_id="p-1", stage_id=1, status=5, error=error)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await conductor.stub.TransitionTo(request)


async def readable(conductor: Running) -> None:
    """Reads the log and the list as any client would, until everything so far was seen."""
    at = await head(conductor)
    async for event in conductor.stub.SubscribeEvents(GOOD["SubscribeEvents"]):
        if event.sequence == at:
            break
    await conductor.stub.ListTasks(conductor_pb2.ListTasksRequest(page_size=1000))


async def test_no_accepted_task_makes_an_event_clients_cannot_read(conductor: Running) -> None:
    accepted = 0
    for stdin in (100_000, 150_000, 300_000, 1_000_000):  # of each of twelve commands
        commands = [terminal_pb2.Command(argv=["cat"], stdin=b"x" * stdin)] * 12
        before = await head(conductor)
        try:
            await conductor.execute(hints=task_pb2.Hints(capabilities=[2], commands=commands), wait=SECONDS_10)
            accepted += 1
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert await head(conductor) == before
    assert accepted > 0
    await readable(conductor)


async def test_no_answer_of_a_worker_makes_an_event_clients_cannot_read(conductor: Running, workers: Workers) -> None:
    async def finds_much(_: Any) -> Any:
        return [research_result(finding("x" * 5_000_000))]

    workers.research = finds_much
    await conductor.execute(wait=SECONDS_10)
    await readable(conductor)


async def test_no_page_is_larger_than_clients_can_read(conductor: Running) -> None:
    await asyncio.gather(*(conductor.execute("\U0001f600" * 16_384, wait=SECONDS_10) for _ in range(70)))
    await readable(conductor)
