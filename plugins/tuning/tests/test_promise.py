"""Sampled runs: the promise, its bound, and the bill."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import jobs

from unfold_tuning.job.allocation import at, ladder
from unfold_tuning.job.profile import Machine, Spread
from unfold_tuning.job.schedule import custom, hyperband
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.planner import best, cheapest_conceivable, offers, rivals, soonest
from unfold_tuning.simulator.execution_model import lognormal, mean_startup, model, slower, slowest
from unfold_tuning.simulator.plan_cost import score, scores
from unfoldkit.catalog.billing import Billing


@pytest.mark.parametrize("name", list(jobs.JOBS))
def test_what_is_promised_is_seen(name: str) -> None:
    """A plan chosen for 95 % on one seed is on time in at least 93 % of fresh runs from another seed."""
    stages, profile = jobs.JOBS[name][0], jobs.noisy(name)
    found = offers(stages, profile, [jobs.P3], 0.95, 4000, 1)
    goal = Goal(soonest(found)[2] * 1.1, 0.95)
    picked = best(found, goal.deadline)
    assert picked is not None
    fresh = score(model(stages, profile, jobs.P3, 4000, 999), picked[1].plan)
    assert fresh.on_time(goal.deadline) >= 0.93


@pytest.mark.parametrize("factor", [1.4, 1.7, 2.5])
@pytest.mark.parametrize("name", ["J1", "J3"])
def test_bound_exact_greedy_static_are_in_order(name: str, factor: float) -> None:
    """The bound costs at most the exact plan, that at most the greedy's, that at most the best static one."""
    found = offers(jobs.JOBS[name][0], jobs.noisy(name), [jobs.P3], 0.95, 1000, 3)
    goal = Goal(factor * jobs.fastest(name), 0.95)
    picked, others = best(found, goal.deadline), rivals(found[0], goal)
    assert picked is not None
    assert others.greedy.best is not None
    assert others.static.best is not None
    assert cheapest_conceivable(found, goal) <= picked[1].cost + 1e-9
    assert picked[1].cost <= others.greedy.best.cost + 1e-9 <= others.static.best.cost + 2e-9


@pytest.mark.parametrize("per", ["instance", "function"])
@pytest.mark.parametrize("trial_cv", [0.05, 0.5])
def test_the_cheapest_of_all_plans_is_found(per: Literal["instance", "function"], trial_cv: float) -> None:
    """Of all instances and sizes of trials nothing on time is 2 % cheaper than the plan, nor cheaper than the bound."""
    stages, profile = custom([(11, 2), (5, 4), (2, 12)]), replace(jobs.noisy("J3"), trial_cv=trial_cv)
    machine = replace(jobs.P3, limit=5, billing=Billing(1.0, 60.0, per))
    found = offers(stages, profile, [machine], 0.9, 300, 5)
    every = scores(found[0].model, list(jobs.every_plan(found[0].model)))
    for deadline in np.geomspace(soonest(found)[2], soonest(found)[2] * 3, 5):
        goal = Goal(float(deadline), 0.9)
        picked, least = best(found, goal.deadline), min(item.cost for item in every if goal.met(item))
        others = rivals(found[0], goal)
        assert picked is not None
        assert least <= picked[1].cost <= 1.02 * least
        assert cheapest_conceivable(found, goal) <= least + 1e-9
        for rival in (others.static, others.naive):
            assert rival.best is None or rival.best.cost >= picked[1].cost - 1e-9


def test_a_slow_trial_stays_slow() -> None:
    """Without luck of iterations a trial that goes on takes as long for each of them as before, in its own bracket."""
    profile = replace(jobs.still("J1"), trial_cv=1.2)
    drawn = model(hyperband(9, 3, parallel=True), profile, jobs.P3, 200, 4)
    pace = [drawn.trials(index, 1) / drawn.draws[index].lengths for index in range(3)]
    first, second = drawn.stages[0].groups, drawn.stages[1].groups
    assert [group.trials for group in first] == [9, 5, 3]
    assert [group.trials for group in second] == [3, 1]
    # longest first: the columns of the third bracket, of the second, of the first; then those of the second, the first
    assert pace[1] == pytest.approx(pace[0][:, [3, 8, 9, 10]])
    assert pace[2] == pytest.approx(pace[0][:, [8]])
    assert float((pace[0] / 40.0).std()) > 1.0


def test_slower_truth_is_later_in_every_run() -> None:
    """With the same luck, longer iterations end every sampled run later and cost more."""
    drawn = model(jobs.JOBS["J1"][0], jobs.noisy("J1"), jobs.P3, 200, 0)
    steps = [ladder(stage, drawn.profile, drawn.machine) for stage in drawn.stages]
    plan = tuple(at(item, 4) for item in steps)
    base, late = score(drawn, plan), score(drawn.with_profile(slower(drawn.profile, 1.1)), plan)
    assert (late.seconds > base.seconds).all()
    assert (late.dollars > base.dollars).all()


