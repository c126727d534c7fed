"""Looking after runs: what a crash between a decision and what follows from it left undone is done again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import project_pb2, task_pb2

from services.conductor.actor import Actor
from services.conductor.driving import Driving
from services.conductor.protocol import CancelStage, SubmitStage, TellProject
from services.conductor.store.base import StoreUnavailable
from tests.conftest import Running, until
from tests.runs_at_hand import (
    Places,
    Project,
    at_hand,
    at_work,
    check_ended,
    check_log,
    project,
    running,
    stage_of,
    statuses,
)
from tests.test_state import frozen

__all__ = ["project", "running"]  # fixtures

ALL = list(range(1, 9))
NEVER = 3600.0  # seconds: tests look themselves


@pytest.fixture
async def hand(tmp_path: Path) -> AsyncIterator[tuple[Running, Places]]:
    async with at_hand(tmp_path, look=NEVER) as pair:
        yield pair
        events = await pair[0].events()
        check_log(events)


def lose(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[Any]:
    """Loses errands of a kind, as a crash does right after the decision they follow from is durable."""
    lost: list[Any] = []
    start = Actor._start

    def started(self: Actor, box: Any, effects: Any) -> None:
        lost.extend(effect for effect in effects if isinstance(effect, kind))
        start(self, box, [effect for effect in effects if not isinstance(effect, kind)])

    monkeypatch.setattr(Actor, "_start", started)
    return lost


async def looked(running: Running) -> None:
    await Driving(running.store, running.actor).look()


async def test_a_task_that_was_never_made_is_made(
    running: Running, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        lost = lose(patch, SubmitStage)
        state = await project.start(scope=task_pb2.Scope(user_id="ada", desktop_id="desk"), correlation_id="c-1")
        assert len(lost) == 1
    task_id = stage_of(state, "PARSE_INTENT").task_id
    assert await running.events(task_id=task_id) == []
    await looked(running)
    await project.gate("PARSE_INTENT")
    with monkeypatch.context() as patch:
        lost = lose(patch, SubmitStage)
        state = await project.confirm(scope=task_pb2.Scope(user_id="bob", desktop_id="other"))
        assert len(lost) == 1
    await looked(running)
    await project.gate("DATA_SOURCE")
    for number, who in ((1, ("ada", "desk")), (2, ("bob", "other"))):
        story = await running.events(task_id=state.stages[number - 1].task_id)
        assert {(event.scope.user_id, event.scope.desktop_id) for event in story} == {who}
        assert {event.correlation_id for event in story} == {"c-1"}


async def test_an_end_that_was_never_told_is_told(
    running: Running, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        lost = lose(patch, TellProject)
        state = await project.start()
        await until(lambda: lost)
        await running.ended(stage_of(state, "PARSE_INTENT").task_id)
    assert statuses(await project.state()) == "IPPPPPPP"
    await asyncio.gather(*(looked(running) for _ in range(5)))
    await project.gate("PARSE_INTENT")
    before = frozen(await project.state())
    await looked(running)
    assert frozen(await project.state()) == before


@pytest.mark.parametrize("how", ["cancel", "back"])
async def test_a_program_nobody_waits_for_is_killed(
    running: Running, project: Project, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    await project.start({"DATA_SOURCE": "sleep"}, pass_gates=[1])
    await project.at("DATA_SOURCE", "asleep")
    task_id = stage_of(await project.state(), "DATA_SOURCE").task_id
    with monkeypatch.context() as patch:
        lost = lose(patch, CancelStage)
        await (project.cancel() if how == "cancel" else project.move("PARSE_INTENT", {"depth": 2}))
        assert len(lost) == 1
    assert at_work()
    await looked(running)
    assert (await running.ended(task_id)).status == task_pb2.TASK_STATUS_CANCELLED
    if how == "cancel":
        await until(lambda: not at_work())
        check_ended(await running.events())


async def test_nothing_is_done_to_what_goes_well(running: Running, project: Project) -> None:
    await project.start({"DATA_SOURCE": "sleep"}, pass_gates=[1])
    await project.at("DATA_SOURCE", "asleep")
    count = len(await running.events())
    for _ in range(3):
        await looked(running)
    events = await running.events()
    assert not any(event.type == "conductor.task.cancelled" for event in events)
    assert len(events) - count <= 2  # its progress
    [_] = at_work()


async def test_only_running_projects_are_looked_at(running: Running, project: Project) -> None:
    waiting, by_hand = Project(running.stub, "waiting"), Project(running.stub, "by-hand")
    await by_hand.move("PARSE_INTENT", status=project_pb2.STAGE_STATUS_COMPLETED)
    await waiting.start()
    await waiting.gate("PARSE_INTENT")
    await project.start({"PARSE_INTENT": "sleep"})
    await project.at("PARSE_INTENT", "asleep")
    asked: list[Any] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(running.store, name)

        async def row(self, key: Any) -> Any:
            asked.append(key)
            return await running.store.row(key)

    await Driving(Watched(), running.actor).look()  # type: ignore[arg-type]
    assert asked == [("project", "p")], "its task is at work here, so only whether its project still wants it is asked"


async def test_a_store_that_is_away_is_looked_at_again(running: Running, project: Project) -> None:
    class Away:
        down, asked = True, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(running.store, name)

        async def list(self, listing: Any) -> Any:
            self.asked += 1
            if self.down:
                raise StoreUnavailable("FullError: database or disk is full")
            return await running.store.list(listing)

    away = Away()
    driving = Driving(away, running.actor, 0.01)  # type: ignore[arg-type]
    driving.start()
    await until(lambda: away.asked > 2)
    away.down = False
    await project.start(pass_gates=ALL)
    await project.until("COMPLETED")
    await driving.close()
    assert driving._looking is not None and driving._looking.done()
