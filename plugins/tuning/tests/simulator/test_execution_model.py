"""Sampled runs: their distributions, common random numbers and caches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tuning_jobs as jobs
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_tuning.job.allocation import list_faster_allocations, select_allocation
from unfold_tuning.job.profile import LogNormal
from unfold_tuning.job.schedule import build_custom_stages, build_hyperband
from unfold_tuning.simulator.execution_model import (
    TrialSlowdowns,
    build_execution_model,
    compute_mean_startup_s,
    scale_iteration,
    to_lognormal,
    to_slowest,
)
from unfold_tuning.simulator.plan_cost import simulate_plan


def test_a_slow_trial_stays_slow() -> None:
    """Without noise, a surviving trial's iterations take as long as before, within its own bracket."""
    profile = replace(jobs.deterministic_profile("J1"), trial_cv=1.2)
    model = build_execution_model(build_hyperband(9, 3, parallel=True), profile, jobs.P3, 200, 4)
    iteration_s = [model.sample_trial_seconds(index, 1) / model.draws[index].iterations for index in range(3)]
    first, second = model.stages[0].groups, model.stages[1].groups
    assert [group.trials for group in first] == [9, 5, 3]
    assert [group.trials for group in second] == [3, 1]
    # longest first: the columns of the third bracket, of the second, of the first; then those of the second, the first
    assert iteration_s[1] == pytest.approx(iteration_s[0][:, [3, 8, 9, 10]])
    assert iteration_s[2] == pytest.approx(iteration_s[0][:, [8]])
    assert float((iteration_s[0] / 40.0).std()) > 1.0


def test_slower_iterations_delay_every_run() -> None:
    """With the same draws, longer iterations end every sampled run later and cost more."""
    model = build_execution_model(jobs.JOBS["J1"][0], jobs.noisy_profile("J1"), jobs.P3, 200, 0)
    rows = [list_faster_allocations(stage, model.profile, model.machine) for stage in model.stages]
    plan = tuple(select_allocation(row, 4) for row in rows)
    base = simulate_plan(model, plan)
    slow = simulate_plan(model.with_profile(scale_iteration(model.profile, 1.1)), plan)
    assert (slow.seconds > base.seconds).all()
    assert (slow.cost_usd > base.cost_usd).all()


@given(st.floats(0.1, 100), st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_lognormal_draws_have_the_given_moments(mean: float, cv: float) -> None:
    """Log-normal draws have the mean and the log-deviation of their quantity."""
    normal = np.random.default_rng(0).standard_normal(200_000)
    draws = to_lognormal(LogNormal(mean, cv * mean), normal)
    assert draws.mean() == pytest.approx(mean, rel=0.05)
    assert np.log(draws).std() == pytest.approx(LogNormal(mean, cv * mean).sigma, abs=0.02)


def test_one_draw_gives_the_slowest_of_many() -> None:
    """One normal transformed into the largest of k has the distribution of the largest of k normals."""
    rng = np.random.default_rng(0)
    for count in (1, 4, 16):
        direct = rng.standard_normal((40_000, count)).max(axis=1)
        transformed = to_slowest(rng.standard_normal(40_000), count)
        assert transformed.mean() == pytest.approx(direct.mean(), abs=0.03)
        assert transformed.std() == pytest.approx(direct.std(), abs=0.03)
    profile = jobs.noisy_profile("J1")
    assert compute_mean_startup_s(profile, 8) > compute_mean_startup_s(profile, 1)


def test_interruptions_only_delay() -> None:
    """With the same draws, a spot run is never earlier than on demand, and a higher rate never earlier than a lower."""
    model = build_execution_model(jobs.JOBS["J1"][0], jobs.noisy_profile("J1"), jobs.P3, 500, 0)
    rows = [list_faster_allocations(stage, model.profile, jobs.P3) for stage in model.stages]
    plan = tuple(select_allocation(row, 4) for row in rows)
    machines = [replace(jobs.P3, interruptions_per_hour=rate) for rate in (0.0, 0.2, 2.0)]
    ends = [simulate_plan(model.with_machine(machine), plan).seconds for machine in machines]
    assert (ends[1] >= ends[0]).all()
    assert (ends[2] >= ends[1]).all()
    assert ends[1].mean() > ends[0].mean()


def test_derived_models_do_not_share_wrong_caches() -> None:
    """The remaining job, and the job under another profile, have their own start-ups and trials."""
    model = build_execution_model(jobs.JOBS["J1"][0], jobs.noisy_profile("J1"), jobs.P3, 50, 0)
    first, second = model.sample_startup_seconds(0, 2), model.sample_startup_seconds(1, 2)
    cheaper = model.with_machine(replace(jobs.P3, usd_per_hour=1.0))
    assert np.array_equal(model.sample_startup_seconds(0, 2), first)
    assert np.array_equal(cheaper.sample_startup_seconds(0, 2), first)
    assert np.array_equal(model.select_remaining(1, 0).sample_startup_seconds(0, 2), second)
    later = model.with_profile(replace(model.profile, startup=LogNormal(90.0)))
    assert later.sample_startup_seconds(0, 2) == pytest.approx(90.0)
    keys = [(index, workers) for index in (0, 1, 2) for workers in (1, 2)]
    trials = [model.sample_trial_seconds(*key) for key in keys]
    repeated = [model.sample_trial_seconds(*key) for key in keys]
    assert all(np.array_equal(old, new) for old, new in zip(trials, repeated, strict=True))
    assert np.array_equal(model.select_remaining(1, 0).sample_trial_seconds(0, 2), model.sample_trial_seconds(1, 2))


def test_known_slowdowns_are_the_times_of_the_stage() -> None:
    """Without other variation the next stage takes what its slowest known trial takes; new brackets stay unknown."""
    profile = replace(jobs.deterministic_profile("J1"), trial_cv=0.5)
    stages = build_custom_stages([(4, 1), (2, 3), (4, 1)])
    model = build_execution_model(stages, profile, jobs.P3, 50, 0)
    remaining = model.select_remaining(1, 2).with_slowdowns(TrialSlowdowns((0.5, 2.0)))
    allocation = select_allocation(list_faster_allocations(stages[1], profile, jobs.P3), 2)
    speedup = profile.get_speedup(allocation.workers, jobs.P3.accelerators)
    assert remaining.sample_stage_seconds(0, allocation) == pytest.approx(3 * 40.0 * 2.0 / speedup + 10.0)
    last = select_allocation(list_faster_allocations(stages[2], profile, jobs.P3), 2)
    assert remaining.sample_stage_seconds(1, last).std() > 0


def test_survivors_are_drawn_from_the_trials_with_known_slowdowns() -> None:
    """In later stages each sampled run draws its survivors among the known trials, the later among the earlier."""
    slowdowns = TrialSlowdowns(tuple(float(k) for k in range(1, 10)))
    three, one = slowdowns.sample(400, 3), slowdowns.sample(400, 1)
    assert all(len(set(row)) == 3 for row in three.tolist())
    assert (three == one).any(axis=1).all()
    assert three.mean() == pytest.approx(5.0, abs=0.4)
