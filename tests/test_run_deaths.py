"""A Conductor that dies right behind a commit of a run, whichever that is: the next one ends what was begun."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import project_pb2

from services.conductor.driving import Driving
from tests.conftest import Running, start_conductor, until
from tests.runs_at_hand import LOOK_S, Places, Project, RunStatus, at_work, check_ended, check_log, statuses, tiny
from tests.terminals import open_folder

ALL = list(range(1, 9))
ENDS = {"cancel": "CANCELLED"}


class Deadly:
    """A store behind which the process dies: at its nth commit, which is durable and which nobody hears of."""

    def __init__(self, real: Any, commits: float) -> None:
        self._real = real
        self._left = commits
        self.dead = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def append(self, append: Any) -> Any:
        outcome = await self._real.append(append)
        self._left -= 1
        if self._left <= 0:
            self.dead.set()
            await asyncio.Event().wait()
        return outcome


@contextlib.asynccontextmanager
async def life(folder: Path, places: Places, commits: float = float("inf")) -> AsyncIterator[Running]:
    """Serves a Conductor on the folder's log until the block ends, then kills it."""

    def wrap(real: Any) -> Any:
        return Deadly(real, commits)

    running = await start_conductor(folder / "c.db", places, programs=tiny(), wrap=wrap)  # type: ignore[arg-type]
    driving = Driving(running.store, running.actor, LOOK_S)
    driving.start()
    try:
        yield running
    finally:
        await driving.close()
        await running.kill()


async def begin(project: Project, how: str) -> None:
    """Does what a person does, as long as there is somebody who answers."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        if how == "pass":
            await project.start(pass_gates=ALL, request_id="r")
            return
        await project.start({"DATA_SOURCE": "sleep"} if how == "cancel" else {}, pass_gates=[3, 4, 5, 6, 7, 8])
        await project.gate("PARSE_INTENT")
        await project.confirm({"depth": 2})
        if how == "cancel":
            await project.at("DATA_SOURCE", "asleep")
            await project.cancel()
        else:
            await project.gate("DATA_SOURCE")
            await project.confirm()


async def died(folder: Path, how: str, commits: int) -> bool:
    """Has a Conductor die at a commit of a run, and another one end it. Tells whether there was such a commit."""
    with open_folder() as workspaces:
        places = await Places(folder, workspaces).start()
        try:
            async with life(folder, places, commits) as running:
                doing = asyncio.create_task(begin(Project(running.stub), how))
                dead = asyncio.create_task(running.store.dead.wait())
                end = asyncio.create_task(ended(Project(running.stub), how))
                await asyncio.wait([dead, end], return_when=asyncio.FIRST_COMPLETED)
                for task in (doing, dead, end):
                    task.cancel()
                await asyncio.wait([doing, dead, end])
                there = running.store.dead.is_set()
            async with life(folder, places) as running:
                project = Project(running.stub)
                await go_on(project, how)
                await until(lambda: not at_work())
                state = await project.state()
                assert statuses(state) == ("CFPPPPPP" if how == "cancel" else "C" * 8), state.run.status
                await until(lambda: all_ended(running))
                check_log(await running.events())
            return there
        finally:
            await places.stop()


async def all_ended(running: Running) -> bool:
    with contextlib.suppress(AssertionError):
        check_ended(await running.events())
        return True
    return False


async def ended(project: Project, how: str) -> None:
    async def look() -> bool:
        return name_of(await project.state()) == ENDS.get(how, "COMPLETED")

    with contextlib.suppress(grpc.aio.AioRpcError):
        await until(look, 30)


async def go_on(project: Project, how: str) -> None:
    """Goes on from where the state says that the run is, as a person does who has had no answer."""

    async def look() -> bool:
        state = await project.state()
        if not state.HasField("run"):
            await begin(project, how)
        elif state.run.status == RunStatus.RUN_STATUS_WAITING_CONFIRMATION:
            again = state.current_stage == 1 and state.stages[0].attempt == 1
            await project.confirm({"depth": 2} if again else None)
        elif how == "cancel" and state.current_stage == 2 and state.run.status == RunStatus.RUN_STATUS_RUNNING:
            await project.cancel()
        return name_of(state) == ENDS.get(how, "COMPLETED")

    await until(look, 30)


def name_of(state: project_pb2.ProjectState) -> str:
    return RunStatus.Name(state.run.status).removeprefix("RUN_STATUS_")


@pytest.mark.parametrize(("how", "commits"), [("pass", 14), ("confirm", 12), ("cancel", 11)])
async def test_whoever_comes_after_a_death_ends_what_was_begun(tmp_path: Path, how: str, commits: int) -> None:
    assert await died(tmp_path, how, commits), "there was no such commit"
