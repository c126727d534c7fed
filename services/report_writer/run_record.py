"""The record of a run: what people decided, its limits, how to use and repeat it, its files and programs."""

from collections.abc import Iterator

from conductor.v1 import project_pb2
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from services.report_writer.commands import time_text
from services.report_writer.escape import code_span, fenced, inline, shorten
from services.report_writer.run_answer import NO_BETTER, interval, leading_texts
from services.report_writer.run_data import problems
from services.report_writer.run_found import Found, Stage, link, linkable, stage_name
from services.report_writer.run_values import figure, name, number, of, text, texts
from services.report_writer.run_words import bullets, cell, counted, paragraph, several, size, table

MAX_DECISIONS = 200
MAX_FILES = 300
MAX_EDITS = 20  # shown of one decision
EDITS_CHARS = 1000
COMMAND_CHARS = 500
BUNDLE, PREDICT, LOCK, TRAIN = "bundle.zip", "predict.py", "requirements.lock", "train.py"
PREDICT_COMMANDS = """python -m venv venv && venv/bin/python -m pip install -r requirements.lock
venv/bin/python predict.py rows.csv predictions.csv
"""

_EXPORT, _REVIEW, _SOURCE = Stage.STAGE_EXPORT, Stage.STAGE_REVIEW_EDIT, Stage.STAGE_DATA_SOURCE
_LATE = Stage.STAGE_MODEL_SELECT, Stage.STAGE_TRAIN, _REVIEW, _EXPORT


# ---- decisions ----


