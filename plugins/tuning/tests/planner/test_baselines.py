"""Baselines with trials that span several instances."""

from __future__ import annotations

from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.planner.baselines import simulate_naive_clusters
from unfold_tuning.simulator.execution_model import build_execution_model


def test_no_plan_exceeds_the_instance_limit() -> None:
    """Naive elasticity, which gives every trial its own accelerators, stays within the maximum of instances."""
    profile = Profile(LogNormal(600.0), ((1, 1.0), (2, 1.9), (4, 3.6)), ((8, 6.9), (16, 13.0)))
    machine = Machine("four", 4, 12.0, max_instances=3)
    model = build_execution_model(build_custom_stages([(9, 2), (1, 9)]), profile, machine, 10, 0)
    allocations = [allocation for plan in simulate_naive_clusters(model) for allocation in plan.plan]
    assert allocations
    assert max(allocation.instances for allocation in allocations) == 3
    assert all(allocation.slots * allocation.workers <= allocation.instances * 4 for allocation in allocations)
