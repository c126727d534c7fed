"""What operators ask the Researcher itself: its sources, its researches, and whether a task's citations still hold."""

from typing import Annotated

import grpc
import typer
from conductor.v1 import researcher_pb2
from google.protobuf import json_format

from client.api import DEFAULT_TARGET, ConductorClient
from client.errors import ConductorError
from client.evidence import index_lines, numbered, place, record_lines, response_lines, source_rows, spot, table
from client.options import Json, Researcher, Target, TaskId, researching, session, source_kind
from client.output import FAILED, OK, Output
from client.researcher import DEFAULT_RESEARCHER, ResearcherClient
from client.show import FINDINGS, enum_name, plain

# The quote stands in the source, be it elsewhere than it did.
HOLDS = (researcher_pb2.CITATION_STATE_VALID, researcher_pb2.CITATION_STATE_SOURCE_CHANGED)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the source.")]

sources = typer.Typer(
    help="Look after what the Researcher searches. Talks to the Researcher itself.", no_args_is_help=True
)


@sources.command("list")
def list_sources(researcher: Researcher = DEFAULT_RESEARCHER, as_json: Json = False) -> None:
    """List all sources, and what their indexes hold."""
    with researching(researcher, as_json) as (client, output):
        found = client.sources()
        if not as_json:
            output.fields({}, table(source_rows(found)))
            return
        for source in found:
            output.message(source, ())


@sources.command("add")
def add_source(
    name: Name,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder below a configured root: <root>/<path>.")],
    kind: Annotated[
        int | None, typer.Option(parser=source_kind, metavar="KIND", help="folder, reports or tables.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only paths like this: **/*.md. Repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No paths like this. Repeatable.")] = None,
    researcher: Researcher = DEFAULT_RESEARCHER,
    as_json: Json = False,
) -> None:
    """Add a source, or replace the added one of this name."""
    chosen = researcher_pb2.SourceKind.ValueType(kind or researcher_pb2.SOURCE_KIND_FOLDER)
    with researching(researcher, as_json) as (client, output):
        found = client.add_source(name, path, kind=chosen, include=include or (), exclude=exclude or ())
        output.message(found, table(source_rows([found])))
        if not as_json:
            output.note(f"Its first research indexes it, or now: conductor sources index {plain(name)}")


@sources.command("index")
def index_source(name: Name, researcher: Researcher = DEFAULT_RESEARCHER, as_json: Json = False) -> None:
    """Bring the index of a source up to date, and tell what cannot be read."""
    with researching(researcher, as_json) as (client, output):
        try:
            for step in client.index_source(name):
                output.message(step, index_lines(step))
        except KeyboardInterrupt:
            output.note("Stopped. What was indexed stays; the same command goes on from there.")
            raise


@sources.command("remove")
def remove_source(name: Name, researcher: Researcher = DEFAULT_RESEARCHER) -> None:
    """Remove an added source and its index. Its documents are not touched."""
    with researching(researcher, False) as (client, output):
        client.remove_source(name)
        output.note(f"Removed {plain(name)}.")


def show_research(
    research_id: Annotated[str, typer.Argument(metavar="RESEARCH", help="Id of the research, as its report has it.")],
    follow: Annotated[bool, typer.Option("--follow", help="Show all its events, also those to come.")] = False,
    researcher: Researcher = DEFAULT_RESEARCHER,
    as_json: Json = False,
) -> None:
    """Show a research: how far it is, its answer, its citations, and what is missing."""
    with researching(researcher, as_json) as (client, output):
        if follow:
            for response in client.watch(research_id):
                output.message(response, response_lines(response))
            return
        record = client.research(research_id)
        output.message(record, record_lines(record))


def verify(
    task: TaskId,
    target: Target = DEFAULT_TARGET,
    researcher: Researcher = DEFAULT_RESEARCHER,
    as_json: Json = False,
) -> None:
    """Read the sources of a task's citations again, and say for each whether its quote still stands there.

    Exit code 0: every quote stands in its source, though perhaps at another place. 1: one does not.
    """
    with session(target, as_json) as (conductor, output):
        result = _findings(conductor, task)
    with researching(researcher, as_json) as (client, output):
        raise typer.Exit(_verify(client, output, result))


def _findings(client: ConductorClient, task: str) -> researcher_pb2.ResearchResult:
    content = b"".join(client.artifact(task, FINDINGS))
    return json_format.Parse(content, researcher_pb2.ResearchResult(), ignore_unknown_fields=True)


def _verify(client: ResearcherClient, output: Output, result: researcher_pb2.ResearchResult) -> int:
    rows, broken = [("[n]", "STATE", "SOURCE", "DETAIL")], 0
    for number, citation in numbered(result):
        checked = _checked(client, citation)
        broken += checked.state not in HOLDS
        state = enum_name(researcher_pb2.CitationState, checked.state)
        now = spot(checked.locator) if checked.state == researcher_pb2.CITATION_STATE_SOURCE_CHANGED else ""
        detail = f"{checked.detail} Now: {now}." if now else checked.detail
        rows.append((f"[{number}]", state, place(citation), detail))
        if output.as_json:
            told = json_format.MessageToDict(checked, preserving_proto_field_name=True)
            output.fields({"number": number, "uri": citation.uri, "quote": citation.quote, **told}, ())
    if not output.as_json:
        output.fields({}, table(rows) if len(rows) > 1 else ())
        output.note(_summed(len(rows) - 1, broken))
    return FAILED if broken else OK


def _checked(client: ResearcherClient, citation: researcher_pb2.Citation) -> researcher_pb2.VerifyCitationResponse:
    try:
        return client.verify(citation)
    except ConductorError as error:
        if error.code != grpc.StatusCode.INVALID_ARGUMENT:
            raise
        return researcher_pb2.VerifyCitationResponse(detail=f"It cannot be checked: {error.message}")


def _summed(count: int, broken: int) -> str:
    if not count:
        return "The research cites nothing, so there is nothing to verify."
    return f"{broken} of {count} citations do not hold." if broken else f"All {count} citations hold."
