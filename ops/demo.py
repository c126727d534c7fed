"""The main job, for real: objectives become reports and a project passes two gates, with the events live.

Usage: python -m ops.demo

Starts the four services and Envoy on free loopback ports with a store of its own, talks to them over HTTP as curl
would, and stops everything again. Exits 1 with the reason when anything is not as it should be.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ops.stack import Stack, StartError
from services.common.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent
RUN_DIR = ROOT / "var" / "demo"
REPORTS = ROOT / "reports"
CALL_TIMEOUT_S = 60
PROJECT = "demo"
QUESTION = "How does the Terminal contain a command?"  # the project's own docs say it
MODE = "OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER"


class Unexpected(Exception):
    """Something is not as it should be. The message says what."""


class Edge:
    """Calls the HTTP edge and shows each call as the curl command it stands for."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str) -> bytes:
        print(f"\n$ curl {self._url}{path}")
        return self.read(path)

    def read(self, path: str) -> bytes:
        """Gets without showing the call."""
        return self._open(urllib.request.Request(self._url + path))  # noqa: S310  always the demo's own edge

    def send(self, path: str, file: Path) -> dict[str, Any]:
        """Sends a file as the body."""
        print(f"\n$ curl -X POST '{self._url}{path}' --data-binary @{file.name}")
        headers = {"content-type": "application/octet-stream"}
        request = urllib.request.Request(self._url + path, file.read_bytes(), headers)  # noqa: S310  as above
        answer: dict[str, Any] = json.loads(self._open(request))
        return answer

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(body)
        print(f"\n$ curl -X POST {self._url}{path} -H 'content-type: application/json' -d '{text}'")
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self._url + path, text.encode(), headers)  # noqa: S310  always the demo's edge
        answer: dict[str, Any] = json.loads(self._open(request))
        return answer

    def _open(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as response:  # noqa: S310  as above
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            raise Unexpected(f"HTTP {error.code}: {error.read().decode()}") from error

    def follow(self, path: str = "/conductor/events?after_sequence=0") -> Iterator[dict[str, Any]]:
        """Yields events as they happen, those of the whole log unless a path says which, until the stream ends."""
        with urllib.request.urlopen(self._url + path) as stream:  # noqa: S310  as above
            for line in stream:
                if line.startswith(b'data: {"sequence"'):
                    yield json.loads(line.removeprefix(b"data: "))


class Watcher:
    """Prints every event as it arrives, one line each."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._seen = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._print, daemon=True).start()

    def wait_for(self, sequence: str) -> None:
        """Waits until an event has been printed, so that the lines below come after it."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._seen >= int(sequence), CALL_TIMEOUT_S):
                raise Unexpected(f"event {sequence} did not reach its subscriber")

    def _print(self) -> None:
        for event in self._edge.follow():
            about = f"task …{event['task_id'][-6:]}" if event.get("task_id") else f"project {event['project_id']}"
            print(f"    ⟶ {event['sequence']:>3} {event['type']:<26} {about:<14} {event['phase']}: {event['status']}")
            with self._changed:
                self._seen = int(event["sequence"])
                self._changed.notify_all()


def expect(found: Any, wanted: Any, what: str) -> None:
    if found != wanted:
        raise Unexpected(f"{what} is {found!r}, not {wanted!r}")


def execute(edge: Edge, watcher: Watcher, objective: str, **hints: Any) -> str:
    """Submits an objective, waits for its end, and shows its report."""
    body: dict[str, Any] = {"objective": objective, "output_mode": MODE, "wait": "30s"}
    if hints:
        body["hints"] = hints
    answer = edge.post("/conductor/execute", body)
    watcher.wait_for(answer["as_of_sequence"])
    print(json.dumps(answer, indent=2))
    expect(answer["status"], "TASK_STATUS_COMPLETED", "the task's status")
    report = edge.get(f"/conductor/tasks/{answer['task_id']}/report")
    print("\n".join(f"    │ {line}" for line in report.decode().splitlines()[:24]), "\n    │ …")
    file = REPORTS / Path(answer["report_path"]).name
    expect(file.read_bytes(), report, f"the content of {file}")
    return str(file.relative_to(ROOT))


def walk_project(edge: Edge, watcher: Watcher) -> None:
    """Takes a project through two gates, and shows that a late answer to the first is refused."""
    path = f"/api/projects/{PROJECT}"
    waiting = edge.post(
        f"{path}/waiting-confirmation",
        {
            "stage_id": "STAGE_PARSE_INTENT",
            "summary": "Predict species from penguins.csv.",
            "next_actions": ["Confirm"],
        },
    )
    seen = waiting["waiting_confirmation"]["confirmation_id"]
    confirm = {"stage_id": "STAGE_PARSE_INTENT", "confirmation_id": seen}
    state = edge.post(f"{path}/confirm", confirm)
    watcher.wait_for(state["as_of_sequence"])
    expect(state["current_stage"], "STAGE_DATA_SOURCE", "the stage after the first gate")
    try:
        edge.post(f"{path}/confirm", confirm)
    except Unexpected as refusal:
        print(f"    refused, as it must be: {refusal}")
    else:
        raise Unexpected("a second click on the first gate was accepted")
    edge.post(
        f"{path}/plans", {"stage_id": "STAGE_DATA_SOURCE", "summary": "Use the local file.", "steps": ["Read it"]}
    )
    state = edge.post(f"{path}/confirm", {"stage_id": "STAGE_DATA_SOURCE"})
    watcher.wait_for(state["as_of_sequence"])
    expect(state["current_stage"], "STAGE_PROFILE_DATA", "the stage after the second gate")
    expect(state["plan_approved"], True, "plan_approved")
    for stage in json.loads(edge.get(f"{path}/state"))["stages"]:
        print(f"    {stage['stage_id']:<20} {stage['status']}")


def verify(url: str, researcher: str, report: str) -> None:
    """Has the sources of a report read again: every quote must still stand there."""
    edge = url.removeprefix("http://")
    command = ["conductor", "verify", Path(report).stem, "--target", edge, "--researcher", researcher]
    print(f"\n$ {' '.join(command)}")
    done = subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=False)
    expect(done.returncode, 0, "the exit code of conductor verify")


def demonstrate(url: str, researcher: str) -> None:
    edge = Edge(url)
    watcher = Watcher(edge)
    research = execute(edge, watcher, QUESTION)
    if "Citation 1" not in (ROOT / research).read_text():
        raise Unexpected(f"{research} quotes no source")
    verify(url, researcher, research)
    commands = [{"argv": ["uname", "-sr"]}, {"script": "seq 1 5 | awk '{s += $1} END {print s}'"}]
    ran = execute(edge, watcher, "Which kernel is this?", capabilities=["CAPABILITY_TERMINAL"], commands=commands)
    walk_project(edge, watcher)
    print(f"\nThe reports are {research} and {ran}.")


async def run() -> None:
    shutil.rmtree(RUN_DIR, ignore_errors=True)
    RUN_DIR.mkdir(parents=True)
    environ = {"RESEARCHER_ROOTS": str(ROOT / "docs"), "REPORT_WRITER_ROOT": str(REPORTS)}
    print("Starting four services and Envoy …")
    async with Stack(RUN_DIR, environ=environ) as stack:
        await asyncio.to_thread(demonstrate, stack.url, stack.addresses["researcher"])
    print("Everything is stopped again.")


def main() -> int:
    try:
        asyncio.run(run())
    except (Unexpected, StartError, ConfigError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
