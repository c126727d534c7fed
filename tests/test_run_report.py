"""Rendering of a run's report: what two real runs left is told in order, and whatever a stage left does no harm.

`golden/run-report/*.json` hold the request and every stage's result.json of real runs (without `next_actions` and
`artifacts`): penguins to EXPORT, and mpg, whose goal is to explain, to REVIEW_EDIT.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import project_pb2, report_writer_pb2
from google.protobuf import json_format
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from markdown_it.token import Token

from services.report_writer import run_report
from services.report_writer.run_values import MAX_RESULT_BYTES, figure, parsed
from tests.properties import examples
from tests.test_report import HOSTILE, headings, hostile_text, links, parse, text_of, walk

GOLDEN = Path(__file__).parent / "golden" / "run-report"
MAX_REPORT_BYTES = 8 * 1024 * 1024
HEADINGS = (
    "Answer",
    "Data",
    "What was left out",
    "Models tried",
    "Test results",
    "What drives the target",
    "Decisions",
    "Limits",
    "How to predict",
    "How to reproduce",
    "Files",
    "Provenance",
)
PIPE = re.compile(r"(?<!\\)(?:\\\\)*\|")
Request = report_writer_pb2.WriteRunReportRequest
Left = dict[int, Any]
Stage = project_pb2.Stage


def golden(name: str) -> tuple[Request, Left]:
    held = json.loads((GOLDEN / f"{name}.json").read_text())
    left = {Stage.Value(stage): each for stage, each in held["left"].items()}
    return json_format.ParseDict(held["request"], Request()), left


def penguins() -> tuple[Request, Left]:
    return golden("penguins-export")


def drawn(request: Request, left: Left) -> str:
    return run_report.body(request, left)


def sections(text: str) -> dict[str, str]:
    """Returns each section's text by its heading."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def images(tokens: list[Token]) -> list[str]:
    return [str(token.attrGet("src")) for token in walk(tokens) if token.type == "image"]


def files_of(request: Request) -> set[str]:
    given = (*request.run.artifacts, *request.outcome.artifacts)
    return {f"{file.task_id}/{file.name}" for file in given if not file.stale}


def review_of(left: Left) -> dict[str, Any]:
    return left[Stage.STAGE_REVIEW_EDIT]["result"]  # type: ignore[no-any-return]


# ---- real runs ----


def test_a_run_to_predict_is_told_in_order() -> None:
    tokens = parse(drawn(*penguins()))
    assert headings(tokens) == ["predict species from penguins.csv", *HEADINGS]


def test_a_run_to_explain_tells_the_drivers_before_the_models() -> None:
    request, left = golden("mpg-review")
    text = drawn(request, left)
    order = headings(parse(text))
    assert order.index("What drives the target") < order.index("Models tried") < order.index("Test results")
    said = sections(text)["Answer"]
    assert "“mpg” goes most with weight, year, horsepower" in said
    assert "association, not cause" in said


def test_the_answer_is_one_sentence_with_interval_and_baseline() -> None:
    first = sections(drawn(*penguins()))["Answer"].strip().split("\n")[0]
    assert first == (
        "“species” can be predicted better than guessing: on 86 rows it had never seen, the model reached ROC AUC "
        "(mean over the classes) 0.9995 (95 % interval 0.9972 to 1); guessing reaches 0.5."
    )