@given(st.floats(0.1, 100), st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_a_spread_has_its_mean_and_deviation(mean: float, cv: float) -> None:
    """Log-normal draws by moments have the mean that was asked for, and the spread."""
    normal = np.random.default_rng(0).standard_normal(200_000)
    drawn = lognormal(Spread(mean, cv * mean), normal)
    assert drawn.mean() == pytest.approx(mean, rel=0.05)
    assert np.log(drawn).std() == pytest.approx(Spread(mean, cv * mean).sigma, abs=0.02)


def test_the_slowest_of_many_from_one_draw() -> None:
    """One normal turned into the largest of k has the distribution of the largest of k normals."""
    rng = np.random.default_rng(0)
    for count in (1, 4, 16):
        direct = rng.standard_normal((40_000, count)).max(axis=1)
        turned = slowest(rng.standard_normal(40_000), count)
        assert turned.mean() == pytest.approx(direct.mean(), abs=0.03)
        assert turned.std() == pytest.approx(direct.std(), abs=0.03)
    assert mean_startup(jobs.noisy("J1"), 8) > mean_startup(jobs.noisy("J1"), 1)


def test_a_bill_by_hand() -> None:
    """A plan that shrinks and grows again is billed life by life, with minimum charge and increments."""
    profile = replace(jobs.still("J1"), iteration=Spread(10.0), startup=Spread(0.0), sync=Spread(0.0))
    machine = Machine("m", 1, 3600.0, limit=4, billing=Billing(60.0, 120.0))
    stages = custom([(2, 1), (1, 2), (3, 3)])
    plan = tuple(at(ladder(s, profile, machine), m) for s, m in zip(stages, (2, 1, 3), strict=True))
    found = score(model(stages, profile, machine, 1, 0), plan)
    # one of two lives 10 s, the other all 60 s, two new ones 30 s each: every one is billed its minimum of 120 s
    assert (found.mean_seconds, found.cost) == (pytest.approx(60.0), pytest.approx(4 * 120.0))


def test_functions_pay_for_work_only() -> None:
    """Billed by function, a straggler costs its own seconds, not those of the places that wait for it."""
    profile = replace(jobs.noisy("J1"), trial_cv=0.5)
    by_instance = Machine("m", 4, 12.0, limit=16, billing=Billing(0.0, 0.0))
    by_function = replace(by_instance, billing=Billing(0.0, 0.0, "function"))
    drawn = model(jobs.JOBS["J1"][0], profile, by_instance, 500, 0)
    plan = tuple(at(ladder(s, profile, by_instance), 8) for s in drawn.stages)
    assert score(drawn.on(by_function), plan).cost < score(drawn, plan).cost


def test_interruptions_only_delay() -> None:
    """With the same luck a spot run is never earlier than on demand, and a higher rate never earlier than a lower."""
    drawn = model(jobs.JOBS["J1"][0], jobs.noisy("J1"), jobs.P3, 500, 0)
    plan = tuple(at(ladder(s, drawn.profile, jobs.P3), 4) for s in drawn.stages)
    ends = [score(drawn.on(replace(jobs.P3, hazard=rate)), plan).seconds for rate in (0.0, 0.2, 2.0)]
    assert (ends[1] >= ends[0]).all()
    assert (ends[2] >= ends[1]).all()
    assert ends[1].mean() > ends[0].mean()


def test_what_is_kept_of_a_model_is_its_own() -> None:
    """The rest of a job, and the job under another profile, have start-ups and trials of their own."""
    drawn = model(jobs.JOBS["J1"][0], jobs.noisy("J1"), jobs.P3, 50, 0)
    first, second = drawn.startup(0, 2), drawn.startup(1, 2)
    assert np.array_equal(drawn.startup(0, 2), first)
    assert np.array_equal(drawn.on(replace(jobs.P3, price=1.0)).startup(0, 2), first)
    assert np.array_equal(drawn.rest(1, 0).startup(0, 2), second)
    later = drawn.with_profile(replace(drawn.profile, startup=Spread(90.0)))
    assert later.startup(0, 2) == pytest.approx(90.0)
    trials = [drawn.trials(index, gang) for index in (0, 1, 2) for gang in (1, 2)]
    again = [drawn.trials(index, gang) for index in (0, 1, 2) for gang in (1, 2)]
    assert all(np.array_equal(one, two) for one, two in zip(trials, again, strict=True))
    assert np.array_equal(drawn.rest(1, 0).trials(0, 2), drawn.trials(1, 2))
