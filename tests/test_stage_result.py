"""What a stage's program says, held against its contract: a program may be anybody's, and wrong in any way."""

import json
import math
import time
from typing import Any

import pytest
from conductor.v1 import error_pb2, event_pb2, project_pb2, terminal_pb2
from google.protobuf import duration_pb2, json_format

from services.common.errors import Reason
from services.conductor import stage_result
from services.conductor.protocol import MAX_OUTPUT_PROGRESS
from services.conductor.stage_progress import LINE_BYTES, Lines
from services.conductor.stage_result import Unusable, ended_badly, envelope, read

HUGE = 10**400  # no double holds it
DEEP = "[" * 50_000
SHA = "0" * 64
HEAD = {"contract": "stage/1", "stage": "TRAIN", "run_id": "r1", "attempt": 2, "status": "OK", "summary": "Done."}


def call(**fields: Any) -> event_pb2.StageCall:
    program = project_pb2.StageProgram(stage_id=project_pb2.STAGE_TRAIN, memory_bytes=512 * 1024 * 1024, threads=2)
    program.cpu_time.FromSeconds(60)
    program.wall_time.FromSeconds(90)
    run = project_pb2.Run(run_id="r1", objective="predict", correlation_id="c1", data="uploads/a.csv")
    return event_pb2.StageCall(
        run=run, stage_id=project_pb2.STAGE_TRAIN, attempt=2, program=program, project_id="p", **fields
    )


def text_of(**fields: Any) -> bytes:
    return json.dumps({**HEAD, **fields}).encode()


def outcome_of(**fields: Any) -> project_pb2.StageOutcome:
    outcome, error = read(call(), "r1-train-2", text_of(**fields), 0)
    assert error is None
    shown(outcome)
    return outcome


def shown(message: Any) -> Any:
    """Whatever was taken from a program can be shown over HTTP, and is not much larger than what it said."""
    assert len(message.SerializeToString()) < 2 * stage_result.MAX_RESULT_BYTES
    return json.loads(json_format.MessageToJson(message))


def test_a_result_is_taken_as_it_is() -> None:
    outcome = outcome_of(
        status="NEEDS_INPUT",
        metrics={"cpu_s": 1.5, "wall_s": 2, "peak_mb": 3},
        next_actions=[
            {
                "id": "t",
                "label": "Which?",
                "kind": "CHOOSE",
                "field": "target",
                "options": ["a", "b"],
                "required": True,
            },
            {
                "id": "d",
                "label": "How deep?",
                "kind": "EDIT",
                "field": "depth",
                "minimum": -2.5,
                "maximum": 9,
                "default": 3,
            },
            {"id": "m", "label": "Drop", "kind": "CHOOSE", "field": "drop", "options": ["a"], "many": True},
        ],
        warnings=[
            {"code": "LEAK", "severity": "WARN", "message": "m", "column": "c", "row": 7, "value": "v", "count": 2}
        ],
        artifacts=[{"name": "plot-a.png", "media_type": "image/png", "title": "A", "sha256": SHA, "bytes": 5}],
    )
    target, depth, drop = outcome.actions
    assert outcome.needs_input and outcome.summary == "Done." and outcome.peak_memory_bytes == 3 * 1024 * 1024
    assert (outcome.cpu_time, outcome.wall_time) == (
        duration_pb2.Duration(seconds=1, nanos=500_000_000),
        duration_pb2.Duration(seconds=2),
    )
    assert target.required and target.options == ["a", "b"] and target.kind == project_pb2.STAGE_ACTION_KIND_CHOOSE
    assert not target.HasField("minimum") and not target.HasField("default_value") and not target.many
    assert (depth.minimum, depth.maximum, depth.default_value.number_value) == (-2.5, 9, 3)
    assert drop.many and not drop.required
    [issue], [file] = outcome.issues, outcome.artifacts
    assert (issue.code, issue.severity, issue.column, issue.row, issue.value, issue.count) == (
        "LEAK",
        project_pb2.ISSUE_SEVERITY_WARN,
        "c",
        7,
        "v",
        2,
    )
    assert (file.name, file.media_type, file.sha256, file.task_id, file.attempt, file.stage_id) == (
        "plot-a.png",
        "image/png",
        SHA,
        "r1-train-2",
        2,
        project_pb2.STAGE_TRAIN,
    )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"OK"',
        b"{",
        b"\xff\xfe",
        b'{"contract": "stage/1"}',
        DEEP.encode(),
        b"1" * 5000,
        text_of(contract="stage/2"),
        text_of(stage="EXPORT"),
        text_of(run_id="r2"),
        text_of(run_id=None),
        text_of(attempt=1),
        text_of(attempt=[2]),
        text_of(status="RUNNING"),
        text_of(status=None),
        text_of(status=["OK"]),
        text_of(status={}),
        text_of().replace(b"Done.", b"\xc3\x28"),
        text_of(next_actions=[{"kind": "DELETE"}]),
        text_of(next_actions=[{"kind": "UNSPECIFIED"}]),
        text_of(next_actions=[7]),
        text_of(artifacts=[{"name": "../a", "sha256": SHA}]),
        text_of(artifacts=[{"name": "/etc/passwd", "sha256": SHA}]),
        text_of(artifacts=[{"name": ".a", "sha256": SHA}]),
        text_of(artifacts=[{"name": "A", "sha256": SHA}]),
        text_of(artifacts=[{"name": "a" * 65, "sha256": SHA}]),
        text_of(artifacts=[{"name": "a\n", "sha256": SHA}]),
        text_of(artifacts=[{"name": "result.json", "sha256": SHA}]),
        text_of(artifacts=[{"name": "program.stderr", "sha256": SHA}]),
        text_of(artifacts=[{"name": "a", "sha256": "0" * 63}]),
        text_of(artifacts=[{"name": "a"}]),
        text_of(artifacts=[{"name": "a", "sha256": SHA}, {"name": "a", "sha256": SHA}]),  # whose would it be?
        text_of(artifacts=["a"]),
    ],
)
def test_what_is_no_result_is_refused(text: bytes) -> None:
    with pytest.raises(Unusable):
        read(call(), "t", text, 0)


