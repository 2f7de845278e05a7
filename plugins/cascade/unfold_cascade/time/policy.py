"""A policy over time as data, and how its ladder of cuts looks to the simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade.arrays import BoolArray
from unfold_cascade.time.moves import Ladder

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Step:
    """One stage: ``chain`` of model numbers, a span ``(lo, hi)`` for each but the last, and the last one's ``cut``."""

    chain: tuple[int, ...]
    spans: tuple[Span, ...]
    cut: float

    def with_cut(self, cut: float) -> Step:
        """Return the step with another final cut."""
        return Step(self.chain, self.spans, cut)


Policy = tuple[Step, ...]


def ladder(policy: Sequence[Step], parallel: BoolArray) -> Ladder:
    """Return the arrays of a policy, its chains filled up with -1."""
    longest = max(len(step.chain) for step in policy)
    chain = np.full((len(policy), longest), -1, dtype=np.int64)
    cuts = np.zeros((2, len(policy), longest))
    for s, step in enumerate(policy):
        own = (*step.spans, (step.cut, step.cut))
        chain[s, : len(own)] = step.chain
        cuts[:, s, : len(own)] = np.array(own).T
    return Ladder(chain, cuts[0], cuts[1], parallel)
