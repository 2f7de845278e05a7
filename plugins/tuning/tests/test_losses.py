"""Losses of spot instances: their number, their delay and their bill, against a run that is played event by event."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import nbinom

sys.path.insert(0, str(Path(__file__).parent))
import jobs

from unfold_tuning.job.allocation import Deal, at, ladder
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import custom
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.frontier import grid
from unfold_tuning.planner.minimum_charge import exact_curve
from unfold_tuning.planner.planner import offer
from unfold_tuning.planner.sensitivity import lost_together
from unfold_tuning.simulator.execution_model import model
from unfold_tuning.simulator.kernels import hits, hits_python
from unfold_tuning.simulator.plan_cost import score
from unfold_tuning.simulator.preemption import replacing, struck
from unfoldkit.catalog.billing import Billing

HOUR = 3600.0
Floats = npt.NDArray[np.float64]


def played(hazard: float, every: int, runs: int) -> Floats:
    """Return the hours of a trial of 120 x 12 min as losses come one by one, each with a wait of 15 minutes."""
    rng, piece = np.random.default_rng(1), 0.2 * every
    ends = np.zeros(runs)
    for run in range(runs):
        done, clock, next_ = 0, 0.0, rng.exponential(1 / hazard)
        while done < 120:
            lost = next_ < piece
            clock += next_ + 0.25 if lost else piece
            done += 0 if lost else every
            next_ = rng.exponential(1 / hazard) if lost else next_ - piece
        ends[run] = clock
    return ends


@pytest.mark.parametrize(("hazard", "every"), [(0.05, 10), (0.2, 10), (1.0, 5), (1.0, 20), (4.0, 1)])
def test_losses_are_those_of_a_run_played_event_by_event(hazard: float, every: int) -> None:
    """Mean, spread and the slow tail of a long trial on spot are within 3 % of a simulation of every single loss."""
    profile = Profile(Spread(720.0), provision=Spread(900.0))
    machine = Machine("m", 1, 1.0, hazard=hazard, checkpoint_iters=every)
    found = model(custom([(1, 120)]), profile, machine, 20_000, 0).seconds(0, Deal(1, 1, 1)) / HOUR
    truth = played(hazard, every, 6000)
    assert found.mean() == pytest.approx(truth.mean(), rel=0.01)
    assert found.std() == pytest.approx(truth.std(), rel=0.06)
    assert np.quantile(found, 0.95) == pytest.approx(np.quantile(truth, 0.95), rel=0.02)


@given(st.floats(0.001, 2.0), st.floats(1.0, 60.0), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_hits_are_negative_binomial(risk: float, pieces: float, seed: int) -> None:
    """Compiled and plain hits agree with scipy's quantiles, and what is left of the uniform is between 0 and 1."""
    uniform = np.random.default_rng(seed).random((3, 2))
    tables = np.full((3, 2), risk), np.full((3, 2), pieces)
    count, within = hits(uniform, *tables)
    assert np.array_equal(count, hits_python(uniform, *tables)[0])
    assert np.array_equal(count, nbinom.ppf(uniform, pieces, np.exp(-risk)))
    assert ((within >= 0) & (within <= 1)).all()


def test_more_risk_and_more_pieces_never_hit_less() -> None:
    """With the same uniform, a larger gang, a higher rate or a longer trial gives at least as many hits."""
    uniform = np.random.default_rng(0).random((500, 1))
    by_risk = [struck(uniform, np.full((500, 1), risk), np.array([12.0]))[0] for risk in (0.01, 0.2, 0.9, 1.5, 3, 50)]
    by_size = [struck(uniform, np.full((500, 1), 0.3), np.array([size]))[0] for size in (1.0, 2.5, 12.0, 100.0)]
    for counts in (by_risk, by_size):
        assert all((more >= less).all() for less, more in itertools.pairwise(counts))


@pytest.mark.parametrize("billing", [Billing(0.0, 0.0), Billing(60.0, 3600.0), Billing(3600.0, 0.0)])
def test_the_bill_of_a_slot_is_that_of_its_lives(billing: Billing) -> None:
    """A slot that is held for days costs what its lives cost, each with its minimum, increment and copy of the data."""
    machine = Machine("m", 1, 2.0, billing=billing, ingress=0.3, hazard=0.5)
    profile = Profile(Spread(1.0), provision=Spread(300.0))
    rng, dollars, clock = np.random.default_rng(0), 0.0, 0.0
    while clock < 30_000 * HOUR:
        life = rng.exponential(HOUR / machine.hazard)
        dollars += float(billing.cost(life, machine.price)) + machine.ingress
        clock += life + 300.0
    # by the rule: losses come while the slot is held, its waits included
    assert clock * (machine.per_second + replacing(machine, profile)) == pytest.approx(dollars, rel=0.02)


@pytest.mark.parametrize("minimum", [0.0, 3600.0])
def test_the_curve_is_priced_as_its_plans_are_on_spot(minimum: float) -> None:
    """What the search adds up for a plan on spot, replacements included, is what playing the plan costs."""
    billing = Billing(0.0, minimum)
    machine = replace(jobs.P3, hazard=0.5, ingress=0.4, limit=8, billing=billing)
    drawn = model(custom([(8, 40), (2, 60)]), jobs.still("J1"), machine, 400, 0)
    found = exact_curve(drawn, grid(drawn))
    for plan, dollars in zip(found.plans, found.dollars, strict=True):
        assert score(drawn, plan).cost == pytest.approx(dollars, rel=0.02)


def test_without_spot_nothing_is_added() -> None:
    """On demand, a plan's seconds and dollars are those of a machine that knows nothing of losses."""
    drawn = model(jobs.JOBS["J1"][0], jobs.noisy("J1"), jobs.P3, 50, 0)
    plan = tuple(at(ladder(s, drawn.profile, jobs.P3), 4) for s in drawn.stages)
    safe, other = score(drawn, plan), score(drawn.on(replace(jobs.P3, hazard=1e-9)), plan)
    assert replacing(jobs.P3, drawn.profile) == 0.0
    assert np.array_equal(safe.seconds, other.seconds)
    assert safe.cost == pytest.approx(other.cost, rel=1e-6)


def test_a_day_on_which_all_are_lost_costs_half_a_checkpoint_at_the_speed_of_the_trials() -> None:
    """Losing all at once costs half of what lies between two checkpoints, at most half the stage, and new instances."""
    machine = Machine("m", 4, 10.0, limit=2, hazard=0.1, checkpoint_iters=100)
    profile = replace(jobs.still("J1"), provision=Spread(30.0), startup=Spread(60.0))
    item = offer(model(custom([(1, 20)]), profile, machine, 1, 0), 0.95)
    plan = (Deal(1, 4, 1),)
    extra = 20 / 2 * 40.0 / 3.632 + 30 + 60
    ends = score(item.model, plan).mean_seconds
    assert lost_together(item, plan, Goal(ends + extra + 1, 0.95)) == 1
    assert lost_together(item, plan, Goal(ends + extra - 1, 0.95)) == 0
