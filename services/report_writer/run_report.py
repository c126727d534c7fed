"""WriteRunReportRequest and what the stages left → markdown. Pure: the same request gives the same bytes."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from conductor.v1 import project_pb2, report_writer_pb2

from services.report_writer.escape import inline

Results: TypeAlias = (
    "Mapping[project_pb2.Stage.ValueType, Mapping[str, Any]]"  # by Stage: the `result` of its result.json
)


def body(request: report_writer_pb2.WriteRunReportRequest, results: Results) -> str:
    """Returns the report, without its seal."""
    return "\n".join(_blocks(request, results))


def _blocks(request: report_writer_pb2.WriteRunReportRequest, results: Results) -> Iterator[str]:
    yield f"# {inline(request.run.objective)}\n"
    yield f"{inline(request.outcome.summary)}\n"
    for stage in sorted(results):
        yield f"## {project_pb2.Stage.Name(stage).removeprefix('STAGE_')}\n"
