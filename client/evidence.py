"""Sources, researches and checks of citations → lines for a person. Text from documents cannot steer the terminal."""

from collections.abc import Iterable, Iterator, Sequence

from conductor.v1 import researcher_pb2

from client.show import clock, enum_name, failure, iso, judged_line, plain, read_line, shorten

HEAD_CHARS = 120  # of a sentence on its line

Result = researcher_pb2.ResearchResult


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns rows as lines with aligned columns; the last column is as long as it is."""
    lines = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=False)] + [line[-1]]).rstrip()
        for line in lines
    ]


# ---- sources ----


def source_rows(sources: Iterable[researcher_pb2.Source]) -> Iterator[Sequence[str]]:
    """Yields a row a source, a heading first."""
    yield ("NAME", "KIND", "DOCUMENTS", "UNREADABLE", "PASSAGES", "MB", "INDEX MB", "INDEXED", "PATH")
    for source in sources:
        kind = enum_name(researcher_pb2.SourceKind, source.kind).lower()
        sizes = (f"{source.bytes / 1e6:.1f}", f"{source.index_bytes / 1e6:.1f}")
        counts = (f"{source.documents:,}", f"{source.unreadable:,}", f"{source.passages:,}")
        yield (source.name, kind, *counts, *sizes, _when(source), _path(source))


def _when(source: researcher_pb2.Source) -> str:
    return iso(source.indexed_at) or "never"


def _path(source: researcher_pb2.Source) -> str:
    patterns = [*source.include, *(f"!{pattern}" for pattern in source.exclude)]
    return " ".join([source.path, *patterns, "" if source.configured else "(added)"]).strip()


def index_lines(step: researcher_pb2.IndexSourceResponse) -> list[str]:
    """Returns one step of indexing as lines."""
    kind = step.WhichOneof("event")
    if kind == "gap":
        return [f"  ! {_gap(step.gap)}"]
    if kind == "source":
        return table(source_rows([step.source]))
    if kind != "progress":
        return []  # of a newer Researcher
    done, total = step.progress.documents, step.progress.total_documents
    of = f" of {total:,}" if total else ""
    rest = f"{step.progress.indexed:,} indexed ({step.progress.bytes / 1e6:.1f} MB), {step.progress.removed:,} removed"
    return [f"{done:,}{of} documents looked at, {rest}"]


# ---- researches ----


def record_lines(record: researcher_pb2.ResearchRecord) -> Iterator[str]:
    """Yields a research: where it stands, then its result or why it failed."""
    yield plain(f"{record.research_id}  {shorten(record.objective)}")
    ended = f", ended {iso(record.ended_at)}" if record.HasField("ended_at") else ", runs"
    yield f"Started {iso(record.started_at)}{ended}, {record.sequence:,} events"
    if record.HasField("error"):
        yield failure(record.error)
    if record.HasField("result"):
        yield from result_lines(record.result)


def result_lines(result: Result) -> Iterator[str]:
    """Yields the answer, the citations it rests on, and what is missing."""
    yield enum_name(researcher_pb2.ResearchOutcome, result.outcome)
    cited = numbered(result)
    numbers = {_key(citation): number for number, citation in cited}
    for sentence in result.answer:
        citations = [citation for index in sentence.findings for citation in _citations(result, index)]
        marks = "".join(f"[{number}]" for number in dict.fromkeys(numbers[_key(one)] for one in citations))
        yield f"  {plain(sentence.text)} {marks}".rstrip()
    yield from (f"  [{number}] {place(citation)}: {shorten(citation.quote, HEAD_CHARS)}" for number, citation in cited)
    yield from (f"  ! {_gap(gap)}" for gap in result.gaps)


def response_lines(response: researcher_pb2.ResearchResponse) -> list[str]:
    """Returns one event of a research as lines."""
    kind = response.WhichOneof("event")
    if kind == "result":
        return list(result_lines(response.result))
    said = {
        "progress": lambda: plain(response.progress.message),
        "read": lambda: read_line(response.read),
        "judged": lambda: judged_line(response.judged),
        "usage": lambda: _usage(response.usage),
    }
    return [f"{clock(response.occurred_at)}  {said[kind]()}".strip()] if kind in said else []


def _usage(usage: researcher_pb2.ResearchUsage) -> str:
    tokens = usage.model_input_tokens + usage.model_output_tokens
    parts = (f"{usage.documents:,} documents", f"{usage.bytes / 1e6:.1f} MB", f"{usage.fetches:,} requests")
    return f"spent {', '.join(parts)}, {usage.model_calls:,} model calls, {tokens:,} tokens"


def _gap(gap: researcher_pb2.Gap) -> str:
    return plain(f"{enum_name(researcher_pb2.GapKind, gap.kind)} {gap.subject}: {gap.detail}")


# ---- citations ----


def numbered(result: Result) -> list[tuple[int, researcher_pb2.Citation]]:
    """Returns the citations with the numbers they have in the report: in order of appearance, the answer's first."""
    first = [index for sentence in result.answer for index in sentence.findings]
    known: dict[bytes, researcher_pb2.Citation] = {}
    for index in (*first, *range(len(result.findings))):
        for citation in _citations(result, index):
            known.setdefault(_key(citation), citation)
    return list(enumerate(known.values(), 1))


def _citations(result: Result, index: int) -> Sequence[researcher_pb2.Citation]:
    return result.findings[index].citations if index < len(result.findings) else ()


def _key(citation: researcher_pb2.Citation) -> bytes:
    kept = researcher_pb2.Citation(
        uri=citation.uri, locator=citation.locator, quote=citation.quote, source_sha256=citation.source_sha256
    )
    return kept.SerializeToString(deterministic=True)


def place(citation: researcher_pb2.Citation) -> str:
    """Returns where a citation is, on one line."""
    return ", ".join(part for part in (plain(citation.uri), spot(citation.locator)) if part)


def spot(at: researcher_pb2.Locator) -> str:
    """Returns a place within a document, as a person finds it there."""
    parts = [f"page {at.page}" if at.page else "", at.sheet, f"row {at.row}" if at.row else "", at.cells]
    if at.line_start and not at.page and not at.row:
        parts.append(f"lines {at.line_start}-{at.line_end}" if at.line_end > at.line_start else f"line {at.line_start}")
    return plain(", ".join(part for part in parts if part))