def decisions(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on what was decided at the gates."""
    given = found.request.run.decisions
    lines = [[stage_name(each.stage_id), _when(each), _what(each), _chosen(each), _reason(each)] for each in given]
    yield table(("gate", "when", "decision", "chosen", "reason"), lines, MAX_DECISIONS)
    if not given:
        yield "No gate was answered before this report was written.\n"
    yield f"The gate behind {stage_name(found.request.stage_id)} is answered after this report was written.\n"


def _when(decision: project_pb2.GateDecision) -> str:
    return time_text(Timestamp(seconds=decision.decided_at.seconds)) if decision.HasField("decided_at") else ""


def _what(decision: project_pb2.GateDecision) -> str:
    if decision.by_itself:
        return "passed by itself"
    who = f" by {cell(name(decision.user_id))}" if decision.user_id else ""
    if decision.begun_again:
        return "begun again" + who
    return ("approved" if decision.approved else "rejected") + who


def _chosen(decision: project_pb2.GateDecision) -> str:
    edits = [f"{name(key)} = {_value(value)}" for key, value in sorted(decision.edits.fields.items())]
    shown = shorten("; ".join(edits[:MAX_EDITS]), EDITS_CHARS)
    return cell(shown) + (f"; and {len(edits) - MAX_EDITS:,} more" if len(edits) > MAX_EDITS else "")


def _value(value: Value) -> str:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return shorten(", ".join(map(_value, value.list_value.values[:MAX_EDITS])), 200)
    if kind == "string_value":
        return text(value.string_value, 120) or '""'
    return {"number_value": figure(value.number_value), "bool_value": text(value.bool_value)}.get(
        kind or "", "(object)"
    )


def _reason(decision: project_pb2.GateDecision) -> str:
    return cell(text(decision.reason))


# ---- limits ----


def limits(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on what to keep in mind."""
    told = leading_texts(found)  # stand in the answer
    caveats = [text for text in texts(found.of(_REVIEW, "caveats"), 300) if text not in told]
    yield bullets([*map(inline, caveats), *_own_limits(found)])
    late = [issue for issue in found.issues(*_LATE) if issue.message not in told and issue.code != NO_BETTER]
    yield from problems("What the stages noted:", late)


def _own_limits(found: Found) -> Iterator[str]:
    unlooked = [stage_name(each.stage_id) for each in found.request.run.decisions if each.by_itself]
    if unlooked:
        yield f"Nobody looked at what these stages did, their gates passed by themselves: {', '.join(unlooked)}."
    if whole := figure(of(found.of(_SOURCE, "sampled"), "rows_of")):
        yield f"Only a sample of the {whole} rows was used."
    if unparsed := texts(found.of(Stage.STAGE_PARSE_INTENT, "unparsed")):
        yield f"Not understood in the objective, and not acted on: {several(unparsed)}."
    for stage in sorted(stage for stage, left in found.left.items() if left is None):
        yield f"What {stage_name(stage)} left could not be read; what depends on it is missing here."
    if interval(found.of(_REVIEW, "test", "ci95")):
        yield "The interval is of chance in picking test rows; other rows to learn from may give another model."
    yield "It holds for rows that come about as those of the data did; when the world changes, test it again."


# ---- how to use it, how to repeat it ----


def predicting(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on predicting, none before there is an export."""
    program, lock, bundle = (found.file(_EXPORT, each) for each in (PREDICT, LOCK, BUNDLE))
    if program is None or lock is None:
        yield paragraph(inline(found.summary(_EXPORT)))
        return
    whole = f"Unpack {link(bundle)}, then, in its folder:" if bundle else f"Beside {link(program)} and {link(lock)}:"
    yield f"{whole}\n\n```sh\n{PREDICT_COMMANDS}```\n"
    probabilities = "" if _regression(found) else "With `--proba` it writes the probability of each class too."
    trust = "Load `model.joblib` only from a bundle you trust." if found.file(_EXPORT, "model.joblib") else ""
    yield paragraph("Columns are found by name, in any order.", probabilities, trust)
    yield paragraph(_proof(found))


def _regression(found: Found) -> bool:
    return bool(found.of(Stage.STAGE_PREPROCESS, "task") == "regression")


def _proof(found: Found) -> str:
    proof = found.of(_EXPORT, "smoke_test")
    proved, off = number(of(proof, "rows")), figure(of(proof, "max_abs_diff"), 3)
    if of(proof, "ok") is not True or proved is None:
        return "" if proof is None else "**The export was not shown to predict as the model does.**"
    return f"Tried in a fresh process on {counted(int(proved), 'row')}: the greatest difference to the model was {off}."


def reproducing(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on doing it all again."""
    given = found.of(_EXPORT, "reproduce")
    command = text(of(given, "command"), COMMAND_CHARS)
    if command:
        yield "In the folder of the bundle, with the data beside it:\n"
        yield fenced(command, "sh")
        yield paragraph(*_expected(found))
    sha256 = text(found.of(_SOURCE, "sha256"))
    path = text(found.of(_SOURCE, "path")) or text(found.request.run.data)
    facts = [f"Data: {inline(path)}" + (f", SHA-256 {code_span(sha256)}" if sha256 else "") if path else ""]
    yield bullets(
        [*facts, f"Seed: {found.request.run.options.seed}", "The same data, seed and decisions: the same answer."]
    )


def _expected(found: Found) -> Iterator[str]:
    given = found.of(_EXPORT, "reproduce")
    expected, tolerance = figure(of(given, "expected"), 6), figure(of(given, "tolerance"), 3)
    if expected:
        yield f"It should give {expected}" + (f", give or take {tolerance}." if tolerance else ".")
    if of(given, "checked", "same") is True:
        yield "It was run once for the export and did."
    elif of(given, "checked") is not None:
        yield "**When it was run for the export it did not.**"


# ---- files and provenance ----


def files(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on files."""
    lines = [[_linked(each), stage_name(each.stage_id), *_described(each)] for each in found.files]
    yield table(("file", "stage", "what", "media type", "size", "SHA-256"), lines, MAX_FILES)
    stale = sum(each.stale for each in found.request.run.artifacts)
    if stale:
        yield f"Left out: {counted(stale, 'file')} of attempts that were done again.\n"


def _linked(file: project_pb2.RunArtifact) -> str:
    return link(file) if linkable(file) else cell(name(file.name))


def _described(file: project_pb2.RunArtifact) -> Iterator[str]:
    yield from (
        cell(text(file.title, 120)),
        cell(name(file.media_type)),
        size(file.size_bytes),
        cell(name(file.sha256)),
    )


def provenance(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on where the report comes from."""
    yield bullets(_told(found))
    programs = [(stage_name(each.stage_id), " ".join(each.argv)) for each in found.request.run.programs]
    yield bullets(f"Program of {stage}: {code_span(text(argv, COMMAND_CHARS))}" for stage, argv in programs)
    used = ((each, of(found.left[each], "metrics")) for each in sorted(found.left))
    lines = [[stage_name(each), figure(of(spent, "cpu_s"), 3), figure(of(spent, "peak_mb"))] for each, spent in used]
    yield table(("stage", "processor time, s", "peak memory, MB"), [line for line in lines if any(line[1:])])


def _told(found: Found) -> Iterator[str]:
    request, run = found.request, found.request.run
    ids = {"Task": request.task_id, "Run": run.run_id, "Project": request.provenance.project_id}
    ids["Correlation id"] = request.provenance.correlation_id or run.correlation_id
    ids["Conductor"] = request.provenance.conductor_version
    for what, told in ids.items():
        yield f"{what}: {code_span(text(told))}" if told else ""
    if run.HasField("started_at"):
        yield f"Run begun: {time_text(run.started_at)}"
    if request.provenance.HasField("created_at"):
        yield f"{stage_name(request.stage_id)} begun: {time_text(request.provenance.created_at)}"
    for call in request.provenance.workers:
        times = f"{time_text(call.started_at)} to {time_text(call.ended_at)}"
        yield f"Worker: {inline(name(call.service))}, call {code_span(text(call.call_id))}, {times}"
