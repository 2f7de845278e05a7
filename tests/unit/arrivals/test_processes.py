"""Arrival processes and rate profiles."""

from __future__ import annotations

import numpy as np
import pytest

from unfoldkit.arrivals import processes, rate_profiles
from unfoldkit.errors import UnfoldError


@pytest.mark.parametrize("scv", [0.25, 1.0, 4.0, 16.0])
def test_gamma_arrivals_have_the_requested_rate_and_burstiness(scv: float) -> None:
    times = processes.gamma_arrivals(100.0, 4000.0, np.random.default_rng(1), scv=scv)
    gaps = np.diff(times)
    assert times.size / 4000.0 == pytest.approx(100.0, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(scv, rel=0.08)
    assert gaps.min() >= 0
    assert 0 <= times[0] <= times[-1] < 4000.0


def test_piecewise_arrivals_follow_their_rates() -> None:
    rates = [50.0, 0.0, 200.0]
    times = processes.piecewise_arrivals(rates, 100.0, np.random.default_rng(1))
    counts = np.histogram(times, [0, 100, 200, 300])[0]
    assert counts == pytest.approx(np.array(rates) * 100, abs=500)
    assert counts[1] == 0
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("name", list(rate_profiles.AUTOSCALE_LIKE))
def test_autoscale_like_profiles_stay_between_0_and_300_per_second(name: str) -> None:
    rates = rate_profiles.rate_profile(name)
    assert rates.size == rate_profiles.PIECES
    assert 0 < rates.min() <= rates.max() <= 300.0 + 1e-9


def test_a_misspelt_profile_gets_a_suggestion() -> None:
    with pytest.raises(UnfoldError, match="big-spike"):
        rate_profiles.rate_profile("big-spik")
