"""Fresh samples of the same traffic: on which share of them a plan meets the SLO, and how certain that share is.

A plan that is the cheapest on one sample only just meets its target on that sample. Traffic of a process or profile is
drawn again, and a trace is resampled in blocks (:func:`unfold_pipeline.problem.sample.draw_fresh_arrivals`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.sample import Sample, Sampler

Scenario = tuple[Sample, ...]
"""A fresh sample of each traffic of a spec."""
DRAWS = 24
MAX_DRAWS = 400
DRAWS_PER_MISS = 6.0
CERTAINTY = 0.9


@dataclass(frozen=True, slots=True)
class FreshShare:
    """On how many of ``draws`` fresh samples a plan meets the SLO, and the largest share that the traffic supports."""

    kept: int
    draws: int
    limit: float = 1.0

    @property
    def share(self) -> float:
        """The fraction of the drawn samples on which the plan met the SLO, at most the limit."""
        return min(self.kept / self.draws, self.limit)

    @property
    def lower_bound(self) -> float:
        """The share that is exceeded with a certainty of 90 %."""
        return min(bound_share(self.kept, self.draws), self.limit)


def bound_share(kept: int, draws: int) -> float:
    """Return the one-sided lower bound of Clopper and Pearson (Biometrika, 1934) for a binomial share."""
    if kept == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        tail = sum(math.comb(draws, k) * share**k * (1 - share) ** (draws - k) for k in range(kept, draws + 1))
        low, high = (share, high) if tail <= 1 - CERTAINTY else (low, share)
    return low


def count_draws(confidence: float | None) -> int:
    """Return how many fresh samples show a share of ``confidence``; without one, enough for a rough share."""
    return DRAWS if confidence is None else min(MAX_DRAWS, max(DRAWS, math.ceil(DRAWS_PER_MISS / (1 - confidence))))


def count_required(confidence: float, draws: int) -> int:
    """Return the least number of fresh samples to meet, so that the share exceeds ``confidence`` with certainty.

    It is all of them where so few draws cannot show more.
    """
    return next((kept for kept in range(1, draws) if bound_share(kept, draws) >= confidence), draws)


def draw_scenarios(samplers: Sequence[Sampler], draws: int, seed: int) -> list[Scenario]:
    """Return fresh samples of every traffic, the same ones for the same seed."""
    return [
        tuple(sampler(np.random.default_rng([seed, 8, draw, index])) for index, sampler in enumerate(samplers))
        for draw in range(draws)
    ]


def list_scenario_tails(pipeline: Pipeline, plan: Plan, scenarios: Sequence[Scenario]) -> FloatArray:
    """Return the percentile of a plan on each scenario, the largest over its samples, in seconds."""
    return np.array(
        [max(Estimator(pipeline, sample).tail_latency(plan) for sample in scenario) for scenario in scenarios]
    )


def measure_fresh_share(tails_s: FloatArray, slo_s: float, limit: float) -> FreshShare:
    """Return on how many scenarios the percentile meets the SLO; the traffic supports a share of ``limit``."""
    return FreshShare(int((tails_s <= slo_s).sum()), int(tails_s.size), limit)
