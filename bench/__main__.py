"""`make bench`: the job of the durable-orchestration engines on Conductor, as JSON and as a table.

The job: Execute → durable task → Researcher (trivial, a process of its own) → ReportWriter (trivial, another) →
COMPLETED. The line to compare with is "steps in separate services". Conductor, workers, database, and this driver share
the machine. Figures compare only within one run, or between runs back to back: see `conditions`.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench import marks, processes, restarts
from bench.conditions import conditions, now
from bench.figures import FIGURES, QUICK, Counts, Figures, edge
from bench.fill import fill
from bench.system import Engine, System

VAR = Path(__file__).resolve().parent.parent / "var"
RESTARTS = {"syncs": restarts.syncs, "recovery": restarts.recovery, "takeover": restarts.takeover}
KEPT = VAR / "bench"  # filled stores, to be used again
ENGINES: tuple[Engine, ...] = ("sqlite", "postgres")
NAMES = (*FIGURES, "memory", "edge", "syncs", "start", "recovery", "takeover")


async def measure(folder: Path, engine: Engine, events: int, arguments: argparse.Namespace) -> Figures:
    """Measures one engine on a log of one size."""
    counts = QUICK if arguments.quick else Counts()
    found: Figures = {"events_before": events, "conditions_then": now(folder)}
    data = None
    if events:
        data = KEPT / f"{engine}-{events}"
        KEPT.mkdir(parents=True, exist_ok=True)
        tell(f"{engine}: a log of {events:,} events")
        found["filled"] = await fill(data, engine, events)
    if {*FIGURES, "memory"} & arguments.only:
        found |= await _steadily(folder / "steady", engine, data, counts, arguments)
    for name in [name for name in NAMES if name in arguments.only and name not in (*FIGURES, "memory")]:
        tell(f"{engine}: {name}")
        place = folder / name
        place.mkdir()
        if name == "edge":
            async with System(place, engine, edge=True, pinned=arguments.pin) as system:
                found[name] = await edge(system, counts)
        elif name == "start":
            found[name] = await restarts.start(place, engine, counts, data)
        else:
            found[name] = await RESTARTS[name](place, engine, counts)
    return found


async def _steadily(
    folder: Path, engine: Engine, data: Path | None, counts: Counts, arguments: argparse.Namespace
) -> Figures:
    """Measures everything that needs no restart on one running system."""
    found: Figures = {}
    async with System(folder, engine, data=data, pinned=arguments.pin) as system:
        idle = _memory(system)
        for name in [name for name in FIGURES if name in arguments.only]:
            tell(f"{engine}: {name}")
            found[name] = await FIGURES[name](system, counts)
        if "memory" in arguments.only:
            loaded = _memory(system)
            found["memory"] = {name: {"idle": idle[name], "loaded": loaded[name]} for name in idle}
    return found


def _memory(system: System) -> dict[str, dict[str, float]]:
    groups = system.groups
    groups["all"] = [process for roots in list(groups.values()) for process in roots]
    return {name: processes.memory_mib(roots) for name, roots in groups.items()}


async def run(folder: Path, engine: Engine, arguments: argparse.Namespace) -> Figures:
    """Measures one engine on logs of all the sizes asked for."""
    here = {"pinned": arguments.pin, "quick": arguments.quick, "client": "straight to Conductor, gRPC"}
    found: Figures = {"store": engine, "conditions": conditions(folder) | here, "runs": []}
    for events in arguments.events:
        place = folder / f"{engine}-{events}"
        place.mkdir()
        figures = await measure(place, engine, events, arguments)
        found["runs"].append(figures)
        tell(f"\n{engine}, {events:,} events before", *marks.table(engine, figures))
        shutil.rmtree(place, ignore_errors=True)
    found["growth"] = marks.growth(found["runs"])
    tell(*marks.growth_table(found["growth"]))
    return found


def tell(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Waits until no other benchmark runs on this machine."""
    with Path(tempfile.gettempdir(), "conductor-bench.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), False)
        yield


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--store", choices=[*ENGINES, "both"], default="both", help="which engine; both when left out")
    parser.add_argument("--only", default=",".join(NAMES), help=f"figures, separated by commas, of: {', '.join(NAMES)}")
    parser.add_argument(
        "--events", default="0", help="lengths of the log before measuring, separated by commas: 0,10000,1000000"
    )
    parser.add_argument("--pin", action="store_true", help="Conductor has a core to itself, the rest the other")
    parser.add_argument("--quick", action="store_true", help="a few of everything: shows that it runs, proves nothing")
    parser.add_argument("--json", type=Path, help="file for the JSON; standard output when left out")
    parsed = parser.parse_args(arguments)
    parsed.only = set(parsed.only.split(","))
    _refuse(parser, "figure", sorted(parsed.only - set(NAMES)), NAMES)
    _refuse(parser, "number of events", [n for n in parsed.events.split(",") if not n.isdigit()], ("0", "10000"))
    parsed.events = [int(number) for number in parsed.events.split(",")]
    parsed.engines = ENGINES if parsed.store == "both" else (parsed.store,)
    return parsed


def _refuse(parser: argparse.ArgumentParser, what: str, wrong: Sequence[str], known: Iterable[str]) -> None:
    if wrong:
        parser.error(f"no such {what}: {', '.join(wrong)}; give for example {', '.join(known)}")


def main() -> None:
    arguments = parse(sys.argv[1:])
    VAR.mkdir(exist_ok=True)
    with alone(), tempfile.TemporaryDirectory(dir=VAR, prefix="bench-") as folder:
        results = [asyncio.run(run(Path(folder), engine, arguments)) for engine in arguments.engines]
    text = json.dumps(results, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
