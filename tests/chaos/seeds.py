"""Runs that once showed a failure. They are run for ever, before any new one.

The faults are written out, so that a change to how plans are made does not change what was kept. How processes
interleave differs from run to run: a kept run makes its failure likely again, not certain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.faults import Fault


@dataclass(frozen=True)
class Kept:
    """A run to be done again: the seed of its clients and workers, its faults, and what it showed."""

    seed: int
    shows: str
    faults: Sequence[Fault]


KEPT: Mapping[str, Sequence[Kept]] = {
    "sqlite": (),
    "postgres": (
        Kept(
            20,
            "PostgreSQL away for longer than the lease while tasks were accepted: one appended under a name that was "
            "given up or not yet joined under, or claimed by an answer that never came, was worked on by nobody.",
            (
                Fault(0.5, "pause", "terminal-2", 1.2),
                Fault(4.9, "stop", "conductor-3", 0.5),
                Fault(6.2, "kill", "terminal", 0.2),
                Fault(11.2, "cut", "terminal-2", 0.9),
                Fault(11.5, "cut", "store-3", 4.5),
                Fault(12.8, "stop", "postgres", 1.0),
                Fault(14.6, "kill", "postgres", 1.1),
                Fault(14.9, "kill", "report_writer", 1.3),
            ),
        ),
    ),
}
