"""Spot preemptions: their number, their delay and their bill, against an event-by-event simulation."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.spot_preemptions import compute_replacement_usd_per_second, sample_preemptions
from unfoldkit.catalog.billing import Billing

HOUR_S = 3600.0


def simulate_events(rate: float, checkpoint_iters: int, runs: int) -> npt.NDArray[np.float64]:
    """Simulate the hours of a trial of 120 x 12 min with single preemptions, each with a wait of 15 minutes."""
    rng, interval = np.random.default_rng(1), 0.2 * checkpoint_iters
    ends = np.zeros(runs)
    for run in range(runs):
        done, clock, next_loss = 0, 0.0, rng.exponential(1 / rate)
        while done < 120:
            is_lost = next_loss < interval
            clock += next_loss + 0.25 if is_lost else interval
            done += 0 if is_lost else checkpoint_iters
            next_loss = rng.exponential(1 / rate) if is_lost else next_loss - interval
        ends[run] = clock
    return ends


@pytest.mark.e2e
@pytest.mark.parametrize(("rate", "checkpoint_iters"), [(0.05, 10), (0.2, 10), (1.0, 5), (1.0, 20), (4.0, 1)])
def test_delays_match_an_event_simulation(rate: float, checkpoint_iters: int) -> None:
    """Mean, spread and slow tail of a long spot trial are within a few percent of a simulation of every preemption."""
    profile = Profile(LogNormal(720.0), provision=LogNormal(900.0))
    machine = Machine("m", 1, 1.0, interruptions_per_hour=rate, checkpoint_iters=checkpoint_iters)
    model = build_execution_model(build_custom_stages([(1, 120)]), profile, machine, 20_000, 0)
    hours = model.sample_stage_seconds(0, Allocation(1, 1, 1)) / HOUR_S
    truth = simulate_events(rate, checkpoint_iters, 6000)
    assert hours.mean() == pytest.approx(truth.mean(), rel=0.01)
    assert hours.std() == pytest.approx(truth.std(), rel=0.06)
    assert np.quantile(hours, 0.95) == pytest.approx(np.quantile(truth, 0.95), rel=0.02)


def test_preemptions_are_monotone_in_risk_and_length() -> None:
    """With the same uniform, more workers, a higher rate or a longer trial never gives fewer preemptions."""
    uniform = np.random.default_rng(0).random((500, 1))
    by_risk = [
        sample_preemptions(uniform, np.full((500, 1), risk), np.array([12.0]))[0]
        for risk in (0.01, 0.2, 0.9, 1.5, 3, 50)
    ]
    by_length = [
        sample_preemptions(uniform, np.full((500, 1), 0.3), np.array([intervals]))[0]
        for intervals in (1.0, 2.5, 12.0, 100.0)
    ]
    for counts in (by_risk, by_length):
        assert all((more >= less).all() for less, more in itertools.pairwise(counts))


@pytest.mark.parametrize("billing", [Billing(0.0, 0.0), Billing(60.0, 3600.0), Billing(3600.0, 0.0)])
def test_replacement_rate_matches_the_bill_of_many_lifetimes(billing: Billing) -> None:
    """A slot held for years costs what its lifetimes cost, each with minimum, increment and copy of the data."""
    machine = Machine("m", 1, 2.0, billing=billing, ingress_usd=0.3, interruptions_per_hour=0.5)
    profile = Profile(LogNormal(1.0), provision=LogNormal(300.0))
    rng, bill_usd, clock = np.random.default_rng(0), 0.0, 0.0
    while clock < 30_000 * HOUR_S:
        lifetime = rng.exponential(HOUR_S / machine.interruptions_per_hour)
        bill_usd += float(billing.cost(lifetime, machine.usd_per_hour)) + machine.ingress_usd
        clock += lifetime + 300.0
    # the model's preemptions arrive while the slot is held, its waits included
    rate = machine.usd_per_second + compute_replacement_usd_per_second(machine, profile)
    assert clock * rate == pytest.approx(bill_usd, rel=0.02)
