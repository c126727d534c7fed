"""Holds a run's evidence against every promise, and draws up the table."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from conductor.v1 import error_pb2, task_pb2

from tests.chaos import promises
from tests.chaos.gates import each_confirm_moves_one_stage, no_stage_is_skipped
from tests.chaos.history import calls_in
from tests.chaos.promises import Evidence, Promise, Verdict
from tests.chaos.round import Outcome

PROMISES: Mapping[str, Promise] = {
    "nothing acknowledged is lost": promises.nothing_acknowledged_is_lost,
    "started means ended, once and last": promises.started_means_ended,
    "every call has its one result": promises.every_call_has_its_result,
    "sequences are gapless": promises.sequences_are_gapless,
    "subscribers see the log, across reconnects": promises.subscribers_see_the_log,
    "no stage is skipped": no_stage_is_skipped,
    "each Confirm moves one stage": each_confirm_moves_one_stage,
    "no command runs twice": promises.no_command_runs_twice,
    "same request, same answer": promises.same_request_same_answer,
    "reports are whole": promises.reports_are_whole,
    "states agree with the log": promises.states_agree_with_the_log,
    "replies are as expected": promises.replies_are_as_expected,
    "what is healed works": promises.what_is_healed_works,
}
SHOWN = 5  # violations of one promise that are told


@dataclass(frozen=True)
class Judgement:
    """A verdict for each promise; and how often each fault was done, each reply was given, tasks ended in each way."""

    verdicts: Mapping[str, Verdict]
    faults: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)

    @property
    def broken(self) -> bool:
        return any(verdict.violations for verdict in self.verdicts.values())

    def violations(self) -> Iterator[tuple[str, str]]:
        """Yields the name of each broken promise with a few of its violations."""
        for name, verdict in self.verdicts.items():
            for violation in verdict.violations[:SHOWN]:
                yield name, violation

    def and_(self, other: "Judgement") -> "Judgement":
        """Adds the counts of another run."""
        both = {
            name: Verdict(
                self.verdicts.get(name, Verdict(0)).checked + verdict.checked,
                self.verdicts.get(name, Verdict(0)).violations + verdict.violations,
            )
            for name, verdict in other.verdicts.items()
        }
        return Judgement(both, self.faults + other.faults, self.replies + other.replies, self.ends + other.ends)


def verdicts(evidence: Evidence) -> dict[str, Verdict]:
    """Holds the evidence against every promise."""
    return {name: promise(evidence) for name, promise in PROMISES.items()}


def judge(outcome: Outcome) -> Judgement:
    """Judges a run."""
    evidence = outcome.evidence
    return Judgement(
        verdicts(evidence),
        Counter(f"{fault.kind} {fault.target}" for fault in outcome.faults),
        Counter(f"{call.code} {call.reason}".strip() for call in calls_in(evidence.records)),
        Counter(_end_of(task) for task in evidence.tasks.values()),
    )


def _end_of(task: task_pb2.Task) -> str:
    reason = error_pb2.ErrorReason.Name(task.error.reason) if task.HasField("error") else ""
    status = task_pb2.TaskStatus.Name(task.status)
    return f"{status.removeprefix('TASK_STATUS_')} {reason.removeprefix('ERROR_REASON_')}".strip()


def table(judgement: Judgement) -> str:
    """Draws up promise → checked → violations, and what was done and came of it."""
    lines = [f"{'promise':<44}{'checked':>10}{'violations':>12}"]
    lines += [f"{name:<44}{v.checked:>10}{len(v.violations):>12}" for name, v in judgement.verdicts.items()]
    lines += (
        _counts("faults", judgement.faults),
        _counts("replies", judgement.replies),
        _counts("tasks", judgement.ends),
    )
    return "\n".join(lines)


def _counts(what: str, counts: Counter[str]) -> str:
    return f"{what}: " + (", ".join(f"{name} ×{count}" for name, count in sorted(counts.items())) or "none")
