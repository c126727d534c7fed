"""Confirm is exact: the walks a person takes through a project's gates over the wire, and answers that come late."""

import asyncio
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, event_pb2, project_pb2

from services.common.errors import Reason
from tests.conftest import Running, refused
from tests.test_api import head, reason_of

P = "p-1"
STAGES = [stage for stage in project_pb2.Stage.values() if stage]
PARSE_INTENT, DATA_SOURCE, EXPORT = STAGES[0], STAGES[1], STAGES[-1]
IN_PROGRESS = project_pb2.STAGE_STATUS_IN_PROGRESS
WAITING = project_pb2.STAGE_STATUS_WAITING_CONFIRMATION
COMPLETED = project_pb2.STAGE_STATUS_COMPLETED
PENDING = project_pb2.STAGE_STATUS_PENDING
FAILED = project_pb2.STAGE_STATUS_FAILED


async def confirm(conductor: Running, **fields: Any) -> project_pb2.ProjectState:
    request = conductor_pb2.ConfirmRequest(project_id=P, **fields)
    state: project_pb2.ProjectState = await conductor.stub.Confirm(request)
    return state


async def state_of(conductor: Running) -> project_pb2.ProjectState:
    state: project_pb2.ProjectState = await conductor.stub.GetState(conductor_pb2.GetStateRequest(project_id=P))
    return state


async def ask(conductor: Running, stage: int, **fields: Any) -> project_pb2.ProjectState:
    request = conductor_pb2.WaitForConfirmationRequest(project_id=P, stage_id=stage, summary="Look.", **fields)
    state: project_pb2.ProjectState = await conductor.stub.WaitForConfirmation(request)
    return state


async def propose(conductor: Running, stage: int) -> project_pb2.ProjectState:
    request = conductor_pb2.ProposePlanRequest(project_id=P, stage_id=stage, summary="So.", steps=["one", "two"])
    state: project_pb2.ProjectState = await conductor.stub.ProposePlan(request)
    return state


async def move(conductor: Running, stage: int, status: int = 0) -> project_pb2.ProjectState:
    request = conductor_pb2.TransitionToRequest(project_id=P, stage_id=stage, status=status)
    state: project_pb2.ProjectState = await conductor.stub.TransitionTo(request)
    return state


def statuses(state: project_pb2.ProjectState) -> list[int]:
    return [stage.status for stage in state.stages]


async def since(conductor: Running, sequence: int) -> list[event_pb2.Event]:
    return [event for event in await conductor.events(project_id=P) if event.sequence > sequence]


async def stays(conductor: Running, cause: int, /, **fields: Any) -> dict[str, str]:
    """Expects an answer to be refused, with the state byte-equal and nothing written; returns the metadata."""
    before, at = await state_of(conductor), await head(conductor)
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
        await confirm(conductor, **fields)
    assert reason_of(errors).reason == cause and not reason_of(errors).retryable
    after = await state_of(conductor)
    assert after.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)
    assert await head(conductor) == at
    return dict(reason_of(errors).metadata)


STALE, NOTHING = Reason.ERROR_REASON_STALE_CONFIRMATION, Reason.ERROR_REASON_NOTHING_TO_CONFIRM


async def test_confirming_by_hand_walks_through_all_stages_and_then_there_is_nothing_left(conductor: Running) -> None:
    for n, stage in enumerate(STAGES):
        at = await head(conductor)
        state = await confirm(conductor, stage_id=stage)
        last = stage == EXPORT
        assert state.current_stage == (stage if last else STAGES[n + 1])
        expected = [COMPLETED] * (n + 1) + ([] if last else [IN_PROGRESS]) + [PENDING] * (8 - n - 2)
        assert statuses(state) == expected
        told = [e for e in await since(conductor, at) if e.type == "STAGE_STATUS"]
        assert [(e.stage_status.stage_id, e.stage_status.status) for e in told] == [
            (stage, COMPLETED),
            *([] if last else [(STAGES[n + 1], IN_PROGRESS)]),
        ]
        assert last or told[1].sequence == told[0].sequence + 1
        assert state == await state_of(conductor)
    found = await stays(conductor, NOTHING)
    assert found["found"] == "STAGE_STATUS_COMPLETED" and found["stage_id"] == "STAGE_EXPORT"
    await stays(conductor, NOTHING, approved=False, reason="no")
    await stays(conductor, NOTHING, stage_id=EXPORT)


