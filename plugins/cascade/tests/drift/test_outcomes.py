"""Laws of the validation: intervals cover, and neither kept nor broken is wrong more often than promised."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils import check_random_state

from unfold_cascade.drift.outcomes import (
    Promise,
    Sums,
    compute_betting_interval,
    compute_interval,
    judge_promises,
)


def ones(values: np.ndarray) -> Sums:
    return Sums(numerator=values.astype(np.float64), denominator=np.ones(len(values)))


@pytest.mark.parametrize("shares", [(0.0, 0.96, 0.04), (0.03, 0.92, 0.05), (0.3, 0.3, 0.4)])
@pytest.mark.parametrize("count", [60, 400])
def test_the_betting_interval_covers(shares: tuple[float, float, float], count: int) -> None:
    """The mean of skewed differences lies outside in no more than about 5 % of draws."""
    generator, truth = np.random.default_rng(0), shares[2] - shares[0]
    draws = generator.choice([-1.0, 0.0, 1.0], (120, count), p=shares)
    intervals = [compute_betting_interval(draw, 0.05, (index,)) for index, draw in enumerate(draws)]
    missed = sum(not low <= truth <= high for low, high in intervals)
    assert missed <= 12  # 120 draws at 5 %: the chance of more is below 1 %


def test_the_betting_interval_shrinks() -> None:
    """It is never empty, holds the sample mean, and 4,000 cases make it a few points wide."""
    draw = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 4000, p=(0.02, 0.95, 0.03))
    low, high = compute_betting_interval(draw, 0.05, (0,))
    assert low <= draw.mean() <= high
    assert high - low < 0.03
    low, high = compute_betting_interval(np.zeros(5), 0.05, (0,))
    assert low < 0 < high


def test_shares_of_independent_cases_get_exact_intervals() -> None:
    """Three of three is no proof of 100 %, and few clustered units give no interval at all."""
    low, high = compute_interval(ones(np.ones(3)), 0.05, (0,))
    assert low == pytest.approx(0.2924, abs=1e-3)
    assert high == 1.0
    few = Sums(numerator=np.arange(1.0, 9.0), denominator=np.full(8, 8.0))
    assert all(np.isnan(compute_interval(few, 0.05, (0,))))


@pytest.mark.parametrize("is_skewed", [False, True])
@pytest.mark.parametrize(("share", "units"), [(0.85, 40), (0.97, 60), (0.99, 150)])
def test_shares_of_grouped_cases_are_covered(share: float, units: int, *, is_skewed: bool) -> None:
    """Patients with several visits, which are often all right or all wrong: few errors, or none, are no certainty."""
    generator, missed = np.random.default_rng(5), 0
    for index in range(200):
        visits = np.minimum(1 + generator.geometric(0.3, units) ** 2, 60) if is_skewed else np.full(units, 4)
        right = generator.binomial(visits, generator.beta(share, 1.0 - share, units))
        low, high = compute_interval(Sums(numerator=right, denominator=visits.astype(np.float64)), 0.02, (index,))
        missed += not low <= share <= high
    assert missed <= 10  # 200 draws at 2 %: the chance of more is below 1 %
    low, high = compute_interval(Sums(numerator=visits, denominator=visits.astype(np.float64)), 0.02, (0,))
    assert low < 1.0 - 2.0 / units
    assert high == 1.0


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_wrong_state_is_rarer_than_promised(*, is_kept: bool) -> None:
    """At the limit itself neither state is right, and each occurs in about 5 % of draws at most."""
    generator = check_random_state(3)
    limit = 0.05
    states = []
    for index in range(120):
        draw = generator.choice([-1.0, 0.0, 1.0], 300, p=(0.02, 0.91, 0.07))
        promise = Promise(name="loss", unit="points", now=ones(draw), limit=limit, largest=1.0, higher_is_better=False)
        states.append(judge_promises([promise], 0.95, index)[0].state)
    assert states.count("kept" if is_kept else "broken") <= 12


@pytest.mark.parametrize(("loss", "state"), [(0.0, "kept"), (0.2, "broken"), (0.045, "undecided")])
def test_certified_losses_are_kept_broken_or_undecided(loss: float, state: str) -> None:
    """The state follows from the interval and the limit."""
    draw = np.zeros(500)
    draw[: round(500 * loss)] = 1.0
    promise = Promise(name="loss", unit="points", now=ones(draw), limit=0.05, largest=1.0, higher_is_better=False)
    assert judge_promises([promise], 0.95, 0)[0].state == state


def test_expensive_errors_keep_their_unit() -> None:
    """A loss in which the worst error costs 5 is reported, and compared with its limit, as a share of the mean."""
    draw = np.zeros(2000)
    draw[:40] = 5.0
    promise = Promise(name="loss", unit="points", now=ones(draw), limit=0.05, largest=5.0, higher_is_better=False)
    judgement = judge_promises([promise], 0.95, 0)[0]
    assert judgement.interval[0] < draw.mean() == 0.1 < judgement.interval[1]
    assert (judgement.before, judgement.state) == ((0.05, 0.05), "broken")


@pytest.mark.parametrize(("now", "state"), [(0.9, "kept"), (0.8, "broken"), (0.89, "kept"), (0.875, "undecided")])
def test_estimates_are_compared_with_their_own_interval(now: float, state: str) -> None:
    """A fall beyond both intervals is broken; a value that may be much worse is undecided."""

    def draw(share: float, count: int) -> Sums:
        return ones(np.arange(count) < share * count)

    promise = Promise(name="accuracy", unit="%", now=draw(now, 2000), before=draw(0.9, 2000), margin=0.02)
    assert judge_promises([promise], 0.95, 0)[0].state == state


def test_fewer_alerts_are_no_broken_promise() -> None:
    """Where lower is better, less is kept and more is broken; a saving has a relative margin."""
    generator = np.random.default_rng(4)
    hours = np.full(400, 50.0)

    def alerts(rate: float) -> Sums:
        return Sums(numerator=100.0 * generator.poisson(rate / 100 * hours).astype(np.float64), denominator=hours)

    def judge(rate: float) -> str:
        promise = Promise(
            name="alerts", unit="/100 h", now=alerts(rate), before=alerts(10), margin=1.0, higher_is_better=False
        )
        return judge_promises([promise], 0.95, 0)[0].state

    assert (judge(5), judge(10), judge(20)) == ("kept", "kept", "broken")


def test_a_saving_that_rests_on_rare_costly_cases_is_not_called_broken() -> None:
    """One case in 200 takes the costly path; a small sample may hold none, and a bootstrap of it sees no risk."""
    prices, shares, broken = np.array([240.0, 1000.0, 60_000.0]), [0.84, 0.155, 0.005], {60_000.0: 0, None: 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        small, large = (rng.choice(prices, size, p=shares) for size in (300, 5000))
        for most in broken:
            now, before = (
                Sums(numerator=np.full(len(cost), 60_000.0), denominator=cost, most=most) for cost in (large, small)
            )
            promise = Promise(name="saving", unit="x", now=now, before=before, margin=0.05, is_relative=True)
            broken[most] += judge_promises([promise], 0.95, seed)[0].state == "broken"
    assert broken[60_000.0] <= 3
    assert broken[None] > 10
