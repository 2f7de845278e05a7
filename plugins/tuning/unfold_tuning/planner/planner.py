"""The plan of a job: the cheapest on the exact frontier that gives the guarantee, over machines and markets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from unfold_tuning._types import FloatArray
from unfold_tuning.job.problem import Problem
from unfold_tuning.job.profile import Machine
from unfold_tuning.planner.baselines import (
    Baseline,
    Goal,
    select_cheapest,
    simulate_naive_clusters,
    simulate_static_clusters,
)
from unfold_tuning.planner.frontier import StageCosts, build_stage_costs
from unfold_tuning.planner.local_search import refine_plan
from unfold_tuning.planner.lower_bound import compute_lower_bound
from unfold_tuning.planner.minimum_charge import search_exact_frontier
from unfold_tuning.planner.pace_posterior import PacePosterior, build_pace_posterior, build_recorded_posterior
from unfold_tuning.planner.rubberband_greedy import improve_by_single_steps, plan_greedily
from unfold_tuning.simulator.execution_model import ExecutionModel, build_execution_model
from unfold_tuning.simulator.plan_cost import (
    CONFIDENCE_TOLERANCE,
    TIME_TOLERANCE_S,
    SimulatedPlan,
    simulate_plans,
)
from unfold_tuning.simulator.spot_or_on_demand import ThriftyRuns

MAX_FRONTIER_PLANS = 600
"""Plans of a frontier that are simulated."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A machine with the plans of its frontier, simulated.

    Static and naive clusters are among the plans, as the frontier is that of means and a guarantee is a quantile. If
    bills round up to coarse increments, neighbours of the cheapest plan are searched too.

    Attributes:
        model: The job on this machine.
        costs: Stage times and costs of the frontier search.
        plans: Simulated plans, fastest first.
        guaranteed_s: The time that each plan guarantees: [plans] seconds.
        confidence: The probability of the guarantee.
        improved: Improved plans by deadline.
    """

    model: ExecutionModel
    costs: StageCosts
    plans: tuple[SimulatedPlan, ...]
    guaranteed_s: FloatArray
    confidence: float = 0.95
    improved: dict[float, SimulatedPlan] = field(default_factory=dict, compare=False, repr=False)

    def select_cheapest(self, deadline_s: float) -> SimulatedPlan | None:
        """Select the cheapest plan with a guaranteed time within the deadline."""
        pairs = zip(self.plans, self.guaranteed_s, strict=True)
        on_time = [plan for plan, seconds in pairs if seconds <= deadline_s + TIME_TOLERANCE_S]
        cheapest = min(on_time, key=lambda plan: plan.mean_cost_usd, default=None)
        if cheapest is None or not self.model.machine.has_coarse_billing:
            return cheapest
        if deadline_s not in self.improved:
            goal = Goal(deadline_s, self.confidence)
            self.improved[deadline_s] = improve_by_single_steps(self.model, cheapest, goal)
        return self.improved[deadline_s]

    def select_fastest(self, budget_usd: float, confidence: float) -> SimulatedPlan | None:
        """Select the plan with the earliest guaranteed end that stays within the budget with equal confidence."""
        affordable = [
            index
            for index, plan in enumerate(self.plans)
            if plan.estimate_within_budget_probability(budget_usd) >= confidence - CONFIDENCE_TOLERANCE
        ]
        return self.plans[min(affordable, key=lambda index: self.guaranteed_s[index])] if affordable else None

    @property
    def earliest_index(self) -> int:
        """Index of the plan with the earliest guaranteed end."""
        return int(np.argmin(self.guaranteed_s))


@dataclass(frozen=True, slots=True)
class Selection:
    """A plan and the machine that it is for."""

    candidate: Candidate
    plan: SimulatedPlan

    @property
    def machine(self) -> Machine:
        """The instance type of the candidate's model."""
        return self.candidate.model.machine


@dataclass(frozen=True, slots=True)
class Baselines:
    """Plans of the baselines with the same guarantee on the same machine."""

    static: Baseline
    naive: Baseline
    greedy: Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What the search found.

    Attributes:
        candidates: Every machine with its frontier.
        selected: The plan, or ``None`` if no plan meets the deadline or the budget.
        goal: The guarantee of the plan; without a deadline, that of its own guaranteed end.
        is_over_budget: Whether the cheapest plan on time exceeds the budget.
        thrifty: The plan's runs on the thrifty market, if it leaves slack for spot instances.
        paces: Posterior over the job's paces before the first stage, if its profile was measured.
    """

    candidates: tuple[Candidate, ...]
    selected: Selection | None
    goal: Goal | None
    is_over_budget: bool
    thrifty: ThriftyRuns | None = None
    paces: PacePosterior | None = None

    @property
    def all_plans(self) -> list[SimulatedPlan]:
        """The simulated frontier plans of every machine, in one list."""
        return [plan for candidate in self.candidates for plan in candidate.plans]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The baselines of a plan, and a lower bound on the cost of any plan (infinite if it does not cover this one)."""

    baselines: Baselines
    lower_bound_usd: float


def solve(problem: Problem, progress: Callable[[str, int, int], None]) -> Solution:
    """Find the cheapest plan that meets the deadline, or without a deadline the fastest within the budget."""
    paces = build_posterior(problem)
    candidates = evaluate_models(build_models(problem, paces), problem.confidence, progress)
    goal, is_over_budget, budget_usd = None, False, problem.budget_usd
    if problem.deadline_s is not None:
        selected = select_refined(candidates, problem.deadline_s)
        goal = Goal(problem.deadline_s, problem.confidence)
        if selected is not None and budget_usd is not None:
            is_over_budget = selected.plan.estimate_within_budget_probability(budget_usd) < problem.confidence
    else:
        selected = select_within_budget(candidates, budget_usd or 0.0, problem.confidence)
        if selected is not None:
            goal = Goal(selected.plan.compute_guaranteed_seconds(problem.confidence), problem.confidence)
    return Solution(
        candidates=tuple(candidates), selected=selected, goal=goal, is_over_budget=is_over_budget, paces=paces
    )


