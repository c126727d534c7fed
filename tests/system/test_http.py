"""The running system as a user reaches it: curl and grpcurl, through the real Envoy."""

import asyncio
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import project_pb2

from ops.stack import Stack
from tests.system.conftest import Answer, curl

SCRIPT = Path(__file__).parent / "execute.sh"
GRPCURL = Path(sys.executable).parent / "grpcurl"
JSON = ("-H", "content-type: application/json")
MODE = "OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER"
STAGES = [project_pb2.Stage.Name(number) for number in range(1, 9)]


pytestmark = pytest.mark.asyncio(loop_scope="session")  # that of the system they share


async def call(stack: Stack, *arguments: str, path: str, seconds: float = 60) -> Answer:
    return await asyncio.to_thread(curl, *arguments, f"{stack.url}{path}", seconds=seconds)


async def post(stack: Stack, path: str, body: Any) -> Answer:
    return await call(stack, "-X", "POST", *JSON, "-d", json.dumps(body), path=path)


def reason(answer: Answer) -> str:
    return next(detail["reason"] for detail in answer.json["details"] if "domain" in detail)


async def head_of(stack: Stack) -> int:
    """Returns the position of the newest event."""
    return int((await call(stack, path="/api/projects/nobody/state")).json["as_of_sequence"])


async def accept(url: str, reports: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHON": sys.executable}
    command = [str(SCRIPT), url, str(reports)]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=90, env=environ, check=False
    )


async def test_a_project_is_walked_through_all_eight_stages_with_curl(shared: Stack) -> None:
    path = "/api/projects/penguins"
    for number, stage in enumerate(STAGES):
        answer = await post(shared, f"{path}/waiting-confirmation", {"stage_id": stage, "summary": f"{stage} is done."})
        assert answer.status == 200, answer.body
        seen = answer.json["waiting_confirmation"]["confirmation_id"]
        answer = await post(shared, f"{path}/confirm", {"stage_id": stage, "confirmation_id": seen})
        assert answer.status == 200, answer.body
        assert answer.json["current_stage"] == STAGES[min(number + 1, 7)]
        again = await post(shared, f"{path}/confirm", {"stage_id": stage, "confirmation_id": seen})
        assert again.status == 400, again.body
    state = (await call(shared, path=f"{path}/state")).json
    assert [stage["status"] for stage in state["stages"]] == ["STAGE_STATUS_COMPLETED"] * 8
    end = await post(shared, f"{path}/confirm", {})
    assert (end.status, reason(end)) == (400, "NOTHING_TO_CONFIRM")
    back = await post(shared, f"{path}/transition", {"stage_id": "STAGE_PREPROCESS"})
    statuses = [stage["status"].removeprefix("STAGE_STATUS_") for stage in back.json["stages"]]
    assert statuses == ["COMPLETED"] * 3 + ["IN_PROGRESS"] + ["PENDING"] * 4


