"""Failures of stages in the running system: typed, only their own project stands still, and another attempt goes on."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from ops.stack import Stack
from services.conductor.programs import OURS
from stages.contract import STAGES
from tests.conftest import until
from tests.tables_at_hand import save
from tests.terminals import open_folder

pytestmark = pytest.mark.asyncio(loop_scope="module")

LITTLE = 24 * 1024 * 1024  # bytes: not enough for any program of ours
SECONDS = 60.0  # for a stage, on a machine that does other things too
CRASH = """
import json, runpy, sys
asked = json.load(open(sys.argv[1]))
if asked["hints"].get("crash") and asked["attempt"] == 1:
    raise RuntimeError("a bug in the program")
runpy.run_module("stages.profile_data", run_name="__main__")
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A system with some tables, and a program of PROFILE_DATA that crashes when it is told to."""
    folder = tmp_path_factory.mktemp("failures")
    with open_folder() as data:  # commands run as other users
        tables(data)
        programs = yaml.safe_load(OURS.read_text())
        programs["PROFILE_DATA"]["program"] = ["python", "-c", CRASH]
        (folder / "stages.yaml").write_text(yaml.safe_dump(programs))
        environ = {"TERMINAL_DATA": str(data), "CONDUCTOR_STAGES": str(folder / "stages.yaml")}
        async with Stack(folder / "run", environ=environ) as stack:
            yield stack


def tables(data: Path) -> None:
    """Writes a good table, and some with which stages fail."""
    data.chmod(0o755)  # so that tables are found, not only opened by name
    save("penguins", data)
    (data / "ragged.csv").write_text("x,y\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(40)) + "1,2,3\n")
    (data / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (data / "same.csv").write_text("x,kind,y\n" + "".join(f"{n * 7 % 31},a,{'ab'[n % 2]}\n" for n in range(60)))


class Project:
    """A project over HTTP."""

    def __init__(self, stack: Stack, name: str) -> None:
        self._url = f"{stack.url}/api/projects/{name}"

    async def call(self, path: str, body: Any = None) -> dict[str, Any]:
        """Returns what the edge answered; a refusal too."""
        return await asyncio.to_thread(self._call, path, body)

    def _call(self, path: str, body: Any) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}/{path}", content, {"content-type": "application/json"})  # noqa: S310  always the edge of this test
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310  as above
                answer: dict[str, Any] = json.loads(response.read())
        except urllib.error.HTTPError as error:
            answer = {"refused": json.loads(error.read())}
        return answer

    async def start(self, objective: str, data: str, passed: int = 8, **options: Any) -> dict[str, Any]:
        """Begins a run that passes the first gates."""
        gates = [f"STAGE_{stage}" for stage in STAGES[:passed]]
        return await self.call(
            "start", {"objective": objective, "data": data, "options": {"pass_gates": gates, **options}}
        )

    async def until(self, stage: str, status: str) -> dict[str, Any]:
        """Waits until a stage has a status, and returns the project's state."""

        async def look() -> dict[str, Any] | None:
            state = await self.call("state")
            found = of(state, stage)["status"].removeprefix("STAGE_STATUS_")
            assert found == status or state["run"]["status"] != "RUN_STATUS_FAILED", of(state, stage)
            return state if found == status else None

        found: dict[str, Any] = await until(look, SECONDS)
        return found

    async def go_on(self, stage: str, edits: dict[str, Any] | None = None) -> dict[str, Any]:
        """Begins a stage again with what a person chose, and waits until it is done."""
        answer = await self.call("transition", {"stage_id": f"STAGE_{stage}", **({"edits": edits} if edits else {})})
        assert "refused" not in answer, answer
        state = await self.until(stage, "COMPLETED")
        await self.call("cancel", {})  # what follows is not what this is about
        return state


def of(state: dict[str, Any], stage: str) -> dict[str, Any]:
    found: dict[str, Any] = state["stages"][STAGES.index(stage)]
    return found


