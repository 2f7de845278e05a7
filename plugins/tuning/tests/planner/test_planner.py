"""Plans over machines: the guarantee, the lower bound, and bills that round up to coarse increments."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import tuning_jobs as jobs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unfold_tuning.job.allocation import list_faster_allocations, select_allocation
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import Group, Stage, build_custom_stages, build_successive_halving
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.planner import (
    compute_global_bound,
    plan_baselines,
    select_best,
    select_earliest,
)
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.plan_cost import simulate_plan, simulate_plans
from unfoldkit.catalog.billing import Billing


@pytest.mark.e2e
@pytest.mark.parametrize("name", list(jobs.JOBS))
def test_guarantees_hold_on_fresh_runs(name: str) -> None:
    """A plan selected for 95 % on one seed is on time in at least 93 % of fresh runs from another seed."""
    stages, profile = jobs.JOBS[name][0], jobs.noisy_profile(name)
    candidates = jobs.evaluate_machines(stages, profile, [jobs.P3], 0.95, 4000, 1)
    deadline_s = select_earliest(candidates).plan.compute_guaranteed_seconds(0.95) * 1.1
    selection = select_best(candidates, deadline_s)
    assert selection is not None
    fresh = simulate_plan(build_execution_model(stages, profile, jobs.P3, 4000, 999), selection.plan.plan)
    assert fresh.estimate_on_time_probability(deadline_s) >= 0.93


@pytest.mark.parametrize("factor", [1.4, 1.7, 2.5])
@pytest.mark.parametrize("name", ["J1", "J3"])
def test_bound_exact_greedy_and_static_are_ordered_by_cost(name: str, factor: float) -> None:
    """The bound costs at most the plan, which costs at most the greedy's, which costs at most the best static."""
    candidates = jobs.evaluate_machines(jobs.JOBS[name][0], jobs.noisy_profile(name), [jobs.P3], 0.95, 1000, 3)
    goal = Goal(factor * jobs.fastest_seconds(name), 0.95)
    selection, baselines = select_best(candidates, goal.deadline_s), plan_baselines(candidates[0], goal)
    assert selection is not None
    assert baselines.greedy.plan is not None
    assert baselines.static.plan is not None
    exact_usd, greedy_usd = selection.plan.mean_cost_usd, baselines.greedy.plan.mean_cost_usd
    assert compute_global_bound(candidates, goal) <= exact_usd + 1e-9
    assert exact_usd <= greedy_usd + 1e-9 <= baselines.static.plan.mean_cost_usd + 2e-9


@pytest.mark.e2e
@pytest.mark.parametrize("per", ["instance", "function"])
@pytest.mark.parametrize("trial_cv", [0.05, 0.5])
def test_plans_are_nearly_the_cheapest_of_all(per: Literal["instance", "function"], trial_cv: float) -> None:
    """No plan on time of any instances and workers is 2 % cheaper than the selected one, or beats the bound."""
    stages = build_custom_stages([(11, 2), (5, 4), (2, 12)])
    profile = replace(jobs.noisy_profile("J3"), trial_cv=trial_cv)
    machine = replace(jobs.P3, max_instances=5, billing=Billing(1.0, 60.0, per))
    candidates = jobs.evaluate_machines(stages, profile, [machine], 0.9, 300, 5)
    plans = simulate_plans(candidates[0].model, list(jobs.list_all_plans(candidates[0].model)))
    earliest_s = select_earliest(candidates).plan.compute_guaranteed_seconds(0.9)
    for deadline_s in np.geomspace(earliest_s, earliest_s * 3, 5):
        goal = Goal(float(deadline_s), 0.9)
        selection, baselines = select_best(candidates, goal.deadline_s), plan_baselines(candidates[0], goal)
        min_cost = min(plan.mean_cost_usd for plan in plans if goal.is_met_by(plan))
        assert selection is not None
        assert min_cost <= selection.plan.mean_cost_usd <= 1.02 * min_cost
        assert compute_global_bound(candidates, goal) <= min_cost + 1e-9
        for baseline in (baselines.static.plan, baselines.naive.plan):
            assert baseline is None or baseline.mean_cost_usd >= selection.plan.mean_cost_usd - 1e-9