async def test_approving_what_waits_moves_one_stage_and_tells_it_together(conductor: Running) -> None:
    waiting = await ask(conductor, PARSE_INTENT, next_actions=["yes", "no"])
    open_one = waiting.waiting_confirmation
    assert statuses(waiting)[:2] == [WAITING, PENDING] and open_one.next_actions == ["yes", "no"]
    assert open_one.summary == "Look." and open_one.confirmation_id and open_one.HasField("requested_at")
    planned = await propose(conductor, PARSE_INTENT)
    assert planned.plan_pending and planned.stages[0].plan_pending and not planned.plan_approved
    at = await head(conductor)
    state = await confirm(
        conductor,
        stage_id=PARSE_INTENT,
        confirmation_id=open_one.confirmation_id,
        plan_id=planned.plan.plan_id,
    )
    assert statuses(state)[:2] == [COMPLETED, IN_PROGRESS] and state.current_stage == DATA_SOURCE
    assert state.plan_approved and not state.plan_pending and not state.HasField("waiting_confirmation")
    events = await since(conductor, at)
    assert [e.type for e in events] == ["CONFIRMATION_ANSWERED", "PLAN_APPROVED", "STAGE_STATUS", "STAGE_STATUS"]
    assert [e.sequence for e in events] == list(range(at + 1, at + 5))
    answered = events[0].confirmation_answered
    assert (answered.approved, answered.confirmation_id) == (True, open_one.confirmation_id)
    assert answered.plan_id == planned.plan.plan_id and state.as_of_sequence == at + 4


async def test_rejecting_sends_the_stage_back_to_work_with_the_reason(conductor: Running) -> None:
    waiting = await ask(conductor, PARSE_INTENT)
    await propose(conductor, PARSE_INTENT)
    state = await confirm(conductor, approved=False, reason="Wrong target.")
    assert statuses(state) == [IN_PROGRESS] + [PENDING] * 7 and state.current_stage == PARSE_INTENT
    assert state.stages[0].message == "Wrong target." and not state.plan_pending and not state.plan_approved
    assert not state.HasField("waiting_confirmation")
    await stays(conductor, STALE, confirmation_id=waiting.waiting_confirmation.confirmation_id)
    again = await ask(conductor, PARSE_INTENT)
    assert again.waiting_confirmation.confirmation_id != waiting.waiting_confirmation.confirmation_id


async def test_an_answer_to_what_no_longer_waits_is_stale(conductor: Running) -> None:
    first = (await ask(conductor, PARSE_INTENT)).waiting_confirmation.confirmation_id
    second = (await ask(conductor, PARSE_INTENT)).waiting_confirmation.confirmation_id
    old_plan = (await propose(conductor, PARSE_INTENT)).plan.plan_id
    plan = (await propose(conductor, PARSE_INTENT)).plan.plan_id
    assert len({first, second, old_plan, plan}) == 4
    found = await stays(conductor, STALE, confirmation_id=first)
    assert (found["named"], found["found"]) == (first, second)
    assert (await stays(conductor, STALE, plan_id=old_plan))["found"] == plan
    assert (await stays(conductor, STALE, stage_id=DATA_SOURCE))["found"] == "STAGE_PARSE_INTENT"
    for wrong in ({"stage_id": EXPORT}, {"confirmation_id": "x"}, {"plan_id": "x"}):
        right = {"stage_id": PARSE_INTENT, "confirmation_id": second, "plan_id": plan}
        await stays(conductor, STALE, **{**right, **wrong})
        await stays(conductor, STALE, **{**right, **wrong}, approved=False, reason="no")
    assert (await confirm(conductor, stage_id=PARSE_INTENT, confirmation_id=second, plan_id=plan)).plan_approved


async def test_a_confirmation_of_another_project_is_stale_here(conductor: Running) -> None:
    elsewhere = await conductor.stub.WaitForConfirmation(
        conductor_pb2.WaitForConfirmationRequest(project_id="p-2", stage_id=PARSE_INTENT)
    )
    await ask(conductor, PARSE_INTENT)
    await stays(conductor, STALE, confirmation_id=elsewhere.waiting_confirmation.confirmation_id)


