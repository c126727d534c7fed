"""How a research went, for a report: what was searched and when, what it cost, and what is missing."""

from collections.abc import Iterable, Iterator, Mapping

from conductor.v1 import report_writer_pb2, researcher_pb2

from services.report_writer.commands import time_text
from services.report_writer.escape import code_span, fold, inline

MEGA = 1_000_000

_Gap = researcher_pb2.GapKind
_GAPS: Mapping[int, str] = {
    _Gap.GAP_KIND_NOT_FOUND: "Not found",
    _Gap.GAP_KIND_TERM_ABSENT: "Word that occurs nowhere",
    _Gap.GAP_KIND_UNREADABLE: "Could not be read",
    _Gap.GAP_KIND_BUDGET_EXHAUSTED: "Search ended early",
    _Gap.GAP_KIND_TRUNCATED: "Read in part or left out",
    _Gap.GAP_KIND_REFUSED: "Refused",
    _Gap.GAP_KIND_PROVIDER_FAILED: "Search provider or language model failed",
    _Gap.GAP_KIND_CLAIM_DROPPED: "Claim without a quote that bears it out",
    _Gap.GAP_KIND_CANCELLED: "Cancelled",
}
_Kind = researcher_pb2.SourceKind
_KINDS: Mapping[int, str] = {
    _Kind.SOURCE_KIND_FOLDER: "folder",
    _Kind.SOURCE_KIND_REPORTS: "earlier reports",
    _Kind.SOURCE_KIND_TABLES: "tables",
    _Kind.SOURCE_KIND_WEB: "web",
}


def gaps(found: Iterable[researcher_pb2.Gap]) -> str:
    """Returns what is missing, a line each."""
    return "".join(_gap(gap) for gap in found)


def _gap(gap: researcher_pb2.Gap) -> str:
    subject = f": {code_span(gap.subject)}" if fold(gap.subject) else ""
    detail = f". {inline(gap.detail)}" if fold(gap.detail) else ""
    return f"- {_GAPS.get(gap.kind, 'Gap')}{subject}{detail}\n"


def searched(request: report_writer_pb2.WriteReportRequest) -> Iterator[str]:
    """Yields the blocks of what was searched, and what was spent on it."""
    yield "".join(f"- {_source(source)}\n" for source in request.searched)
    if request.HasField("usage"):
        yield f"Spent: {', '.join(_spent(request.usage))}.\n"


def _source(source: researcher_pb2.SearchedSource) -> str:
    kind = f" ({_KINDS[source.kind]})" if source.kind in _KINDS else ""
    held = f"{_count(source.documents, 'document')}, {_count(source.passages, 'passage')}"
    at = f", at {time_text(source.at)}" if source.HasField("at") else ""
    asked = f"; asked for {', '.join(map(code_span, source.queries))}" if source.queries else ""
    return f"{code_span(source.name)}{kind}: {held}{at}{asked}"


def _spent(usage: researcher_pb2.ResearchUsage) -> Iterator[str]:
    yield f"{usage.wall_time.seconds + usage.wall_time.nanos / 1e9:.2f} s"
    yield f"{_count(usage.documents, 'document')} ({usage.bytes:,} bytes) read"
    yield f"{_count(usage.passages, 'passage')} searched"
    if usage.fetches:
        yield f"{usage.fetches:,} requests to the web" if usage.fetches > 1 else "1 request to the web"
    if usage.model_calls:
        model = f" of {code_span(usage.model)}" if fold(usage.model) else ""
        tokens = f"{usage.model_input_tokens:,} tokens sent, {usage.model_output_tokens:,} received"
        yield f"{_count(usage.model_calls, 'model call')}{model} ({tokens})"
    if usage.model_cost_micros:
        yield f"{usage.model_cost_micros / MEGA:.6f} in the currency of the model's prices"


def _count(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"
