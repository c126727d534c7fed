"""`make chaos`: runs the system under faults and checks every promise against what its clients saw.

python -m tests.chaos [--seed N] [--rounds K | --minutes M] [--setting sqlite|postgres|all] [--seconds S]
Without --seed the kept runs come first, then new ones. The exit code is 1 when a promise was broken; the history, the
logs and the files of such a run are then in var/chaos/<setting>-<seed>/.
"""

import argparse
import asyncio
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ops.envoy import ROOT
from tests.chaos.faults import Fault, plan
from tests.chaos.judge import Judgement, judge, table
from tests.chaos.round import Planner, run
from tests.chaos.seeds import KEPT, Kept
from tests.chaos.system import LEASE_S, SETTINGS

FOLDER = ROOT / "var" / "chaos"
SECONDS = 15.0  # of faults in one run
NEW = 3  # runs with new seeds when nothing else is asked for


@dataclass(frozen=True)
class Job:
    """One run to do."""

    setting: str
    seed: int
    planner: Planner

    @property
    def name(self) -> str:
        return f"{self.setting}-{self.seed}"


async def one(job: Job) -> Judgement:
    """Does one run and judges it; what it leaves on disk is kept only when a promise was broken."""
    folder = FOLDER / job.name
    shutil.rmtree(folder, ignore_errors=True)
    say(f"{job.setting}, seed {job.seed}")
    outcome = await run(job.seed, SETTINGS[job.setting], folder, job.planner, say)
    judgement = judge(outcome)
    outcome.history.write(folder / "history.jsonl")
    for name, violation in judgement.violations():
        say(f"  BROKEN  {name}: {violation}")
    if not judgement.broken:
        shutil.rmtree(folder)
    return judgement


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """Yields what to run: the seed asked for, or the kept runs and then new ones."""
    chosen = list(SETTINGS) if arguments.setting == "all" else [arguments.setting]
    first, until, count = arguments.seed, time.monotonic() + 60 * (arguments.minutes or 0), 0
    rounds = arguments.rounds or (NEW if first is None else 1)
    if first is None:
        first = random.SystemRandom().randrange(10**6)
        yield from (Job(name, kept.seed, partial(_kept, kept)) for name in chosen for kept in KEPT[name])
    while (time.monotonic() < until) if arguments.minutes else (count < rounds):
        for name in chosen:
            seed = first + count
            yield Job(name, seed, partial(plan, seed, seconds=arguments.seconds, lease=LEASE_S))
        count += 1


def _kept(kept: Kept, _: Sequence[str]) -> Sequence[Fault]:
    say(f"  kept because it showed: {kept.shows}")
    return kept.faults


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one; with more --rounds, the next ones count up")
    parser.add_argument("--rounds", type=int, help=f"new runs of each setting; {NEW}, or 1 with --seed")
    parser.add_argument("--minutes", type=float, help="go on with new runs for so long instead")
    parser.add_argument("--setting", choices=[*SETTINGS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of faults in each run")
    arguments = parser.parse_args()
    total, bad = Judgement({}), []
    for job in jobs(arguments):
        judgement = asyncio.run(one(job))
        total = total.and_(judgement)
        if judgement.broken:
            bad.append(job.name)
    say(table(total))
    for name in bad:
        say(f"Broken by {name}: see {FOLDER / name}; once it is mended, keep the run in tests/chaos/seeds.py.")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
