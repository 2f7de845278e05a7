"""N+1: a plan meets the SLO with any one replica lost, costs as little as brute force finds, and reports the loss."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.pipeline.tests.helpers import EXPORT_SPEC, build_checker, ignore_progress, option, plan_report
from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.planner import planner
from unfold_pipeline.planner.bounds import build_replica_bounds
from unfold_pipeline.planner.greedy import plan_greedily
from unfold_pipeline.problem.pipeline import Edge, Pipeline, Plan, Stage, StageConfig
from unfold_pipeline.problem.problem import SearchBudget, TunerSettings
from unfold_pipeline.replay.simulated import simulate_rules
from unfold_pipeline.tuner.envelope_rule import build_scaling_context
from unfold_pipeline.tuner.table_rule import build_context_table
from unfoldkit.api import Report, Verdict


def is_survivor(checker: SloChecker, plan: Plan) -> bool:
    """Simulate a plan and each of its losses from nothing."""
    losses = [
        (*plan[:index], replace(config, replicas=config.replicas - 1), *plan[index + 1 :])
        for index, config in enumerate(plan)
    ]
    if any(config.replicas < 2 for config in plan):
        return False
    fresh = build_slo_checker(checker.pipeline, checker.samples, checker.slo_s)
    return all(
        estimator.count_late(p, checker.slo_s) <= estimator.max_late
        for p in (plan, *losses)
        for estimator in fresh.estimators
    )


def find_least_cost(checker: SloChecker, ceiling: float) -> float:
    """Return the least price of all plans that survive, by brute force up to ``ceiling``."""
    offers = [
        [
            StageConfig(number, batch, count)
            for number, item in enumerate(stage.options)
            for batch in item.batch_sizes
            for count in range(1, int(ceiling / item.usd_per_hour + 1e-9) + 1)
        ]
        for stage in checker.pipeline.stages
    ]
    priced = [(checker.pipeline.cost(plan), plan) for plan in itertools.product(*offers)]
    plans = sorted(priced, key=lambda pair: pair[0])
    return next((cost for cost, plan in plans if cost <= ceiling + 1e-9 and is_survivor(checker, plan)), float("inf"))


@given(
    slopes=st.lists(st.sampled_from([0.005, 0.01, 0.02]), min_size=2, max_size=2),
    limit=st.sampled_from([0.12, 0.2, 0.35]),
    share=st.sampled_from([1.0, 0.5, 0.02]),
    rate=st.sampled_from([10.0, 40.0]),
    size=st.sampled_from([1, 2]),
    seed=st.integers(0, 50),
)
@settings(max_examples=12, deadline=None)
def test_search_equals_brute_force(
    slopes: list[float], limit: float, share: float, rate: float, size: int, seed: int
) -> None:
    """The plan survives every loss and costs as much as the cheapest survivor; the bound and greedy are consistent."""
    cpu = [replace(option("cpu", 1.0, 0.01, slope), replicas_per_instance=size) for slope in slopes]
    first, second = (cpu[0],), (cpu[1], option("gpu", 2.5, 0.005, slopes[1] / 4, top=2))
    pipeline = Pipeline((Stage("a", (), first), Stage("b", (Edge(0, share),), second)))
    checker = replace(build_checker(pipeline, limit, rate=rate, seed=seed, seconds=8.0), spares=1)
    outcome = planner.find_plan(checker, SearchBudget(), ignore_progress)
    assert isinstance(outcome, planner.Solution)
    assert is_survivor(checker, outcome.plan)
    assert outcome.hourly_cost == pytest.approx(find_least_cost(checker, outcome.hourly_cost))
    assert outcome.bound <= outcome.hourly_cost + 1e-9
    assert build_replica_bounds(checker).bound_cost(limit) <= outcome.hourly_cost + 1e-9
    greedy = plan_greedily(checker).plan
    assert greedy is not None
    assert is_survivor(checker, greedy)


@pytest.mark.parametrize("seed", range(3))
def test_branches_equal_brute_force(seed: int) -> None:
    """A graph with two branches and a join: losses upstream change what arrives downstream."""
    cpu = (option("cpu", 1.0, 0.02, 0.01, top=2),)
    pipeline = Pipeline(
        (Stage("a", (), cpu), Stage("b", (Edge(0, 0.6),), cpu), Stage("c", (Edge(0, 0.7), Edge(1)), cpu))
    )
    checker = replace(build_checker(pipeline, 0.25, rate=20.0, seed=seed, seconds=6.0), spares=1)
    outcome = planner.find_plan(checker, SearchBudget(), ignore_progress)
    assert isinstance(outcome, planner.Solution)
    assert is_survivor(checker, outcome.plan)
    assert outcome.hourly_cost == pytest.approx(find_least_cost(checker, outcome.hourly_cost))


def plan_two_stages(rate: float = 40.0) -> tuple[SloChecker, Plan]:
    """Return the plan of two stages that survives a loss, and its checker."""
    cpu = (option("cpu", 1.0, 0.02, 0.01, top=4),)
    pipeline = Pipeline((Stage("a", (), cpu), Stage("b", (Edge(0, 0.6),), cpu)))
    checker = replace(build_checker(pipeline, 0.25, rate=rate, seed=3, seconds=20.0), spares=1)
    outcome = planner.find_plan(checker, SearchBudget(), ignore_progress)
    assert isinstance(outcome, planner.Solution)
    return checker, outcome.plan


def test_rows_of_the_tuner_survive_a_loss() -> None:
    """The row at the rate of the plan meets the SLO after each loss, and no row leaves a stage without a spare."""
    checker, plan = plan_two_stages()
    context = build_scaling_context(checker.pipeline, plan, checker.samples, checker.slo_s, checker.spares)
    table = build_context_table(context, TunerSettings())
    row = table.factors.index(1.0)
    pairs = zip(table.batches[row], table.replicas[row], strict=True)
    assert is_survivor(checker, tuple(StageConfig(0, batch, count) for batch, count in pairs))
    assert min(map(min, table.replicas)) == 2


def test_a_lull_leaves_spares() -> None:
    """In a replay with a tenth of the traffic of the plan, rules of the spec keep two replicas of each stage."""
    checker, plan = plan_two_stages()
    lull = build_checker(checker.pipeline, checker.slo_s, rate=4.0, seed=4, seconds=300.0).samples[0]
    rules = list(itertools.islice(simulate_rules(checker, plan, lull, TunerSettings(has_floor=False)), 1, 5))
    assert [rule.name for rule in rules] == ["paper", "ratio", "table", "calibrated"]
    for rule in rules:
        assert all(count >= 2 for item in rule.trace.schedules for _, count in item.history), rule.name


@pytest.mark.slow
def test_quota_that_leaves_no_spare_has_no_plan(tmp_path: Path) -> None:
    """Where a quota admits N but not N+1, the answer is no, with the quota that would do."""
    text = EXPORT_SPEC.replace("core: {price: $0.05/h}", "core: {price: $0.05/h, quota: 5}")
    assert plan_report(tmp_path / "n", text).verdict is Verdict.YES
    report = plan_report(tmp_path / "n1", text.replace("p99: 400 ms", "p99: 400 ms, survive: 1"))
    assert report.verdict is Verdict.NO
    lines = dict(report.lines)
    assert "one replica lost" in lines["survive"]
    assert "quota of core" in lines["binding constraint"]


def find_line(report: Report, label: str) -> str:
    """Return a line of a report."""
    return dict(report.lines)[label]


def test_report_states_the_worst_loss(tmp_path: Path) -> None:
    """With ``survive: 1`` each stage has a spare, and the report names the loss that hurts most."""
    report = plan_report(tmp_path, EXPORT_SPEC.replace("p99: 400 ms", "p99: 400 ms, survive: 1"))
    assert report.verdict is Verdict.YES
    assert report.decision is not None
    assert all(stage["replicas"] >= 2 for stage in report.decision["stages"].values())
    assert find_line(report, "after losing a replica").startswith("any replica may be lost within p99 ≤ 400 ms: p99 ")
    assert "after a loss" in find_line(report, "next cheaper plan")
