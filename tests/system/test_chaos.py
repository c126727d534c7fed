"""A short chaos run of each setting; `make chaos` does more and longer ones (docs/chaos.md)."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.faults import plan
from tests.chaos.judge import judge, table
from tests.chaos.round import run
from tests.chaos.system import LEASE_S, SETTINGS

SECONDS = 6.0  # of faults
DEADLINE_S = 8  # of each task
# Chosen for what they do. sqlite: Conductor, Terminal and Envoy killed, the disk full. postgres: within two seconds two
# replicas and PostgreSQL are killed, and the third is paused for longer than its lease.
SEEDS = {"sqlite": 87, "postgres": 2994}


@pytest.mark.timeout(110)
@pytest.mark.parametrize("setting", SETTINGS)
async def test_every_promise_is_kept_under_faults(setting: str, tmp_path: Path) -> None:
    system = replace(SETTINGS[setting], deadline=DEADLINE_S)
    planner = partial(plan, SEEDS[setting], seconds=SECONDS, lease=LEASE_S)
    outcome = await run(SEEDS[setting], system, tmp_path / "run", planner, print)
    judgement = judge(outcome)
    print(table(judgement))  # noqa: T201 - pytest shows it when the test fails
    outcome.history.write(tmp_path / "history.jsonl")
    assert not list(judgement.violations())
    assert all(verdict.checked for verdict in judgement.verdicts.values())
