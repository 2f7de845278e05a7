"""The estimator: the latency of every query under a plan, stage by stage; only what changed is computed again.

It is the Estimator of InferLine (SoCC 2020): a discrete-event simulation of the batched queues.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline._types import FloatArray, IndexArray
from unfold_pipeline.problem.pipeline import Pipeline, Plan, StageConfig
from unfold_pipeline.problem.sample import Sample, Visits
from unfoldkit.queueing import kernel
from unfoldkit.queueing.stage import Flow, Goal, Server, serve

StageKey = tuple[int, tuple[StageConfig, ...]]
"""A stage and the configurations of it and all stages upstream, which determine its completions."""
MAX_CACHE_BYTES = 256 * 1024**2
MIN_CACHED_FLOWS = 8
TIME_TOLERANCE_S = 1e-9
DECIMALS = 9
"""Of percentiles in seconds: sums of times, such as 0.1 + 0.2, miss a target in the seventeenth digit."""


@dataclass(slots=True)
class EstimatorCache:
    """What an estimator computed so far.

    Attributes:
        flows: Completions of stages, the least recently used evicted first.
        failed_budgets_s: Largest time budget that a stage is known to miss.
        met_budgets_s: Smallest time budget that a stage is known to meet.
        unconstrained: Stages that missed their budget although no batch waited for a replica, so that more replicas
            do not help.
        size_bytes: Size of the flows.
        ancestors: Each stage with the stages upstream of it.
        final_stages: Stages that can be the last of a query.
        remaining_s: Least time that the items of a stage still need at some of its children.
        passes: Stages simulated so far.
        simulated_items: Items simulated so far.
    """

    flows: OrderedDict[StageKey, Flow] = field(default_factory=OrderedDict)
    failed_budgets_s: dict[StageKey, float] = field(default_factory=dict)
    met_budgets_s: dict[StageKey, float] = field(default_factory=dict)
    unconstrained: set[StageKey] = field(default_factory=set)
    size_bytes: int = 0
    ancestors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    final_stages: tuple[int, ...] | None = None
    remaining_s: dict[tuple[int, tuple[int, ...]], FloatArray] = field(default_factory=dict)
    passes: int = 0
    simulated_items: int = 0

    def get(self, key: StageKey) -> Flow | None:
        """Return a cached flow and mark it as recently used."""
        flow = self.flows.get(key)
        if flow is not None:
            self.flows.move_to_end(key)
        return flow

    def put(self, key: StageKey, flow: Flow) -> None:
        """Store a flow and evict old ones above the memory limit."""
        self.flows[key] = flow
        self.size_bytes += _measure_flow(flow)
        while self.size_bytes > MAX_CACHE_BYTES and len(self.flows) > MIN_CACHED_FLOWS:
            self.size_bytes -= _measure_flow(self.flows.popitem(last=False)[1])

    def count_pass(self, flow: Flow) -> None:
        """Count the simulation of one stage."""
        self.passes += 1
        self.simulated_items += flow.times.size


@dataclass(frozen=True, slots=True)
class Estimator:
    """Simulates plans of one pipeline on one sample. Results are exact (see :mod:`unfoldkit.queueing.reference`)."""

    pipeline: Pipeline
    sample: Sample
    percentile: float = 0.99
    cache: EstimatorCache = field(default_factory=EstimatorCache)

    @property
    def max_late(self) -> int:
        """Number of queries that may be late at the percentile (nearest rank)."""
        return math.floor((1 - self.percentile) * self.sample.size + 1e-9)

    def simulate_stage(self, index: int, plan: Sequence[StageConfig], budget_s: float = math.inf) -> Flow | None:
        """Return the completions of stage ``index``.

        Args:
            index: The stage.
            plan: Configurations of at least the stages down to it.
            budget_s: Seconds from the arrival of a query within which its items should complete here.

        Returns:
            The completions, or ``None`` if more queries than allowed miss the budget.
        """
        key = self._key(index, plan)
        if not self.sample.visits[index].is_unique:
            budget_s = math.inf
        if self.cache.failed_budgets_s.get(key, -1.0) >= budget_s:
            return None
        cached = self.cache.get(key)
        if cached is not None:
            return cached if self._meets_budget(cached, key, budget_s) else None
        return self._simulate(key, index, plan, budget_s)

    def complete_flow(self, index: int, plan: Sequence[StageConfig]) -> Flow:
        """Return all completions of stage ``index``."""
        flow = self.simulate_stage(index, plan)
        if flow is None:
            raise RuntimeError("a simulation without a budget cannot fail")
        return flow

    def cached_flow(self, index: int, plan: Sequence[StageConfig]) -> Flow | None:
        """Return the completions of stage ``index`` if they are cached."""
        return self.cache.flows.get(self._key(index, plan))

    def is_unconstrained(self, index: int, plan: Sequence[StageConfig]) -> bool:
        """Return whether stage ``index`` missed its last budget although no batch there waited for a replica."""
        return self._key(index, plan) in self.cache.unconstrained

    def compute_latencies(self, plan: Plan) -> FloatArray:
        """Return the seconds of every query in order of arrival, shape (queries,)."""
        return self._finish_times(plan) - self.sample.arrivals

    def tail_latency(self, plan: Plan) -> float:
        """Return the percentile of the latencies in seconds (nearest rank)."""
        return self.rank_percentile(self.compute_latencies(plan))

    def rank_percentile(self, seconds: FloatArray) -> float:
        """Return the percentile of the seconds of all queries (nearest rank)."""
        rank = max(0, seconds.size - 1 - self.max_late)
        return round(float(np.partition(seconds, rank)[rank]), DECIMALS)

    def count_late(self, plan: Plan, slo_s: float) -> int:
        """Return how many queries take longer than ``slo_s`` seconds, to the nanosecond."""
        return kernel.count_late(self._finish_times(plan), self.sample.arrivals, slo_s + 0.5 * 10**-DECIMALS)

    def meets_slo(self, plan: Plan, slo_s: float, downstream_s: Sequence[float]) -> bool:
        """Return whether the percentile is at most ``slo_s`` seconds.

        The simulation stops at the first stage that proves the contrary. ``downstream_s[i]`` is a time that every query
        still needs after stage ``i``.
        """
        for index in range(len(plan)):
            if self.simulate_stage(index, plan, slo_s - downstream_s[index] + TIME_TOLERANCE_S) is None:
                return False
        return self.count_late(plan, slo_s) <= self.max_late

    def _key(self, index: int, plan: Sequence[StageConfig]) -> StageKey:
        ancestors = self.cache.ancestors.get(index)
        if ancestors is None:
            ancestors = self.cache.ancestors[index] = self.pipeline.ancestors(index)
        return index, tuple([plan[stage] for stage in ancestors])

    def _meets_budget(self, flow: Flow, key: StageKey, budget_s: float) -> bool:
        if self.cache.met_budgets_s.get(key, math.inf) <= budget_s:
            return True
        origin_s = self.sample.visits[key[0]].origin_s
        is_met = kernel.count_late(flow.times, origin_s[flow.items], budget_s) <= self.max_late
        (self.cache.met_budgets_s if is_met else self.cache.failed_budgets_s)[key] = budget_s
        return is_met

    def _simulate(self, key: StageKey, index: int, plan: Sequence[StageConfig], budget_s: float) -> Flow | None:
        times, items = self._arrivals_at(key, plan)
        max_late = self.max_late if budget_s < math.inf else 2**62
        goal = Goal(self.sample.visits[index].origin_s, budget_s, max_late)
        flow = serve(times, items, build_server(self.pipeline, index, plan[index]), goal)
        self.cache.count_pass(flow)
        if not flow.ok:
            self.cache.failed_budgets_s[key] = max(budget_s, self.cache.failed_budgets_s.get(key, -1.0))
            (self.cache.unconstrained.discard if flow.short else self.cache.unconstrained.add)(key)
            return None
        self.cache.put(key, flow)
        self.cache.met_budgets_s[key] = budget_s
        return flow

    def _arrivals_at(self, key: StageKey, plan: Sequence[StageConfig]) -> tuple[FloatArray, IndexArray]:
        """Return the arrivals at a stage; cached, because a search needs them for each configuration of the stage."""
        index, configs = key
        arrivals_key = (-1 - index, configs[:-1])
        cached = self.cache.get(arrivals_key)
        if cached is None:
            flows = {edge.parent: self.complete_flow(edge.parent, plan) for edge in self.pipeline.stages[index].parents}
            cached = Flow(*queue_arrivals(self.sample, index, flows))
            if not self.sample.visits[index].matches_parent:
                self.cache.put(arrivals_key, cached)
        return cached.times, cached.items

    def _finish_times(self, plan: Sequence[StageConfig]) -> FloatArray:
        if self.cache.final_stages is None:
            stages = range(len(self.pipeline.stages))
            self.cache.final_stages = tuple(i for i in stages if not feeds_one_child(self.pipeline, self.sample, i))
        finish = self.sample.arrivals.copy()
        for index in self.cache.final_stages:
            flow = self.complete_flow(index, plan)
            kernel.record_completions(flow.times, flow.items, flow.times.size, self.sample.visits[index].query, finish)
        return finish


def build_server(pipeline: Pipeline, index: int, config: StageConfig) -> Server:
    """Return a stage under a configuration as the queueing model takes it."""
    stage = pipeline.stages[index]
    option = stage.options[config.option]
    return Server(option.latency_s[: config.batch + 1], config.replicas, stage.max_wait_s, wake=option.wake_s)


def queue_arrivals(sample: Sample, index: int, flows: Mapping[int, Flow]) -> tuple[FloatArray, IndexArray]:
    """Return the arrival times at a stage and its items, in queueing order.

    Ties keep the order of the parent stage; at a join they are ordered by query.

    Args:
        sample: The visits.
        index: The stage.
        flows: Completions of its parents.
    """
    visits = sample.visits[index]
    if not flows:
        return visits.origin_s, np.arange(visits.query.size, dtype=np.int32)
    if len(flows) == 1:
        (parent, flow), *_ = flows.items()
        return (flow.times, flow.items) if visits.matches_parent else _follow_flow(visits, parent, flow)
    return _join_flows(visits, flows)


def feeds_one_child(pipeline: Pipeline, sample: Sample, index: int) -> bool:
    """Return whether every item of a stage continues to one and the same child, so that no query ends there."""
    return any(
        sample.visits[child].matches_parent or bool((sample.visits[child].child_count[index] > 0).all())
        for child in pipeline.children(index)
    )


def _follow_flow(visits: Visits, parent: int, flow: Flow) -> tuple[FloatArray, IndexArray]:
    # several items of one flow may meet in one joined item, so this is an upper bound on the number of arrivals
    size = int(visits.child_count[parent].sum())
    times, items = np.empty(size), np.empty(size, dtype=np.int32)
    count = kernel.list_children(
        flow.times, flow.items, flow.times.size, visits.first_child[parent], visits.child_count[parent], times, items
    )
    return times[:count], items[:count]


def _join_flows(visits: Visits, flows: Mapping[int, Flow]) -> tuple[FloatArray, IndexArray]:
    ready = np.full(visits.query.size, -np.inf)
    for parent, flow in flows.items():
        times, items = _follow_flow(visits, parent, flow)
        ready[items] = np.maximum(ready[items], times)
    order = np.argsort(ready, kind="stable").astype(np.int32)
    return ready[order], order


def _measure_flow(flow: Flow) -> int:
    return int(flow.times.nbytes + flow.items.nbytes)