@pytest.mark.parametrize(
    "odd", [None, 7, -1, HUGE, -HUGE, 1e308, float("nan"), float("inf"), True, "", "x", [], {}, [{}]]
)
def test_fields_of_a_wrong_type_cost_no_more_than_themselves(odd: Any) -> None:
    outcome = outcome_of(summary=odd, metrics={"cpu_s": odd, "wall_s": odd, "peak_mb": odd})
    assert outcome.cpu_time.seconds >= 0 and outcome.peak_memory_bytes >= 0
    outcome = outcome_of(metrics=odd, warnings=odd, result=odd)
    assert outcome.cpu_time.ToNanoseconds() == 0
    [issue] = outcome_of(
        warnings=[dict.fromkeys(("code", "severity", "message", "column", "row", "value", "count", "suggestion"), odd)]
    ).issues
    assert issue.severity in (1, 2, 3) and len(issue.message) <= 600
    given = dict.fromkeys(("id", "label", "field", "options", "minimum", "maximum", "many", "required"), odd)
    [action] = outcome_of(next_actions=[{**given, "kind": "EDIT"}]).actions
    assert action.required == action.many == (odd is True)
    for bound in (action.minimum, action.maximum):
        assert math.isfinite(bound)
    file = {"name": "a", "sha256": SHA, "title": odd, "media_type": odd, "bytes": odd}
    assert outcome_of(artifacts=[file]).artifacts[0].media_type == "application/octet-stream"


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), HUGE, {"a": float("nan")}, ["\ud800"], "\ud800"])
def test_a_default_that_cannot_be_told_is_no_default_or_no_result(odd: Any) -> None:
    """Never anything else than Unusable: the stage would end in a fault of ours."""
    text = text_of(next_actions=[{"kind": "EDIT", "field": "a", "default": odd}])
    try:
        outcome, _ = read(call(), "t", text, 0)
    except Unusable:
        return
    shown(outcome)


