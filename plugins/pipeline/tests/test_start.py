"""The greedy planner starts within the quotas, so that it has a plan wherever one is near."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import greedy, infeasibility, planner
from unfold_pipeline.planner.greedy_init import start
from unfold_pipeline.problem.pipeline import Edge, Option, Pipeline, Stage, table
from unfold_pipeline.problem.sample import draw
from unfoldkit.arrivals import processes


def option(hardware: str, price: float, *points: tuple[int, float]) -> Option:
    """An option with the latency of some batches."""
    return Option(hardware, price, table(points))


L4, H100 = option("l4", 0.7, (1, 0.3)), option("h100", 7.0, (1, 0.1))


def judged(pipeline: Pipeline, limit: float, rate: float = 25.0) -> Judge:
    """A judge of half a minute of traffic."""
    arrivals = processes.poisson(rate, 30.0, np.random.default_rng(0))
    return planner.judge_of(pipeline, [draw(pipeline, arrivals, np.random.default_rng(1))], limit)


def line(*stages: tuple[Option, ...], quota: int) -> Pipeline:
    """Stages one behind the other, with a quota of h100."""
    made = tuple(Stage(f"s{i}", (Edge(i - 1),) if i else (), offered) for i, offered in enumerate(stages))
    return Pipeline(made, (("h100", quota),))


def hardware(judge: Judge) -> list[str]:
    """The hardware of each stage at the start."""
    found = start(judge)
    assert found is not None
    assert judge.meets(found)
    return [stage.options[choice.option].hardware for stage, choice in zip(judge.pipeline.stages, found, strict=True)]


def test_a_stage_falls_to_other_hardware_when_the_quota_is_used_up() -> None:
    """Where the quickest hardware cannot carry the load within its quota, the start is on the other."""
    assert hardware(judged(line((L4, H100), quota=2), 1.0)) == ["l4"]
    assert hardware(judged(line((L4, H100), quota=6), 1.0)) == ["h100"]


def test_a_quota_is_spread_over_the_stages() -> None:
    """Of stages that all are quickest on limited hardware, some keep it and the others take what is not limited."""
    short = option("l4", 0.7, (1, 0.2))
    found = hardware(judged(line((L4, H100), (short, H100), quota=4), 0.9))
    assert sorted(found) == ["h100", "l4"]


def test_a_larger_batch_comes_before_hardware_that_is_too_slow() -> None:
    """Where only the limited hardware is in time, the start carries the load there with larger batches."""
    batched = option("h100", 7.0, (1, 0.1), (8, 0.15))
    assert hardware(judged(line((L4, batched), quota=2), 0.29)) == ["h100"]


def test_greedy_has_a_plan_where_the_search_has_one() -> None:
    """With a quota that the quickest hardware exceeds, even a search that is stopped at once ends with a plan."""
    judge = judged(line((option("l4", 0.7, (1, 0.01)),), (L4, H100), quota=2), 1.0)
    outcome = planner.solve(judge, planner.Effort(most_items=1.0), lambda _step, _done, _total: None)
    assert outcome is not None
    whole = planner.solve(judge, planner.Effort(), lambda _step, _done, _total: None)
    assert whole is not None
    assert outcome.cost == pytest.approx(whole.cost)


def test_without_quotas_the_start_is_batch_one_on_the_quickest_hardware() -> None:
    """The start of InferLine is kept where no quota is in the way; one replica less of it would be late."""
    judge = judged(Pipeline(line((L4, H100), quota=1).stages), 0.5)
    found = start(judge)
    assert found is not None
    assert (found[0].option, found[0].batch) == (1, 1)
    assert not judge.meets((replace(found[0], replicas=found[0].replicas - 1),))


def test_a_long_way_that_few_take_is_no_obstacle() -> None:
    """A stage that is slower than the target, but that fewer queries visit than may be late, does not stop greedy."""
    rare = Stage("rare", (Edge(0, 0.002),), (option("l4", 0.7, (1, 2.0)),))
    judge = judged(Pipeline((Stage("s0", (), (H100,)), rare)), 0.5, rate=40.0)
    assert judge.single(tuple(start(judge) or ())) > judge.limit
    assert greedy.plan(judge).plan is not None


def test_nothing_is_started_where_no_quota_will_do() -> None:
    """A load above what all hardware can carry, and a target below one service, have no start."""
    assert start(judged(line((H100,), quota=1), 1.0)) is None
    assert start(judged(line((L4, H100), quota=2), 0.05)) is None


def test_a_small_relaxation_is_found_under_a_quota() -> None:
    """Where the quickest hardware exceeds its quota, a target a little above the service of the other is told."""
    judge = judged(line((option("l4", 0.7, (1, 0.01)),), (L4, H100), quota=2), 0.3)
    assert planner.solve(judge, planner.Effort(), lambda _step, _done, _total: None) is None
    told = infeasibility.explain(judge, 1e8)
    assert told.relaxed is not None
    assert told.relaxed < 0.33