def test_each_section_holds_the_figures_of_the_stages() -> None:
    told = sections(drawn(*penguins()))
    assert "344 rows, 8 columns" in told["Data"]
    assert "f2d6493fc64ad958edbabd55eb0fc989af2c5a0458a2c79ccffe7985606feb60" in told["Data"]
    assert "| sex | CATEGORY | 11 | 2 | male, female |" in told["Data"]
    assert "Nothing was left out. Used: island," in told["What was left out"]
    assert "258 rows were learned from and 86 kept apart" in told["What was left out"]
    assert "| **hgb** | boosting | 0.9994 | 0.0014 | 5 | 0.704 | chosen |" in told["Models tried"]
    assert "| dummy | dummy | 0.5 |" in told["Models tried"]
    assert "Tried 6 of 10" in told["Models tried"]
    assert "14.74 of 20 s (74 %)" in told["Models tried"]
    assert "| Chinstrap | 1 | 0.9412 | 0.9697 | 17 |" in told["Test results"]
    assert "| **Chinstrap** | 1 | 16 | 0 |" in told["Test results"]
    assert "off by 0.0114 on average" in told["Test results"]
    assert "Association, not cause" in told["What drives the target"]
    assert "| island | 0.06535 | 0.0081 |" in told["What drives the target"]
    assert "There are only 86 test rows" in told["Limits"]
    assert "predict.py rows.csv predictions.csv" in told["How to predict"]
    assert "Tried in a fresh process on 344 rows" in told["How to predict"]
    assert "python train.py penguins.csv" in told["How to reproduce"]
    assert (
        "It should give 0.999533, give or take 0.001. It was run once for the export and did."
        in told["How to reproduce"]
    )


def test_a_regression_is_told_by_its_residuals() -> None:
    told = sections(drawn(*golden("mpg-review")))
    assert "Half of the test rows are off by at most 1.122" in told["Test results"]
    assert "| 382 | 38 | 24.34 |" in told["Test results"]
    assert "made of extra-trees (0.1667)" in told["Models tried"]
    assert "least 9, half of them at most 22.75, mean 23.45, greatest 46.6" in told["Data"]


@pytest.mark.parametrize("name", ["penguins-export", "mpg-review"])
def test_pictures_and_links_lead_to_files_of_the_run_and_nothing_is_html(name: str) -> None:
    request, left = golden(name)
    tokens = parse(drawn(request, left))
    found = images(tokens)
    assert len(found) == len(set(found)) >= 8
    assert set(found) <= files_of(request)
    assert {href for href, _ in links(tokens)} == files_of(request)
    assert not [token for token in walk(tokens) if token.type.startswith("html")]


def test_every_file_is_listed_with_media_type_size_and_sha256() -> None:
    request, left = penguins()
    told = sections(drawn(request, left))["Files"]
    model = next(file for file in request.run.artifacts if file.name == "model.joblib")
    line = next(line for line in told.splitlines() if f"({model.task_id}/model.joblib)" in line)
    assert line.endswith(f"| {model.media_type.replace('.', chr(92) + '.')} | 69.5 kB | {model.sha256} |")


def test_behind_review_edit_it_is_a_draft_and_behind_export_final() -> None:
    draft = drawn(*golden("mpg-review"))
    assert "Draft, written behind REVIEW_EDIT: nothing is exported yet" in draft
    assert "How to predict" not in sections(draft)
    assert "Final report" in drawn(*penguins())
    assert "Draft" not in drawn(*penguins())


def test_the_same_request_gives_the_same_bytes() -> None:
    request, left = penguins()
    assert drawn(request, left) == drawn(*penguins())
    turned = dict(reversed(left.items()))
    assert drawn(request, turned) == drawn(request, left)


# ---- verdicts ----


@pytest.mark.parametrize(
    "doubt",
    [
        {"verdict": "SAME_AS_BASELINE"},
        {"lift": {"value": 0.01, "ci95": [-0.02, 0.04]}},
        {"lift": {"value": 0.01, "ci95": [0, 0.04]}},
    ],
)
def test_no_better_than_guessing_leads_the_answer(doubt: dict[str, Any]) -> None:
    request, left = golden("mpg-review")
    review_of(left).update(doubt)
    said = sections(drawn(request, left))["Answer"].strip()
    assert said.startswith("**No better than guessing.** “mpg” could not be predicted better than guessing:")
    assert "no column is named as a driver" in said


def warned(code: str, severity: str) -> dict[str, str]:
    return {"code": code, "severity": severity, "message": "Because of `x`.", "suggestion": "Drop x."}


