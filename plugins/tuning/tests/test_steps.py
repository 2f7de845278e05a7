"""Bills that round lives up to steps, which the label search does not know."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import jobs

from unfold_tuning.job.allocation import at, ladder
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import Group, Stage, successive_halving
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.planner import best, offers, rivals
from unfold_tuning.simulator.plan_cost import score
from unfoldkit.catalog.billing import Billing


def test_an_hour_that_is_begun_is_used() -> None:
    """Billed by the hour, the plan costs what the cheapest of all {1..16}^3 plans on time costs: $2, not $3."""
    profile = Profile(Spread(90.0), provision=Spread(45.0), startup=Spread(60.0), sync=Spread(10.0))
    machine = Machine("one", 1, 1.0, limit=16, billing=Billing(3600.0, 0.0))
    found = offers(successive_halving(16, 1, 27, 3), profile, [machine], 0.95, 1, 0)
    picked = best(found, 4200.0)
    assert picked is not None
    ladders = [ladder(stage, profile, machine) for stage in found[0].model.stages]
    every = (
        score(found[0].model, tuple(at(steps, m) for steps, m in zip(ladders, counts, strict=True)))
        for counts in itertools.product((1, 2, 3, 4, 8, 16), repeat=3)
    )
    assert picked[1].cost == pytest.approx(min(item.cost for item in every if item.mean_seconds <= 4200.0))
    assert picked[1].cost == pytest.approx(2.0)


# greedy ends lower from the fixed cluster than from the cheapest plan of the curve
UNEVEN = (
    (Stage((Group(9, 17),)), Stage((Group(1, 12, 17),)), Stage((Group(7, 17),))),
    Profile(Spread(1.0), jobs.IMAGENET, startup=Spread(32.0), sync=Spread(61.0)),
    Machine("m", 2, 10.0, limit=6),
)


@settings(max_examples=25, deadline=None)
@example(UNEVEN, 60.0, 1.4375)
@given(jobs.small_jobs(), st.sampled_from([60.0, 3600.0]), st.floats(1.01, 3.0))
def test_no_rival_is_cheaper(job: tuple[tuple[Stage, ...], Profile, Machine], step: float, factor: float) -> None:
    """Whatever the step of the bill, no fixed, naive or greedy cluster on time costs less than the plan."""
    stages, profile, machine = job
    machine = replace(machine, billing=Billing(step, 0.0))
    found = offers(stages, profile, [machine], 0.95, 1, 0)
    deadline = factor * float(found[0].promised.min())
    picked, others = best(found, deadline), rivals(found[0], Goal(deadline, 0.95))
    assert picked is not None
    for rival in (others.static.best, others.naive.best, others.greedy.best):
        assert rival is None or picked[1].cost <= rival.cost + 1e-6
