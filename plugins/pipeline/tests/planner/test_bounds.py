"""Lower bounds of single stages: quick bounds never exceed slow ones, and cached bounds equal fresh ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import build_checker, chain, diamond, option
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.bounds import MAX_REPLICAS, ReplicaBounds, build_replica_bounds
from unfold_pipeline.planner.branch_and_bound import Search, find_cheapest_plan

BUDGETS = (0.2, 2.0, 0.03, 0.011, 0.05, 0.4, 0.02, 0.045)


def fresh(checker: SloChecker) -> ReplicaBounds:
    """Bounds that know nothing yet."""
    return build_replica_bounds(checker)


@pytest.mark.parametrize("seed", range(3))
def test_load_bound_never_exceeds_other_bounds(seed: int) -> None:
    """The replicas that serve all but the queries that may be late never exceed the sharp or the proven bound."""
    checker = build_checker(diamond(), 0.2, rate=200.0, seconds=10.0, seed=seed)
    bounds, reached = fresh(checker), 0
    for index, batch, budget in itertools.product(range(5), (1, 2, 4), BUDGETS):
        quick = bounds.bound_load(index, 0, batch, budget)
        assert quick <= bounds.bound_proven(index, 0, batch, budget) <= MAX_REPLICAS
        alone = bounds.bound_sharp(index, 0, batch, budget)
        assert quick <= alone
        reached += quick == alone > 1
    assert reached


def test_cached_bounds_equal_fresh_ones() -> None:
    """For many budgets, cached bounds equal fresh ones and need fewer simulations."""
    checker = build_checker(diamond(), 0.2, rate=60.0, seconds=6.0)
    memory, estimator, passes, counts = fresh(checker), checker.estimators[0], [0, 0], [0, 0]
    for budget in np.random.default_rng(0).permutation(np.linspace(0.005, 0.4, 40)):
        for place, bounds in enumerate((memory, fresh(checker))):
            before = estimator.cache.passes
            counts[place] = bounds.bound_sharp(2, 0, 2, budget)
            passes[place] += estimator.cache.passes - before
        assert counts[0] == counts[1]
    assert passes[0] < passes[1] / 3


def test_search_bounds_no_hardware_too_expensive_for_the_optimum() -> None:
    """A complete search computes no bound for hardware that is too expensive for the optimum."""
    cheap, dear = option("cpu", 0.05, 0.01, 0.02, 16), option("gpu", 50.0, 0.012, 0.004, 16)
    checker = build_checker(chain((cheap, dear), (cheap, dear)), 0.3)
    bounds = fresh(checker)
    assert find_cheapest_plan(Search(checker, bounds), max_simulated_queries=1e9).is_complete
    assert {place for _, place, _, _ in bounds.sharp} == {0}