@pytest.mark.parametrize(
    ("code", "lead"),
    [("NO_BETTER_THAN_BASELINE", "**No better than guessing.**"), ("SUSPICIOUSLY_GOOD", "**Suspiciously good:")],
)
def test_a_warning_of_the_verdict_leads_the_answer_and_is_told_there_only(code: str, lead: str) -> None:
    request, left = penguins()
    left[Stage.STAGE_REVIEW_EDIT]["warnings"] = [warned(code, "WARN")]
    told = sections(drawn(request, left))
    assert told["Answer"].strip().startswith(lead)
    assert "Because of \\`x\\`. Drop x." in told["Answer"]
    assert "Because of" not in told["Limits"]


def test_a_class_that_is_never_found_stands_right_under_the_answer_and_only_there() -> None:
    request, left = penguins()
    left[Stage.STAGE_REVIEW_EDIT]["warnings"] = [warned("IMBALANCE", "WARN")]
    review_of(left)["caveats"] = ["Because of `x`.", "Another doubt."]
    told = sections(drawn(request, left))
    assert told["Answer"].strip().split("\n")[2].startswith("**Because of")
    assert "Because of" not in told["Limits"] and "Another doubt." in told["Limits"]


def test_the_answer_says_in_plain_numbers_how_often_it_is_right_or_how_far_off() -> None:
    assert (
        "85 of 86 test rows were called right (99 %); always saying “Adelie” is right for 38 (44 %)."
        in sections(drawn(*penguins()))["Answer"]
    )
    request, left = golden("mpg-review")
    review_of(left)["residuals"]["guess_within_50"] = 6.5
    assert "off by at most 1.122; of guesses by at most 6.5." in sections(drawn(request, left))["Answer"]


def test_an_interval_without_width_is_not_shown_as_one() -> None:
    request, left = penguins()
    review_of(left)["test"]["ci95"] = review_of(left)["all_metrics"]["accuracy"]["ci95"] = [1, 1]
    told = drawn(request, left)
    assert "1 to 1 " not in told and "the same in every resample" in told


def test_an_easy_table_is_no_alarm() -> None:
    said = sections(drawn(*penguins()))["Answer"].strip()
    assert said.startswith("“species” can be predicted")
    assert "Please confirm that every column is known before the answer is." in said


def test_a_metric_of_which_less_is_better_says_so() -> None:
    request, left = golden("mpg-review")
    review_of(left)["test"] = {"metric": "rmse", "value": 2.9, "ci95": None, "n": 98}
    review_of(left)["higher_better"] = False
    said = sections(drawn(request, left))["Answer"]
    assert "root mean squared error 2.9 (no interval: too few rows)" in said
    assert "and less is better" in said


# ---- data, decisions, limits ----


def test_what_was_odd_about_the_data_and_what_was_left_out_is_told() -> None:
    request, left = penguins()
    source, plan = left[Stage.STAGE_DATA_SOURCE]["result"], left[Stage.STAGE_PREPROCESS]["result"]
    source |= {"null_markers": ["-", "a|b"], "sampled": {"rows_of": 90_000, "rows": 344}}
    source["bad_rows"] = [{"line": 7, "reason": "11 cells instead of 8"}]
    left[Stage.STAGE_PROFILE_DATA]["warnings"] = [
        {"code": "FEW_ROWS", "severity": "INFO", "message": "Few rows.", "suggestion": ""},
        {"code": "ID_COLUMN", "severity": "WARN", "message": "id only counts.", "suggestion": "Drop it."},
    ]
    plan["plan"].append({"column": "id", "action": "DROP", "reason": "It only counts the rows."})
    plan["dropped_rows"] = [{"reason": "the target is missing", "n": 3}]
    told = sections(drawn(request, left))
    assert "Read as missing: empty cells and `-`, `a|b`" in told["Data"]
    assert "a sample of the 90,000 rows" in told["Data"]
    assert "| 7 | 11 cells instead of 8 |" in told["Data"]
    assert told["Data"].index("**id only counts.** Drop it. (ID\\_COLUMN)") < told["Data"].index("Few rows.")
    assert "| id | It only counts the rows. |" in told["What was left out"]
    assert "3 rows: the target is missing" in told["What was left out"]
    assert "Nothing was left out" not in told["What was left out"]
    assert "Only a sample of the 90,000 rows was used." in told["Limits"]


