"""Diagnostics of a plan: where the time goes, rejected savings, the loss of a replica."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import BoolArray, CountArray, FloatArray
from unfold_pipeline.estimator.estimator import Estimator, queue_arrivals
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.problem.pipeline import Plan, remove_replica
from unfoldkit.queueing import kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """Where the time of a stage goes.

    Attributes:
        p99_s, mean_s: Percentile and mean of the time that queries spend at the stage.
        waiting_s: Mean time beyond that of a query served at once and alone.
        load: Fraction of the capacity with full batches that the mean rate uses.
        critical_share: Fraction of the slowest queries that spend most of their time here.
    """

    p99_s: float
    mean_s: float
    waiting_s: float
    load: float
    critical_share: float


@dataclass(frozen=True, slots=True)
class RejectedSaving:
    """The plan with one replica less at a stage, its saving in $/h, and its percentile in seconds.

    If a plan must survive a loss, it is the percentile after the worst loss, infinite if a stage has no replica left.
    """

    stage: int
    saving: float
    tail_s: float


def measure_stage_times(checker: SloChecker, plan: Plan) -> list[StageTime]:
    """Return the times of each stage on the sample with the largest percentile."""
    estimator = checker.estimators[checker.find_worst_sample(plan)]
    stays = _measure_stays(estimator, plan)
    critical = _measure_critical_shares(checker, stays, _find_slowest_queries(stays, estimator))
    times = []
    for index, (config, option) in enumerate(zip(plan, checker.pipeline.chosen_options(plan), strict=True)):
        is_visited = stays.done_s[index] > -np.inf
        seconds = stays.done_s[index][is_visited] - stays.ready_s[index][is_visited]
        seconds = seconds if is_visited.any() else np.zeros(1)
        times.append(
            StageTime(
                p99_s=float(np.quantile(seconds, 0.99)),
                mean_s=float(seconds.mean()),
                waiting_s=max(0.0, float(seconds.mean()) - float(option.latency_s[1])),
                load=checker.stage_rate(index) / (config.replicas * option.throughput(config.batch)),
                critical_share=critical[index],
            )
        )
    return times


def list_rejected_savings(checker: SloChecker, plan: Plan) -> list[RejectedSaving]:
    """Return the plans with one replica less, largest saving first; if the plan is optimal, each misses the SLO."""
    savings = [
        RejectedSaving(
            index,
            checker.pipeline.stage_price(index, replace(config, replicas=1)),
            _measure_worst_loss(checker, remove_replica(plan, index)),
        )
        for index, config in enumerate(plan)
        if config.replicas > 1
    ]
    return sorted(savings, key=lambda rejected: (-rejected.saving, rejected.stage))


def simulate_replica_losses(checker: SloChecker, plan: Plan) -> list[float | None]:
    """Return the percentile in seconds after each stage has lost a replica; ``None`` for its only one."""
    return [
        checker.tail_latency(remove_replica(plan, index)) if config.replicas > 1 else None
        for index, config in enumerate(plan)
    ]


def _measure_worst_loss(checker: SloChecker, plan: Plan) -> float:
    """Return the percentile of a plan, or the largest one after a loss that it must survive."""
    losses = (math.inf if loss is None else checker.tail_latency(loss) for loss in checker.list_losses(plan))
    return max(checker.tail_latency(plan), *losses, 0.0)


@dataclass(frozen=True, slots=True)
class _Stays:
    """Per stage: when each query could first be served, and when its last item left; -inf for no visit."""

    ready_s: list[FloatArray]
    done_s: list[FloatArray]


def _measure_stays(estimator: Estimator, plan: Plan) -> _Stays:
    sample = estimator.sample
    stays = _Stays([], [])
    for index, visits in enumerate(sample.visits):
        parents = [edge.parent for edge in estimator.pipeline.stages[index].parents]
        ready_s, done_s = np.full(sample.size, -np.inf), np.full(sample.size, -np.inf)
        times, items = queue_arrivals(sample, index, {p: estimator.complete_flow(p, plan) for p in parents})
        kernel.record_completions(times, items, times.size, visits.query, ready_s)
        flow = estimator.complete_flow(index, plan)
        kernel.record_completions(flow.times, flow.items, flow.times.size, visits.query, done_s)
        stays.ready_s.append(ready_s)
        stays.done_s.append(done_s)
    return stays


def _find_slowest_queries(stays: _Stays, estimator: Estimator) -> CountArray:
    total_s = np.max(stays.done_s, axis=0) - estimator.sample.arrivals
    return np.argsort(-total_s, kind="stable")[: max(1, estimator.max_late)]


def _measure_critical_shares(checker: SloChecker, stays: _Stays, queries: CountArray) -> list[float]:
    """Return the fraction of queries for which each stage takes most of the time on their critical path."""
    ends = np.array([done_s[queries] for done_s in stays.done_s])
    begins = np.array([ready_s[queries] for ready_s in stays.ready_s])
    seconds = np.subtract(ends, begins, out=np.zeros_like(ends), where=np.isfinite(ends))
    is_critical = ends == ends.max(axis=0)
    for index in range(len(ends) - 1, -1, -1):
        for parent, is_last in _find_last_parents(checker, index, ends):
            is_critical[parent] |= is_critical[index] & is_last
    slowest = np.argmax(np.where(is_critical, seconds, -1.0), axis=0)
    return [float((slowest == index).mean()) for index in range(len(ends))]


def _find_last_parents(checker: SloChecker, index: int, ends: FloatArray) -> Iterator[tuple[int, BoolArray]]:
    """Yield each parent of a stage, and for which queries it was the last to finish."""
    parents = [edge.parent for edge in checker.pipeline.stages[index].parents]
    if parents:
        latest = ends[parents].max(axis=0)
        for parent in parents:
            yield parent, (ends[parent] == latest) & np.isfinite(latest)
