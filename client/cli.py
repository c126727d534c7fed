"""The `conductor` command line.

Exit codes:
    0    done
    1    the task failed or was cancelled, or Conductor itself failed
    2    the command line or the request is wrong
    3    refused: not found, not now, or in conflict with what stands
    4    unavailable: nothing to reach, over capacity, or too late
    130  interrupted; a task that was accepted goes on
"""

import shlex
import sys
from typing import Annotated, Any

import typer
from conductor.v1 import project_pb2, researcher_pb2, task_pb2, terminal_pb2

from client.admin import administer
from client.api import DEFAULT_TARGET, new_request_id
from client.options import (
    Edits,
    Json,
    ProjectId,
    RequestId,
    Target,
    TaskId,
    choices,
    named,
    seconds,
    session,
    source_kind,
)
from client.options import stage as stage_named
from client.research import show_research, sources, verify
from client.runs import cancel_run, files, start, upload
from client.show import artifact_line, event_line, plain, state_lines, task_line
from client.watch import watch as watch_task

HELP = """Send an objective, watch typed events, confirm each gate, get a report you can check.

Exit codes:

* 0: done
* 1: the task failed or was cancelled, or Conductor itself failed
* 2: the command line or the request is wrong
* 3: refused: not found, not now, or in conflict with what stands
* 4: unavailable: nothing to reach, over capacity, or too late
* 130: interrupted; a task that was accepted goes on
"""
app = typer.Typer(
    help=HELP, rich_markup_mode="markdown", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def _stage_status(text: str) -> int:
    return project_pb2.StageStatus.Value(named("STAGE_STATUS_", project_pb2.StageStatus.keys(), text))


def _task_status(text: str) -> int:
    return task_pb2.TaskStatus.Value(named("TASK_STATUS_", task_pb2.TaskStatus.keys(), text))


def _mode(text: str) -> int:
    return researcher_pb2.AnswerMode.Value(named("ANSWER_MODE_", researcher_pb2.AnswerMode.keys(), text))


def _argv(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} cannot be split: {error}") from None


@app.command()
def execute(
    objective: Annotated[str, typer.Argument(help="What is wanted, in natural language.")],
    wait: Annotated[bool, typer.Option(help="Watch the task until it ends.")] = True,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Source to research, or a folder, document or page of one. Repeatable."),
    ] = None,
    web: Annotated[bool, typer.Option("--web", help="Search the web too.")] = False,
    mode: Annotated[
        int | None, typer.Option(parser=_mode, metavar="MODE", help="How to answer: extractive or synthesized.")
    ] = None,
    kind: Annotated[
        list[int] | None,
        typer.Option(parser=source_kind, metavar="KIND", help="Only folder, reports, tables or web. Repeatable."),
    ] = None,
    command: Annotated[
        list[str] | None, typer.Option(help="Command to run, split as a shell does. Repeatable.")
    ] = None,
    script: Annotated[
        list[str] | None, typer.Option(help="Script for /bin/sh, after the commands. Repeatable.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Project the task belongs to.")] = None,
    deadline: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="Time for the task: 90, 90s, 5m, 1h.")
    ] = None,
    request_id: RequestId = None,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Submit an objective, and watch it until its report is there.

    The Terminal runs what --command and --script say; the Researcher goes first when --source, --web, --mode or --kind
    is given too.

    With --json the last line is the task, or with --no-wait the answer.
    """
    research = task_pb2.ResearchHints(sources=source, web=web, mode=mode or 0, kinds=kind)  # type: ignore[arg-type]
    hints = _hints(research, command or [], script or [], deadline)
    request_id = request_id or new_request_id()
    with session(target, as_json) as (client, output):
        try:
            answer = client.execute(objective, hints=hints, project_id=project, request_id=request_id)
        except KeyboardInterrupt:
            output.note(f"Interrupted. To learn whether it was accepted, repeat with --request-id {plain(request_id)}")
            raise
        if not wait:
            output.message(answer, [answer.task_id])
            return
        output.note(f"Task {answer.task_id}")
        raise typer.Exit(watch_task(client, answer.task_id, output))


def _hints(
    research: task_pb2.ResearchHints, commands: list[str], scripts: list[str], deadline: float | None
) -> task_pb2.Hints:
    hints = task_pb2.Hints(commands=[terminal_pb2.Command(argv=_argv(text)) for text in commands])
    hints.commands.extend(terminal_pb2.Command(script=text) for text in scripts)
    hints.research.CopyFrom(research)
    if hints.commands and research.ByteSize():
        hints.capabilities.append(task_pb2.CAPABILITY_RESEARCHER)
    if hints.commands:
        hints.capabilities.append(task_pb2.CAPABILITY_TERMINAL)
    if deadline is not None:
        hints.deadline.FromNanoseconds(round(deadline * 1e9))
    return hints


@app.command()
def watch(task: TaskId, target: Target = DEFAULT_TARGET, as_json: Json = False) -> None:
    """Follow a task from its first event to its last."""
    with session(target, as_json) as (client, output):
        raise typer.Exit(watch_task(client, task, output))


@app.command("task")
def show_task(task: TaskId, target: Target = DEFAULT_TARGET, as_json: Json = False) -> None:
    """Show a task."""
    with session(target, as_json) as (client, output):
        found = client.get_task(task)
        output.message(found, [task_line(found), *(f"  {artifact_line(file)}" for file in found.artifacts)])


@app.command()
def tasks(
    status: Annotated[
        int | None, typer.Option(parser=_task_status, metavar="STATUS", help="Only this one, for example failed.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only tasks of this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """List tasks, newest first."""
    chosen = task_pb2.TaskStatus.ValueType(status or 0)
    with session(target, as_json) as (client, output):
        for found in client.list_tasks(status=chosen, project_id=project, page_size=limit).tasks:
            output.message(found, [task_line(found)])


@app.command()
def cancel(
    task: TaskId,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Stop a task and what it runs."""
    with session(target, as_json) as (client, output):
        found = client.cancel(task, reason)
        output.message(found, [task_line(found)])


