"""Every code of a failure: a file provokes it, its message says what and where, and another attempt goes on."""

import ast
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import event_pb2, project_pb2, terminal_pb2

from services.conductor import stage_result
from stages import bundling, export, judging, parse_intent, profile_data, review_edit
from stages.contract import CONTRACT, MAX_ISSUES, MAX_SUMMARY, Action, Artifact, Failed, Issue, folder_of
from stages.smoke import Proof
from tests.files_that_fail import FAILS, HEAD, PROGRAMS, PROMISED, TAIL, Fails
from tests.tables_at_hand import REPO, work_here

BY_CONDUCTOR = "STAGE_CRASHED", "DISK_LIMIT"  # what only Conductor can tell
FROM_HERE = re.compile(r"Traceback|File \"|\.py\b.*line|(?<![\w.])/(tmp|work|usr|home|root|var|proc)\b")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out pictures and most resamples, which cost more than all the rest."""
    monkeypatch.setattr(profile_data, "_pictures", lambda *_: iter(()))
    monkeypatch.setattr(review_edit, "_draw", lambda *_: [Artifact("opened.json", "application/json", "")])
    monkeypatch.setattr(judging, "RESAMPLES", 100)


@pytest.fixture
def exporting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets a test of EXPORT do in fresh processes only what it is about."""
    code = request.getfixturevalue("row").code
    if code == "EXPORT_SMOKE_TEST_FAILED":
        _break_programs(monkeypatch, tmp_path / "programs")
        return
    monkeypatch.setattr(export, "prove", lambda *_: Proof(1, 0.0, ("rows",)))
    if code == "SKOPS_NOT_WRITTEN":
        monkeypatch.setattr(bundling, "PUBLIC", ())
    if code != "NOT_REPRODUCED":
        monkeypatch.setattr(export, "_again", lambda *_: None)


def _break_programs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for source in bundling.COPIED:
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        text = (bundling.PROGRAMS / source).read_text()
        (folder / source).write_text("raise SystemExit('it does not start')" if "predict" in source else text)
    monkeypatch.setattr(bundling, "PROGRAMS", folder)


def attempt(row: Fails, folder: Path, asked: dict[str, Any]) -> tuple[list[Issue], Sequence[Action], bool]:
    """Does a stage's work. Returns what it told, what it offers, and whether it failed."""
    work = importlib.import_module(f"stages.{row.stage.lower()}").work
    try:
        found = work_here(work, folder, row.stage, **asked)
    except Failed as failed:
        return [failed.issue], failed.actions, True
    return list(found.warnings), found.actions, False


def files_of(folder: Path, but: str) -> dict[str, str]:
    """Returns the SHA-256 of every file of a run but those of one stage."""
    files = (path for path in folder.rglob("*") if path.is_file() and but not in path.parts)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_words(issue: Issue, row: Fails, actions: Sequence[Action]) -> None:
    """The message is for a person: short, about the file and not about this machine, with something to do next."""
    said = f"{issue.message} {issue.suggestion} {issue.value or ''}"
    assert 0 < len(issue.message) <= MAX_SUMMARY and len(issue.suggestion) <= MAX_SUMMARY
    assert not FROM_HERE.search(said.replace("/etc/passwd", "")), said
    assert issue.message[-1] in ".?!", issue.message
    assert issue.suggestion or actions or "again" in issue.message, "and now?"
    for name in row.names:
        assert name in said, said
    for name, value in row.at.items():
        assert getattr(issue, name) == value, (name, issue)


def check_offered(edits: dict[str, Any], actions: Sequence[Action]) -> None:
    """What makes another attempt go on is among what the failure offers, as Conductor will ask."""
    by_field = {action.field: action for action in actions if action.kind in ("CHOOSE", "EDIT")}
    for name, value in edits.items():
        assert name in by_field, f"{name} is not offered, only {sorted(by_field)}"
        assert by_field[name].kind == "EDIT" or value in by_field[name].options


