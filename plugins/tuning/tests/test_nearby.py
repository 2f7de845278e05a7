"""Cheaper plans beside the curve, against every plan there is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import jobs

from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import custom
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.local_search import Expected, refined
from unfold_tuning.planner.planner import finest, offers
from unfold_tuning.simulator.execution_model import Model
from unfold_tuning.simulator.plan_cost import score, scores
from unfoldkit.catalog.billing import Billing

SLOW = Profile(Spread(17.0, 3.0), jobs.IMAGENET, provision=Spread(20.0, 10.0), startup=Spread(60.0, 9.0), trial_cv=1.0)
QUICK = replace(SLOW, provision=Spread(0.0), startup=Spread(5.0, 0.75))
JOBS = {"slow": (custom([(8, 2), (3, 4)]), SLOW, 60.0), "quick": (custom([(14, 1), (7, 1)]), QUICK, 0.0)}
STAGES = JOBS["slow"][0]
SMALL = Machine("m", 4, 10.0, limit=5, billing=Billing(1.0, 60.0))


def cheapest_of_all(drawn: Model, goal: Goal) -> float:
    """Return the least dollars of any plan on time."""
    return min(item.cost for item in scores(drawn, list(jobs.every_plan(drawn))) if goal.met(item))


@pytest.mark.parametrize("job", list(JOBS))
@pytest.mark.parametrize("factor", [1.0, 1.02, 1.1, 1.2, 1.3, 2.5])
def test_where_trials_vary_much_the_plan_is_the_cheapest_of_all(job: str, factor: float) -> None:
    """With trials that vary by their mean no plan of any instances and sizes of trials keeps the promise for less."""
    stages, profile, minimum = JOBS[job]
    found = offers(stages, profile, [replace(SMALL, billing=Billing(1.0, minimum))], 0.95, 300, 0)
    goal = Goal(float(found[0].promised.min()) * factor, 0.95)
    picked = finest(found, goal.deadline)
    assert picked is not None
    assert picked[1].cost == pytest.approx(cheapest_of_all(found[0].model, goal), rel=1e-9)


def test_a_refined_plan_keeps_the_promise_and_is_no_dearer() -> None:
    """Steps beside a plan lead to one that is on time and costs no more; without chance they lead nowhere."""
    found = offers(STAGES, SLOW, [SMALL], 0.95, 300, 0)[0]
    goal = Goal(1.3 * float(found.promised.min()), 0.95)
    start = max((item for item in found.scores if goal.met(item)), key=lambda item: item.cost)
    better = refined(found.model, start, goal)
    assert goal.met(better)
    assert better.cost < start.cost
    still = replace(SLOW, iteration=Spread(10.0), trial_cv=0.0)
    plain = offers(STAGES, still, [SMALL], 0.95, 10, 0)[0]
    assert refined(plain.model, plain.scores[0], Goal(1e6, 0.95)) is plain.scores[0]


def test_expected_dollars_and_seconds_are_those_of_the_sampled_runs() -> None:
    """What plans are ordered by is the mean of their sampled runs where no minimum and no increment binds."""
    machine = replace(SMALL, billing=Billing(0.0, 0.0), ingress=0.3, head=1.0)
    drawn = offers(STAGES, SLOW, [machine], 0.95, 4000, 0)[0].model
    for plan in list(jobs.every_plan(drawn))[::97]:
        dollars, seconds = Expected(drawn).of(plan)
        played = score(drawn, plan)
        assert dollars == pytest.approx(played.cost, rel=0.02)
        assert seconds == pytest.approx(played.mean_seconds, rel=0.02)
