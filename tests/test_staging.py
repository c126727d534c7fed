"""A stage between the Terminal and the ReportWriter: what is brought, kept, and what becomes of it when these fail."""

import asyncio
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import event_pb2, project_pb2, report_writer_pb2, task_pb2

from services.common.boundary import new_id
from services.common.errors import Reason, Refusal
from services.conductor import upload
from services.conductor.protocol import CallWorker, Place
from services.conductor.router import GrpcRouter
from services.conductor.staging import Stages
from tests.conftest import until
from tests.hostile import needs_root
from tests.runs_at_hand import Places, at_work, tiny
from tests.terminals import open_folder

TASK = "run-1-parse-intent-1"


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[Places]:
    with open_folder() as workspaces:
        places = await Places(tmp_path, workspaces).start()
        yield places
        await places.stop()


class Keeper:
    """The ReportWriter behind a door: what it refuses it never sees. Counts what was stored."""

    def __init__(self, router: GrpcRouter) -> None:
        self._router = router
        self.refuse: dict[str, Reason.ValueType] = {}
        self.stored: list[str] = []

    def send(self, correlation_id: str) -> Any:
        inner = self._router.keep_for(correlation_id)

        async def one(request: report_writer_pb2.WriteArtifactRequest, seconds: float) -> Any:
            if request.name in self.refuse:
                raise Refusal(self.refuse[request.name], "The disk is full.")
            answer = await inner(request, seconds)
            self.stored += [request.name] if request.sha256 else []
            return answer

        return one


class Desk:
    """Does stages, one call after the other."""

    def __init__(self, places: Places) -> None:
        self.router = GrpcRouter(places.targets(), 0.05)
        self.keeper = Keeper(self.router)
        self.stages = Stages(self.router._room, self.keeper.send, self.router.read_artifact, 0.05)
        self.told: list[event_pb2.TaskProgress] = []

    def stage(self, ways: dict[str, Any] | None = None, number: int = 1, **fields: Any) -> event_pb2.StageCall:
        run = project_pb2.Run(run_id="run-1", objective="predict", correlation_id="c")
        run.options.hints.update(ways or {})
        run.artifacts.extend(fields.pop("artifacts", []))
        program = tiny()[number - 1]
        return event_pb2.StageCall(
            run=run, stage_id=program.stage_id, attempt=1, program=program, project_id="p", **fields
        )

    async def do(self, stage: event_pb2.StageCall, again: bool = False, task_id: str = TASK) -> event_pb2.WorkerResult:
        call = CallWorker(new_id(), task_pb2.CAPABILITY_TERMINAL, stage, 60, Place(task_id, "program"), again)
        return await self.stages.do(call, stage, self.told.append)


@pytest.fixture
async def desk(places: Places) -> AsyncIterator[Desk]:
    desk = Desk(places)
    yield desk
    await desk.router.close()


async def read(desk: Desk, file: project_pb2.RunArtifact) -> bytes:
    wanted = report_writer_pb2.Artifact(name=file.name, sha256=file.sha256)
    return b"".join([piece async for piece in desk.router.read_artifact(file.task_id, wanted, "c")])


async def test_a_stage_is_done_and_kept(desk: Desk) -> None:
    found = await desk.do(desk.stage({"PARSE_INTENT": "slow"}))
    assert not found.HasField("error") and found.stage.summary == "PARSE_INTENT is done."
    assert [file.name for file in found.stage.artifacts] == ["result.json", "note.txt"]
    assert await read(desk, found.stage.artifacts[1]) == b"PARSE_INTENT attempt 1\n"
    assert json.loads(await read(desk, found.stage.artifacts[0]))["status"] == "OK"
    assert desk.told and desk.told[-1].stage.percent == 95