def test_a_deep_default_is_no_fault_of_ours() -> None:
    nested = "[" * 150 + "]" * 150
    text = text_of(next_actions=[{"kind": "EDIT", "default": 0}]).replace(
        b'"default": 0', b'"default": ' + nested.encode()
    )
    try:
        outcome, _ = read(call(), "t", text, 0)
    except Unusable:
        return
    event = event_pb2.Event(stage_result=event_pb2.StageResult(outcome=outcome))
    event_pb2.Event.FromString(event.SerializeToString())  # what cannot be read again would end the project


def test_absent_bounds_stay_absent_and_negative_ones_negative() -> None:
    kinds = [
        {"kind": "EDIT", "field": "a", "minimum": -5},
        {"kind": "EDIT", "field": "b", "minimum": None, "maximum": "x"},
    ]
    first, second = outcome_of(next_actions=kinds).actions
    assert first.minimum == -5 and not first.HasField("maximum")
    assert not second.HasField("minimum") and not second.HasField("maximum")
    [issue] = outcome_of(warnings=[{"code": "A", "row": None, "count": "many"}]).issues
    assert not issue.HasField("row") and not issue.HasField("count")


def test_of_two_offers_of_a_field_the_first_holds() -> None:
    kinds = [{"kind": "CHOOSE", "field": "a", "options": ["x"]}, {"kind": "EDIT", "field": "a"}, {"kind": "CONFIRM"}]
    assert [action.kind for action in outcome_of(next_actions=[*kinds, {"kind": "CONFIRM"}]).actions] == [2, 1, 1]


def test_a_program_that_prints_a_great_deal_costs_little() -> None:
    lines = Lines("c", 0.5)
    began = time.process_time()
    for _ in range(16):
        lines.add(b"\n" * LINE_BYTES + b"{x\n" * 1000)
    assert time.process_time() - began < 1.0, "65,536 empty lines at once took a second each"
    lines.add(b'{"event": "progress", "pct": 7}\n' + b"\n" * 1000)
    piece = lines.take()
    assert piece is not None and piece.stage.percent == 7


def test_lists_and_texts_are_cut() -> None:
    outcome = outcome_of(
        summary="s\x00\x1b[31m" + "x" * 1000,
        next_actions=[{"kind": "CONFIRM"}] * 700,
        warnings=[{"code": "A", "severity": "UNSPECIFIED"}] * 300,
        artifacts=[{"name": f"a{n}", "sha256": SHA, "media_type": "text/html"} for n in range(64)],
    )
    assert len(outcome.summary) == 600 and "\x00" not in outcome.summary and "\x1b" not in outcome.summary
    assert (len(outcome.actions), len(outcome.issues)) == (600, 200)
    assert {file.media_type for file in outcome.artifacts} == {"application/octet-stream"}
    assert outcome.issues[0].severity == project_pb2.ISSUE_SEVERITY_WARN


@pytest.mark.parametrize("exit_code", [0, 2])
def test_what_would_make_the_state_too_large_is_refused(exit_code: int) -> None:
    actions = [{"kind": "EDIT", "field": f"f{n}", "label": "é" * 500} for n in range(600)]
    fields = {"next_actions": actions, "status": "FAILED" if exit_code else "OK", "error": {"code": "A"}}
    assert len(text_of(**fields)) < stage_result.MAX_RESULT_BYTES * 2
    with pytest.raises(Unusable, match="524288"):
        read(call(), "r1-train-2", text_of(**fields), exit_code)
    read(call(), "r1-train-2", text_of(**{**fields, "next_actions": actions[:400]}), exit_code)


def test_a_failure_is_typed_and_still_offers() -> None:
    error = {"code": "TARGET_NOT_FOUND", "severity": "ERROR", "message": "No column specie.", "column": "specie"}
    action = {"kind": "CHOOSE", "field": "target", "options": ["species"]}
    outcome, found = read(
        call(),
        "t",
        text_of(status="FAILED", error={**error, "row": 3, "suggestion": "Try it."}, next_actions=[action]),
        2,
    )
    assert found is not None and found.reason == Reason.ERROR_REASON_STAGE_FAILED
    assert found.message == "No column specie. Try it."
    assert dict(found.metadata) == {
        "code": "TARGET_NOT_FOUND",
        "stage_id": "STAGE_TRAIN",
        "column": "specie",
        "row": "3",
    }
    assert outcome.issues[0].severity == project_pb2.ISSUE_SEVERITY_ERROR and outcome.actions[0].field == "target"


