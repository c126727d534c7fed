"""`make bench-stages`: the stages over public tables, beside what the best known tool scored there.

Processor time is what is compared: walls depend on who else uses the machine.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

from bench.stages.flaml import Rival, rival
from bench.stages.runs import STAGES, Run, run
from bench.stages.tables import TABLES, Known

Json: TypeAlias = Any

USUAL = ("penguins", "mpg", "breast_cancer", "titanic", "credit")
BUDGET_S = 60.0
OVER = 1.10  # times its budget that a stage may use
MOST_MB = 1024.0
HALF_WIDTH = 1.96  # of a 95 % interval, in standard deviations
ROW = "{:<14}{:>9}{:>10}{:>9}{:>9}{:>6}{:>9}{:>9}{:>8}{:>8}  {}"
HEAD = ("table", "score", "best", "sd", "ours-best", "in sd", "train s", "total s", "peak MB", "budget", "chosen")


def main() -> int:
    """Measures and prints. Returns 1 when a table did not get to the end."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        told = [
            _measured(name, seed, Path(scratch), arguments) for name in arguments.tables for seed in arguments.seeds
        ]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(told, indent=1) + "\n")
    return 1 if any(each["stopped"] for each in told) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.stages", description=__doc__)
    parser.add_argument("tables", nargs="*", default=list(USUAL), metavar="TABLE", help=f"of {', '.join(TABLES)}, all")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="processor seconds for TRAIN, and for FLAML")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each table once with each")
    parser.add_argument("--folder", help="where runs are kept while they last")
    parser.add_argument("--json", help="a file for every figure")
    parser.add_argument("--flaml", action="store_true", help="run FLAML on the same rows as well")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has flaml, with --flaml")
    arguments = parser.parse_args()
    arguments.tables = list(TABLES) if arguments.tables == ["all"] else arguments.tables
    unknown = [name for name in arguments.tables if name not in TABLES]
    if unknown:
        parser.error(f"no such table: {', '.join(unknown)}; there are {', '.join(TABLES)}")
    return arguments


def _measured(name: str, seed: int, scratch: Path, arguments: argparse.Namespace) -> dict[str, Json]:
    known, folder = TABLES[name], scratch / f"{name}-{seed}"
    found = run(name, known, folder, arguments.budget, seed)
    figures = {**_figures(name, known, found, arguments.budget), "seed": seed}
    if (name, seed) == (arguments.tables[0], arguments.seeds[0]):
        print(ROW.format(*HEAD), flush=True)
    print(_row(figures), flush=True)
    print("    " + ", ".join(f"{stage.lower()} {spent:.1f}" for stage, spent in found.cpu_s.items()), "s", flush=True)
    if found.stopped:
        print(f"    stopped: {found.stopped}", flush=True)
    elif arguments.flaml:
        other = rival(folder, arguments.python, arguments.budget, seed)
        print(f"    FLAML: {other}", flush=True)
        figures["flaml"] = _rival(other)
    return figures


def _figures(name: str, known: Known, found: Run, budget_s: float) -> dict[str, Json]:
    test = found.left.get("REVIEW_EDIT", {}).get("result", {}).get("test", {})
    train = found.left.get("TRAIN", {}).get("result", {})
    spent = found.cpu_s.get("TRAIN", 0.0)
    low, high = test.get("ci95") or (None, None)
    own = (high - low) / 2 / HALF_WIDTH if low is not None else None
    sd = known.sd if known.sd is not None else own
    score = test.get("value")
    return {
        "table": name,
        "metric": test.get("metric"),
        "score": score,
        "ci95": test.get("ci95"),
        "best": known.best,
        "who": known.who,
        "sd": sd,
        "sd_is": "of the anchor's folds" if known.sd is not None else "of our test rows, drawn again",
        "within": None if score is None else score >= known.best - (sd or 0.0),
        "cpu_s": {stage: found.cpu_s[stage] for stage in STAGES if stage in found.cpu_s},
        "total_cpu_s": round(sum(found.cpu_s.values()), 1),
        "peak_mb": found.peak_mb,
        "small": found.peak_mb < MOST_MB,
        "budget_s": budget_s,
        "kept": spent <= OVER * budget_s,
        "chosen": train.get("chosen"),
        "leaderboard": train.get("leaderboard"),
        "answers": found.answers,
        "stopped": found.stopped,
    }


def _row(figures: dict[str, Json]) -> str:
    score, sd = figures["score"], figures["sd"]
    if score is None:
        return ROW.format(figures["table"], "–", figures["best"], *("–",) * 8)
    return ROW.format(
        figures["table"],
        f"{score:.4f}",
        f"{figures['best']:.4f}",
        f"{sd:.4f}" if sd is not None else "–",
        f"{score - figures['best']:+.4f}",
        "yes" if figures["within"] else "NO",
        f"{figures['cpu_s']['TRAIN']:.1f}",
        f"{figures['total_cpu_s']:.1f}",
        f"{figures['peak_mb']:.0f}",
        "kept" if figures["kept"] else "OVER",
        f"{figures['chosen']['id']} ({figures['who']} is best)",
    )


def _rival(other: Rival) -> dict[str, Json]:
    return {"score": other.score, "cpu_s": other.cpu_s, "peak_mb": other.peak_mb, "model": other.model}


if __name__ == "__main__":
    sys.exit(main())
