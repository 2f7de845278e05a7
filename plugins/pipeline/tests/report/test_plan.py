"""Baselines respect quotas, and overload and prices of 0 are reported."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.planner import coarse_grained, planner
from unfold_pipeline.planner.coarse_grained import plan_coarse_baselines
from unfold_pipeline.problem.exported_plan import ExportedStage, assign_labels
from unfold_pipeline.problem.pipeline import HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.problem import SearchBudget
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.report import plan as tables
from unfold_pipeline.report.export_triton import find_folder_name, format_config

GPU = HardwareOption("gpu", 1.0, interpolate_latency([(1, 0.02)]))
CPU = HardwareOption("cpu", 0.9, interpolate_latency([(1, 0.1)]))


def build_checker(
    quotas: tuple[tuple[str, int], ...] = (), limit: float = 0.5, options: tuple[HardwareOption, ...] = (GPU, CPU)
) -> SloChecker:
    """A checker of one stage and 400 queries, 200 a second."""
    pipeline = Pipeline((Stage("a", (), options),), quotas)
    return build_slo_checker(pipeline, [draw_sample(pipeline, np.arange(400.0) / 200, np.random.default_rng(0))], limit)


@pytest.mark.parametrize(
    ("gpus", "cpus", "option", "most"), [(100, 100, 0, 5), (3, 100, 1, 21), (3, 2, 0, 3), (0, 7, 1, 7)]
)
def test_coarse_plans_respect_quotas(gpus: int, cpus: int, option: int, most: int) -> None:
    """Units with enough quota precede cheaper ones; if none have enough, the quotas are used up."""
    checker = build_checker((("gpu", gpus), ("cpu", cpus)))
    baselines = plan_coarse_baselines(checker)
    assert baselines is not None
    plans = [item.unit.replicate(item.count) for item in (baselines.peak, baselines.mean)]
    assert all(checker.pipeline.is_within_quotas(plan) for plan in plans)
    assert plans[0][0].option == option
    assert most - 1 <= plans[0][0].replicas <= most


def test_no_coarse_plan_without_a_complete_unit() -> None:
    """If a quota leaves no replica of a stage, there is no unit."""
    assert coarse_grained.find_cheapest_unit(build_checker((("gpu", 0), ("cpu", 0)))) is None


def test_overloaded_stage_is_reported() -> None:
    """A target longer than the sample is met by growing queues; the report states it for overloaded stages only."""
    checker = build_checker(limit=60.0)
    assert checker.meets_slo((StageConfig(0, 1, 1),))
    assert "a receives 401 % of its capacity" in tables.describe_overload(checker, (StageConfig(0, 1, 1),))
    assert tables.describe_overload(checker, (StageConfig(0, 1, 5),)) == ""


def test_free_plan_is_compared_without_percentage() -> None:
    """Compared with a plan that costs nothing, another one is free too or not free."""
    outcome = planner.find_plan(
        build_checker(options=(GPU, HardwareOption("cpu", 0.0, CPU.latency_s))), SearchBudget(), lambda *_: None
    )
    assert isinstance(outcome, planner.Solution)
    assert outcome.hourly_cost == 0
    rows = tables.build_plan_table(outcome, 0.1, None).rows
    against = {str(row[0]): row for row in rows}["greedy (InferLine)"]
    assert against[3] == ("free too" if against[1] == 0 else "not free")


@pytest.mark.parametrize(("name", "folder"), [("right_one", "right_one"), ("../up", "up"), ('a "b"', "a-b")])
def test_triton_model_names_are_valid_folders(name: str, folder: str) -> None:
    """A stage with a name that cannot be a folder, or would break the config, gets its Kubernetes name."""
    item = ExportedStage(
        name=name,
        label=assign_labels([name])[name],
        after={},
        share=1.0,
        fan_out=1.0,
        max_wait_s=0.0,
        model_file=None,
        model_code=None,
        hardware="cpu",
        instance="",
        gpus=0.0,
        batch=1,
        replicas=1,
    )
    assert find_folder_name(item) == folder
    assert format_config(item).startswith(f'name: "{folder}"\n')


def test_the_distribution_of_latencies_passes_its_percentile() -> None:
    """The curve ends at 100 %, rises, and passes the point of the percentile; the target stands beside it."""
    checker, plan = build_checker(), (StageConfig(0, 1, 5),)
    simulated, target, tail = tables.build_latency_figure(checker, plan).series
    assert list(simulated.x) == sorted(simulated.x)
    assert simulated.y[-1] == pytest.approx(100.0)
    assert target.x == (500.0, 500.0)
    assert tail.x[0] == pytest.approx(1e3 * checker.tail_latency(plan))
    assert np.interp(tail.x[0], simulated.x, simulated.y) >= 98.5


def test_the_distribution_counts_queries_that_are_never_answered() -> None:
    """An overloaded stage answers late: the share within the target is what the simulation gives."""
    checker, plan = build_checker(limit=0.5), (StageConfig(0, 1, 1),)
    latencies = checker.estimators[0].compute_latencies(plan)
    simulated = tables.build_latency_figure(checker, plan).series[0]
    within = float(np.interp(500.0, simulated.x, simulated.y))
    assert within == pytest.approx(100 * float((latencies <= 0.5).mean()), abs=2.0)