def test_decisions_are_told_with_time_person_choice_and_reason() -> None:
    request, left = penguins()
    del request.run.decisions[:]
    asked = request.run.decisions.add(
        stage_id=Stage.STAGE_TRAIN, approved=False, reason="too slow | really", user_id="ann"
    )
    asked.decided_at.FromJsonString("2026-01-02T03:04:05.678Z")
    asked.edits.update({"model": "linear", "budget_s": 30.0, "candidates": ["a", "b"], "accept": True})
    request.run.decisions.add(stage_id=Stage.STAGE_PREPROCESS, approved=True, by_itself=True)
    request.run.decisions.add(stage_id=Stage.STAGE_MODEL_SELECT, approved=True)
    told = sections(drawn(request, left))
    line = "accept = yes; budget\\_s = 30; candidates = a, b; model = linear | too slow \\| really |"
    assert f"| TRAIN | 2026-01-02T03:04:05Z | rejected by ann | {line}" in told["Decisions"]
    assert "| PREPROCESS |  | passed by itself |  |  |" in told["Decisions"]
    assert "their gates passed by themselves: PREPROCESS." in told["Limits"]


def test_files_of_attempts_that_were_done_again_are_counted_and_not_shown() -> None:
    request, left = penguins()
    stale = next(file for file in request.run.artifacts if file.name == "plot-roc.png")
    stale.stale = True
    text = drawn(request, left)
    assert "plot-roc" not in text
    assert "Left out: 1 file of attempts that were done again." in text


def test_without_its_programs_there_are_no_commands_to_predict() -> None:
    request, left = penguins()
    kept = [file for file in request.outcome.artifacts if file.name != "predict.py"]
    del request.outcome.artifacts[:]
    request.outcome.artifacts.extend(kept)
    assert "rows.csv" not in sections(drawn(request, left))["How to predict"]


# ---- results of any shape ----


