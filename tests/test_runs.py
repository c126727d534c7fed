"""Whole runs of projects: a real Conductor, Terminal and ReportWriter, and programs that do next to nothing."""

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, project_pb2, report_writer_pb2, task_pb2

from services.common.errors import Reason
from services.conductor.machines import MACHINES
from services.conductor.retention import sweep
from tests.conftest import Running, until
from tests.runs_at_hand import (
    Places,
    Project,
    Stage,
    at_hand,
    at_work,
    check_ended,
    check_log,
    places,
    project,
    running,
    stage_of,
    statuses,
    tiny,
)
from tests.terminals import alive
from tests.test_actor import outcome_of, reason_of
from tests.test_events import replayed
from tests.test_state import frozen

__all__ = ["places", "project", "running"]  # fixtures

ALL = list(range(1, 9))


@pytest.fixture
async def hand(tmp_path: Path) -> AsyncIterator[tuple[Running, Places]]:
    async with at_hand(tmp_path) as pair:
        yield pair
        events = await pair[0].events()
        for project in {event.project_id for event in events}:
            check_log(events, project)


async def check_replay(running: Running, project: Project) -> None:
    events = [event for event in await running.events(project_id=project.id) if not event.task_id]
    state = replayed(MACHINES["project"], project.id, events)
    shown = await project.state()
    shown.ClearField("as_of_sequence")
    assert frozen(state) == frozen(shown)


async def file_of(running: Running, task_id: str, name: str, project_id: str = "") -> bytes:
    request = conductor_pb2.GetTaskArtifactRequest(task_id=task_id, name=name, project_id=project_id)
    return b"".join([piece.data async for piece in running.stub.GetArtifact(request)])


async def test_a_whole_run_from_gate_to_gate(running: Running, project: Project) -> None:
    begun = await project.start(correlation_id="c-1", seed=7, scope=task_pb2.Scope(user_id="ada"))
    assert statuses(begun) == "IPPPPPPP" and begun.run.correlation_id == "c-1" and begun.run.options.seed == 7
    for number, stage in enumerate(Stage.keys()[1:]):
        name = stage.removeprefix("STAGE_")
        state = await project.gate(name)
        assert statuses(state) == "C" * number + "W" + "P" * (7 - number)
        asked, found = state.waiting_confirmation, stage_of(state, name)
        assert asked.summary == found.message == found.outcome.summary == f"{name} is done."
        assert asked.next_actions[0] == "Go on" and len(asked.choices) == 6 and asked.issues[0].code == "ODD"
        assert found.attempt == 1 and found.task_id and not found.outcome.needs_input
        assert [file.name for file in found.outcome.artifacts] == ["result.json", "note.txt"]
        state = await project.confirm(confirmation_id=asked.confirmation_id, scope=task_pb2.Scope(user_id="ada"))
    assert statuses(state) == "C" * 8 and state.run.status == project_pb2.RUN_STATUS_COMPLETED
    assert state.run.HasField("ended_at") and not state.HasField("waiting_confirmation")
    assert [decision.stage_id for decision in state.run.decisions] == ALL
    assert {(d.approved, d.by_itself, d.user_id) for d in state.run.decisions} == {(True, False, "ada")}
    assert len(state.run.artifacts) == 16 and not any(file.stale for file in state.run.artifacts)
    assert state.run.report_path == f"reports/{stage_of(state, 'EXPORT').task_id}.md"
    for file in state.run.artifacts:
        data = await file_of(running, file.task_id, file.name)
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (file.sha256, file.size_bytes)
    report = await running.stub.GetReport(conductor_pb2.GetTaskReportRequest(task_id=stage_of(state, "EXPORT").task_id))
    assert report.data.startswith(b"#")
    assert await running.stub.GetReport(conductor_pb2.GetTaskReportRequest(project_id="p")) == report
    for odd, reason in (({}, "INVALID_REQUEST"), ({"project_id": "none"}, "REPORT_NOT_READY")):
        assert await outcome_of(running.stub.GetReport(conductor_pb2.GetTaskReportRequest(**odd))) == reason
    assert sum([count async for count in sweep(running.store, time.time_ns())]) == 8
    assert await running.stub.GetReport(conductor_pb2.GetTaskReportRequest(project_id="p")) == report
    await check_replay(running, project)


