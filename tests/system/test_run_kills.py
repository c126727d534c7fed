"""Whole runs over HTTP by real processes, and any of these killed in the middle of a stage."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from conductor.v1 import conductor_pb2_grpc, event_pb2, project_pb2

from ops.stack import Stack
from services.conductor.machines import MACHINES
from tests.conftest import until
from tests.runs_at_hand import PYTHON, SOURCE, Project, at_work, check_ended, check_log, stage_of, statuses
from tests.system.conftest import Answer, curl
from tests.system.test_end_to_end import history
from tests.test_events import replayed
from tests.test_state import frozen

ALL = list(range(1, 9))


def stages(folder: Path) -> str:
    program = {"program": [PYTHON, "-I", "-S", "-c", SOURCE], "wall_time": 30, "cpu_time": 10, "memory_mb": 256}
    names = [name.removeprefix("STAGE_") for name in project_pb2.Stage.keys()[1:]]
    document = {name: {**program, "gate": True, "report": name == "EXPORT"} for name in names}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def stub_of(stack: Stack, name: str = "envoy") -> Any:
    channel = grpc.aio.insecure_channel(stack.addresses[name], [("grpc.use_local_subchannel_pool", 1)])
    return conductor_pb2_grpc.ConductorStub(channel)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    only = ("terminal", "report_writer", "conductor", "envoy")
    environ = {"CONDUCTOR_STAGES": stages(tmp_path)}
    async with Stack(tmp_path / "run", environ=environ, only=only) as stack:
        yield stack


def post(stack: Stack, what: str, **body: Any) -> Answer:
    headers = ("-H", "content-type: application/json")
    return curl("-X", "POST", *headers, f"{stack.url}/api/projects/web/{what}", "-d", json.dumps(body))


def rooms(stack: Stack) -> list[Path]:
    """Returns the folders of runs that the Terminal has."""
    return list(Path(dict(stack.layout.folders)["TERMINAL_WORKSPACES"]).rglob("envelope.json"))


async def http_gate(stack: Stack, stage: str) -> Any:
    async def look() -> Any:
        answer = await asyncio.to_thread(curl, f"{stack.url}/api/projects/web/state")
        waiting = answer.json.get("waiting_confirmation") or {}
        return answer.json if waiting.get("stage_id") == f"STAGE_{stage}" else None

    return await until(look, 20)


async def test_a_run_over_http(stack: Stack) -> None:
    options = {"hints": {"DATA_SOURCE": "ask"}, "pass_gates": ["STAGE_PROFILE_DATA", "STAGE_PREPROCESS"], "seed": 3}
    begun = post(stack, "start", objective="predict species", options=options)
    assert begun.status == 200 and begun.json["run"]["status"] == "RUN_STATUS_RUNNING"
    assert post(stack, "start", objective="again").status == 400
    await http_gate(stack, "PARSE_INTENT")
    assert post(stack, "confirm").status == 200
    state = await http_gate(stack, "DATA_SOURCE")
    choice = next(one for one in state["waiting_confirmation"]["choices"] if one["field"] == "colour")
    assert choice["required"] and choice["kind"] == "STAGE_ACTION_KIND_CHOOSE"
    for body in ({}, {"edits": {"colour": "blue"}}, {"edits": {"size": 1}}):
        refused = post(stack, "confirm", **body)
        assert refused.status == 400
        assert "EDIT_REFUSED" in refused.body and "FieldViolation" not in refused.json.get("message", "")
    assert (await http_gate(stack, "DATA_SOURCE")) == state
    answered = post(stack, "confirm", edits={"colour": "red"})
    assert answered.json["stages"][1]["edits"] == {"colour": "red"} and answered.json["stages"][1]["attempt"] == 2
    state = await http_gate(stack, "MODEL_SELECT")
    file = next(one for one in state["run"]["artifacts"] if one["name"] == "result.json" and not one.get("stale"))
    for place in ("conductor/tasks/{task_id}/artifacts/{name}", "api/projects/web/artifacts/{task_id}/{name}"):
        got = curl(f"{stack.url}/{place.format_map(file)}")
        assert hashlib.sha256(got.body.encode()).hexdigest() == file["sha256"]
    assert rooms(stack), "a gate keeps it"
    cancelled = post(stack, "cancel", reason="Enough.")
    assert cancelled.json["run"]["status"] == "RUN_STATUS_CANCELLED"
    assert post(stack, "cancel").status == 400
    events = await history(stub_of(stack))
    check_log(events, "web")
    check_ended(events, "web")
    await until(lambda: not rooms(stack), 30)  # not before it is unused for a while


async def completed(stack: Stack, project: Project, edge: str = "envoy") -> list[event_pb2.Event]:
    """Waits for a run's end, and looks at all that must hold then."""

    async def look() -> project_pb2.ProjectState | None:
        try:
            state = await project.state()
        except grpc.aio.AioRpcError:  # it is not up again yet
            return None
        assert state.run.status != project_pb2.RUN_STATUS_FAILED, state.stages[state.current_stage - 1].error
        return state if state.run.status == project_pb2.RUN_STATUS_COMPLETED else None

    state = await until(look, 40)
    assert statuses(state) == "C" * 8 and {stage.attempt for stage in state.stages} == {1}
    events = await history(stub_of(stack, edge))
    check_log(events, project.id)
    check_ended(events, project.id)
    own = [event for event in events if event.project_id == project.id]
    assert sum(event.type == "STAGE_RESULT" for event in own) == 8
    state.ClearField("as_of_sequence")
    folded = replayed(MACHINES["project"], project.id, [event for event in own if not event.task_id])
    assert frozen(folded) == frozen(state)
    assert (stack.run_dir / state.run.report_path).exists()
    await until(lambda: not at_work())
    return own


