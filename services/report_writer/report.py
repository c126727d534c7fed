"""WriteReportRequest → markdown, and the names of reports. Pure: the same request gives the same bytes.

Order: answer, findings with their citations, contradictions, commands with their output, gaps, what was searched,
provenance. The last line is the seal, an HTML comment with the SHA-256 of the request and of everything above it: it
tells a repeat from a conflict, and a whole report from a torn or edited one.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator

from conductor.v1 import report_writer_pb2, researcher_pb2

from services.report_writer.commands import commands, time_text
from services.report_writer.escape import code_span, fenced, fold, inline, shorten
from services.report_writer.evidence import Evidence
from services.report_writer.findings import NAME as FINDINGS
from services.report_writer.searched import gaps, searched

TITLE_CHARS = 100

_PATH = re.compile(r"reports/([A-Za-z0-9][A-Za-z0-9-]{0,127}\.md)")
_SEAL = "<!-- conductor-report request-sha256={} body-sha256={} -->\n"
_SEALED = re.compile(
    rb"<!-- conductor-report request-sha256=([0-9a-f]{64}) body-sha256=([0-9a-f]{64}) -->\n",
)
_SEAL_BYTES = len(_SEAL.format("0" * 64, "0" * 64))

Request = report_writer_pb2.WriteReportRequest
AnyRequest = Request | report_writer_pb2.WriteRunReportRequest


def file_name(task_id: str) -> str:
    """Returns the name of a task's report inside the reports root."""
    return f"{task_id}.md"


def path_of(task_id: str) -> str:
    """Returns the path of a task's report as callers see it."""
    return f"reports/{file_name(task_id)}"


def artifact_path(task_id: str, name: str) -> str:
    """Returns the path of a task's file as callers see it."""
    return f"reports/{task_id}/{name}"


def name_in(path: str) -> str | None:
    """Returns the file name inside the reports root, None when the path is not exactly `reports/<name>.md`."""
    match = _PATH.fullmatch(path)
    return match[1] if match else None


def request_sha256(request: AnyRequest) -> str:
    """Returns what makes two requests the same: the SHA-256 of their serialisation, in lower-case hexadecimal.

    The version of Conductor is left out: an upgrade between a report and its acknowledgement makes no other request.
    """
    same = type(request).FromString(request.SerializeToString())
    same.provenance.ClearField("conductor_version")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).hexdigest()


def render(request: Request) -> bytes:
    """Returns the sealed report as UTF-8."""
    evidence = Evidence(request)
    sections = (
        f"# {_title(request.objective)}\n",
        _section("Answer", evidence.answer()),
        _section("Findings", evidence.findings()),
        _section("Contradictions", evidence.contradictions()),
        _section("Commands", commands(request.commands)),
        _section("Gaps", [gaps(request.gaps)]),
        _section("Searched", searched(request)),
        _section("Objective", _objective(request.objective)),
        _section("Provenance", ["".join(f"- {line}\n" for line in _provenance(request))]),
    )
    return sealed(request, "".join(f"{section}\n" for section in sections if section))


def sealed(request: AnyRequest, text: str) -> bytes:
    """Returns a report with its seal, as UTF-8."""
    body = text.encode()
    return body + _SEAL.format(request_sha256(request), hashlib.sha256(body).hexdigest()).encode()


def sealed_request(content: bytes) -> str | None:
    """Returns the request_sha256 of a report as `sealed` made it, None when it is torn, edited or no report."""
    seal = _SEALED.fullmatch(content[-_SEAL_BYTES:])
    if seal is None or hashlib.sha256(content[:-_SEAL_BYTES]).hexdigest() != seal[2].decode():
        return None
    return seal[1].decode()


def _section(heading: str, blocks: Iterable[str]) -> str:
    text = "\n".join(block for block in blocks if block)
    return f"## {heading}\n\n{text}" if text else ""


def _title(objective: str) -> str:
    lines = (fold(line) for line in objective.splitlines())
    first = next((line for line in lines if line), "Report")
    return inline(shorten(first, TITLE_CHARS))


def _objective(objective: str) -> Iterator[str]:
    if inline(objective) != _title(objective):
        yield fenced(objective)


def _provenance(request: Request) -> Iterator[str]:
    provenance = request.provenance
    yield f"Task: {code_span(request.task_id)}"
    if provenance.project_id:
        yield f"Project: {code_span(provenance.project_id)}"
    if provenance.correlation_id:
        yield f"Correlation id: {code_span(provenance.correlation_id)}"
    if provenance.HasField("created_at"):
        yield f"Accepted: {time_text(provenance.created_at)}"
    if provenance.conductor_version:
        yield f"Conductor: {code_span(provenance.conductor_version)}"
    for run in provenance.workers:
        times = f"{time_text(run.started_at)} to {time_text(run.ended_at)}"
        yield f"Worker: {inline(run.service)}, call {code_span(run.call_id)}, {times}"
    if request.research_id:
        yield f"Research: {code_span(request.research_id)}; for programs, what it found is in {code_span(FINDINGS)}"
    citations = (citation for finding in request.findings for citation in finding.citations if citation.uri)
    for source in dict.fromkeys(map(_source, citations)):
        yield f"Source: {source}"


def _source(citation: researcher_pb2.Citation) -> str:
    digest = f", SHA-256 {code_span(citation.source_sha256)}" if citation.source_sha256 else ""
    read = f", read {time_text(citation.retrieved_at)}" if citation.HasField("retrieved_at") else ""
    return f"{code_span(citation.uri)}{digest}{read}"
