"""The loss of all spot instances at once."""

from __future__ import annotations

from dataclasses import replace

import tuning_jobs as jobs

from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.profile import LogNormal, Machine
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.planner import evaluate_machine
from unfold_tuning.planner.sensitivity import simulate_total_loss
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.plan_cost import simulate_plan


def test_total_loss_costs_half_a_checkpoint_interval() -> None:
    """Losing all instances costs half a checkpoint interval, at most half the stage, and new instances."""
    machine = Machine("m", 4, 10.0, max_instances=2, interruptions_per_hour=0.1, checkpoint_iters=100)
    profile = replace(jobs.deterministic_profile("J1"), provision=LogNormal(30.0), startup=LogNormal(60.0))
    stages = build_custom_stages([(1, 20)])
    candidate = evaluate_machine(build_execution_model(stages, profile, machine, 1, 0), 0.95)
    plan = (Allocation(1, 4, 1),)
    end_s = simulate_plan(candidate.model, plan).mean_seconds + 20 / 2 * 40.0 / 3.632 + 30 + 60
    assert simulate_total_loss(candidate, plan, Goal(end_s + 1, 0.95)) == 1
    assert simulate_total_loss(candidate, plan, Goal(end_s - 1, 0.95)) == 0