@pytest.mark.parametrize("row", FAILS, ids=lambda row: f"{row.stage}-{row.code}-{row.severity}")
@pytest.mark.usefixtures("exporting")
def test_a_file_provokes_it_the_message_helps_and_another_attempt_goes_on(
    row: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    asked = row.make(folder)
    if row.stage == "REVIEW_EDIT" and row.code == "TEST_SET_REOPENED":
        attempt(row, folder, {})
    before = files_of(folder, folder_of(row.stage))
    issues, actions, failed = attempt(row, folder, asked)
    assert files_of(folder, folder_of(row.stage)) == before, "what other stages left is as it was"
    found = [issue for issue in issues if issue.code == row.code]
    assert found, [issue.code for issue in issues]
    matching = [issue for issue in found if all(getattr(issue, name) == value for name, value in row.at.items())]
    issue = (matching or found)[0]
    assert failed == (row.severity == "ERROR") and issue.severity == row.severity
    check_words(issue, row, actions)
    if failed:
        if row.code == "EXPORT_SMOKE_TEST_FAILED":
            monkeypatch.undo()
            monkeypatch.setattr(export, "prove", lambda *_: Proof(1, 0.0, ("rows",)))
            monkeypatch.setattr(export, "_again", lambda *_: None)
        check_again(row, folder, asked, actions)


def check_again(row: Fails, folder: Path, asked: dict[str, Any], actions: Sequence[Action]) -> None:
    """With what was chosen, or with another file, the same stage gets past it."""
    assert row.better or row.mend, "nothing helps?"
    if row.mend:
        asked = row.mend(folder)
    else:
        if row.code != "BAD_EDIT":  # that is refused before a program is begun: what was offered before holds
            check_offered(dict(row.better), actions)
        asked = {**asked, "edits": {**asked.get("edits", {}), **row.better}}
    issues, _, failed = attempt(row, folder, asked)
    assert not failed, issues
    assert not [issue for issue in issues if (issue.code, issue.severity) == (row.code, "ERROR")]


# ---- what happens to a program ----


@pytest.mark.parametrize("code", PROGRAMS)
def test_what_happens_to_a_program_is_told_by_it(code: str, tmp_path: Path) -> None:
    body, limits, word = PROGRAMS[code]
    envelope = {"contract": CONTRACT, "stage": "TRAIN", "limits": limits}
    (tmp_path / "envelope.json").write_text(json.dumps(envelope))
    left = run(tmp_path, HEAD + body + TAIL)
    document = json.loads((tmp_path / "train" / "result.json").read_text())
    failed = code != "MORE_ISSUES"
    assert left.returncode == (2 if failed else 0), left.stderr
    issue = document["error"] if failed else document["warnings"][-1]
    assert (document["status"], issue["code"]) == ("FAILED" if failed else "OK", code)
    assert word in issue["message"] and "Traceback" not in json.dumps(document)
    assert len(document["warnings"]) == (0 if failed else MAX_ISSUES)
    run(tmp_path, HEAD + "return Result('Done.', {})" + TAIL)
    assert json.loads((tmp_path / "train" / "result.json").read_text())["status"] == "OK", "another attempt goes on"


def test_an_envelope_of_another_contract_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "envelope.json").write_text('{"contract": "stage/9", "stage": "TRAIN"}')
    left = run(tmp_path, HEAD + "pass" + TAIL)
    assert left.returncode == 1 and 'must say "contract": "stage/1"' in left.stderr and not left.stdout


def run(folder: Path, program: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-S", "-c", program, "envelope.json"]
    variables = {"PYTHONPATH": str(REPO), "PATH": os.environ["PATH"]}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=20)


@pytest.mark.parametrize("end", stage_result.ENDS)
def test_what_the_sandbox_ends_is_told_by_conductor(end: int) -> None:
    call = event_pb2.StageCall(stage_id=project_pb2.STAGE_TRAIN)
    error = stage_result.ended_badly(call, terminal_pb2.CommandResult(end=end, signal=9))  # type: ignore[arg-type]
    assert error is not None and error.metadata["code"] == stage_result.ENDS[end][0]
    assert "TRAIN" in error.message and "TransitionTo tries again" in error.message


