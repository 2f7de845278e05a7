"""The cost-SLO frontier says no price that a plan at hand undercuts, and what it does not know."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import planner
from unfold_pipeline.planner.frontier import Point, frontier, improved
from unfold_pipeline.problem.pipeline import Edge, Option, Pipeline, Stage, table
from unfold_pipeline.problem.sample import draw
from unfold_pipeline.report import plan as tables
from unfoldkit.arrivals import processes

CPU = Option("cpu", 0.05, table([(1, 0.05), (16, 0.5)]))
GPU = Option("gpu", 0.65, table([(1, 0.016), (16, 0.076)]))
TARGETS = (0.02, 0.12, 0.15, 0.2, 0.4, 0.8)
STOPPED = planner.Effort(most_items=1.0)


def judged(limit: float, quotas: tuple[tuple[str, int], ...] = ()) -> Judge:
    """A judge of bursty traffic through two stages."""
    pipeline = Pipeline((Stage("a", (), (CPU, GPU)), Stage("b", (Edge(0),), (CPU, GPU))), quotas)
    arrivals = processes.gamma(60.0, 20.0, np.random.default_rng(0), scv=4.0)
    return planner.judge_of(pipeline, [draw(pipeline, arrivals, np.random.default_rng(1))], limit)


def quiet(_step: str, _done: int, _total: int) -> None:
    """Report progress to nobody."""


def solved(limit: float, effort: planner.Effort, quotas: tuple[tuple[str, int], ...] = ()) -> planner.Outcome:
    """The outcome for a limit."""
    outcome = planner.solve(judged(limit, quotas), effort, quiet)
    assert outcome is not None
    return outcome


@pytest.mark.parametrize("effort", [planner.Effort(), STOPPED])
def test_frontier_never_rises(effort: planner.Effort) -> None:
    """A looser target never costs more, whether or not the searches come to their end."""
    points = frontier(solved(0.3, effort), TARGETS, effort, quiet)
    costs = [point.cost for point in points if point.cost is not None]
    assert points[0].cost is None
    assert [point.limit for point in points] == sorted({*TARGETS, 0.3})
    assert costs == sorted(costs, reverse=True)


def test_no_point_is_above_a_plan_that_is_known() -> None:
    """Every plan of the frontier, the chosen one and greedy's cost no less than the points whose targets they keep."""
    outcome = solved(0.3, STOPPED)
    points = frontier(outcome, TARGETS, STOPPED, quiet)
    known = [plan for plan in (outcome.plan, outcome.greedy.plan, *(point.plan for point in points)) if plan]
    for point, plan in itertools.product(points, known):
        judge = replace(outcome.judge, limit=point.limit)
        if judge.meets(plan):
            assert point.cost is not None
            assert point.cost <= judge.pipeline.cost(plan) + 1e-9


def test_the_chosen_plan_is_the_point_of_each_target_that_it_keeps_exactly() -> None:
    """Between its own percentile and its target a proven plan is the cheapest, which takes no search to say."""
    outcome = solved(0.3, planner.Effort())
    tail = outcome.judge.tail(outcome.plan)
    assert tail < 0.3
    points = frontier(outcome, [(tail + 0.3) / 2], STOPPED, quiet)
    assert [(point.cost, point.exact) for point in points] == [(outcome.cost, True)] * 2


def test_each_exact_point_costs_what_a_plan_for_its_target_costs() -> None:
    """A point whose search came to its end has the price that planning for that target alone finds."""
    points = frontier(solved(0.3, planner.Effort()), TARGETS, planner.Effort(), quiet)
    assert all(point.exact for point in points)
    for point in points:
        alone = planner.solve(judged(point.limit), planner.Effort(), quiet)
        assert (alone.cost if alone else None) == pytest.approx(point.cost)


def test_nodes_of_other_targets_are_limited_too() -> None:
    """Where nodes are used up the search for a target stops, and its price is not called the least."""
    outcome = solved(0.3, planner.Effort())
    whole = frontier(outcome, TARGETS, planner.Effort(), quiet)
    short = frontier(outcome, TARGETS, planner.Effort(most_nodes=1), quiet)
    assert all(point.exact for point in whole)
    stopped = [point for point in short if not point.exact]
    assert stopped
    assert all(point.cost is not None for point in stopped)


def test_a_quota_hides_no_point() -> None:
    """Where the quickest hardware exceeds its quota, tight targets have the price of planning for them alone."""
    quotas = (("gpu", 2),)
    alone = solved(0.25, planner.Effort(), quotas)
    points = frontier(solved(0.5, planner.Effort(), quotas), [0.25], planner.Effort(), quiet)
    assert points[0].cost == pytest.approx(alone.cost)


def test_the_chosen_plan_is_replaced_by_a_cheaper_one() -> None:
    """A plan that the search for another target found, and that costs less, is the answer."""
    best = solved(0.3, planner.Effort())
    dear = tuple(replace(choice, replicas=choice.replicas + 1) for choice in best.plan)
    assert best.judge.meets(dear)
    found = frontier(replace(best, plan=dear, searched=False), [0.25], planner.Effort(), quiet)
    assert improved(replace(best, plan=dear), found).cost < best.judge.pipeline.cost(dear)


def test_what_is_not_known_is_told() -> None:
    """A price whose search was stopped stands behind ≤, and nothing found is not none."""
    points = (Point(0.1, None, None, True), Point(0.2, None, None, False))
    priced = (Point(0.3, (), 3.0, False), Point(0.4, (), 2.0, True))
    line = tables.frontier_line((*points, *priced))
    assert line == "100 ms none · 200 ms none found · 300 ms ≤ $3.00 · 400 ms $2.00"
