"""The marks that issue 3 sets, beside what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = object()


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark.

    Attributes:
        path: where the figure stands in a run's JSON.
        text: what it is, with its unit.
        limit: worst value that passes, by engine; `None` stands for every engine.
        least: True when more is better.
    """

    path: str
    text: str
    limit: Mapping[str | None, float]
    least: bool = False

    def of(self, engine: str) -> float:
        return self.limit.get(engine, self.limit.get(None, 0.0))


SERVICES_PER_S, INSIDE_PER_S = 199.4, 536.6  # Restate: steps in separate services, steps inside the engine
FLOOR_FACTOR = 1.5
CPU_MS: Mapping[str | None, float] = {"sqlite": 2.5, "postgres": 3.2}

MARKS: Sequence[Mark] = (
    Mark("throughput.tasks_per_s", "tasks/s, 64 in flight: 4 × steps in services", {None: 4 * SERVICES_PER_S}, True),
    Mark("throughput.tasks_per_s", "tasks/s, 64 in flight: 1.2 × steps in engine", {None: 1.2 * INSIDE_PER_S}, True),
    Mark("throughput.cpu_ms_per_task_all_but_client", "CPU ms a task, all but client", CPU_MS),
    Mark("acknowledged.ms.p50", "acknowledged, ms p50", {None: 1.5}),
    Mark("alone.ms.p50", "one at a time, ms p50", {None: 7.0}),
    Mark("gate.ms.p50", "confirm → next stage seen, ms p50", {None: 3.0}),
    Mark("events.1.ms.p50", "event → subscriber, ms p50", {"sqlite": 1.5, "postgres": 5.0}),
    Mark("syncs.per_task_64_in_flight", "log syncs a task, 64 in flight", {None: 1.0}),
    Mark("writer.slower_when_watched", "a writer watched by 1000 / by nobody", {None: 1.1}),
    Mark("writer.slower_beside_idle", "a writer beside 1000 idle / nobody", {None: 1.1}),
    Mark("events.1000.to_floor", "CPU a delivery to 1000 / floor", {None: FLOOR_FACTOR}),
    Mark("recovery.last_finished_s", "100 tasks after kill -9, s to the last", {None: 2.0}),
    Mark("recovery.done_again_though_recorded", "steps done again though their result was durable", {None: 0.0}),
    Mark("recovery.lost", "acknowledged tasks lost", {None: 0.0}),
    Mark("takeover.beyond_lease_s", "tasks of a killed replica, s beyond the lease", {None: 1.0}),
    Mark("start.conductor_s.p50", "start of Conductor → first COMPLETED, s", {None: 2.0}),
)
OTHERS: Sequence[tuple[str, str]] = (
    ("throughput.latency_ms.p50", "latency at 64 in flight, ms p50"),
    ("throughput.cpu_ms_per_task_client", "CPU ms a task, client"),
    ("acknowledged.ms.p99", "acknowledged, ms p99"),
    ("alone.ms.p99", "one at a time, ms p99"),
    ("gate.ms.p99", "confirm → next stage seen, ms p99"),
    ("events.1.ms.p99", "event → subscriber, ms p99"),
    ("events.100.until_all_have_it_ms.p50", "event → last of 100, ms p50"),
    ("events.1000.until_all_have_it_ms.p50", "event → last of 1000, ms p50"),
    ("reads.get_task.ms.p50", "GetTask, ms p50"),
    ("reads.list_tasks.ms.p50", "ListTasks, 50 of them, ms p50"),
    ("reads.replay_of_a_task.ms.p50", "replay of a finished task, ms p50"),
    ("reads.resume.ms.p50", "resume 200 events behind, ms p50"),
    ("syncs.per_task_1_in_flight", "log syncs a task, 1 in flight"),
    ("memory.all.idle.pss", "memory idle, MiB PSS, all but client"),
    ("memory.all.loaded.pss", "memory after load, MiB PSS, all but client"),
    ("memory.conductor.idle.rss", "memory of Conductor idle, MiB RSS"),
    ("memory.conductor.loaded.peak_rss", "memory of Conductor at peak, MiB RSS"),
    ("start.everything_fresh_s.p50", "everything on a fresh log → first COMPLETED, s"),
    ("start.everything_s.p50", "everything on its log → first COMPLETED, s"),
    ("recovery.started_twice", "steps started twice"),
    ("recovery.done_twice", "steps done twice, by the ledger"),
    ("takeover.last_taken_s", "tasks of a killed replica, s to the last taken"),
    ("edge.throughput.tasks_per_s", "through Envoy: tasks/s"),
    ("edge.alone.ms.p50", "through Envoy: one at a time, ms p50"),
)
# What must not get worse with the log: "no figure worse than 1.5 times its value at 10 thousand".
GROWTH = 1.5
GROWING: Sequence[tuple[str, bool]] = (
    ("throughput.tasks_per_s", True),
    ("throughput.cpu_ms_per_task_all_but_client", False),
    ("alone.ms.p50", False),
    ("acknowledged.ms.p50", False),
    ("gate.ms.p50", False),
    ("events.1.ms.p50", False),
    ("reads.get_task.ms.p50", False),
    ("reads.list_tasks.ms.p50", False),
    ("reads.replay_of_a_task.ms.p50", False),
    ("reads.resume.ms.p50", False),
    ("start.conductor_s.p50", False),
    ("memory.conductor.idle.rss", False),
    ("memory.conductor.loaded.peak_rss", False),
)


def at(figures: Mapping[str, Any], path: str) -> Any:
    """Returns the figure at a dotted path; MISSING when it was not measured."""
    found: Any = figures
    for name in path.split("."):
        found = found.get(name, MISSING) if isinstance(found, Mapping) else MISSING
    return found


def table(engine: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of one run: figures with a mark, then the others."""
    for mark in MARKS:
        value = at(figures, mark.path)
        if isinstance(value, int | float):
            yield _judged(mark.text, float(value), mark.of(engine), mark.least)
        elif value is not MISSING:
            yield f"  {mark.text:<48} {value}"
    for path, text in OTHERS:
        value = at(figures, path)
        if value is not MISSING:
            yield f"  {text:<48} {value:>9}"


def growth(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns, for each larger log, how much worse each figure is than on the smallest filled one (1: as good)."""
    filled = [run for run in runs if run["events_before"]]
    found: dict[str, dict[str, float]] = {}
    for run in filled[1:]:
        ratios = found.setdefault(str(run["events_before"]), {})
        for path, least in GROWING:
            small, large = at(filled[0], path), at(run, path)
            if small is not MISSING and large is not MISSING:
                ratios[path] = round(small / large if least else large / small, 3)
    return found


def growth_table(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yields a line for each figure on each larger log."""
    for events, ratios in found.items():
        yield f"  {int(events):,} events, as a multiple of the smallest log's figure:"
        for path, ratio in ratios.items():
            yield _judged(path, ratio, GROWTH, False)


def _judged(text: str, value: float, limit: float, least: bool) -> str:
    passed = value >= limit if least else value <= limit
    ratio = f"{value / limit:5.2f} of it" if limit else ""
    return f"  {text:<48} {value:>9g}  {'≥' if least else '≤'} {limit:<7g} {'PASS' if passed else 'miss'} {ratio}"
