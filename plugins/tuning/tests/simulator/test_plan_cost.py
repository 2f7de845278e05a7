"""Bills of simulated plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tuning_jobs as jobs

from unfold_tuning.job.allocation import Allocation, list_faster_allocations, select_allocation
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.plan_cost import simulate_early_release, simulate_plan
from unfold_tuning.simulator.spot_preemptions import compute_replacement_usd_per_second
from unfoldkit.catalog.billing import Billing


def test_a_plan_is_billed_by_lifetime() -> None:
    """A plan that shrinks and grows again is billed lifetime by lifetime, with minimum charge and increments."""
    profile = replace(
        jobs.deterministic_profile("J1"),
        iteration=LogNormal(10.0),
        startup=LogNormal(0.0),
        sync=LogNormal(0.0),
    )
    machine = Machine("m", 1, 3600.0, max_instances=4, billing=Billing(60.0, 120.0))
    stages = build_custom_stages([(2, 1), (1, 2), (3, 3)])
    rows = [list_faster_allocations(stage, profile, machine) for stage in stages]
    plan = tuple(select_allocation(row, count) for row, count in zip(rows, (2, 1, 3), strict=True))
    simulated = simulate_plan(build_execution_model(stages, profile, machine, 1, 0), plan)
    # one lifetime of 10 s, one of 60 s, two of 30 s: each is billed its minimum of 120 s
    assert (simulated.mean_seconds, simulated.mean_cost_usd) == (pytest.approx(60.0), pytest.approx(4 * 120.0))


def test_idle_instances_are_billed_up_to_their_last_trial() -> None:
    """Of two instances for three equal trials, one is idle while the third runs; the next stage keeps it or not."""
    profile = Profile(LogNormal(10.0), startup=LogNormal(5.0))
    machine = Machine("m", 1, 3600.0, max_instances=4, billing=Billing(0.0, 0.0))
    stages = build_custom_stages([(3, 1), (2, 1)])
    model = build_execution_model(stages, profile, machine, 1, 0)
    plan = (Allocation(2, 1, 2), Allocation(1, 1, 1))
    held, released = simulate_plan(model, plan), simulate_early_release(model, plan)
    # both start for 5 s and run for 20 s, then one of them for 20 s; the idle one ends after 10 s
    assert held.mean_cost_usd == pytest.approx(2 * 25 + 20)
    assert released.mean_cost_usd == pytest.approx(2 * 25 + 20 - 10)
    assert released.stage_ends == held.stage_ends
    assert simulate_early_release(model, plan, (2, 0)).mean_cost_usd == pytest.approx(held.mean_cost_usd)
    # what was released too early is awaited again
    grown = simulate_early_release(model, (plan[0], Allocation(2, 1, 2)), (1, 0))
    assert (grown.mean_seconds, grown.mean_cost_usd) == (pytest.approx(40.0), pytest.approx(60 + 2 * 15 - 20))


def test_an_early_release_never_costs_more() -> None:
    """With noise, waves and trials on several accelerators, a plan ends at the same times and costs no more."""
    model = build_execution_model(jobs.JOBS["J1"][0], replace(jobs.noisy_profile("J1"), trial_cv=0.5), jobs.P3, 200, 0)
    rows = [list_faster_allocations(stage, model.profile, jobs.P3) for stage in model.stages]
    for count in (1, 3, 8):
        plan = tuple(select_allocation(row, count) for row in rows)
        held, released = simulate_plan(model, plan), simulate_early_release(model, plan)
        assert np.array_equal(held.seconds, released.seconds)
        assert (released.cost_usd <= held.cost_usd + 1e-9).all()
        assert (released.cost_usd < held.cost_usd).any() == (count > 1)


def test_functions_are_billed_for_work_only() -> None:
    """Billed by function, a straggler costs its own seconds, not those of the slots that wait for it."""
    profile = replace(jobs.noisy_profile("J1"), trial_cv=0.5)
    by_instance = Machine("m", 4, 12.0, max_instances=16, billing=Billing(0.0, 0.0))
    by_function = replace(by_instance, billing=Billing(0.0, 0.0, "function"))
    model = build_execution_model(jobs.JOBS["J1"][0], profile, by_instance, 500, 0)
    rows = [list_faster_allocations(stage, profile, by_instance) for stage in model.stages]
    plan = tuple(select_allocation(row, 8) for row in rows)
    function_usd = simulate_plan(model.with_machine(by_function), plan).mean_cost_usd
    assert function_usd < simulate_plan(model, plan).mean_cost_usd


def test_on_demand_plans_have_no_replacements() -> None:
    """On demand, a plan's seconds and dollars are those of a machine with almost no preemptions."""
    model = build_execution_model(jobs.JOBS["J1"][0], jobs.noisy_profile("J1"), jobs.P3, 50, 0)
    rows = [list_faster_allocations(stage, model.profile, jobs.P3) for stage in model.stages]
    plan = tuple(select_allocation(row, 4) for row in rows)
    spot = model.with_machine(replace(jobs.P3, interruptions_per_hour=1e-9))
    on_demand, rare = simulate_plan(model, plan), simulate_plan(spot, plan)
    assert compute_replacement_usd_per_second(jobs.P3, model.profile) == 0.0
    assert np.array_equal(on_demand.seconds, rare.seconds)
    assert on_demand.mean_cost_usd == pytest.approx(rare.mean_cost_usd, rel=1e-6)
