"""A policy over time as data: the chain and the gates of every stage, and their form as simulation arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray
from unfold_cascade.temporal.simulation.trajectories import PolicyArrays

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class StagePolicy:
    """How one stage decides.

    Attributes:
        chain: Model numbers from cheap to expensive.
        spans: For every model but the last, the probabilities ``(lo, hi)`` at which the next model is evaluated.
        cut: Probability from which the last model moves the entity on.
        owned: The spans that replace ``spans`` where evaluating the next model needs no purchase, because its
            features are paid for and still valid; empty if they are the same.
    """

    chain: tuple[int, ...]
    spans: tuple[Span, ...]
    cut: float
    owned: tuple[Span, ...] = ()

    def with_cut(self, cut: float) -> StagePolicy:
        """Replace the final cut."""
        return replace(self, cut=cut)


Policy = tuple[StagePolicy, ...]


def build_policy_arrays(policy: Sequence[StagePolicy], parallel: BoolArray) -> PolicyArrays:
    """Lay out a policy as arrays, short chains padded with -1.

    Args:
        policy: The S stages.
        parallel: (S,) stages that are evaluated at every hour.
    """
    longest = max(len(stage.chain) for stage in policy)
    chain = np.full((len(policy), longest), -1, dtype=np.int64)
    cuts = np.zeros((4, len(policy), longest))
    for s, stage in enumerate(policy):
        final, length = ((stage.cut, stage.cut),), len(stage.chain)
        chain[s, :length] = stage.chain
        cuts[:2, s, :length] = np.array(stage.spans + final).T
        cuts[2:, s, :length] = np.array((stage.owned or stage.spans) + final).T
    return PolicyArrays(chain, cuts[0], cuts[1], parallel, cuts[2:])


def single_model_policy(model: int, cut: float = np.inf) -> Policy:
    """Build the policy of one stage with one model."""
    return (StagePolicy((model,), (), cut),)


ALWAYS_EVALUATED: BoolArray = np.array([True])
