"""The cost-SLO frontier: the price of the cheapest plan for tighter and looser targets than the problem's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.bounds import ReplicaBounds, build_replica_bounds
from unfold_pipeline.planner.branch_and_bound import Search, find_cheapest_plan
from unfold_pipeline.planner.greedy import plan_greedily
from unfold_pipeline.planner.local_search import minimize_tail_latency, trade_between_stages
from unfold_pipeline.planner.planner import Progress, Solution
from unfold_pipeline.problem.pipeline import COST_TOLERANCE, Plan
from unfold_pipeline.problem.problem import SearchBudget

DEFAULT_FACTORS = (0.6, 0.8, 1.0, 1.5, 2.0)
BUDGET_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """The cheapest plan that was found for a target in seconds (``None``: no plan), and its $/h.

    ``is_exact`` states that the search was complete: no plan is cheaper within the per-stage bounds.
    """

    slo_s: float
    plan: Plan | None
    hourly_cost: float | None
    is_exact: bool


@dataclass(slots=True)
class _FrontierState:
    """What is known while the target gets tighter: plans for looser targets, and a lower bound on the $/h."""

    bounds: ReplicaBounds
    budget: SearchBudget
    plans: list[Plan] = field(default_factory=list)
    min_cost: float = 0.0


def compute_frontier(
    solution: Solution, slos_s: Sequence[float] | None, budget: SearchBudget, progress: Progress
) -> tuple[FrontierPoint, ...]:
    """Return a point for each target, from tight to loose; costs never rise with the target.

    Targets are solved from loose to tight: a cost that no plan undercuts for a looser target holds for a tighter one.

    Args:
        solution: The plan for the problem's own target, which is always part of the frontier.
        slos_s: Targets in seconds; ``None`` for five around the problem's own.
        budget: Effort of the search for the problem's own target; each other target takes a fifth of it.
        progress: Receives the number of solved targets.
    """
    problem_slo_s = solution.checker.slo_s
    targets = {*(slos_s or [problem_slo_s * factor for factor in DEFAULT_FACTORS]), problem_slo_s}
    state = _FrontierState(build_replica_bounds(solution.checker), budget)
    state.plans += [plan for plan in (solution.plan, solution.greedy.plan) if plan is not None]
    points: list[FrontierPoint] = []
    for index, slo_s in enumerate(sorted(targets, reverse=True)):
        checker = replace(solution.checker, slo_s=slo_s)
        point = _reuse_solution(solution, state) if slo_s == problem_slo_s else _solve_target(checker, state)
        points.append(point)
        if point.is_exact:
            state.min_cost = math.inf if point.hourly_cost is None else point.hourly_cost
        progress("frontier", index + 1, len(targets))
    return tuple(itertools.accumulate(points[::-1], _keep_cheaper))


def adopt_cheaper_plan(solution: Solution, points: Sequence[FrontierPoint]) -> Solution:
    """Return the solution with the plan of its own point, which a search for another target may have improved."""
    plan = next((point.plan for point in points if point.slo_s == solution.checker.slo_s), None)
    return solution if plan is None else replace(solution, plan=plan)


def _reuse_solution(solution: Solution, state: _FrontierState) -> FrontierPoint:
    plan = _find_cheapest(solution.checker, state.plans) or solution.plan
    is_cheaper = solution.checker.pipeline.cost(plan) < solution.hourly_cost - COST_TOLERANCE
    is_exact = solution.is_search_complete or solution.is_optimal
    return _build_point(solution.checker, plan if is_cheaper else solution.plan, is_exact=is_exact)


def _solve_target(checker: SloChecker, state: _FrontierState) -> FrontierPoint:
    best = _find_cheapest(checker, state.plans)
    is_minimal = best is not None and checker.pipeline.cost(best) <= state.min_cost + COST_TOLERANCE
    if state.min_cost == math.inf or is_minimal:
        return _build_point(checker, best, is_exact=True)
    start = best or plan_greedily(checker).plan
    ceiling = math.inf if start is None else checker.pipeline.cost(start)
    max_queries = state.budget.max_simulated_queries * BUDGET_FRACTION
    result = find_cheapest_plan(
        Search(checker, state.bounds, ceiling),
        max_simulated_queries=max_queries,
        # nodes of long pipelines cost much time and simulate few queries
        max_nodes=state.budget.max_nodes * BUDGET_FRACTION,
    )
    # greedy runs only where a complete search does not make it needless
    greedy = plan_greedily(checker).plan if best is not None and not result.is_complete else None
    best = _find_cheapest(checker, [plan for plan in (result.plan, start, greedy) if plan is not None])
    if best is not None:
        best = best if result.is_complete else trade_between_stages(checker, best, max_queries)
        # of equal prices, the plan with the lowest percentile may do for the next, tighter target
        best = minimize_tail_latency(checker, best)
        state.plans.append(best)
    return _build_point(checker, best, is_exact=result.is_complete)


def _find_cheapest(checker: SloChecker, plans: Sequence[Plan]) -> Plan | None:
    return min((plan for plan in plans if checker.meets_slo(plan)), key=checker.pipeline.cost, default=None)


def _build_point(checker: SloChecker, plan: Plan | None, *, is_exact: bool) -> FrontierPoint:
    return FrontierPoint(checker.slo_s, plan, None if plan is None else checker.pipeline.cost(plan), is_exact)


def _keep_cheaper(tight: FrontierPoint, loose: FrontierPoint) -> FrontierPoint:
    """Return the looser point, with the plan of the tighter one if that is cheaper."""
    if tight.hourly_cost is None:
        return loose
    if loose.hourly_cost is not None and loose.hourly_cost <= tight.hourly_cost + COST_TOLERANCE:
        return loose
    return replace(tight, slo_s=loose.slo_s, is_exact=False)
