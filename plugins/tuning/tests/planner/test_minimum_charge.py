"""The exact frontier if instances may be released before their minimum charge is used up."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tuning_jobs as jobs
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_tuning.job.allocation import list_faster_allocations, select_allocation
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.planner.frontier import build_stage_costs, search_frontier
from unfold_tuning.planner.minimum_charge import (
    is_minimum_binding,
    search_exact_frontier,
    search_minimum_charge_frontier,
)
from unfold_tuning.simulator.execution_model import ExecutionModel, build_execution_model
from unfold_tuning.simulator.plan_cost import SimulatedPlan, simulate_plan
from unfoldkit.catalog.billing import Billing


@st.composite
def short_jobs(draw: st.DrawFn) -> jobs.Job:
    """Draw a job with stages that may be shorter than a minimum charge of a minute."""
    counts = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), min_size=2, max_size=3))
    profile = Profile(
        LogNormal(draw(st.floats(0.5, 12.0))),
        draw(st.sampled_from([jobs.RESNET101, jobs.IMAGENET, ((1, 1.0), (2, 1.2), (4, 1.1))])),
        provision=LogNormal(draw(st.sampled_from([0.0, 25.0, 60.0]))),
        startup=LogNormal(draw(st.floats(0.0, 20.0))),
        sync=LogNormal(draw(st.floats(0.0, 5.0))),
    )
    ingress, head = draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from([0.0, 1.0]))
    accelerators = draw(st.sampled_from([1, 2, 4]))
    machine = Machine("m", accelerators, 10.0, 1.0, 6, Billing(0.0, 60.0), ingress, head)
    return build_custom_stages(counts), profile, machine


def simulate_all_counts(model: ExecutionModel) -> list[SimulatedPlan]:
    """Simulate all plans of {1..M}^K instances, billed lifetime by lifetime."""
    table = [list_faster_allocations(stage, model.profile, model.machine) for stage in model.stages]
    smallest = max(row[0].instances for row in table)
    counts = itertools.product(range(smallest, model.machine.max_instances + 1), repeat=len(table))
    return [
        simulate_plan(model, tuple(select_allocation(row, m) for row, m in zip(table, plan, strict=True)))
        for plan in counts
    ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(short_jobs(), st.integers(0, 3))
def test_no_plan_beats_the_frontier_with_a_minimum_charge(job: jobs.Job, running_instances: int) -> None:
    """Of all {1..M}^K, billed by true lifetimes, none beats the frontier, and its points cost what they state."""
    model = replace(build_execution_model(*job, 1, 0), running_instances=running_instances)
    frontier = search_minimum_charge_frontier(model, build_stage_costs(model))
    plans = simulate_all_counts(model)
    times, costs = np.array([p.mean_seconds for p in plans]), np.array([p.mean_cost_usd for p in plans])
    for deadline_s, cost_usd in zip(frontier.seconds, frontier.cost_usd, strict=True):
        assert costs[times <= deadline_s + 1e-6].min() == pytest.approx(cost_usd, rel=1e-6, abs=1e-6)
    assert times.min() == pytest.approx(frontier.seconds[0], rel=1e-9)
    for plan, cost_usd in zip(frontier.plans, frontier.cost_usd, strict=True):
        assert simulate_plan(model, plan).mean_cost_usd == pytest.approx(cost_usd, rel=1e-6, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(short_jobs())
def test_both_searches_agree_without_a_minimum(job: jobs.Job) -> None:
    """If nothing is prepaid, the labels with credits give the frontier of those without."""
    model = build_execution_model(job[0], job[1], replace(job[2], billing=Billing(0.0, 0.0)), 1, 0)
    costs = build_stage_costs(model)
    with_credits, without = search_minimum_charge_frontier(model, costs), search_frontier(costs)
    assert with_credits.cost_usd == pytest.approx(without.cost_usd, rel=1e-9, abs=1e-9)


def test_credits_are_searched_if_the_minimum_may_bind() -> None:
    """A start-up longer than the minimum needs no credits; with a short one the plain search pays twice."""
    stages = build_custom_stages([(6, 1), (2, 1), (6, 1)])
    profile = Profile(LogNormal(10.0), startup=LogNormal(60.0))
    machine = Machine("m", 1, 3600.0, max_instances=6, billing=Billing(0.0, 60.0))
    model = build_execution_model(stages, profile, machine, 1, 0)
    assert not is_minimum_binding(model, build_stage_costs(model))
    short = model.with_profile(replace(profile, startup=LogNormal(1.0)))
    costs = build_stage_costs(short)
    assert is_minimum_binding(short, costs)
    plain, exact = search_frontier(costs), search_exact_frontier(short, costs)
    in_time = plain.seconds <= 32.5
    misled = plain.plans[int(np.argmin(np.where(in_time, plain.cost_usd, np.inf)))]
    # kept for the 10 s in which two would do, six instances use up their minimum; released, four are paid twice
    assert [allocation.instances for allocation in misled] == [6, 2, 6]
    assert [allocation.instances for allocation in exact.plans[0]] == [6, 6, 6]
    exact_usd = simulate_plan(short, exact.plans[0]).mean_cost_usd
    assert simulate_plan(short, misled).mean_cost_usd > exact_usd == pytest.approx(6 * 60.0)