def everywhere(value: Any, change: Callable[[str], Any]) -> Any:
    """Returns JSON with each text changed, keys of unknown names too."""
    if isinstance(value, dict):
        return {key: everywhere(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [everywhere(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def short(value: Any) -> Any:
    """Returns JSON with at most two items of each list: as many shapes, sooner read."""
    if isinstance(value, list):
        return [short(each) for each in value[:2]]
    return {key: short(each) for key, each in value.items()} if isinstance(value, dict) else value


def short_run(name: str) -> tuple[Request, Left]:
    """Returns a golden run with two files of each stage and at most two items of each list."""
    request, left = golden(name)
    for holder in (request.run, request.outcome):
        given = list(holder.artifacts)
        del holder.artifacts[:]
        per_stage = {file.stage_id: [each for each in given if each.stage_id == file.stage_id] for file in given}
        holder.artifacts.extend(file for files in per_stage.values() for file in (*files[:1], *files[-2:]))
    return request, short(left)


def hostile_run(text: str) -> tuple[Request, Left]:
    request, left = short_run("penguins-export")
    left = everywhere(left, lambda _: text)
    left[Stage.STAGE_PREPROCESS]["result"]["plan"][0]["action"] = "DROP"
    left[Stage.STAGE_PREPROCESS]["result"]["plan"][1]["action"] = "PARSE_DATE"
    review_of(left)["all_metrics"][text] = {"value": 1.5, "ci95": [1, 2]}
    review_of(left)["residuals"] = {"worst": [{"row": text, "true": text, "predicted": text}]}
    review_of(left)["threshold"] = {"value": 0.5, "positive_class": text}
    left[Stage.STAGE_DATA_SOURCE]["result"] |= {"null_markers": [text], "bad_rows": [{"line": 1, "reason": text}]}
    left[Stage.STAGE_PREPROCESS]["result"]["dropped_rows"] = [{"reason": text, "n": 1}]
    left[Stage.STAGE_PARSE_INTENT]["result"] |= {"unparsed": [text], "drop": [text], "keep_only": [text]}
    for stage in left.values():
        stage["warnings"] = [{"code": text, "severity": "WARN", "message": text, "suggestion": text}]
    shown = text.encode(errors="replace").decode()  # protobuf holds no surrogates
    request.run.objective = request.run.data = request.outcome.summary = shown
    for file in (*request.run.artifacts, *request.outcome.artifacts):
        file.title = file.media_type = file.sha256 = shown
    request.run.artifacts[0].name = request.run.artifacts[1].task_id = shown
    request.run.artifacts[2].name = shown[:50] + ".png"
    decision = request.run.decisions[0]
    decision.reason = decision.user_id = shown
    decision.edits.update({shown: shown, "list": [shown, shown]})
    request.run.programs.add(stage_id=Stage.STAGE_TRAIN, argv=[shown, shown])
    request.provenance.project_id = request.provenance.correlation_id = request.run.run_id = shown
    return request, left


def check(request: Request, left: Left) -> None:
    """Asserts that a report is nothing but ours: headings, links, pictures, tables."""
    text = drawn(request, left)
    text.encode()
    tokens = parse(text)
    assert not [token for token in walk(tokens) if token.type.startswith("html")]
    assert set(headings(tokens)[1:]) <= {*HEADINGS, "Objective"}
    assert {href for href, _ in links(tokens)} | set(images(tokens)) <= files_of(request)
    for file in re.findall(r"\]\(([^)]*)\)", "".join(f"]({href})" for href, _ in links(tokens))):
        assert re.fullmatch(r"[A-Za-z0-9-]+/[a-z0-9.-]+", file)
    for columns, line in table_lines(text):
        assert len(PIPE.findall(line)) == columns + 1, line


def table_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of tables with the number of columns that their head has."""
    lines = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()
    columns = 0
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"\|( --- \|)+", after):
            columns = after.count("---")
        columns = columns if line.startswith("|") else 0
        if columns:
            yield columns, line


@pytest.mark.parametrize("text", [*HOSTILE, "a|b", "//a|b `c|d` www.x|y", "\\|", "//\\|x", "\ud800", "x" * 10_000])
def test_hostile_texts_show_as_text(text: str) -> None:
    check(*hostile_run(text))


@given(hostile_text)
@examples(25, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_shows_as_text(text: str) -> None:
    check(*hostile_run(text))


def test_a_hostile_name_of_a_column_is_shown_whole_in_its_cell() -> None:
    request, left = penguins()
    left[Stage.STAGE_PROFILE_DATA]["result"]["columns"][1]["name"] = "<b>a|b</b>\n| c | [x](y)"
    tokens = parse(drawn(request, left))
    assert "<b>a|b</b> | c | [x](y)" in [text_of(token) for token in tokens if token.type == "inline"]


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["x", "OK", "plot-roc.png", 10**400, -1, float("nan"), float("inf")]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "name", "column", "x"]), inner)
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def put(value: Any, path: tuple[Any, ...], other: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = other


RUNS = {name: short_run(name) for name in ("penguins-export", "mpg-review")}
PLACES = {name: [path for path in places(left) if path] for name, (_, left) in RUNS.items()}


@given(st.data())
@examples(100)
def test_no_shape_of_a_result_is_a_crash(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(RUNS)))
    request, held = RUNS[name]
    left = copy.deepcopy(held)
    # Deepest first, so that each place is still there.
    for path in sorted(data.draw(st.lists(st.sampled_from(PLACES[name]), max_size=8)), key=len, reverse=True):
        put(left, path, data.draw(anything))
    assert drawn(request, left).encode()


OTHERS: tuple[Any, ...] = (None, [], {}, "x", 1, float("nan"), [[]], [{}], True)


@pytest.mark.parametrize("name", sorted(RUNS))
@pytest.mark.parametrize("turn", [0, 3, 7])
def test_each_place_of_a_result_may_hold_something_else(name: str, turn: int) -> None:
    request, held = RUNS[name]
    for at, path in enumerate(path for path in PLACES[name] if len(path) <= 3):
        left = copy.deepcopy(held)
        put(left, path, OTHERS[(at + turn) % len(OTHERS)])
        assert drawn(request, left)


@pytest.mark.parametrize("gone", Stage.values()[1:])
def test_without_a_stage_the_rest_is_told(gone: int) -> None:
    request, left = penguins()
    left.pop(gone)
    check(request, left)


def test_without_any_result_there_are_decisions_and_files() -> None:
    request, _ = penguins()
    told = sections(drawn(request, {}))
    assert {"Answer", "Decisions", "Limits", "Files", "Provenance"} <= set(told)
    assert "is ready: one file" in told["Answer"]
    assert "Models tried" in told  # its picture is there


def test_a_stage_of_another_team_is_told_by_its_summary() -> None:
    request, _ = golden("mpg-review")
    left = {stage: {"summary": f"Ours, {stage}.", "result": {"own": 1}} for stage in range(1, 8)}
    told = sections(drawn(request, left))
    assert "Ours, 7." in told["Answer"]
    assert "Ours, 2. Ours, 3." in told["Data"]
    assert "Ours, 4." in told["What was left out"]
    assert "Ours, 6." in told["Models tried"]


def test_an_unreadable_result_is_said() -> None:
    request, left = penguins()
    left[Stage.STAGE_TRAIN] = None
    assert "What TRAIN left could not be read" in sections(drawn(request, left))["Limits"]


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'"' + b"x" * MAX_RESULT_BYTES + b'"'],
    ids=["empty", "no-utf-8", "cut", "deep", "long-number", "large"],
)
def test_what_is_no_result_reads_as_none(data: bytes) -> None:
    assert parsed(data) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345678, "0.1235"),
        (0.99997, "0.99997"),
        (2007, "2007"),
        (12345.0, "12,345"),
        (12345.678, "12,346"),
        (1234567.8, "1,234,568"),
        (0.00002921, "0.00002921"),
        (-0.5, "-0.5"),
        (1e300, "1e+300"),
        pytest.param(10**400, "", id="huge"),
        (float("nan"), ""),
        (float("-inf"), ""),
        (True, ""),
        ("1", ""),
        (None, ""),
    ],
)
def test_figures_are_what_people_read(value: Any, shown: str) -> None:
    assert figure(value) == shown


# ---- size ----


def test_long_lists_are_cut_and_counted() -> None:
    request, left = penguins()
    columns = left[Stage.STAGE_PROFILE_DATA]["result"]["columns"]
    columns.extend({"name": f"c{i}", "role": "NUMERIC"} for i in range(1000))
    left[Stage.STAGE_PROFILE_DATA]["warnings"] = [{"message": f"Odd {i}."} for i in range(100)]
    told = sections(drawn(request, left))["Data"]
    assert "… and 958 more." in told
    assert "| c41 |" in told
    assert "| c42 |" not in told
    assert "- Odd 49.\n\n… and 50 more." in told


def test_a_long_name_is_cut() -> None:
    request, left = penguins()
    left[Stage.STAGE_PROFILE_DATA]["result"]["columns"][1]["name"] = "x" * 10_000
    assert f"| {'x' * 79}… | CATEGORY |" in sections(drawn(request, left))["Data"]


def test_the_largest_results_still_make_a_report_that_can_be_stored() -> None:
    request, left = hostile_run("*" * 5000)

    def grown(value: Any) -> Any:
        if isinstance(value, list):
            return [grown(each) for each in value] * (1 if len(value) > 50 else 60)
        return {key: grown(each) for key, each in value.items()} if isinstance(value, dict) else value

    for stage in (Stage.STAGE_PROFILE_DATA, Stage.STAGE_TRAIN, Stage.STAGE_PREPROCESS):
        left[stage] = grown({**left[stage], "result": {**left[stage]["result"]}})
    for decision in [request.run.decisions[0]] * 300:
        request.run.decisions.add().CopyFrom(decision)
        request.run.decisions[-1].edits.update({f"{i}{'*' * 500}": "*" * 500 for i in range(30)})
    for file in list(request.run.artifacts) * 20:
        request.run.artifacts.add().CopyFrom(file)
        request.run.artifacts[-1].task_id = f"t{len(request.run.artifacts)}"
    assert len(drawn(request, left).encode()) < MAX_REPORT_BYTES
