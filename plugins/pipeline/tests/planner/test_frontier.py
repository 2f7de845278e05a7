"""The cost-SLO frontier never exceeds a known plan, and marks what is not exact."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import ignore_progress
from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.planner import planner
from unfold_pipeline.planner.frontier import FrontierPoint, adopt_cheaper_plan, compute_frontier
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, interpolate_latency
from unfold_pipeline.problem.problem import SearchBudget
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.report import sentences
from unfoldkit.arrivals import processes

CPU = HardwareOption("cpu", 0.05, interpolate_latency([(1, 0.05), (16, 0.5)]))
GPU = HardwareOption("gpu", 0.65, interpolate_latency([(1, 0.016), (16, 0.076)]))
TARGETS = (0.02, 0.12, 0.15, 0.2, 0.4, 0.8)
STOPPED = SearchBudget(max_simulated_queries=1.0)


def build_checker(limit: float, quotas: tuple[tuple[str, int], ...] = ()) -> SloChecker:
    """A checker of bursty traffic through two stages."""
    pipeline = Pipeline((Stage("a", (), (CPU, GPU)), Stage("b", (Edge(0),), (CPU, GPU))), quotas)
    arrivals = processes.gamma_arrivals(60.0, 20.0, np.random.default_rng(0), scv=4.0)
    return build_slo_checker(pipeline, [draw_sample(pipeline, arrivals, np.random.default_rng(1))], limit)


def solved(limit: float, effort: SearchBudget, quotas: tuple[tuple[str, int], ...] = ()) -> planner.Solution:
    """The outcome for a limit."""
    outcome = planner.find_plan(build_checker(limit, quotas), effort, ignore_progress)
    assert isinstance(outcome, planner.Solution)
    return outcome


@pytest.mark.parametrize("effort", [SearchBudget(), STOPPED])
def test_frontier_never_rises(effort: SearchBudget) -> None:
    """A looser target never costs more, whether or not the searches are complete."""
    points = compute_frontier(solved(0.3, effort), TARGETS, effort, ignore_progress)
    costs = [point.hourly_cost for point in points if point.hourly_cost is not None]
    assert points[0].hourly_cost is None
    assert [point.slo_s for point in points] == sorted({*TARGETS, 0.3})
    assert costs == sorted(costs, reverse=True)


def test_no_point_costs_more_than_a_known_plan() -> None:
    """No point of the frontier costs more than a known plan that meets its target."""
    outcome = solved(0.3, STOPPED)
    points = compute_frontier(outcome, TARGETS, STOPPED, ignore_progress)
    known = [plan for plan in (outcome.plan, outcome.greedy.plan, *(point.plan for point in points)) if plan]
    for point, plan in itertools.product(points, known):
        checker = replace(outcome.checker, slo_s=point.slo_s)
        if checker.meets_slo(plan):
            assert point.hourly_cost is not None
            assert point.hourly_cost <= checker.pipeline.cost(plan) + 1e-9


def test_optimal_plan_is_the_point_of_tighter_targets_it_meets() -> None:
    """Between its percentile and its target, an optimal plan is the exact point without a search."""
    outcome = solved(0.3, SearchBudget())
    tail = outcome.checker.tail_latency(outcome.plan)
    assert tail < 0.3
    points = compute_frontier(outcome, [(tail + 0.3) / 2], STOPPED, ignore_progress)
    assert [(point.hourly_cost, point.is_exact) for point in points] == [(outcome.hourly_cost, True)] * 2


def test_exact_points_equal_plans_for_their_targets() -> None:
    """A point with a complete search has the price that planning for its target finds."""
    points = compute_frontier(solved(0.3, SearchBudget()), TARGETS, SearchBudget(), ignore_progress)
    assert all(point.is_exact for point in points)
    for point in points:
        alone = planner.find_plan(build_checker(point.slo_s), SearchBudget(), ignore_progress)
        assert (alone.hourly_cost if isinstance(alone, planner.Solution) else None) == pytest.approx(point.hourly_cost)


def test_node_limit_applies_to_other_targets() -> None:
    """When the nodes are used up, the search for a target stops, and its price is not called exact."""
    outcome = solved(0.3, SearchBudget())
    whole = compute_frontier(outcome, TARGETS, SearchBudget(), ignore_progress)
    short = compute_frontier(outcome, TARGETS, SearchBudget(max_nodes=1), ignore_progress)
    assert all(point.is_exact for point in whole)
    stopped = [point for point in short if not point.is_exact]
    assert stopped
    assert all(point.hourly_cost is not None for point in stopped)


def test_quota_hides_no_point() -> None:
    """If the fastest hardware exceeds its quota, tight targets have the price of planning for them alone."""
    quotas = (("gpu", 2),)
    alone = solved(0.25, SearchBudget(), quotas)
    points = compute_frontier(solved(0.5, SearchBudget(), quotas), [0.25], SearchBudget(), ignore_progress)
    assert points[0].hourly_cost == pytest.approx(alone.hourly_cost)


def test_plan_is_replaced_by_a_cheaper_one() -> None:
    """A cheaper plan from the search for another target becomes the solution."""
    best = solved(0.3, SearchBudget())
    dear = tuple(replace(choice, replicas=choice.replicas + 1) for choice in best.plan)
    assert best.checker.meets_slo(dear)
    found = compute_frontier(
        replace(best, plan=dear, is_search_complete=False), [0.25], SearchBudget(), ignore_progress
    )
    assert adopt_cheaper_plan(replace(best, plan=dear), found).hourly_cost < best.checker.pipeline.cost(dear)


def test_inexact_points_are_marked() -> None:
    """The price of a stopped search carries ≤, and "none found" differs from "none"."""
    points = (FrontierPoint(0.1, None, None, True), FrontierPoint(0.2, None, None, False))
    priced = (FrontierPoint(0.3, (), 3.0, False), FrontierPoint(0.4, (), 2.0, True))
    line = sentences.describe_frontier([(p.slo_s, p.hourly_cost, p.is_exact) for p in (*points, *priced)])
    assert line.split("   ")[0] == "100 ms none · 200 ms none found · 300 ms ≤ $3.00 · 400 ms $2.00"
