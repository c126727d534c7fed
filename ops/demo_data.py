"""The data job, for real: a public table becomes a model and a report, a script answering at the gates.

Usage: python -m ops.demo_data

Takes the breast cancer table that comes with scikit-learn, uploads it over HTTP as curl would, starts a run, approves
each gate (one of them with a choice), prints the report, and predicts a fresh file with what was exported. Exits 1 with
the reason when anything is not as it should be.
"""

import asyncio
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from sklearn.datasets import load_breast_cancer

from ops.demo import CALL_TIMEOUT_S, REPORTS, ROOT, Edge, Unexpected, expect
from ops.stack import Stack, StartError
from services.common.config import ConfigError

RUN_DIR = ROOT / "var" / "demo-data"
PROJECT = "demo-data"
TABLE = "breast_cancer.csv"
OBJECTIVE = f"Predict diagnosis from {TABLE}"
BUDGET = "15s"  # of processor time for trying models
RUN_S = 600.0
FRESH = 5  # rows to predict
SHOWN_LINES = 60  # of the report
# What the script chooses; at every other gate it approves what is proposed.
CHOICES: dict[str, dict[str, Any]] = {"STAGE_PREPROCESS": {"test_share": 0.3}}


def table(path: Path) -> None:
    """Writes the table as a CSV, its classes by name."""
    data = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in data.feature_names]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "diagnosis"])
        for row, target in zip(data.data, data.target, strict=True):
            writer.writerow([*row, data.target_names[target]])


def upload(edge: Edge, path: Path) -> None:
    """Uploads a file; the answer's SHA-256 must be the file's."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    answer = edge.send(f"/api/projects/{PROJECT}/data/{path.name}?sha256={sha256}", path)
    print(json.dumps(answer, indent=2))
    expect(answer["sha256"], sha256, "the SHA-256 of what was uploaded")


def state_of(edge: Edge) -> dict[str, Any]:
    """Returns the project's state."""
    state: dict[str, Any] = json.loads(edge.read(f"/api/projects/{PROJECT}/state"))
    return state


def follow(edge: Edge) -> dict[str, Any]:
    """Watches the run to its end and answers at its gates. Returns the last state."""
    seen, deadline = 0, time.monotonic() + RUN_S
    answered: set[str] = set()
    while time.monotonic() < deadline:
        for event in edge.follow(f"/api/projects/{PROJECT}/events?after_sequence={seen}"):
            seen = int(event["sequence"])
            tell(event)
            if event["type"] == "WAITING_CONFIRMATION" and event["event_id"] not in answered:
                answered.add(event["event_id"])
                answer(edge, event["waiting_confirmation"])
            if event["type"] == "RUN_ENDED":
                return state_of(edge)
    raise Unexpected(f"the run did not end within {RUN_S:g} s")


def tell(event: dict[str, Any]) -> None:
    """Prints what a person would want to see of an event."""
    if event["type"] == "STAGE_STATUS":
        changed = event["stage_status"]
        print(f"⟶ {changed['stage_id']}: {changed['status']}  {changed.get('message', '')[:300]}")
    elif "stage" in event.get("task_progress", {}):
        progress = event["task_progress"]["stage"]
        print(f"    {progress.get('percent', 0.0):>5.1f} %  {progress.get('phase', '')}  {progress.get('detail', '')}")


def answer(edge: Edge, waiting: dict[str, Any]) -> None:
    """Approves a gate, with a choice where the script has one for its stage."""
    stage = waiting["stage_id"]
    for issue in waiting.get("issues", []):
        print(f"    {issue['severity'].removeprefix('ISSUE_SEVERITY_')} {issue['code']}: {issue['message']}")
    body: dict[str, Any] = {"stage_id": stage, "confirmation_id": waiting["confirmation_id"]}
    if stage in CHOICES:
        body["edits"] = CHOICES[stage]
    edge.post(f"/api/projects/{PROJECT}/confirm", body)


def predict(edge: Edge, state: dict[str, Any], source: Path) -> None:
    """Fetches the exported bundle, and predicts rows of a file whose columns stand in another order."""
    found = [file for file in state["run"]["artifacts"] if file["name"] == "bundle.zip" and not file.get("stale")]
    expect(len(found), 1, "the number of bundles")
    content = edge.get(f"/conductor/tasks/{found[0]['task_id']}/artifacts/bundle.zip")
    expect(hashlib.sha256(content).hexdigest(), found[0]["sha256"], "the SHA-256 of the bundle")
    bundle = RUN_DIR / "bundle"
    (RUN_DIR / "bundle.zip").write_bytes(content)
    with zipfile.ZipFile(RUN_DIR / "bundle.zip") as archive:
        archive.extractall(bundle)
    fresh, predicted = RUN_DIR / "fresh.csv", RUN_DIR / "predicted.csv"
    with source.open(newline="") as file:
        rows = [row[:-1][::-1] for row in csv.reader(file)][: FRESH + 1]  # without the diagnosis, last column first
    with fresh.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    program = next(bundle.rglob("predict.py"))
    command = [sys.executable, str(program), str(fresh), str(predicted), "--proba"]
    print(f"\n$ python {' '.join(part.replace(str(ROOT) + '/', '') for part in command[1:])}")
    done = subprocess.run(command, check=False, timeout=CALL_TIMEOUT_S)
    expect(done.returncode, 0, "the exit code of predict.py")
    print(predicted.read_text())
    expect(len(predicted.read_text().splitlines()), FRESH + 1, "the number of lines predicted")


def demonstrate(url: str) -> None:
    """Does the job through the edge."""
    edge = Edge(url)
    source = RUN_DIR / TABLE
    table(source)
    upload(edge, source)
    edge.post(
        f"/api/projects/{PROJECT}/start",
        {"objective": OBJECTIVE, "data": f"uploads/{TABLE}", "options": {"budget": BUDGET}},
    )
    state = follow(edge)
    expect(state["run"]["status"], "RUN_STATUS_COMPLETED", "the run's status")
    report = (REPORTS / Path(state["run"]["report_path"]).name).read_text()
    lines = report.splitlines()
    print("\n".join(f"    │ {line}" for line in lines[:SHOWN_LINES]), f"\n    │ … {len(lines)} lines in all")
    predict(edge, state, source)
    print(f"The report is {state['run']['report_path']}, its pictures are beside it.")


async def run() -> None:
    """Starts the system, does the job, stops the system."""
    shutil.rmtree(RUN_DIR, ignore_errors=True)
    RUN_DIR.mkdir(parents=True)
    print("Starting four services and Envoy …")
    async with Stack(RUN_DIR, environ={"REPORT_WRITER_ROOT": str(REPORTS)}) as stack:
        await asyncio.to_thread(demonstrate, stack.url)
    print("Everything is stopped again.")


def main() -> int:
    """Runs it. Returns the exit code."""
    try:
        asyncio.run(run())
    except (Unexpected, StartError, ConfigError) as error:
        print(f"demo-data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