async def test_the_envelope_has_the_project_and_all_of_the_run(running: Running, project: Project) -> None:
    await project.start({"a": 1, "b": [True, None]}, seed=5, data="some/where.csv", correlation_id="c-9")
    state = await project.gate("PARSE_INTENT")
    text = await file_of(running, stage_of(state, "PARSE_INTENT").task_id, "result.json")
    told = json.loads(text)["result"]["envelope"]
    assert told["project_id"] == "p" and told["run_id"] == state.run.run_id and told["correlation_id"] == "c-9"
    assert (told["seed"], told["data"], told["attempt"], told["edits"]) == (5, "some/where.csv", 1, {})
    assert told["hints"] == {"a": 1, "b": [True, None]} and told["objective"] == "predict species"


async def test_gates_pass_by_themselves(running: Running, project: Project) -> None:
    await project.start(pass_gates=ALL)
    state = await project.until("COMPLETED")
    assert [decision.stage_id for decision in state.run.decisions] == ALL
    assert all(decision.by_itself and decision.approved and not decision.user_id for decision in state.run.decisions)
    assert not any(event.type == "WAITING_CONFIRMATION" for event in await running.events())
    await check_replay(running, project)


async def unchanged(project: Project, call: Any, reason: str) -> None:
    """A refusal leaves the state byte-equal and writes nothing."""
    before = frozen(await project.state())
    assert await outcome_of(call) == reason
    assert frozen(await project.state()) == before


async def test_edits_do_a_stage_again(running: Running, project: Project) -> None:
    await project.start(pass_gates=[3, 4, 5, 6, 7, 8])
    await project.gate("PARSE_INTENT")
    state = await project.confirm({"colour": "red", "depth": 3}, approved=False, reason="Not that.")
    assert stage_of(state, "PARSE_INTENT").attempt == 2 and not stage_of(state, "PARSE_INTENT").approved_ahead
    state = await project.gate("PARSE_INTENT")  # rejected: it asks again
    assert dict(stage_of(state, "PARSE_INTENT").edits) == {"colour": "red", "depth": 3}
    state = await project.confirm({"depth": 4})  # approved: it goes on behind it
    assert stage_of(state, "PARSE_INTENT").approved_ahead
    state = await project.gate("DATA_SOURCE")
    stage = stage_of(state, "PARSE_INTENT")
    assert stage.attempt == 3 and dict(stage.edits) == {"colour": "red", "depth": 4}
    assert [(file.attempt, file.stale) for file in state.run.artifacts if file.stage_id == 1] == [
        (1, True),
        (1, True),
        (2, True),
        (2, True),
        (3, False),
        (3, False),
    ]
    told = json.loads(await file_of(running, stage.task_id, "result.json"))["result"]["envelope"]
    assert told["edits"] == {"colour": "red", "depth": 4} and told["attempt"] == 3
    assert [(d.approved, d.reason, dict(d.edits)) for d in state.run.decisions] == [
        (False, "Not that.", {"colour": "red", "depth": 3}),
        (True, "", {"depth": 4}),
    ]
    await project.confirm()
    await project.until("COMPLETED")
    await check_replay(running, project)
    check_ended(await running.events())


async def test_what_a_gate_does_not_offer_is_refused(project: Project) -> None:
    await project.start({"PARSE_INTENT": "ask"})
    state = await project.gate("PARSE_INTENT")
    assert stage_of(state, "PARSE_INTENT").outcome.needs_input
    await unchanged(project, project.confirm(), "EDIT_REFUSED")
    for bad in ({"size": 1}, {"colour": "blue"}, {"depth": 10}, {"colour": ["red"]}, {"PARSE_INTENT": "x"}):
        await unchanged(project, project.confirm(bad), "EDIT_REFUSED")
        await unchanged(project, project.move("PARSE_INTENT", bad), "EDIT_REFUSED")
    await unchanged(project, project.confirm(confirmation_id="other"), "STALE_CONFIRMATION")
    await unchanged(project, project.confirm(stage_id=2), "STALE_CONFIRMATION")
    await unchanged(project, project.confirm(approved=False), "INVALID_REQUEST")
    await unchanged(project, project.confirm({"depth": float("nan")}), "EDIT_REFUSED")
    await project.confirm({"depth": 2})  # something, but not what it needs
    state = await project.gate("PARSE_INTENT")
    assert stage_of(state, "PARSE_INTENT").outcome.needs_input and stage_of(state, "PARSE_INTENT").attempt == 2
    await project.confirm({"colour": "green"})
    await project.gate("DATA_SOURCE")