async def test_any_of_them_killed_in_the_middle_of_training(stack: Stack) -> None:
    for victims in (["conductor"], ["terminal"], ["report_writer"], ["conductor", "terminal", "report_writer"]):
        project = Project(stub_of(stack), "-".join(victims))
        await project.start({"TRAIN": "slow"}, pass_gates=ALL)
        await project.at("TRAIN", "part")
        await asyncio.gather(*(stack.kill(name) for name in victims))
        await asyncio.gather(*(stack.restart(name) for name in victims))
        own = await completed(stack, project)
        train = [event for event in own if event.task_id.endswith("-train-1")]
        calls = [event for event in train if event.type == "conductor.worker.call"]
        # Begun again once; further calls found nobody there yet.
        assert len(calls) == 1 if victims == ["report_writer"] else 2 <= len(calls) <= 5


async def test_a_killed_conductor_remembers_gates_and_what_was_cancelled(stack: Stack) -> None:
    waiting, cancelled = Project(stub_of(stack), "waiting"), Project(stub_of(stack), "cancelled")
    await waiting.start()
    before = await waiting.gate("PARSE_INTENT")
    await cancelled.start({"PARSE_INTENT": "sleep"})
    await cancelled.at("PARSE_INTENT", "asleep")
    await cancelled.cancel()
    await stack.kill("conductor")
    await stack.restart("conductor")
    await until(lambda: not at_work())
    await until(lambda: curl(f"{stack.url}/api/projects/waiting/state").status == 200)
    after = await waiting.state()
    before.ClearField("as_of_sequence")
    after.ClearField("as_of_sequence")
    assert frozen(before) == frozen(after)
    await waiting.confirm(confirmation_id=before.waiting_confirmation.confirmation_id)
    await waiting.gate("DATA_SOURCE")
    task_id = stage_of(await cancelled.state(), "PARSE_INTENT").task_id

    async def ended() -> bool:
        events = await history(stub_of(stack))
        return [event.type for event in events if event.task_id == task_id][-1] == "conductor.task.cancelled"

    await until(ended)


async def test_another_conductor_takes_a_run_over(tmp_path: Path) -> None:
    only = ("postgres", "terminal", "report_writer", "conductor", "envoy")
    environ = {"CONDUCTOR_STAGES": stages(tmp_path), "CONDUCTOR_LEASE": "1"}
    async with Stack(tmp_path / "run", environ=environ, only=only, replicas=2, postgres=True) as stack:
        project = Project(stub_of(stack, "conductor"))
        await project.start({"TRAIN": "slow"}, pass_gates=ALL)
        await project.at("TRAIN", "part")
        events = await history(project.stub)
        call = [event for event in events if event.type == "conductor.worker.call"][-1]
        assert call.task_id.endswith("-train-1")
        owner = call.actor.instance
        other = "conductor" if owner == "conductor-2" else "conductor-2"
        await stack.kill(owner)
        project.stub = stub_of(stack, other)
        own = await completed(stack, project, other)
        assert {event.actor.instance for event in own if event.task_id.endswith("-export-1")} == {other}
