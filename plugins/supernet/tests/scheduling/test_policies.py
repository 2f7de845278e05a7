"""Scheduling policies."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import PROFILES, make_policies
from unfold_supernet.scheduling.policies import (
    BatchChoice,
    SubnetProfile,
    make_cheapest,
    make_fitted,
    make_lookahead,
    make_steady,
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(make_policies())), st.floats(0, 0.1), st.integers(1, 60))
def test_choices_are_in_time(name: str, slack: float, waiting: int) -> None:
    """No policy starts a batch that is late by the profile, and none drops a request that had time."""
    choice = make_policies()[name](slack, waiting)
    if choice is None:
        limit = PROFILES[2].estimate_latency(1) if name == "large" else PROFILES[0].estimate_latency(1)
        if name == "steady" and waiting >= 32:
            # a crowd is not answered in small batches for the sake of its head
            limit = PROFILES[0].estimate_latency(32)
        assert slack < limit
    else:
        assert PROFILES[choice.subnet].estimate_latency(min(choice.batch, waiting)) <= slack * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.004, 0.1), st.integers(1, 32))
def test_fitted_chooses_the_most_accurate_feasible_subnet(slack: float, waiting: int) -> None:
    """If some subnet serves the entire queue in time, the most accurate such subnet is chosen."""
    good = [at for at, net in enumerate(PROFILES) if net.estimate_latency(waiting) <= slack]
    if good:
        assert make_fitted(PROFILES)(slack, waiting) == BatchChoice(
            max(good, key=lambda at: PROFILES[at].accuracy), waiting
        )


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 2), st.integers(1, 500))
def test_lookahead_extends_a_policy_beyond_one_batch(slack: float, waiting: int) -> None:
    """Lookahead drops no additional request, and uses a subnet that serves the entire queue in time."""
    plain, choice = make_fitted(PROFILES)(slack, waiting), make_lookahead(make_fitted(PROFILES), 32)(slack, waiting)
    assert (choice is None) == (plain is None)
    if choice is None or waiting <= 32:
        assert choice == plain
        return
    able = [at for at, net in enumerate(PROFILES) if net.estimate_latency(32) * waiting / 32 <= slack]
    assert choice == (BatchChoice(max(able), 32) if able else plain)


def test_a_model_of_single_rows_serves_no_overload() -> None:
    """Its largest batch is the shortest, but a model of larger batches answers 32 requests sooner."""
    single = SubnetProfile("single", 95.0, ((1, 0.006),))
    small = SubnetProfile("small", 80.0, ((1, 0.001), (32, 0.008)))
    for profiles in ([single, small], [small, single]):
        index = profiles.index(small)
        for policy in (make_cheapest(profiles), make_fitted(profiles), make_steady(profiles, 0.02)):
            assert policy(0.015, 400) == BatchChoice(index, 32)