async def test_what_could_not_be_kept_is_kept_when_it_is_done_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is not run again: what it would leave then is another result, which could not be kept any more."""
    monkeypatch.setattr(upload, "AWAY_S", 0.2)
    desk.keeper.refuse = {"note.txt": Reason.ERROR_REASON_REPORT_WRITE_FAILED}
    stage = desk.stage()
    with pytest.raises(Refusal) as caught:
        async with asyncio.timeout(30):
            await desk.do(stage)
    assert caught.value.error.reason == Reason.ERROR_REASON_REPORT_WRITE_FAILED
    assert desk.keeper.stored == [], "its result is kept last"
    desk.keeper.refuse = {}
    found = await desk.do(stage, again=True)
    assert not found.HasField("error")
    for file in found.stage.artifacts:
        assert await read(desk, file)


async def test_a_result_that_lies_there_is_not_believed_the_first_time(desk: Desk, places: Places) -> None:
    first = await desk.do(desk.stage(), task_id="another")
    [room] = places.rooms()
    left = room / "parse-intent" / "result.json"
    left.write_text(left.read_text().replace("PARSE_INTENT is done.", "Somebody else says so."))
    found = await desk.do(desk.stage())
    assert found.stage.summary == first.stage.summary


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_what_is_done_again_is_done_anew_without_a_whole_result(
    desk: Desk, places: Places, content: bytes
) -> None:
    await desk.do(desk.stage(), task_id="another")
    [room] = places.rooms()
    (room / "parse-intent" / "result.json").write_bytes(content)
    found = await desk.do(desk.stage(), again=True)
    assert found.stage.summary == "PARSE_INTENT is done."


async def test_last_words_that_stand_there_already_do_not_hide_how_it_ended(desk: Desk) -> None:
    send = desk.keeper.send("c")
    data = b"words of a process before"
    await send(
        report_writer_pb2.WriteArtifactRequest(
            task_id=TASK, name="program.stderr", data=data, sha256=hashlib.sha256(data).hexdigest()
        ),
        5,
    )
    found = await desk.do(desk.stage({"PARSE_INTENT": "break"}))
    assert found.error.metadata["code"] == "STAGE_CRASHED" and not found.HasField("stage")


async def test_earlier_files_are_brought_and_stale_ones_are_not(desk: Desk, places: Places) -> None:
    first = await desk.do(desk.stage())
    [room] = places.rooms()
    stale = project_pb2.RunArtifact(stage_id=1, task_id="gone", name="gone.txt", sha256="0" * 64, attempt=1, stale=True)
    later = project_pb2.RunArtifact(stage_id=5, task_id="gone", name="later.txt", sha256="0" * 64, attempt=1)
    (room / "parse-intent" / "note.txt").unlink()
    second = desk.stage(number=2, artifacts=[*first.stage.artifacts, stale, later])
    found = await desk.do(second, task_id="run-1-data-source-1")
    assert not found.HasField("error")
    lost = project_pb2.RunArtifact(stage_id=1, task_id="gone", name="lost.txt", sha256="0" * 64, attempt=1)
    with pytest.raises(Refusal) as caught:
        await desk.do(desk.stage(number=2, artifacts=[lost]), task_id="other")
    assert caught.value.error.reason == Reason.ERROR_REASON_REPORT_NOT_FOUND


async def test_what_an_attempt_noted_is_there_for_the_next_one(desk: Desk, places: Places) -> None:
    send = desk.keeper.send("c")
    kept = []
    for number in (1, 2):
        data = json.dumps([number]).encode()
        note = project_pb2.RunArtifact(stage_id=1, task_id=f"t-{number}", name="looks.json", size_bytes=len(data))
        note.media_type, note.sha256, note.stale = "application/json", hashlib.sha256(data).hexdigest(), True
        store = {"task_id": note.task_id, "name": note.name, "data": data, "sha256": note.sha256}
        await send(report_writer_pb2.WriteArtifactRequest(**store), 5)
        kept.append(note)
    await desk.do(desk.stage(artifacts=kept))
    [room] = places.rooms()
    assert json.loads((room / "parse-intent" / "looks.json").read_text()) == [2]
    (room / "parse-intent" / "looks.json").write_text("[3]")  # of an attempt that came to grief: newer than any kept
    await desk.do(desk.stage(artifacts=kept), task_id="another")
    assert json.loads((room / "parse-intent" / "looks.json").read_text()) == [3]


async def test_leaving_a_call_kills_its_program(desk: Desk) -> None:
    doing = asyncio.create_task(desk.do(desk.stage({"PARSE_INTENT": "sleep"})))
    await until(lambda: desk.told)
    assert len(at_work()) == 1
    doing.cancel()
    await asyncio.wait([doing])
    await until(lambda: not at_work())
    found = await desk.do(desk.stage({"PARSE_INTENT": ""}), again=True)  # its folder is free again
    assert not found.HasField("error")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    with open_folder() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0711", "none", folder]
        if subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("cannot mount a small disk here")
        yield folder
        subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
async def test_a_full_disk_is_a_typed_failure_and_no_obstacle_to_the_next_attempt(
    tmp_path: Path, small_disk: Path
) -> None:
    places = await Places(tmp_path, small_disk).start()
    desk = Desk(places)
    first = await desk.do(desk.stage())
    greedy, modest = [desk.stage(number=2, artifacts=first.stage.artifacts) for _ in range(2)]
    greedy.program.argv[-1] = "open('big', 'wb').write(bytes(8 << 20))"
    found = await desk.do(greedy, task_id="greedy")
    assert found.error.metadata["code"] == "STAGE_CRASHED"
    assert b"No space left" in await read(desk, found.stage.artifacts[0])
    assert not (await desk.do(modest, task_id="modest")).HasField("error")
    await desk.router.close()
    await places.stop()


HEAD = (
    "import hashlib, json, os, sys; e = json.load(open(sys.argv[1])); os.mkdir('parse-intent');"
    "d = {k: e[k] for k in ('contract', 'stage', 'run_id', 'attempt')} | {'status': 'OK', 'summary': 'Done.'};"
)
TAIL = "json.dump(d, open('parse-intent/result.json', 'w'))"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("d['result'] = 'x' * 2_000_000;", "1048576"),
        ("d['next_actions'] = [{'kind': 'EDIT', 'field': str(n)} for n in range(10_000)];", ""),
        (
            "d['next_actions'] = [{'kind': 'EDIT', 'label': 'x' * 600} for n in range(10_000)];",
            "1048576",
        ),
        ("d['artifacts'] = [{'name': 'a\\nb', 'sha256': '0' * 64}];", "names a file that none may have"),
        ("d['artifacts'] = [{'name': 'a.txt\\n', 'sha256': '0' * 64}];", "names a file that none may have"),
        ("[print(json.dumps({'event': 'progress', 'pct': n % 100, 'phase': 'x' * 80})) for n in range(80_000)];", ""),
        ("print('x' * 10_000_000); print(json.dumps({'event': 'progress', 'pct': 7}));", ""),
    ],
)
async def test_too_much_of_anything_is_cut_or_a_typed_failure(desk: Desk, code: str, word: str) -> None:
    stage = desk.stage()
    del stage.program.argv[:]
    stage.program.argv.extend(["/usr/bin/python3", "-I", "-S", "-c", HEAD + code + TAIL])
    found = await desk.do(stage)
    assert len(found.SerializeToString()) < 600_000 and len(desk.told) < 100
    if word:
        assert found.error.metadata["code"] == "STAGE_CRASHED" and word in found.error.message
    else:
        assert not found.HasField("error") and len(found.stage.actions) <= 600


async def test_a_program_is_told_its_limits_and_threads(desk: Desk) -> None:
    stage = desk.stage()
    code = (
        "import json, os, sys; e = json.load(open(sys.argv[1]));"
        "names = ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'MINE'); os.mkdir('parse-intent');"
        "json.dump({**{k: e[k] for k in ('contract', 'stage', 'run_id', 'attempt')}, 'status': 'OK',"
        " 'summary': json.dumps([os.environ.get(n) for n in names] + [e['limits'], e['project_id']])},"
        " open('parse-intent/result.json', 'w'))"
    )
    del stage.program.argv[:]
    stage.program.argv.extend(["/usr/bin/python3", "-I", "-S", "-c", code])
    stage.program.threads = 3
    stage.program.env["MINE"] = "yes"
    found = await desk.do(stage)
    threads, policy, mine, limits, project = json.loads(found.stage.summary)
    assert (threads, policy, mine, project) == ("3", "PASSIVE", "yes", "p")
    assert limits == {"cpu_s": 10, "wall_s": 30, "mem_mb": 256, "threads": 3}
