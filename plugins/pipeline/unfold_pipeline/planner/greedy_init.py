"""The initial plan of the greedy planner: fast hardware within the quotas, and replicas at the bottleneck.

InferLine (SoCC 2020) starts with batch 1 on the fastest hardware. Where that exceeds a quota, some
stages take larger batches or other hardware; of what sustains the mean load within the quotas, the fastest is tried
first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.bounds import MAX_REPLICAS, find_least_count
from unfold_pipeline.problem.pipeline import (
    Plan,
    StageConfig,
    compute_longest_path,
    count_required_replicas,
    replace_config,
)

MAX_TRIED_SEEDS = 16
MAX_POPPED_SEEDS = 256
GROWTH_LIMIT = 16
MODERATE_LOAD = 0.7
AMPLE_REPLICAS = 4096
SeedRank = tuple[int, float, float]


@dataclass(slots=True)
class SeedQueue:
    """Plans of one replica per stage (seeds) to try, the best first and none twice."""

    heap: list[tuple[SeedRank, int, Plan]] = field(default_factory=list)
    pushed: set[Plan] = field(default_factory=set)

    def push(self, checker: SloChecker, seed: Plan) -> None:
        """Add a seed unless it was pushed before."""
        if seed not in self.pushed:
            self.pushed.add(seed)
            heapq.heappush(self.heap, (_rank_seed(checker, seed), len(self.pushed), seed))


def find_initial_plan(checker: SloChecker) -> Plan | None:
    """Return a plan that meets the SLO within the quotas, or ``None`` if none of the plans that are tried does."""
    fastest = tuple(StageConfig(stage.fastest_option, 1, 1) for stage in checker.pipeline.stages)
    if _is_too_slow(checker, fastest):
        return None
    seeds = SeedQueue()
    seeds.push(checker, fastest)
    tried = popped = 0
    while seeds.heap and tried < MAX_TRIED_SEEDS and popped < MAX_POPPED_SEEDS:
        (excess, _, _), _, seed = heapq.heappop(seeds.heap)
        popped += 1
        tried += excess == 0
        plan = _grow_seed(checker, seed) if excess == 0 or seed == fastest else None
        if plan is not None:
            return plan
        for neighbour in _list_neighbours(checker, seed):
            seeds.push(checker, neighbour)
    return None


def _is_too_slow(checker: SloChecker, fastest: Plan) -> bool:
    """Return whether the fastest hardware is late even without queues; a flow that few queries take may be slow."""
    if checker.single_query_latency(fastest) <= checker.slo_s:
        return False
    return not checker.remove_quotas().meets_slo(tuple(replace(c, replicas=AMPLE_REPLICAS) for c in fastest))


def _rank_seed(checker: SloChecker, seed: Plan) -> SeedRank:
    """Return the order of trial: replicas above a quota, then load on limited hardware, then the longest path."""
    pipeline = checker.pipeline
    loads = [checker.stage_rate(index) / _sustained_rate(checker, index, config) for index, config in enumerate(seed)]
    covering = tuple(
        replace(config, replicas=checker.spares + count_required_replicas(load, 1.0))
        for config, load in zip(seed, loads, strict=True)
    )
    excess = sum(violation.used - violation.quota for violation in pipeline.find_quota_violations(covering))
    quota_loads = (_sum_load(checker, seed, loads, name) / quota for name, quota in pipeline.quotas if quota)
    options = pipeline.chosen_options(seed)
    stage_s = [float(option.latency_s[config.batch]) for option, config in zip(options, seed, strict=True)]
    return excess, max(max(quota_loads, default=0.0), MODERATE_LOAD), compute_longest_path(pipeline, stage_s)


def _sum_load(checker: SloChecker, seed: Plan, loads: Sequence[float], hardware: str) -> float:
    options = checker.pipeline.chosen_options(seed)
    return sum(load for load, option in zip(loads, options, strict=True) if option.hardware == hardware)


def _list_neighbours(checker: SloChecker, seed: Plan) -> Iterator[Plan]:
    """Yield the seeds with a larger batch or other hardware at one stage that uses limited hardware."""
    limited = {name for name, _ in checker.pipeline.quotas}
    for index, config in enumerate(seed):
        options = checker.pipeline.stages[index].options
        if options[config.option].hardware not in limited:
            continue
        for batch in options[config.option].batch_sizes:
            if batch > config.batch:
                yield replace_config(seed, index, replace(config, batch=batch))
        for option in range(len(options)):
            if option != config.option:
                yield replace_config(seed, index, StageConfig(option, 1, 1))


def _grow_seed(checker: SloChecker, seed: Plan) -> Plan | None:
    """Return the seed with replicas added at the bottleneck until it meets the SLO.

    The order in which bottlenecks get replicas is fixed, so bisection finds the least number of steps.
    """
    plans = [seed]

    def plan_after(steps: int) -> Plan:
        while len(plans) <= min(steps, max_steps):
            plans.append(_widen_bottleneck(checker, plans[-1]))
        return plans[min(steps, max_steps)]

    start = _count_covering_steps(checker, seed)
    # where a quota may be the obstacle, many more replicas elsewhere are not worth their simulation
    max_steps = min(MAX_REPLICAS, GROWTH_LIMIT * (start + len(seed))) if checker.pipeline.quotas else MAX_REPLICAS
    count = find_least_count(lambda steps: checker.meets_slo(plan_after(steps - 1)), start + 1)
    return plan_after(count - 1) if count < MAX_REPLICAS else None


def _count_covering_steps(checker: SloChecker, seed: Plan) -> int:
    """Return the steps until each stage sustains its mean load: fewer are not worth a simulation on long samples."""
    steps, plan = 0, seed
    while steps < MAX_REPLICAS and (index := _find_bottleneck(checker, plan)) is not None:
        if _surviving_rate(checker, index, plan[index]) >= checker.stage_rate(index):
            break
        steps, plan = steps + 1, _add_replica(plan, index)
    return steps


def _widen_bottleneck(checker: SloChecker, plan: Plan) -> Plan:
    index = _find_bottleneck(checker, plan)
    return plan if index is None else _add_replica(plan, index)


def _add_replica(plan: Plan, index: int) -> Plan:
    return replace_config(plan, index, replace(plan[index], replicas=plan[index].replicas + 1))


def _find_bottleneck(checker: SloChecker, plan: Plan) -> int | None:
    """Return the stage that sustains the least of its load, among those with a replica left in their quota."""
    scores = [
        _surviving_rate(checker, index, config) / max(checker.stage_rate(index), 1e-12)
        if checker.pipeline.is_within_quotas(_add_replica(plan, index))
        else math.inf
        for index, config in enumerate(plan)
    ]
    min_score = min(scores)
    return scores.index(min_score) if min_score < math.inf else None


def _surviving_rate(checker: SloChecker, index: int, config: StageConfig) -> float:
    return _sustained_rate(checker, index, replace(config, replicas=config.replicas - checker.spares))


def _sustained_rate(checker: SloChecker, index: int, config: StageConfig) -> float:
    return config.replicas * checker.pipeline.stages[index].options[config.option].throughput(config.batch)