def build_posterior(problem: Problem) -> PacePosterior | None:
    """Build the posterior over paces before the first stage; ``None`` if no trial was measured."""
    paces = problem.paces
    if paces is None:
        return None
    if paces.record_error is not None:
        return build_recorded_posterior(
            problem.stages, paces.profile, paces.history, problem.seed, paces.record_error, paces.record_spread
        )
    return build_pace_posterior(problem.stages, paces.profile, paces.planned, paces.history, problem.seed)


def build_models(problem: Problem, posterior: PacePosterior | None) -> list[ExecutionModel]:
    """Build the model of a job on each of its machines, with common random numbers."""
    profile = problem.profile
    base = math.log(profile.iteration.mean)
    paces = None if posterior is None else posterior.predict(0, base, has_known_trials=False)
    model = build_execution_model(problem.stages, profile, problem.machines[0], problem.samples, problem.seed, paces)
    return model.with_machines(problem.machines)


def evaluate_models(
    models: Sequence[ExecutionModel], confidence: float, progress: Callable[[str, int, int], None]
) -> list[Candidate]:
    """Compute the frontier of every model and the time that each of its plans guarantees."""
    total, done = sum(len(model.stages) for model in models), count(1)
    progress("frontier", 0, total)
    return [evaluate_machine(item, confidence, lambda: progress("frontier", next(done), total)) for item in models]


def evaluate_machine(
    model: ExecutionModel, confidence: float, on_stage: Callable[[], None] = lambda: None
) -> Candidate:
    """Compute the frontier of one machine and the time that each of its plans guarantees."""
    costs = build_stage_costs(model, on_stage)
    frontier = search_exact_frontier(model, costs)
    indices = thin_indices(len(frontier.plans), MAX_FRONTIER_PLANS)
    plans = (
        *simulate_plans(model, [frontier.plans[index] for index in indices]),
        *simulate_static_clusters(model),
        *simulate_naive_clusters(model),
    )
    guaranteed_s = np.array([plan.compute_guaranteed_seconds(confidence) for plan in plans])
    return Candidate(model, costs, plans, guaranteed_s, confidence)


def select_best(candidates: Sequence[Candidate], deadline_s: float) -> Selection | None:
    """Select the cheapest plan over all machines that gives the guarantee."""
    plans = [(candidate, candidate.select_cheapest(deadline_s)) for candidate in candidates]
    selections = [Selection(candidate, plan) for candidate, plan in plans if plan is not None]
    return min(selections, key=lambda selection: selection.plan.mean_cost_usd, default=None)


def select_refined(candidates: Sequence[Candidate], deadline_s: float) -> Selection | None:
    """Select the cheapest plan over all machines that gives the guarantee, and refine it by local search."""
    best = select_best(candidates, deadline_s)
    if best is None:
        return None
    goal = Goal(deadline_s, best.candidate.confidence)
    return Selection(best.candidate, refine_plan(best.candidate.model, best.plan, goal))


def select_earliest(candidates: Sequence[Candidate]) -> Selection:
    """Select the plan with the earliest guaranteed end over all machines."""
    earliest = min(candidates, key=lambda candidate: candidate.guaranteed_s[candidate.earliest_index])
    return Selection(earliest, earliest.plans[earliest.earliest_index])


def select_within_budget(candidates: Sequence[Candidate], budget_usd: float, confidence: float) -> Selection | None:
    """Select the plan with the earliest guaranteed end within a budget over all machines."""
    plans = [(candidate, candidate.select_fastest(budget_usd, confidence)) for candidate in candidates]
    selections = [Selection(candidate, plan) for candidate, plan in plans if plan is not None]
    return min(selections, key=lambda selection: selection.plan.compute_guaranteed_seconds(confidence), default=None)


def compare_with_baselines(solution: Solution, selected: Selection, goal: Goal) -> Comparison:
    """Compare a plan with the baselines and with the lower bound over all machines."""
    baselines = plan_baselines(selected.candidate, goal)
    bound_usd = compute_global_bound(solution.candidates, goal, selected.plan.mean_cost_usd)
    # a refined plan may use allocations that the bound does not cover
    is_covered = bound_usd <= selected.plan.mean_cost_usd * (1 + 1e-9)
    return Comparison(baselines, bound_usd if is_covered else math.inf)


def plan_baselines(candidate: Candidate, goal: Goal) -> Baselines:
    """Plan with every baseline on the same machine."""
    static = select_cheapest(simulate_static_clusters(candidate.model), goal)
    naive = select_cheapest(simulate_naive_clusters(candidate.model), goal)
    return Baselines(static, naive, plan_greedily(candidate.model, goal, static.plan))


def compute_global_bound(candidates: Sequence[Candidate], goal: Goal, plan_usd: float = math.inf) -> float:
    """Compute the proven lower bound over all machines, in dollars; what costs more than ``plan_usd`` is left out."""
    return min(compute_lower_bound(candidate.model, candidate.costs, goal, plan_usd) for candidate in candidates)


def thin_indices(size: int, max_size: int) -> list[int]:
    """Thin out the indices of a sequence evenly to at most ``max_size``, both ends included."""
    return sorted(set(np.linspace(0, size - 1, min(size, max_size)).round().astype(int).tolist()))
