"""The contract's own promises: commented, mapped, bounded, freshly generated, and never changed under a client."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import protovalidate
import pytest
from buf.validate import validate_pb2
from conductor.v1 import (
    conductor_pb2,
    error_pb2,
    event_pb2,
    multiplex_pb2,
    project_pb2,
    report_writer_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.conductor.state.requests import VERSION

ROOT = Path(__file__).resolve().parent.parent
DESCRIPTORS = ROOT / "gen" / "conductor.pb"
BIN = Path(sys.executable).parent
MODULES = (
    conductor_pb2,
    error_pb2,
    event_pb2,
    multiplex_pb2,
    project_pb2,
    report_writer_pb2,
    researcher_pb2,
    task_pb2,
    terminal_pb2,
)

# DESIGN.md, "The contract": rpc → HTTP methods and paths at the edge.
EDGE: dict[str, list[tuple[str, str]]] = {
    "Execute": [("post", "/conductor/execute")],
    "GetTask": [("get", "/conductor/tasks/{task_id}")],
    "ListTasks": [("get", "/conductor/tasks")],
    "CancelTask": [("post", "/conductor/tasks/{task_id}:cancel")],
    "GetReport": [
        ("get", "/conductor/tasks/{task_id}/report"),
        ("get", "/api/projects/{project_id}/report"),
    ],
    "GetArtifact": [
        ("get", "/conductor/tasks/{task_id}/artifacts/{name}"),
        ("get", "/api/projects/{project_id}/artifacts/{task_id}/{name}"),
    ],
    "GetState": [("get", "/api/projects/{project_id}/state")],
    "ListProjects": [("get", "/api/projects")],
    "TransitionTo": [("post", "/api/projects/{project_id}/transition")],
    "WaitForConfirmation": [("post", "/api/projects/{project_id}/waiting-confirmation")],
    "ProposePlan": [("post", "/api/projects/{project_id}/plans")],
    "Confirm": [("post", "/api/projects/{project_id}/confirm")],
    "StartProject": [("post", "/api/projects/{project_id}/start")],
    "CancelRun": [("post", "/api/projects/{project_id}/cancel")],
    "UploadData": [
        ("post", "/api/projects/{project_id}/data/{name}"),
        ("put", "/api/projects/{project_id}/data/{name}"),
    ],
    "SubscribeEvents": [],
    "StreamEvents": [
        ("get", "/conductor/events"),
        ("get", "/conductor/tasks/{task_id}/events"),
        ("get", "/api/projects/{project_id}/events"),
    ],
}
WORKERS = {
    "Researcher": [
        *("AddSource", "CancelResearch", "GetResearch", "IndexSource", "ListSources", "RemoveSource", "Research"),
        *("VerifyCitation", "WatchResearch"),
    ],
    "Terminal": ["GetCapabilities", "ReadFile", "RemoveWorkspace", "Run", "StatFile", "WriteFile"],
    "Multiplex": ["Carry"],
    "ReportWriter": ["GetArtifact", "GetReport", "WriteArtifact", "WriteReport", "WriteRunReport"],
}
# DESIGN.md, "Key messages": the names clients rely on, in JSON as well.
RELIED_ON = {
    "ExecuteRequest": "objective desktop_id output_mode hints project_id correlation_id request_id wait scope",
    "ExecuteResponse": "task_id status report_path writer_window_props correlation_id error",
    "Task": "task_id status report_path writer_window_props correlation_id error objective desktop_id output_mode"
    " project_id attempt created_at started_at completed_at as_of_sequence",
    "WriterWindowProps": "path preview_mode",
    "ProjectState": "project_id stages current_stage plan_pending plan_approved waiting_confirmation as_of_sequence",
    "StageState": "stage_id status message started_at completed_at plan_pending error",
    "WaitingConfirmation": "confirmation_id stage_id summary next_actions requested_at",
    "ConfirmRequest": "project_id stage_id confirmation_id plan_id approved reason request_id edits",
    "TransitionToRequest": "stage_id status message edits",
    "StartProjectRequest": "project_id objective data options request_id correlation_id scope",
    "RunOptions": "pass_gates budget memory_bytes seed hints",
    "Run": "run_id status objective data options artifacts decisions report_path",
    "RunArtifact": "stage_id task_id name title media_type size_bytes sha256 attempt stale",
    "SubscribeEventsRequest": "after_sequence task_id project_id types correlation_id scope",
    "ListTasksRequest": "status project_id desktop_id page_size page_token",
    "ListTasksResponse": "tasks next_page_token",
    "ListProjectsResponse": "projects next_page_token",
    "Event": "sequence event_id type occurred_at stream_sequence task_id project_id correlation_id status phase actor"
    " scope",
    "TypedError": "reason kind message retryable metadata",
}
# An answer's message that a request carries whole, from inside only: Conductor sends what workers have said.
FROM_INSIDE = {"Finding", "Citation", "Locator", "Gap", "CommandRecord", "CommandResult", "Isolation", "Provenance"}
FROM_INSIDE |= {"WorkerRun", "AnswerSentence", "SubQuestion", "Contradiction", "SearchedSource", "ResearchUsage"}
FROM_INSIDE |= {"Run", "StageOutcome"}  # with all that is in them


def file_set() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())


def own_files() -> list[descriptor_pb2.FileDescriptorProto]:
    return [file for file in file_set().file if file.package == "conductor.v1"]


# ---- comments ----


def elements(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yields the path (descriptor.proto, SourceCodeInfo) and name of all that needs a comment."""
    for s, service in enumerate(file.service):
        yield (6, s), service.name
        yield from (((6, s, 2, m), f"{service.name}.{method.name}") for m, method in enumerate(service.method))
    for e, enum in enumerate(file.enum_type):
        yield from _enum((5, e), enum)
    for m, message in enumerate(file.message_type):
        yield from _message((4, m), message, "")


