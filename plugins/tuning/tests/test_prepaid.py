"""The exact curve where instances may be released before their minimum charge is used up."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import jobs

from unfold_tuning.job.allocation import at, ladder
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import Stage, custom
from unfold_tuning.planner.frontier import curve, grid
from unfold_tuning.planner.minimum_charge import binds, exact_curve, prepaid_curve
from unfold_tuning.simulator.execution_model import Model, model
from unfold_tuning.simulator.plan_cost import Score, score
from unfoldkit.catalog.billing import Billing


@st.composite
def short_jobs(draw: st.DrawFn) -> tuple[tuple[Stage, ...], Profile, Machine]:
    """Draw a job whose stages may be shorter than a minimum charge of a minute."""
    counts = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), min_size=2, max_size=3))
    profile = Profile(
        Spread(draw(st.floats(0.5, 12.0))),
        draw(st.sampled_from([jobs.RESNET101, jobs.IMAGENET, ((1, 1.0), (2, 1.2), (4, 1.1))])),
        provision=Spread(draw(st.sampled_from([0.0, 25.0, 60.0]))),
        startup=Spread(draw(st.floats(0.0, 20.0))),
        sync=Spread(draw(st.floats(0.0, 5.0))),
    )
    ingress, head = draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from([0.0, 1.0]))
    each = draw(st.sampled_from([1, 2, 4]))
    return custom(counts), profile, Machine("m", each, 10.0, 1.0, 6, Billing(0.0, 60.0), ingress, head)


def every_plan(drawn: Model) -> list[Score]:
    """Return all plans of {1..M}^K, billed life by life."""
    ladders = [ladder(stage, drawn.profile, drawn.machine) for stage in drawn.stages]
    least = max(steps[0].instances for steps in ladders)
    counts = itertools.product(range(least, drawn.machine.limit + 1), repeat=len(ladders))
    return [score(drawn, tuple(at(s, m) for s, m in zip(ladders, item, strict=True))) for item in counts]


@settings(max_examples=60, deadline=None)
@given(short_jobs(), st.integers(0, 3))
def test_no_plan_beats_the_curve_with_the_minimum_charged(
    job: tuple[tuple[Stage, ...], Profile, Machine], held: int
) -> None:
    """Of all {1..M}^K, billed by true lives, none beats the curve, and every point of it costs what it says."""
    drawn = replace(model(*job, 1, 0), held=held)
    found = prepaid_curve(drawn, grid(drawn))
    plans = every_plan(drawn)
    times, costs = np.array([p.mean_seconds for p in plans]), np.array([p.cost for p in plans])
    for deadline, dollars in zip(found.seconds, found.dollars, strict=True):
        assert costs[times <= deadline + 1e-6].min() == pytest.approx(dollars, rel=1e-6, abs=1e-6)
    assert times.min() == pytest.approx(found.seconds[0], rel=1e-9)
    for plan, dollars in zip(found.plans, found.dollars, strict=True):
        assert score(drawn, plan).cost == pytest.approx(dollars, rel=1e-6, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(short_jobs())
def test_without_a_minimum_both_searches_find_the_same(job: tuple[tuple[Stage, ...], Profile, Machine]) -> None:
    """Where nothing is prepaid the labels with credits come to the curve of those without."""
    drawn = model(job[0], job[1], replace(job[2], billing=Billing(0.0, 0.0)), 1, 0)
    table = grid(drawn)
    assert prepaid_curve(drawn, table).dollars == pytest.approx(curve(table).dollars, rel=1e-9, abs=1e-9)


def test_the_search_with_credits_is_used_where_the_minimum_may_bind() -> None:
    """A start-up longer than the minimum keeps the quick search; with a short one it would buy what is paid already."""
    stages = custom([(6, 1), (2, 1), (6, 1)])
    profile = Profile(Spread(10.0), startup=Spread(60.0))
    machine = Machine("m", 1, 3600.0, limit=6, billing=Billing(0.0, 60.0))
    drawn = model(stages, profile, machine, 1, 0)
    assert not binds(drawn, grid(drawn))
    short = drawn.with_profile(replace(profile, startup=Spread(1.0)))
    assert binds(short, grid(short))
    blind, seeing = curve(grid(short)), exact_curve(short, grid(short))
    in_time = blind.seconds <= 32.5
    misled = blind.plans[int(np.argmin(np.where(in_time, blind.dollars, np.inf)))]
    # kept for the 10 s in which two would do, six instances are used up; given back, four are bought twice
    assert [deal.instances for deal in misled] == [6, 2, 6]
    assert [deal.instances for deal in seeing.plans[0]] == [6, 6, 6]
    assert score(short, misled).cost > score(short, seeing.plans[0]).cost == pytest.approx(6 * 60.0)
