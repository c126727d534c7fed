"""Runs of projects at hand: a whole Conductor before a real Terminal and a real ReportWriter, with tiny programs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, event_pb2, project_pb2, report_writer_pb2_grpc, task_pb2, terminal_pb2_grpc

from services.common.boundary import new_id
from services.common.config import TerminalSettings, load
from services.common.server import Service
from services.conductor.driving import Driving
from services.conductor.state.task_state import TERMINAL
from services.report_writer.files import Folder
from services.report_writer.service import FULL_NAME as REPORT_WRITER
from services.report_writer.service import ReportWriter
from services.terminal import policy, programs
from services.terminal.calls import Calls
from services.terminal.sandbox import Sandbox
from services.terminal.service import FULL_NAME as TERMINAL_NAME
from services.terminal.service import TerminalService
from tests.conftest import Running, start_conductor, until
from tests.terminals import open_folder
from tests.test_events import check_project_log, check_task_log

MIB = 1024 * 1024
PYTHON = "/usr/bin/python3"
MARK = f"# {new_id()}"  # by which our own programs are known among all processes of the machine
SOURCE = (Path(__file__).with_name("tiny_stages") / "stage.py").read_text() + MARK
Stage, Status, RunStatus = project_pb2.Stage, project_pb2.StageStatus, project_pb2.RunStatus
STAGES = [stage for stage in Stage.values() if stage]
POLL_S = 0.04  # seconds between two looks at a state, beyond those of `until`: each costs as much as an event
LOOK_S = 0.2  # seconds between two looks of driving


def tiny(**changes: Any) -> list[project_pb2.StageProgram]:
    """Returns the tiny program for every stage; changes are fields of all. The program needs no file: it is given."""
    made = []
    for stage in STAGES:
        program = project_pb2.StageProgram(
            stage_id=stage,
            argv=[PYTHON, "-I", "-S", "-c", SOURCE],
            gate=True,
            memory_bytes=256 * MIB,
            threads=1,
            report=stage == Stage.STAGE_EXPORT,
        )
        for name, seconds in {"wall_time": 30, "cpu_time": 10}.items():
            getattr(program, name).FromSeconds(changes.get(name, seconds))
        for name in changes.keys() - {"wall_time", "cpu_time"}:
            setattr(program, name, changes[name])
        made.append(program)
    return made


class Places:
    """A Terminal and a ReportWriter in this process, on ports that stay theirs."""

    def __init__(self, folder: Path, workspaces: Path) -> None:
        self.folder = folder
        self.workspaces = workspaces
        self.ports = {"terminal": 0, "writer": 0}

    async def start(self) -> "Places":
        await self.start_terminal()
        await self.start_writer()
        return self

    async def start_terminal(self) -> None:
        settings = load(TerminalSettings, {"TERMINAL_WORKSPACES": str(self.workspaces), "TERMINAL_MAX_COMMANDS": "8"})
        rules = programs.load(settings)
        self.sandbox = Sandbox(settings, policy.allowed(settings.tier, rules.execute_paths()), rules)
        await self.sandbox.start()
        self.calls = Calls(settings.workspaces / "calls", settings.keep_calls, settings.calls_bytes)
        await self.calls.start()
        self.terminal = Service(f"127.0.0.1:{self.ports['terminal']}", [TERMINAL_NAME])
        servicer = TerminalService(self.sandbox, self.calls, settings)
        terminal_pb2_grpc.add_TerminalServicer_to_server(servicer, self.terminal.server)
        await self.terminal.start()
        self.ports["terminal"] = self.terminal.port

    async def stop_terminal(self) -> None:
        await self.sandbox.close()
        await self.terminal.stop(1)
        self.sandbox.rooms.close()
        await self.calls.close()

    async def start_writer(self) -> None:
        self.writer = Service(f"127.0.0.1:{self.ports['writer']}", [REPORT_WRITER], multiplexed=True)
        servicer = ReportWriter(Folder.open(self.folder / "reports"), 8 * MIB)
        report_writer_pb2_grpc.add_ReportWriterServicer_to_server(servicer, self.writer.server)
        await self.writer.start()
        self.ports["writer"] = self.writer.port

    async def stop(self) -> None:
        await self.stop_terminal()
        await self.writer.stop(0)

    def targets(self) -> dict[task_pb2.Capability.ValueType, str]:
        terminal, writer = (f"127.0.0.1:{self.ports[name]}" for name in ("terminal", "writer"))
        return {
            task_pb2.CAPABILITY_RESEARCHER: writer,
            task_pb2.CAPABILITY_TERMINAL: terminal,
            task_pb2.CAPABILITY_REPORT_WRITER: writer,
        }

    def rooms(self) -> list[Path]:
        """Returns the folders of runs that the Terminal has."""
        return [path.parent for path in self.workspaces.rglob("envelope.json")]


class Project:
    """One project, as a client sees it."""

    def __init__(self, stub: Any, project_id: str = "p") -> None:
        self.stub = stub
        self.id = project_id

    async def start(self, ways: dict[str, Any] | None = None, **fields: Any) -> project_pb2.ProjectState:
        """Begins a run; `ways` are its hints: how each stage shall go."""
        options = project_pb2.RunOptions(pass_gates=fields.pop("pass_gates", []), seed=fields.pop("seed", 0))
        options.hints.update(ways or {})
        objective = fields.pop("objective", "predict species")
        request = conductor_pb2.StartProjectRequest(project_id=self.id, objective=objective, options=options, **fields)
        return await self.stub.StartProject(request)

    async def state(self) -> project_pb2.ProjectState:
        return await self.stub.GetState(conductor_pb2.GetStateRequest(project_id=self.id))

    async def confirm(self, edits: dict[str, Any] | None = None, **fields: Any) -> project_pb2.ProjectState:
        request = conductor_pb2.ConfirmRequest(project_id=self.id, **fields)
        request.edits.update(edits or {})
        return await self.stub.Confirm(request)

    async def move(self, stage: str, edits: dict[str, Any] | None = None, **fields: Any) -> project_pb2.ProjectState:
        request = conductor_pb2.TransitionToRequest(
            project_id=self.id, stage_id=Stage.Value(f"STAGE_{stage}"), **fields
        )
        request.edits.update(edits or {})
        return await self.stub.TransitionTo(request)

    async def cancel(self, reason: str = "") -> project_pb2.ProjectState:
        return await self.stub.CancelRun(conductor_pb2.CancelRunRequest(project_id=self.id, reason=reason))

    async def until(self, status: str, stage: str = "", seconds: float = 20) -> project_pb2.ProjectState:
        """Waits until the run has a status, at a stage."""

        async def look() -> project_pb2.ProjectState | None:
            state = await self.state()
            there = not stage or state.current_stage == Stage.Value(f"STAGE_{stage}")
            found = RunStatus.Name(state.run.status).removeprefix("RUN_STATUS_")
            assert found in (status, "RUNNING", "WAITING_CONFIRMATION"), state.stages[state.current_stage - 1]
            if there and found == status:
                return state
            await asyncio.sleep(POLL_S)
            return None

        found: project_pb2.ProjectState = await until(look, seconds)
        return found

    async def gate(self, stage: str, seconds: float = 20) -> project_pb2.ProjectState:
        return await self.until("WAITING_CONFIRMATION", stage, seconds)

    async def at(self, stage: str, text: str) -> None:
        """Waits until a stage's program has said something."""

        async def look() -> bool:
            state = await self.state()
            task_id = state.stages[Stage.Value(f"STAGE_{stage}") - 1].task_id
            return any([text in event.task_progress.message async for event in self._events(task_id)])

        await until(look, 20)

    async def _events(self, task_id: str) -> AsyncIterator[event_pb2.Event]:
        request = conductor_pb2.SubscribeEventsRequest(after_sequence=0, task_id=task_id)
        call = self.stub.SubscribeEvents(request)
        with contextlib.suppress(asyncio.TimeoutError, grpc.aio.AioRpcError):  # it may not be there yet
            async with asyncio.timeout(0.15):
                async for event in call:
                    yield event
        call.cancel()