@pytest.mark.parametrize("error", [None, 7, "no", [], {}, {"code": 5, "message": {}}])
def test_a_failure_without_a_reason_says_at_least_that(error: Any) -> None:
    _, found = read(call(), "t", text_of(status="FAILED", error=error), 2)
    assert found is not None and found.metadata["code"] and found.message


@pytest.mark.parametrize(
    ("end", "fields", "code"),
    [
        ("EXITED", {"exit_code": 1}, "STAGE_CRASHED"),
        ("EXITED", {"exit_code": 3}, "STAGE_CRASHED"),
        ("EXITED", {"exit_code": -1}, "STAGE_CRASHED"),
        ("SIGNALED", {"signal": 11}, "STAGE_CRASHED"),
        ("WALL_TIME", {"signal": 9}, "STAGE_TIMEOUT"),
        ("CPU_TIME", {"signal": 9}, "STAGE_TIMEOUT"),
        ("MEMORY", {"signal": 9}, "MEMORY_LIMIT"),
        ("WORKSPACE", {"signal": 9}, "DISK_LIMIT"),
        ("FILE_SIZE", {"signal": 25}, "DISK_LIMIT"),
        ("PROCESSES", {"signal": 9}, "STAGE_CRASHED"),
        ("UNSPECIFIED", {}, "STAGE_CRASHED"),
    ],
)
def test_how_a_program_ended_becomes_a_code(end: str, fields: Any, code: str) -> None:
    result = terminal_pb2.CommandResult(end=terminal_pb2.CommandEnd.Value(f"COMMAND_END_{end}"), **fields)
    error = ended_badly(call(), result)
    assert error is not None and error.metadata["code"] == code and not error.retryable
    assert "TRAIN" in error.message and "TransitionTo" in error.message


@pytest.mark.parametrize("exit_code", [0, 2])
def test_a_program_that_exits_well_is_asked_for_its_result(exit_code: int) -> None:
    assert (
        ended_badly(call(), terminal_pb2.CommandResult(end=terminal_pb2.COMMAND_END_EXITED, exit_code=exit_code))
        is None
    )


def test_a_program_that_the_terminal_stopped_may_be_begun_again() -> None:
    error = ended_badly(call(), terminal_pb2.CommandResult(end=terminal_pb2.COMMAND_END_CANCELLED))
    assert error is not None and error.reason == Reason.ERROR_REASON_OUTCOME_UNKNOWN and error.retryable


def test_the_envelope_says_everything() -> None:
    asked = call()
    asked.run.options.seed = 9
    asked.run.options.budget.FromMilliseconds(1500)
    asked.run.options.hints.update({"target": "y", "n": 3, "deep": {"a": [1, 0.5, None, True]}})
    asked.edits.update({"drop": ["a", "b"], "depth": 4})
    told = json.loads(envelope(asked, ["/data"]))
    assert told == {
        "contract": "stage/1",
        "project_id": "p",
        "run_id": "r1",
        "stage": "TRAIN",
        "attempt": 2,
        "correlation_id": "c1",
        "seed": 9,
        "objective": "predict",
        "hints": {"target": "y", "n": 3, "deep": {"a": [1, 0.5, None, True]}, "budget_s": 1.5},
        "data": "uploads/a.csv",
        "data_folders": ["/data"],
        "edits": {"drop": ["a", "b"], "depth": 4},
        "limits": {"cpu_s": 60.0, "wall_s": 90.0, "mem_mb": 512, "threads": 2},
    }
    assert all(type(told[name]) is int for name in ("attempt", "seed")) and type(told["edits"]["depth"]) is int
    asked.run.options.memory_bytes = 256 * 1024 * 1024
    asked.run.options.hints.update({"budget_s": 7})
    told = json.loads(envelope(asked, []))
    assert told["limits"]["mem_mb"] == 256 and told["hints"]["budget_s"] == 7


# ---- progress ----


