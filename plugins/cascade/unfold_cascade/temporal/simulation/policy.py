"""A policy over time as data, and how its ladder of cuts looks to the simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray
from unfold_cascade.temporal.simulation.trajectories import Ladder

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Step:
    """One stage: ``chain`` of model numbers, a span ``(lo, hi)`` for each but the last, and the last one's ``cut``.

    ``owned`` are the spans that count in place of ``spans`` where the next model would buy nothing, as what it reads is
    paid and still valid; none where they are the same.
    """

    chain: tuple[int, ...]
    spans: tuple[Span, ...]
    cut: float
    owned: tuple[Span, ...] = ()

    def with_cut(self, cut: float) -> Step:
        """Return the step with another final cut."""
        return replace(self, cut=cut)


Policy = tuple[Step, ...]


def ladder(policy: Sequence[Step], parallel: BoolArray) -> Ladder:
    """Return the arrays of a policy, its chains filled up with -1."""
    longest = max(len(step.chain) for step in policy)
    chain = np.full((len(policy), longest), -1, dtype=np.int64)
    cuts = np.zeros((4, len(policy), longest))
    for s, step in enumerate(policy):
        last, length = ((step.cut, step.cut),), len(step.chain)
        chain[s, :length] = step.chain
        cuts[:2, s, :length] = np.array(step.spans + last).T
        cuts[2:, s, :length] = np.array((step.owned or step.spans) + last).T
    return Ladder(chain, cuts[0], cuts[1], parallel, cuts[2:])
