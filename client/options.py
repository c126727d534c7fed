"""What the commands share: their options, how they read them, and how a command ends."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import grpc
import typer
from conductor.v1 import project_pb2, researcher_pb2
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from client.api import ConductorClient
from client.errors import ConductorError
from client.output import INTERRUPTED, Output
from client.researcher import DEFAULT_RESEARCHER, ResearcherClient
from client.show import plain

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(s|m|h|)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}

Target = Annotated[str, typer.Option(envvar="CONDUCTOR_TARGET", help="host:port of the edge or of a Conductor.")]
Researcher = Annotated[
    str,
    typer.Option(
        envvar="CONDUCTOR_RESEARCHER",
        help=f"host:port of the Researcher, which the edge does not route to. "
        f"{DEFAULT_RESEARCHER} is where it listens by default.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON, one object a line.")]
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")]
ProjectId = Annotated[str, typer.Argument(metavar="PROJECT", help="Id of the project.")]
Edits = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="What to choose at the gate of a run. Repeatable."),
]
RequestId = Annotated[str | None, typer.Option(help="Makes a repeat return the first answer. Made when left out.")]


def named(prefix: str, names: list[str], text: str) -> str:
    """Returns the enum name a person means: `train`, `Train` and `STAGE_TRAIN` are the same."""
    name = text.strip().upper().replace("-", "_").removeprefix(prefix)
    known = [name.removeprefix(prefix) for name in names[1:]]
    if name not in known:
        raise typer.BadParameter(f"give one of {', '.join(known).lower()}")
    return prefix + name


def seconds(text: str) -> float:
    """Returns the seconds of `90`, `90s`, `5m` or `1h`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter("give seconds, or a number with s, m or h, for example 90 or 5m")
    return float(match[1]) * _SECONDS[match[2]]


def source_kind(text: str) -> int:
    """Returns the kind of source a person means."""
    return researcher_pb2.SourceKind.Value(named("SOURCE_KIND_", researcher_pb2.SourceKind.keys(), text))


def stage(text: str) -> int:
    """Returns the stage a person means."""
    return project_pb2.Stage.Value(named("STAGE_", project_pb2.Stage.keys(), text))


def choices(texts: Iterable[str]) -> dict[str, Any]:
    """Returns edits or hints by field, of `field=value` each: a value is JSON where it can be, a text otherwise."""
    chosen: dict[str, Any] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not field or not equals:
            raise typer.BadParameter(f"{text!r}: give field=value, for example target=species")
        try:
            chosen[field] = json.loads(value)
        except (ValueError, RecursionError):
            chosen[field] = value
        try:
            json_format.ParseDict({field: chosen[field]}, Struct())
        except (json_format.Error, OverflowError):
            raise typer.BadParameter(f"{field}: the number is too large, or the lists are too deep") from None
    return chosen


@contextlib.contextmanager
def session(target: str, as_json: bool) -> Iterator[tuple[ConductorClient, Output]]:
    """Opens the client, and turns what goes wrong into a line on standard error and an exit code."""
    output = Output(as_json)
    advice = f"Tried {plain(target)}. Start Conductor, or name another one with --target."
    with _ending(output, advice), ConductorClient(target) as client:
        yield client, output


@contextlib.contextmanager
def researching(target: str, as_json: bool) -> Iterator[tuple[ResearcherClient, Output]]:
    """Opens a client of the Researcher; as `session` otherwise."""
    output = Output(as_json)
    advice = f"Tried {plain(target)}. Start the Researcher, or name another one with --researcher."
    with _ending(output, advice), ResearcherClient(target) as client:
        yield client, output


@contextlib.contextmanager
def _ending(output: Output, advice: str) -> Iterator[None]:
    try:
        yield
    except ConductorError as error:
        code = output.error(error)
        if error.code == grpc.StatusCode.UNAVAILABLE and not error.answered and not output.as_json:
            output.note(advice)
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
