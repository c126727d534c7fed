"""WriteReportRequest → `findings.json`, all that a research found, for programs. Pure: equal requests, equal bytes."""

from conductor.v1 import report_writer_pb2, researcher_pb2
from google.protobuf import json_format

NAME = "findings.json"


def findings_json(request: report_writer_pb2.WriteReportRequest) -> bytes:
    """Returns the ResearchResult as protobuf JSON (ProtoJSON format) with the contract's field names, in UTF-8.

    Fields that are zero or empty are written too: an index may be 0, and a reader need not know the contract. Gaps that
    Conductor added are among the research's own.
    """
    result = researcher_pb2.ResearchResult(
        findings=request.findings,
        gaps=request.gaps,
        outcome=request.outcome,
        answer=request.answer,
        sub_questions=request.sub_questions,
        contradictions=request.contradictions,
        searched=request.searched,
        research_id=request.research_id,
    )
    if request.HasField("usage"):
        result.usage.CopyFrom(request.usage)
    text = json_format.MessageToJson(
        result, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, ensure_ascii=False
    )
    return f"{text}\n".encode()