def at_work() -> list[int]:
    """Returns the processes that do the work of a stage now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if MARK.encode() in path.read_bytes().split(b"\0")[-3:][0]:
                found.append(int(path.parent.name))
    return found


def stage_of(state: project_pb2.ProjectState, stage: str) -> project_pb2.StageState:
    return state.stages[Stage.Value(f"STAGE_{stage}") - 1]


def statuses(state: project_pb2.ProjectState) -> str:
    """Returns the statuses of all stages, a letter each: P(ending) I W C F S."""
    return "".join(Status.Name(stage.status).removeprefix("STAGE_STATUS_")[0] for stage in state.stages)


def check_log(events: Sequence[event_pb2.Event], project_id: str = "p") -> None:
    """What must hold of the log of a project with runs, and of the tasks of its stages.

    Started means ended; every attempt at a stage has one task, and at most one result.
    """
    mine = [event for event in events if event.project_id == project_id]
    log = [event for event in mine if not event.task_id]
    check_project_log(log)
    begun = [event.stage_status.task_id for event in log if event.stage_status.task_id]
    assert len(begun) == len(set(begun))
    results = [event.stage_result.task_id for event in log if event.type == "STAGE_RESULT"]
    assert len(results) == len(set(results)) and set(results) <= set(begun)
    for task_id in begun:
        story = [event for event in mine if event.task_id == task_id]
        if story:
            check_task_log(story)
            assert story[0].task_started.stage.stage_id
            completed = [event for event in story if event.type == "conductor.task.completed"]
            assert len(completed) == (task_id in results and story[-1].type == "conductor.task.completed")
    assert {event.task_id for event in mine if event.task_id} <= set(begun)


def check_ended(events: Sequence[event_pb2.Event], project_id: str = "p") -> None:
    """Every task of a stage has ended."""
    last = {event.task_id: event for event in events if event.project_id == project_id and event.task_id}
    for event in last.values():
        assert task_pb2.TaskStatus.Value(event.status) in TERMINAL, event.task_id


@contextlib.asynccontextmanager
async def at_hand(folder: Path, **options: Any) -> AsyncIterator[tuple[Running, Places]]:
    """Serves a Conductor with tiny programs until the block ends."""
    with open_folder() as workspaces:  # every user's commands must be able to reach theirs
        places = await Places(folder, workspaces).start()
        look = options.pop("look", LOOK_S)
        settings = {"programs": tiny(), **options}
        running = await start_conductor(folder / "conductor.db", places, **settings)  # type: ignore[arg-type]
        driving = Driving(running.store, running.actor, look)
        driving.start()
        try:
            yield running, places
        finally:
            await driving.close()
            await running.kill()
            await places.stop()


# Of a test that has a fixture `hand`: what `at_hand` gives.


@pytest.fixture
def running(hand: tuple[Running, Places]) -> Running:
    return hand[0]


@pytest.fixture
def places(hand: tuple[Running, Places]) -> Places:
    return hand[1]


@pytest.fixture
def project(running: Running) -> Project:
    return Project(running.stub)