async def test_going_back_voids_what_waits_and_resets_what_came_later(conductor: Running) -> None:
    await confirm(conductor)
    await confirm(conductor)
    waiting = await ask(conductor, STAGES[2])
    await propose(conductor, STAGES[2])
    state = await move(conductor, PARSE_INTENT)
    assert statuses(state) == [IN_PROGRESS] + [PENDING] * 7 and not state.plan_pending and not state.HasField("plan")
    assert not any(s.HasField("started_at") or s.HasField("completed_at") or s.message for s in state.stages[1:])
    await stays(conductor, STALE, confirmation_id=waiting.waiting_confirmation.confirmation_id)
    await stays(conductor, STALE, stage_id=STAGES[2])


@pytest.mark.parametrize("status", [FAILED, project_pb2.STAGE_STATUS_SKIPPED])
async def test_a_stage_that_failed_or_was_left_out_has_nothing_to_confirm(conductor: Running, status: int) -> None:
    await move(conductor, PARSE_INTENT, status)
    found = await stays(conductor, NOTHING)
    assert found["found"] == project_pb2.StageStatus.Name(status) and "STAGE_STATUS_IN_PROGRESS" in found["allowed"]


@pytest.mark.parametrize("clicks", [2, 20])
async def test_a_double_click_that_names_its_stage_moves_once(conductor: Running, clicks: int) -> None:
    await ask(conductor, PARSE_INTENT)
    answers = await asyncio.gather(
        *(confirm(conductor, stage_id=PARSE_INTENT) for _ in range(clicks)), return_exceptions=True
    )
    moved = [answer for answer in answers if isinstance(answer, project_pb2.ProjectState)]
    lost = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(moved) == 1 and len(lost) == clicks - 1
    assert {error.code() for error in lost} <= {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED}
    assert statuses(await state_of(conductor)) == [COMPLETED, IN_PROGRESS] + [PENDING] * 6


async def test_approving_and_rejecting_at_once_lets_exactly_one_win(conductor: Running) -> None:
    waits = (await ask(conductor, PARSE_INTENT)).waiting_confirmation.confirmation_id
    answers = await asyncio.gather(
        confirm(conductor, confirmation_id=waits),
        confirm(conductor, confirmation_id=waits, approved=False, reason="no"),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, project_pb2.ProjectState) for answer in answers) == 1
    told = [e for e in await conductor.events(project_id=P) if e.type == "CONFIRMATION_ANSWERED"]
    assert len(told) == 1


async def test_the_same_request_confirms_once_and_gets_the_first_answer_again(conductor: Running) -> None:
    first = await confirm(conductor, request_id="r-1")
    await confirm(conductor, request_id="r-2")
    again = await asyncio.gather(*(confirm(conductor, request_id="r-1") for _ in range(10)))
    assert all(answer == first for answer in again)
    assert (await state_of(conductor)).current_stage == STAGES[2]
    with refused(grpc.StatusCode.ALREADY_EXISTS) as errors:
        await confirm(conductor, request_id="r-1", stage_id=PARSE_INTENT)
    assert reason_of(errors).reason == Reason.ERROR_REASON_REQUEST_ID_REUSED


async def test_skipping_forward_is_refused_with_the_moves_that_are_allowed(conductor: Running) -> None:
    for stage in STAGES[1:]:
        at = await head(conductor)
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await move(conductor, stage)
        error = reason_of(errors)
        assert error.reason == Reason.ERROR_REASON_ILLEGAL_TRANSITION
        assert error.metadata["found"] == "STAGE_STATUS_IN_PROGRESS" and error.metadata["allowed"]
        assert error.metadata["allowed"] in error.message and await head(conductor) == at


@pytest.mark.parametrize("call", [ask, propose])
async def test_only_the_current_stage_is_put_before_a_person(conductor: Running, call: Any) -> None:
    await confirm(conductor)
    for stage in (PARSE_INTENT, *STAGES[2:]):
        at = await head(conductor)
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await call(conductor, stage)
        assert reason_of(errors).reason == Reason.ERROR_REASON_ILLEGAL_TRANSITION and await head(conductor) == at


async def test_a_refusal_names_every_move_that_is_allowed(conductor: Running) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
        await move(conductor, EXPORT)
    allowed = reason_of(errors).metadata["allowed"].split(", ")
    assert {"STAGE_PARSE_INTENT→STAGE_STATUS_FAILED", "Confirm", "ProposePlan", "WaitForConfirmation"} <= set(allowed)
