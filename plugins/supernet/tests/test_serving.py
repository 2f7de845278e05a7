"""Laws of answering under deadlines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet._types import FloatArray
from unfold_supernet.replay.baselines import PolicyResult, compare_with_fixed
from unfold_supernet.scheduling.policies import (
    BatchChoice,
    Policy,
    SubnetProfile,
    make_cheapest,
    make_fitted,
    make_fixed,
    make_lookahead,
    make_shedding,
    make_slackfit,
    make_steady,
)
from unfold_supernet.scheduling.simulator import ReplayOutcome, measure_trace, simulate_trace

NETS = (
    SubnetProfile("small", 80.0, ((1, 0.001), (8, 0.003), (32, 0.008))),
    SubnetProfile("middle", 85.0, ((1, 0.002), (8, 0.008), (32, 0.024))),
    SubnetProfile("large", 90.0, ((1, 0.004), (8, 0.020), (32, 0.064))),
)
SLO = 0.03


def arrivals(rate: float, count: int, seed: int) -> FloatArray:
    """Return Poisson arrivals."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def all_rules() -> dict[str, Policy]:
    """Return every rule over the three nets."""
    return {
        "slackfit": make_slackfit(NETS), "fitted": make_fitted(NETS), "steady": make_steady(NETS, SLO),
        "cheapest": make_cheapest(NETS), "large": make_fixed(NETS, 2),
    }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(all_rules())), st.floats(0, 0.1), st.integers(1, 60))
def test_what_is_chosen_is_in_time(name: str, slack: float, waiting: int) -> None:
    """No rule starts a batch that the profile says is late for the first request; none is given up that had time."""
    choice = all_rules()[name](slack, waiting)
    if choice is None:
        limit = NETS[2].estimate_latency(1) if name == "large" else NETS[0].estimate_latency(1)
        if name == "steady" and waiting >= 32:
            # a crowd is not answered in small batches for the sake of its head
            limit = NETS[0].estimate_latency(32)
        assert slack < limit
    else:
        assert NETS[choice.subnet].estimate_latency(min(choice.batch, waiting)) <= slack * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.004, 0.1), st.integers(1, 32))
def test_fitted_is_as_accurate_as_can_be(slack: float, waiting: int) -> None:
    """If some net answers all that wait in time, the most accurate of these is chosen, with all that wait."""
    good = [at for at, net in enumerate(NETS) if net.estimate_latency(waiting) <= slack]
    if good:
        assert make_fitted(NETS)(slack, waiting) == BatchChoice(max(good, key=lambda at: NETS[at].accuracy), waiting)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(20, 4000), st.sampled_from(sorted(all_rules())))
def test_every_request_has_one_end(seed: int, rate: float, name: str) -> None:
    """Each request is answered once or given up, in order; what was given up or is late is no success."""
    played = simulate_trace(arrivals(rate, 300, seed), SLO, NETS, all_rules()[name])
    assert not played.in_time[played.subnet < 0].any()
    assert played.batches <= 300
    assert 0 <= played.attainment <= 1


def test_calm_times_get_accuracy_and_bursts_get_answers() -> None:
    """Under little load the largest net answers; under more than it can take, more in time than by it alone."""
    calm, storm = arrivals(20, 300, 0), arrivals(1500, 3000, 0)
    for name in ("slackfit", "fitted", "steady"):
        assert simulate_trace(calm, SLO, NETS, all_rules()[name]).attainment == 1.0
    assert simulate_trace(calm, SLO, NETS, make_fitted(NETS)).compute_accuracy(NETS) > 89
    alone = simulate_trace(storm, SLO, NETS, make_fixed(NETS, 2)).attainment
    assert simulate_trace(storm, SLO, NETS, make_fitted(NETS)).attainment > 2 * alone


def test_swapping_costs() -> None:
    """A server that must load a model at each change is never in time more often."""
    busy = arrivals(700, 2000, 1)
    free, dear = (simulate_trace(busy, SLO, NETS, make_fitted(NETS), swap).attainment for swap in (0.0, 0.02))
    assert dear < free


def test_measured_and_simulated_agree() -> None:
    """On a clock that goes on as the profile says, a trace is measured as it is simulated, request by request."""
    now = [5.0]
    for rate in (60, 300, 700):
        times = arrivals(rate, 300, 2)

        def sleep(seconds: float) -> None:
            now[0] += seconds + 5e-4 if seconds else 1e-6

        def work(at: int, first: int, last: int) -> None:
            now[0] += NETS[at].estimate_latency(last - first)

        real = measure_trace(times, SLO, make_fitted(NETS), work, clock=lambda: now[0], sleep=sleep)
        model = simulate_trace(times, SLO, NETS, make_fitted(NETS))
        # who wakes a microsecond late may see another batch, now and then
        assert (real.subnet == model.subnet).mean() > 0.95
        assert abs(real.attainment - model.attainment) < 0.02


def test_the_comparison_is_with_the_best_rival() -> None:
    """Points are over the best fixed net that is in time as often; the ratio is over those as accurate."""

    def entry(name: str, share: float, accuracy: float) -> PolicyResult:
        in_time = np.arange(1000) < share * 1000
        ones = np.ones(1000, np.int64)
        outcome = ReplayOutcome(subnet=ones * 0, in_time=in_time, batches=1, switches=1, batch_size=ones)
        return PolicyResult(name, outcome, accuracy)

    lone = [entry("only a", 1.0, 80.0), entry("only b", 0.5, 86.0), entry("only c", 0.2, 95.0)]
    comparison = compare_with_fixed(entry("own", 1.0, 85.0), lone)
    assert comparison.gain_points == pytest.approx(5.0)
    assert comparison.attainment_ratio == pytest.approx(2.0)
    assert compare_with_fixed(entry("own", 1.0, 99.0), lone).attainment_ratio is None


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 2), st.integers(1, 500))
def test_patience_looks_past_one_batch(slack: float, waiting: int) -> None:
    """With patience nobody is given up who was not before, and a net that answers all that wait in time is kept to."""
    plain, choice = make_fitted(NETS)(slack, waiting), make_lookahead(make_fitted(NETS), 32)(slack, waiting)
    assert (choice is None) == (plain is None)
    if choice is None or waiting <= 32:
        assert choice == plain
        return
    able = [at for at, net in enumerate(NETS) if net.estimate_latency(32) * waiting / 32 <= slack]
    assert choice == (BatchChoice(max(able), 32) if able else plain)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(0.3, 0.8))
def test_a_steady_rate_gets_a_steady_net(seed: int, share: float) -> None:
    """At a rate that a net keeps up with, the steady rule serves nearly its accuracy, and all in time."""
    peak = max(size / time for size, time in NETS[1].seconds if 2 * time <= SLO)
    played = simulate_trace(arrivals(share * peak, 2_000, seed), SLO, NETS, make_steady(NETS, SLO))
    assert played.attainment > 0.99
    assert played.compute_accuracy(NETS) > NETS[1].accuracy - 1


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.floats(1.5, 6.0))
def test_shedding_answers_more_under_overload(seed: int, load: float) -> None:
    """Beyond what a net can take, giving up the most urgent answers no less than batches that fit their slack."""
    peak = max(size / time for size, time in NETS[2].seconds)
    storm = arrivals(load * peak, 3_000, seed)
    plain, wise = (
        simulate_trace(storm, SLO, NETS, rule) for rule in (make_fixed(NETS, 2), make_shedding(NETS, 2, SLO))
    )
    assert wise.attainment >= plain.attainment - 0.02
