"""What batches do to a plan that take unevenly long: a plan counts on the mean of each size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.replica_schedule import as_seen
from unfold_pipeline.estimator.simulator import carried, length
from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.problem.build import by_profile
from unfold_pipeline.problem.latency_profile import Point, stored
from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.report.plan import milliseconds
from unfold_pipeline.schema.models import PipelineSpec, machine
from unfoldkit.api import Run

Times = NDArray[np.float64]
LONG = 4096


def factors(points: Sequence[Point] | None, index: int, run: Run) -> Times:
    """Return how many times the mean of its size each of many batches of a stage takes, drawn from its profile."""
    if not points:
        return np.ones(1)
    return np.random.default_rng([run.seed, 6, index]).choice(np.array(points[0].spread), LONG)


def tail(judge: Judge, plan: Plan, spec: PipelineSpec, run: Run) -> float | None:
    """Return the percentile in s with batches as uneven as profiled; None where the plan runs nothing of a profile.

    Of several samples it is the largest.
    """
    names, here = [stage.name for stage in judge.pipeline.stages], machine(spec)
    runs = [option.hardware == here for option in judge.pipeline.options(plan)]
    found = [
        stored(name, run) if on and by_profile(name, spec, run) else None for name, on in zip(names, runs, strict=True)
    ]
    if not any(found):
        return None
    drawn = [factors(points, index, run) for index, points in enumerate(found)]
    worst = 0.0
    for estimator in judge.estimators:
        sample = estimator.sample
        ledgers = [as_seen(choice.replicas, (), index, length(sample)) for index, choice in enumerate(plan)]
        seconds = carried(judge.pipeline, sample, plan, ledgers, drawn).latencies
        worst = max(worst, estimator.ranked(seconds))
    return worst


def line(judge: Judge, plan: Plan, spec: PipelineSpec, run: Run) -> tuple[tuple[str, str], ...]:
    """Return the line of a report that tells it, if there is something to tell."""
    found = tail(judge, plan, spec, run)
    if found is None:
        return ()
    told = f"p99 is {milliseconds(found)} with batches as uneven as profiled"
    late = f", {milliseconds(found - judge.limit)} over the target: plan with a lower slo.p99"
    return (("uneven", told + (late if found > judge.limit else "")),)
