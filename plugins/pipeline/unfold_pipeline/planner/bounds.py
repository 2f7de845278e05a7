"""Lower bounds for the search: the least replicas of a stage and the least time of a query, whatever the others do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.estimator import TIME_TOLERANCE_S, Estimator
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.problem.pipeline import Pipeline, Plan, compute_unavoidable_time, count_required_replicas
from unfoldkit.queueing import kernel
from unfoldkit.queueing.stage import Goal, Server, serve

MAX_REPLICAS = 1 << 14
"""Stands for a stage that no number of replicas can serve in time."""


class BoundKey(NamedTuple):
    """A stage with a hardware option and maximum batch size that has ``budget_s`` seconds."""

    stage: int
    option: int
    batch: int
    budget_s: float


class StageRun(NamedTuple):
    """A stage that is simulated on its own, fed with the raw arrivals of one sample."""

    sample: int
    stage: int
    option: int
    batch: int
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBounds:
    """Cached lower bounds on the replicas of single stages, over all samples.

    *Sharp*: the stage is fed with the raw arrivals and must finish each item within the time that the other stages
    leave. Not proven: batches that leave a stage together can be served better than raw arrivals. *Proven*: a fluid
    server of the same throughput drops no more queries than any schedule. A replica that may be lost comes on top, as
    the others must do without it.

    Attributes:
        pipeline: The stages.
        estimators: An estimator per sample.
        spares: Replicas of a stage that may be lost.
        sharp, proven: Bounds computed so far.
        tail_ranges_s: For a stage on its own, the largest budget that it misses and the least that it meets.
    """

    pipeline: Pipeline
    estimators: tuple[Estimator, ...]
    spares: int = 0
    sharp: dict[BoundKey, int] = field(default_factory=dict)
    proven: dict[BoundKey, int] = field(default_factory=dict)
    tail_ranges_s: dict[StageRun, tuple[float, float]] = field(default_factory=dict)

    def bound_sharp(self, stage: int, option: int, batch: int, budget_s: float) -> int:
        """Return the least replicas of a stage on its own within ``budget_s``, or ``MAX_REPLICAS`` if none suffice."""
        key = BoundKey(stage, option, batch, round(budget_s, 9))
        if key not in self.sharp:
            self.sharp[key] = self._bound_samples(key, lambda number: self._bound_sample_sharp(number, key))
        return self.sharp[key]

    def bound_proven(self, stage: int, option: int, batch: int, budget_s: float) -> int:
        """Return a proven lower bound on the replicas of a stage with batches up to ``batch``."""
        key = BoundKey(stage, option, batch, round(budget_s, 9))
        if key not in self.proven:
            self.proven[key] = self._bound_samples(key, lambda number: _bound_fluid(self.estimators[number], key))
        return self.proven[key]

    def bound_load(self, stage: int, option: int, batch: int, budget_s: float) -> int:
        """Return the replicas that serve all but the queries that may be late: quick, and never above other bounds."""
        throughput = self.pipeline.stages[stage].options[option].max_throughput(batch)
        counts = (_bound_sample_load(estimator, stage, throughput, budget_s) for estimator in self.estimators)
        return self.spares + max(counts)

    def bound_cost(self, slo_s: float) -> float:
        """Return $/h below which no plan can meet the SLO."""
        stage_s = [min(option.min_latency_s for option in stage.options) for stage in self.pipeline.stages]
        unavoidable = compute_unavoidable_time(self.pipeline, stage_s)
        total = 0.0
        for index, stage in enumerate(self.pipeline.stages):
            budget_s = slo_s - unavoidable.upstream_s[index] - unavoidable.downstream_s[index] + TIME_TOLERANCE_S
            total += min(
                option.usd_per_hour * self.bound_proven(index, number, option.max_batch, budget_s)
                for number, option in enumerate(stage.options)
            )
        return total

    def _bound_samples(self, key: BoundKey, bound_sample: Callable[[int], int]) -> int:
        is_slow = self.pipeline.stages[key.stage].options[key.option].min_latency_s > key.budget_s
        # a stage may be too slow if few enough queries visit it
        if is_slow and any(_count_queries(estimator, key.stage) > estimator.max_late for estimator in self.estimators):
            return MAX_REPLICAS
        return self.spares + max(bound_sample(number) for number in range(len(self.estimators)))

    def _bound_sample_sharp(self, number: int, key: BoundKey) -> int:
        estimator = self.estimators[number]
        option = estimator.pipeline.stages[key.stage].options[key.option]
        visits = estimator.sample.visits[key.stage]
        if not visits.is_unique or visits.query.size == 0:
            return 1
        remaining_s = compute_remaining_times(estimator, key.stage, key.stage + 1)
        if np.count_nonzero(remaining_s > key.budget_s - option.min_latency_s) > estimator.max_late:
            return MAX_REPLICAS

        def suffices(replicas: int) -> bool:
            return self._meets_budget(StageRun(number, key.stage, key.option, key.batch, replicas), key.budget_s)

        load = estimator.sample.rate * estimator.sample.share(key.stage)
        return find_least_count(suffices, count_required_replicas(load, option.max_throughput(key.batch)))

    def _meets_budget(self, run: StageRun, budget_s: float) -> bool:
        """Return whether a stage on its own meets a budget; results of other budgets save simulations."""
        missed_s, met_s = self.tail_ranges_s.get(run, (-math.inf, math.inf))
        if missed_s < budget_s < met_s:
            tail_s = _simulate_alone(self.estimators[run.sample], run, budget_s)
            missed_s, met_s = (budget_s, met_s) if tail_s is None else (math.nextafter(tail_s, -math.inf), tail_s)
            self.tail_ranges_s[run] = missed_s, met_s
        return budget_s >= met_s


def build_replica_bounds(checker: SloChecker) -> ReplicaBounds:
    """Return the bounds of the plans that a checker accepts, with nothing computed yet."""
    return ReplicaBounds(pipeline=checker.pipeline, estimators=checker.estimators, spares=checker.spares)


def compute_remaining_times(estimator: Estimator, stage: int, first_open: int) -> FloatArray:
    """Return the least seconds that the items of a stage need after it, shape (items,).

    The sample fixes the route of each query, so its remaining stages are known; no batch is faster than the fastest of
    the fastest hardware. Stages before ``first_open`` count as nothing.
    """
    children = tuple(child for child in estimator.pipeline.children(stage) if child >= first_open)
    remaining_s = estimator.cache.remaining_s.get((stage, children))
    if remaining_s is None:
        remaining_s = np.zeros(estimator.sample.visits[stage].query.size)
        for child in children:
            visits = estimator.sample.visits[child]
            min_s = min(option.min_latency_s for option in estimator.pipeline.stages[child].options)
            child_s = compute_remaining_times(estimator, child, child + 1) + min_s
            kernel.raise_to_children(visits.first_child[stage], visits.child_count[stage], child_s, remaining_s)
        estimator.cache.remaining_s[stage, children] = remaining_s
    return remaining_s


def is_infeasible_prefix(estimator: Estimator, plan: Plan, slo_s: float) -> bool:
    """Return whether more queries than allowed are late, whatever the stages after ``plan`` do.

    ``plan`` fixes the first stages, which are simulated; a query counts once, wherever it is late.
    """
    finish = estimator.sample.arrivals.copy()
    for stage in range(len(plan)):
        flow = estimator.complete_flow(stage, plan)
        remaining_s = compute_remaining_times(estimator, stage, len(plan))
        query = estimator.sample.visits[stage].query
        kernel.record_earliest_ends(flow.times, flow.items, flow.times.size, query, remaining_s, finish)
    return kernel.count_late(finish, estimator.sample.arrivals, slo_s + TIME_TOLERANCE_S) > estimator.max_late


def find_least_count(suffices: Callable[[int], bool], start: int = 1) -> int:
    """Return the least count that suffices, by doubling and bisection from ``start``; ``MAX_REPLICAS`` if none does.

    ``suffices`` must be monotone.
    """
    low, high = 0, max(1, start)
    while not suffices(high):
        low, high = high, high * 2
        if high > MAX_REPLICAS:
            return MAX_REPLICAS
    if low == 0 and high > 1 and not suffices(high - 1):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _simulate_alone(estimator: Estimator, run: StageRun, budget_s: float) -> float | None:
    """Return the least budget in seconds that a stage on its own meets, or ``None`` if it is above ``budget_s``."""
    stage, visits = estimator.pipeline.stages[run.stage], estimator.sample.visits[run.stage]
    due_s = visits.origin_s - compute_remaining_times(estimator, run.stage, run.stage + 1)
    order = np.arange(visits.query.size, dtype=np.int32)
    server = Server(stage.options[run.option].latency_s[: run.batch + 1], run.replicas, stage.max_wait_s)
    flow = serve(visits.origin_s, order, server, Goal(due_s, budget_s, estimator.max_late))
    estimator.cache.count_pass(flow)
    if not flow.ok:
        return None
    rank = flow.times.size - 1 - estimator.max_late
    return float(np.partition(flow.times - due_s[flow.items], rank)[rank]) if rank >= 0 else -math.inf


def _count_queries(estimator: Estimator, stage: int) -> int:
    query = estimator.sample.visits[stage].query
    return int(np.count_nonzero(np.diff(query, prepend=-1)))


def _bound_sample_load(estimator: Estimator, stage: int, throughput: float, budget_s: float) -> int:
    visits = estimator.sample.visits[stage]
    if not visits.is_unique or visits.query.size <= estimator.max_late:
        return 1
    seconds = float(visits.origin_s[-1] - visits.origin_s[0]) + budget_s
    items = visits.query.size - estimator.max_late
    return count_required_replicas(items / seconds, throughput) if seconds > 0 else 1


def _bound_fluid(estimator: Estimator, key: BoundKey) -> int:
    visits = estimator.sample.visits[key.stage]
    if not visits.is_unique:
        return 1
    throughput = estimator.pipeline.stages[key.stage].options[key.option].max_throughput(key.batch)

    def suffices(replicas: int) -> bool:
        drops = kernel.fluid_drops(visits.origin_s, 1 / (replicas * throughput), key.budget_s)
        return drops <= estimator.max_late

    return find_least_count(suffices, 1)
