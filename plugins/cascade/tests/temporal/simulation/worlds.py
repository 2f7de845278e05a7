"""Random worlds for tests of the simulation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unfold_cascade.temporal.data.features import PurchaseTerms
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.simulation.policy import StagePolicy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import (
    ModelScores,
    PolicyArrays,
    Trajectories,
    simulate,
    simulate_reference,
)

SEEDS = range(60)


@dataclass(frozen=True, slots=True)
class World:
    """Random entities, model scores, a policy and transitions."""

    timeline: Timeline
    scores: ModelScores
    policy: PolicyArrays
    transitions: Transitions

    def simulate(self) -> Trajectories:
        """Simulate with the compiled kernel."""
        return simulate(self.timeline, self.scores, self.policy, self.transitions)

    def simulate_reference(self) -> Trajectories:
        """Simulate with the reference implementation."""
        return simulate_reference(self.timeline, self.scores, self.policy, self.transitions)


def draw_timeline(rng: np.random.Generator, patients: int = 12, longest: int = 14) -> Timeline:
    """Draw the hours of patients, some missing."""
    sizes = rng.integers(1, longest, patients)
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    steps = rng.integers(1, 3, int(sizes.sum())).astype(np.float64)
    hour = np.concatenate([np.cumsum(steps[a:b]) for a, b in pairwise(starts)])
    return Timeline(starts, hour)


def draw_scores(rng: np.random.Generator, hours: int, models: int = 5, groups: int = 3) -> ModelScores:
    """Draw probabilities, needs and prices."""
    needs = rng.integers(1, 1 << groups, models).astype(np.int64)
    names = tuple(f"g{g}" for g in range(groups))
    valid = rng.choice([0.0, 1.0, 2.0, 5.0], groups)
    bought = PurchaseTerms(names, rng.integers(1, 9, groups).astype(np.float64), valid)
    return ModelScores(rng.random((models, hours)).astype(np.float32), needs, bought)


def draw_policy(rng: np.random.Generator, models: int = 5, stages: int = 3) -> PolicyArrays:
    """Draw a policy of a few stages, some of them parallel."""
    steps = tuple(draw_stage(rng, models) for _ in range(stages))
    return build_policy_arrays(steps, rng.random(stages) < 0.4)


def draw_stage(rng: np.random.Generator, models: int) -> StagePolicy:
    """Draw one stage of one to three models."""
    chain = tuple(int(model) for model in rng.permutation(models)[: rng.integers(1, 4)])
    spans, owned = (
        tuple((float(a), float(b)) for a, b in np.sort(rng.random((len(chain) - 1, 2)), axis=1)) for _ in range(2)
    )
    return StagePolicy(chain, spans, float(rng.random()), owned if rng.random() < 0.5 else ())


def draw_transitions(rng: np.random.Generator) -> Transitions:
    """Draw transition rules."""
    return Transitions(
        entry="sticky" if rng.random() < 0.5 else "reset",
        confirm=int(rng.integers(1, 4)),
        advance="same-step" if rng.random() < 0.5 else "next-step",
        alarm="latched" if rng.random() < 0.5 else "hourly",
    )


def draw_world(seed: int) -> World:
    """Draw a world."""
    rng = np.random.default_rng(seed)
    timeline = draw_timeline(rng)
    return World(timeline, draw_scores(rng, len(timeline.hour)), draw_policy(rng), draw_transitions(rng))
