"""What queries ask for: an accuracy and a latency each (SUSHI's q = (A_t, L_t)), drawn or listed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_supernet.accelerator import scheduler
from unfold_supernet.accelerator.latency_table import Known
from unfold_supernet.arrays import Floats


@dataclass(frozen=True, slots=True)
class Drawn:
    """Levels in [0, 1] of the target that the policy goes by, and of the other one, by query."""

    levels: Floats
    others: Floats

    def targets(self, known: Known, policy: str) -> tuple[Floats, Floats]:
        """Return by query what ``policy`` goes by, and the other target: percent and seconds, or the other way round.

        They lie between the least and the most that the nets have on the machine of ``known`` without a buffer.
        """
        other = next(name for name in scheduler.POLICIES if name != policy)
        return scheduler.targets(self.levels, known, policy), scheduler.targets(self.others, known, other)


@dataclass(frozen=True, slots=True)
class Listed:
    """Targets as they were given, by query: percent, and seconds."""

    accuracies: Floats
    deadlines: Floats

    def targets(self, known: Known, policy: str) -> tuple[Floats, Floats]:  # noqa: ARG002 - as those that are drawn
        """Return by query what ``policy`` goes by, and the other target."""
        own, other = self.accuracies, self.deadlines
        return (own, other) if scheduler.POLICIES[policy] == scheduler.ACCURACY else (other, own)


Asked = Drawn | Listed
"""A stream of queries."""


def drawn(count: int, pattern: str, seed: int, hold: float = 20.0) -> Drawn:
    """Return a stream whose two targets are drawn apart from each other, anew or kept for a while."""
    levels = scheduler.levels(count, pattern, seed, hold)
    others = np.random.default_rng([seed, 0xFA58]).random(count)
    return Drawn(levels, others if pattern == "random" else scheduler.held(others, levels))
