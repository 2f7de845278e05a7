"""Simulation of a run that plans again at its barriers: one model is the truth, the other what the planner assumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning._types import FloatArray
from unfold_tuning.job.allocation import Plan
from unfold_tuning.job.profile import LogNormal, Profile
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.replan import (
    build_prior,
    estimate_iteration_s,
    estimate_ratio_std,
    replan_remaining,
)
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.plan_cost import simulate_plan


@dataclass(frozen=True, slots=True)
class ReplannedRun:
    """A simulated run: its duration, its cost and the plan that it ended with."""

    seconds: float
    cost_usd: float
    plan: Plan


def simulate_replanned_run(
    truth: ExecutionModel, sample: int, assumed: ExecutionModel, plan: Plan, goal: Goal
) -> ReplannedRun:
    """Simulate one run of the truth, planning the remaining stages again after each stage from its measurements.

    Args:
        truth: The job as it really behaves.
        sample: Index of the run.
        assumed: The job under the profile that the plan was made from.
        plan: The plan at the start.
        goal: The guarantee.
    """
    run, profile = truth.select_run(sample), assumed.profile
    posterior = build_prior(profile)
    for index in range(len(plan) - 1):
        profile = _measure_provision(profile, run, plan, index)
        noise = estimate_ratio_std(profile, float(run.draws[index].iterations.mean()))
        posterior = posterior.update(_measure_ratios(run, assumed.profile, index, plan[index].workers), noise)
        time_left_s = goal.deadline_s - float(simulate_plan(run, plan).ends[index, 0])
        corrected = assumed.with_profile(posterior.apply_to(profile))
        remaining = corrected.select_remaining(index + 1, plan[index].instances)
        replan = replan_remaining(remaining, plan[index + 1 :], time_left_s, goal.confidence)
        plan = (*plan[: index + 1], *replan.plan)
    end = simulate_plan(run, plan)
    return ReplannedRun(float(end.seconds[0]), float(end.cost_usd[0]), plan)


def _measure_provision(profile: Profile, run: ExecutionModel, plan: Plan, index: int) -> Profile:
    is_growth = index == 0 or plan[index].instances > plan[index - 1].instances
    return _update_provision(profile, float(run.sample_provision_seconds(index)[0])) if is_growth else profile


def _update_provision(profile: Profile, measured_s: float) -> Profile:
    """Return the profile with the provisioning time moved halfway, in logarithms, to a measured one."""
    provision = profile.provision
    if provision.mean <= 0 or measured_s <= 0:
        return profile
    factor = math.sqrt(measured_s / provision.mean)
    return replace(profile, provision=LogNormal(provision.mean * factor, provision.std * factor))


def _measure_ratios(run: ExecutionModel, profile: Profile, index: int, workers: int) -> Sequence[float]:
    iteration_s = estimate_iteration_s(profile, workers, run.machine)
    expected_s: FloatArray = profile.start.mean + run.draws[index].iterations * iteration_s
    return [float(ratio) for ratio in np.asarray(run.sample_trial_seconds(index, workers)[0] / expected_s)]