async def test_a_gate_that_needs_input_does_not_pass_by_itself(project: Project) -> None:
    await project.start({"TRAIN": "ask"}, pass_gates=ALL)
    state = await project.gate("TRAIN")
    assert statuses(state) == "CCCCCWPP"
    await project.confirm({"colour": "red"})
    await project.until("COMPLETED")


async def test_moves_by_hand_are_refused_while_a_run_goes_on(running: Running, project: Project) -> None:
    other = Project(running.stub, "other")
    await project.start({"DATA_SOURCE": "sleep"})
    wait = conductor_pb2.WaitForConfirmationRequest(project_id="p", stage_id=1)
    plan = conductor_pb2.ProposePlanRequest(project_id="p", stage_id=1, summary="thus")
    for stage in ("PARSE_INTENT", "DATA_SOURCE"):
        if stage == "PARSE_INTENT":
            await project.gate(stage)
        else:
            await project.confirm()
            await project.at(stage, "asleep")
            await unchanged(project, project.confirm(), "NOTHING_TO_CONFIRM")
            await unchanged(project, project.confirm({"colour": "red"}), "NOTHING_TO_CONFIRM")
            await unchanged(project, project.move("DATA_SOURCE"), "ILLEGAL_TRANSITION")
        wait.stage_id = plan.stage_id = Stage.Value(f"STAGE_{stage}")
        await unchanged(project, running.stub.WaitForConfirmation(wait), "RUN_ACTIVE")
        await unchanged(project, running.stub.ProposePlan(plan), "RUN_ACTIVE")
        for status in (4, 5, 6):
            await unchanged(project, project.move(stage, status=status), "RUN_ACTIVE")
        await unchanged(project, project.move("TRAIN"), "ILLEGAL_TRANSITION")
        await unchanged(project, project.start(), "RUN_ACTIVE")
    by_hand = await other.move("PARSE_INTENT", status=4)
    assert statuses(by_hand) == "CPPPPPPP" and not by_hand.HasField("run")
    await unchanged(other, other.cancel(), "NO_RUN")
    await unchanged(other, other.confirm({"a": 1}), "EDIT_REFUSED")
    ended = await project.cancel("Enough.")
    assert ended.run.status == project_pb2.RUN_STATUS_CANCELLED
    await running.ended(stage_of(ended, "DATA_SOURCE").task_id)  # its last events count in the state's as_of_sequence
    await unchanged(project, project.cancel(), "NO_RUN")


async def test_a_stage_that_fails_can_be_done_again_with_edits(running: Running, project: Project) -> None:
    await project.start({"PREPROCESS": "fail"}, pass_gates=ALL)
    state = await project.until("FAILED")
    stage = stage_of(state, "PREPROCESS")
    assert statuses(state) == "CCCFPPPP" and state.run.HasField("ended_at")
    assert stage.error.reason == Reason.ERROR_REASON_STAGE_FAILED and stage.error.message == "No column specie."
    assert dict(stage.error.metadata) == {
        "code": "TARGET_NOT_FOUND",
        "stage_id": "STAGE_PREPROCESS",
        "column": "specie",
    }
    assert stage.outcome.issues[0].code == "TARGET_NOT_FOUND" and stage.completed_at.seconds
    assert not any(file.stale for file in state.run.artifacts)
    await unchanged(project, project.confirm(), "NOTHING_TO_CONFIRM")
    await unchanged(project, project.move("PREPROCESS", {"colour": "blue"}), "EDIT_REFUSED")
    await unchanged(project, project.cancel(), "NO_RUN")
    again = await project.move("PREPROCESS", {"colour": "red"})
    assert again.run.status == project_pb2.RUN_STATUS_RUNNING and not again.run.HasField("ended_at")
    state = await project.until("COMPLETED")
    assert stage_of(state, "PREPROCESS").attempt == 2 and not stage_of(state, "PREPROCESS").HasField("error")
    await check_replay(running, project)
    check_ended(await running.events())


