"""Cheaper plans near the frontier, against all plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tuning_jobs as jobs

from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.local_search import ExpectedCost, refine_plan
from unfold_tuning.planner.planner import select_refined
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.plan_cost import simulate_plan, simulate_plans
from unfoldkit.catalog.billing import Billing

SLOW = Profile(
    LogNormal(17.0, 3.0),
    jobs.IMAGENET,
    provision=LogNormal(20.0, 10.0),
    startup=LogNormal(60.0, 9.0),
    trial_cv=1.0,
)
QUICK = replace(SLOW, provision=LogNormal(0.0), startup=LogNormal(5.0, 0.75))
VARIED_JOBS = {
    "slow": (build_custom_stages([(8, 2), (3, 4)]), SLOW, 60.0),
    "quick": (build_custom_stages([(14, 1), (7, 1)]), QUICK, 0.0),
}
STAGES = VARIED_JOBS["slow"][0]
SMALL = Machine("m", 4, 10.0, max_instances=5, billing=Billing(1.0, 60.0))


def find_min_cost(model: ExecutionModel, goal: Goal) -> float:
    """Find the least dollars of any plan on time."""
    plans = simulate_plans(model, list(jobs.list_all_plans(model)))
    return min(plan.mean_cost_usd for plan in plans if goal.is_met_by(plan))


@pytest.mark.parametrize("job", list(VARIED_JOBS))
@pytest.mark.parametrize("factor", [1.0, 1.02, 1.1, 1.2, 1.3, 2.5])
def test_refined_plans_are_optimal_for_varied_trials(job: str, factor: float) -> None:
    """With trials that vary by their mean, no plan of any instances and workers gives the guarantee for less."""
    stages, profile, minimum = VARIED_JOBS[job]
    machine = replace(SMALL, billing=Billing(1.0, minimum))
    candidates = jobs.evaluate_machines(stages, profile, [machine], 0.95, 300, 0)
    goal = Goal(float(candidates[0].guaranteed_s.min()) * factor, 0.95)
    selection = select_refined(candidates, goal.deadline_s)
    assert selection is not None
    assert selection.plan.mean_cost_usd == pytest.approx(find_min_cost(candidates[0].model, goal), rel=1e-9)


def test_refining_saves_money_and_keeps_the_guarantee() -> None:
    """Local search leads to a plan that is on time and costs less; without randomness it changes nothing."""
    candidate = jobs.evaluate_machines(STAGES, SLOW, [SMALL], 0.95, 300, 0)[0]
    goal = Goal(1.3 * float(candidate.guaranteed_s.min()), 0.95)
    on_time = [plan for plan in candidate.plans if goal.is_met_by(plan)]
    start = max(on_time, key=lambda plan: plan.mean_cost_usd)
    refined = refine_plan(candidate.model, start, goal)
    assert goal.is_met_by(refined)
    assert refined.mean_cost_usd < start.mean_cost_usd
    deterministic = replace(SLOW, iteration=LogNormal(10.0), trial_cv=0.0)
    plain = jobs.evaluate_machines(STAGES, deterministic, [SMALL], 0.95, 10, 0)[0]
    assert refine_plan(plain.model, plain.plans[0], Goal(1e6, 0.95)) is plain.plans[0]


def test_expected_costs_are_the_means_of_sampled_runs() -> None:
    """Plans are ordered by the mean of their sampled runs if no minimum and no increment binds."""
    machine = replace(SMALL, billing=Billing(0.0, 0.0), ingress_usd=0.3, head_usd_per_hour=1.0)
    model = jobs.evaluate_machines(STAGES, SLOW, [machine], 0.95, 4000, 0)[0].model
    for plan in list(jobs.list_all_plans(model))[::97]:
        cost_usd, seconds = ExpectedCost(model).estimate(plan)
        simulated = simulate_plan(model, plan)
        assert cost_usd == pytest.approx(simulated.mean_cost_usd, rel=0.02)
        assert seconds == pytest.approx(simulated.mean_seconds, rel=0.02)
