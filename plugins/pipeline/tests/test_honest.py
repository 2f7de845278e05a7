"""What a plan is laid beside can be rented, and what a sample or a price of 0 hides is said."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import coarse_grained, planner
from unfold_pipeline.problem.pipeline import Choice, Option, Pipeline, Stage, table
from unfold_pipeline.problem.sample import draw
from unfold_pipeline.report import exports
from unfold_pipeline.report import plan as tables

GPU = Option("gpu", 1.0, table([(1, 0.02)]))
CPU = Option("cpu", 0.9, table([(1, 0.1)]))


def judged(
    quotas: tuple[tuple[str, int], ...] = (), limit: float = 0.5, options: tuple[Option, ...] = (GPU, CPU)
) -> Judge:
    """A judge of one stage and 400 queries, 200 a second."""
    pipeline = Pipeline((Stage("a", (), options),), quotas)
    return planner.judge_of(pipeline, [draw(pipeline, np.arange(400.0) / 200, np.random.default_rng(0))], limit)


@pytest.mark.parametrize(
    ("gpus", "cpus", "option", "most"), [(100, 100, 0, 5), (3, 100, 1, 21), (3, 2, 0, 3), (0, 7, 1, 7)]
)
def test_coarse_plans_keep_to_quotas(gpus: int, cpus: int, option: int, most: int) -> None:
    """Units that the quotas leave enough of go before cheaper ones; where none are, all that there are is taken."""
    judge = judged((("gpu", gpus), ("cpu", cpus)))
    plans = [item.unit.times(item.count) for item in planner.baselines(judge) or ()]
    assert len(plans) == 2
    assert all(judge.pipeline.within_quotas(plan) for plan in plans)
    assert plans[0][0].option == option
    assert most - 1 <= plans[0][0].replicas <= most


def test_without_a_whole_unit_there_is_no_coarse_plan() -> None:
    """Where a quota leaves no replica of a stage, no unit can be rented."""
    assert coarse_grained.unit(judged((("gpu", 0), ("cpu", 0)))) is None


def test_a_stage_that_cannot_keep_up_is_told() -> None:
    """A target longer than the sample is met by queues that grow; the plan says so, and one that keeps up does not."""
    judge = judged(limit=60.0)
    assert judge.meets((Choice(0, 1, 1),))
    assert "a gets 401 % of what it can serve" in tables.overload_line(judge, (Choice(0, 1, 1),))
    assert tables.overload_line(judge, (Choice(0, 1, 5),)) == ""


def test_what_is_free_is_no_percentage() -> None:
    """Beside a plan that costs nothing, another has no percentage: it is free too, or not."""
    outcome = planner.solve(judged(options=(GPU, Option("cpu", 0.0, CPU.latency))), planner.Effort(), lambda *_: None)
    assert outcome is not None
    assert outcome.cost == 0
    rows = tables.plan_table(outcome, 0.1, None).rows
    against = {str(row[0]): row for row in rows}["greedy (InferLine)"]
    assert against[3] == ("free too" if against[1] == 0 else "not free")


@pytest.mark.parametrize(("name", "folder"), [("right_one", "right_one"), ("../up", "up"), ('a "b"', "a-b")])
def test_triton_models_have_names_that_are_folders(name: str, folder: str) -> None:
    """A stage whose name is no folder, or would break the configuration, is called as in Kubernetes."""
    item = exports.Planned(name, exports.labels([name])[name], exports.StageSpec(), "cpu", "", 1, 1)
    assert item.folder == folder
    assert exports.pbtxt(item).startswith(f'name: "{folder}"\n')
