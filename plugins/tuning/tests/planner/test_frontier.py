"""The exact frontier without randomness, and the baselines at the same deadlines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tuning_jobs as jobs
from hypothesis import given, settings

from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.planner.baselines import Goal, select_cheapest, simulate_static_clusters
from unfold_tuning.planner.frontier import build_stage_costs, search_frontier
from unfold_tuning.planner.minimum_charge import search_exact_frontier
from unfold_tuning.planner.rubberband_greedy import plan_greedily, plan_greedily_from_all
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.plan_cost import simulate_plan, simulate_plans
from unfoldkit.catalog.billing import Billing

# static, greedy, greedy from every start, exact: dollars at deadlines of DEADLINE_FACTORS times the fastest run
INDEPENDENT_RESULTS = {
    "J1": [
        (27.53, 9.69, 9.69, 9.69), (12.18, 6.65, 6.65, 6.65), (9.74, 6.26, 6.12, 6.12), (7.37, 5.34, 5.34, 5.34),
        (4.85, 4.85, 4.85, 4.85), (4.85, 4.53, 4.53, 4.53), (4.32, 4.32, 4.32, 4.32),
    ],
    "J2": [
        (33.23, 11.64, 11.64, 11.64), (13.27, 7.76, 7.76, 7.76), (11.22, 7.35, 7.25, 7.13), (7.93, 6.20, 6.20, 6.20),
        (5.48, 5.48, 5.48, 5.48), (5.48, 5.14, 5.14, 5.14), (4.90, 4.90, 4.90, 4.90),
    ],
    "J3": [
        (63.89, 19.65, 19.65, 19.65), (35.68, 14.96, 14.96, 14.96), (20.35, 13.30, 13.30, 12.92),
        (18.88, 12.06, 11.75, 11.75), (12.46, 11.14, 10.87, 10.87), (11.25, 10.53, 10.42, 10.31),
        (9.35, 9.35, 9.35, 9.35),
    ],
    "J4": [
        (42.24, 14.55, 14.55, 14.55), (22.25, 10.11, 10.11, 10.11), (12.68, 8.14, 8.14, 8.14),
        (11.13, 7.50, 7.50, 7.50), (7.96, 6.43, 6.43, 6.43), (6.02, 5.69, 5.69, 5.69), (5.41, 5.41, 5.41, 5.41),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(jobs.JOBS))
def test_costs_match_an_independent_search(name: str) -> None:
    """Static optimum, greedy, its multi-start and the plan cost what an independent search found."""
    stages, profile = jobs.JOBS[name][0], jobs.deterministic_profile(name)
    candidate = jobs.evaluate_machines(stages, profile, [jobs.P3], 0.95, 1, 0)[0]
    model, statics = candidate.model, simulate_static_clusters(candidate.model)
    for factor, expected in zip(jobs.DEADLINE_FACTORS, INDEPENDENT_RESULTS[name], strict=True):
        goal = Goal(factor * jobs.fastest_seconds(name), 0.95)
        static = select_cheapest(statics, goal).plan
        plans = (
            static,
            plan_greedily(model, goal, static).plan,
            plan_greedily_from_all(model, goal, statics).plan,
            candidate.select_cheapest(goal.deadline_s),
        )
        assert [plan.mean_cost_usd for plan in plans if plan] == pytest.approx(expected, abs=0.006), factor


@pytest.mark.e2e
@settings(max_examples=60, deadline=None)
@given(jobs.small_jobs())
def test_the_frontier_is_that_of_all_plans(job: jobs.Job) -> None:
    """No plan of any instances and workers beats the frontier at any deadline, and its points are such plans."""
    stages, profile, machine = job
    model = build_execution_model(stages, profile, machine, 1, 0)
    frontier = search_frontier(build_stage_costs(model))
    plans = simulate_plans(model, list(jobs.list_all_plans(model)))
    times, costs = np.array([p.mean_seconds for p in plans]), np.array([p.mean_cost_usd for p in plans])
    for deadline_s, cost_usd in zip(frontier.seconds, frontier.cost_usd, strict=True):
        assert costs[times <= deadline_s + 1e-6].min() == pytest.approx(cost_usd, rel=1e-6, abs=1e-6)
    assert times.min() == pytest.approx(frontier.seconds[0], rel=1e-9)
    for plan, cost_usd in zip(frontier.plans, frontier.cost_usd, strict=True):
        assert simulate_plan(model, plan).mean_cost_usd == pytest.approx(cost_usd, rel=1e-6, abs=1e-6)


@pytest.mark.e2e
@pytest.mark.parametrize("minimum", [0.0, 3600.0])
def test_spot_frontier_costs_match_simulated_plans(minimum: float) -> None:
    """The cost of a spot plan in the search, replacements included, is that of simulating the plan."""
    machine = replace(
        jobs.P3,
        interruptions_per_hour=0.5,
        ingress_usd=0.4,
        max_instances=8,
        billing=Billing(0.0, minimum),
    )
    stages = build_custom_stages([(8, 40), (2, 60)])
    model = build_execution_model(stages, jobs.deterministic_profile("J1"), machine, 400, 0)
    frontier = search_exact_frontier(model, build_stage_costs(model))
    for plan, cost_usd in zip(frontier.plans, frontier.cost_usd, strict=True):
        assert simulate_plan(model, plan).mean_cost_usd == pytest.approx(cost_usd, rel=0.02)
