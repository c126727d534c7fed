"""What a person asks about runs on the command line, against a scripted Conductor on a real port."""

import hashlib
import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, event_pb2, project_pb2, task_pb2
from google.api import httpbody_pb2
from google.protobuf import json_format
from typer.testing import CliRunner

from client.api import ConductorClient
from client.cli import app
from client.show import choice_line, event_line

RUNNER = CliRunner()


class Scripted(conductor_pb2_grpc.ConductorServicer):
    """Answers with one state, and records what it is asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.state = project_pb2.ProjectState(project_id="p1", current_stage=project_pb2.STAGE_PARSE_INTENT)
        self.state.run.run_id = "r-1"
        self.state.run.status = project_pb2.RUN_STATUS_WAITING_CONFIRMATION

    def _answer(self, request: Any, _: grpc.ServicerContext) -> project_pb2.ProjectState:
        self.requests.append(request)
        return self.state

    StartProject = CancelRun = Confirm = TransitionTo = GetState = _answer

    def GetReport(self, request: Any, _: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self.requests.append(request)
        return httpbody_pb2.HttpBody(
            content_type="text/markdown", data=f"# {request.task_id or request.project_id}".encode()
        )

    def GetArtifact(self, request: Any, _: grpc.ServicerContext) -> Iterator[httpbody_pb2.HttpBody]:
        assert request.project_id == "p1"
        self.requests.append(request)
        yield httpbody_pb2.HttpBody(data=request.task_id.encode())
        yield httpbody_pb2.HttpBody(data=request.name.encode())

    def UploadData(self, requests: Iterator[Any], _: grpc.ServicerContext) -> project_pb2.DataUpload:
        content = bytearray()
        for request in requests:
            if not request.project_id:
                assert len(request.content.data) <= 1024 * 1024
            self.requests.append(request)
            content += request.content.data
        name = self.requests[0].name
        return project_pb2.DataUpload(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def script() -> Scripted:
    return Scripted()


@pytest.fixture
def target(script: Scripted) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    conductor_pb2_grpc.add_ConductorServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def conductor(target: str, *arguments: str) -> Any:
    return RUNNER.invoke(app, [*arguments, "--target", target])


def test_start_says_all_that_steers_a_run(script: Scripted, target: str) -> None:
    options = ("--data", "uploads/a.csv", "--budget", "2m", "--pass-gate", "train", "--seed", "7")
    hints = ("--hint", "target=species", "--hint", "folds=3", "--hint", "note=a=b")
    done = conductor(target, "start", "p1", "predict species", *options, *hints)
    assert done.exit_code == 0, done.output
    (request,) = script.requests
    assert (request.project_id, request.objective, request.data) == ("p1", "predict species", "uploads/a.csv")
    assert request.options.budget.seconds == 120 and request.options.seed == 7
    assert list(request.options.pass_gates) == [project_pb2.STAGE_TRAIN] and request.request_id
    assert json_format.MessageToDict(request.options.hints) == {"target": "species", "folds": 3.0, "note": "a=b"}
    assert "run r-1  WAITING_CONFIRMATION" in done.output


def test_pass_all_passes_every_gate(script: Scripted, target: str) -> None:
    assert conductor(target, "start", "p1", "predict", "--pass-all").exit_code == 0
    assert list(script.requests[0].options.pass_gates) == list(range(1, 9))


@pytest.mark.parametrize("command", ["confirm", "reject", "transition"])
def test_choices_travel_by_field(script: Scripted, target: str, command: str) -> None:
    more = {"confirm": [], "reject": ["not this"], "transition": ["preprocess"]}[command]
    chosen = ("--set", "actions.age=DROP", "--set", "test_share=0.3", "--set", 'drop=["a","b"]', "--set", "name=x")
    done = conductor(target, command, "p1", *more, *chosen)
    assert done.exit_code == 0, done.output
    wanted = {"actions.age": "DROP", "test_share": 0.3, "drop": ["a", "b"], "name": "x"}
    assert json_format.MessageToDict(script.requests[0].edits) == wanted


@pytest.mark.parametrize("text", ["target", "=x", ""])
def test_a_choice_without_field_or_value_is_a_wrong_command_line(script: Scripted, target: str, text: str) -> None:
    done = conductor(target, "confirm", "p1", "--set", text)
    assert done.exit_code == 2 and "field=value" in done.output and script.requests == []


@pytest.mark.parametrize("value", ["9" * 400, "[" * 200 + "]" * 200])
def test_a_choice_that_cannot_be_sent_is_a_wrong_command_line(script: Scripted, target: str, value: str) -> None:
    for command in (("confirm", "p1", "--set"), ("start", "p1", "predict", "--hint")):
        done = conductor(target, *command, f"x={value}")
        assert done.exit_code == 2 and "too large" in done.output and script.requests == []


@pytest.mark.parametrize("value", ["[" * 99_999, "1" * 5000])
def test_a_choice_that_is_no_json_is_a_text(script: Scripted, target: str, value: str) -> None:
    assert conductor(target, "confirm", "p1", "--set", f"x={value}").exit_code == 0
    assert json_format.MessageToDict(script.requests[0].edits) == {"x": value}


@pytest.mark.parametrize(
    "arguments",
    [
        ("start", "p1", "predict", "--seed", "9" * 30),
        ("start", "p1", "predict", "--budget", "9" * 400),
        ("execute", "why?", "--deadline", "99999999999999h"),
        ("events", "--after", "9" * 30),
    ],
)
def test_a_number_that_cannot_be_sent_is_a_wrong_command_line(
    script: Scripted, target: str, arguments: tuple[str, ...]
) -> None:
    done = conductor(target, *arguments)
    assert done.exit_code == 2 and script.requests == []


@pytest.mark.parametrize("size", [0, 10, 700_000])
def test_upload_sends_the_whole_file_with_its_checksum(
    script: Scripted, target: str, tmp_path: Path, size: int
) -> None:
    file = tmp_path / "penguins.csv"
    file.write_bytes(content := b"x" * size)
    done = conductor(target, "upload", "p1", str(file), "--json")
    assert done.exit_code == 0, done.output
    first = script.requests[0]
    sha256 = hashlib.sha256(content).hexdigest()
    assert (first.project_id, first.name, first.sha256) == ("p1", "penguins.csv", sha256)
    assert json.loads(done.output)["sha256"] == sha256


def test_a_report_is_of_a_task_or_of_a_run(script: Scripted, target: str) -> None:
    for words, asked in ((("t-1",), ("t-1", "")), (("--project", "p1"), ("", "p1"))):
        done = conductor(target, "report", *words)
        assert (done.exit_code, done.output) == (0, f"# {''.join(asked)}")
        assert (script.requests[-1].task_id, script.requests[-1].project_id) == asked
    for words in ((), ("t-1", "--project", "p1")):
        assert conductor(target, "report", *words).exit_code == 2
    assert len(script.requests) == 2


def test_a_file_with_an_odd_name_is_given_another(script: Scripted, target: str, tmp_path: Path) -> None:
    file = tmp_path / "my table.csv"
    file.write_bytes(b"x")
    done = conductor(target, "upload", "p1", str(file))
    assert done.exit_code == 2 and "--name" in done.output and not script.requests
    assert conductor(target, "upload", "p1", str(file), "--name", "größe.csv").exit_code == 2 and not script.requests
    assert conductor(target, "upload", "p1", str(file), "--name", "table.csv").exit_code == 0
    assert script.requests[0].name == "table.csv"


def test_a_file_of_a_run_is_asked_for_by_its_project(script: Scripted, target: str) -> None:
    done = conductor(target, "artifact", "r-1-train-1", "a.csv", "--project", "p1")
    assert (done.exit_code, done.output) == (0, "r-1-train-1a.csv")
    [asked] = script.requests
    assert (asked.task_id, asked.name, asked.project_id) == ("r-1-train-1", "a.csv", "p1")


def test_an_upload_of_the_library_says_on_whose_behalf(script: Scripted, target: str, tmp_path: Path) -> None:
    file = tmp_path / "penguins.csv"
    file.write_bytes(b"x")
    with ConductorClient(target) as client:
        client.upload("p1", file, scope=task_pb2.Scope(user_id="ada"), correlation_id="c-7")
    assert (script.requests[0].scope.user_id, script.requests[0].correlation_id) == ("ada", "c-7")


def test_a_file_that_is_not_there_is_a_wrong_command_line(script: Scripted, target: str, tmp_path: Path) -> None:
    done = conductor(target, "upload", "p1", str(tmp_path / "none.csv"))
    assert done.exit_code == 2 and script.requests == []


def test_cancel_run_says_why(script: Scripted, target: str) -> None:
    assert conductor(target, "cancel-run", "p1", "--reason", "too slow").exit_code == 0
    (request,) = script.requests
    assert isinstance(request, conductor_pb2.CancelRunRequest) and request.reason == "too slow"


def test_state_shows_what_may_be_chosen(script: Scripted, target: str) -> None:
    waiting = script.state.waiting_confirmation
    waiting.stage_id, waiting.summary = project_pb2.STAGE_PARSE_INTENT, "Which column?"
    waiting.issues.add(code="TARGET_AMBIGUOUS", severity=project_pb2.ISSUE_SEVERITY_WARN, message="Two \x1b[31m fit.")
    choice = waiting.choices.add(
        kind=project_pb2.STAGE_ACTION_KIND_CHOOSE, field="target", options=["a", "b"], required=True, label="Target"
    )
    choice.default_value.string_value = "a"
    waiting.choices.add(kind=project_pb2.STAGE_ACTION_KIND_BACK, field="PARSE_INTENT", label="Ask again")
    output = conductor(target, "state", "p1").output
    assert '--set target=a|b (now "a") NEEDED: Target' in output
    assert "transition PARSE_INTENT: Ask again" in output
    assert "WARN TARGET_AMBIGUOUS: Two  [31m fit." in output and "\x1b" not in output


def test_state_shows_what_may_be_chosen_after_a_failure(script: Scripted, target: str) -> None:
    stage = script.state.stages.add(stage_id=project_pb2.STAGE_PARSE_INTENT, status=project_pb2.STAGE_STATUS_FAILED)
    kind = project_pb2.STAGE_ACTION_KIND_CHOOSE
    stage.outcome.actions.add(kind=kind, field="skip_bad_rows", options=["true"], label="Leave bad rows out")
    assert "--set skip_bad_rows=true: Leave bad rows out" in conductor(target, "state", "p1").output


def test_long_choices_are_cut() -> None:
    kind = project_pb2.STAGE_ACTION_KIND_CHOOSE
    line = choice_line(project_pb2.StageAction(kind=kind, field="c", options=[str(n) for n in range(50)]))
    assert "0|1|" in line and "|…" in line and "49" not in line


def left(script: Scripted, task: str, name: str, *, sha256: str = "", stale: bool = False) -> None:
    sha256 = sha256 or hashlib.sha256((task + name).encode()).hexdigest()
    script.state.run.artifacts.add(task_id=task, name=name, title="A \x1b[31mpicture", sha256=sha256, stale=stale)


def test_files_are_listed_as_the_command_artifact_takes_them(script: Scripted, target: str) -> None:
    left(script, "r-1-train-1", "plot.png", stale=True)
    assert conductor(target, "files", "p1").output.split()[:2] == ["r-1-train-1", "plot.png"]
    assert "stale" in conductor(target, "files", "p1").output and "\x1b" not in conductor(target, "files", "p1").output
    assert json.loads(conductor(target, "files", "p1", "--json").output)["name"] == "plot.png"


def test_files_are_saved_where_the_report_links_to_them(script: Scripted, target: str, tmp_path: Path) -> None:
    script.state.run.report_path = "reports/r-1-export-1.md"
    left(script, "r-1-train-1", "old.png", stale=True)
    left(script, "r-1-train-2", "plot.png")
    for _ in range(2):  # what is there already is written anew
        done = conductor(target, "files", "p1", "--to", str(tmp_path / "out"))
        assert done.exit_code == 0, done.output
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"report.md", "r-1-train-2/plot.png"}
    assert (tmp_path / "out" / "report.md").read_text() == "# p1"


@pytest.mark.parametrize(
    ("task", "name", "sha256"),
    [("r-1", "a.png", "0" * 64), ("..", "a.png", ""), ("r-1", "../a", ""), ("/tmp", "a", "")],
)
def test_a_file_that_is_not_what_the_run_lists_is_not_saved(
    script: Scripted, target: str, tmp_path: Path, task: str, name: str, sha256: str
) -> None:
    left(script, task, name, sha256=sha256)
    done = conductor(target, "files", "p1", "--to", str(tmp_path / "out"))
    assert done.exit_code == 1 and "BAD_ARTIFACT" in done.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_is_said(script: Scripted, target: str, tmp_path: Path) -> None:
    left(script, "r-1", "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "r-1").write_text("in the way")
    done = conductor(target, "files", "p1", "--to", str(tmp_path / "out"))
    assert done.exit_code == 1 and "Save to another folder" in done.output


def test_events_of_runs_have_a_line() -> None:
    outcome = project_pb2.StageOutcome(summary="344 rows", issues=[project_pb2.StageIssue()])
    found = event_pb2.StageResult(stage_id=project_pb2.STAGE_DATA_SOURCE, outcome=outcome)
    event = event_pb2.Event(sequence=3, type="STAGE_RESULT", project_id="p1", stage_result=found)
    assert event_line(event).endswith("DATA_SOURCE: 344 rows (1 issues, 0 files)")
    ended = event_pb2.RunEnded(run_id="r-1", status=project_pb2.RUN_STATUS_CANCELLED, reason="too slow")
    assert event_line(event_pb2.Event(type="RUN_ENDED", run_ended=ended)).endswith("run r-1 CANCELLED too slow")
