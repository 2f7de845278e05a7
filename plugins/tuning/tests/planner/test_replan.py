"""Planning again with what is known of each trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tuning_jobs as jobs
from hypothesis import given
from hypothesis import strategies as st

from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.planner.planner import evaluate_machine
from unfold_tuning.planner.replan import (
    Posterior,
    build_remaining_stage,
    estimate_iteration_s,
    estimate_slowdowns,
    replan_remaining,
    rescale_allocation,
)
from unfold_tuning.simulator.execution_model import TrialSlowdowns, build_execution_model
from unfold_tuning.simulator.plan_cost import simulate_plan
from unfold_tuning.trial.worker import TrialJob


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=8), st.integers(1, 50), st.floats(0.0, 1.0))
def test_slowdowns_shrink_towards_the_prior(ratios: list[float], iters: int, trial_cv: float) -> None:
    """A trial's slowdown lies between its own ratio and the mean, nearer to its ratio the more it has run."""
    profile = replace(jobs.noisy_profile("J1"), trial_cv=trial_cv)
    few, many = (estimate_slowdowns(ratios, count, profile, Posterior(0.0, 0.1)) for count in (iters, 10 * iters))
    for ratio, short, long in zip(ratios, few.factors, many.factors, strict=True):
        assert min(1.0, ratio) - 1e-9 <= short <= max(1.0, ratio) + 1e-9
        assert abs(np.log(long / ratio)) <= abs(np.log(short / ratio)) + 1e-9
    assert many.log_std <= few.log_std + 1e-12


def test_the_remaining_stage_has_the_iterations_left() -> None:
    """Each open trial counts with the iterations to its target; running trials keep their workers."""
    running = [
        TrialJob(trial=trial, config={}, done=done, target=10, checkpoint_iters=1, workers=2, seed=0, folder=Path())
        for trial, done in ((1, 3), (2, 0))
    ]
    assert build_remaining_stage(running).list_iterations() == [10, 7]
    assert rescale_allocation(Allocation(1, 2, 2), Allocation(3, 4, 3), 4) == Allocation(3, 2, 6)
    assert rescale_allocation(Allocation(2, 8, 1), Allocation(1, 4, 1), 4) == Allocation(2, 8, 1)


def test_knowing_quick_survivors_saves_money() -> None:
    """With survivors known to be quick, the guarantee costs less than with the variation of all trials."""
    profile = replace(jobs.noisy_profile("J1"), trial_cv=0.8)
    model = build_execution_model(build_custom_stages([(32, 1), (10, 4), (3, 12)]), profile, jobs.P3, 500, 0)
    remaining = model.select_remaining(1, 8)
    known = remaining.with_slowdowns(TrialSlowdowns((0.4,) * 10, 0.05))
    plan = evaluate_machine(remaining, 0.95).plans[0].plan
    time_left_s = float(np.quantile(simulate_plan(remaining, plan).seconds, 0.96))
    plans = [replan_remaining(item, plan, time_left_s, 0.95).plan for item in (remaining, known)]
    without, with_knowledge = (simulate_plan(known, item).mean_cost_usd for item in plans)
    assert with_knowledge < without


@pytest.mark.parametrize(("slack", "instances"), [(1.5, 2), (2.5, 2), (6.0, 1)])
def test_slack_is_given_up_only_for_a_larger_saving(slack: float, instances: int) -> None:
    """A sure plan is exchanged only if the saved fraction of its cost exceeds the taken one of the slack."""
    profile = replace(jobs.noisy_profile("J1"), trial_cv=0.3)
    model = build_execution_model(build_custom_stages([(8, 1), (2, 12)]), profile, jobs.P3, 500, 0)
    remaining = model.select_remaining(1, 2)
    two, one = (simulate_plan(remaining, (Allocation(count, 4, count),)) for count in (2, 1))
    assert one.mean_cost_usd < 0.9 * two.mean_cost_usd
    replan = replan_remaining(remaining, two.plan, slack * one.compute_guaranteed_seconds(0.99), 0.95)
    assert replan.plan[0].instances == instances


@pytest.mark.parametrize("worker_cv", [0.0, 0.3])
def test_expected_iterations_are_the_mean_of_sampled_ones(worker_cv: float) -> None:
    """The expected time of a trial is the mean of its sampled times, the variation of its workers included."""
    profile = replace(jobs.deterministic_profile("J1"), worker_cv=worker_cv)
    model = build_execution_model(build_custom_stages([(4, 5)]), profile, jobs.P3, 4000, 0)
    for workers in profile.list_worker_counts(jobs.P3.accelerators):
        expected_s = 5 * estimate_iteration_s(profile, workers, jobs.P3)
        assert model.sample_trial_seconds(0, workers).mean() == pytest.approx(expected_s, rel=0.01)