@app.command()
def report(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")] = "",
    project: Annotated[str, typer.Option(help="A project, for the newest report of its run.")] = "",
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Write the report of a completed task, or of a project's run, to standard output, as markdown."""
    if bool(task) == bool(project):
        raise typer.BadParameter("Give either TASK or --project.")
    with session(target, as_json) as (client, output):
        body = client.report(task, project_id=project)
        if as_json:
            output.message(body, ())
            return
        sys.stdout.buffer.write(body.data)
        sys.stdout.buffer.flush()


@app.command()
def artifact(
    task: TaskId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As conductor task shows it: command-1.stdout")],
    project: Annotated[
        str, typer.Option(help="The project whose run lists the file; its task may be kept no more.")
    ] = "",
    target: Target = DEFAULT_TARGET,
) -> None:
    """Write a file of a task to standard output, what a command wrote or findings.json: as it is, to a terminal with
    controls visible."""
    with session(target, False) as (client, output):
        for data in client.artifact(task, name, project):
            output.raw(data)


@app.command()
def state(project: ProjectId, target: Target = DEFAULT_TARGET, as_json: Json = False) -> None:
    """Show where a project stands."""
    with session(target, as_json) as (client, output):
        found = client.state(project)
        output.message(found, state_lines(found))


SeenStage = Annotated[
    int | None,
    typer.Option("--stage", parser=stage_named, metavar="STAGE", help="The stage you saw; refused when stale."),
]
SeenConfirmation = Annotated[str, typer.Option("--confirmation", help="The confirmation you saw; refused when stale.")]
SeenPlan = Annotated[str, typer.Option("--plan", help="The plan you saw; refused when stale.")]


@app.command()
def confirm(
    project: ProjectId,
    stage: SeenStage = None,
    confirmation: SeenConfirmation = "",
    plan: SeenPlan = "",
    edits: Edits = None,
    request_id: RequestId = None,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Approve what waits on the current stage: it is completed, and the next one starts. With --set, it is done again
    with what you choose first."""
    seen = {"confirmation_id": confirmation, "plan_id": plan, "request_id": request_id}
    _answer(target, as_json, project, stage, edits=choices(edits or ()), **seen)


@app.command()
def reject(
    project: ProjectId,
    reason: Annotated[str, typer.Argument(help="Why, for whoever does the work again.")],
    stage: SeenStage = None,
    confirmation: SeenConfirmation = "",
    plan: SeenPlan = "",
    edits: Edits = None,
    request_id: RequestId = None,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Send the current stage back to work, and say why."""
    seen = {"confirmation_id": confirmation, "plan_id": plan, "request_id": request_id}
    _answer(target, as_json, project, stage, approved=False, reason=reason, edits=choices(edits or ()), **seen)


def _answer(target: str, as_json: bool, project: str, stage: int | None, **answer: Any) -> None:
    with session(target, as_json) as (client, output):
        found = client.confirm(project, stage=project_pb2.Stage.ValueType(stage or 0), **answer)
        output.message(found, state_lines(found))


@app.command()
def transition(
    project: ProjectId,
    stage: Annotated[
        int, typer.Argument(parser=stage_named, metavar="STAGE", help="For example train or STAGE_TRAIN.")
    ],
    status: Annotated[
        int | None, typer.Option(parser=_stage_status, metavar="STATUS", help="in_progress when left out.")
    ] = None,
    message: Annotated[str, typer.Option(help="What to say about it.")] = "",
    edits: Edits = None,
    request_id: RequestId = None,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Move a project to a stage, or report on the current one. In a run, begin the stage again."""
    with session(target, as_json) as (client, output):
        found = client.transition(
            project,
            project_pb2.Stage.ValueType(stage),
            status=project_pb2.StageStatus.ValueType(status or 0),
            message=message,
            edits=choices(edits or ()),
            request_id=request_id,
        )
        output.message(found, state_lines(found))


@app.command()
def events(
    after: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Start behind this sequence; 0 for all there is.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only this project and its tasks.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    event_type: Annotated[list[str] | None, typer.Option("--type", help="Only this type. Repeatable.")] = None,
    follow: Annotated[
        bool, typer.Option(help="Go on with what happens from now; otherwise end at the present.")
    ] = True,
    target: Target = DEFAULT_TARGET,
    as_json: Json = False,
) -> None:
    """Stream events. From now on when --after is left out; with --no-follow, all there is."""
    with session(target, as_json) as (client, output):
        stream = client.events(
            after_sequence=0 if after is None and not follow else after,
            task_id=task,
            project_id=project,
            types=event_type or (),
            follow=follow,
        )
        for event in stream:
            output.message(event, [event_line(event)])


app.add_typer(sources, name="sources")
app.command()(verify)
app.command()(start)
app.command()(upload)
app.command()(files)
app.command("cancel-run")(cancel_run)
app.command("research")(show_research)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    no_args_is_help=False,
)
def admin(context: typer.Context) -> None:
    """Look after the store itself, with or without a running Conductor: migrate, prune, backup, restore, check.

    Its exit codes are its own; see conductor admin --help.
    """
    raise typer.Exit(administer(context.args))


def main() -> None:
    """Runs the command line."""
    try:
        app(prog_name="conductor")
    except UnicodeEncodeError:  # bytes of the command line that are no text
        sys.stderr.write("Error: the command line is not UTF-8, and ids, names and texts have to be.\n")
        sys.exit(2)
