"""Confidence interval of p99: a block bootstrap over the queries of a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.problem.pipeline import Plan

BLOCKS = 10
SMALL_SAMPLE_FACTOR = 2.262 / 1.960 * (10 / 9) ** 0.5
"""Student's quantile over the normal one, and the variance lost, with only ten blocks."""
BOOTSTRAP_DRAWS = 200


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """A 95 % interval of the percentile, in seconds."""

    low_s: float
    high_s: float


def bootstrap_interval(estimator: Estimator, plan: Plan, rng: np.random.Generator) -> ConfidenceInterval:
    """Return a 95 % interval of the percentile by a block bootstrap over the sample.

    Consecutive queries wait in the same queue, so ten blocks are drawn rather than single queries. The interval is too
    narrow if the sample is short or the load high, because it cannot know bursts that the sample lacks.
    """
    seconds = estimator.compute_latencies(plan)
    blocks = np.array_split(seconds, min(BLOCKS, seconds.size))
    draws = [
        np.quantile(
            np.concatenate([blocks[i] for i in rng.integers(0, len(blocks), len(blocks))]), estimator.percentile
        )
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    tail_s = estimator.tail_latency(plan)
    low_s, high_s = tail_s + (np.quantile(draws, [0.025, 0.975]) - tail_s) * SMALL_SAMPLE_FACTOR
    return ConfidenceInterval(max(float(low_s), float(seconds.min())), float(high_s))
