"""Trades between two stages where the search was stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plugins.pipeline.tests.helpers import build_checker, chain, ignore_progress, option
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.planner import greedy, local_search, planner
from unfold_pipeline.problem.problem import SearchBudget


def test_trades_reach_the_optimum_after_a_stopped_search() -> None:
    """After a stopped search, trades between two stages lead below greedy's price, here to the optimum."""
    cpu, gpu = option("cpu", 0.05, 0.01, 0.02, 16), option("gpu", 0.65, 0.012, 0.004, 16)
    checker = build_checker(chain((cpu,), (cpu, gpu), (cpu, gpu)), 0.2)
    found = planner.find_plan(replace(checker), SearchBudget(max_simulated_queries=3e4, prove=False), ignore_progress)
    whole = planner.find_plan(checker, SearchBudget(prove=False), ignore_progress)
    assert isinstance(found, planner.Solution)
    assert isinstance(whole, planner.Solution)
    assert found.greedy.plan is not None
    assert not found.is_search_complete
    assert whole.is_search_complete
    assert checker.meets_slo(found.plan)
    assert found.hourly_cost == pytest.approx(whole.hourly_cost)
    assert found.hourly_cost < checker.pipeline.cost(found.greedy.plan) / 2


@pytest.mark.parametrize("seed", range(3))
def test_trades_meet_the_slo_and_never_cost_more(seed: int) -> None:
    """Every trade meets the SLO and costs no more; without a budget nothing changes."""
    cpu, gpu = option("cpu", 0.05, 0.02, 0.03, 8), option("gpu", 0.65, 0.012, 0.004, 16)
    checker = build_checker(chain((cpu, gpu), (cpu, gpu), (cpu,)), 0.35, rate=60.0, seed=seed)
    first = greedy.plan_greedily(checker).plan
    assert first is not None
    last = local_search.trade_between_stages(checker, first, 1e9)
    assert checker.meets_slo(last)
    assert checker.pipeline.cost(last) <= checker.pipeline.cost(first)
    fresh = build_slo_checker(checker.pipeline, [item.sample for item in checker.estimators], checker.slo_s)
    assert local_search.trade_between_stages(fresh, first, -1.0) == first
