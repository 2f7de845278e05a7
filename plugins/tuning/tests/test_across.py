"""Trials over several instances: which sizes are known, and that every plan uses known ones only."""

from __future__ import annotations

import pytest

from unfold_tuning.job.allocation import ladder
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import custom
from unfold_tuning.planner.baselines import naive_scores
from unfold_tuning.simulator.execution_model import model

PROFILE = Profile(Spread(600.0), ((1, 1.0), (2, 1.9), (4, 3.6)), ((8, 6.9), (16, 13.0)))


@pytest.mark.parametrize(("accelerators", "known"), [(1, (1, 2, 4, 8, 16)), (4, (1, 2, 4, 8, 16)), (8, (1, 2, 4, 16))])
def test_sizes_of_both_tables_are_known_where_they_hold(accelerators: int, known: tuple[int, ...]) -> None:
    """Over several instances ``across`` goes before ``speedup`` and adds to it; within one ``speedup`` alone counts."""
    assert PROFILE.fitting(accelerators) == known
    assert PROFILE.gain(2, 1) == 1.9
    other = Profile(Spread(1.0), ((1, 1.0), (4, 3.6)), ((4, 2.5),))
    assert (other.gain(4, 4), other.gain(4, 2)) == (3.6, 2.5)


def test_a_trial_grows_over_instances_as_across_says() -> None:
    """On four accelerators each, the fastest deal of one trial is the largest size of ``across``."""
    steps = ladder(custom([(1, 100)])[0], PROFILE, Machine("four", 4, 12.0))
    assert [(deal.instances, deal.gang) for deal in steps] == [(1, 4), (2, 8), (4, 16)]


def test_no_plan_is_larger_than_the_limit() -> None:
    """Naive elasticity, which gives every trial its own accelerators, stays within what may be held."""
    machine = Machine("four", 4, 12.0, limit=3)
    plans = [found.plan for found in naive_scores(model(custom([(9, 2), (1, 9)]), PROFILE, machine, 10, 0))]
    assert plans
    assert max(deal.instances for plan in plans for deal in plan) == 3
    assert all(deal.slots * deal.gang <= deal.instances * 4 for plan in plans for deal in plan)
