"""Flows that few queries take are not required of all, and several items may meet at a join."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import ignore_progress
from unfold_pipeline.estimator.simulator import build_constant_targets, simulate_reactive_rule, simulate_targets
from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.planner import planner
from unfold_pipeline.planner.bounds import build_replica_bounds
from unfold_pipeline.problem.pipeline import (
    Edge,
    HardwareOption,
    Pipeline,
    Stage,
    StageConfig,
    compute_unavoidable_time,
    interpolate_latency,
)
from unfold_pipeline.problem.problem import SearchBudget
from unfold_pipeline.problem.sample import Sample, cap_shares, draw_sample
from unfoldkit.queueing import reference

RATE = 40.0
WAYS = np.array([[1, 3, 2, 1], [1, 0, 1, 1], [1, 5, 0, 1], [1, 2, 2, 0]])


def runs(seconds: float, price: float = 1.0, hardware: str = "cpu", wake: float = 0.0) -> HardwareOption:
    """Hardware on which a query alone takes so long, and two together half as long again."""
    return HardwareOption(hardware, price, interpolate_latency([(1, seconds), (2, seconds * 1.5)]), wake)


def build_checker(pipeline: Pipeline, limit: float, visits: np.ndarray | None = None) -> SloChecker:
    """A checker of 600 queries, one every 25 ms."""
    sample = draw_sample(pipeline, np.arange(600.0) / RATE, np.random.default_rng(0), visits)
    return build_slo_checker(pipeline, [sample], limit)


def rare(share: float = 1.0, fan_out: float = 1.0) -> Pipeline:
    """A quick stage, and behind it one that takes longer than the limit of the tests."""
    return Pipeline((Stage("fast", (), (runs(0.01),)), Stage("slow", (Edge(0, share),), (runs(0.2),), fan_out=fan_out)))


VISITS = np.array([[1, 0]] * 199 + [[1, 1]])
RARE = [(rare(0.005), None), (rare(fan_out=0.005), None), (cap_shares(rare(), VISITS), VISITS)]


@pytest.mark.parametrize(("pipeline", "visits"), RARE, ids=["share", "fan_out", "recorded"])
def test_rare_slow_stage_needs_one_replica(pipeline: Pipeline, visits: np.ndarray | None) -> None:
    """If few enough queries visit a stage slower than the SLO, one replica per stage is proven optimal."""
    outcome = planner.find_plan(build_checker(pipeline, 0.1, visits), SearchBudget(), ignore_progress)
    assert isinstance(outcome, planner.Solution)
    assert outcome.hourly_cost == 2.0
    assert outcome.bound == pytest.approx(2.0)
    assert outcome.greedy.plan is not None


def skipped() -> Pipeline:
    """A slow branch that few queries take, one that all take, and a stage where both meet, on either hardware."""
    last = (runs(0.02), runs(0.005, 5.0, "gpu"))
    return Pipeline(
        (
            Stage("rare", (), (runs(0.3),), share=0.005),
            Stage("all", (), (runs(0.01),)),
            Stage("join", (Edge(0), Edge(1)), last),
        )
    )


def test_rare_branch_does_not_tighten_the_bound() -> None:
    """The proven bound is not above a feasible plan, although the rare branch leaves no time."""
    checker = build_checker(skipped(), 0.31)
    plan = tuple(StageConfig(0, 1, 1) for _ in range(3))
    assert checker.meets_slo(plan)
    outcome = planner.find_plan(checker, SearchBudget(), ignore_progress)
    assert isinstance(outcome, planner.Solution)
    assert build_replica_bounds(checker).bound_cost(checker.slo_s) <= outcome.hourly_cost == checker.pipeline.cost(plan)


def test_unavoidable_time_counts_what_every_query_needs() -> None:
    """Upstream of a join counts the longest common path; a fan-out below 1 makes downstream stages optional."""
    assert compute_unavoidable_time(skipped(), (0.3, 0.01, 0.02)).upstream_s == (0.0, 0.0, 0.01)
    assert compute_unavoidable_time(rare(fan_out=0.5), (0.01, 0.2)).downstream_s == (0.0, 0.0)
    assert compute_unavoidable_time(rare(fan_out=2.0), (0.01, 0.2)).downstream_s == (0.2, 0.0)


def merged() -> tuple[Pipeline, Sample]:
    """A detector, two stages with several items of a query, and one that waits for all of them."""
    both = (Stage("person", (Edge(0),), (runs(0.01),)), Stage("plate", (Edge(0),), (runs(0.02),)))
    pipeline = Pipeline((Stage("detect", (), (runs(0.01),)), *both, Stage("merge", (Edge(1), Edge(2)), (runs(0.005),))))
    pipeline = cap_shares(pipeline, WAYS)
    return pipeline, draw_sample(pipeline, np.arange(200.0) / RATE, np.random.default_rng(0), WAYS)


def plain(sample: Sample, plan: tuple[StageConfig, ...], pipeline: Pipeline) -> np.ndarray:
    """When each query ends, by the plain queue; items are pairs of a query and a number."""
    stages = zip(plan, pipeline.stages, strict=True)
    how = [(s.options[0].latency_s[: c.batch + 1].tolist(), c.replicas) for c, s in stages]
    ends: list[list[tuple[float, int]]] = []
    for index in range(3):
        come = [(float(time), query) for query, time in enumerate(sample.arrivals)] if index == 0 else ends[0]
        items = [(t, q) for t, q in come for _ in range(WAYS[q % 4][index])]
        done, _ = reference.serve([t for t, _ in items], list(range(len(items))), *how[index])
        ends.append([(time, items[item][1]) for time, item in done])
    ready: dict[int, float] = {}
    for time, query in [*ends[1], *ends[2]]:
        ready[query] = max(ready.get(query, -math.inf), time)
    order = sorted((query for query in ready if WAYS[query % 4][3]), key=lambda query: (ready[query], query))
    last, _ = reference.serve([ready[query] for query in order], order, *how[3])
    return np.array([{**ready, **{query: time for time, query in last}}[q] for q in range(sample.size)])


def test_join_waits_for_all_items_of_its_query() -> None:
    """With several items per branch, estimated and simulated latencies equal the reference queues."""
    pipeline, sample = merged()
    plan = (StageConfig(0, 1, 1), StageConfig(0, 2, 2), StageConfig(0, 2, 2), StageConfig(0, 2, 1))
    checker = build_slo_checker(pipeline, [sample], 1.0)
    expected = plain(sample, plan, pipeline) - sample.arrivals
    assert np.abs(checker.estimators[0].compute_latencies(plan) - expected).max() == 0.0
    assert (
        np.abs(
            simulate_targets(pipeline, sample, plan, build_constant_targets(plan, sample), 0.0).latencies - expected
        ).max()
        == 0.0
    )
    looked = simulate_reactive_rule(pipeline, sample, plan, lambda _now, _in_flight, ordered: list(ordered), 0.0)
    assert np.abs(looked.latencies - expected).max() == 0.0


def test_idle_replicas_are_not_added() -> None:
    """A stage that is late with spare replicas ends its branch: the wake-up time is the cause."""
    first = Stage("a", (), (runs(0.02),))
    checker = build_checker(Pipeline((first, Stage("b", (Edge(0),), (runs(0.02, wake=0.02),)))), 0.05)
    assert planner.find_plan(checker, SearchBudget(), ignore_progress) == planner.NoPlan(is_search_complete=True)
    assert checker.estimators[0].cache.passes < 500


def test_sums_of_times_meet_a_target_that_they_equal() -> None:
    """Three queries at once take 0.1, 0.2 and 0.30000000000000004 s on one replica, which 300 ms allow."""
    pipeline = Pipeline((Stage("only", (), (HardwareOption("cpu", 1.0, interpolate_latency([(1, 0.1)])),)),))
    sample = draw_sample(pipeline, np.repeat(np.arange(100.0), 3), np.random.default_rng(0))
    checker = build_slo_checker(pipeline, [sample], 0.3)
    outcome = planner.find_plan(checker, SearchBudget(), ignore_progress)
    assert isinstance(outcome, planner.Solution)
    assert (outcome.hourly_cost, checker.tail_latency(outcome.plan)) == (1.0, 0.3)
