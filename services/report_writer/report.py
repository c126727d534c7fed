"""WriteReportRequest → markdown, and the names of reports. Pure: the same request gives the same bytes.

Order: answer, findings with their citations, commands with their output, gaps, provenance. The last line is the seal,
an HTML comment with the SHA-256 of the request and of everything above it: it tells a repeat from a conflict, and a
whole report from a torn or edited one.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator

from conductor.v1 import report_writer_pb2, researcher_pb2

from services.report_writer.commands import commands, outcome, time_text
from services.report_writer.escape import code_span, fenced, fold, inline, shorten

TITLE_CHARS = 100
NOTHING_FOUND = "No evidence was found in the sources searched."

_PATH = re.compile(r"reports/([A-Za-z0-9][A-Za-z0-9-]{0,127}\.md)")
_SEAL = "<!-- conductor-report request-sha256={} body-sha256={} -->\n"
_SEALED = re.compile(
    rb"<!-- conductor-report request-sha256=([0-9a-f]{64}) body-sha256=([0-9a-f]{64}) -->\n",
)
_SEAL_BYTES = len(_SEAL.format("0" * 64, "0" * 64))

_Gap = researcher_pb2.GapKind
_GAPS = {
    _Gap.GAP_KIND_NOT_FOUND: "Not found",
    _Gap.GAP_KIND_TERM_ABSENT: "Word that occurs nowhere",
    _Gap.GAP_KIND_UNREADABLE: "Could not be read",
    _Gap.GAP_KIND_BUDGET_EXHAUSTED: "Search ended early",
    _Gap.GAP_KIND_TRUNCATED: "Read in part or left out",
}
Request = report_writer_pb2.WriteReportRequest
Numbers = dict[bytes, int]


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


def request_sha256(request: Request) -> str:
    """Returns what makes two requests the same: the SHA-256 of their serialisation, in lower-case hexadecimal.

    The version of Conductor is left out: an upgrade between a report and its acknowledgement makes no other request.
    """
    same = report_writer_pb2.WriteReportRequest()
    same.CopyFrom(request)
    same.provenance.ClearField("conductor_version")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).hexdigest()


def render(request: Request) -> bytes:
    """Returns the sealed report as UTF-8."""
    numbers = _numbers(request.findings)
    sections = (
        f"# {_title(request.objective)}\n",
        _section("Answer", _answer(request, numbers)),
        _section("Findings", _findings(request.findings, numbers)),
        _section("Commands", commands(request.commands)),
        _section("Gaps", ["".join(_gap(gap) for gap in request.gaps)]),
        _section("Objective", _objective(request.objective)),
        _section("Provenance", ["".join(f"- {line}\n" for line in _provenance(request))]),
    )
    body = "".join(f"{section}\n" for section in sections if section).encode()
    return body + _SEAL.format(request_sha256(request), hashlib.sha256(body).hexdigest()).encode()


def sealed_request(content: bytes) -> str | None:
    """Returns the request_sha256 of a report as `render` made it, None when it is torn, edited or no report."""
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


def _numbers(findings: Iterable[researcher_pb2.Finding]) -> Numbers:
    """Numbers the citations in order of appearance; equal places get one number."""
    numbers: Numbers = {}
    for finding in findings:
        for citation in finding.citations:
            numbers.setdefault(_place(citation), len(numbers) + 1)
    return numbers


def _place(citation: researcher_pb2.Citation) -> bytes:
    place = researcher_pb2.Citation(
        uri=citation.uri, locator=citation.locator, quote=citation.quote, source_sha256=citation.source_sha256
    )
    return place.SerializeToString(deterministic=True)


def _marks(finding: researcher_pb2.Finding, numbers: Numbers) -> str:
    unique = dict.fromkeys(numbers[_place(citation)] for citation in finding.citations)
    return "".join(f"[{number}]" for number in unique) or "(no source named)"


def _answer(request: Request, numbers: Numbers) -> Iterator[str]:
    if request.findings:
        yield _statement(request.findings[0], numbers)
    if request.commands:
        yield "".join(f"- {outcome(record)}\n" for record in request.commands)
    if not request.findings and not request.commands:
        yield f"{NOTHING_FOUND}\n"


def _statement(finding: researcher_pb2.Finding, numbers: Numbers) -> str:
    return f"{inline(finding.statement) or '(no statement)'} {_marks(finding, numbers)}\n"


def _findings(findings: Iterable[researcher_pb2.Finding], numbers: Numbers) -> Iterator[str]:
    shown: set[int] = set()
    for position, finding in enumerate(findings, 1):
        yield f"### Finding {position}\n"
        citations = [(numbers[_place(citation)], citation) for citation in finding.citations]
        # An extractive statement is its quote on one line: the quote below says it, once and verbatim.
        if not any(number not in shown and _says(citation, finding) for number, citation in citations):
            yield _statement(finding, numbers)
        for number, citation in citations:
            if number not in shown:
                shown.add(number)
                yield _citation(number, citation)


def _says(citation: researcher_pb2.Citation, finding: researcher_pb2.Finding) -> bool:
    return fold(citation.quote) == fold(finding.statement)


def _citation(number: int, citation: researcher_pb2.Citation) -> str:
    locator = citation.locator
    parts = [f"**{inline(citation.title)}**" if fold(citation.title) else "", code_span(citation.uri)]
    parts.append(" › ".join(inline(heading) for heading in locator.heading_path))
    parts.append(_lines(locator))
    return f"[{number}] {', '.join(part for part in parts if part)}\n\n{fenced(citation.quote)}"


def _lines(locator: researcher_pb2.Locator) -> str:
    if locator.line_end > locator.line_start:
        return f"lines {locator.line_start}–{locator.line_end}"
    return f"line {locator.line_start}" if locator.line_start else ""


def _gap(gap: researcher_pb2.Gap) -> str:
    subject = f": {code_span(gap.subject)}" if fold(gap.subject) else ""
    detail = f". {inline(gap.detail)}" if fold(gap.detail) else ""
    return f"- {_GAPS.get(gap.kind, 'Gap')}{subject}{detail}\n"


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
    citations = (citation for finding in request.findings for citation in finding.citations)
    for uri, digest in dict.fromkeys((citation.uri, citation.source_sha256) for citation in citations if citation.uri):
        yield f"Source: {code_span(uri)}{f', SHA-256 {code_span(digest)}' if digest else ''}"