@pytest.mark.parametrize(
    ("way", "code", "limits"),
    [
        ("break", "STAGE_CRASHED", {}),
        ("kill", "STAGE_CRASHED", {}),
        ("usage", "STAGE_CRASHED", {}),
        ("no-result", "STAGE_CRASHED", {}),
        ("lie", "STAGE_CRASHED", {}),
        ("foreign", "STAGE_CRASHED", {}),
        ("hog", "MEMORY_LIMIT", {}),
        ("sleep", "STAGE_TIMEOUT", {"wall_time": 1}),
        ("spin", "STAGE_TIMEOUT", {"cpu_time": 1}),
    ],
)
async def test_a_program_that_comes_to_grief_is_a_typed_failure(
    tmp_path: Path, way: str, code: str, limits: dict[str, int]
) -> None:
    async with at_hand(tmp_path, programs=tiny(**limits)) as (running, _):
        project = Project(running.stub)
        await project.start({"PARSE_INTENT": way}, pass_gates=ALL)
        state = await project.until("FAILED")
        stage = stage_of(state, "PARSE_INTENT")
        assert (stage.error.reason, stage.error.metadata["code"]) == (Reason.ERROR_REASON_STAGE_FAILED, code)
        assert statuses(state) == "FPPPPPPP" and not stage.error.retryable
        assert str(tmp_path) not in stage.error.message and "Traceback" not in stage.error.message
        if way in ("break", "usage"):
            [file] = stage.outcome.artifacts
            assert file.name == "program.stderr"
            said = await file_of(running, stage.task_id, file.name)
            assert said == (b"Traceback: it broke\n" if way == "break" else b"usage: stage\n")
        check_log(await running.events())
        check_ended(await running.events())
        await check_replay(running, project)
        again = await project.move("PARSE_INTENT")  # may be tried as it is, as often as one likes
        assert stage_of(again, "PARSE_INTENT").attempt == 2


async def test_what_was_offered_last_may_be_chosen_after_a_crash(project: Project) -> None:
    """An edit may be what makes the program crash: then another one has to be possible."""
    await project.start()
    await project.gate("PARSE_INTENT")
    await project.confirm()
    await project.gate("DATA_SOURCE")
    await project.cancel()
    await project.start({"DATA_SOURCE": "break"}, pass_gates=[1])
    await project.until("FAILED")
    await unchanged(project, project.move("DATA_SOURCE", {"colour": "red"}), "EDIT_REFUSED")  # nothing was offered yet
    await project.start({"PARSE_INTENT": "crash-when-deep"})
    await project.gate("PARSE_INTENT")
    await project.confirm({"depth": 9})
    await project.until("FAILED")
    await unchanged(project, project.move("PARSE_INTENT", {"depth": 10}), "EDIT_REFUSED")
    await project.move("PARSE_INTENT", {"depth": 1})
    await project.gate("PARSE_INTENT")


async def test_going_back_resets_what_follows(running: Running, project: Project) -> None:
    await project.start(pass_gates=[1, 2, 3])
    state = await project.gate("PREPROCESS")
    asked = state.waiting_confirmation.confirmation_id
    first = [file.task_id for file in state.run.artifacts]
    state = await project.move("DATA_SOURCE", {"colour": "red"}, message="Other data.")
    assert statuses(state) == "CIPPPPPP" and not state.HasField("waiting_confirmation")
    assert {(file.stage_id, file.stale) for file in state.run.artifacts} == {
        (1, False),
        (2, True),
        (3, True),
        (4, True),
    }
    assert [file.task_id for file in state.run.artifacts] == first
    for name in ("PROFILE_DATA", "PREPROCESS"):
        stage = stage_of(state, name)
        assert not stage.HasField("outcome") and not stage.message and not stage.HasField("started_at")
    assert await outcome_of(project.confirm(confirmation_id=asked)) == "STALE_CONFIRMATION"
    state = await project.gate("PREPROCESS")
    assert [stage_of(state, n).attempt for n in ("PARSE_INTENT", "DATA_SOURCE", "PREPROCESS")] == [1, 2, 2]
    told = json.loads(await file_of(running, stage_of(state, "PREPROCESS").task_id, "result.json"))
    assert told["attempt"] == 2
    for file in state.run.artifacts:  # also those of the record
        data = await file_of(running, file.task_id, file.name)
        assert hashlib.sha256(data).hexdigest() == file.sha256
    await check_replay(running, project)


