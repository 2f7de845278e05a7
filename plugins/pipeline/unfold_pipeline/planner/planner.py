"""All planners on one problem: greedy, then branch and bound with its proof, then local search where it was stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.bounds import ReplicaBounds, build_replica_bounds
from unfold_pipeline.planner.branch_and_bound import Search, SearchResult, find_cheapest_plan
from unfold_pipeline.planner.greedy import GreedySolution, plan_greedily
from unfold_pipeline.planner.local_search import minimize_tail_latency, trade_between_stages
from unfold_pipeline.problem.pipeline import COST_TOLERANCE, Plan
from unfold_pipeline.problem.problem import SearchBudget

Progress = Callable[[str, int, int], None]
"""Takes the name of a step, what is done, and the total."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The cheapest plan for one SLO, and what is known about cheaper ones.

    Attributes:
        checker: Pipeline, samples and SLO.
        plan: The cheapest plan that was found.
        greedy: The plan and the steps of the greedy planner.
        is_search_complete: Whether the plan is the cheapest within the sharp per-stage bounds.
        bound: A proven lower bound in $/h.
    """

    checker: SloChecker
    plan: Plan
    greedy: GreedySolution
    is_search_complete: bool
    bound: float

    @property
    def hourly_cost(self) -> float:
        """The $/h of the plan."""
        return self.checker.pipeline.cost(self.plan)

    @property
    def gap(self) -> float:
        """By which fraction of the bound a plan could be cheaper at most."""
        return max(0.0, self.hourly_cost / self.bound - 1) if self.bound > 0 else 0.0

    @property
    def is_optimal(self) -> bool:
        """Whether no plan can be cheaper, with batch sizes that are powers of two or the largest of the profile."""
        return self.hourly_cost <= self.bound + COST_TOLERANCE


@dataclass(frozen=True, slots=True)
class NoPlan:
    """No plan was found; ``is_search_complete`` proves that none exists within the sharp bounds."""

    is_search_complete: bool


def find_plan(checker: SloChecker, budget: SearchBudget, progress: Progress) -> Solution | NoPlan:
    """Return the cheapest plan with the greedy one for comparison, or how certain it is that no plan meets the SLO."""
    bounds = build_replica_bounds(checker)
    progress("greedy", 0, 1)
    greedy = plan_greedily(checker, compound=budget.compound)
    progress("greedy", 1, 1)
    ceiling = checker.pipeline.cost(greedy.plan) if greedy.plan else float("inf")
    result = _run_search(Search(checker, bounds, ceiling), budget, "search", progress)
    plan = result.plan or greedy.plan
    if plan is None:
        return NoPlan(result.is_complete)
    if not result.is_complete:
        plan = trade_between_stages(checker, plan, budget.max_simulated_queries)
    solution = Solution(checker, plan, greedy, result.is_complete, bounds.bound_cost(checker.slo_s))
    if budget.prove:
        solution = _prove_bound(solution, bounds, budget, progress)
    return replace(solution, plan=minimize_tail_latency(checker, solution.plan))


def _prove_bound(solution: Solution, bounds: ReplicaBounds, budget: SearchBudget, progress: Progress) -> Solution:
    cost = solution.hourly_cost
    result = _run_search(Search(solution.checker, bounds, cost, is_proof=True), budget, "proof", progress)
    if result.plan is not None:
        return replace(solution, plan=result.plan, bound=result.bound)
    return replace(solution, bound=max(solution.bound, min(result.bound, cost)))


def _run_search(search: Search, budget: SearchBudget, step: str, progress: Progress) -> SearchResult:
    return find_cheapest_plan(
        search,
        max_simulated_queries=budget.max_simulated_queries,
        max_nodes=budget.max_nodes if search.is_proof else math.inf,
        progress=lambda simulated: progress(step, simulated, 0),
    )
