"""Laws of what a stage needs at the very least: quick bounds below slow ones, and what is remembered is what it was."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from plugins.pipeline.tests.test_planner import build_checker, chain, diamond, option
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.bounds import MAX_REPLICAS, ReplicaBounds
from unfold_pipeline.planner.branch_and_bound import Search, find_cheapest_plan

BUDGETS = (0.2, 2.0, 0.03, 0.011, 0.05, 0.4, 0.02, 0.045)


def fresh(checker: SloChecker) -> ReplicaBounds:
    """Bounds that know nothing yet."""
    return ReplicaBounds(checker.pipeline, checker.estimators)


@pytest.mark.parametrize("seed", range(3))
def test_the_quick_bound_is_never_above_the_others(seed: int) -> None:
    """What serves all but the queries that may be late is no more than a stage needs, alone or fluid."""
    checker = build_checker(diamond(), 0.2, rate=200.0, seconds=10.0, seed=seed)
    bounds, reached = fresh(checker), 0
    for index, batch, budget in itertools.product(range(5), (1, 2, 4), BUDGETS):
        quick = bounds.bound_load(index, 0, batch, budget)
        assert quick <= bounds.bound_proven(index, 0, batch, budget) <= MAX_REPLICAS
        alone = bounds.bound_sharp(index, 0, batch, budget)
        assert quick <= alone
        reached += quick == alone > 1
    assert reached


def test_a_remembered_pass_answers_for_every_budget() -> None:
    """Asked for many budgets, a stage needs what it needs where nothing is remembered, with fewer passes."""
    checker = build_checker(diamond(), 0.2, rate=60.0, seconds=6.0)
    memory, estimator, passes, counts = fresh(checker), checker.estimators[0], [0, 0], [0, 0]
    for budget in np.random.default_rng(0).permutation(np.linspace(0.005, 0.4, 40)):
        for place, bounds in enumerate((memory, fresh(checker))):
            before = estimator.cache.passes
            counts[place] = bounds.bound_sharp(2, 0, 2, budget)
            passes[place] += estimator.cache.passes - before
        assert counts[0] == counts[1]
    assert passes[0] < passes[1] / 3


def test_a_search_asks_only_for_bounds_that_matter() -> None:
    """A search that comes to its end did not ask what hardware needs that is too dear to be in the optimum."""
    cheap, dear = option("cpu", 0.05, 0.01, 0.02, 16), option("gpu", 50.0, 0.012, 0.004, 16)
    checker = build_checker(chain((cheap, dear), (cheap, dear)), 0.3)
    bounds = fresh(checker)
    assert find_cheapest_plan(Search(checker, bounds), max_simulated_queries=1e9).is_complete
    assert {place for _, place, _, _ in bounds.sharp} == {0}
