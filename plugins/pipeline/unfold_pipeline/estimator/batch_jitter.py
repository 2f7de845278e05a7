"""Service-time variability: the percentile of a plan if batches vary as profiled, not at the mean of their size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.replica_schedule import build_observed_schedule
from unfold_pipeline.estimator.simulator import get_trace_duration, simulate_schedules
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.problem.latency_profile import BatchTiming
from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.problem.problem import LatencySources

DRAWN_FACTORS = 4096


def draw_service_factors(timings: Sequence[BatchTiming] | None, index: int, seed: int) -> FloatArray:
    """Draw service times over their mean for many batches of a stage from its profile.

    Args:
        timings: profile of the stage; without one, the service time is constant.
        index: the stage, which selects the random stream.
        seed: seed of the run.

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