def line(**fields: Any) -> bytes:
    return json.dumps({"event": "progress", "pct": 10, "phase": "fold", **fields}).encode() + b"\n"


def test_progress_is_the_newest_line_told_in_pieces() -> None:
    lines = Lines("call-1", 0.5)
    assert lines.pause is None and lines.take() is None
    whole = line(pct=50, done=1, total=5, candidate="gbm", best=-0.5, budget_share=0.25, detail="Fold 1 of 5.")
    lines.add(line() + whole[:20])
    lines.add(whole[20:])
    pause = lines.pause
    piece = lines.take()
    assert pause == 0.5 and piece is not None and piece.call_id == "call-1" and piece.message == "Fold 1 of 5."
    assert piece.stage == project_pb2.StageProgress(
        percent=50, phase="fold", detail="Fold 1 of 5.", done=1, total=5, candidate="gbm", best=-0.5, budget_share=0.25
    )
    assert lines.pause is None and lines.take() is None
    lines.add(line())
    assert lines.pause is not None and lines.pause > 0.5


def test_progress_is_told_a_hundred_times_at_most() -> None:
    lines, told = Lines("c", 0.001), 0
    for _ in range(3 * MAX_OUTPUT_PROGRESS):
        lines.add(line())
        if lines.pause is not None:
            told += lines.take() is not None
    told += lines.take(last=True) is not None
    assert told == MAX_OUTPUT_PROGRESS


@pytest.mark.parametrize("odd", [None, -5, HUGE, -HUGE, 1e308, float("nan"), float("inf"), True, "x", [], {}])
def test_odd_figures_of_progress_cost_no_more_than_themselves(odd: Any) -> None:
    lines = Lines("c", 0.5)
    names = ("pct", "phase", "detail", "done", "total", "candidate", "best", "budget_share")
    lines.add(line(**dict.fromkeys(names, odd)))
    piece = lines.take()
    assert piece is not None and 0 <= piece.stage.percent <= 100
    told = shown(piece)["stage"]
    assert "NaN" not in told.values() and "Infinity" not in told.values()


def test_what_is_no_progress_is_let_be() -> None:
    lines = Lines("c", 0.5)
    lines.add(b"warning: \xff\xfe\n\n[]\n7\n{}\n" + DEEP.encode() + b"\n" + b"9" * 5000 + b"\n")
    lines.add(json.dumps({"event": "result", "path": "train/result.json"}).encode() + b"\n")
    assert lines.take() is None
    for _ in range(200):
        lines.add(b"x" * 10_000)  # a line without end takes no memory
    assert len(lines._rest) <= 2 * LINE_BYTES
    lines.add(b"\n" + line(pct=99))
    piece = lines.take()
    assert piece is not None and piece.stage.percent == 99


def test_uploads_that_a_stage_may_read_are_those_somebody_named() -> None:
    uploads = [project_pb2.DataUpload(name=name) for name in ("a.csv", "b.csv", "c.csv", "d.csv")]
    asked = call()
    asked.run.uploads.extend(uploads)
    asked.edits.update({"data": "uploads/b.csv"})
    decision = project_pb2.GateDecision(stage_id=project_pb2.STAGE_DATA_SOURCE)
    decision.edits.update({"data": "uploads/c.csv"})
    asked.run.decisions.append(decision)
    before = asked.SerializeToString(deterministic=True)
    assert [upload.name for upload in stage_result.chosen_data(asked)] == ["a.csv", "b.csv", "c.csv"]
    assert asked.SerializeToString(deterministic=True) == before
    asked.edits.update({"data": 7})
    stage_result.chosen_data(asked)


def test_errors_are_of_their_type() -> None:
    assert isinstance(stage_result.no_result(call(), "why"), error_pb2.TypedError)


@pytest.mark.parametrize(("status", "exit_code"), [("OK", 2), ("NEEDS_INPUT", 2), ("FAILED", 0)])
def test_a_result_that_does_not_fit_the_exit_code_is_that_of_another_process(status: str, exit_code: int) -> None:
    """A Python that does not find its program exits with 2, too."""
    with pytest.raises(Unusable):
        read(call(), "t", text_of(status=status, error={"code": "A", "message": "m"}), exit_code)
