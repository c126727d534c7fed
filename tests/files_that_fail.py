"""Every code of a failure or warning of the stages, with the smallest file that provokes it. `FAILS` is the table.

A row says how to make the file, which stage meets it, what the message must name, and what makes another attempt go on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from stages.contract import Limits
from tests.failing_at_hand import (
    BOMB,
    COPIED,
    GOOD,
    LEVELS,
    ONLY_IDS,
    OTHER_FILE,
    SPECIES,
    UNSETTLED,
    WIDE,
    Json,
    Make,
    another,
    broken,
    changed,
    days,
    every,
    frame,
    half_taught,
    hurried,
    link,
    model,
    no_target,
    profiled,
    ready,
    reviewed,
    strange,
    table,
    untested,
    upload,
)

# Section 6 of the facts: what has to be typed and clear. The others of the table came with the work.
PROMISED = frozenset(
    [
        "EMPTY_OBJECTIVE",
        "UNSUPPORTED_TASK",
        "TARGET_NOT_FOUND",
        "TARGET_AMBIGUOUS",
        "TASK_AMBIGUOUS",
        "FILE_NOT_FOUND",
        "PATH_OUTSIDE_WORKSPACE",
        "UNSUPPORTED_SOURCE",
        "UNSUPPORTED_FORMAT",
        "UNREADABLE_FILE",
        "EMPTY_FILE",
        "NO_ROWS",
        "NO_HEADER",
        "MALFORMED_ROWS",
        "ENCODING_GUESSED",
        "DUPLICATE_COLUMN",
        "FILE_TOO_LARGE",
        "SAMPLED",
        "NO_FEATURES",
        "TOO_FEW_ROWS",
        "FEW_ROWS",
        "SINGLE_CLASS_TARGET",
        "TARGET_ALL_MISSING",
        "TARGET_MISSING_ROWS",
        "TARGET_UNIQUE_PER_ROW",
        "RARE_CLASS",
        "IMBALANCE",
        "ALL_MISSING_COLUMN",
        "CONSTANT_COLUMN",
        "ID_COLUMN",
        "LEAKAGE_SUSPECT",
        "DUPLICATE_ROWS",
        "GROUPED_ROWS",
        "TIME_ORDERED",
        "NUMBERS_AS_TEXT",
        "MIXED_TYPES",
        "INFINITE_VALUES",
        "AMBIGUOUS_DATE",
        "MORE_COLUMNS_THAN_ROWS",
        "BUDGET_TOO_SMALL",
        "MEMORY_LIMIT",
        "STAGE_TIMEOUT",
        "CANCELLED",
        "NO_BETTER_THAN_BASELINE",
        "SUSPICIOUSLY_GOOD",
        "EXPORT_SMOKE_TEST_FAILED",
        "STAGE_CRASHED",
    ]
)


@dataclass(frozen=True)
class Fails:
    """A row.

    Attributes:
        make: lays the file and what earlier stages leave in the run's folder; returns the fields of the envelope.
        severity: ERROR makes the stage FAILED; WARN and INFO are among its warnings.
        names: what the message, the suggestion or the value must say.
        at: what the issue must say of column, row, value or count.
        better: what a person chooses so that another attempt goes on; only what the failure offers.
        mend: changes files or objective so that another attempt goes on, where no choice can.
    """

    code: str
    stage: str
    make: Make
    severity: str = "ERROR"
    names: tuple[str, ...] = ()
    at: Mapping[str, Json] = field(default_factory=dict)
    better: Mapping[str, Json] = field(default_factory=dict)
    mend: Make | None = None


# ---- the table ----

INTENT, SOURCE, PROFILE, PLAN = "PARSE_INTENT", "DATA_SOURCE", "PROFILE_DATA", "PREPROCESS"
SELECT, TRAIN, REVIEW, EXPORT = "MODEL_SELECT", "TRAIN", "REVIEW_EDIT", "EXPORT"
NEW_ROWS = table(frame())
AGAIN_TARGET = {"target": "y"}


def said(objective: str) -> Make:
    """Returns what lays a table of species and asks this of it."""
    return upload(SPECIES, objective=objective)


FAILS = (
    Fails("EMPTY_OBJECTIVE", INTENT, said("please"), names=("predict price",), mend=said("predict species")),
    Fails("UNSUPPORTED_TASK", INTENT, said("cluster the rows into segments"), mend=said("predict species")),
    Fails(
        "TARGET_NOT_FOUND", INTENT, said("predict zorgness"), names=("zorgness", "species"), better={"target": "bill"}
    ),
    Fails(
        "BAD_EDIT",
        INTENT,
        upload(SPECIES, objective="predict species", edits={"task": "fly"}),
        names=("task",),
        better={"task": "multiclass"},
    ),
    Fails("TARGET_AMBIGUOUS", INTENT, said("predict island and species"), "WARN", ("island", "species")),
    Fails("TASK_AMBIGUOUS", INTENT, upload(LEVELS, objective="predict stars"), "WARN", ("stars",), {"column": "stars"}),
    Fails("NOT_UNDERSTOOD", INTENT, said("predict species without zorgness"), "WARN", ("zorgness",)),
    Fails("UNREADABLE_FILE", INTENT, upload(b"\x1f\x8b cut", objective="predict y"), "WARN", ("t.csv",)),
    Fails("FILE_NOT_FOUND", SOURCE, upload("", data="uploads/god.csv"), names=("good.csv",), better=OTHER_FILE),
    Fails("PATH_OUTSIDE_WORKSPACE", SOURCE, upload("", data="../t.csv"), names=("t.csv",), better=OTHER_FILE),
    Fails("PATH_OUTSIDE_WORKSPACE", SOURCE, upload("", data="/etc/passwd"), names=("passwd",), better=OTHER_FILE),
    Fails("PATH_OUTSIDE_WORKSPACE", SOURCE, link, names=("t.csv", "link"), better=OTHER_FILE),
    Fails(
        "UNSUPPORTED_SOURCE", SOURCE, upload("", data="https://x.example/t.csv"), names=("upload",), better=OTHER_FILE
    ),
    Fails("UNSUPPORTED_FORMAT", SOURCE, upload(b"\x89PNG\r\n"), names=("t.csv", "picture"), better=OTHER_FILE),
    Fails("UNSUPPORTED_FORMAT", SOURCE, upload(b"\x80\x04."), names=("pickle", "never"), better=OTHER_FILE),
    Fails("UNREADABLE_FILE", SOURCE, upload(b"\x1f\x8b cut"), names=("t.csv",), better=OTHER_FILE),
    Fails("EMPTY_FILE", SOURCE, upload(""), names=("t.csv",), better=OTHER_FILE),
    Fails("NO_ROWS", SOURCE, upload("x,y\n"), names=("t.csv",), better=OTHER_FILE),
    Fails("NO_HEADER", SOURCE, upload("1,2\n3,4\n5,6\n"), at={"row": 1}, better={"header": "none"}),
    Fails(
        "MALFORMED_ROWS",
        SOURCE,
        upload(GOOD + "1,2,3\n"),
        names=("3 cells",),
        at={"row": 10, "count": 1},
        better={"skip_bad_rows": "yes"},
    ),
    Fails("FILE_TOO_LARGE", SOURCE, upload(BOMB, "t.csv.gz"), names=("t.csv.gz", "MB"), better=OTHER_FILE),
    Fails(
        "BAD_EDIT",
        SOURCE,
        upload(GOOD, edits={"delimiter": "x"}),
        names=("delimiter",),
        better={"delimiter": "comma"},
    ),
    Fails(
        "MALFORMED_ROWS",
        SOURCE,
        upload(GOOD + "1\n", edits={"skip_bad_rows": "yes"}),
        "WARN",
        ("1 cells",),
        {"row": 10},
    ),
    Fails("NO_HEADER", SOURCE, upload("1,2\n3,4\n", edits={"header": "none"}), "INFO", ("column_1",)),
    Fails("ENCODING_GUESSED", SOURCE, upload("name,y\nJosé,1\nZoë,2\n".encode("cp1252")), "WARN", ("t.csv",)),
    Fails("DUPLICATE_COLUMN", SOURCE, upload("x,x,y\n1,2,a\n3,4,b\n"), "WARN", ("x",), {"column": "x_2"}),
    Fails("NULL_MARKERS", SOURCE, upload(GOOD + "?,a\n"), "INFO", ("?", "x"), {"column": "x", "count": 1}),
    Fails("SAMPLED", SOURCE, upload(GOOD, edits={"sample_rows": 5}), "WARN", ("8", "5"), {"count": 5}),
    Fails("TARGET_NOT_FOUND", PROFILE, table(frame(), "why"), names=("why", "y"), better=AGAIN_TARGET),
    Fails("TARGET_ALL_MISSING", PROFILE, table(frame(t=None), "t"), at={"column": "t"}, better=AGAIN_TARGET),
    Fails(
        "SINGLE_CLASS_TARGET",
        PROFILE,
        table(frame(t="on"), "t"),
        at={"column": "t", "value": "on"},
        better=AGAIN_TARGET,
    ),
    Fails(
        "TARGET_UNIQUE_PER_ROW",
        PROFILE,
        table(frame(t=lambda rows: [f"n{n}" for n in range(rows)]), "t"),
        at={"column": "t", "count": 60},
        better=AGAIN_TARGET,
    ),
    Fails("TOO_FEW_ROWS", PROFILE, table(frame(12)), at={"column": "y", "count": 12}, mend=NEW_ROWS),
    Fails(
        "TOO_FEW_ROWS",
        PROFILE,
        table(frame(t=every(20, "rare", "often")), "t"),
        at={"column": "t", "value": "rare", "count": 3},
        better=AGAIN_TARGET,
    ),
    Fails("NO_FEATURES", PROFILE, table(frame(x=1.0)), names=("y",), mend=NEW_ROWS),
    Fails(
        "FILE_TOO_LARGE",
        PROFILE,
        table(pd.DataFrame(0, range(1), [f"c{n}" for n in range(4001)]), None),
        at={"count": 4001},
        mend=NEW_ROWS,
    ),
    Fails("BAD_EDIT", PROFILE, table(frame(), edits={"roles.x": "BOOL"}), names=("x",), mend=NEW_ROWS),
    Fails("TASK_AMBIGUOUS", PROFILE, table(frame(t=lambda rows: [n % 5 for n in range(rows)]), "t"), "WARN", ("t",)),
    Fails(
        "TARGET_MISSING_ROWS",
        PROFILE,
        table(frame(80, t=[None, "a", "b", "a"] * 20), "t"),
        "WARN",
        ("t",),
        {"column": "t", "count": 20},
    ),
    Fails("FEW_ROWS", PROFILE, table(frame()), "WARN", ("60",), {"count": 60}),
    Fails("RARE_CLASS", PROFILE, table(frame(t=every(8, "rare", "often")), "t"), "WARN", ("rare",), {"count": 8}),
    Fails("IMBALANCE", PROFILE, table(frame(t=every(8, "rare", "often")), "t"), "WARN", ("often",), {"column": "t"}),
    Fails("ALL_MISSING_COLUMN", PROFILE, table(frame(e=None)), "WARN", ("e",), {"column": "e"}),
    Fails("CONSTANT_COLUMN", PROFILE, table(frame(e="on")), "INFO", ("on",), {"column": "e"}),
    Fails("MANY_MISSING", PROFILE, table(frame(e=every(4, "a", "b")).replace("b", None)), "INFO", (), {"column": "e"}),
    Fails("ID_COLUMN", PROFILE, table(frame(row_id=range)), "WARN", ("row_id",), {"column": "row_id", "count": 60}),
    Fails(
        "LEAKAGE_SUSPECT",
        PROFILE,
        table(frame(e=lambda rows: [n % 2 * 1.5 for n in range(rows)])),
        "WARN",
        ("e",),
        {"column": "e"},
    ),
    Fails("DUPLICATE_ROWS", PROFILE, table(COPIED), "WARN", ("10",), {"count": 10, "row": 42}),
    Fails(
        "GROUPED_ROWS",
        PROFILE,
        table(frame(patient_id=lambda rows: [f"p{n // 4}" for n in range(rows)])),
        "WARN",
        ("patient_id",),
        {"column": "patient_id", "count": 15},
    ),
    Fails("TIME_ORDERED", PROFILE, table(frame(day=days)), "INFO", ("day", "TIME"), {"column": "day"}),
    Fails(
        "AMBIGUOUS_DATE",
        PROFILE,
        table(frame(day=lambda rows: [f"0{n % 9 + 1}/0{n % 7 + 1}/2024" for n in range(rows)])),
        "WARN",
        ("day", "first"),
        {"column": "day"},
    ),
    Fails(
        "NUMBERS_AS_TEXT",
        PROFILE,
        table(frame(e=lambda rows: [f"${n},500" for n in range(rows)])),
        "INFO",
        ("$",),
        {"column": "e"},
    ),
    Fails(
        "SPELLINGS", PROFILE, table(frame(t=["Yes", "No", "yes", "NO"] * 15), "t"), "WARN", ("yes",), {"column": "t"}
    ),
    Fails(
        "AMBIGUOUS_NUMBER",
        PROFILE,
        table(frame(e=lambda rows: [f"{n + 1}.500 €" for n in range(rows)])),
        "WARN",
        ("1500", "1.5"),
        {"column": "e"},
    ),
    Fails(
        "MIXED_TYPES",
        PROFILE,
        table(frame(e=lambda rows: [str(n * 1.5) if n % 20 else "many" for n in range(rows)])),
        "WARN",
        ("many",),
        {"column": "e", "value": "many", "count": 3},
    ),
    Fails(
        "INFINITE_VALUES",
        PROFILE,
        table(frame(e=lambda rows: [float("inf") if n == 3 else n * 0.7 for n in range(rows)])),
        "WARN",
        ("e",),
        {"column": "e", "row": 5, "count": 1},
    ),
    Fails("MORE_COLUMNS_THAN_ROWS", PROFILE, table(WIDE.assign(y=frame(24)["y"])), "WARN", ("30", "24")),
    Fails(
        "TARGET_AMBIGUOUS",
        PLAN,
        changed(PROFILE, "profile-data", lambda _: UNSETTLED, profiled(frame())),
        names=("PROFILE_DATA",),
        mend=profiled(frame()),
    ),
    Fails("NO_FEATURES", PLAN, profiled(ONLY_IDS), better={"actions.row_id": "KEEP"}),
    Fails(
        "TOO_FEW_ROWS",
        PLAN,
        profiled(frame(24), edits={"test_share": 0.1}),
        names=("test",),
        better={"test_share": 0.25},
    ),
    Fails(
        "BAD_EDIT",
        PLAN,
        profiled(frame(), edits={"actions.x": "FLY"}),
        names=("actions.x",),
        better={"actions.x": "KEEP"},
    ),
    Fails("ID_COLUMN", PLAN, profiled(frame(row_id=range)), "WARN", ("row_id",), {"column": "row_id"}),
    Fails("INPUT_MISSING", PLAN, table(frame()), names=("PROFILE_DATA",), mend=profiled(frame())),
    Fails(
        "NO_FEATURES",
        SELECT,
        changed(PLAN, "preprocess", lambda _: {"features": []}, ready(SELECT)),
        names=("PREPROCESS",),
        mend=ready(SELECT),
    ),
    Fails(
        "MEMORY_LIMIT",
        SELECT,
        ready(SELECT, limits=Limits(mem_mb=64)),
        names=("64 MB",),
        mend=ready(SELECT, limits=Limits()),
    ),
    Fails(
        "BAD_EDIT", SELECT, ready(SELECT, edits={"metric": "luck"}), names=("metric",), better={"metric": "accuracy"}
    ),
    Fails("METRIC_UNKNOWN", SELECT, ready(SELECT, hints={"metric": "luck"}), "WARN", ("luck",)),
    Fails("BUDGET_CUT", SELECT, ready(SELECT, hints={"budget_s": 900}), "INFO", ("900",)),
    Fails("BUDGET_TOO_SMALL", SELECT, ready(SELECT, rows=300_000, hints={"budget_s": 5}), "WARN", ("5 s",)),
    Fails("NO_ROWS", TRAIN, no_target, at={"column": "label"}, mend=ready(TRAIN)),
    Fails(
        "TRAINING_FAILED",
        TRAIN,
        changed(SELECT, "model-select", broken("hgb"), ready(TRAIN)),
        names=("max_iter",),
        mend=ready(TRAIN),
    ),
    Fails("CANDIDATE_FAILED", TRAIN, changed(SELECT, "model-select", broken("linear"), ready(TRAIN)), "WARN", ("hgb",)),
    Fails("BUDGET_REACHED", TRAIN, changed(SELECT, "model-select", hurried, ready(TRAIN)), "WARN", ("hgb",)),
    Fails("TOO_FEW_ROWS", REVIEW, untested, names=("test",), mend=model()),
    Fails("NO_BETTER_THAN_BASELINE", REVIEW, model(noise=True), "WARN", ("label",), {"column": "label"}),
    Fails("SUSPICIOUSLY_GOOD", REVIEW, model(leak=True), "WARN", ("outcome",), {"column": "outcome"}),
    Fails("TEST_SET_REOPENED", REVIEW, model(edits={"threshold": 0.2}), "INFO", ("0.2",)),
    Fails(
        "INPUT_MISSING",
        EXPORT,
        changed(REVIEW, "review-edit", lambda _: {"opened": {}}, reviewed),
        names=("REVIEW_EDIT",),
        mend=reviewed,
    ),
    Fails("SKOPS_NOT_WRITTEN", EXPORT, another(strange), "WARN", ("joblib",)),
    Fails("NOT_REPRODUCED", EXPORT, another(half_taught), "WARN", ("instead of",)),
    Fails("EXPORT_SMOKE_TEST_FAILED", EXPORT, reviewed, names=("predict.py",), mend=reviewed),
)

# ---- what happens to a program, and not in it ----

HEAD = "from stages.contract import *\nimport os, signal, time\ndef work(envelope, room, progress):\n    "
PROGRAMS = {  # code → a program's work, the limits and signal it gets, and what its message must say
    "STAGE_TIMEOUT": ("time.sleep(30)", {"wall_s": 0.1}, "0.1 s"),
    "CANCELLED": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)", {}, "cancelled"),
    "MEMORY_LIMIT": ("raise MemoryError", {"mem_mb": 77}, "77 MB"),
    "MORE_ISSUES": ("return Result('Done.', {}, (), [Issue('ODD', 'INFO', 'Odd.')] * 300)", {}, "101 more"),
}
TAIL = "\nmain(work)\n"
