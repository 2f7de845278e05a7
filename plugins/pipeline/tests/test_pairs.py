"""Laws of trades between two stages, where the search for the cheapest plan had no time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plugins.pipeline.tests.test_planner import chain, judged, option, quiet
from unfold_pipeline.planner import greedy, local_search, planner


def test_where_the_search_stops_two_stages_trade() -> None:
    """Where the search had no time, trades between two stages lead below greedy's price, here to the optimum."""
    cpu, gpu = option("cpu", 0.05, 0.01, 0.02, 16), option("gpu", 0.65, 0.012, 0.004, 16)
    judge = judged(chain((cpu,), (cpu, gpu), (cpu, gpu)), 0.2)
    found = planner.solve(replace(judge), planner.Effort(most_items=3e4, proof=False), quiet)
    whole = planner.solve(judge, planner.Effort(proof=False), quiet)
    assert found is not None
    assert whole is not None
    assert found.greedy.plan is not None
    assert not found.searched
    assert whole.searched
    assert judge.meets(found.plan)
    assert found.cost == pytest.approx(whole.cost)
    assert found.cost < judge.pipeline.cost(found.greedy.plan) / 2


@pytest.mark.parametrize("seed", range(3))
def test_trades_keep_the_limit_and_never_cost_more(seed: int) -> None:
    """Every trade between two stages meets the limit and is cheaper; without queries to simulate nothing changes."""
    cpu, gpu = option("cpu", 0.05, 0.02, 0.03, 8), option("gpu", 0.65, 0.012, 0.004, 16)
    judge = judged(chain((cpu, gpu), (cpu, gpu), (cpu,)), 0.35, rate=60.0, seed=seed)
    first = greedy.plan(judge).plan
    assert first is not None
    last = local_search.better(judge, first, 1e9)
    assert judge.meets(last)
    assert judge.pipeline.cost(last) <= judge.pipeline.cost(first)
    fresh = planner.judge_of(judge.pipeline, [item.sample for item in judge.estimators], judge.limit)
    assert local_search.better(fresh, first, -1.0) == first
