"""Infeasible problems: the binding constraint, a stage or a quota, and the minimal relaxation that admits a plan."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.bounds import MAX_REPLICAS, ReplicaBounds, build_replica_bounds
from unfold_pipeline.planner.branch_and_bound import Search, find_cheapest_plan
from unfold_pipeline.planner.greedy import plan_greedily
from unfold_pipeline.planner.greedy_init import AMPLE_REPLICAS, find_initial_plan
from unfold_pipeline.problem.pipeline import (
    Pipeline,
    Plan,
    StageConfig,
    compute_longest_path,
    count_by_hardware,
)

SIDE_SEARCH_FRACTION = 0.05
RELATIVE_PRECISION, PRECISION_S = 0.01, 0.002
RELAXATION_FACTORS = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True, slots=True)
class RequiredQuota:
    """A quota that would admit a plan."""

    hardware: str
    quota: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why there is no plan.

    Attributes:
        stage: Stage that takes most of the unavoidable time.
        hardware: Its fastest hardware.
        stage_s: Its time for a single query.
        total_s: The time of all stages for a single query.
        quotas: Quotas that would admit a plan: the one that needs the least increase, if one suffices.
        relaxed_slo_s: A target in seconds that admits a plan.
        relaxed_cost: $/h of that plan.
    """

    stage: int
    hardware: str
    stage_s: float
    total_s: float
    quotas: tuple[RequiredQuota, ...] = ()
    relaxed_slo_s: float | None = None
    relaxed_cost: float | None = None


def explain_infeasibility(checker: SloChecker, max_simulated_queries: float) -> Obstacle:
    """Return the obstacle for a problem with an SLO that no plan meets."""
    fastest = build_fastest_plan(checker.pipeline)
    stage_s = [float(option.latency_s[1]) for option in checker.pipeline.chosen_options(fastest)]
    stage = max(range(len(stage_s)), key=lambda index: (_is_on_longest_path(checker, stage_s, index), stage_s[index]))
    obstacle = Obstacle(
        stage=stage,
        hardware=checker.pipeline.stages[stage].options[fastest[stage].option].hardware,
        stage_s=stage_s[stage],
        total_s=checker.single_query_latency(fastest),
    )
    unlimited = plan_greedily(checker.remove_quotas()).plan if checker.pipeline.quotas else None
    if unlimited is not None:
        obstacle = replace(obstacle, quotas=_find_required_quotas(checker, unlimited, max_simulated_queries))
    return _relax_slo(obstacle, checker, fastest, max_simulated_queries)


def build_fastest_plan(pipeline: Pipeline) -> Plan:
    """Return batch 1 on the fastest hardware, with ample replicas."""
    return tuple(StageConfig(stage.fastest_option, 1, AMPLE_REPLICAS) for stage in pipeline.stages)


def _is_on_longest_path(checker: SloChecker, stage_s: list[float], index: int) -> bool:
    without = [0.0 if stage == index else seconds for stage, seconds in enumerate(stage_s)]
    return compute_longest_path(checker.pipeline, without) < compute_longest_path(checker.pipeline, stage_s)


def _find_required_quotas(checker: SloChecker, unlimited: Plan, max_queries: float) -> tuple[RequiredQuota, ...]:
    """Return the quota that needs the least increase, or all that ``unlimited``, a plan without quotas, exceeds."""
    quotas = checker.pipeline.quotas
    queries = max_queries * SIDE_SEARCH_FRACTION / len(quotas)
    required = [_find_least_quota(checker, name, quota, queries) for name, quota in quotas]
    increases = [
        (count - quota, index)
        for index, ((_, quota), count) in enumerate(zip(quotas, required, strict=True))
        if count and count > quota
    ]
    if increases:
        increase, index = min(increases)
        name, quota = quotas[index]
        return (RequiredQuota(name, quota + increase),)
    violations = checker.pipeline.find_quota_violations(unlimited)
    return tuple(RequiredQuota(violation.hardware, violation.used) for violation in violations)


def _find_least_quota(checker: SloChecker, name: str, quota: int, max_queries: float) -> int | None:
    """Return the least quota of a hardware that admits a plan, ``None`` if none does."""
    plan = plan_greedily(_set_quota(checker, name, MAX_REPLICAS)).plan
    if plan is None:
        return None
    used = count_by_hardware(checker.pipeline.chosen_options(plan), [config.replicas for config in plan])
    low, high = quota, used.get(name, 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _has_plan(_set_quota(checker, name, middle), max_queries) else (middle, high)
    return high


def _has_plan(checker: SloChecker, max_queries: float) -> bool:
    if find_initial_plan(checker) is not None:
        return True
    return _search_plan(checker, build_replica_bounds(checker), max_queries, None) is not None


def _set_quota(checker: SloChecker, name: str, count: int) -> SloChecker:
    quotas = tuple((other, count if other == name else quota) for other, quota in checker.pipeline.quotas)
    return replace(checker, pipeline=replace(checker.pipeline, quotas=quotas))


def _relax_slo(obstacle: Obstacle, checker: SloChecker, fastest: Plan, max_queries: float) -> Obstacle:
    """Try targets upwards from the least that unlimited replicas reach, until there is a plan."""
    least_s = max(checker.remove_quotas().tail_latency(fastest), checker.slo_s)
    relaxed = [replace(checker, slo_s=_round_up_ms(least_s * factor)) for factor in RELAXATION_FACTORS]
    bounds = build_replica_bounds(checker)
    # greedy is quick, so the search looks for a target only where greedy finds none
    for previous, candidate in itertools.pairwise([checker, *relaxed]):
        if plan_greedily(candidate).plan is not None:
            tight = _tighten_slo(candidate, previous.slo_s, max_queries * SIDE_SEARCH_FRACTION)
            plan = _search_plan(tight, bounds, max_queries, plan_greedily(tight).plan)
            return _record_relaxation(obstacle, tight, plan)
    for candidate in relaxed:
        plan = _search_plan(candidate, bounds, max_queries / len(relaxed), None)
        if plan is not None:
            return _record_relaxation(obstacle, candidate, plan)
    return obstacle


def _tighten_slo(checker: SloChecker, low_s: float, max_queries: float) -> SloChecker:
    """Return the checker of the least target above ``low_s`` that admits a plan, to 1 % or 2 ms."""
    while checker.slo_s - low_s > max(RELATIVE_PRECISION * checker.slo_s, PRECISION_S):
        middle = replace(checker, slo_s=_round_up_ms((low_s + checker.slo_s) / 2))
        low_s, checker = (low_s, middle) if _has_plan(middle, max_queries) else (middle.slo_s, checker)
    return checker


def _record_relaxation(obstacle: Obstacle, checker: SloChecker, plan: Plan | None) -> Obstacle:
    if plan is None:
        return obstacle
    return replace(obstacle, relaxed_slo_s=checker.slo_s, relaxed_cost=checker.pipeline.cost(plan))


def _search_plan(checker: SloChecker, bounds: ReplicaBounds, max_queries: float, fallback: Plan | None) -> Plan | None:
    ceiling = math.inf if fallback is None else checker.pipeline.cost(fallback)
    return find_cheapest_plan(Search(checker, bounds, ceiling), max_simulated_queries=max_queries).plan or fallback


def _round_up_ms(seconds: float) -> float:
    return math.ceil(seconds * 1e3) / 1e3