async def test_going_back_from_a_stage_at_work_kills_its_program(running: Running, project: Project) -> None:
    await project.start({"DATA_SOURCE": "sleep"}, pass_gates=[1])
    await project.at("DATA_SOURCE", "asleep")
    [pid] = at_work()
    old = stage_of(await project.state(), "DATA_SOURCE").task_id
    state = await project.move("PARSE_INTENT")
    assert statuses(state) == "IPPPPPPP" and stage_of(state, "PARSE_INTENT").attempt == 2
    task = await running.ended(old)
    assert task.status == task_pb2.TASK_STATUS_CANCELLED
    await until(lambda: not alive(pid))
    await project.until("RUNNING", "DATA_SOURCE")  # and it goes on by itself
    assert stage_of(await project.state(), "DATA_SOURCE").task_id != old


async def test_cancelling_kills_the_program(running: Running, project: Project) -> None:
    await project.start({"TRAIN": "sleep"}, pass_gates=ALL)
    await project.at("TRAIN", "asleep")
    [pid] = at_work()
    state = await project.cancel("Too slow.")
    stage = stage_of(state, "TRAIN")
    assert statuses(state) == "CCCCCFPP" and state.run.status == project_pb2.RUN_STATUS_CANCELLED
    assert stage.error.reason == Reason.ERROR_REASON_TASK_CANCELLED and "Too slow." in stage.error.message
    await until(lambda: not alive(pid))
    assert (await running.ended(stage.task_id)).status == task_pb2.TASK_STATUS_CANCELLED
    check_ended(await running.events())
    again = await project.move("TRAIN")
    assert stage_of(again, "TRAIN").attempt == 2
    await project.at("TRAIN", "asleep")
    await project.cancel()
    new = await project.start(pass_gates=ALL)
    assert new.run.run_id != again.run.run_id and statuses(new) == "IPPPPPPP" and not new.run.artifacts
    await project.until("COMPLETED")
    await check_replay(running, project)


async def test_cancelling_the_task_of_a_stage_cancels_the_run(running: Running, project: Project) -> None:
    await project.start({"PARSE_INTENT": "sleep"})
    await project.at("PARSE_INTENT", "asleep")
    task_id = stage_of(await project.state(), "PARSE_INTENT").task_id
    await running.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task_id))
    state = await project.until("CANCELLED")
    assert stage_of(state, "PARSE_INTENT").error.reason == Reason.ERROR_REASON_TASK_CANCELLED


async def test_a_gate_may_be_cancelled_and_gone_on_from(project: Project) -> None:
    await project.start()
    await project.gate("PARSE_INTENT")
    state = await project.cancel()
    assert not state.HasField("waiting_confirmation") and statuses(state) == "FPPPPPPP"
    await unchanged(project, project.confirm(), "NOTHING_TO_CONFIRM")
    await project.move("PARSE_INTENT")
    await project.gate("PARSE_INTENT")


async def test_the_same_request_gets_the_same_answer(running: Running, project: Project) -> None:
    first = await project.start({"a": 1, "b": {"x": 1, "y": 2, "z": 3}}, request_id="r-1")
    again = await project.start({"a": 1, "b": {"z": 3, "y": 2, "x": 1}}, request_id="r-1")
    assert frozen(first) == frozen(again)
    assert await outcome_of(project.start({"a": 2}, request_id="r-1")) == "REQUEST_ID_REUSED"
    await project.gate("PARSE_INTENT")
    edits = {"colour": "red", "depth": 2, "data": "a.csv"}
    once = await project.confirm(edits, request_id="r-1")
    twice = await project.confirm(dict(reversed(edits.items())), request_id="r-1")
    assert frozen(once) == frozen(twice)
    assert await outcome_of(project.confirm({"depth": 3}, request_id="r-1")) == "REQUEST_ID_REUSED"
    await project.gate("DATA_SOURCE")
    cancel = conductor_pb2.CancelRunRequest(project_id="p", request_id="r-1")
    assert frozen(await running.stub.CancelRun(cancel)) == frozen(await running.stub.CancelRun(cancel))