# ---- the table is whole ----


def told_by(path: Path) -> Iterator[str]:
    """Yields the codes with which a module makes an Issue or a Failed, or returns a typed error."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = {"Issue": 0, "Failed": 0, "_failed": 1}.get(node.func.id, -1)
            if 0 <= place < len(node.args):
                yield from texts_in(node.args[place])
        if isinstance(node, ast.AnnAssign | ast.Assign) and ast.unparse(node).startswith("code = "):
            yield from texts_in(node.value)


def texts_in(node: ast.AST | None) -> Iterator[str]:
    for part in ast.walk(node) if node else ():
        if isinstance(part, ast.Constant) and re.fullmatch(r"[A-Z]+(_[A-Z]+)*", str(part.value)):
            yield str(part.value)


def codes_in_use() -> set[str]:
    """Returns every code of the programs and of Conductor."""
    by_programs = {code for path in sorted((REPO / "stages").glob("*.py")) for code in told_by(path)}
    by_conductor = set(told_by(REPO / "services/conductor/stage_result.py"))
    return by_programs | by_conductor | {code for code, _ in stage_result.ENDS.values()}


def test_every_code_has_a_file_and_every_promised_code_is_in_use() -> None:
    shown = {row.code for row in FAILS} | set(PROGRAMS) | {*BY_CONDUCTOR, "BAD_ENVELOPE"}
    used = codes_in_use()
    assert not used - shown, "a code without a row in tests/files_that_fail.py"
    assert not PROMISED - shown, "a promised code without a row"
    assert not shown - used, "a row of a code that nothing tells"


def test_every_code_is_explained_in_the_documentation() -> None:
    text = (REPO / "docs" / "stages.md").read_text()
    told = dict(re.findall(r"^\| `([A-Z_]+)` \| ([A-Z, ]+) \|", text, re.MULTILINE))
    assert set(told) == codes_in_use()
    for row in FAILS:
        assert row.severity in told[row.code], row.code


# ---- the example of the documentation ----

EXAMPLE = REPO / "docs" / "examples" / "own_parse_intent.py"


@pytest.mark.parametrize(
    ("data", "hints", "edits", "status", "names"),
    [
        ("uploads/t.csv", {"target": "y"}, {}, "OK", "y is to be predicted"),
        ("uploads/t.csv", {}, {}, "NEEDS_INPUT", "Which column"),
        ("uploads/t.csv", {"target": "zorg"}, {"target": "x"}, "OK", "x is to be predicted"),
        ("nothing.csv", {"target": "y"}, {}, "FAILED", "cannot be found"),
    ],
)
def test_the_example_keeps_the_contract(
    tmp_path: Path, data: str, hints: dict[str, Any], edits: dict[str, Any], status: str, names: str
) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "t.csv").write_text("x,y\n1,a\n2,b\n")
    run_of = project_pb2.Run(run_id="r", data=data, objective="anything")
    run_of.options.hints.update(hints)
    call = event_pb2.StageCall(run=run_of, stage_id=project_pb2.STAGE_PARSE_INTENT, attempt=1, project_id="p")
    call.edits.update(edits)
    (tmp_path / "envelope.json").write_bytes(stage_result.envelope(call, ["/nowhere"]))
    command = [sys.executable, "-I", "-S", str(EXAMPLE), "envelope.json"]
    left = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert json.loads(left.stdout)["event"] == "progress" and not left.stderr
    text = (tmp_path / "parse-intent" / "result.json").read_bytes()
    outcome, error = stage_result.read(call, "task", text, left.returncode)
    assert names in outcome.summary
    assert outcome.needs_input == (status == "NEEDS_INPUT") and (error is not None) == (status == "FAILED")
    if status != "FAILED":
        described = outcome.artifacts[0]
        content = (tmp_path / "parse-intent" / described.name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == described.sha256
    if status == "OK":
        found = json.loads(text)["result"]
        ours = work_here(parse_intent.work, tmp_path, "PARSE_INTENT", data=data, hints={"target": "y"}).result
        assert set(ours) == set(found), "what later stages read is there"
