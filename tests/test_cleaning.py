"""What nobody needs any more goes, at once or after a crash, and nothing that somebody may still ask for."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import conductor_pb2, event_pb2, project_pb2

from services.common.errors import Reason, Refusal
from services.conductor import staging
from services.conductor.cleaning import Cleaning
from services.conductor.store.base import StoreUnavailable
from tests.conftest import Running, until
from tests.runs_at_hand import Places, Project, at_hand, check_log, places, project, running, statuses
from tests.test_actor import outcome_of

__all__ = ["places", "project", "running"]  # fixtures

ALL = list(range(1, 9))
NEVER = 3600.0  # seconds: such tests look themselves


@pytest.fixture
async def hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Running, Places]]:
    monkeypatch.setattr(staging, "UNUSED_S", 0)
    async with at_hand(tmp_path) as pair:
        yield pair
        check_log(await pair[0].events())


@pytest.fixture
async def cleaning(running: Running) -> AsyncIterator[Callable[[float], Cleaning]]:
    begun: list[Cleaning] = []

    def begin(seconds: float) -> Cleaning:
        one = Cleaning(running.store, running.router.clear_run, running.router.keep_for, seconds)
        running.store.on_commit(one.saw)
        one.start()
        begun.append(one)
        return one

    yield begin
    for one in begun:
        await one.close()


async def upload(running: Running, content: bytes, name: str = "mine.csv") -> project_pb2.DataUpload:
    request = conductor_pb2.UploadDataRequest(project_id="p", name=name)
    request.content.data = content
    found: project_pb2.DataUpload = await running.stub.UploadData(iter([request]))
    return found


def kept(places: Places, *uploads: project_pb2.DataUpload) -> list[bool]:
    return [(places.folder / "reports" / upload.upload_id).exists() for upload in uploads]


async def test_the_folder_of_an_ended_run_goes_and_its_stages_can_be_begun_again(
    running: Running, places: Places, project: Project, cleaning: Callable[[float], Cleaning]
) -> None:
    cleaning(0.05)
    await project.start({"TRAIN": "fail"}, pass_gates=ALL)
    await project.until("FAILED")
    await until(lambda: not places.rooms())
    await project.move("TRAIN", {"colour": "red"})
    await project.until("COMPLETED")
    await until(lambda: not places.rooms())
    await project.move("REVIEW_EDIT")
    state = await project.until("COMPLETED")
    assert statuses(state) == "C" * 8
    await until(lambda: not places.rooms())
    await project.start()
    await project.gate("PARSE_INTENT")
    assert places.rooms(), "a gate keeps it"
    await project.cancel()
    await until(lambda: not places.rooms())


async def test_what_a_crash_left_is_found_at_the_start_and_what_is_in_use_later(
    running: Running,
    places: Places,
    project: Project,
    cleaning: Callable[[float], Cleaning],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await project.start(pass_gates=ALL)
    await project.until("COMPLETED")
    assert places.rooms()
    monkeypatch.setattr(staging, "UNUSED_S", 3600)
    one = cleaning(NEVER)
    await until(lambda: one._runs)
    await one.look()
    assert places.rooms() and one._runs, "it was used a moment ago"
    await project.move("EXPORT")
    await project.until("COMPLETED")
    await project.start()  # of another run: the folder of the one before is nobody's
    await project.gate("PARSE_INTENT")
    assert len(places.rooms()) == 2
    monkeypatch.setattr(staging, "UNUSED_S", 0)
    await one.look()
    assert len(places.rooms()) == 1 and not one._runs
    ended = next(event for event in reversed(await running.events()) if event.type == "RUN_ENDED")
    ended.run_ended.run_id = (await project.state()).run.run_id
    one.saw([ended])  # it was taken up again in the meantime
    await one.look()
    assert len(places.rooms()) == 1 and not one._runs
    await places.stop_terminal()
    one.saw([event for event in await running.events() if event.type == "RUN_ENDED"])
    await one.look()
    assert one._runs, "a Terminal that is away is asked again"
    await places.start_terminal()


async def test_an_upload_goes_when_neither_the_project_nor_its_run_lists_it(
    running: Running, places: Places, project: Project, cleaning: Callable[[float], Cleaning]
) -> None:
    first = await upload(running, b"a,b\n1,2\n")
    second = await upload(running, b"a,b\n3,4\n")
    assert kept(places, first, second) == [True, True]
    cleaning(0.05)  # also what was replaced before it was there
    await until(lambda: kept(places, first, second) == [False, True])
    await project.start(data="uploads/mine.csv")
    await project.gate("PARSE_INTENT")
    third = await upload(running, b"a,b\n5,6\n")
    other = await upload(running, b"x", "other.csv")
    await upload(running, b"y", "other.csv")
    await until(lambda: not any(kept(places, other)))
    assert kept(places, second, third) == [True, True], "the run reads the second"
    await project.confirm()
    await project.gate("DATA_SOURCE")
    await project.cancel()
    await project.start()
    await until(lambda: kept(places, second, third) == [False, True])


@pytest.mark.parametrize("unsure", [False, True])
async def test_an_upload_that_no_project_took_goes_unless_it_may_be_listed(
    running: Running, places: Places, monkeypatch: pytest.MonkeyPatch, unsure: bool
) -> None:
    before = set((places.folder / "reports").iterdir())

    async def refuse(*_: Any) -> Any:
        if unsure:
            raise StoreUnavailable("FullError: database or disk is full")
        raise Refusal(Reason.ERROR_REASON_WRITE_CONFLICT, "Others keep changing it.")

    monkeypatch.setattr(running.actor, "ask", refuse)
    outcome = await outcome_of(upload(running, b"a,b\n1,2\n"))
    assert outcome == ("STORE_UNAVAILABLE" if unsure else "WRITE_CONFLICT")
    assert bool(set((places.folder / "reports").iterdir()) - before) == unsure


async def test_one_folder_that_cannot_be_removed_is_no_obstacle_to_others(running: Running) -> None:
    removed: list[str] = []

    async def clear(run_id: str, _: str) -> None:
        if run_id == "stuck":
            raise Refusal(Reason.ERROR_REASON_WORKER_FAILED, "The Terminal failed.")
        removed.append(run_id)

    one = Cleaning(running.store, clear, running.router.keep_for)
    names = ("stuck", "a", "b")
    events = [event_pb2.Event(type="RUN_ENDED", project_id="q", run_ended={"run_id": name}) for name in names]
    one.saw(events)
    await one.look()
    await one.look()
    assert removed == ["a", "b"] and list(one._runs) == ["stuck"]


async def test_a_store_that_is_away_stops_no_cleaning(
    running: Running, places: Places, project: Project, cleaning: Callable[[float], Cleaning]
) -> None:
    class Away:
        asked = 0

        def __getattr__(self, name: str) -> Any:
            self.asked += 1
            if self.asked < 5:
                raise StoreUnavailable("FullError: database or disk is full")
            return getattr(running.store, name)

    await project.start()
    await project.gate("PARSE_INTENT")
    one = cleaning(0.02)
    one._store = Away()  # type: ignore[assignment]
    await project.cancel()
    await until(lambda: not places.rooms())
