"""A stage's program that uses nothing but the standard library and does next to nothing, as a run's hints tell it.

hints[STAGE] is how it shall go: "" well, or one of WAYS. Told to `fail`, `ask` or `break`, it goes well once a colour
was chosen. It keeps the contract of docs/stages.md, and makes sure that what earlier stages left is there.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

ORDER = ["PARSE_INTENT", "DATA_SOURCE", "PROFILE_DATA", "PREPROCESS", "MODEL_SELECT", "TRAIN", "REVIEW_EDIT", "EXPORT"]
WAYS = [
    "fail",
    "ask",
    "break",
    "crash-when-deep",
    "kill",
    "hog",
    "spin",
    "sleep",
    "slow",
    "no-result",
    "lie",
    "foreign",
    "usage",
]
ACTIONS = [
    {"id": "ok", "label": "Go on", "kind": "CONFIRM"},
    {"id": "colour", "label": "Which colour?", "kind": "CHOOSE", "field": "colour", "options": ["red", "green"]},
    {"id": "depth", "label": "How deep?", "kind": "EDIT", "field": "depth", "minimum": 1, "maximum": 9},
    {"id": "data", "label": "Which data?", "kind": "CHOOSE", "field": "data", "options": ["a.csv"]},
    {"id": "back", "label": "Back to the start", "kind": "BACK", "field": "PARSE_INTENT"},
    {"id": "stop", "label": "End the run", "kind": "ABORT"},
]


def progress(percent: float, detail: str) -> None:
    sys.stdout.write(json.dumps({"event": "progress", "pct": percent, "phase": "work", "detail": detail}) + "\n")
    sys.stdout.flush()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


envelope = json.loads(Path(sys.argv[1]).read_text())
stage, edits = envelope["stage"], envelope["edits"]
way = envelope["hints"].get(stage, "")
own = Path(stage.lower().replace("_", "-"))
own.mkdir(exist_ok=True)
Path(own, "result.json").unlink(missing_ok=True)
assert way == "" or way in WAYS
before = {}
for name in ORDER[: ORDER.index(stage)]:
    folder = Path(name.lower().replace("_", "-"))
    found = json.loads(Path(folder, "result.json").read_text())
    for file in found["artifacts"]:
        assert sha256(folder / file["name"]) == file["sha256"], "an earlier stage left something else"
    before[name] = found["result"]["mark"]
uploads = {path.name: sha256(path) for path in sorted(Path("uploads").glob("*"))} if Path("uploads").is_dir() else {}

if way == "crash-when-deep" and edits.get("depth") == 9:
    sys.exit(1)
if "colour" not in edits:
    if way == "break":
        sys.stderr.write("Traceback: it broke\n")
        sys.exit(1)
    if way == "usage":
        sys.stderr.write("usage: stage\n")
        sys.exit(2)
    if way == "kill":
        os.kill(os.getpid(), signal.SIGSEGV)
    if way == "hog":
        hoard = [b"x" * (8 << 20) for _ in range(200)]
    while way == "spin":
        pass
    if way == "sleep":
        progress(1, f"asleep as {os.getpid()}")
        time.sleep(60)
    if way == "slow":
        for number in range(20):
            progress(number * 5, f"part {number}")
            time.sleep(0.05)
    if way == "no-result":
        sys.exit(0)

mark = hashlib.sha256(json.dumps([stage, envelope["seed"], edits, before]).encode()).hexdigest()
note = own / "note.txt"
note.write_text(f"{stage} attempt {envelope['attempt']}\n")
head = {"contract": "stage/1", "stage": stage, "run_id": envelope["run_id"], "attempt": envelope["attempt"]}
result = {"mark": mark, "before": before, "uploads": uploads, "envelope": envelope}
document = {
    **head,
    "status": "OK",
    "summary": f"{stage} is done.",
    "next_actions": ACTIONS,
    "artifacts": [
        {"name": "note.txt", "media_type": "text/plain", "title": "A note", "sha256": sha256(note), "bytes": 1}
    ],
    "warnings": [{"code": "ODD", "severity": "WARN", "message": "One value is odd.", "column": "age"}],
    "metrics": {"cpu_s": time.process_time(), "wall_s": time.monotonic(), "peak_mb": 9},  # no two alike
    "result": result,
}
if "colour" not in edits:
    if way == "ask":
        needed = [{**action, "required": action["id"] == "colour"} for action in ACTIONS]
        document |= {"status": "NEEDS_INPUT", "next_actions": needed}
    if way == "fail":
        error = {"code": "TARGET_NOT_FOUND", "severity": "ERROR", "message": "No column specie.", "column": "specie"}
        document |= {"status": "FAILED", "error": error, "artifacts": []}
    if way == "lie":
        document["artifacts"][0]["sha256"] = "0" * 64
    if way == "foreign":
        document["attempt"] = 99
Path(own, "result.json").write_text(json.dumps(document))
sys.exit(2 if document["status"] == "FAILED" else 0)
