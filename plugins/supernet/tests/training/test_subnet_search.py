"""Subnet search."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import make_space
from unfold_supernet.networks.space import Space, Subnet, count_macs
from unfold_supernet.schema.space import SpaceSpec
from unfold_supernet.training.problem import SearchOptions
from unfold_supernet.training.subnet_search import encode_features, search_subnets

STAGES = ({"width": 16}, {"width": 32}, {"width": 64})
OPTIONS = SearchOptions(measured=80, points=6, population=40, generations=10)


def make_large_space() -> Space:
    """Build a space in which every stage chooses one of eight entries."""
    lists = {"expand": (0.25, 0.5, 0.75, 1.0), "depth": (1, 2), "coupling": "independent", "scope": "stage"}
    return make_space(SpaceSpec.model_validate({"stages": STAGES, **lists}), 1, (16, 16), 0, 10)


def simulate_accuracy(one: Subnet, seed: int) -> float:
    """Simulate an accuracy: a weighted sum over stages, and noise that no feature explains."""
    weights = np.random.default_rng(seed).random((2, 3))
    noise = np.random.default_rng([seed, hash(one) % 2**32]).normal(0, 0.05)
    return 80 + float(weights[0] @ np.sqrt(one.expand) * 4 + weights[1] @ np.log2(np.add(one.depth, 1)) * 3 + noise)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_search_finds_nearly_the_best_subnets(seed: int) -> None:
    """Selected subnets rise in operations, and each is nearly the best under its limit."""
    space = make_large_space()
    found = search_subnets(space, OPTIONS, lambda one: simulate_accuracy(one, seed), seed)
    work = {one: count_macs(space, one) for one in space.subnets}
    assert found.count == 8**3
    assert found.measured < 8**3 / 2
    costs = [work[one] for one in found.subnets]
    assert costs == sorted(costs)
    assert (costs[0], costs[-1]) == (min(work.values()), max(work.values()))
    assert found.rank_correlation > 0.8
    for one in found.subnets[1:-1]:
        best = max(simulate_accuracy(other, seed) for other in space.subnets if work[other] <= work[one])
        assert simulate_accuracy(one, seed) > best - 1.0


def test_search_is_deterministic() -> None:
    """A search is a function of its seed."""
    one, other = (
        search_subnets(make_large_space(), OPTIONS, lambda net: simulate_accuracy(net, 1), 7) for _ in range(2)
    )
    assert one == other


def test_features_are_one_hot_and_unique() -> None:
    """Features are zero or one, a subnet has one for each choice, and no two subnets have the same."""
    space = make_large_space()
    table = encode_features(space, space.subnets)
    assert set(np.unique(table)) == {0.0, 1.0}
    assert set(table.sum(1)) == {3 * 3 + 1}
    assert len(np.unique(table, axis=0)) == len(space.subnets)