def known(state: dict[str, Any]) -> str:
    """Returns all of a project's state but how far the log was read."""
    return json.dumps({name: value for name, value in state.items() if name != "as_of_sequence"}, sort_keys=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bystander(stack: Stack) -> tuple[Project, str]:
    """Another project, at its first gate."""
    project = Project(stack, "bystander")
    await project.start("predict species", "penguins.csv", passed=0)
    return project, known(await project.until("PARSE_INTENT", "WAITING_CONFIRMATION"))


def check_failed(state: dict[str, Any], stage: str, code: str, *names: str) -> None:
    """The stage is FAILED with a typed error, those before it are as they were, and those after it were not begun."""
    failed, place = of(state, stage), STAGES.index(stage)
    error = failed["error"]
    assert (error["reason"], error["metadata"]["code"]) == ("ERROR_REASON_STAGE_FAILED", code), error
    assert state["run"]["status"] == "RUN_STATUS_FAILED"
    statuses = [each["status"].removeprefix("STAGE_STATUS_") for each in state["stages"]]
    assert statuses == ["COMPLETED"] * place + ["FAILED"] + ["PENDING"] * (7 - place)
    assert all(each["attempt"] == 1 for each in state["stages"][:place])
    assert len(error["message"]) <= 1300 and "Traceback" not in error["message"] and "/tmp" not in error["message"]
    for name in names:
        assert name in error["message"] + json.dumps(error["metadata"]), error
    assert not any(file.get("stale") for file in state["run"].get("artifacts", []))


CASES = [
    (
        "predict zorgness",
        "penguins.csv",
        "PARSE_INTENT",
        "TARGET_NOT_FOUND",
        ("zorgness", "species"),
        {"target": "species"},
    ),
    ("predict y", "ragged.csv", "DATA_SOURCE", "MALFORMED_ROWS", ("42", "3 cells"), {"skip_bad_rows": "yes"}),
    ("predict species", "picture.csv", "DATA_SOURCE", "UNSUPPORTED_FORMAT", ("picture",), {"data": "penguins.csv"}),
    ("predict kind", "same.csv", "PROFILE_DATA", "SINGLE_CLASS_TARGET", ("kind", "a"), {"target": "y"}),
]


@pytest.mark.parametrize(
    ("objective", "data", "stage", "code", "names", "edits"), CASES, ids=[case[3] for case in CASES]
)
async def test_a_stage_fails_alone_and_goes_on_with_what_is_chosen(
    stack: Stack,
    bystander: tuple[Project, str],
    objective: str,
    data: str,
    stage: str,
    code: str,
    names: tuple[str, ...],
    edits: dict[str, Any],
) -> None:
    project = Project(stack, code.lower())
    await project.start(objective, data, passed=STAGES.index(stage) + 1)
    state = await project.until(stage, "FAILED")
    check_failed(state, stage, code, *names)
    other, before = bystander
    assert known(await other.call("state")) == before
    refused = await project.call("transition", {"stage_id": f"STAGE_{stage}", "edits": {"nonsense": 1}})
    assert "EDIT_REFUSED" in json.dumps(refused["refused"])
    assert known(await project.call("state")) == known(state), "what is refused changes nothing"
    again = await project.go_on(stage, edits)
    assert of(again, stage)["attempt"] == 2 and "error" not in of(again, stage)
    done, earlier = STAGES[: STAGES.index(stage)], STAGES[: STAGES.index(stage)]
    assert [of(again, name) for name in done] == [of(state, name) for name in earlier]


async def test_a_program_that_crashes_leaves_its_words_and_may_be_tried_again(
    stack: Stack, bystander: tuple[Project, str]
) -> None:
    project = Project(stack, "crash")
    await project.start("predict species", "penguins.csv", passed=3, hints={"crash": True})
    state = await project.until("PROFILE_DATA", "FAILED")
    check_failed(state, "PROFILE_DATA", "STAGE_CRASHED", "exit code 1", "program.stderr")
    [file] = [file for file in state["run"]["artifacts"] if file["name"] == "program.stderr"]
    assert file["stage_id"] == "STAGE_PROFILE_DATA"
    other, before = bystander
    assert known(await other.call("state")) == before
    await project.go_on("PROFILE_DATA")


async def test_a_run_with_too_little_memory_is_started_anew_with_more(
    stack: Stack, bystander: tuple[Project, str]
) -> None:
    project = Project(stack, "memory")
    await project.start("predict species", "penguins.csv", passed=1, memory_bytes=LITTLE)
    state = await project.until("PARSE_INTENT", "FAILED")
    check_failed(state, "PARSE_INTENT", "MEMORY_LIMIT", "memory", "raise the limit")
    other, before = bystander
    assert known(await other.call("state")) == before
    started = await project.start("predict species", "penguins.csv", passed=1)
    assert started["run"]["run_id"] != state["run"]["run_id"]
    await project.until("PARSE_INTENT", "COMPLETED")