async def test_two_at_once_begin_one_run_and_answer_one_gate(project: Project) -> None:
    outcomes = await asyncio.gather(*(outcome_of(project.start()) for _ in range(5)))
    assert sum(outcome == "RUN_ACTIVE" for outcome in outcomes) == 4
    asked = (await project.gate("PARSE_INTENT")).waiting_confirmation.confirmation_id
    outcomes = await asyncio.gather(*(outcome_of(project.confirm(confirmation_id=asked)) for _ in range(5)))
    assert sum(isinstance(outcome, project_pb2.ProjectState) for outcome in outcomes) == 1
    assert statuses(await project.gate("DATA_SOURCE")) == "CWPPPPPP"


@pytest.mark.parametrize(
    "fields",
    [
        {"objective": " "},
        {"objective": "a\x00"},
        {"objective": "x" * 16385},
        {"data": "a\nb"},
        {"pass_gates": [1, 1]},
        {"pass_gates": [0]},
        {"pass_gates": [9]},
        {"seed": 2**31},
        {"ways": {"a": float("nan")}},
        {"ways": {"a": float("-inf")}},
        {"ways": {"a": "x" * 70_000}},
        {"ways": {"a": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}},
    ],
)
async def test_a_bad_start_is_refused_and_nothing_is_created(running: Running, project: Project, fields: Any) -> None:
    await unchanged(project, project.start(**fields), "INVALID_REQUEST")
    assert not (await running.stub.ListProjects(conductor_pb2.ListProjectsRequest())).projects
    assert await running.events() == []


async def upload(running: Running, content: bytes, name: str = "mine.csv") -> project_pb2.DataUpload:
    request = conductor_pb2.UploadDataRequest(project_id="p", name=name)
    request.content.data = content
    return await running.stub.UploadData(iter([request]))


async def test_uploaded_data_is_there_for_the_run(running: Running, places: Places, project: Project) -> None:
    await unchanged(project, project.start(data="uploads/mine.csv"), "DATA_NOT_FOUND")
    await upload(running, b"a,b\n1,2\n")
    await upload(running, b"a,b\n3,4\n", "other.csv")
    await project.start(data="uploads/mine.csv", pass_gates=[1])
    state = await project.gate("DATA_SOURCE")
    assert [upload.name for upload in state.uploads] == ["mine.csv", "other.csv"]
    found = json.loads(await file_of(running, stage_of(state, "DATA_SOURCE").task_id, "result.json"))
    assert found["result"]["uploads"] == {"mine.csv": hashlib.sha256(b"a,b\n1,2\n").hexdigest()}
    await unchanged(project, project.confirm({"data": "uploads/none.csv"}), "EDIT_REFUSED")
    await project.confirm({"data": "uploads/other.csv"}, approved=False, reason="The other.")
    state = await project.gate("DATA_SOURCE")
    for room in places.rooms():
        shutil.rmtree(room / "uploads")
    await project.confirm()
    state = await project.gate("PROFILE_DATA")
    found = json.loads(await file_of(running, stage_of(state, "PROFILE_DATA").task_id, "result.json"))
    assert set(found["result"]["uploads"]) == {"mine.csv", "other.csv"}


