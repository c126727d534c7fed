"""The client's command line, as a process where exit codes, signals, bytes or terminals matter."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, event_pb2, project_pb2, task_pb2, terminal_pb2
from google.api import httpbody_pb2

from services.common.errors import Reason, Refusal
from tests.scripted_conductor import (
    COMMAND,
    ROOT,
    TASK,
    Act,
    Scripted,
    checkpoint,
    completed,
    conductor,
    event,
    give,
    process,
    refuse,
    script,
    serve,
    stream,
    target,
    the_story,
)

__all__ = ["script", "target"]


def failed(script: Scripted) -> None:
    error = Refusal(Reason.ERROR_REASON_COMMAND_FAILED, "It exited with 3.").error
    task = task_pb2.Task(task_id=TASK, status=task_pb2.TASK_STATUS_FAILED, error=error)
    the_story(script, event(3, "conductor.task.failed", task_failed=event_pb2.TaskFailed(error=error)), task)


def test_bytes_that_are_no_text_are_a_wrong_command_line() -> None:
    done = subprocess.run([*COMMAND, "state", b"p\xff"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "") and "not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


def test_execute_shows_the_story_and_the_report(script: Scripted, target: str) -> None:
    completed(script)
    done = process("execute", "why?", target=target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "task.started    why?",
        "worker.call     TERMINAL: ls -l (attempt 2)",
        f"task.completed  reports/{TASK}.md",
        f"Completed: reports/{TASK}.md",
        f"Read it: conductor report {TASK}",
    ]
    assert done.stderr == f"Task {TASK}\n"


def test_execute_ends_with_1_when_the_task_fails(script: Scripted, target: str) -> None:
    failed(script)
    done = process("execute", "why?", target=target)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "COMMAND_FAILED: It exited with 3."


def test_watch_gives_scripts_json_lines_and_the_task_last(script: Scripted, target: str) -> None:
    completed(script)
    done = process("watch", TASK, "--json", target=target)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [line["sequence"] for line in lines[:3]] == ["1", "2", "3"]
    assert lines[1]["worker_call"]["capability"] == "CAPABILITY_TERMINAL"
    assert lines[3] == {"task_id": TASK, "status": "TASK_STATUS_COMPLETED", "report_path": f"reports/{TASK}.md"}
    assert done.stderr == ""


def test_execute_without_waiting_writes_the_id(script: Scripted, target: str) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    arguments = ("--source", "docs", "--command", "grep -r 'a b' .", "--script", "ls|wc", "--deadline", "5m")
    done = conductor("execute", "why?", "--no-wait", *arguments, "--project", "p", "--request-id", "r-1", target=target)
    assert (done.exit_code, done.stdout) == (0, f"{TASK}\n")
    (request,) = script.requests
    assert (request.project_id, request.request_id) == ("p", "r-1")
    assert list(request.hints.capabilities) == [task_pb2.CAPABILITY_RESEARCHER, task_pb2.CAPABILITY_TERMINAL]
    assert list(request.hints.research.sources) == ["docs"]
    argv, shell = request.hints.commands
    assert (list(argv.argv), shell.script) == (["grep", "-r", "a b", "."], "ls|wc")
    assert request.hints.deadline.seconds == 300


@pytest.mark.parametrize(
    ("arguments", "capabilities"), [([], []), (["--source", "docs"], []), (["--command", "ls"], [2])]
)
def test_only_commands_choose_their_worker(
    script: Scripted, target: str, arguments: list[str], capabilities: list[int]
) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    assert conductor("execute", "why?", "--no-wait", "--json", *arguments, target=target).stdout == (
        f'{{"task_id": "{TASK}"}}\n'
    )
    assert list(script.requests[0].hints.capabilities) == capabilities


def test_an_interrupted_watch_leaves_the_task_running_and_says_so(script: Scripted, target: str) -> None:
    script.on("Execute", give(conductor_pb2.ExecuteResponse(task_id=TASK)))
    script.on("SubscribeEvents", stream(event(1)))
    command = [*COMMAND, "execute", "why?", "--target", target]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as started:
        assert "task.progress" in (started.stdout or sys.stdin).readline()
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=20)
    assert started.returncode == 130
    assert f"The task goes on: conductor watch {TASK}" in errors
    assert "Traceback" not in errors
    assert script.seen(conductor_pb2.CancelTaskRequest) == []


def test_an_interrupted_execute_says_how_to_learn_more(script: Scripted, target: str) -> None:
    asked, free = threading.Event(), threading.Event()

    def hang(request: Any, context: grpc.ServicerContext) -> Any:
        asked.set()
        free.wait(20)
        return conductor_pb2.ExecuteResponse()

    script.on("Execute", hang)
    command = [*COMMAND, "execute", "why?", "--request-id", "r-7", "--target", target]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as started:
        assert asked.wait(20)
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=20)
        free.set()
    assert started.returncode == 130
    assert "repeat with --request-id r-7" in errors


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (refuse(Reason.ERROR_REASON_INVALID_REQUEST, "Bad id.", [("task_id", "must be an id")]), 2),
        (refuse(Reason.ERROR_REASON_TASK_NOT_FOUND, "No such task.", task_id=TASK), 3),
        (refuse(Reason.ERROR_REASON_REQUEST_ID_REUSED), 3),
        (refuse(Reason.ERROR_REASON_OVER_CAPACITY), 4),
        (refuse(Reason.ERROR_REASON_INTERNAL), 1),
    ],
)
def test_exit_codes_tell_refusals_apart(script: Scripted, target: str, act: Act, code: int) -> None:
    script.on("GetTask", act)
    done = conductor("task", TASK, "--json", target=target)
    assert done.exit_code == code
    assert done.stdout == ""
    error = json.loads(done.stderr)
    assert error["metadata"]["correlation_id"] == "c-1"
    assert set(error) == {"reason", "code", "message", "metadata", "violations"}


def test_the_process_ends_with_the_code_of_the_refusal(script: Scripted, target: str) -> None:
    script.on("CancelTask", refuse(Reason.ERROR_REASON_ILLEGAL_TRANSITION, "It has ended.", found="COMPLETED"))
    refused = process("cancel", TASK, target=target)
    assert (refused.returncode, refused.stderr) == (3, "ILLEGAL_TRANSITION: It has ended.\n")
    script.on("Execute", refuse(Reason.ERROR_REASON_INVALID_REQUEST, "Bad.", [("objective", "must not be blank")]))
    invalid = process("execute", " ", target=target)
    assert (invalid.returncode, invalid.stderr) == (2, "INVALID_REQUEST: Bad.\n  objective: must not be blank\n")


def test_an_unreachable_conductor_is_4_and_the_target_comes_from_the_environment(script: Scripted) -> None:
    server, port = serve(script)
    server.stop(None).wait()
    done = process("state", "p", env={**os.environ, "CONDUCTOR_TARGET": f"127.0.0.1:{port}"})
    assert done.returncode == 4
    assert f"Tried 127.0.0.1:{port}. Start Conductor, or name another one with --target." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["transition", "p", "nowhere"], "parse_intent"),
        (["tasks", "--status", "odd"], "queued"),
        (["execute", "x", "--deadline", "soon"], "5m"),
        (["execute", "x", "--command", "echo 'a"], "quotation"),
        (["events", "--after", "-1"], "--after"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_wrong_command_line_is_2_before_anything_is_asked(arguments: list[str], says: str) -> None:
    done = conductor(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_help_tells_the_exit_codes() -> None:
    done = conductor("--help")
    assert done.exit_code == 0
    for code in ("0: done", "1: the task failed", "2: the command", "3: refused", "4: unavailable", "130: interrupted"):
        assert code in done.stdout


def a_state() -> project_pb2.ProjectState:
    state = project_pb2.ProjectState(project_id="p", current_stage=project_pb2.STAGE_TRAIN, as_of_sequence=9)
    state.stages.add(stage_id=project_pb2.STAGE_MODEL_SELECT, status=project_pb2.STAGE_STATUS_COMPLETED)
    state.stages.add(stage_id=project_pb2.STAGE_TRAIN, status=project_pb2.STAGE_STATUS_WAITING_CONFIRMATION)
    waiting = state.waiting_confirmation
    waiting.stage_id, waiting.confirmation_id, waiting.summary = project_pb2.STAGE_TRAIN, "c-9", "Trained."
    waiting.next_actions.append("look at it")
    return state


def test_state_shows_the_stages_and_what_waits(script: Scripted, target: str) -> None:
    script.on("GetState", give(a_state()))
    assert conductor("state", "p", target=target).stdout.splitlines() == [
        "p  TRAIN  as of 9",
        "  MODEL_SELECT  COMPLETED",
        "> TRAIN         WAITING_CONFIRMATION",
        "TRAIN waits, confirmation c-9: Trained. Next: look at it",
    ]


def test_confirm_names_what_was_seen(script: Scripted, target: str) -> None:
    script.on("Confirm", give(a_state()))
    named = ("--stage", "Train", "--confirmation", "c-9", "--plan", "pl-1")
    assert conductor("confirm", "p", *named, target=target).exit_code == 0
    assert conductor("reject", "p", "too slow", target=target).exit_code == 0
    approved, rejected = script.requests
    assert (approved.stage_id, approved.confirmation_id, approved.plan_id) == (project_pb2.STAGE_TRAIN, "c-9", "pl-1")
    assert approved.approved
    assert approved.request_id
    assert (rejected.stage_id, rejected.HasField("approved"), rejected.approved) == (0, True, False)
    assert rejected.reason == "too slow"


def test_transition_takes_short_and_whole_names(script: Scripted, target: str) -> None:
    script.on("TransitionTo", give(a_state()))
    assert conductor("transition", "p", "review-edit", target=target).exit_code == 0
    whole = ("STAGE_TRAIN", "--status", "completed", "--message", "done")
    assert (
        json.loads(conductor("transition", "p", *whole, "--json", target=target).stdout)["current_stage"]
        == "STAGE_TRAIN"
    )
    first, second = script.requests
    assert (first.stage_id, first.status) == (project_pb2.STAGE_REVIEW_EDIT, 0)
    assert (second.stage_id, second.status) == (project_pb2.STAGE_TRAIN, project_pb2.STAGE_STATUS_COMPLETED)
    assert second.message == "done"


def test_a_report_is_written_byte_by_byte(script: Scripted, target: str) -> None:
    data = "# Réport\r\n\x00[red]x[/red]".encode()
    script.on("GetReport", give(httpbody_pb2.HttpBody(content_type="text/markdown", data=data)))
    done = subprocess.run([*COMMAND, "report", TASK, "--target", target], cwd=ROOT, capture_output=True, timeout=30)
    assert done.stdout == data


def test_tasks_and_cancel_show_a_line_a_task(script: Scripted, target: str) -> None:
    task = task_pb2.Task(task_id=TASK, status=task_pb2.TASK_STATUS_CANCELLED, objective="why?\nnot")
    task.created_at.seconds = 1_800_000_000
    script.on("ListTasks", give(conductor_pb2.ListTasksResponse(tasks=[task, task])))
    script.on("CancelTask", give(task))
    line = f"{TASK}  CANCELLED  2027-01-15T08:00:00Z  why? not\n"
    assert conductor("tasks", "--status", "cancelled", "--limit", "7", target=target).stdout == 2 * line
    assert conductor("cancel", TASK, "--reason", "enough", target=target).stdout == line
    listed, cancelled = script.requests
    assert (listed.status, listed.page_size) == (task_pb2.TASK_STATUS_CANCELLED, 7)
    assert cancelled.reason == "enough"


def test_events_shows_all_there_is_and_ends(script: Scripted, target: str) -> None:
    script.on("SubscribeEvents", stream(checkpoint(2)), stream(event(1), event(2)))
    done = conductor("events", "--no-follow", "--project", "p", "--type", "a", target=target)
    assert done.stdout.splitlines() == [f"{number}  conductor.task.progress  {TASK}  RUNNING" for number in (1, 2)]
    request = script.requests[1]
    assert (request.after_sequence, request.project_id, list(request.types)) == (0, "p", ["a"])


def test_every_payload_has_a_line(script: Scripted, target: str) -> None:
    facts = [name.name for name in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]
    messages = []
    for number, name in enumerate(facts, 1):
        made = event(number, "t")
        getattr(made, name).SetInParent()
        messages.append(made)
    messages[-1].snapshot.project.project_id = "p"
    script.on("SubscribeEvents", stream(checkpoint(len(facts))), stream(*messages))
    done = conductor("events", "--no-follow", target=target)
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(facts)


def test_text_of_workers_cannot_steer_the_terminal(script: Scripted, target: str) -> None:
    text = "a\x1b[2Jb\x1b]0;title\x07\x9bc\r\nforged line\u202eevil [red]markup[/red] :smile:"
    progress = event_pb2.TaskProgress(message=text)
    result = event_pb2.WorkerResult(error=Refusal(Reason.ERROR_REASON_WORKER_FAILED, text).error)
    result.command.result.end = terminal_pb2.COMMAND_END_MEMORY
    second = event(2, text, worker_result=result)
    script.on("SubscribeEvents", stream(checkpoint(2)), stream(event(1, task_progress=progress), second))
    done = conductor("events", "--no-follow", target=target)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "a [2Jb ]0;title c forged line evil [red]markup[/red] :smile:" in lines[0]
    assert "MEMORY; WORKER_FAILED: a [2Jb" in lines[1]
    assert not {char for char in done.stdout if char < " " and char != "\n"}


def test_a_terminal_sees_that_something_is_under_way(script: Scripted, target: str) -> None:
    completed(script)
    leader, follower = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [*COMMAND, "watch", TASK, "--target", target]
    with subprocess.Popen(command, cwd=ROOT, stdout=follower, stderr=follower, env=environ) as started:
        os.close(follower)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the process is
            while piece := os.read(leader, 4096):
                seen += piece
    os.close(leader)
    assert started.returncode == 0
    assert b"working" in seen
    assert f"Completed: reports/{TASK}.md".encode() in seen
