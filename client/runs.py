"""The commands about runs of projects: start, upload, files, cancel-run."""

import re
from pathlib import Path
from typing import Annotated

import typer
from conductor.v1 import project_pb2
from google.protobuf import json_format

from client.api import DEFAULT_TARGET
from client.files import save
from client.options import Json, ProjectId, RequestId, Target, choices, seconds, session, stage
from client.output import FAILED
from client.show import file_line, plain, state_lines, upload_line

UPLOAD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of data that is uploaded


def start(
    project: ProjectId,
    objective: Annotated[str, typer.Argument(help="What is wanted, for example: predict species from penguins.csv")],
    data: Annotated[
        str, typer.Option(help="The data: a path below the Terminal's data folders, or uploads/NAME.")
    ] = "",
    budget: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="TIME", help="Processor time for trying models, as 90s or 5m."),
    ] = None,
    pass_gate: Annotated[
        list[int] | None,
        typer.Option(parser=stage, metavar="STAGE", help="A gate to pass without a person. Repeatable."),
    ] = None,
    pass_all: Annotated[bool, typer.Option("--pass-all", help="Stop only where something has to be chosen.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="For everything random.")] = 0,
    hint: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="What is known already, for example target=species. Repeatable."),
    ] = None,
    request_id: RequestId = None,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Begin a run: the project's stages are done by programs, and stop at their gates for you."""
    gates = [one for one in project_pb2.Stage.values() if one] if pass_all else pass_gate or []
    options = project_pb2.RunOptions(pass_gates=[project_pb2.Stage.ValueType(gate) for gate in gates], seed=seed)
    if budget is not None:
        options.budget.FromNanoseconds(round(budget * 1e9))
    if hint:
        json_format.ParseDict(choices(hint), options.hints)
    with session(target, as_json) as (client, output):
        found = client.start(project, objective, data=data, options=options, request_id=request_id)
        output.message(found, state_lines(found))


def upload(
    project: ProjectId,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The file of data.")],
    name: Annotated[str, typer.Option(help="How a run calls it, when its own name will not do.")] = "",
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Upload data to a project. A run calls it uploads/NAME."""
    if not UPLOAD_NAME.fullmatch(name or file.name):
        text = f"{name or file.name!r} cannot be its name there: give --name, of letters, digits, dots, - and _."
        raise typer.BadParameter(text)
    with session(target, as_json) as (client, output):
        found = client.upload(project, file, name=name)
        output.message(found, [upload_line(found)])


def files(
    project: ProjectId,
    to: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Save them below this folder, with the report as report.md."),
    ] = None,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """List the files of a project's run, as `artifact --project` takes them; with --to, save those not stale."""
    with session(target, as_json) as (client, output):
        state = client.state(project)
        if to is None:
            for artifact in state.run.artifacts:
                output.message(artifact, [file_line(artifact)])
            return
        try:
            for path in save(client, state, to):
                output.fields({"path": str(path)}, [plain(str(path))])
        except OSError as error:
            output.note(f"{plain(str(error.filename or to))}: {error.strerror}. Save to another folder.")
            raise typer.Exit(FAILED) from None


def cancel_run(
    project: ProjectId,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    request_id: RequestId = None,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Cancel the run of a project, and kill what it runs."""
    with session(target, as_json) as (client, output):
        found = client.cancel_run(project, reason, request_id=request_id)
        output.message(found, state_lines(found))
