"""How certain the percentile of a plan is: a block bootstrap over the sample, and batches that vary as profiled.

Resamples of a trace vary less than its traffic where its rate drifts or its bursts have a heavy tail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.estimator.replica_schedule import build_observed_schedule
from unfold_pipeline.estimator.simulator import get_trace_duration, simulate_schedules
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.problem.latency_profile import BatchTiming
from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.problem.problem import LatencySources

DRAWN_FACTORS = 4096
BLOCKS = 10
SMALL_SAMPLE_FACTOR = 2.262 / 1.960 * (10 / 9) ** 0.5
"""Student's quantile over the normal one, and the variance lost, with only ten blocks."""
BOOTSTRAP_DRAWS = 200
SCALE_FACTOR = 16
"""Windows of a trace at the coarse scale, and windows at the fine scale in each of them."""
DRIFT_HURST = 0.67
"""Independent windows exceed it in one of a thousand traces."""
HEAVY_TAIL_INDEX = 2.0
"""Below it, bursts have no variance."""
MIN_BUSY_WINDOWS = 100


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


def measure_hurst(arrivals: FloatArray) -> float:
    """Return the Hurst parameter of the counts of a trace by their aggregated variance; 0.5 without memory or drift.

    Source: Taqqu, Teverovsky and Willinger, "Estimators for long-range dependence" (Fractals, 1995).
    """
    windows = SCALE_FACTOR**2
    fine = np.histogram(arrivals, windows, (0.0, float(arrivals[-1])))[0].astype(np.float64)
    coarse = fine.reshape(SCALE_FACTOR, SCALE_FACTOR).sum(axis=1)
    ratio = float(coarse.var(ddof=1)) / max(SCALE_FACTOR * float(fine.var(ddof=1)), 1e-12)
    return 0.5 + 0.5 * math.log(max(ratio, 1e-12), SCALE_FACTOR)


def estimate_tail_index(arrivals: FloatArray) -> float:
    """Return the tail index of the queries in windows of the mean gap; infinite where too few windows are busy.

    Source: Hill, "A simple general approach to inference about the tail of a distribution" (Ann. Statistics, 1975).
    """
    window = (arrivals * (arrivals.size / float(arrivals[-1]))).astype(np.int64)
    counts = np.sort(np.unique(window, return_counts=True)[1])[::-1]
    if counts.size < MIN_BUSY_WINDOWS:
        return math.inf
    largest = math.isqrt(counts.size)
    excess = float(np.log(counts[:largest] / counts[largest]).mean())
    return 1 / excess if excess else math.inf


def draw_service_factors(timings: Sequence[BatchTiming] | None, index: int, seed: int) -> FloatArray:
    """Draw service times over their mean for many batches of a stage from its profile.

    Args:
        timings: Profile of the stage; without one, the service time is constant.
        index: The stage, which selects the random stream.
        seed: Seed of the run.

    Returns:
        Factors on the mean service time; the number of factors is a power of two.
    """
    if not timings:
        return np.ones(1)
    return np.random.default_rng([seed, 6, index]).choice(np.array(timings[0].spread), DRAWN_FACTORS)


def simulate_jitter(checker: SloChecker, plan: Plan, sources: LatencySources, seed: int) -> float | None:
    """Return the percentile in seconds with batches that vary as profiled, the largest over the samples.

    Returns:
        ``None`` if no stage of the plan runs on hardware that was profiled here.
    """
    stages, options = checker.pipeline.stages, checker.pipeline.chosen_options(plan)
    timings = [
        sources.profiles[stage.name]
        if option.hardware == sources.machine and stage.name in sources.measured_stages
        else None
        for stage, option in zip(stages, options, strict=True)
    ]
    if not any(timings):
        return None
    factors = [draw_service_factors(profile, index, seed) for index, profile in enumerate(timings)]
    worst_s = 0.0
    for estimator in checker.estimators:
        end_s = get_trace_duration(estimator.sample)
        schedules = [build_observed_schedule(config.replicas, (), index, end_s) for index, config in enumerate(plan)]
        trace = simulate_schedules(checker.pipeline, estimator.sample, plan, schedules, factors)
        worst_s = max(worst_s, estimator.rank_percentile(trace.latencies))
    return worst_s
