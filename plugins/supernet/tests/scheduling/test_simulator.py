"""Simulated and measured replays."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import PROFILES, SLO, draw_arrivals, make_policies
from unfold_supernet.scheduling.policies import (
    make_fitted,
    make_fixed,
    make_shedding,
    make_steady,
)
from unfold_supernet.scheduling.simulator import measure_trace, simulate_trace


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(20, 4000), st.sampled_from(sorted(make_policies())))
def test_every_request_is_served_or_dropped_once(seed: int, rate: float, name: str) -> None:
    """Each request is served or dropped once, in order; dropped and late requests are no success."""
    played = simulate_trace(draw_arrivals(rate, 300, seed), SLO, PROFILES, make_policies()[name])
    assert not played.in_time[played.subnet < 0].any()
    assert played.batches <= 300
    assert 0 <= played.attainment <= 1


def test_low_load_gets_accuracy_and_overload_gets_throughput() -> None:
    """Under low load the largest subnet serves; under overload, more requests are in time than with it alone."""
    calm, storm = draw_arrivals(20, 300, 0), draw_arrivals(1500, 3000, 0)
    for name in ("slackfit", "fitted", "steady"):
        assert simulate_trace(calm, SLO, PROFILES, make_policies()[name]).attainment == 1.0
    assert simulate_trace(calm, SLO, PROFILES, make_fitted(PROFILES)).compute_accuracy(PROFILES) > 89
    alone = simulate_trace(storm, SLO, PROFILES, make_fixed(PROFILES, 2)).attainment
    assert simulate_trace(storm, SLO, PROFILES, make_fitted(PROFILES)).attainment > 2 * alone


def test_switch_costs_reduce_attainment() -> None:
    """Attainment is lower if every model switch loads a model."""
    busy = draw_arrivals(700, 2000, 1)
    free, dear = (simulate_trace(busy, SLO, PROFILES, make_fitted(PROFILES), swap).attainment for swap in (0.0, 0.02))
    assert dear < free


def test_measured_and_simulated_replays_agree() -> None:
    """On a clock that follows the profile, measured and simulated replays agree request by request."""
    now = [5.0]
    for rate in (60, 300, 700):
        times = draw_arrivals(rate, 300, 2)

        def sleep(seconds: float) -> None:
            now[0] += seconds + 5e-4 if seconds else 1e-6

        def work(at: int, first: int, last: int) -> None:
            now[0] += PROFILES[at].estimate_latency(last - first)

        real = measure_trace(times, SLO, make_fitted(PROFILES), work, clock=lambda: now[0], sleep=sleep)
        model = simulate_trace(times, SLO, PROFILES, make_fitted(PROFILES))
        # a server that wakes a microsecond late may see another batch
        assert (real.subnet == model.subnet).mean() > 0.95
        assert abs(real.attainment - model.attainment) < 0.02


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(0.3, 0.8))
def test_sustained_rate_gets_one_accurate_subnet(seed: int, share: float) -> None:
    """At a rate that a subnet sustains, the policy steady reaches nearly its accuracy with all requests in time."""
    peak = max(size / time for size, time in PROFILES[1].seconds if 2 * time <= SLO)
    played = simulate_trace(draw_arrivals(share * peak, 2_000, seed), SLO, PROFILES, make_steady(PROFILES, SLO))
    assert played.attainment > 0.99
    assert played.compute_accuracy(PROFILES) > PROFILES[1].accuracy - 1


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.floats(1.5, 6.0))
def test_shedding_serves_more_under_overload(seed: int, load: float) -> None:
    """Under overload, dropping the most urgent requests serves at least as many as shrinking batches."""
    peak = max(size / time for size, time in PROFILES[2].seconds)
    storm = draw_arrivals(load * peak, 3_000, seed)
    plain, wise = (
        simulate_trace(storm, SLO, PROFILES, rule)
        for rule in (make_fixed(PROFILES, 2), make_shedding(PROFILES, 2, SLO))
    )
    assert wise.attainment >= plain.attainment - 0.02
