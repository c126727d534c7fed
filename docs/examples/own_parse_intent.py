"""A program for the stage PARSE_INTENT that guesses nothing: the target is a hint, or is asked for at the gate.

It needs the standard library alone, and keeps the contract of docs/stages.md.
By hand, in the folder of a run: python own_parse_intent.py envelope.json
"""

import csv
import hashlib
import json
import resource
import sys
import time
from pathlib import Path

OFFERED = 300  # columns


def main() -> int:
    """Reads the envelope, leaves the result. Returns the exit code: 0 with a result, 2 when it says why it failed."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    own = Path("parse-intent")  # the stage's folder in the run's
    own.mkdir(exist_ok=True)
    (own / "result.json").unlink(missing_ok=True)  # that of an earlier attempt must not pass for this one's
    print(json.dumps({"event": "progress", "pct": 10, "phase": "looking"}), flush=True)  # noqa: T201  progress is told there
    columns = columns_of(asked)
    found = understood(asked, columns)
    if found["status"] != "FAILED":
        found["artifacts"] = [note(own, columns)]
    head = {name: asked[name] for name in ("contract", "stage", "run_id", "attempt")}
    (own / "result.json").write_text(json.dumps({**head, **found, "metrics": metrics()}))
    return 2 if found["status"] == "FAILED" else 0


def columns_of(asked: dict) -> list[str]:
    """Returns the names in the first line of the data, none when it cannot be found."""
    uploaded = asked["data"].startswith("uploads/")
    for folder in [""] if uploaded else asked["data_folders"]:
        path = Path(folder, asked["data"])
        if path.is_file():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                return next(csv.reader(file), [])[:OFFERED]
    return []


def understood(asked: dict, columns: list[str]) -> dict:
    """Returns status, summary, choices and result: what was said at the gate holds before what was hinted."""
    target = asked["edits"].get("target") or asked["hints"].get("target")
    choose = {"id": "target", "label": "Which column?", "kind": "CHOOSE", "field": "target", "options": columns}
    if not columns:
        text = "The data cannot be found, so nobody knows its columns."
        advice = "Name a CSV file of a data folder, or upload one."
        error = {"code": "FILE_NOT_FOUND", "severity": "ERROR", "message": text, "suggestion": advice}
        return {"status": "FAILED", "summary": text, "next_actions": [], "warnings": [], "error": error}
    ask = {"status": "NEEDS_INPUT", "summary": "Which column shall be predicted?", "warnings": []}
    if target not in columns:
        return {**ask, "next_actions": [{**choose, "required": True}], "result": {}}
    confirm = {"id": "confirm", "label": "Go on", "kind": "CONFIRM"}
    result = {"goal": "PREDICT", "target": target, "target_candidates": [], "data": asked["data"], "schema_seen": True}
    unsaid = ("task", "metric", "budget_s", "positive_class", "group", "time", "later")
    result |= {**dict.fromkeys(unsaid), "task_why": "", "drop": [], "keep_only": [], "unparsed": []}
    summary = f"{target} is to be predicted."
    return {"status": "OK", "summary": summary, "next_actions": [confirm, choose], "warnings": [], "result": result}


def note(own: Path, columns: list[str]) -> dict:
    """Leaves a file that is worth keeping, and returns what is to be said of it."""
    content = "\n".join(columns).encode()
    (own / "columns.txt").write_bytes(content)
    described = {"name": "columns.txt", "media_type": "text/plain", "title": "The columns of the table"}
    return {**described, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def metrics() -> dict:
    """Returns what it took."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": time.monotonic() - BEGUN,
        "peak_mb": used.ru_maxrss / 1024,
    }


BEGUN = time.monotonic()
if __name__ == "__main__":
    sys.exit(main())