def _enum(path: tuple[int, ...], enum: Any) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, enum.name
    yield from (((*path, 2, n), value.name) for n, value in enumerate(enum.value))


def _message(path: tuple[int, ...], message: Any, outer: str) -> Iterator[tuple[tuple[int, ...], str]]:
    if message.options.map_entry:
        return
    name = f"{outer}{message.name}"
    yield path, name
    yield from (((*path, 2, n), f"{name}.{field.name}") for n, field in enumerate(message.field))
    for n, one in enumerate(message.oneof_decl):
        if not one.name.startswith("_"):  # made by `optional`
            yield (*path, 8, n), f"{name}.{one.name}"
    for n, nested in enumerate(message.nested_type):
        yield from _message((*path, 3, n), nested, f"{name}.")
    for n, enum in enumerate(message.enum_type):
        yield from _enum((*path, 4, n), enum)


def uncommented(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    said = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
    return [f"{file.name}: {name}" for path, name in elements(file) if path not in said]


def test_every_service_rpc_message_field_and_value_has_a_comment() -> None:
    assert [missing for file in own_files() for missing in uncommented(file)] == []


def test_the_check_of_comments_can_fail() -> None:
    file = next(file for file in own_files() if file.name.endswith("task.proto"))
    for path, name in elements(file):
        blank = descriptor_pb2.FileDescriptorProto()
        blank.CopyFrom(file)
        place = next(place for place in blank.source_code_info.location if tuple(place.path) == path)
        place.leading_comments = " "
        assert uncommented(blank) == [f"{file.name}: {name}"]


# ---- names and paths ----


def test_services_and_rpcs_are_those_of_the_design() -> None:
    found = {
        service.full_name: sorted(method.name for method in service.methods)
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    wanted = {**WORKERS, "Conductor": sorted(EDGE)}
    assert found == {f"conductor.v1.{name}": methods for name, methods in wanted.items()}


def bindings(method: Any) -> list[tuple[str, str]]:
    if not method.GetOptions().HasExtension(annotations_pb2.http):
        return []
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    return [
        (str(r.WhichOneof("pattern")), getattr(r, r.WhichOneof("pattern"))) for r in (rule, *rule.additional_bindings)
    ]


@pytest.mark.parametrize("name", EDGE)
def test_every_public_rpc_has_the_path_of_the_design(name: str) -> None:
    method = conductor_pb2.DESCRIPTOR.services_by_name["Conductor"].methods_by_name[name]
    assert bindings(method) == EDGE[name]
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    body = "content" if name == "UploadData" else "*"  # there the body is the file
    assert rule.body == (body if rule.WhichOneof("pattern") == "post" else "")


def test_no_worker_is_routed_at_the_edge() -> None:
    services = [s for module in MODULES for s in module.DESCRIPTOR.services_by_name.values() if s.name in WORKERS]
    assert len(services) == len(WORKERS) and all(bindings(method) == [] for s in services for method in s.methods)


@pytest.mark.parametrize("name", RELIED_ON)
def test_messages_have_the_names_clients_rely_on(name: str) -> None:
    (message,) = [module.DESCRIPTOR.message_types_by_name[name] for module in MODULES if hasattr(module, name)]
    assert set(RELIED_ON[name].split()) <= set(message.fields_by_name)


def test_every_field_is_snake_case_and_every_enum_begins_with_unspecified() -> None:
    for file in own_files():
        for enum in (*file.enum_type, *(e for message in file.message_type for e in message.enum_type)):
            assert enum.value[0].number == 0 and enum.value[0].name.endswith("_UNSPECIFIED"), enum.name
        for message in file.message_type:
            assert all(f.name == f.name.lower() and "__" not in f.name for f in message.field), message.name


def test_event_types_and_payloads_of_the_design_are_one_to_one() -> None:
    (oneof,) = event_pb2.Event.DESCRIPTOR.oneofs
    payloads = {field.name for field in oneof.fields}
    assert payloads == {
        *("task_started", "task_progress", "worker_call", "worker_result", "task_completed", "task_failed"),
        *("task_cancelled", "stage_status", "waiting_confirmation", "plan_proposed", "plan_approved"),
        *("confirmation_answered", "snapshot"),
        *("run_started", "stage_result", "run_ended", "data_uploaded"),
    }


# ---- requests ----


def requests() -> list[Any]:
    return [
        method.input_type
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def reachable(message: Descriptor, seen: dict[str, Descriptor]) -> dict[str, Descriptor]:
    """Returns the messages of ours that travel in a request, by full name."""
    if message.file.package == "conductor.v1" and message.name not in FROM_INSIDE and message.full_name not in seen:
        seen[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                reachable(field.message_type, seen)
    return seen


IN_REQUESTS: dict[str, Descriptor] = {}
for _request in requests():
    reachable(_request, IN_REQUESTS)
FIELDS = [field for message in IN_REQUESTS.values() if not message.GetOptions().map_entry for field in message.fields]


def of_requests(*kinds: int) -> list[Any]:
    named = {field.full_name.removeprefix("conductor.v1."): field for field in FIELDS if field.type in kinds}
    return [pytest.param(field, id=name) for name, field in named.items()]


def rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


@pytest.mark.parametrize("field", of_requests(*range(1, 19)))
def test_every_request_field_says_whether_it_is_required(field: FieldDescriptor) -> None:
    said = list(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])
    if field.containing_type.name == "TypedError":  # mostly an answer: what it needs there is always set
        return
    assert said in ([field_behavior_pb2.REQUIRED], [field_behavior_pb2.OPTIONAL])


def bounded_text(rule: Any) -> bool:
    """Tells whether a StringRules or BytesRules bounds the size. A pattern does when it is anchored and has no star."""
    pattern = getattr(rule, "pattern", "")
    anchored = pattern.startswith("^") and pattern.endswith("}$") and "*" not in pattern and "+" not in pattern
    return (
        rule.HasField("max_len") or (rule.DESCRIPTOR.name == "StringRules" and rule.HasField("max_bytes")) or anchored
    )


@pytest.mark.parametrize("field", of_requests(FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES))
def test_every_text_of_a_request_is_bounded(field: FieldDescriptor) -> None:
    rule = rules(field)
    if field.is_repeated:
        assert rule.repeated.HasField("max_items")
        rule = rule.repeated.items
    assert bounded_text(rule.bytes if field.type == FieldDescriptor.TYPE_BYTES else rule.string)


@pytest.mark.parametrize("field", of_requests(FieldDescriptor.TYPE_MESSAGE))
def test_every_list_and_map_of_a_request_is_bounded(field: FieldDescriptor) -> None:
    inside = field.message_type.name in FROM_INSIDE  # bounded where it was made, and by the size of a message
    if field.message_type.GetOptions().map_entry:
        assert rules(field).map.HasField("max_pairs")
        assert bounded_text(rules(field).map.keys.string) and bounded_text(rules(field).map.values.string)
    elif field.is_repeated and not inside:
        assert rules(field).repeated.HasField("max_items")


@pytest.mark.parametrize("field", of_requests(FieldDescriptor.TYPE_ENUM))
def test_every_enum_of_a_request_refuses_numbers_it_does_not_know(field: FieldDescriptor) -> None:
    rule = rules(field).repeated.items.enum if field.is_repeated else rules(field).enum
    assert rule.defined_only or len(getattr(rule, "in")) > 0


def broken_rules(message: Any) -> list[str]:
    try:
        protovalidate.validate(message)
    except protovalidate.ValidationError as error:
        return [violation.proto.rule_id for violation in error.violations]
    return []


@pytest.mark.parametrize(
    ("uri", "quote", "accepted"),
    [
        ("docs/a.md", "It boils.", True),
        ("u" * 4096, "q" * 65_536, True),
        ("", "It boils.", False),
        ("docs/a.md", "", False),
        ("u" * 4097, "It boils.", False),
        ("docs/a.md", "q" * 65_537, False),
    ],
)
def test_a_citation_that_comes_back_from_outside_is_bounded(uri: str, quote: str, accepted: bool) -> None:
    citation = researcher_pb2.Citation(uri=uri, quote=quote)
    found = broken_rules(researcher_pb2.VerifyCitationRequest(citation=citation))
    assert found == ([] if accepted else ["citation.checkable"])
    assert broken_rules(researcher_pb2.VerifyCitationRequest()) == ["required"]


def test_what_a_report_says_of_its_findings_is_about_findings_it_has() -> None:
    def a_request(**fields: Any) -> report_writer_pb2.WriteReportRequest:
        provenance = report_writer_pb2.Provenance(correlation_id="c-1")
        findings = [researcher_pb2.Finding(), researcher_pb2.Finding()]
        return report_writer_pb2.WriteReportRequest(
            task_id="t-1", objective="boil", provenance=provenance, findings=findings, **fields
        )

    for index, wanted in ((1, []), (2, ["findings.known"]), (2**32 - 1, ["findings.known"])):
        for told in (
            {"answer": [{"text": "x", "findings": [0, index]}]},
            {"sub_questions": [{"text": "x", "findings": [index]}]},
            {"contradictions": [{"one": index}]},
            {"contradictions": [{"other": index}]},
        ):
            assert broken_rules(a_request(**told)) == wanted


# ---- generated, and kept ----


def test_gen_is_what_the_protos_give() -> None:
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    check = [sys.executable, "-m", "ops.generate", "--check"]
    done = subprocess.run(check, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def breaking(tmp_path: Path, changed: descriptor_pb2.FileDescriptorSet) -> subprocess.CompletedProcess[str]:
    new = tmp_path / "new.pb"
    new.write_bytes(changed.SerializeToString())
    command = [BIN / "buf", "breaking", f"{new}#format=binpb", "--against", f"{DESCRIPTORS}#format=binpb"]
    command += ["--config", ROOT / "buf.yaml"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)


def test_the_check_for_breaking_changes_passes_what_is_the_same(tmp_path: Path) -> None:
    assert breaking(tmp_path, file_set()).returncode == 0


def _renumber(file: Any) -> None:
    file.message_type[0].field[0].number = 9999


def _remove(file: Any) -> None:
    del file.message_type[0].field[0]


def _retype(file: Any) -> None:
    file.message_type[0].field[2].type = FieldDescriptor.TYPE_INT64


def _rename_value(file: Any) -> None:
    file.enum_type[0].value[1].name += "_X"


def _reuse_value(file: Any) -> None:
    file.enum_type[0].value[1].number = 9999


@pytest.mark.parametrize("change", [_renumber, _remove, _retype, _rename_value, _reuse_value])
def test_a_change_that_breaks_clients_is_found(tmp_path: Path, change: Any) -> None:
    changed = file_set()
    change(next(file for file in changed.file if file.name == "conductor/v1/error.proto"))
    done = breaking(tmp_path, changed)
    assert done.returncode == 100 and "conductor/v1/error.proto" in done.stdout, done.stderr


def test_the_version_in_reports_is_the_projects() -> None:
    assert version("conductor") == VERSION