@pytest.mark.parametrize("trial_cv", [0.05, 0.5])
def test_the_bound_is_exact_where_few_plans_are_open(trial_cv: float) -> None:
    """Next to a plan that is found, the bound is the cost of the cheapest plan on time of all that are searched."""
    stages = build_custom_stages([(11, 2), (5, 4), (2, 12)])
    profile = replace(jobs.noisy_profile("J3"), trial_cv=trial_cv)
    machine = replace(jobs.P3, max_instances=5)
    (candidate,) = jobs.evaluate_machines(stages, profile, [machine], 0.9, 300, 5)
    plans = simulate_plans(candidate.model, list(itertools.product(*candidate.costs.allocations)))
    earliest_s, closed = float(candidate.guaranteed_s.min()), 0
    for deadline_s in np.geomspace(earliest_s, earliest_s * 3, 5):
        goal = Goal(float(deadline_s), 0.9)
        min_cost = min((plan.mean_cost_usd for plan in plans if goal.is_met_by(plan)), default=np.inf)
        for plan_usd in (1.3 * min_cost, min_cost, 0.9 * min_cost):
            bound_usd = compute_global_bound([candidate], goal, plan_usd)
            assert bound_usd == pytest.approx(min(min_cost, plan_usd)) or plan_usd < min_cost
            closed += bound_usd > compute_global_bound([candidate], goal) + 1e-9
    assert closed


@pytest.mark.parametrize("increment", [600.0, 3600.0])
def test_the_bound_counts_the_instances_that_every_plan_holds(increment: float) -> None:
    """Under coarse billing the bound is the increments of the fewest instances in time, and no plan undercuts it."""
    stages = build_custom_stages([(11, 2), (5, 4), (2, 12)])
    machine = replace(jobs.P3, max_instances=5, billing=Billing(increment, 0.0))
    candidates = jobs.evaluate_machines(stages, jobs.noisy_profile("J3"), [machine], 0.9, 300, 5)
    plans = simulate_plans(candidates[0].model, list(jobs.list_all_plans(candidates[0].model)))
    earliest_s = select_earliest(candidates).plan.compute_guaranteed_seconds(0.9)
    instances = set()
    for deadline_s in np.geomspace(earliest_s, earliest_s * 4, 6):
        goal = Goal(float(deadline_s), 0.9)
        bound_usd = compute_global_bound(candidates, goal)
        assert bound_usd <= min(plan.mean_cost_usd for plan in plans if goal.is_met_by(plan)) + 1e-9
        instances.add(int(bound_usd / machine.billing.cost(1.0, machine.usd_per_hour) + 1e-9))
    assert min(instances) >= 1
    assert max(instances) >= 2


def test_hourly_billing_uses_every_hour_that_has_begun() -> None:
    """Billed by the hour, the plan costs what the cheapest of all {1..16}^3 plans on time costs: $2, not $3."""
    profile = Profile(LogNormal(90.0), provision=LogNormal(45.0), startup=LogNormal(60.0), sync=LogNormal(10.0))
    machine = Machine("one", 1, 1.0, max_instances=16, billing=Billing(3600.0, 0.0))
    stages = build_successive_halving(16, 1, 27, 3)
    candidates = jobs.evaluate_machines(stages, profile, [machine], 0.95, 1, 0)
    selection = select_best(candidates, 4200.0)
    assert selection is not None
    model = candidates[0].model
    table = [list_faster_allocations(stage, profile, machine) for stage in stages]
    plans = (
        simulate_plan(model, tuple(select_allocation(row, m) for row, m in zip(table, counts, strict=True)))
        for counts in itertools.product((1, 2, 3, 4, 8, 16), repeat=3)
    )
    min_cost = min(plan.mean_cost_usd for plan in plans if plan.mean_seconds <= 4200.0)
    assert selection.plan.mean_cost_usd == pytest.approx(min_cost)
    assert selection.plan.mean_cost_usd == pytest.approx(2.0)


# the greedy ends lower from the static cluster than from the cheapest plan of the frontier
UNEVEN = (
    (Stage((Group(9, 17),)), Stage((Group(1, 12, 17),)), Stage((Group(7, 17),))),
    Profile(LogNormal(1.0), jobs.IMAGENET, startup=LogNormal(32.0), sync=LogNormal(61.0)),
    Machine("m", 2, 10.0, max_instances=6),
)


@settings(max_examples=25, deadline=None)
@example(UNEVEN, 60.0, 1.4375)
@given(jobs.small_jobs(), st.sampled_from([60.0, 3600.0]), st.floats(1.01, 3.0))
def test_no_baseline_is_cheaper_under_coarse_billing(job: jobs.Job, increment: float, factor: float) -> None:
    """Whatever the increment of the bill, no static, naive or greedy cluster on time costs less than the plan."""
    stages, profile, machine = job
    machine = replace(machine, billing=Billing(increment, 0.0))
    candidates = jobs.evaluate_machines(stages, profile, [machine], 0.95, 1, 0)
    deadline_s = factor * float(candidates[0].guaranteed_s.min())
    selection, baselines = select_best(candidates, deadline_s), plan_baselines(candidates[0], Goal(deadline_s, 0.95))
    assert selection is not None
    for baseline in (baselines.static.plan, baselines.naive.plan, baselines.greedy.plan):
        assert baseline is None or selection.plan.mean_cost_usd <= baseline.mean_cost_usd + 1e-6
