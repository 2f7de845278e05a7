"""Allocations of trials that span several instances."""

from __future__ import annotations

from unfold_tuning.job.allocation import list_faster_allocations
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages


def test_a_single_trial_grows_across_instances() -> None:
    """On four accelerators per instance, the fastest allocation of one trial is the largest size of ``across``."""
    profile = Profile(LogNormal(600.0), ((1, 1.0), (2, 1.9), (4, 3.6)), ((8, 6.9), (16, 13.0)))
    steps = list_faster_allocations(build_custom_stages([(1, 100)])[0], profile, Machine("four", 4, 12.0))
    assert [(step.instances, step.workers) for step in steps] == [(1, 4), (2, 8), (4, 16)]