async def test_a_lost_workspace_is_restored(running: Running, places: Places, project: Project) -> None:
    await project.start()
    for stage in ("PARSE_INTENT", "DATA_SOURCE", "PROFILE_DATA"):
        await project.gate(stage)
        [room] = places.rooms()
        for path in list(room.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        await project.confirm()
    await project.gate("PREPROCESS")  # its program has looked at all that the three left
    check_log(await running.events())


async def test_a_file_that_was_changed_behind_our_back_is_restored(places: Places, project: Project) -> None:
    await project.start()
    await project.gate("PARSE_INTENT")
    [room] = places.rooms()
    (room / "parse-intent" / "note.txt").write_text("something else")
    (room / "parse-intent" / "result.json").write_text("{}")
    await project.confirm()
    await project.gate("DATA_SOURCE")


async def test_a_terminal_that_comes_back_goes_on(running: Running, places: Places, project: Project) -> None:
    await project.start({"DATA_SOURCE": "slow"}, pass_gates=ALL)
    await project.at("DATA_SOURCE", "part")
    await places.stop_terminal()
    await places.start_terminal()
    state = await project.until("COMPLETED", seconds=30)
    assert stage_of(state, "DATA_SOURCE").attempt == 1
    assert sum(event.type == "STAGE_RESULT" for event in await running.events()) == 8
    check_ended(await running.events())


async def test_a_report_writer_that_comes_back_goes_on(places: Places, project: Project) -> None:
    await project.start({"DATA_SOURCE": "slow"}, pass_gates=ALL)
    await project.at("DATA_SOURCE", "part")
    await places.writer.stop(0)
    await until(lambda: not at_work())  # what it found cannot be kept
    await places.start_writer()
    await project.until("COMPLETED", seconds=30)


async def test_a_run_costs_other_projects_nothing(running: Running) -> None:
    projects = [Project(running.stub, f"p{n}") for n in range(6)]
    ways = [{}, {"TRAIN": "fail"}, {"TRAIN": "break"}, {}, {"TRAIN": "ask"}, {"TRAIN": "kill"}]
    ends = ["COMPLETED", "FAILED", "FAILED", "COMPLETED", "WAITING_CONFIRMATION", "FAILED"]
    await asyncio.gather(*(p.start(way, pass_gates=ALL) for p, way in zip(projects, ways, strict=True)))
    await asyncio.gather(*(p.until(end, seconds=40) for p, end in zip(projects, ends, strict=True)))
    for each in projects:
        await check_replay(running, each)


async def test_progress_of_a_stage_is_told_while_it_works(running: Running, project: Project) -> None:
    await project.start({"PARSE_INTENT": "slow"})
    state = await project.gate("PARSE_INTENT")
    task = stage_of(state, "PARSE_INTENT").task_id
    said = [e.task_progress for e in await running.events(task_id=task) if e.task_progress.HasField("stage")]
    assert said and said[-1].stage.percent == 95 and said[-1].message == "part 19"
    percents = [piece.stage.percent for piece in said]
    assert percents == sorted(percents)


async def test_uploads_and_starts_are_refused_by_their_reasons(running: Running) -> None:
    request = conductor_pb2.UploadDataRequest(project_id="p", name="a.csv", sha256="0" * 64)
    request.content.data = b"a"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.UploadData(iter([request]))
    assert reason_of(caught.value) == Reason.ERROR_REASON_UPLOAD_REFUSED
    assert not report_writer_pb2.Artifact().HasField("error") and await running.events() == []


async def test_what_a_run_does_is_done_on_behalf_of_whoever_asked(running: Running, project: Project) -> None:
    await project.start(pass_gates=[1], scope=task_pb2.Scope(user_id="ada", desktop_id="desk"))
    await project.gate("DATA_SOURCE")
    events = await running.events()
    assert {(event.scope.user_id, event.scope.desktop_id) for event in events} == {("ada", "desk")}
    await project.confirm(scope=task_pb2.Scope(user_id="bob"))
    state = await project.gate("PROFILE_DATA")
    assert [(d.by_itself, d.user_id) for d in state.run.decisions] == [(True, ""), (False, "bob")]
    assert {event.scope.user_id for event in (await running.events())[len(events) :]} == {"bob"}


async def test_a_run_goes_on_when_its_ended_tasks_are_kept_no_more(
    running: Running, places: Places, project: Project
) -> None:
    await project.start()
    await project.gate("PARSE_INTENT")
    await project.confirm()
    await project.gate("DATA_SOURCE")
    gone = [count async for count in sweep(running.store, time.time_ns())]
    assert sum(gone) == 2
    [room] = places.rooms()
    shutil.rmtree(room / "parse-intent")
    await project.confirm()
    state = await project.gate("PROFILE_DATA")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await file_of(running, stage_of(state, "PARSE_INTENT").task_id, "result.json")
    assert reason_of(caught.value) == Reason.ERROR_REASON_TASK_NOT_FOUND
    for file in state.run.artifacts:  # whatever the run lists is there as long as it lists it
        data = await file_of(running, file.task_id, file.name, project_id="p")
        assert hashlib.sha256(data).hexdigest() == file.sha256
    for others in ({"name": "other.txt"}, {"project_id": "q"}, {"task_id": "unknown"}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await file_of(running, **{"task_id": file.task_id, "name": file.name, "project_id": "p", **others})
        assert reason_of(caught.value) == Reason.ERROR_REASON_REPORT_NOT_FOUND
    await check_replay(running, project)