async def test_every_rpc_with_grpcurl_on_the_edge_and_the_services(shared: Stack) -> None:
    async def grpcurl(name: str, *arguments: str) -> str:
        command = [str(GRPCURL), "-plaintext", "-max-time", "20", *arguments]
        at = command.index("@")
        command[at] = shared.addresses[name]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def rpc(method: str, body: Any, name: str = "envoy", service: str = "Conductor") -> Any:
        text = await grpcurl(name, "-d", json.dumps(body), "@", f"conductor.v1.{service}/{method}")
        return json.loads(text)

    assert "conductor.v1.Conductor" in await grpcurl("envoy", "@", "list")
    assert "rpc Execute" in await grpcurl("envoy", "@", "describe", "conductor.v1.Conductor")
    objective = "At what temperature does water boil?"
    answer = await rpc("Execute", {"objective": objective, "output_mode": MODE, "wait": "20s"})
    task = {"task_id": answer["task_id"]}
    assert (await rpc("GetTask", task))["status"] == "TASK_STATUS_COMPLETED"
    assert answer["task_id"] in [each["task_id"] for each in (await rpc("ListTasks", {}))["tasks"]]
    assert (await rpc("GetReport", task))["content_type"].startswith("text/markdown")
    slow = {"capabilities": ["CAPABILITY_TERMINAL"], "commands": [{"argv": ["sleep", "60"]}]}
    running = await rpc("Execute", {"objective": "Wait.", "output_mode": MODE, "hints": slow})
    assert (await rpc("CancelTask", {"task_id": running["task_id"]}))["status"] == "TASK_STATUS_CANCELLED"
    project = {"project_id": "p", "stage_id": "STAGE_PARSE_INTENT"}
    await rpc("TransitionTo", {**project, "message": "begun"})
    assert (await rpc("ProposePlan", {**project, "summary": "A plan."}))["plan_pending"]
    assert (await rpc("WaitForConfirmation", {**project, "summary": "?"}))["waiting_confirmation"]
    assert (await rpc("Confirm", project))["current_stage"] == "STAGE_DATA_SOURCE"
    assert (await rpc("GetState", {"project_id": "p"}))["plan_approved"]
    assert "p" in [each["project_id"] for each in (await rpc("ListProjects", {}))["projects"]]
    # Streams do not end by themselves: take the first messages and let the deadline end the rest.
    for method in ("SubscribeEvents", "StreamEvents"):
        body = json.dumps({"after_sequence": 0})
        command = [GRPCURL, "-plaintext", "-max-time", "2", "-d", body, shared.addresses["envoy"]]
        done = await asyncio.to_thread(
            subprocess.run, [*map(str, command), f"conductor.v1.Conductor/{method}"], capture_output=True, check=False
        )
        assert b"conductor.task.started" in done.stdout or b"content_type" in done.stdout, done.stderr
    for name, service in (("researcher", "Researcher"), ("terminal", "Terminal"), ("report_writer", "ReportWriter")):
        assert f"conductor.v1.{service}" in await grpcurl(name, "@", "list")
        assert "rpc " in await grpcurl(name, "@", "describe", f"conductor.v1.{service}")
    ran = await grpcurl(
        "terminal", "-d", '{"call_id": "c", "command": {"argv": ["true"]}}', "@", "conductor.v1.Terminal/Run"
    )
    assert "COMMAND_END_EXITED" in ran
    assert (await rpc("GetCapabilities", {}, "terminal", "Terminal"))["available"]
    research = await grpcurl(
        "researcher", "-d", json.dumps({"objective": objective}), "@", "conductor.v1.Researcher/Research"
    )
    assert "100 degrees" in research
    write = {"task_id": "by-hand", "objective": "x", "provenance": {"correlation_id": "c"}}
    written = await rpc("WriteReport", write, "report_writer", "ReportWriter")
    read = await rpc("GetReport", {"path": written["path"]}, "report_writer", "ReportWriter")
    assert read["sha256"] == written["sha256"]
    for service in ("Researcher/Research", "Terminal/Run", "ReportWriter/WriteReport"):
        command = [str(GRPCURL), "-plaintext", "-d", "{}", shared.addresses["envoy"], f"conductor.v1.{service}"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert done.returncode != 0, f"{service} must not be reachable at the edge"


async def test_events_stream_to_curl_with_ids_and_resume(shared: Stack) -> None:
    head = await head_of(shared)
    await post(shared, "/api/projects/streamed/transition", {"stage_id": "STAGE_PARSE_INTENT", "message": "one"})
    await post(shared, "/api/projects/streamed/transition", {"stage_id": "STAGE_PARSE_INTENT", "message": "two"})
    one, two, path = f"id: {head + 1}\n", f"id: {head + 2}\n", f"/conductor/events?after_sequence={head}"
    first = await call(shared, "-N", path=path, seconds=2)
    assert first.headers["content-type"].startswith("text/event-stream")
    assert f"{one}event: STAGE_STATUS\ndata: {{" in first.body and two in first.body
    resumed = await call(shared, "-N", "-H", f"Last-Event-ID: {head + 1}", path=path, seconds=2)
    assert one not in resumed.body and two in resumed.body
    hydrated = await call(shared, "-N", path="/api/projects/streamed/events", seconds=2)
    assert "event: conductor.snapshot" in hydrated.body
    beyond = await call(shared, path=f"/conductor/events?after_sequence={head + 99}")
    assert (beyond.status, reason(beyond)) == (400, "CURSOR_OUT_OF_RANGE")


HOSTILE = {
    "empty": ({"objective": "", "output_mode": MODE}, "objective"),
    "blank": ({"objective": "\u3000\u200b\u2003 \t", "output_mode": MODE}, "objective"),
    "oversized": ({"objective": "x" * 16385, "output_mode": MODE}, "objective"),
    "no mode": ({"objective": "x"}, "output_mode"),
    "blank desktop": ({"objective": "x", "output_mode": MODE, "desktop_id": " "}, "desktop_id"),
    "terminal without commands": (
        {"objective": "x", "output_mode": MODE, "hints": {"capabilities": ["CAPABILITY_TERMINAL"]}},
        "hints.commands",
    ),
}


async def test_bad_input_is_told_apart_over_http_and_leaves_no_trace(shared: Stack) -> None:
    before, reports = await head_of(shared), set((shared.run_dir / "reports").iterdir())
    for name, (body, at_fault) in HOSTILE.items():
        answer = await call(
            shared, *JSON, "-H", "x-correlation-id: mine", "-d", json.dumps(body), path="/conductor/execute"
        )
        info = next(detail for detail in answer.json["details"] if "domain" in detail)
        assert (answer.status, info["reason"], info["metadata"]["field"]) == (400, "INVALID_REQUEST", at_fault), name
        assert info["metadata"]["correlation_id"] == "mine"
    unknown_mode = await post(shared, "/conductor/execute", {"objective": "x", "output_mode": "NOPE"})
    malformed = await call(shared, *JSON, "-d", "{", path="/conductor/execute")
    for answer in (unknown_mode, malformed):
        assert answer.status == 400 and answer.json["code"] == 3
    for stage in ("STAGE_NOPE", 9, 0, None):
        assert (await post(shared, "/api/projects/p/transition", {"stage_id": stage})).status == 400
    assert (await post(shared, "/api/projects/p/transition", {"stage_id": 1, "status": "NOPE"})).status == 400
    assert (await call(shared, path="/conductor/nothing/here")).status == 404
    assert (await call(shared, path="/conductor/execute")).status in (404, 405)
    assert (await call(shared, "-H", "content-type: text/plain", "-d", "x", path="/conductor/execute")).status == 415
    assert (await call(shared, path="/conductor/tasks/no-such-task")).status == 404
    for hostile in ("%00", "%2e%2e", "a%2f..%2fb", "x" * 10_000, "a%0Ab"):
        answer = await call(shared, "--path-as-is", path=f"/conductor/tasks/{hostile}")
        assert answer.status in (307, 400, 404, 414, 431), (hostile[:20], answer)
    assert await head_of(shared) == before
    assert set((shared.run_dir / "reports").iterdir()) == reports


async def test_the_acceptance_script_passes_on_the_real_system(shared: Stack) -> None:
    done = await accept(shared.url, shared.run_dir / "reports")
    assert (done.returncode, done.stdout[:7]) == (0, "PASSED:"), done.stderr
    await shared.kill("report_writer")
    done = await accept(shared.url, shared.run_dir / "reports")
    assert done.returncode == 1 and "FAILED: the task is TASK_STATUS_FAILED" in done.stderr


@contextmanager
def pretender(answer: dict[str, Any], report: bytes = b"# Report\n", status: int = 200) -> Iterator[str]:
    """An edge that answers whatever a test wants."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._send(json.dumps(answer).encode())

        def do_GET(self) -> None:
            self._send(report)

        def _send(self, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


GOOD = {
    "task_id": "t1",
    "status": "TASK_STATUS_COMPLETED",
    "report_path": "reports/t1.md",
    "writer_window_props": {"path": "reports/t1.md", "preview_mode": True},
    "correlation_id": "acceptance-1",
}
BROKEN = {
    "failed task": ({**GOOD, "status": "TASK_STATUS_FAILED"}, "the task is TASK_STATUS_FAILED"),
    "still queued": ({**GOOD, "status": "TASK_STATUS_QUEUED"}, "the task is TASK_STATUS_QUEUED"),
    "no status": ({k: v for k, v in GOOD.items() if k != "status"}, "has no status"),
    "no report path": ({k: v for k, v in GOOD.items() if k != "report_path"}, "has no report_path"),
    "path escapes": ({**GOOD, "report_path": "reports/../t1.md"}, "report_path is"),
    "other path in props": ({**GOOD, "writer_window_props": {"path": "x", "preview_mode": True}}, "props.path"),
    "no preview": ({**GOOD, "writer_window_props": {"path": "reports/t1.md", "preview_mode": False}}, "preview_mode"),
    "correlation lost": ({**GOOD, "correlation_id": "other"}, "correlation id"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_the_acceptance_script_fails_on_a_broken_answer(name: str, tmp_path: Path) -> None:
    (tmp_path / "t1.md").write_bytes(b"# Report\n")
    answer, said = BROKEN[name]
    with pretender(answer) as url:
        done = await accept(url, tmp_path)
    assert done.returncode == 1 and said in done.stderr, done


async def test_the_acceptance_script_fails_on_a_broken_report(tmp_path: Path) -> None:
    reports, outside = tmp_path / "reports", tmp_path / "outside.md"
    outside.write_bytes(b"# Report\n")

    def link() -> None:
        (reports / "t1.md").symlink_to(outside)

    def differ() -> None:
        (reports / "t1.md").write_bytes(b"# Another\n")

    def miss() -> None:
        """Leaves no file."""

    with pretender(GOOD) as url:
        for make, said in ((miss, "does not exist"), (link, "is a link"), (differ, "is not the file")):
            shutil.rmtree(reports, ignore_errors=True)
            reports.mkdir()
            make()
            done = await accept(url, reports)
            assert done.returncode == 1 and said in done.stderr, done
        shutil.rmtree(reports)
        reports.mkdir()
        (reports / "t1.md").write_bytes(b"# Report\n")
        assert (await accept(url, reports)).returncode == 0, "the pretender itself must pass"
    with pretender(GOOD, status=500) as url:
        assert (await accept(url, reports)).returncode == 1
    assert (await accept("http://127.0.0.1:1", reports)).returncode == 1
